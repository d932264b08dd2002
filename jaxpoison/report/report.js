"use strict";
/* Sort and filter tables. The page is complete without this script: it only rearranges rows. */

function sortKey(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.v ?? cell.textContent.trim();
  const value = Number(text);
  return text === "" || Number.isNaN(value) ? text.toLowerCase() : value;
}

function compare(a, b) {
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === "number" ? -1 : 1;
}

function sortBy(table, head, direction) {
  const column = head.cellIndex;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row, at) => ({ row, at, key: sortKey(row, column) }));
  const sign = direction === "ascending" ? 1 : -1;
  // Equal keys keep their place, so that sorting by two columns in turn works.
  rows.sort((a, b) => sign * compare(a.key, b.key) || a.at - b.at);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction);
  body.append(...rows.map((entry) => entry.row));
}

function makeSortable(table) {
  for (const head of table.tHead.rows[0].cells) {
    if (head.dataset.sort === undefined) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = head.dataset.sort === "text" ? "ascending" : "descending";
      const second = first === "ascending" ? "descending" : "ascending";
      sortBy(table, head, now === first ? second : first);
    });
  }
}

function makeFilterable(form) {
  const table = document.getElementById(form.dataset.for);
  const status = form.querySelector("[role=status]");
  const rows = Array.from(table.tBodies[0].rows, (row) => ({
    row,
    text: row.textContent.toLowerCase().replace(/\s+/g, " "),
  }));
  const apply = () => {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const state = form.elements.state ? form.elements.state.value : "";
    const kind = form.elements.kind ? form.elements.kind.value : "";
    let shown = 0;
    for (const { row, text } of rows) {
      const fits =
        words.every((word) => text.includes(word)) &&
        (state === "" || row.dataset.flagged === state) &&
        (kind === "" || row.dataset.kind === kind);
      row.hidden = !fits;
      shown += fits;
    }
    status.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    form.reset();
    apply();
  });
  form.hidden = false;
  apply();
}

/* Arrow keys scroll a wide table once it has the focus. */
function makeScrollable(box) {
  const update = () => {
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) {
      box.tabIndex = 0;
    } else {
      box.removeAttribute("tabindex");
    }
  };
  new ResizeObserver(update).observe(box);
  update();
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("form.filter").forEach(makeFilterable);
document.querySelectorAll(".wide").forEach(makeScrollable);

/* A printed page must not hide anything behind a click. */
let opened = [];
addEventListener("beforeprint", () => {
  opened = Array.from(document.querySelectorAll("details:not([open])"));
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
