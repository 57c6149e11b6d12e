"use strict";
// A gate's verdict: each block's runs of A and B, the change with its interval against the tolerated loss, and the kernel to blame.

const SAID = { pass: "PASS", fail: "FAIL", inconclusive: "INCONCLUSIVE" };

function gateSentence() {
  const { gates } = state.data, failed = gates.filter((g) => g.verdict !== "pass");
  if (gates.length === 1) return [el("b", { class: `verdict ${gates[0].verdict}` }, SAID[gates[0].verdict]), worded(gates[0]).slice(worded(gates[0]).indexOf(":")), " "];
  return [el("b", { class: `verdict ${failed.some((g) => g.verdict === "fail") ? "fail" : failed.length ? "inconclusive" : "pass"}` },
    `${gates.length - failed.length} of ${gates.length} gates pass`), ". ", failed.map((g) => `${g.store}: ${worded(g)} `).join("")];
}

function worded(g) { return g.findings.reduce((text, f) => text.replaceAll(f.figure, f.title), g.headline); }

function signed(ratio) { const v = 100 * ratio, text = brief(Number(v.toPrecision(3))); return `${v > 0 ? "+" : ""}${text.replace("-", "\u2212")}%`; }

function drawGates() {
  const section = document.getElementById("gates");
  section.hidden = !state.data.gates.length;
  const body = section.querySelector(".body");
  body.replaceChildren(...state.data.gates.map(gateCard));
  for (const node of body.querySelectorAll(".plot")) plot(node, node.spec());
}

function gateCard(g) {
  const rows = g.findings.map((f) => el("tr", {},
    el("td", {}, f.title), el("td", {}, f.unit || "ratio"), el("td", { class: "num" }, brief(f.a)), el("td", { class: "num" }, brief(f.b)), el("td", { class: "num" }, signed(f.change)),
    el("td", { class: "num" }, f.low === null ? "-" : `${signed(f.low)} to ${signed(f.high)}`), el("td", { class: "num" }, signed(f.better === "lower" ? f.margin : -f.margin)), el("td", {}, el("span", { class: `verdict ${f.verdict}` }, f.verdict))));
  const heads = ["figure", "unit", `A, ${g.a}`, `B, ${g.b}`, "change", `${(100 * g.level).toFixed(0)}% interval`, "tolerated", "verdict"];
  return el("article", { class: "chart gate" },
    el("h3", {}, el("span", { class: `verdict ${g.verdict}` }, SAID[g.verdict]), ` ${g.store}: A = ${g.a}, B = ${g.b}, ${g.label}, ${g.blocks} blocks of four runs`),
    el("div", { class: "pairs" }, g.findings.flatMap((f) => [holder(() => blockPlot(g, f)), holder(() => changePlot(g, f))])),
    el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Findings of ${g.store}` }, el("table", {}, el("thead", {}, el("tr", {}, heads.map((t, at) => el("th", { scope: "col", class: at > 1 && at < 7 ? "num" : "" }, t)))), el("tbody", {}, rows))),
    ...g.explanations.map((text) => el("p", { class: "note" }, `${text}.`)),
    culprits(g),
    ...g.warnings.map((text) => el("p", { class: "warning" }, `Note: ${text}.`)),
    el("p", { class: "note" }, `Values are geometric means over the runs. ${g.given ? "" : "No report of the gate lies beside the store, so margins and level are the defaults. "}A block runs A B B A or B A A B; hollow marks are single runs.`));
}

function lookB() { return { ...lookOf("", 7), symbol: "square" }; }

function holder(spec) { const node = el("div", { class: "plot small" }); node.spec = spec; return node; }

function culprits(g) {
  if (!g.culprits.length) return el("p", { class: "note" }, g.culprits_note);
  const [worst] = g.culprits;
  return el("p", {}, "Slower mostly in ", el("b", {}, worst.part), `: ${brief(worst.longer)} \u00b5s an output token more (${brief(worst.a)} to ${brief(worst.b)})`, g.culprits.length > 1 ? `; then ${g.culprits.slice(1).map((c) => `${c.part} ${brief(c.longer)} \u00b5s`).join(", ")}` : "", ".");
}

function blockPlot(g, f) {
  const looks = { a: lookOf("", 0), b: lookB() };
  const dots = (arm, shift) => f.by_block.flatMap((block, k) => block[arm].map((value) => ({ x: k + shift, y: value, hollow: true, text: `block ${k + 1}, ${arm.toUpperCase()}: ${brief(value)} ${f.unit}` })));
  const limit = f.a * (f.better === "lower" ? 1 + f.margin : 1 - f.margin);
  return {
    label: `${f.title} of each run, by block`, x: { title: `block (${looks.a.symbol} A, ${looks.b.symbol} B)`, categories: f.by_block.map((_, k) => String(k + 1)) }, y: { title: `${f.title} (${f.unit || "ratio"})`, zero: false, include: [f.a, f.b, limit] },
    series: [{ name: "A", look: looks.a, line: false, points: dots("a", -0.15) }, { name: "B", look: looks.b, line: false, points: dots("b", 0.15) }],
    rules: [{ y: limit, class: "limit", text: `tolerated, ${brief(limit)}` }, { y: f.a, text: `mean of A, ${brief(f.a)}` }],
  };
}

function changePlot(g, f) {
  const change = f.by_block.map((block, k) => ({ x: k, y: Math.expm1(block.log_change), text: `block ${k + 1}: ${signed(Math.expm1(block.log_change))}`, hollow: true }));
  const bound = f.better === "lower" ? f.margin : -f.margin;
  const whole = { x: f.by_block.length, y: f.change, low: f.low ?? undefined, high: f.high ?? undefined, size: 6, text: `all blocks: ${signed(f.change)}${f.low === null ? "" : `, ${(100 * g.level).toFixed(0)}% interval ${signed(f.low)} to ${signed(f.high)}`}` };
  const look = lookB(), beyond = f.better === "lower" ? { y0: bound } : { y1: bound };
  return {
    label: `change of ${f.title}, B against A`, x: { title: "block, then all with interval", categories: [...f.by_block.map((_, k) => String(k + 1)), "all"] }, y: { title: "change, B against A", percent: true, zero: false, include: [0, bound * 1.6] },
    series: [{ name: "blocks", look, line: false, points: change }, { name: "all", look, line: false, points: [whole] }],
    regions: [{ ...beyond, class: "beyond" }], rules: [{ y: 0 }, { y: bound, class: "limit", text: `margin ${signed(bound)}` }],
  };
}
