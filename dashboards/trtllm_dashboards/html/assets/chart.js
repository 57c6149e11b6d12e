"use strict";
// One chart as SVG: axes, lines, points with their intervals, shaded regions. A tip follows the pointer; with the keyboard a chart is one
// stop, arrows go from point to point and Enter opens the cell.
//
//   plot(node, { label, x: axis, y: axis, series: [{ name, look, line, faint, points }], regions, rules, open })
//   axis: { title, log, load, zero, percent, categories }; point: { x, y, low, high, hollow, text, cell }

const SVG = "http://www.w3.org/2000/svg";
const FRAME = { left: 54, right: 16, top: 28, bottom: 44 };
let charts = 0;

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined));
  return node;
}

const MARKS = {
  circle: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`,
  square: (r) => `M${-r * 0.9},${-r * 0.9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}z`,
  triangle: (r) => `M0,${-r * 1.15}L${r * 1.1},${r * 0.85}H${-r * 1.1}z`,
  diamond: (r) => `M0,${-r * 1.3}L${r * 1.1},0L0,${r * 1.3}L${-r * 1.1},0z`,
  down: (r) => `M0,${r * 1.15}L${r * 1.1},${-r * 0.85}H${-r * 1.1}z`,
  plus: (r) => { const t = r * 0.42; return `M${-t},${-r * 1.1}h${2 * t}v${r * 1.1 - t}h${r * 1.1 - t}v${2 * t}h${t - r * 1.1}v${r * 1.1 - t}h${-2 * t}v${t - r * 1.1}h${t - r * 1.1}v${-2 * t}h${r * 1.1 - t}z`; },
  cross: (r) => { const a = r * 0.55; return `M${-r},${-r + a / 2}L${-r + a / 2},${-r}L0,${-a / 2}L${r - a / 2},${-r}L${r},${-r + a / 2}L${a / 2},0L${r},${r - a / 2}L${r - a / 2},${r}L0,${a / 2}L${-r + a / 2},${r}L${-r},${r - a / 2}L${-a / 2},0z`; },
  star: (r) => `M${[...Array(10).keys()].map((k) => { const q = k % 2 ? r * 0.55 : r * 1.25, t = Math.PI * k / 5; return `${(q * Math.sin(t)).toFixed(2)},${(-q * Math.cos(t)).toFixed(2)}`; }).join("L")}z`,
};
const DASHES = { solid: null, dash: "6 4", dot: "2 3", dashdot: "8 3 2 3" };

function lookOf(name, at) {
  const { precisions, light, dark: night, symbols } = state.data.looks;
  const own = precisions.indexOf(name), index = own >= 0 ? own : at, colors = dark() ? night : light;
  const turn = Math.floor(index / colors.length);
  return { color: colors[index % colors.length], symbol: symbols[(index + turn) % symbols.length], dash: ["solid", "dash", "dot", "dashdot"][turn % 4] };
}

function swatch(look) {
  return svg("svg", { class: "swatch", viewBox: "-12 -7 24 14", width: 24, height: 14, "aria-hidden": "true" },
    svg("path", { d: "M-12,0H12", stroke: look.color, "stroke-width": 2, "stroke-dasharray": DASHES[look.dash] }),
    svg("path", { d: MARKS[look.symbol](4), fill: look.color }));
}

// Ends and ticks of an axis over these values.
function scaleOf(axis, values, pixels) {
  if (axis.categories) {
    const step = pixels / axis.categories.length, longest = Math.max(...axis.categories.flatMap((text) => text.split("\n").map((line) => line.length)));
    const every = axis.across ? Math.ceil((longest * 6.6 + 6) / step) : 1;
    return { at: (v) => (v + 0.5) * step, ticks: axis.categories.map((text, k) => [k, text]).filter(([k]) => k % every === 0) };
  }
  const finite = values.filter((v) => Number.isFinite(v) && (!axis.log || v > 0));
  let low = Math.min(...finite), high = Math.max(...finite);
  if (!finite.length) { low = axis.log ? 1 : 0; high = axis.log ? 10 : 1; }
  if (axis.log) {
    const pad = high > low ? Math.pow(high / low, 0.05) : 1.6;
    low /= pad; high *= pad;
    const at = (v) => Math.log(v / low) / Math.log(high / low) * pixels;
    return { at, low, high, ticks: thinned(axis.load ? [...new Set(finite)].sort((a, b) => a - b) : logTicks(low, high), at, axis, pixels) };
  }
  if (axis.zero !== false) low = Math.min(0, low);
  if (high === low) high = low + Math.abs(low || 1);
  const pad = (high - low) * 0.06;
  high += pad;
  if (low !== 0) low -= pad;
  const at = (v) => (v - low) / (high - low) * pixels;
  return { at, low, high, ticks: thinned(linearTicks(low, high, Math.max(2, Math.floor(pixels / (axis.across ? 90 : 48)))), at, axis, pixels) };
}

function linearTicks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high * (1 + 1e-12); k++) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high) {
  const spread = Math.log10(high / low), ticks = [];
  if (spread < 0.75) return linearTicks(low, high, 4).filter((v) => v > 0);
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    for (const m of spread > 3.2 ? [1] : spread > 1.6 ? [1, 3] : [1, 2, 5]) { const v = Number((m * 10 ** e).toPrecision(6)); if (v >= low && v <= high) ticks.push(v); }
  }
  return ticks;
}

// Ticks with their texts, no two alike and none on top of another.
function thinned(values, at, axis, pixels) {
  const inside = values.filter((v) => at(v) >= -0.5 && at(v) <= pixels + 0.5);
  const ways = axis.percent ? [(v) => `${brief(Number((100 * v).toPrecision(12)))}%`] : axis.load ? [brief] : [compact, brief, (v) => formatter(9).format(v)];
  const exact = (text, v) => Math.abs(Number(text.replaceAll(",", "").replace(/[kMGT%]$/, "")) * ({ k: 1e3, M: 1e6, G: 1e9, T: 1e12, "%": 0.01 }[text.slice(-1)] ?? 1) - v) < 1e-9 * Math.abs(v) || v === 0;
  const text = ways.find((way) => inside.every((v) => exact(way(v), v))) ?? ways[ways.length - 1];
  const kept = [];
  for (const v of inside) {
    const words = text(v), before = kept[kept.length - 1];
    const room = axis.across && before ? 10 + 6.4 * (words.length + before[1].length) / 2 : axis.across ? 0 : 16;
    if (before && (before[1] === words || at(v) - at(before[0]) < room)) continue;
    kept.push([v, words]);
  }
  return kept;
}

// A title in as many lines as its width takes.
function folded(text, pixels) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines[lines.length - 1]} ${word}`.trim();
    if (longer.length * 6.5 > pixels && lines[lines.length - 1]) lines.push(word); else lines[lines.length - 1] = longer;
  }
  return lines;
}

// A chart is drawn when it comes near the window, and anew in the next frame when what it shows has changed.
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    target.near = isIntersecting;
    if (isIntersecting && target.stale) drawPlot(target);
  }
}, { rootMargin: "300px" });
const resizer = new ResizeObserver((entries) => {
  for (const { target } of entries) if (target.near && target.clientWidth !== target.drawnWidth) drawPlot(target);
});

addEventListener("beforeprint", () => { for (const node of document.querySelectorAll(".plot")) if (node.stale) drawPlot(node); });

function plot(node, spec) {
  node.plotSpec = spec;
  node.stale = true;
  if (node.near === undefined) { node.near = false; watcher.observe(node); resizer.observe(node); }
  if (node.near) requestAnimationFrame(() => { if (node.stale) drawPlot(node); });
}

function drawPlot(node) {
  const spec = node.plotSpec, width = node.clientWidth, height = node.clientHeight || 300;
  if (!width) return;
  node.drawnWidth = width;
  node.stale = false;
  const titles = { x: folded(spec.x.title, width - 12), y: folded(spec.y.title, width - 8) };
  const frame = { ...FRAME, ...spec.frame };
  frame.bottom += 14 * (titles.x.length - 1);
  frame.top += 14 * (titles.y.length - 1);
  if (spec.x.categories?.some((text) => text.includes("\n"))) frame.bottom += 14;
  const w = width - frame.left - frame.right, h = height - frame.top - frame.bottom;
  const points = spec.series.flatMap((s) => s.points);
  const xs = [...points.map((p) => p.x), ...(spec.x.include ?? [])];
  const ys = [...points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]).filter((v) => !spec.y.log || v > 0), ...(spec.y.include ?? [])];
  const X = scaleOf({ ...spec.x, across: true }, xs, w), Y = scaleOf(spec.y, ys, h);
  const px = (v) => frame.left + X.at(v), py = (v) => frame.top + h - Y.at(v);
  const clip = `clip${++charts}`;
  const clamp = (v, a, b) => Math.min(b, Math.max(a, v));
  const grid = svg("g", { class: "axis", "aria-hidden": "true" },
    X.ticks.map(([v, text]) => [svg("line", { x1: px(v), x2: px(v), y1: frame.top, y2: frame.top + h }), svg("text", { x: px(v), y: frame.top + h + 15, "text-anchor": "middle", class: "xtick" }, text.split("\n").map((line, k) => svg("tspan", { x: px(v), dy: k ? 14 : 0 }, line)))]),
    Y.ticks.map(([v, text]) => [svg("line", { x1: frame.left, x2: frame.left + w, y1: py(v), y2: py(v) }), svg("text", { x: frame.left - 7, y: py(v) + 4, "text-anchor": "end", class: "ytick" }, text)]),
    titles.y.map((text, k) => svg("text", { x: 4, y: 13 + 14 * k, class: "title ytitle" }, text)),
    titles.x.map((text, k) => svg("text", { x: frame.left + w, y: height - 8 - 14 * (titles.x.length - 1 - k), "text-anchor": "end", class: "title xtitle" }, text)));
  const regions = (spec.regions ?? []).map((r) => {
    const x0 = clamp(r.x0 === undefined ? frame.left : px(r.x0), frame.left, frame.left + w), x1 = clamp(r.x1 === undefined ? frame.left + w : px(r.x1), frame.left, frame.left + w);
    const y1 = clamp(r.y1 === undefined ? frame.top : py(r.y1), frame.top, frame.top + h), y0 = clamp(r.y0 === undefined ? frame.top + h : py(r.y0), frame.top, frame.top + h);
    return svg("g", { "aria-hidden": "true" }, svg("rect", { x: Math.min(x0, x1), y: Math.min(y0, y1), width: Math.abs(x1 - x0), height: Math.abs(y0 - y1), class: r.class ?? "region", fill: r.fill }),
      r.text ? svg("text", { x: Math.min(x0, x1) + 6, y: Math.max(y0, y1) - 7, class: "note" }, r.text) : null);
  });
  const notes = [], rules = (spec.rules ?? []).map((r) => {
    const line = r.y !== undefined ? { x1: frame.left, x2: frame.left + w, y1: py(r.y), y2: py(r.y) } : r.x !== undefined ? { x1: px(r.x), x2: px(r.x), y1: frame.top, y2: frame.top + h } : { x1: px(r.x0), y1: py(r.y0), x2: px(r.x1), y2: py(r.y1) };
    if (r.text) notes.push(svg("text", { x: (r.y !== undefined ? frame.left + w : line.x2) - 4, y: Math.min(line.y1, line.y2) - 4, "text-anchor": "end", class: `note ${r.class ?? ""}`, "aria-hidden": "true" }, r.text));
    return svg("line", { ...line, class: `rule ${r.class ?? ""}`, "aria-hidden": "true" });
  });
  const lines = [], marks = [], placed = [];
  spec.series.forEach((s, at) => {
    const { look } = s, shown = s.points.filter((p) => Number.isFinite(p.x) && Number.isFinite(p.y) && (!spec.y.log || p.y > 0) && (!spec.x.log || p.x > 0));
    const soft = s.faint ? 0.75 : 1;
    if (s.line !== false && shown.length > 1) lines.push(svg("path", { class: "curve", d: `M${shown.map((p) => `${px(p.x).toFixed(1)},${py(p.y).toFixed(1)}`).join("L")}`, stroke: look.color, "stroke-width": s.faint ? 1.4 : 2, "stroke-dasharray": DASHES[s.faint ? "dot" : look.dash], opacity: soft }));
    if (s.marks === false) return;
    for (const p of shown) {
      const x = px(p.x), y = py(p.y);
      const bar = p.low !== undefined && p.high > p.low && (!spec.y.log || p.low > 0) ? svg("path", { d: `M${x},${py(p.low)}V${py(p.high)}M${x - 4},${py(p.low)}h8M${x - 4},${py(p.high)}h8`, stroke: s.bar ? "var(--ink)" : look.color, class: "interval" })
        : p.low !== undefined && p.high > p.low ? svg("path", { d: `M${x},${frame.top + h}V${py(p.high)}M${x - 4},${py(p.high)}h8`, stroke: look.color, class: "interval" }) : null;
      const shape = s.bar ? svg("rect", { x: x - s.bar / 2, width: s.bar, y: Math.min(y, py(spec.y.from ?? 0)), height: Math.abs(py(spec.y.from ?? 0) - y), fill: p.hollow ? "var(--card)" : look.color, stroke: look.color })
        : svg("path", { d: MARKS[p.symbol ?? look.symbol](p.size ?? 4.6), transform: `translate(${x.toFixed(1)},${y.toFixed(1)})`, fill: p.hollow ? "var(--card)" : look.color, stroke: look.color, "stroke-width": 1.6 });
      const mark = svg("g", { class: "point", tabindex: placed.length ? -1 : 0, role: p.cell === undefined ? "img" : "button", "aria-label": p.text.replaceAll("\n", ", "), "data-series": at, opacity: soft }, s.bar ? [shape, bar] : [bar, shape]);
      placed.push({ mark, x, y, p, at });
      marks.push(mark);
    }
  });
  const picture = svg("svg", { class: "main-svg", width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": spec.label },
    svg("defs", {}, svg("clipPath", { id: clip }, svg("rect", { x: frame.left - 8, y: frame.top - 8, width: w + 16, height: h + 16 }))),
    grid, svg("g", { "clip-path": `url(#${clip})` }, regions, rules, lines, notes, marks));
  node.replaceChildren(picture);
  node.placed = placed;
  interact(picture, placed, spec);
}

function interact(picture, placed, spec) {
  const open = (one) => { if (one && one.p.cell !== undefined) { hideTip(); (spec.open ?? openDetail)(one.p.cell, one.mark); } };
  const nearest = (event) => {
    const box = picture.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let found = null, least = 26 ** 2;
    for (const one of placed) { const d = (one.x - x) ** 2 + (spec.x.categories ? 0 : (one.y - y) ** 2); if (d < least) { least = d; found = one; } }
    return found;
  };
  const focus = (one) => { if (!one) return; for (const other of placed) other.mark.setAttribute("tabindex", -1); one.mark.setAttribute("tabindex", 0); one.mark.focus(); };
  const show = (one) => { const box = picture.getBoundingClientRect(); showTip(one.p.text, box.left + one.x, box.top + one.y); };
  picture.addEventListener("pointermove", (event) => { const one = nearest(event); picture.style.cursor = one && one.p.cell !== undefined ? "pointer" : ""; if (one) show(one); else hideTip(); });
  picture.addEventListener("pointerleave", hideTip);
  picture.addEventListener("click", (event) => open(nearest(event)));
  picture.addEventListener("focusin", (event) => { const one = placed.find((o) => o.mark === event.target); if (one) show(one); });
  picture.addEventListener("focusout", hideTip);
  picture.addEventListener("keydown", (event) => {
    const now = placed.find((o) => o.mark === document.activeElement);
    if (!now) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(now); return; }
    const own = placed.filter((o) => o.at === now.at), at = own.indexOf(now);
    const across = (by) => { const rows = [...new Set(placed.map((o) => o.at))], next = rows[rows.indexOf(now.at) + by]; return placed.filter((o) => o.at === next).sort((a, b) => Math.abs(a.x - now.x) - Math.abs(b.x - now.x))[0]; };
    const next = { ArrowRight: () => own[at + 1], ArrowLeft: () => own[at - 1], ArrowDown: () => across(1), ArrowUp: () => across(-1), Home: () => own[0], End: () => own[own.length - 1] }[event.key];
    if (next) { event.preventDefault(); focus(next()); }
  });
}

function showTip(text, x, y) {
  const tip = document.getElementById("tip");
  (document.querySelector("dialog[open]") ?? document.body).append(tip);
  tip.textContent = text;
  tip.hidden = false;
  const left = x + 14 + tip.offsetWidth > innerWidth ? x - tip.offsetWidth - 14 : x + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - tip.offsetHeight - 6))}px`;
}

function hideTip() { document.getElementById("tip").hidden = true; }

// A point of cell `i`: its mean with its interval, hollow for one run, and in words what is drawn.
function pointOf(i, x, y, xText) {
  const value = valueOf(i, y), h = y === "load" ? null : half(i, y);
  return {
    x: valueOf(i, x), y: value, low: h === null ? undefined : value - h, high: h === null ? undefined : value + h, hollow: h === null, cell: i,
    text: `${cellLabel(i)}\n${xText ?? words(x)} ${x === "load" ? brief(load(i)) : `${brief(valueOf(i, x))} ${unit(x)}`.trim()}\n${words(y)} ${y === "load" ? brief(load(i)) : `${withError(i, y)} ${unit(y)}`.trim()}\n${runsText(i)}`,
  };
}
