"use strict";
// What a manager reads in ten seconds: one sentence and a handful of tiles, always of the cells the filters leave.

function drawSummary() {
  const rows = state.rows.filter(ok);
  const fastest = best(rows, "output_tokens_per_s");
  document.getElementById("headline").replaceChildren(...headline(rows, fastest));
  const tiles = [
    tile(fastest, "Highest throughput", "output_tokens_per_s"),
    tile(best(rows, "output_tokens_per_s_per_user"), "Fastest for one user", "output_tokens_per_s_per_user"),
    tile(best(rows, "ttft_p50_ms", false), "Lowest TTFT, median", "ttft_p50_ms"),
    tile(best(rows, "tpot_p50_ms", false), "Lowest TPOT, median", "tpot_p50_ms"),
    gainTile(rows), publishedTile(rows), limitTile(rows),
    tile(best(rows, "energy_per_output_token_j", false), "Least energy per token", "energy_per_output_token_j"),
    healthTile(),
  ];
  document.getElementById("tiles").replaceChildren(...tiles.filter(Boolean));
}

function headline(rows, fastest) {
  if (fastest === null) return [state.rows.length ? "No cell here has a throughput." : "No cell passes the filters."];
  const out = ["Fastest: ", el("b", {}, `${compact(mean(fastest, "output_tokens_per_s"))} tok/s`), ` with ${cellLabel(fastest)} on ${dim(fastest, "device")}. `];
  const gain = gains(rows)[0];
  if (gain) out.push(el("b", {}, `${gain.precision} is ${gain.ratio.toFixed(2)} x as fast as ${gain.base}`), ` over ${gain.count} matched cells. `);
  const lost = state.rows.filter((i) => !ok(i)).length;
  if (lost) out.push(`${lost} of ${state.rows.length} cells did not finish.`);
  return out;
}

function tile(i, what, figure) {
  if (i === null) return null;
  const [value, spread] = withError(i, figure).split(" ± ");
  return box(what, [value, " ", el("small", {}, (spread ? `± ${spread} ` : "") + unit(figure))], cellLabel(i), "", () => openDetail(i));
}

function box(what, value, where, kind = "", onclick = null) {
  return el(onclick ? "button" : "div", { class: `tile ${kind}`, type: onclick ? "button" : null, onclick: onclick || undefined },
    el("div", { class: "what" }, what), el("div", { class: "value" }, value), el("div", { class: "where" }, where));
}

// Geometric mean of throughput ratios to the widest precision, over cells alike in all else; best first.
function gains(rows) {
  const base = ["bf16", "fp16", "fp32"].find((p) => rows.some((i) => dim(i, "precision") === p));
  if (!base) return [];
  const rest = dimensionNames().filter((n) => !["precision", "kv_dtype", "version"].includes(n));
  const value = (i) => mean(i, "output_tokens_per_s");
  const bases = new Map(rows.filter((i) => dim(i, "precision") === base && value(i)).map((i) => [label(i, rest), value(i)]));
  const found = groupBy(rows.filter((i) => dim(i, "precision") !== base && value(i) && bases.has(label(i, rest))), (i) => dim(i, "precision"));
  return [...found].map(([precision, members]) => {
    const logs = members.map((i) => Math.log(value(i) / bases.get(label(i, rest))));
    return { precision, base, count: logs.length, ratio: Math.exp(logs.reduce((a, b) => a + b, 0) / logs.length) };
  }).sort((a, b) => b.ratio - a.ratio);
}

function gainTile(rows) {
  const found = gains(rows);
  if (!found.length) return null;
  const where = found.map((g) => `${g.precision} ${g.ratio.toFixed(2)} x`).join(", ");
  return box(`Speed-up over ${found[0].base}`, [found[0].ratio.toFixed(2), " ", el("small", {}, `x, ${found[0].precision}`)], `${where}; geometric means over ${found[0].count} cells`);
}

function publishedTile(rows) {
  const shown = new Set(rows);
  const found = state.data.published.filter((p) => shown.has(p.cell) && p.same_gpu && !p.implausible);
  if (!found.length) return null;
  const hardest = [...groupBy(found, (p) => p.cell).values()].map((ps) => ps.reduce((a, b) => (a.ratio < b.ratio ? a : b)));
  const worst = hardest.reduce((a, b) => (a.ratio < b.ratio ? a : b));
  const ahead = hardest.filter((p) => p.ratio >= 1).length;
  return box("Ahead of the best published", [`${ahead} of ${hardest.length}`, " ", el("small", {}, "cases, same GPU")],
    `hardest: ${worst.ratio.toFixed(2)} x ${worst.source}, ${worst.model} ${worst.precision} ${worst.isl}/${worst.osl}`, ahead === hardest.length ? "good" : "");
}

function limitTile(rows) {
  const reach = (i) => Math.max(mean(i, "mfu") ?? 0, mean(i, "mbu") ?? 0);
  const found = rows.filter((i) => reach(i) > 0);
  if (!found.length) return null;
  const top = found.reduce((a, b) => (reach(b) > reach(a) ? b : a));
  const kind = (mean(top, "mfu") ?? 0) >= (mean(top, "mbu") ?? 0) ? "compute (MFU)" : "memory bandwidth (MBU)";
  return box("Nearest to the hardware's limit", [`${Math.round(100 * reach(top))}%`, " ", el("small", {}, kind)], cellLabel(top), "", () => openDetail(top));
}

function healthTile() {
  const lost = state.rows.filter((i) => !ok(i)).length;
  const suspect = state.rows.filter((i) => ok(i) && state.data.warnings[i]).length;
  const value = lost ? [`${lost}`, " ", el("small", {}, "did not finish")] : suspect ? [`${suspect}`, " ", el("small", {}, "with warnings")] : ["all fine"];
  return box(`${state.rows.length.toLocaleString("en-US")} cells`, value, lost && suspect ? `${suspect} more with warnings` : lost || suspect ? "see Status in the table" : "no failure, no warning", lost ? "bad" : suspect ? "" : "good");
}
