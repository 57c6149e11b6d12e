"use strict";
// The payload (payload.py) and how to read it: one column a quantity, indexed by cell number. Nothing here touches the page.

const FIRST_SORT = "output_tokens_per_s";
const state = {
  data: null, rows: [], differ: [], chosen: {}, find: "", sort: { key: FIRST_SORT, down: true }, page: 0, columns: null, case: null,
  limits: {}, quantile: "p99", price: null, series: null, group: null,
};
const LOADS = ["batch", "request_rate"];

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function unpack(id) {
  const raw = atob(document.getElementById(id).textContent.trim());
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return inflate(bytes);
}

function dimensionNames() { return Object.keys(state.data.dimensions); }
function dim(i, name) { const d = state.data.dimensions[name]; return d.names[d.index[i]]; }
function num(i, name) { return state.data.numbers[name][i]; }
function mean(i, figure) { const c = state.data.figures[figure]; return c ? c.mean[i] : null; }
function half(i, figure) { const c = state.data.figures[figure]; return c && c.half ? c.half[i] : null; }
function has(figure) { return figure in state.data.figures; }
function unit(figure) {
  const d = state.data.definitions[figure];
  return d ? d.unit || (/^(mfu|mbu)|_ratio|utilization/.test(figure) ? "ratio" : "count") : "";
}
function load(i) { return num(i, "request_rate") || num(i, "batch"); }
function ok(i) { return dim(i, "status") === "ok"; }
function predicted(i) { return dim(i, "target").startsWith("predicted"); }

// Dimensions along which these cells differ.
function varying(rows, skip = []) {
  return dimensionNames().filter((name) => {
    if (skip.includes(name)) return false;
    const index = state.data.dimensions[name].index;
    return rows.some((i) => index[i] !== index[rows[0]]);
  });
}

function label(i, names) {
  return names.map((name) => dim(i, name)).filter(Boolean).join(", ");
}

const LABEL = ["model", "precision", "batch", "request_rate", "shape", "settings", "arm"];
const UNTOLD = ["status", "version", "loop", "source"];

// Short and telling: what differs, and the result set only where cells of two are alike in all else.
function cellLabel(i) {
  const names = [...LABEL, ...state.differ.filter((n) => !LABEL.includes(n) && !UNTOLD.includes(n))].filter((n) => n !== "kv_dtype" || dim(i, n) !== `kv ${dim(i, "precision")}`);
  const text = label(i, names);
  return state.ambiguous?.has(text) && dim(i, "source") ? `${text}, ${dim(i, "source")}` : text;
}

// The cells to show, and along which dimensions they differ (asked for by every label, so found once).
function select(rows) {
  state.rows = rows;
  state.differ = rows.length ? varying(rows) : [];
  state.ambiguous = null;
  if (!state.differ.includes("source")) return;
  const seen = new Map(), again = new Set();
  for (const i of rows) {
    const text = cellLabel(i), source = dim(i, "source");
    if (seen.has(text) && seen.get(text) !== source) again.add(text);
    seen.set(text, source);
  }
  state.ambiguous = again;
}

function groupBy(rows, key) {
  const groups = new Map();
  for (const i of rows) {
    const name = key(i);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(i);
  }
  return groups;
}

function best(rows, figure, higher = true) {
  let found = null;
  for (const i of rows) {
    const value = mean(i, figure);
    if (value === null || (!higher && value <= 0)) continue;
    if (found === null || (higher ? value > mean(found, figure) : value < mean(found, figure))) found = i;
  }
  return found;
}

// Numbers: one rule for every place, that of `metrics/registry.py`: four significant digits, whole from a thousand on, no powers of ten.
function brief(value) {
  if (value === null || value === undefined) return "-";
  if (!isFinite(value)) return String(value);
  if (Math.abs(value) >= 1000 || Number.isInteger(value)) return formatter(0).format(value);
  return formatter(Math.min(20, 3 - Math.floor(Math.log10(Math.abs(Number(value.toPrecision(4))))))).format(value);
}

const formatters = [];
function formatter(places) { return (formatters[places] ??= new Intl.NumberFormat("en-US", { maximumFractionDigits: places })); }

// For axes alone, where room is short: `24k`, `1.5M`.
function compact(value) {
  if (value === null) return "-";
  for (const [scale, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= scale * 9.995 || (scale > 1e3 && Math.abs(value) >= scale * 0.9995)) return brief(Number((value / scale).toPrecision(3))) + suffix;
  }
  return brief(value);
}

function spreadText(h) { return brief(Number(h.toPrecision(2))); }

// `24,362 ± 25`, and in words what the half width is; one rule for tile, table, hover and card.
function withError(i, figure) {
  const h = half(i, figure), value = mean(i, figure);
  return h === null ? brief(value) : `${brief(value)} ± ${spreadText(h)}`;
}

function runsText(i) {
  if (predicted(i)) return "predicted by the step model, not measured";
  const n = state.data.repeats[i]; return n > 2 ? `mean of ${n} runs, 95% interval` : n === 2 ? "mean of two runs, ± spans both" : "one run, spread unknown";
}

// Whether two cells' means are shown to differ: three runs each, and intervals apart (stricter than a test of the difference).
function apart(i, j, figure) {
  if (state.data.repeats[i] < 3 || state.data.repeats[j] < 3 || half(i, figure) === null || half(j, figure) === null) return false;
  return Math.abs(mean(i, figure) - mean(j, figure)) > half(i, figure) + half(j, figure);
}

const NICE = {
  load: "load", output_tokens_per_s: "output throughput", total_tokens_per_s: "total throughput", output_tokens_per_s_per_gpu: "output throughput per GPU",
  output_tokens_per_s_per_user: "speed per user", energy_per_output_token_j: "energy per output token", mfu: "MFU", mbu: "MBU",
};

// A figure's name for people, without its unit.
function words(figure) {
  if (figure.startsWith("steady_")) return `${words(figure.slice(7))}, steady`;
  if (figure in NICE) return NICE[figure];
  return figure.replace(/_(ms|j|w|mhz|gib|c)$/, "").replace(/(duration|load|build|start|end)_s$/, "$1").replace(/_per_s$/, " rate")
    .replaceAll("_", " ").replace(/^(ttft|tpot|itl|e2e|mfu|mbu|kv|sm|gpu)\b/, (m) => m.toUpperCase());
}

// Building elements without markup in strings: text from results can never become HTML.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== ""));
  return node;
}

// Redraws without losing the keyboard's place: what is drawn anew is found again by its `data-key`.
function keepingFocus(redraw) {
  const active = document.activeElement, key = active?.dataset?.key, from = active?.selectionStart;
  redraw();
  if (!key || document.activeElement === active) return;
  const again = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!again) return;
  again.focus({ preventScroll: true });
  if (typeof from === "number" && again.setSelectionRange && again.type !== "number") again.setSelectionRange(from, from);
}

function heads(table, cells) { table.tHead.replaceChildren(el("tr", {}, cells)); }
