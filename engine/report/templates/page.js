"use strict";
const root = document.documentElement;

function dark() {
  const chosen = root.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function theme() {
  const button = document.getElementById("theme");
  const show = () => { button.textContent = dark() ? "Light" : "Dark"; };
  // A page that is opened as a file may have no storage.
  try { const kept = localStorage.getItem("report-theme"); if (kept) root.dataset.theme = kept; } catch { /* the system's */ }
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("report-theme", root.dataset.theme); } catch { /* for this visit only */ }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

function key(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.v ?? cell.textContent.trim();
  if (text === "" || text === "-" || text === "?") return null;
  const value = Number(text);
  return Number.isNaN(value) ? text.toLowerCase() : value;
}

function order(a, b) {
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === "number" ? -1 : 1;
}

// Unknown values stay last in both directions.
function sort(table, column, sign) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => [key(row, column), row]);
  rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * order(a, b)));
  body.append(...rows.map(([, row]) => row));
}

function sortable(table) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending" || (!head.ariaSort && !head.classList.contains("n"));
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(table, head.cellIndex, up ? 1 : -1);
    });
  }
}

function filter(input) {
  const rows = document.querySelectorAll("#operators tbody tr");
  input.closest(".filter").hidden = false;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
      const section = document.getElementById(row.dataset.section);
      if (section) section.hidden = row.hidden;
    }
  });
}

const unpacked = new Map();

function texts(section) {
  if (!unpacked.has(section)) {
    const bytes = Uint8Array.from(atob(section.dataset.texts), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    unpacked.set(section, new Response(stream).json());
  }
  return unpacked.get(section);
}

function colour(pre) {
  const lines = pre.textContent.split("\n").map((text, number) => {
    const line = document.createElement("i");
    line.textContent = text;
    if (text.startsWith("@@") || number < 2) line.className = "hunk";
    else if (text.startsWith("+")) line.className = "plus";
    else if (text.startsWith("-")) line.className = "minus";
    return line;
  });
  pre.replaceChildren(...lines);
}

// Text goes in as text, never as markup: a model wrote it.
async function unfold(details) {
  for (const pre of details.querySelectorAll(":scope > pre:not([data-done])")) {
    pre.dataset.done = "";
    if (pre.dataset.n) pre.textContent = (await texts(pre.closest("[data-texts]")))[Number(pre.dataset.n)];
    if (pre.classList.contains("diff")) colour(pre);
  }
}

// A link to something folded unfolds it.
function reveal() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
}

addEventListener("hashchange", reveal);
theme();
reveal();
document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".filter input").forEach(filter);
document.addEventListener("toggle", (event) => { if (event.target.open) unfold(event.target); }, true);
