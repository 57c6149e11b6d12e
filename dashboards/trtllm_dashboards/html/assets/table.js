"use strict";
// The cells as a table: sortable, fifty a page, columns to choose. What is the same in every row stands above it once.

const PAGE = 50;
const FIRST_FIGURES = ["output_tokens_per_s", "output_tokens_per_s_per_user", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "e2e_p50_ms", "mfu", "energy_per_output_token_j"];
const TEXT_DIMENSIONS = ["source", "device", "target", "model", "precision", "kv_dtype", "tp", "pp", "replicas", "settings", "arm", "shape", "workload", "status", "version"];
const SHORT_HEADS = {
  output_tokens_per_s: "output", output_tokens_per_s_per_user: "per user", output_tokens_per_s_per_gpu: "per GPU", energy_per_output_token_j: "energy", mfu: "MFU", mbu: "MBU",
};

function columnChoices() {
  return [...Object.keys(state.data.numbers), "repeats", "started", ...Object.keys(state.data.figures)];
}

function startColumns() {
  if (!state.columns) state.columns = new Set(["batch", ...FIRST_FIGURES.filter(has)]);
  if (state.data.numbers.request_rate.some((v) => v > 0)) state.columns.add("request_rate");
  const menu = document.querySelector("#columns .choices");
  keepingFocus(() => menu.replaceChildren(...columnChoices().map((name) => el("label", { title: state.data.definitions[name]?.meaning ?? "" },
    el("input", { type: "checkbox", value: name, checked: state.columns.has(name), "data-key": `column ${name}`, onchange: (e) => { if (e.target.checked) state.columns.add(name); else state.columns.delete(name); drawTable(); } }),
    el("span", {}, head(name)[0] + (head(name)[1] ? `, ${head(name)[1]}` : ""))))));
}

function head(name) {
  if (name in state.data.figures) return [SHORT_HEADS[name] ?? words(name), unit(name)];
  return [{ isl: "ISL", osl: "OSL", request_rate: "rate", num_requests: "requests", gpus: "GPUs", started: "measured at" }[name] ?? name, { request_rate: "req/s", isl: "tok", osl: "tok", batch: "seq", started: "UTC" }[name] ?? ""];
}

function cellValue(i, name) {
  if (name in state.data.dimensions && !(name in state.data.numbers)) return dim(i, name);
  if (name in state.data.numbers) return num(i, name);
  if (name === "repeats") return state.data.repeats[i];
  if (name === "started") return state.data.started[i];
  return mean(i, name);
}

function sorted() {
  const { key, down } = state.sort;
  const sign = down ? -1 : 1;
  return state.rows.slice().sort((a, b) => {
    const x = cellValue(a, key), y = cellValue(b, key);
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return (typeof x === "string" ? sign * natural(x, y) : sign * (x - y)) || a - b;
  });
}

function shownColumns() {
  const differ = new Set(state.differ);
  const order = columnChoices();
  const last = ["status", "version"];
  const texts = TEXT_DIMENSIONS.filter((n) => differ.has(n));
  return [...texts.filter((n) => !last.includes(n)), ...order.filter((n) => state.columns.has(n)), ...texts.filter((n) => last.includes(n))];
}

function drawTable() {
  const names = shownColumns();
  const rows = sorted();
  const pages = Math.max(1, Math.ceil(rows.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const visible = rows.slice(state.page * PAGE, (state.page + 1) * PAGE);
  const table = document.getElementById("table");
  document.getElementById("cells").hidden = !state.data.n;
  keepingFocus(() => {
    heads(table, names.map(header));
    table.tBodies[0].replaceChildren(...visible.map((i) => line(i, names)));
    drawPager(rows.length, pages);
  });
  const same = TEXT_DIMENSIONS.filter((n) => !names.includes(n) && rows.length && dim(rows[0], n) && !["tp 1", "pp 1", "fixed", "native", "ok", "newest", "older"].includes(dim(rows[0], n)));
  document.getElementById("shared").textContent = rows.length ? (same.length ? `All rows: ${same.map((n) => dim(rows[0], n)).join(", ")}.` : "") : "No cell passes the filters.";
}

function header(name) {
  const text = name in FILTER_NAMES && !(name in state.data.numbers) ? [FILTER_NAMES[name], ""] : head(name);
  const numeric = !TEXT_DIMENSIONS.includes(name) && name !== "started";
  const down = state.sort.key === name ? state.sort.down : null;
  const turn = () => { state.sort = { key: name, down: down === null ? numeric : !down }; state.page = 0; drawTable(); writeAddress(); };
  return el("th", { class: numeric ? "num" : "", scope: "col", "aria-sort": down === null ? "none" : down ? "descending" : "ascending", title: state.data.definitions[name]?.meaning ?? null },
    el("button", { type: "button", "data-key": `sort ${name}`, onclick: turn }, text[0]), text[1] ? el("span", { class: "unit" }, text[1]) : null);
}

// The first cell of a line holds the button that opens it, so that the keyboard reaches it; a click anywhere on the line does too.
function line(i, names) {
  const open = () => openDetail(i);
  const cells = names.map((name, at) => {
    const value = cellValue(i, name), text = typeof value === "string";
    const content = text ? (name === "started" ? value.replace("T", " ") : value) || "-" : brief(value);
    const spread = name === "output_tokens_per_s" ? half(i, name) : null;
    const shown = at ? content : el("button", { type: "button", class: "plainly", "data-key": `row ${state.data.keys[i]}`, "aria-label": `${content}, open ${cellLabel(i)}`, onclick: (e) => { e.stopPropagation(); open(); } }, content);
    return el("td", { class: text ? (name === "status" ? value : "") : "num" }, shown, spread === null ? null : el("span", { class: "pm" }, ` ± ${spreadText(spread)}`));
  });
  return el("tr", { "data-cell": i, onclick: open }, cells);
}

function drawPager(count, pages) {
  const go = (page) => { state.page = page; drawTable(); };
  const from = count ? state.page * PAGE + 1 : 0, to = Math.min(count, (state.page + 1) * PAGE);
  document.getElementById("pager").replaceChildren(
    el("button", { type: "button", "data-key": "previous page", disabled: state.page === 0, onclick: () => go(state.page - 1) }, "Previous"),
    el("span", {}, `${brief(from)} to ${brief(to)} of ${brief(count)}`),
    el("button", { type: "button", id: "next", "data-key": "next page", disabled: state.page >= pages - 1, onclick: () => go(state.page + 1) }, "Next"));
}

function csvText() {
  const names = [...TEXT_DIMENSIONS, ...Object.keys(state.data.numbers), "repeats", "started", ...Object.keys(state.data.figures)];
  const quote = (v) => (v === null ? "" : /[",\n]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v));
  return [names.join(","), ...sorted().map((i) => names.map((n) => quote(cellValue(i, n))).join(","))].join("\n") + "\n";
}

function downloadCsv() {
  const link = el("a", { href: URL.createObjectURL(new Blob([csvText()], { type: "text/csv" })), download: "cells.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
