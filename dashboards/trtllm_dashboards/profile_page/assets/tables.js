"use strict";
// The head, the bar of parts, the tables; draws the page.

function sortable(target, columns, rows) {
  let by = columns.find((c) => c.first) ?? columns[0], down = true;
  const table = el("table");
  target.append(table);
  const order = (c) => (c === by ? (down ? "descending" : "ascending") : "none");
  (function draw(focused = null) {
    const sorted = [...rows].sort((a, b) => (by.text ? String(by.of(a)).localeCompare(by.of(b)) : (by.of(a) ?? -1) - (by.of(b) ?? -1)) * (down ? -1 : 1));
    const turn = (c) => { down = by === c ? !down : !c.text; by = c; draw(c); };
    table.replaceChildren(
      el("thead", {}, el("tr", {}, columns.map((c) => el("th", { class: c.text ? "text" : "", scope: "col", "aria-sort": order(c) }, el("button", { type: "button", onclick: () => turn(c) }, c.name))))),
      el("tbody", {}, sorted.map((row) => el("tr", {}, columns.map((c) => el("td", { class: c.text ? "text" : "", title: c.text ? c.of(row) : null }, (c.show ?? ((v) => fixed(v)))(c.of(row))))))));
    if (focused) table.tHead.rows[0].cells[columns.indexOf(focused)].firstChild.focus();
  })();
}

function partsBar(target) {
  const gaps = [["gaps between kernels", data.steps.reduce((s, x) => s + x.gap_inside_us, 0)], ["gaps between steps", data.steps.reduce((s, x) => s + x.gap_before_us, 0)]];
  const parts = [...roles, ...gaps].filter(([, us]) => us > 0);
  const count = data.steps.length || 1;
  const look = (name) => (colour(name) ? { style: `background:${colour(name)}` } : { class: "other" });
  target.append(
    el("div", { class: "bar", "aria-hidden": "true" }, parts.map(([name, us]) => { const { style = "", ...more } = look(name); return el("div", { ...more, style: `flex:${us / windowUs};${style}`, ...tipped(`${name}\n${percent(us / windowUs)}, ${fixed(us / count)} µs a step`) }); })),
    el("ul", { class: "legend" }, parts.filter(([, us]) => us / windowUs > 0.002).map(([name, us]) => el("li", { title: `${fixed(us / count)} µs a step` }, el("i", look(name)), `${shortName(name)} ${percent(us / windowUs)}`))));
}

// Whose ceilings the shares are of: the first thing to know of any of them.
function ceilingsText(c) {
  if (!c || !c.bytes_per_s) return "No ceilings of this device are known, so no share of them is told: trtllm-bench ceilings measures them.";
  const formats = Object.entries(c.flops_per_s ?? {}).filter(([f]) => data.kernels.some((k) => k.compute === f)).map(([f, v]) => `${f} ${rate(v)}FLOP/s`);
  const from = c.measured ? `measured on ${c.name ?? data.device} (trtllm-bench ceilings)` : `taken for ${(c.name ?? data.device).toUpperCase()} from its data sheet at the share plain kernels reach, not measured on this GPU (trtllm-bench ceilings does)`;
  const above = data.kernels.some((k) => k.ceiling_share > 1) ? " A share above 100% means that a kernel does better than the plain kernels that measured the ceiling." : "";
  return `Ceilings ${from}: memory ${fixed(c.bytes_per_s / 1e12)} TB/s${formats.length ? `, ${formats.join(", ")}` : ""}.${above}`;
}

const text = (value) => value;
document.title = `Profile: ${data.cell.label ?? ""}`;
document.getElementById("title").textContent = data.cell.label ?? "Profile";
const meanStep = windowUs / (data.steps.length || 1);
document.getElementById("subtitle").textContent = [
  data.device, data.collector, `${data.steps.length} steps of ${fixed(meanStep, 4)} µs`,
  data.free_step_us ? `same steps unrecorded ${fixed(data.free_step_us, 4)} µs, recorded ${fixed(data.recorded_step_us, 4)} µs` : "", data.started_at,
].filter(Boolean).join(" · ");
document.getElementById("ceilings").textContent = ceilingsText(data.ceilings);
if (data.back) {
  document.getElementById("back").hidden = false;
  document.getElementById("back").append(el("a", { href: data.back }, "Back to the dashboard"));
}
drawn(document.getElementById("parts"), partsBar);
drawn(document.getElementById("roofline"), roofline);
drawn(document.getElementById("timeline"), timeline);
sortable(document.getElementById("steps"), [
  { name: "step", of: (s) => -s.number, show: (v) => -v, first: true }, { name: "phase", of: (s) => s.phase, text: true, show: text }, { name: "tokens", of: (s) => s.tokens, show: text },
  { name: "sequences", of: (s) => s.sequences, show: text }, { name: "KV tokens", of: (s) => s.kv_tokens, show: text }, { name: "CUDA graph", of: (s) => (s.graph ? "yes" : "no"), text: true, show: text },
  { name: "time µs", of: (s) => s.span_us }, { name: "busy µs", of: (s) => s.busy_us }, { name: "gaps inside µs", of: (s) => s.gap_inside_us }, { name: "gap before µs", of: (s) => s.gap_before_us },
], data.steps);
sortable(document.getElementById("kernels"), [
  { name: "op", of: (k) => k.role, text: true, show: (v) => shortName(v) }, { name: "share", of: (k) => k.share, show: percent, first: true }, { name: "of ceiling", of: (k) => k.ceiling_share, show: percent },
  { name: "kernel", of: (k) => k.kernel, text: true, show: text }, { name: "calls", of: (k) => k.calls, show: text }, { name: "µs a call", of: (k) => k.time_us / k.calls },
  { name: "TB/s", of: (k) => k.bytes / k.time_us / 1e6 }, { name: "TFLOP/s", of: (k) => k.flop / k.time_us / 1e6 }, { name: "FLOP/byte", of: (k) => (k.bytes ? k.flop / k.bytes : null) },
  { name: "bound by", of: (k) => k.bound || "-", text: true, show: text },
], data.kernels);
if ((data.counters ?? []).length) {
  const section = document.getElementById("counters"), target = section.querySelector("div"), figure = (name, show, title) => ({ name: title ?? name.replaceAll("_", " "), of: (c) => c[name] ?? null, show });
  section.hidden = false;
  sortable(target, [
    { name: "kernel", of: (c) => c.kernel, text: true, show: text }, { name: "grid", of: (c) => c.grid, text: true, show: text },
    { name: "time µs", of: (c) => (c.duration_s ? 1e6 * c.duration_s : null), first: true }, figure("dram_share", percent, "DRAM"), figure("sm_share", percent, "SM"), figure("l2_hit", percent, "L2 hits"),
    figure("occupancy", percent), figure("occupancy_limit", percent, "of at most"), figure("registers"), figure("shared_bytes", undefined, "B shared"),
    { name: "warps wait for", of: (c) => Object.entries(c.stalls).map(([n, v]) => `${n} ${v.toFixed(1)}`).join(", "), text: true, show: text },
  ], data.counters);
}
document.getElementById("notes").append(...data.notes.map((note) => el("p", { class: "soft" }, note)), ...(data.command ? [el("p", { class: "soft" }, data.command)] : []));
