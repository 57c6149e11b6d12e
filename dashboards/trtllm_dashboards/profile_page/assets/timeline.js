"use strict";
// Kernels of the first steps on one canvas: a row a kind of op, so that order, overlap and gaps show at any zoom.

const shown = { from: 0, to: 0 };

function timeline(target, width) {
  const events = data.timeline;
  if (!events.length) { target.append(el("p", { class: "soft" }, "No events.")); return; }
  const end = Math.max(...events.map((e) => e.start_us + e.duration_us));
  if (!shown.to) shown.to = end;
  const times = new Map();
  for (const e of events) times.set(shortName(e.role), (times.get(shortName(e.role)) ?? 0) + e.duration_us);
  const kinds = [...times].sort((a, b) => b[1] - a[1]).map(([kind]) => kind), rowOf = new Map(kinds.map((kind, at) => [kind, at]));
  const L = width < 560 ? 92 : 158, T = 26, ROW = 19, H = kinds.length * ROW, height = T + H + 26, inside = width - L;
  const canvas = el("canvas", { role: "img", "aria-label": `Timeline of ${events.length} kernels over ${fixed(end)} µs; by time: ${kinds.slice(0, 6).join(", ")}` });
  const steps = [...new Set(events.map((e) => e.step))].map((s) => {
    const own = events.filter((e) => e.step === s);
    return { s, from: own[0].start_us, to: Math.max(...own.map((e) => e.start_us + e.duration_us)) };
  });
  const toX = (us) => L + (us - shown.from) / (shown.to - shown.from) * inside;
  function draw() {
    const scale = devicePixelRatio || 1;
    canvas.width = width * scale; canvas.height = height * scale; canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    const fit = (text, room) => { while (text.length > 2 && pen.measureText(text).width > room) text = `${text.slice(0, -2)}…`; return text; };
    pen.scale(scale, scale); pen.font = "11.5px system-ui, sans-serif"; pen.textBaseline = "middle";
    pen.save(); pen.beginPath(); pen.rect(L, 0, inside, height); pen.clip();
    for (const { s, from, to } of steps) {
      const x = toX(from), w = toX(to) - x;
      pen.strokeStyle = css("--rule"); pen.strokeRect(x, 3, w, 17);
      pen.fillStyle = css("--ink");
      const number = `${data.steps[s]?.number ?? s}`, room = Math.min(x + w, width) - Math.max(x, L) - 8;
      const text = [`step ${number}, ${data.steps[s]?.phase ?? ""}`, `step ${number}`, number].find((one) => pen.measureText(one).width < room);
      if (text) pen.fillText(text, Math.max(x, L) + 5, 12);
    }
    for (const e of events) {
      const x = toX(e.start_us), w = toX(e.start_us + e.duration_us) - x;
      if (x > width || x + w < L) continue;
      pen.fillStyle = colour(e.role) ?? css("--gap"); pen.fillRect(x, T + rowOf.get(shortName(e.role)) * ROW + 2, Math.max(w, 0.5), ROW - 4);
    }
    pen.restore();
    kinds.forEach((kind, at) => {
      pen.fillStyle = css("--rule"); pen.fillRect(0, T + (at + 1) * ROW - 0.5, width, 0.6);
      pen.fillStyle = css("--ink"); pen.fillText(fit(kind, L - 8), 0, T + at * ROW + ROW / 2);
    });
    pen.fillStyle = css("--soft"); pen.strokeStyle = css("--rule");
    const about = (shown.to - shown.from) / Math.max(3, inside / 100), power = 10 ** Math.floor(Math.log10(about)), step = power * [1, 2, 5, 10].find((m) => m * power >= about);
    for (let at = Math.ceil(shown.from / step) * step; at < shown.to; at += step) {
      pen.beginPath(); pen.moveTo(toX(at), T + H); pen.lineTo(toX(at), T + H + 6); pen.stroke();
      const text = at >= 10000 ? `${fixed(at / 1000)} ms` : `${fixed(at)} µs`;
      if (toX(at) + pen.measureText(text).width < width) pen.fillText(text, toX(at) + 3, T + H + 14);
    }
  }
  const at = (event) => shown.from + (event.offsetX - L) / inside * (shown.to - shown.from);
  const zoom = (factor, middle = (shown.from + shown.to) / 2) => { shown.from = Math.max(0, middle - (middle - shown.from) * factor); shown.to = Math.min(end, middle + (shown.to - middle) * factor); draw(); };
  const move = (by) => { const span = shown.to - shown.from; shown.from = Math.max(0, Math.min(end - span, shown.from + by)); shown.to = shown.from + span; draw(); };
  canvas.addEventListener("wheel", (event) => { if (event.offsetX < L) return; event.preventDefault(); zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 200))), at(event)); }, { passive: false });
  let held = null;
  canvas.addEventListener("pointerdown", (event) => { held = event.clientX; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => { held = null; });
  canvas.addEventListener("pointermove", (event) => {
    if (held !== null) { move((held - event.clientX) / inside * (shown.to - shown.from)); held = event.clientX; return; }
    const time = at(event), kind = kinds[Math.floor((event.offsetY - T) / ROW)], slack = (shown.to - shown.from) / inside;
    const e = events.find((one) => shortName(one.role) === kind && time > one.start_us - slack && time < one.start_us + one.duration_us + slack);
    if (e) showTip(event, `${e.op}\n${e.name}\n${fixed(e.duration_us)} µs at ${fixed(e.start_us, 5)} µs`); else hideTip();
  });
  canvas.addEventListener("pointerleave", hideTip);
  const all = () => { shown.from = 0; shown.to = end; draw(); };
  canvas.addEventListener("dblclick", all);
  const button = (text, act) => el("button", { type: "button", onclick: act }, text);
  target.append(canvas, el("div", { class: "buttons" }, button("Zoom in", () => zoom(0.5)), button("Zoom out", () => zoom(2)), button("Earlier", () => move((shown.from - shown.to) / 2)), button("Later", () => move((shown.to - shown.from) / 2)), button("Show all", all)));
  draw();
}
