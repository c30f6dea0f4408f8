// Sorting, filtering, grouping and downloads. Without this script the page shows everything, in network order.
"use strict";
document.documentElement.classList.add("js");
const data = JSON.parse(document.getElementById("data").textContent);

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// A field that a spreadsheet could take for a formula begins with an apostrophe there.
function field(value) {
  const text = value === null || value === undefined ? "" : String(value);
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? "'" + text : text;
  return /[",\n\r]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
}

const COLUMNS = {
  latency: ["fp32_ms", "fp16_ms", "int8_ms", "speedup", "types"],
  sensitivity: ["input_kl", "weight_kl", "input_drop_pts", "weight_drop_pts"],
  signals: ["weight_snr_db", "input_snr_db", "output_snr_db", "dead_channels"],
};

function csv() {
  const rows = new Map();
  const headings = ["block"];
  for (const [section, columns] of Object.entries(COLUMNS)) {
    const found = data.report[section];
    if (!found) continue;
    headings.push(...columns);
    for (const block of section === "latency" ? found.layers : found.blocks) {
      rows.set(block.name, { ...(rows.get(block.name) || {}), ...block });
    }
  }
  const lines = [headings];
  for (const [name, row] of rows) lines.push([name, ...headings.slice(1).map((key) => row[key])]);
  return lines.map((line) => line.map(field).join(",")).join("\r\n") + "\r\n";
}

const downloads = {
  json: () => save("report.json", "application/json", JSON.stringify(data.report, null, 2) + "\n"),
  csv: () => save("blocks.csv", "text/csv", csv()),
};
for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", () => downloads[button.dataset.download]());
}

for (const button of document.querySelectorAll("[data-more]")) {
  const hidden = document.querySelectorAll(button.dataset.more + " > .more");
  for (const each of hidden) each.hidden = true;
  if (!hidden.length) button.hidden = true;
  button.addEventListener("click", () => {
    for (const each of hidden) each.hidden = false;
    button.hidden = true;
  });
}

const table = document.getElementById("blocks");
if (table) {
  const body = table.tBodies[0];
  const blocks = [...body.querySelectorAll("tr.block")];
  const stages = [...body.querySelectorAll("tr.stage")];
  const state = { key: "order", descending: false, kind: "", grouped: false };

  const number = (row) => {
    const text = row.dataset[state.key];
    return text === "" || text === undefined ? null : Number(text);
  };
  function compare(a, b) {
    const [x, y] = [number(a), number(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return (state.descending ? y - x : x - y) || a.dataset.order - b.dataset.order;
  }
  function show() {
    const sorted = [...blocks].sort(compare);
    for (const row of sorted) row.hidden = state.kind !== "" && row.dataset.kind !== state.kind;
    for (const stage of stages) stage.hidden = !state.grouped;
    if (state.grouped) {
      for (const stage of stages) {
        const inside = sorted.filter((row) => row.dataset.stage === stage.dataset.stage);
        stage.hidden = inside.every((row) => row.hidden);
        body.append(stage, ...inside);
      }
    } else body.append(...sorted);
    for (const heading of table.tHead.querySelectorAll("th[data-key]")) {
      const isOwn = heading.dataset.key === state.key;
      heading.setAttribute("aria-sort", !isOwn ? "none" : state.descending ? "descending" : "ascending");
    }
  }
  for (const heading of table.tHead.querySelectorAll("th[data-key]")) {
    heading.querySelector("button").addEventListener("click", () => {
      const key = heading.dataset.key;
      state.descending = key === state.key ? !state.descending : key !== "order";
      state.key = key;
      show();
    });
  }
  for (const button of document.querySelectorAll("[data-filter]")) {
    button.addEventListener("click", () => {
      state.kind = button.dataset.filter;
      for (const each of document.querySelectorAll("[data-filter]")) {
        each.setAttribute("aria-pressed", String(each === button));
      }
      show();
    });
  }
  document.getElementById("group").addEventListener("change", (event) => {
    state.grouped = event.target.checked;
    show();
  });
}
