"use strict";
// Kernels of the first steps on one canvas: a row a kind of op, so that gaps and order show at any zoom.

function timeline(target) {
  const events = data.timeline;
  if (!events.length) { target.append(el("p", { class: "soft" }, "No events.")); return; }
  const end = Math.max(...events.map((e) => e.start_us + e.duration_us));
  const view = { from: 0, to: end };
  const canvas = el("canvas", { height: 150 });
  target.append(canvas);
  const steps = [...new Set(events.map((e) => e.step))].map((s) => {
    const own = events.filter((e) => e.step === s);
    return { s, from: own[0].start_us, to: own[own.length - 1].start_us + own[own.length - 1].duration_us };
  });
  const T = 26, H = 84;
  const toX = (us) => (us - view.from) / (view.to - view.from) * canvas.clientWidth;
  function draw() {
    const scale = devicePixelRatio || 1, width = canvas.clientWidth;
    canvas.width = width * scale; canvas.height = 150 * scale; canvas.style.height = "150px";
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    pen.scale(scale, scale); pen.font = "11.5px system-ui, sans-serif"; pen.textBaseline = "middle";
    for (const { s, from, to } of steps) {
      const x = toX(from), w = toX(to) - x;
      pen.strokeStyle = style.getPropertyValue("--rule"); pen.strokeRect(x, 3, w, 17);
      pen.fillStyle = style.getPropertyValue("--ink");
      if (w > 60) pen.fillText(`step ${data.steps[s]?.number ?? s}, ${data.steps[s]?.phase ?? ""}`, Math.max(x, 0) + 5, 12);
    }
    for (const e of events) {
      const x = toX(e.start_us), w = toX(e.start_us + e.duration_us) - x;
      if (x > width || x + w < 0) continue;
      pen.fillStyle = colours[e.role] ?? GAP; pen.fillRect(x, T, Math.max(w, 0.4), H);
      if (w > 46) { pen.save(); pen.beginPath(); pen.rect(x, T, w, H); pen.clip(); pen.fillStyle = "#fff"; pen.fillText(shortName(e.role), Math.max(x, 0) + 4, T + H / 2); pen.restore(); }
    }
    pen.fillStyle = style.getPropertyValue("--soft"); pen.strokeStyle = style.getPropertyValue("--rule");
    const about = (view.to - view.from) / 8, step = 10 ** Math.floor(Math.log10(about)) * [1, 2, 5, 10].find((m) => m * 10 ** Math.floor(Math.log10(about)) >= about);
    for (let at = Math.ceil(view.from / step) * step; at < view.to; at += step) {
      pen.beginPath(); pen.moveTo(toX(at), T + H); pen.lineTo(toX(at), T + H + 6); pen.stroke();
      pen.fillText(`${at >= 10000 ? fixed(at / 1000) + " ms" : fixed(at) + " µs"}`, toX(at) + 3, T + H + 14);
    }
  }
  const at = (event) => view.from + event.offsetX / canvas.clientWidth * (view.to - view.from);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const middle = at(event), factor = Math.exp(Math.max(-1, Math.min(1, event.deltaY / 200)));
    view.from = Math.max(0, middle - (middle - view.from) * factor); view.to = Math.min(end, middle + (view.to - middle) * factor); draw();
  }, { passive: false });
  let held = null;
  canvas.addEventListener("pointerdown", (event) => { held = event.clientX; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => { held = null; });
  canvas.addEventListener("pointermove", (event) => {
    if (held !== null) {
      const span = view.to - view.from, by = (held - event.clientX) / canvas.clientWidth * span;
      view.from = Math.max(0, Math.min(end - span, view.from + by)); view.to = view.from + span; held = event.clientX; draw(); return;
    }
    const time = at(event), index = events.findIndex((e) => time < e.start_us + e.duration_us);
    const e = events[index];
    if (e && time >= e.start_us) showTip(event, `${e.op}\n${e.name}\n${fixed(e.duration_us)} µs`);
    else if (e && index > 0) showTip(event, `gap of ${fixed(e.start_us - events[index - 1].start_us - events[index - 1].duration_us)} µs before\n${e.op}`);
    else hideTip();
  });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("dblclick", () => { view.from = 0; view.to = end; draw(); });
  addEventListener("resize", draw);
  draw();
}
