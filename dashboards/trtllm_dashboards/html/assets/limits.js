"use strict";
// Which settings of one case meet a service's limits: a card for each that does, the front of throughput against speed among them, and a
// map of batch and shape over the model's cases. A cell meets a limit when its interval does; where only the mean does, or nothing was repeated, the card says so.

const LIMITED = ["ttft", "tpot", "e2e"];
const QUANTILES = ["p50", "p90", "p95", "p99", "max", "mean"];
const MOST_CARDS = 12;

function startLimits() {
  const box = document.getElementById("limit-inputs");
  const number = (name, text, hint) => el("label", {}, text, el("input", { type: "number", min: "0", step: "any", inputmode: "decimal", id: `limit-${name}`, placeholder: hint, oninput: (e) => { const v = Number(e.target.value); if (v > 0) state.limits[name] = v; else delete state.limits[name]; drawLimits(); writeAddress(); } }));
  box.replaceChildren(
    el("label", {}, "percentile ", el("select", { id: "limit-quantile", onchange: (e) => { state.quantile = e.target.value; drawLimits(); writeAddress(); } }, QUANTILES.map((q) => el("option", { value: q }, q)))),
    ...LIMITED.map((name) => number(name, `${name.toUpperCase()} at most (ms) `, "any")),
    el("label", {}, "price (USD per GPU hour) ", el("input", { type: "number", min: "0", step: "any", id: "price", placeholder: "none", oninput: (e) => { state.price = Number(e.target.value) > 0 ? Number(e.target.value) : null; drawLimits(); writeAddress(); } })),
    el("label", {}, "for ", el("select", { id: "group", onchange: (e) => { state.group = e.target.value; drawLimits(); writeAddress(); } })));
}

function fillLimits() {
  for (const name of LIMITED) document.getElementById(`limit-${name}`).value = state.limits[name] ?? "";
  document.getElementById("limit-quantile").value = state.quantile;
  document.getElementById("price").value = state.price ?? "";
}

function limitFigure(name) { return `${name}_${state.quantile}_ms`; }

// "meets", "perhaps" (the mean does, its interval does not, or there is none), "misses", or "unknown" (not measured).
function meets(i) {
  let found = "meets";
  for (const [name, limit] of Object.entries(state.limits)) {
    const value = mean(i, limitFigure(name)), h = half(i, limitFigure(name));
    if (value === null) return "unknown";
    if (value > limit) return "misses";
    if (h === null || state.data.repeats[i] < 3 || value + h > limit) found = "perhaps";
  }
  return found;
}

function groupOf(i) { return `${caseOf(i)}, ${dim(i, "device")}`; }
function priceOf(i) { return state.price ?? state.data.prices[dim(i, "device")]?.usd ?? null; }
function costOf(i) { const rate = mean(i, "output_tokens_per_s"); return rate ? costAt(i, rate) : null; }
function costAt(i, rate) { const price = priceOf(i); return price ? price * num(i, "gpus") / 3600 / rate * 1e6 : null; }
// The interval of throughput, inverted: half its width beside the cost, its ends on hover.
function costShown(i) {
  const rate = mean(i, "output_tokens_per_s"), h = half(i, "output_tokens_per_s"), cost = brief(costOf(i));
  if (h === null) return { text: cost };
  if (h >= rate) return { text: cost, title: `from ${brief(costAt(i, rate + h))} upwards, since the interval of throughput reaches 0` };
  const [low, high] = [costAt(i, rate + h), costAt(i, rate - h)];
  return { text: `${cost} ± ${spreadText((high - low) / 2)}`, title: `${brief(low)} to ${brief(high)}, by the interval of throughput` };
}

function drawLimits() {
  const rows = state.rows.filter((i) => ok(i) && mean(i, "output_tokens_per_s") !== null);
  const section = document.getElementById("limits");
  section.hidden = !rows.length || rows.every((i) => dim(i, "arm"));
  if (section.hidden) return;
  const groups = [...groupBy(rows, groupOf)].sort((a, b) => b[1].length - a[1].length || natural(a[0], b[0]));
  state.firstGroup = groups[0][0];
  if (!groups.some(([name]) => name === state.group)) state.group = state.firstGroup;
  const select = document.getElementById("group");
  select.replaceChildren(...groups.map(([name, members]) => el("option", { value: name, selected: name === state.group }, `${name} (${members.length})`)));
  select.parentElement.hidden = groups.length < 2;
  const members = groups.find(([name]) => name === state.group)[1];
  const verdicts = new Map(members.map((i) => [i, meets(i)]));
  const fit = members.filter((i) => ["meets", "perhaps"].includes(verdicts.get(i))).sort((a, b) => mean(b, "output_tokens_per_s_per_gpu") - mean(a, "output_tokens_per_s_per_gpu"));
  const asked = Object.entries(state.limits).map(([name, v]) => `${name.toUpperCase()} ${state.quantile} at most ${brief(v)} ms`).join(", ");
  const sure = fit.filter((i) => verdicts.get(i) === "meets").length, unknown = members.filter((i) => verdicts.get(i) === "unknown").length;
  document.getElementById("limits-said").textContent = asked
    ? `${fit.length} of ${members.length} cells have means within ${asked}; ${sure} of them with their 95% interval.${unknown ? ` ${unknown} cells were measured without these figures.` : ""}`
    : `No limit is set: ${members.length === 1 ? "the one cell" : `all ${members.length} cells`} of ${state.group}, the most throughput per GPU first.`;
  const shown = state.allCards ? fit : fit.slice(0, MOST_CARDS);
  document.getElementById("cards").replaceChildren(...shown.map((i) => card(i, verdicts.get(i))));
  const more = document.getElementById("more-cards");
  more.hidden = fit.length <= shown.length;
  more.textContent = `Show all ${fit.length}`;
  more.onclick = () => { state.allCards = true; drawLimits(); };
  const note = state.price ? `Cost at ${brief(state.price)} USD for an hour of one GPU, as given; the GPUs alone.` : state.data.prices[dim(members[0], "device")]?.note;
  document.getElementById("price-note").textContent = note ? (state.price ? note : `Cost: ${note}; give your own above.`) : "No list price is known for this device: give one above to see cost.";
  plot(document.getElementById("front"), frontPlot(members, verdicts));
  const alike = rows.filter((i) => dim(i, "model") === dim(members[0], "model") && dim(i, "device") === dim(members[0], "device"));
  drawMap(alike, new Map(alike.map((i) => [i, meets(i)])));
}

function card(i, verdict) {
  const lines = [
    ["per GPU", "output_tokens_per_s_per_gpu"], ["per user", "output_tokens_per_s_per_user"], [`TTFT ${state.quantile}`, limitFigure("ttft")], [`TPOT ${state.quantile}`, limitFigure("tpot")],
    [`E2E ${state.quantile}`, limitFigure("e2e")], ["energy", "energy_per_output_token_j"],
  ].filter(([, figure]) => mean(i, figure) !== null).map(([text, figure]) => [el("dt", {}, text), el("dd", {}, `${withError(i, figure)} `, el("small", {}, unit(figure)))]);
  if (costOf(i) !== null) {
    const { text, title } = costShown(i);
    lines.push([el("dt", {}, "cost"), el("dd", { title }, `${text} `, el("small", {}, "USD/Mtok"))]);
  }
  const limits = Object.keys(state.limits).length;
  return el("article", { class: `card ${Object.keys(state.limits).length ? verdict : ""}` },
    el("h3", {}, el("button", { type: "button", class: "plainly", "data-key": `card ${state.data.keys[i]}`, onclick: () => openDetail(i) }, cellLabel(i).replace(`${dim(i, "model")}, `, ""))),
    el("dl", {}, lines.flat()),
    el("p", { class: "note" }, (limits ? (verdict === "meets" ? "meets the limits, interval included; " : "mean within the limits, not shown beyond the noise; ") : "") + runsText(i)));
}

// The best in both: no other of these cells is better in one and as good in the other.
function frontOf(rows, x, y) {
  const found = [];
  for (const i of rows.filter((j) => mean(j, x) !== null && mean(j, y) !== null).sort((a, b) => mean(b, x) - mean(a, x) || mean(b, y) - mean(a, y))) {
    if (!found.length || mean(i, y) > mean(found[found.length - 1], y)) found.push(i);
  }
  return found.reverse();
}

function frontPlot(members, verdicts) {
  const x = "output_tokens_per_s_per_user", y = "output_tokens_per_s_per_gpu";
  const good = lookOf("", 1), bad = { color: css("--soft"), symbol: "circle", dash: "solid" };
  const fits = members.filter((i) => ["meets", "perhaps"].includes(verdicts.get(i))), rest = members.filter((i) => !fits.includes(i));
  const points = (rows) => rows.filter((i) => mean(i, x) !== null && mean(i, y) !== null).map((i) => pointOf(i, x, y));
  const front = frontOf(fits, x, y).map((i) => pointOf(i, x, y));
  const least = state.limits.tpot ? 1000 / state.limits.tpot : null;
  return {
    label: "Throughput per GPU against speed per user, cells that meet the limits and their Pareto front",
    x: { title: "speed per user (tok/s/user)", log: true }, y: { title: "output throughput per GPU (tok/s/GPU)", log: true },
    regions: least ? [{ x0: least, text: `TPOT at most ${brief(state.limits.tpot)} ms` }] : [],
    series: [{ name: "front", look: { ...good, dash: "solid" }, points: front, marks: false }, { name: "beyond the limits", look: bad, line: false, points: points(rest).map((p) => ({ ...p, size: 3.4 })) }, { name: "within the limits", look: good, line: false, points: points(fits) }],
  };
}

// Batch across, shape down: the most throughput per GPU of any precision and layout there, and whether it meets the limits.
function drawMap(members, verdicts) {
  const figure = "output_tokens_per_s_per_gpu";
  const placed = members.filter((i) => mean(i, figure) !== null);
  const column = (i) => (num(i, "request_rate") ? `${brief(num(i, "request_rate"))}/s` : brief(num(i, "batch")));
  const across = [...new Map(placed.map((i) => [column(i), [num(i, "request_rate") > 0, load(i)]]))].sort((a, b) => a[1][0] - b[1][0] || a[1][1] - b[1][1]).map(([text]) => text);
  const down = [...new Set(placed.map((i) => dim(i, "shape")))].sort(natural);
  const order = { meets: 3, perhaps: 2, unknown: 1, misses: 0 }, cells = new Map();
  for (const i of placed) {
    const key = `${dim(i, "shape")} ${column(i)}`, now = cells.get(key);
    if (now === undefined || order[verdicts.get(i)] > order[verdicts.get(now)] || (verdicts.get(i) === verdicts.get(now) && mean(i, figure) > mean(now, figure))) cells.set(key, i);
  }
  const top = Math.max(...placed.map((i) => mean(i, figure)));
  const one = (i) => {
    if (i === undefined) return el("td", { class: "none" }, el("span", { class: "hidden" }, "not measured"));
    const verdict = verdicts.get(i), share = mean(i, figure) / top, good = verdict === "meets" || verdict === "perhaps";
    return el("td", { class: `heat ${verdict}`, style: good ? `--share:${Math.round(100 * Math.sqrt(share))}%` : null },
      el("button", { type: "button", "data-key": `map ${state.data.keys[i]}`, title: `${cellLabel(i)}: ${withError(i, figure)} ${unit(figure)}`, onclick: () => openDetail(i) }, brief(mean(i, figure)),
        el("span", { class: "mark" }, dim(i, "precision") + (good ? "" : verdict === "misses" ? ", over a limit" : ", unknown"))));
  };
  const table = document.getElementById("map");
  document.getElementById("map-said").textContent = "Most output tokens/s per GPU by batch or rate (across) and ISL/OSL (down), of the best precision and layout that meets the limits.";
  heads(table, [el("th", { scope: "col" }, "ISL/OSL"), ...across.map((text) => el("th", { scope: "col", class: "num" }, text))]);
  table.tBodies[0].replaceChildren(...down.map((shape) => el("tr", {}, el("th", { scope: "row" }, shape), across.map((text) => one(cells.get(`${shape} ${text}`))))));
}
