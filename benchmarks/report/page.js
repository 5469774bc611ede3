"use strict";

const status = document.getElementById("status");

function orderOf(row, column) {
  const cell = row.cells[column];
  if ("order" in cell.dataset) return Number(cell.dataset.order.replace("inf", "Infinity"));
  return cell.textContent.trim();
}

function compare(first, second, direction) {
  const known = (value) => value !== "\u2013" && value !== "not measured";
  if (known(first) !== known(second)) return known(first) ? -1 : 1;
  if (typeof first === "number" && typeof second === "number") {
    return first === second ? 0 : direction * (first < second ? -1 : 1);
  }
  return direction * String(first).localeCompare(String(second), "en", { numeric: true });
}

function sort(table, head) {
  const heads = [...head.parentElement.cells];
  const column = heads.indexOf(head);
  const before = head.getAttribute("aria-sort");
  const numeric = head.classList.contains("number");
  const descending = before === "none" ? numeric : before === "ascending";
  for (const other of heads) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  rows.sort((a, b) => compare(orderOf(a, column), orderOf(b, column), descending ? -1 : 1));
  body.append(...rows);
  const name = head.querySelector("button > span").textContent;
  status.textContent = `Sorted by ${name}, ${descending ? "descending" : "ascending"}`;
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => sort(table, head));
  }
}

// A printed page cannot be unfolded. Of the galleries, those are printed that the reader has opened.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open], .gallery)")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
