"use strict";
// Curves of one case (model, shape, kind of load) at a time: what varies besides load becomes the series.

const CHARTS = [
  { id: "throughput", title: "Throughput against load", x: "load", y: ["output_tokens_per_s"], xlog: true },
  { id: "pareto", title: "Throughput per GPU against speed per user", x: "output_tokens_per_s_per_user", y: ["output_tokens_per_s_per_gpu"], ylog: true },
  { id: "ttft", title: "Time to first token against load", x: "load", y: ["ttft_p50_ms", "ttft_p99_ms"], xlog: true, ylog: true },
  { id: "tpot", title: "Time per output token against load", x: "load", y: ["tpot_p50_ms", "tpot_p99_ms"], xlog: true, ylog: true },
  { id: "precision", title: "Speed-up by precision", bars: true },
  { id: "energy", title: "Energy per output token", x: "load", y: ["energy_per_output_token_j"], xlog: true, ylog: true },
  { id: "roofline", title: "Roofline, normalised", roofline: true },
  { id: "explore", title: "Explore", explore: true },
];
const MOST_SERIES = 8;
const explored = { x: "load", y: "e2e_p99_ms", xlog: true, ylog: false };
const cards = new Map();
let caseRows = [];
let allSeries = [];

function buildCharts() {
  for (const spec of CHARTS) {
    const node = el("div", { class: "plot" });
    const heading = el("h3", { id: `chart-${spec.id}` }, spec.title);
    const whole = el("div", { class: "chart", "data-chart": spec.id }, heading, spec.explore ? exploreMenu() : null, node);
    cards.set(spec.id, { spec, node: whole, plot: node });
    document.getElementById("charts").append(whole);
  }
  document.getElementById("case").addEventListener("change", (event) => { state.case = event.target.value; state.series = null; staleCharts(); writeAddress(); });
}

function exploreMenu() {
  const names = ["load", ...Object.keys(state.data.figures)];
  const pick = (axis) => el("label", {}, `${axis} `, el("select", { id: `explore-${axis}`, onchange: (e) => { explored[axis] = e.target.value; staleCharts(); } },
    names.map((n) => el("option", { value: n, selected: n === explored[axis] }, words(n)))));
  const log = (axis) => el("label", {}, el("input", { type: "checkbox", checked: explored[`${axis}log`], onchange: (e) => { explored[`${axis}log`] = e.target.checked; staleCharts(); } }), ` log ${axis}`);
  if (!names.includes(explored.y)) explored.y = names[1] ?? "load";
  return el("div", { class: "axes" }, pick("y"), pick("x"), log("y"), log("x"));
}

// Asked of every cell again and again, so told once for each payload.
function caseOf(i) {
  if (state.caseOf?.data !== state.data) state.caseOf = { data: state.data, names: [] };
  return (state.caseOf.names[i] ??= label(i, state.data.dimensions.loop.names.length > 1 ? ["model", "shape", "loop"] : ["model", "shape"]));
}
function axisTitle(figure) { return figure === "load" ? loadTitle() : `${words(figure)} (${unit(figure)})`; }
function loadTitle() {
  const open = caseRows.filter((i) => num(i, "request_rate")).length;
  return !open ? "batch size (sequences in flight)" : open === caseRows.length ? "request rate (req/s)" : "batch size (sequences in flight), or request rate (req/s)";
}
function valueOf(i, figure) { return figure === "load" ? load(i) || null : mean(i, figure); }

function drawCharts() {
  const cases = [...groupBy(state.rows.filter(ok), caseOf)].sort((a, b) => b[1].length - a[1].length || natural(a[0], b[0]));
  const select = document.getElementById("case");
  state.firstCase = cases.length ? cases[0][0] : null;
  if (!cases.some(([name]) => name === state.case)) { state.case = state.firstCase; state.series = null; }
  select.replaceChildren(...cases.map(([name, members]) => el("option", { value: name, selected: name === state.case }, `${name} (${members.length})`)));
  select.parentElement.hidden = cases.length < 2;
  const several = cases.some(([, members]) => new Set(members.map(load)).size > 1);
  document.getElementById("curves").hidden = !cases.length || (!several && state.rows.every((i) => dim(i, "arm")));
  staleCharts();
}

function staleCharts() {
  caseRows = state.rows.filter((i) => ok(i) && caseOf(i) === state.case);
  allSeries = seriesOf();
  const names = allSeries.map(([name]) => name);
  if (!state.series || ![...state.series].some((name) => names.includes(name))) state.series = firstSeries();
  drawChooser(names);
  const missing = [];
  for (const card of cards.values()) {
    const spec = state.case === null || caseRows.length < 2 ? null : plotOf(card.spec); // one cell makes no curve
    card.node.hidden = !spec;
    if (spec) plot(card.plot, spec); else if (!card.spec.explore) missing.push(card.spec.title.toLowerCase());
  }
  document.getElementById("absent").textContent = caseRows.length === 1 ? `One cell was measured of this case, so nothing varies: ${withError(caseRows[0], "output_tokens_per_s")} tok/s with ${cellLabel(caseRows[0])}.` : missing.length ? `Not measured here: ${missing.join("; ")}.` : "";
}

// Series by what varies in the case besides load, the result set only where two hold the same. Eight are drawn at a time, those of most throughput until the reader chooses.
function seriesOf() {
  if (!caseRows.length) return [];
  const names = varying(caseRows, ["model", "shape", "loop", "status", "source", ...LOADS]);
  const plain = (i) => label(i, names.filter((n) => n !== "kv_dtype" || dim(i, n) !== `kv ${dim(i, "precision")}`));
  const sources = groupBy(caseRows, plain);
  const shared = new Map([...sources].map(([name, members]) => [name, new Set(members.map((i) => dim(i, "source"))).size > 1]));
  const groups = [...groupBy(caseRows, (i) => [plain(i), shared.get(plain(i)) ? dim(i, "source") : ""].filter(Boolean).join(", ") || "all")];
  for (const [, members] of groups) members.sort((a, b) => load(a) - load(b));
  return groups;
}

function firstSeries() {
  const top = ([, members]) => Math.max(...members.map((i) => mean(i, "output_tokens_per_s") ?? 0));
  return new Set([...allSeries].sort((a, b) => top(b) - top(a)).slice(0, MOST_SERIES).map(([name]) => name));
}

function drawChooser(names) {
  const box = document.getElementById("series");
  box.hidden = names.length < 2;
  const looks = looksOf(names);
  keepingFocus(() => box.replaceChildren(...(names.length < 2 ? [] : [
    el("legend", {}, names.length > MOST_SERIES ? `Curves: ${state.series.size} of ${names.length}, at most ${MOST_SERIES} at once` : "Curves"),
    ...names.map((name) => {
      const on = state.series.has(name), full = !on && state.series.size >= MOST_SERIES;
      return el("label", { class: full ? "full" : "" }, el("input", {
        type: "checkbox", checked: on, disabled: full, "data-key": `series ${name}`,
        onchange: (event) => { if (event.target.checked) state.series.add(name); else if (state.series.size > 1) state.series.delete(name); staleCharts(); },
      }), on ? swatch(looks.get(name)) : null, name);
    }),
  ])));
}

// Looks of the chosen series: a precision's own, else in turn among those drawn, so that no two are alike.
function looksOf(names) {
  const own = names.every((name) => state.data.looks.precisions.includes(name));
  const chosen = names.filter((name) => state.series.has(name));
  return new Map(chosen.map((name, at) => [name, lookOf(own ? name : "", at)]));
}

function chosenSeries() {
  const looks = looksOf(allSeries.map(([name]) => name));
  return allSeries.filter(([name]) => looks.has(name)).map(([name, members]) => ({ name, members, look: looks.get(name) }));
}

function tracesOf(spec) {
  const ys = spec.explore ? [explored.y] : spec.y, x = spec.explore ? explored.x : spec.x;
  return chosenSeries().flatMap(({ name, members, look }) => ys.flatMap((y, second) => {
    const points = members.filter((i) => valueOf(i, x) !== null && valueOf(i, y) !== null).map((i) => pointOf(i, x, y, x === "load" ? loadTitle() : null));
    const quantile = ys.length > 1 ? y.match(/_(p\d+)_/)[1] : "";
    return points.length ? [{ name: [name, quantile].filter(Boolean).join(" "), look, points, faint: second > 0 }] : [];
  }));
}

function plotOf(spec) {
  if (spec.bars) return barPlot();
  if (spec.roofline) return rooflinePlot();
  const series = tracesOf(spec);
  if (!series.length) return null;
  const x = spec.explore ? explored.x : spec.x, y = spec.explore ? explored.y : spec.y[0];
  const xlog = spec.explore ? explored.xlog : spec.xlog, ylog = spec.explore ? explored.ylog : spec.ylog;
  const title = spec.y?.length > 1 ? `${axisTitle(y).replace(" p50", "")}: solid p50, dotted p99` : axisTitle(y);
  return { label: `${spec.explore ? `${words(y)} against ${words(x)}` : spec.title}, ${state.case}`, x: { title: axisTitle(x), log: xlog, load: x === "load" }, y: { title, log: ylog }, series };
}

function barPlot() {
  const shown = new Set(caseRows), found = state.data.pairs.filter((p) => shown.has(p.cell) && shown.has(p.base)).sort((a, b) => load(a.cell) - load(b.cell) || a.best - b.best);
  if (!found.length) return null;
  const name = (p) => (load(p.cell) !== load(p.base) ? "best" : num(p.cell, "request_rate") ? `${brief(load(p.cell))}/s` : `b${brief(load(p.cell))}`) + label(p.cell, varying(caseRows, ["precision", "kv_dtype", "version", "model", "shape", "status", "loop", "source", ...LOADS])).replace(/^(.)/, "\n$1");
  const categories = [...new Set(found.map(name))].slice(0, 24), kinds = [...new Set(found.map((p) => dim(p.cell, "precision")))];
  const width = 0.8 / kinds.length;
  const series = kinds.map((kind, at) => ({
    name: kind, look: lookOf(kind, at), line: false, bar: Math.max(5, Math.min(42, 300 / categories.length * width)),
    points: found.filter((p) => dim(p.cell, "precision") === kind && categories.includes(name(p))).map((p) => ({
      x: categories.indexOf(name(p)) + (at - (kinds.length - 1) / 2) * width, y: p.ratio, low: p.low ?? undefined, high: p.high ?? undefined, hollow: p.low === null, cell: p.cell,
      text: `${cellLabel(p.cell)}\n${kind} / ${dim(p.base, "precision")}: ${brief(p.ratio)} x\n${pairText(p)}\n${p.verdict}`,
    })),
  }));
  return {
    label: `Speed-up by precision, ${state.case}`, x: { title: "batch or request rate, and setting", categories }, y: { title: `throughput ratio (x ${dim(found[0].base, "precision")}): ${kinds.join(", ")}`, include: [1] },
    series, rules: [{ y: 1 }],
  };
}

function rooflinePlot() {
  const series = chosenSeries().flatMap(({ name, members, look }) => {
    const points = members.filter((i) => mean(i, "mfu") > 0 && mean(i, "mbu") > 0).map((i) => ({
      x: mean(i, "mfu") / mean(i, "mbu"), y: mean(i, "mfu"), hollow: state.data.repeats[i] < 2, cell: i,
      text: `${cellLabel(i)}\nMFU ${withError(i, "mfu")}, MBU ${withError(i, "mbu")} (ratio)\n${runsText(i)}`,
    }));
    return points.length ? [{ name, look, points }] : [];
  });
  if (!series.length) return null;
  const xs = series.flatMap((s) => s.points.map((p) => p.x)), low = Math.min(0.1, ...xs) / 2, high = Math.max(4, ...xs) * 2;
  return {
    label: `Roofline, ${state.case}`, x: { title: "arithmetic intensity / ridge point (ratio)", log: true, include: [low, high] }, y: { title: "share of the compute ceiling, MFU (ratio)", log: true, include: [1] },
    series, rules: [{ x0: low, y0: low, x1: 1, y1: 1 }, { x0: 1, y0: 1, x1: high, y1: 1, text: "ceilings" }],
  };
}

function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
