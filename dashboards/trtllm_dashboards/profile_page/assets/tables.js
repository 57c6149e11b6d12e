"use strict";
// The head, the bar of parts, the tables; draws the page.

function sortable(target, columns, rows) {
  let by = columns.find((c) => c.first) ?? columns[0], down = true;
  const table = el("table");
  target.append(table);
  (function draw() {
    const sorted = [...rows].sort((a, b) => (by.text ? String(by.of(a)).localeCompare(by.of(b)) : (by.of(a) ?? -1) - (by.of(b) ?? -1)) * (down ? -1 : 1));
    table.replaceChildren(
      el("thead", {}, el("tr", {}, columns.map((c) => el("th", { class: c.text ? "text" : "", onclick: () => { down = by === c ? !down : !c.text; by = c; draw(); } }, c.name)))),
      el("tbody", {}, sorted.map((row) => el("tr", {}, columns.map((c) => el("td", { class: c.text ? "text" : "", title: c.text ? c.of(row) : "" }, (c.show ?? ((v) => fixed(v)))(c.of(row))))))));
  })();
}

function partsBar(target) {
  const gaps = [["gaps between kernels", data.steps.reduce((s, x) => s + x.gap_inside_us, 0)], ["gaps between steps", data.steps.reduce((s, x) => s + x.gap_before_us, 0)]];
  const parts = [...roles, ...gaps].filter(([, us]) => us > 0);
  const count = data.steps.length || 1;
  const colour = (name) => colours[name] ?? GAP;
  target.append(
    el("div", { class: "bar" }, parts.map(([name, us]) => el("div", { style: `flex:${us / windowUs};background:${colour(name)}`, ...tipped(`${name}\n${percent(us / windowUs)}, ${fixed(us / count)} µs a step`) }))),
    el("div", { class: "legend" }, parts.filter(([, us]) => us / windowUs > 0.002).map(([name, us]) => el("span", {}, el("i", { style: `background:${colour(name)}` }), `${shortName(name)} ${percent(us / windowUs)}`))));
}

const text = (value) => value;
document.title = `Profile: ${data.cell.label ?? ""}`;
document.getElementById("title").textContent = data.cell.label ?? "Profile";
const meanStep = windowUs / (data.steps.length || 1);
document.getElementById("subtitle").textContent = [
  data.device, data.collector, `${data.steps.length} steps of ${fixed(meanStep, 4)} µs`,
  data.free_step_us ? `same steps unrecorded ${fixed(data.free_step_us, 4)} µs, recorded ${fixed(data.recorded_step_us, 4)} µs` : "", data.started_at,
].filter(Boolean).join(" · ");
partsBar(document.getElementById("parts"));
roofline(document.getElementById("roofline"));
timeline(document.getElementById("timeline"));
sortable(document.getElementById("steps"), [
  { name: "step", of: (s) => -s.number, show: (v) => -v, first: true }, { name: "phase", of: (s) => s.phase, text: true, show: text }, { name: "tokens", of: (s) => s.tokens, show: text },
  { name: "sequences", of: (s) => s.sequences, show: text }, { name: "KV tokens", of: (s) => s.kv_tokens, show: text }, { name: "CUDA graph", of: (s) => (s.graph ? "yes" : "no"), text: true, show: text },
  { name: "time µs", of: (s) => s.span_us }, { name: "busy µs", of: (s) => s.busy_us }, { name: "gaps inside µs", of: (s) => s.gap_inside_us }, { name: "gap before µs", of: (s) => s.gap_before_us },
], data.steps);
sortable(document.getElementById("kernels"), [
  { name: "op", of: (k) => k.role, text: true, show: (v) => shortName(v) }, { name: "kernel", of: (k) => k.kernel, text: true, show: text }, { name: "calls", of: (k) => k.calls, show: text },
  { name: "µs a call", of: (k) => k.time_us / k.calls }, { name: "share", of: (k) => k.share, show: percent, first: true },
  { name: "TB/s", of: (k) => k.bytes / k.time_us / 1e6 }, { name: "TFLOP/s", of: (k) => k.flop / k.time_us / 1e6 }, { name: "FLOP/byte", of: (k) => (k.bytes ? k.flop / k.bytes : null) },
  { name: "of ceiling", of: (k) => k.ceiling_share, show: percent }, { name: "bound by", of: (k) => k.bound || "-", text: true, show: text },
], data.kernels);
if ((data.counters ?? []).length) {
  const target = document.getElementById("counters"), figure = (name, show, title) => ({ name: title ?? name.replaceAll("_", " "), of: (c) => c[name] ?? null, show });
  target.append(el("h2", {}, "Hardware counters (Nsight Compute)"));
  sortable(target, [
    { name: "kernel", of: (c) => c.kernel, text: true, show: text }, { name: "grid", of: (c) => c.grid, text: true, show: text },
    { name: "time µs", of: (c) => (c.duration_s ? 1e6 * c.duration_s : null), first: true }, figure("dram_share", percent, "DRAM"), figure("sm_share", percent, "SM"), figure("l2_hit", percent, "L2 hits"),
    figure("occupancy", percent), figure("occupancy_limit", percent, "of at most"), figure("registers"), figure("shared_bytes", undefined, "B shared"),
    { name: "warps wait for", of: (c) => Object.entries(c.stalls).map(([n, v]) => `${n} ${v.toFixed(1)}`).join(", "), text: true, show: text },
  ], data.counters);
}
document.getElementById("notes").append(...data.notes.map((note) => el("p", { class: "soft" }, note)), ...(data.command ? [el("p", { class: "soft" }, data.command)] : []));
