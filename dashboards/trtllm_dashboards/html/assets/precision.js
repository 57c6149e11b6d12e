"use strict";
// What a narrower precision is worth: cells matched in all else, across result sets, each pair with its interval and verdict.

const MOST_PAIRS = 40;

function drawPrecisions() {
  const shown = new Set(state.rows);
  const found = state.data.pairs.filter((p) => shown.has(p.cell) && shown.has(p.base));
  const section = document.getElementById("precisions");
  section.hidden = !found.length;
  if (!found.length) return;
  const table = section.querySelector("table");
  heads(table, ["case", "precision", "at", "", "base", "at", "", "ratio", "95% interval", "runs", "verdict"].map((t, at) => el("th", { scope: "col", class: [3, 6, 7, 8, 9].includes(at) ? "num" : "" }, t || "tok/s")));
  const caches = new Map();
  for (const p of found) caches.set(dim(p.cell, "precision"), (caches.get(dim(p.cell, "precision")) ?? new Set()).add(dim(p.cell, "kv_dtype")));
  const precision = (i) => dim(i, "precision") + (caches.get(dim(i, "precision"))?.size > 1 ? ` ${dim(i, "kv_dtype")}` : "");
  const at = (i) => (num(i, "request_rate") ? `${brief(num(i, "request_rate"))} req/s` : `batch ${brief(num(i, "batch"))}`);
  const open = (i) => el("button", { type: "button", class: "plainly", "data-key": `pair ${state.data.keys[i]}`, onclick: () => openDetail(i) }, withError(i, "output_tokens_per_s"));
  table.tBodies[0].replaceChildren(...found.slice(0, MOST_PAIRS).map((p) => el("tr", {},
    el("td", { class: "name" }, label(p.cell, ["model", "shape", ...["device", "target", "workload", "tp", "pp", "replicas"].filter((n) => state.data.dimensions[n].names.length > 1)]) + (p.best ? ", each at the fastest batch measured" : "")),
    el("td", {}, precision(p.cell)), el("td", {}, at(p.cell)), el("td", { class: "num" }, open(p.cell)), el("td", {}, dim(p.base, "precision")), el("td", {}, at(p.base)), el("td", { class: "num" }, open(p.base)),
    el("td", { class: "num" }, `${brief(p.ratio)} x`), el("td", { class: "num" }, p.low === null ? "-" : `${brief(p.low)} to ${brief(p.high)}`), el("td", { class: "num" }, `${state.data.repeats[p.cell]}/${state.data.repeats[p.base]}`),
    el("td", {}, el("span", { class: `verdict ${{ faster: "pass", slower: "fail" }[p.verdict] ?? "inconclusive"}` }, p.verdict)))));
  document.getElementById("precisions-note").textContent = `${found.length > MOST_PAIRS ? `${MOST_PAIRS} of ${found.length} pairs shown; filter to see others. ` : ""}Ratios of geometric means over repeats; tok/s are arithmetic means, newest version. Verdicts hold for all pairs together (Holm, 5%); a side with one run gets none.`;
}
