// Drafts, time, keys and dragging. Every page works without this file, but for drafts.
const form = document.getElementById("task");
const status = document.getElementById("status");
const started = Number(form.elements.seconds.value);
let visible = 0; // milliseconds in which the page was shown, up to `since`
let since = document.hidden ? null : performance.now();
let waiting = null;
let pending = 0;
let sending = false;
let saving = Promise.resolve(); // drafts that are on their way: one may not overtake another, nor a submission

// Time counts only while the page is shown.
function countTime() {
  const now = performance.now();
  if (since !== null) visible += now - since;
  since = document.hidden ? null : now;
  form.elements.seconds.value = (started + visible / 1000).toFixed(1);
}

// A draft is saved soon after a person has done something, never before.
function changed() {
  clearTimeout(waiting);
  waiting = setTimeout(saveDraft, 400);
}

function saveDraft() {
  clearTimeout(waiting);
  waiting = null;
  follow(saving.then(sendDraft));
}

// Nothing can be waited for when the page goes away.
function saveDraftNow() {
  if (waiting === null) return;
  clearTimeout(waiting);
  waiting = null;
  follow(Promise.all([saving, sendDraft()]));
}

function follow(sent) {
  pending += 1;
  saving = sent.finally(() => (pending -= 1));
}

async function sendDraft() {
  countTime();
  const body = new URLSearchParams(new FormData(form));
  const options = { method: "POST", body, keepalive: true, signal: AbortSignal.timeout(10000) };
  const response = await fetch(form.dataset.draft, options).catch(() => null);
  if (response?.ok) {
    status.textContent = "Draft saved.";
  } else if (response === null || response.status === 429 || response.status >= 500) {
    status.textContent = "The draft is not saved yet: the desk does not answer. Trying again.";
    if (!sending && waiting === null) waiting = setTimeout(saveDraft, 3000);
  } else {
    status.textContent = "The draft is not saved. Copy your text, then open your invitation again.";
  }
}

form.addEventListener("input", changed);
form.addEventListener("submit", (event) => {
  if (sending) return event.preventDefault(); // a double click
  clearTimeout(waiting);
  waiting = null;
  if (pending) {
    event.preventDefault();
    saving.then(() => form.requestSubmit(event.submitter));
    return;
  }
  sending = true;
  countTime();
});
document.addEventListener("visibilitychange", () => {
  countTime();
  if (document.hidden) saveDraftNow();
});
window.addEventListener("pagehide", saveDraftNow);
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload(); // from the browser's cache, with what was saved since
});

// Keys. A field of text keeps its own.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.requestSubmit(document.getElementById("save"));
  } else if (!event.ctrlKey && !event.metaKey && !event.altKey && !event.target.matches("textarea")) {
    const done = ranking ? rankByKey(event) : rateByKey(event);
    if (done) event.preventDefault();
  }
});

function choose(input) {
  input.checked = input.type === "radio" || !input.checked;
  input.dispatchEvent(new Event("input", { bubbles: true }));
}

function rateByKey(event) {
  const quality = /^[1-7]$/.test(event.key) && form.querySelector(`[name=overall_quality][value="${event.key}"]`);
  const flag = /^[a-k]$/.test(event.key) && form.querySelector(`[data-key=${event.key}]`);
  if (!quality && !flag) return false;
  choose(quality || flag);
  (quality || flag).focus();
  return true;
}

// Ranking. The radio buttons are what is submitted; the board shows them, and sets them when a letter is dropped.
const ranking = document.getElementById("ranking");
const articles = ranking ? [...ranking.querySelectorAll("article")] : [];
const rows = ranking ? [...ranking.querySelectorAll(".row")] : [];
const letter = (place) => String.fromCharCode(65 + place);
const rankOf = (place) => form.querySelector(`[name="rank-${place}"]:checked`)?.value ?? "";
const chips = articles.map((_, place) => {
  const chip = document.createElement("span");
  chip.className = "chip";
  chip.textContent = letter(place);
  chip.title = `Answer ${letter(place)}: drag to its rank`;
  chip.addEventListener("pointerdown", (event) => lift(event, place));
  return chip;
});

function showBoard() {
  for (const [place, chip] of chips.entries()) {
    rows.find((row) => row.dataset.rank === rankOf(place)).querySelector(".chips").append(chip);
  }
}

function setRank(place, rank) {
  for (const input of form.querySelectorAll(`[name="rank-${place}"]`)) input.checked = input.value === rank;
  form.dispatchEvent(new Event("input"));
  const tied = chips.map((_, other) => other).filter((other) => rank && other !== place && rankOf(other) === rank);
  const ties = tied.length ? `, tied with ${tied.map(letter).join(" and ")}` : "";
  status.textContent = rank ? `Answer ${letter(place)}: rank ${rank}${ties}.` : `Answer ${letter(place)}: no rank.`;
}

function rankByKey(event) {
  const focused = document.activeElement.closest("article");
  const at = articles.indexOf(focused);
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const next = event.key === "ArrowDown" ? at + 1 : (at < 0 ? articles.length : at) - 1;
    articles[Math.min(Math.max(next, 0), articles.length - 1)].focus();
    return true;
  }
  if (!/^[0-9]$/.test(event.key) || Number(event.key) > articles.length) return false;
  const place = at >= 0 ? at : articles.findIndex((_, other) => !rankOf(other));
  if (place < 0) return false;
  setRank(place, event.key === "0" ? "" : event.key);
  const order = articles.map((_, step) => (place + step) % articles.length);
  const next = event.key === "0" ? place : order.find((other) => !rankOf(other));
  if (next === undefined) document.getElementById("save").focus();
  else articles[next].focus();
  return true;
}

function rowUnder(event) {
  return document.elementFromPoint(event.clientX, event.clientY)?.closest(".row");
}

function lift(event, place) {
  const chip = chips[place];
  const [x, y] = [event.clientX, event.clientY];
  event.preventDefault();
  chip.classList.add("lifted");
  const move = (moved) => {
    chip.style.transform = `translate(${moved.clientX - x}px, ${moved.clientY - y}px)`;
    for (const row of rows) row.classList.toggle("over", row === rowUnder(moved));
  };
  const drop = (dropped) => {
    const row = dropped.type === "pointerup" ? rowUnder(dropped) : null;
    document.removeEventListener("pointermove", move);
    document.removeEventListener("pointerup", drop);
    document.removeEventListener("pointercancel", drop);
    chip.classList.remove("lifted");
    chip.style.transform = "";
    for (const one of rows) one.classList.remove("over");
    if (row) setRank(place, row.dataset.rank);
  };
  document.addEventListener("pointermove", move);
  document.addEventListener("pointerup", drop);
  document.addEventListener("pointercancel", drop);
}

if (ranking) {
  ranking.querySelector(".board").hidden = false;
  form.addEventListener("input", showBoard);
  showBoard();
}
