"use strict";
// The payload (payload.py) and how to read it: one column a quantity, indexed by cell number. Nothing here touches the page.

const state = { data: null, rows: [], differ: [], chosen: {}, find: "", sort: { key: "output_tokens_per_s", down: true }, page: 0, columns: null, case: null };
const LOADS = ["batch", "request_rate"];
const PRECISIONS = ["fp8", "bf16", "fp16", "int8", "int4", "fp32"];

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
function unit(figure) { const d = state.data.definitions[figure]; return d ? d.unit : ""; }
function load(i) { return num(i, "request_rate") || num(i, "batch"); }
function ok(i) { return dim(i, "status") === "ok"; }

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

const LABEL = ["model", "precision", "batch", "request_rate", "shape"];

function cellLabel(i) { return label(i, [...LABEL, ...state.differ.filter((n) => !LABEL.includes(n) && n !== "status" && n !== "version")]); }

// The cells to show, and along which dimensions they differ (asked for by every label, so found once).
function select(rows) {
  state.rows = rows;
  state.differ = rows.length ? varying(rows) : [];
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

// Numbers: one rule, as in numbers.py.
function places(values, digits = 4) {
  const sizes = values.filter((v) => v !== null && isFinite(v)).map(Math.abs);
  if (sizes.every((v) => v === Math.round(v))) return 0;
  const some = sizes.filter((v) => v > 0);
  const largest = digits - 1 - Math.floor(Math.log10(Math.max(...some)));
  const smallest = 1 - Math.floor(Math.log10(Math.min(...some)));
  return Math.min(Math.max(0, largest, smallest), digits + 2, Math.max(0, largest) + 2);
}

function fixed(value, count) {
  if (value === null || value === undefined) return "-";
  return value.toLocaleString("en-US", { minimumFractionDigits: count, maximumFractionDigits: count });
}

function plain(value, digits = 4) { return value === null || value === undefined ? "-" : fixed(value, places([value], digits)); }

function compact(value) {
  if (value === null) return "-";
  if (Math.abs(value) >= 999.5 && Math.abs(value) < 9999.5) return fixed(value, 0);
  for (const [scale, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= scale * 0.9995) return Number((value / scale).toPrecision(3)) + suffix;
  }
  return String(Number(value.toPrecision(3)));
}

function withError(i, figure) {
  const h = half(i, figure), value = mean(i, figure);
  return h === null ? compact(value) : `${compact(value)} ± ${compact(Number(h.toPrecision(2)))}`;
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
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== ""));
  return node;
}

function heads(table, cells) { table.tHead.replaceChildren(el("tr", {}, cells)); }
