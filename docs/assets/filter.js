// A field above the tables of the page of errors that hides all rows without the words typed into it.
document.addEventListener("DOMContentLoaded", () => {
  if (!/\/errors\/(index\.html)?$/.test(location.pathname)) return;
  const tables = [...document.querySelectorAll("article table")];
  const field = Object.assign(document.createElement("input"), {
    type: "search", className: "filter", placeholder: "Filter: words of the message that you see",
  });
  field.setAttribute("aria-label", field.placeholder);
  const count = document.createElement("p");
  document.querySelector("article h2").before(field, count);
  const rows = tables.flatMap((table) => [...table.tBodies[0].rows]);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = rows.filter((row) => {
      const text = row.textContent.toLowerCase();
      return !(row.hidden = !words.every((word) => text.includes(word)));
    });
    tables.forEach((table) => { table.hidden = [...table.tBodies[0].rows].every((row) => row.hidden); });
    count.textContent = words.length ? `${shown.length} of ${rows.length} messages` : "";
  });
});
