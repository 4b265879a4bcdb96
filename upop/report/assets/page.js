"use strict";
// Makes every table sortable by its headings and copyable as tab-separated text with exact values.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (cell) => cell.dataset.value ?? cell.textContent.replace(/\s+/g, " ");
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    if (a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    return a.localeCompare(b);
  };
  const missing = (cell) => cell.dataset.value === undefined && cell.textContent === "-";
  const sort = (column, down) => {
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [one.cells[column], other.cells[column]];
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      return (down ? -1 : 1) * compare(value(a), value(b));
    });
    body.append(...rows);
    heads.forEach((head, number) => {
      if (number === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  };
  heads.forEach((head, column) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column, head.getAttribute("aria-sort") === "ascending"));
    head.append(button);
  });
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "copy";
  copy.textContent = "copy";
  const name = table.caption.textContent;
  copy.setAttribute("aria-label", `copy the table: ${name}`);
  copy.addEventListener("click", async () => {
    const lines = [heads.map((head) => head.textContent), ...[...body.rows].map((row) => [...row.cells].map(value))];
    const text = lines.map((line) => line.join("\t")).join("\n");
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "copied";
    } catch {
      const area = document.createElement("textarea"); // where a page from disk has no clipboard
      area.value = text;
      document.body.append(area);
      area.select();
      copy.textContent = document.execCommand("copy") ? "copied" : "not copied";
      area.remove();
    }
    setTimeout(() => { copy.textContent = "copy"; }, 2000);
  });
  table.caption.firstElementChild.append(copy);
}
