"use strict";
// Draws the figures in the reader's colours, and sorts tables by the button in a column's head.

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const figures = [...document.querySelectorAll("script[data-figure]")].map((script) => ({
  place: document.getElementById(script.dataset.figure),
  content: JSON.parse(script.textContent),
}));

function colours() {
  const style = getComputedStyle(document.documentElement);
  return { text: style.getPropertyValue("--text").trim(), line: style.getPropertyValue("--line").trim() };
}

function themed(layout) {
  const { text, line } = colours();
  const result = { ...layout, font: { ...layout.font, color: text } };
  for (const axis of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
    result[axis] = { ...layout[axis], gridcolor: line, zerolinecolor: line, linecolor: line };
  }
  return result;
}

function draw() {
  for (const { place, content } of figures) {
    Plotly.react(place, content.data, themed(content.layout), { responsive: true, displayModeBar: false });
  }
}

draw();
dark.addEventListener("change", draw);

function sortBy(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const up = header.getAttribute("aria-sort") !== "ascending";
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const rows = [...body.rows].map((row) => [key(row), row]);
  const numbers = rows.every(([value]) => value === "" || !Number.isNaN(Number(value)));
  rows.sort(([a], [b]) => {
    if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // what was not measured comes last either way
    const order = numbers ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    return up ? order : -order;
  });
  body.append(...rows.map(([, row]) => row));
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.parentNode));
}
