"use strict";
// What a manager reads in ten seconds: one true sentence and a handful of tiles, always of the cells the filters leave.
// A winner is named with its interval; where others are not shown to be slower, or nothing was repeated, the sentence says so.

function drawSummary() {
  const whole = state.rows.filter((i) => ok(i) && !dim(i, "arm")), measured = whole.filter((i) => !predicted(i));
  const rows = measured.length ? measured : whole; // predictions are told of only where nothing was measured, and then as such
  const fastest = best(rows, "output_tokens_per_s");
  document.getElementById("headline").replaceChildren(...headline(rows, fastest));
  document.getElementById("notes").replaceChildren(...state.data.notes.map((text) => el("p", { class: "note" }, text)));
  const gates = state.data.gates.length && !rows.length;
  const tiles = gates ? [] : [
    tile(rows, fastest, "Highest throughput", "output_tokens_per_s"),
    tile(rows, best(rows, "output_tokens_per_s_per_user"), "Fastest for one user", "output_tokens_per_s_per_user"),
    tile(rows, best(rows, "ttft_p50_ms", false), "Lowest TTFT, median", "ttft_p50_ms"),
    tile(rows, best(rows, "tpot_p50_ms", false), "Lowest TPOT, median", "tpot_p50_ms"),
    gainTile(rows), publishedTile(rows), limitTile(rows),
    tile(rows, best(rows, "energy_per_output_token_j", false), "Least energy per token", "energy_per_output_token_j"),
    healthTile(),
  ];
  document.getElementById("tiles").replaceChildren(...tiles.filter(Boolean));
}

function headline(rows, fastest) {
  const { data } = state, lost = state.rows.filter((i) => !ok(i)).length;
  const failed = lost ? [`${lost} of ${state.rows.length} cells did not finish. `] : [];
  if (data.gates.length) return [...gateSentence(), ...failed];
  if (!data.n) return [runningNow() ? "No cell has been measured yet." : data.notes.length ? "Nothing to show." : "There are no cells here."];
  if (fastest === null) return state.rows.length ? [...failed, lost === state.rows.length ? "No cell here has a result." : "No cell here has a throughput."] : ["No cell passes the filters."];
  const out = [...(data.comparison ? comparisonSentence() : []), predicted(fastest) ? "Nothing here was measured. Predicted fastest: " : "Fastest: ", el("b", {}, `${withError(fastest, "output_tokens_per_s")} tok/s`), ` with ${cellLabel(fastest)} on ${dim(fastest, "device")} (${runsText(fastest)})`, doubt(fastest), rivals(rows, fastest, "output_tokens_per_s"), ". "];
  const pair = bestPair(rows);
  if (pair) out.push(...pairSentence(pair));
  return [...out, ...failed];
}

// Why a throughput cannot be, by what it asks of its GPUs.
function doubt(i) {
  const text = state.data.doubts[i];
  return text ? `; ${text}` : "";
}

// Cells of the same case that are not shown to be worse than the best one.
function rivals(rows, i, figure) {
  const alike = rows.filter((j) => j !== i && caseOf(j) === caseOf(i) && mean(j, figure) !== null);
  const equal = alike.filter((j) => !apart(i, j, figure) && Math.abs(mean(j, figure) / mean(i, figure) - 1) < CLOSE);
  if (!equal.length) return "";
  return state.data.repeats[i] < 3 ? `; ${equal.length} within ${100 * CLOSE}% of it, inconclusive without three runs each` : `; inconclusive against ${equal.length} within ${100 * CLOSE}% of it`;
}
const CLOSE = 0.1;

// Of the pairs shown, the best against the best where there is one, else the matched pair of the fastest cell.
function bestPair(rows) {
  const shown = new Set(rows);
  const rate = (p) => mean(p.cell, "output_tokens_per_s_per_gpu") ?? mean(p.cell, "output_tokens_per_s");
  const better = (a, b) => (a.verdict !== "inconclusive") - (b.verdict !== "inconclusive") || a.best - b.best || rate(a) - rate(b);
  return state.data.pairs.filter((p) => shown.has(p.cell) && shown.has(p.base)).reduce((a, b) => (a === null || better(b, a) > 0 ? b : a), null);
}

function pairSentence(p) {
  const fast = dim(p.cell, "precision"), base = dim(p.base, "precision");
  const loads = load(p.cell) === load(p.base) ? `${label(p.cell, ["model", "shape", "batch", "request_rate"])}` : `${label(p.cell, ["model", "shape"])}, each at the fastest batch measured (${brief(load(p.cell))} and ${brief(load(p.base))})`;
  if (p.verdict === "inconclusive") return [el("b", {}, `${fast} against ${base} is inconclusive`), ` (${pairText(p)}; ${loads}). `];
  return [el("b", {}, `${fast} is ${brief(p.ratio)} x as fast as ${base}`), ` (${pairText(p)}; ${loads}). `];
}

function pairText(p) {
  const n = [state.data.repeats[p.cell], state.data.repeats[p.base]];
  return p.low === null ? `ratio ${brief(p.ratio)}, ${n[0]} against ${n[1]} run${n[1] > 1 ? "s" : ""}: no interval without two on each side` : `95% interval ${brief(p.low)} to ${brief(p.high)}, ${n[0]} and ${n[1]} runs`;
}

function tile(rows, i, what, figure) {
  if (i === null) return null;
  const h = half(i, figure), wide = h !== null && h > mean(i, figure) / 2;
  const value = [brief(mean(i, figure)), " ", el("small", {}, `${h === null ? "" : `± ${spreadText(h)} `}${unit(figure)}`)];
  const spread = wide ? "inconclusive: runs differ by more than half of it; " : "";
  return box(what, value, `${cellLabel(i)}; ${spread}${runsText(i)}${doubt(i)}${rivals(rows, i, figure)}`, "", () => openDetail(i));
}

function box(what, value, where, kind = "", onclick = null) {
  return el(onclick ? "button" : "div", { class: `tile ${kind}`, type: onclick ? "button" : null, onclick: onclick || undefined, "data-key": onclick ? `tile ${what}` : null },
    el("span", { class: "what" }, what), el("span", { class: "value" }, value), el("span", { class: "where" }, where));
}

function gainTile(rows) {
  const p = bestPair(rows);
  if (!p) return null;
  const value = p.verdict === "inconclusive" ? ["inconclusive"] : [brief(p.ratio), " ", el("small", {}, "x")];
  return box(`${dim(p.cell, "precision")} over ${dim(p.base, "precision")}`, value, pairText(p), "", () => document.getElementById("precisions-h").scrollIntoView());
}

function publishedTile(rows) {
  const shown = new Set(rows);
  const found = state.data.published.filter((p) => shown.has(p.cell) && p.same_gpu && !p.implausible);
  if (!found.length) return null;
  const hardest = [...groupBy(found, (p) => p.cell).values()].map((ps) => ps.reduce((a, b) => (a.ratio < b.ratio ? a : b)));
  const worst = hardest.reduce((a, b) => (a.ratio < b.ratio ? a : b));
  const ahead = hardest.filter((p) => p.ratio >= 1).length;
  return box("Ahead of the best published", [`${ahead} of ${hardest.length}`, " ", el("small", {}, "cases, same GPU")],
    `single figures, no interval; hardest: ${brief(worst.ratio)} x ${worst.source}, ${worst.model} ${worst.precision} ${worst.isl}/${worst.osl}`, ahead === hardest.length ? "good" : "");
}

function limitTile(rows) {
  const reach = (i) => Math.max(mean(i, "mfu") ?? 0, mean(i, "mbu") ?? 0);
  const found = rows.filter((i) => reach(i) > 0);
  if (!found.length) return null;
  const top = found.reduce((a, b) => (reach(b) > reach(a) ? b : a));
  const kind = (mean(top, "mfu") ?? 0) >= (mean(top, "mbu") ?? 0) ? "compute (MFU)" : "memory bandwidth (MBU)";
  return box("Nearest to the hardware's limit", [`${Math.round(100 * reach(top))}%`, " ", el("small", {}, kind)], `${cellLabel(top)}${reach(top) > 1 ? `; ${ABOVE}` : ""}`, "", () => openDetail(top));
}
const ABOVE = "above 100% because ceilings are measured with plain kernels (a copy, cuBLASLt's GEMMs) at the clocks of their own run: the engine's may do better";

function healthTile() {
  if (!state.rows.length) return null;
  const lost = state.rows.filter((i) => !ok(i)).length;
  const suspect = state.rows.filter((i) => ok(i) && state.data.warnings[i]).length;
  const running = runningNow();
  const value = lost ? [`${lost}`, " ", el("small", {}, "did not finish")] : suspect ? [`${suspect}`, " ", el("small", {}, "with warnings")] : [running ? "none failed so far" : "all fine"];
  return box(`${brief(state.rows.length)} cell${state.rows.length === 1 ? "" : "s"}`, value, lost && suspect ? `${suspect} more with warnings` : lost || suspect ? "open one in the table to see why" : running ? "the sweep goes on" : "no failure, no warning", lost ? "bad" : suspect || running ? "" : "good");
}
