"use strict";
// Curves of one case (model and shape) at a time: what varies besides load becomes the series. Drawn when scrolled to, redrawn when anything changes.

const CHARTS = [
  { id: "throughput", title: "Throughput against load", x: "load", y: ["output_tokens_per_s"], xlog: 2 },
  { id: "pareto", title: "Throughput per GPU against speed per user", x: "output_tokens_per_s_per_user", y: ["output_tokens_per_s_per_gpu"], ylog: true },
  { id: "ttft", title: "Time to first token against load", x: "load", y: ["ttft_p50_ms", "ttft_p99_ms"], xlog: 2, ylog: true },
  { id: "tpot", title: "Time per output token against load", x: "load", y: ["tpot_p50_ms", "tpot_p99_ms"], xlog: 2, ylog: true },
  { id: "precision", title: "Speed-up by precision", bars: true },
  { id: "energy", title: "Energy per output token", x: "load", y: ["energy_per_output_token_j"], xlog: 2, ylog: true },
  { id: "roofline", title: "Roofline, normalised", roofline: true },
  { id: "explore", title: "Explore", explore: true },
];
const COLORS = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B87A00", "#5B4A9E", "#555555"],
  dark: ["#4BA3E3", "#F08A4B", "#33C79B", "#E3A2C8", "#8FD0F5", "#E6B33C", "#A99BE8", "#B9C0C8"],
};
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const MOST_SERIES = 24;
const explored = { x: "load", y: "e2e_p99_ms", xlog: true, ylog: false };
const cards = new Map();
let observer = null;
let caseRows = [];
let drawing = 0;

function buildCharts() {
  observer = new IntersectionObserver((entries) => entries.forEach((e) => {
    const card = cards.get(e.target.dataset.chart);
    card.visible = e.isIntersecting;
    drawSoon();
  }), { rootMargin: "200px" });
  for (const spec of CHARTS) {
    const plot = el("div", { class: "plot" });
    const node = el("div", { class: "chart", "data-chart": spec.id }, el("h3", {}, spec.title), spec.explore ? exploreMenu() : null, plot);
    cards.set(spec.id, { spec, node, plot, visible: false, stale: true });
    document.getElementById("charts").append(node);
    observer.observe(node);
  }
  document.getElementById("case").addEventListener("change", (event) => { state.case = event.target.value; staleCharts(); });
}

function exploreMenu() {
  const names = ["load", ...Object.keys(state.data.figures)];
  const pick = (axis) => el("label", {}, `${axis} `, el("select", { id: `explore-${axis}`, onchange: (e) => { explored[axis] = e.target.value; staleCharts(); } },
    names.map((n) => el("option", { value: n, selected: n === explored[axis] }, words(n)))));
  const log = (axis) => el("label", {}, el("input", { type: "checkbox", checked: explored[`${axis}log`], onchange: (e) => { explored[`${axis}log`] = e.target.checked; staleCharts(); } }), ` log ${axis}`);
  if (!names.includes(explored.y)) explored.y = names[1] ?? "load";
  return el("div", { class: "axes" }, pick("y"), pick("x"), log("y"), log("x"));
}

function caseOf(i) { return label(i, ["model", "shape"]); }
function axisTitle(figure) { return figure === "load" ? loadTitle() : words(figure) + (unit(figure) ? ` (${unit(figure)})` : " (ratio)"); }
function loadTitle() { return state.rows.some((i) => num(i, "request_rate")) ? "load (requests/s, or sequences in flight)" : "batch size (sequences in flight)"; }
function valueOf(i, figure) { return figure === "load" ? load(i) || null : mean(i, figure); }

function drawCharts() {
  const cases = [...groupBy(state.rows.filter(ok), caseOf)].sort((a, b) => b[1].length - a[1].length || natural(a[0], b[0]));
  const select = document.getElementById("case");
  if (!cases.some(([name]) => name === state.case)) state.case = cases.length ? cases[0][0] : null;
  select.replaceChildren(...cases.map(([name, members]) => el("option", { value: name, selected: name === state.case }, `${name} (${members.length})`)));
  select.parentElement.hidden = cases.length < 2;
  staleCharts();
}

function staleCharts() {
  const missing = [];
  caseRows = state.rows.filter((i) => ok(i) && caseOf(i) === state.case);
  for (const card of cards.values()) {
    card.traces = state.case === null ? [] : tracesOf(card.spec);
    card.node.hidden = !card.traces.length;
    if (!card.traces.length && !card.spec.explore) missing.push(card.spec.title.toLowerCase());
    card.stale = true;
  }
  document.getElementById("absent").textContent = missing.length ? `Not measured here: ${missing.join("; ")}.` : "";
  drawSoon();
}

// One chart a turn of the event loop, so that the summary, the table and the next click never wait for all of them.
function drawSoon() {
  clearTimeout(drawing);
  const next = [...cards.values()].find((card) => card.visible && card.stale && !card.node.hidden);
  if (next && window.Plotly) drawing = setTimeout(() => { drawChart(next); drawSoon(); }, 0);
}

function drawChart(card) {
  card.stale = false;
  Plotly.react(card.plot, card.traces, layoutOf(card.spec, card.traces), { responsive: true, displayModeBar: false });
  if (!card.clicks) {
    card.clicks = true;
    card.plot.on("plotly_click", (event) => { const i = event.points[0].customdata; if (Number.isInteger(i)) openDetail(i); });
  }
}

function seriesOf() {
  const rows = caseRows;
  const names = rows.length ? varying(rows, ["model", "shape", "status", ...LOADS]) : [];
  const groups = [...groupBy(rows, (i) => label(i, names))].slice(0, MOST_SERIES);
  for (const [, members] of groups) members.sort((a, b) => load(a) - load(b));
  return groups;
}

function lookOf(name, at) {
  const index = PRECISIONS.includes(name) ? PRECISIONS.indexOf(name) : at;
  const colors = COLORS[dark() ? "dark" : "light"];
  return { color: colors[index % 8], symbol: SYMBOLS[index % 8], dash: DASHES[Math.floor(index / 8) % 4] };
}

function tracesOf(spec) {
  if (spec.bars) return barTraces();
  if (spec.roofline) return rooflineTraces();
  const ys = spec.explore ? [explored.y] : spec.y;
  const x = spec.explore ? explored.x : spec.x;
  return seriesOf().flatMap(([name, members], at) => ys.flatMap((y, second) => {
    const points = members.filter((i) => valueOf(i, x) !== null && valueOf(i, y) !== null);
    if (!points.length) return [];
    const look = lookOf(name, at);
    const quantile = ys.length > 1 ? y.match(/_(p\d+)_/)[1] : "";
    return [trace(points, x, y, { ...look, dash: second ? "dot" : look.dash }, [name, quantile].filter(Boolean).join(" ") || "all", second > 0)];
  }));
}

function trace(points, x, y, look, name, faint) {
  const halves = points.map((i) => half(i, y) ?? 0);
  return {
    x: points.map((i) => valueOf(i, x)), y: points.map((i) => valueOf(i, y)), customdata: points, name, mode: "lines+markers",
    error_y: { array: halves, visible: halves.some((h) => h > 0), thickness: 1, width: 3, color: look.color },
    line: { color: look.color, dash: look.dash, width: faint ? 1.2 : 2 },
    marker: { color: points.map((i) => (half(i, y) === null ? "rgba(0,0,0,0)" : look.color)), symbol: look.symbol, size: 7, line: { color: look.color, width: 1.4 } },
    text: points.map(cellLabel), hovertemplate: "%{text}<br>%{x:,.4~g}, <b>%{y:,.4~g}</b><extra></extra>", opacity: faint ? 0.75 : 1,
  };
}

function barTraces() {
  const rows = caseRows.filter((i) => mean(i, "output_tokens_per_s"));
  const base = ["bf16", "fp16", "fp32"].find((p) => rows.some((i) => dim(i, "precision") === p));
  if (!base) return [];
  const rest = dimensionNames().filter((n) => !["precision", "kv_dtype", "version"].includes(n));
  const bases = new Map(rows.filter((i) => dim(i, "precision") === base).map((i) => [label(i, rest), i]));
  const rate = (i) => mean(i, "output_tokens_per_s");
  const error = (i) => (half(i, "output_tokens_per_s") ?? 0) / rate(i);
  const tell = varying(rows, ["precision", "kv_dtype", "version", "model", "shape", "status"]);
  const found = groupBy(rows.filter((i) => dim(i, "precision") !== base && bases.has(label(i, rest))), (i) => dim(i, "precision"));
  return [...found].map(([precision, members], at) => {
    members.sort((a, b) => load(a) - load(b));
    return {
      type: "bar", name: `${precision} / ${base}`, x: members.map((i) => label(i, tell) || caseOf(i)), customdata: members, marker: { color: lookOf(precision, at).color },
      y: members.map((i) => rate(i) / rate(bases.get(label(i, rest)))),
      error_y: { // relative half widths of both sides, combined: first order
        array: members.map((i) => { const b = bases.get(label(i, rest)); return (rate(i) / rate(b)) * Math.hypot(error(i), error(b)); }),
        thickness: 1, width: 3, color: css("--ink"),
      },
      hovertemplate: "%{x}<br><b>%{y:.3f} x</b><extra></extra>",
    };
  });
}

function rooflineTraces() {
  const placed = seriesOf().flatMap(([name, members], at) => {
    const points = members.filter((i) => mean(i, "mfu") > 0 && mean(i, "mbu") > 0);
    if (!points.length) return [];
    const drawn = trace(points, "mfu", "mfu", lookOf(name, at), name || "all", false);
    drawn.x = points.map((i) => mean(i, "mfu") / mean(i, "mbu"));
    return [drawn];
  });
  if (!placed.length) return [];
  const xs = placed.flatMap((t) => t.x);
  const low = Math.min(0.1, ...xs) / 2, high = Math.max(4, ...xs) * 2;
  return [{ x: [low, 1, high], y: [low, 1, 1], mode: "lines", name: "roof", line: { color: css("--ink"), width: 2 }, hoverinfo: "skip" }, ...placed];
}

function decades(values) {
  const sizes = values.filter((v) => v > 0);
  return Math.log10(Math.max(...sizes) / Math.min(...sizes));
}

function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function layoutOf(spec, traces) {
  const axis = (title, log, values) => {
    const found = { title: { text: title, font: { size: 12 } }, gridcolor: css("--rule"), zerolinecolor: css("--rule"), linecolor: css("--rule"), automargin: true };
    if (log === 2) {
      const ticks = [...new Set(values)].filter((v) => v > 0).sort((a, b) => a - b);
      const step = Math.ceil(ticks.length / 9);
      const shown = ticks.filter((_, i) => i % step === 0);
      return { ...found, type: "log", tickvals: shown, ticktext: shown.map((v) => (v < 1e5 ? String(v) : compact(v))) };
    }
    const tickformat = values.some((v) => v >= 1e4) ? "~s" : ",~g";
    return log ? { ...found, type: "log", dtick: decades(values) < 1 ? "D1" : innerWidth < 640 && decades(values) > 2 ? 1 : "D2", tickformat } : { ...found, rangemode: "tozero", tickformat };
  };
  const xs = traces.flatMap((t) => t.x), ys = traces.flatMap((t) => t.y);
  let x, y;
  if (spec.bars) { x = { ...axis("batch size and setting", false, []), type: "category", tickformat: "" }; y = axis("throughput ratio", false, ys); }
  else if (spec.roofline) { x = axis("arithmetic intensity / ridge point (ratio)", true, xs); y = axis("share of compute ceiling, MFU (ratio)", true, ys); }
  else if (spec.explore) { x = axis(axisTitle(explored.x), explored.xlog && (explored.x === "load" ? 2 : true), xs); y = axis(axisTitle(explored.y), explored.ylog, ys); }
  else { x = axis(axisTitle(spec.x), spec.xlog, xs); y = axis(axisTitle(spec.y[0]).replace(" p50", ""), spec.ylog, ys); }
  return {
    xaxis: x, yaxis: y, margin: { l: 58, r: 12, t: 10, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    font: { family: "system-ui, sans-serif", size: 11.5, color: css("--ink") }, showlegend: traces.length > 1, barmode: "group",
    legend: { orientation: "h", y: 1.02, x: 0, yanchor: "bottom", font: { size: 11 } }, hoverlabel: { bgcolor: css("--card"), bordercolor: css("--rule"), font: { color: css("--ink") } },
    shapes: spec.bars ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: css("--ink"), width: 1 } }] : [],
    uirevision: `${spec.id} ${state.case}`,
  };
}
