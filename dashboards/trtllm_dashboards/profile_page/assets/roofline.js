"use strict";
// FLOP/s against FLOP/byte, both logarithmic (Williams et al. 2009): a roof for each number format, one slope for memory.

function named(text) { return { "aria-label": text.replaceAll("\n", ", "), ...tipped(text) }; }

function roofline(target, W) {
  const kernels = data.kernels.filter((k) => k.flop > 0 && k.bytes > 0 && k.time_us > 0);
  const band = data.ceilings.bytes_per_s;
  if (!kernels.length) { target.append(el("p", { class: "soft" }, "No kernel has both FLOP and bytes counted.")); return; }
  const points = kernels.map((k) => ({ k, x: k.flop / k.bytes, y: k.flop / k.time_us * 1e6 }));
  const formats = [...new Set(kernels.map((k) => k.compute))].filter((f) => data.ceilings.flops_per_s && data.ceilings.flops_per_s[f]);
  const peaks = formats.map((f) => data.ceilings.flops_per_s[f]);
  const H = Math.min(440, Math.max(300, W * 0.42)), L = 62, B = 40, R = 16, T = 12;
  const xs = points.map((p) => p.x), ys = points.map((p) => p.y);
  const low = Math.floor(Math.log10(Math.min(...xs))), high = Math.ceil(Math.log10(Math.max(...xs, ...(band ? peaks.map((p) => 2 * p / band) : []))));
  const bottom = Math.floor(Math.log10(Math.min(...ys))), top = Math.log10(Math.max(...ys, ...peaks) * 2.2);
  const X = (v) => L + (Math.log10(v) - low) / (high - low) * (W - L - R);
  const Y = (v) => H - B - (Math.log10(v) - bottom) / (top - bottom) * (H - B - T);
  const svg = el("svg:svg", { viewBox: `0 0 ${W} ${H}`, width: W, height: H, role: "group", "aria-label": "Roofline: FLOP/s against FLOP/byte" });
  const every = Math.ceil((high - low) * 62 / (W - L - R));
  for (let e = low; e <= high; e += every) svg.append(el("svg:line", { class: "grid", x1: X(10 ** e), x2: X(10 ** e), y1: T, y2: H - B }), el("svg:text", { x: X(10 ** e), y: H - B + 16, "text-anchor": "middle" }, e < 0 ? (10 ** e).toFixed(-e) : (10 ** e).toLocaleString("en")));
  for (let e = bottom; e <= top; e++) svg.append(el("svg:line", { class: "grid", x1: L, x2: W - R, y1: Y(10 ** e), y2: Y(10 ** e) }), el("svg:text", { x: L - 6, y: Y(10 ** e) + 4, "text-anchor": "end" }, rate(10 ** e)));
  svg.append(el("svg:text", { class: "soft", x: (L + W - R) / 2, y: H - 6, "text-anchor": "middle" }, "arithmetic intensity (FLOP/byte)"), el("svg:text", { class: "soft", x: 12, y: H / 2, transform: `rotate(-90 12 ${H / 2})`, "text-anchor": "middle" }, "FLOP/s"));
  const labels = [];
  if (band) {
    const best = Math.max(...peaks, 10 ** bottom);
    const ridge = best / band, start = Math.max(10 ** low, 10 ** bottom / band);
    svg.append(el("svg:polyline", { class: "roof", points: `${X(start)},${Y(start * band)} ${X(Math.min(ridge, 10 ** high))},${Y(Math.min(ridge, 10 ** high) * band)}` }));
    const at = Math.sqrt(start * ridge);
    svg.append(el("svg:text", { class: "soft", x: X(at) - 8, y: Y(at * band) - 6, "text-anchor": "end" }, `memory ${fixed(band / 1e12)} TB/s`));
    const flat = ((W - L - R) / (high - low)) / ((H - B - T) / (top - bottom));
    let lowest = 0;  // names of roofs stand left of where each begins: nothing can be above the slope
    formats.map((f, i) => [peaks[i], f]).sort((a, b) => b[0] - a[0]).forEach(([peak, f]) => {
      lowest = Math.max(lowest + 13, Y(peak) + 4);
      svg.append(el("svg:polyline", { class: "roof", points: `${X(peak / band)},${Y(peak)} ${W - R},${Y(peak)}` }), el("svg:text", { class: "soft", x: X(peak / band) - 8 - flat * (lowest - Y(peak)), y: lowest, "text-anchor": "end" }, `${f} ${rate(peak)}FLOP/s`));
    });
  }
  const largest = Math.max(...kernels.map((k) => k.time_us));
  points.sort((a, b) => b.k.time_us - a.k.time_us).forEach(({ k, x, y }, i) => {
    const radius = 4 + 16 * Math.sqrt(k.time_us / largest);
    svg.append(el("svg:circle", { cx: X(x), cy: Y(y), r: radius, fill: colour(k.role) ?? css("--gap"), "fill-opacity": 0.75, stroke: "var(--ink)", "stroke-width": 0.6, tabindex: i ? -1 : 0, role: "img", ...named(
      `${k.role}\n${k.kernel}\n${percent(k.share)} of the time, ${k.calls} calls of ${fixed(k.time_us / k.calls)} µs\n${rate(k.bytes / k.time_us * 1e6)}B/s, ${rate(y)}FLOP/s, ${fixed(x)} FLOP/byte\n${percent(k.ceiling_share)} of the ceiling, bound by ${k.bound || "-"}`) }));
    const width = 6.5 * shortName(k.role).length, right = X(x) + radius + 3;
    const place = right + width < W ? { x: right, y: Y(y) + 4, w: width } : { x: W - R - width, y: Y(y) - radius - 4, w: width };
    if (i < 9 && !labels.some((l) => Math.abs(l.y - place.y) < 12 && place.x < l.x + l.w && l.x < place.x + place.w)) {
      labels.push(place);
      svg.append(el("svg:text", { x: place.x, y: place.y }, shortName(k.role)));
    }
  });
  svg.addEventListener("keydown", (event) => { // one stop of the keyboard; arrows go from kernel to kernel, the longest first
    const marks = [...svg.querySelectorAll("circle")], at = marks.indexOf(document.activeElement);
    const next = marks[at + ({ ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key] ?? 0)];
    if (at < 0 || !next || next === marks[at]) return;
    event.preventDefault();
    marks[at].setAttribute("tabindex", -1);
    next.setAttribute("tabindex", 0);
    next.focus();
  });
  target.append(svg);
}
