// A field above the tables of the page of errors. It hides all rows without the words typed into it, and empty sections.
document.addEventListener("DOMContentLoaded", () => {
  if (!/\/errors\/(index\.html)?$/.test(location.pathname)) return;
  const headings = [...document.querySelectorAll("article h2")];
  const sections = headings.map((heading) => {
    const parts = [heading];
    for (let next = heading.nextElementSibling; next && next.tagName !== "H2"; next = next.nextElementSibling) parts.push(next);
    const rows = parts.flatMap((part) => [...part.querySelectorAll("tbody tr")]);
    return { parts, rows };
  });
  const field = Object.assign(document.createElement("input"), {
    type: "search", className: "filter", placeholder: "Filter: words of the message that you see",
  });
  field.setAttribute("aria-label", field.placeholder);
  const count = document.createElement("p");
  headings[0].before(field, count);
  const show = (element, shown) => { element.style.display = shown ? "" : "none"; };
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (row) => words.every((word) => row.textContent.toLowerCase().includes(word));
    let found = 0;
    for (const { parts, rows } of sections) {
      const fitting = rows.filter(fits).length;
      rows.forEach((row) => show(row, fits(row)));
      parts.forEach((part) => show(part, fitting || !words.length));
      found += fitting;
    }
    count.textContent = words.length ? `${found} messages` : "";
  });
});
