"use strict";
// One cell in full: what limits it, its repeats, percentiles, what went on in a run, every figure, versions, where it ran and the command.

const LATENCIES = ["ttft", "tpot", "itl", "e2e", "queue"];
const LADDER = ["mean", "p50", "p90", "p95", "p99", "max"];
let opener = null;

function openDetail(i, from = null) {
  const dialog = document.getElementById("detail");
  const d = state.data;
  if (!dialog.open) opener = from ?? document.activeElement;
  const latencies = LATENCIES.filter((m) => mean(i, `${m}_p50_ms`) !== null);
  const plots = [];
  const chart = (spec, title, kind = "") => {
    const node = el("div", { class: `plot ${kind}` });
    plots.push([node, spec]);
    return el("div", {}, title ? el("h4", {}, title) : null, node);
  };
  const profiled = d.profiles.filter((p) => p.cells.includes(i));
  dialog.replaceChildren(...[
    el("div", { class: "bar tight" }, el("h2", { id: "detail-h", tabindex: "-1" }, cellLabel(i)), el("button", { type: "button", id: "close", onclick: () => dialog.close() }, "Close")),
    el("p", { class: "note" }, [dim(i, "device"), dim(i, "target"), dim(i, "source"), `measured ${d.started[i].replace("T", " ")} UTC`, `cell ${d.keys[i]}`].filter(Boolean).join(" · ")),
    d.reasons[i] ? el("p", { class: "error" }, `${dim(i, "status")}: ${d.reasons[i]}`) : null,
    ...(d.warnings[i] ?? []).map((w) => el("p", { class: "warning" }, `Warning: ${w}`)),
    ...(ok(i) ? headFigures(i) : []),
    ...limitSection(i, profiled),
    ok(i) ? el("h3", {}, "Repeats") : null, ok(i) ? runsNote(i) : null,
    ...repeatPlots(i).map((spec) => chart(spec, null, "strip")),
    ...(latencies.length ? [el("h3", {}, "Latency percentiles"), el("div", { id: "detail-plot" }, chart(ladderPlot(i, latencies), null, "ladder")), percentileTable(i, latencies)] : []),
    ...withinSection(i, chart),
    ...(ok(i) ? [el("h3", {}, "Figures"), figureTable(i)] : []),
    versionsTable(i),
    el("h3", {}, "Repeat it"), commandLine(d.commands[d.command[i]] || "(the command was not recorded)"),
    el("h3", {}, "Environment"), environmentTable([d.environment[i]]),
  ].filter(Boolean));
  dialog.dataset.cell = d.keys[i];
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  document.getElementById("detail-h").focus();
  writeAddress(d.keys[i]);
  for (const [node, spec] of plots) plot(node, spec);
}

function closedDetail() {
  delete document.getElementById("detail").dataset.cell;
  hideTip();
  writeAddress(null);
  const again = opener?.isConnected ? opener : opener?.dataset?.key ? document.querySelector(`[data-key="${CSS.escape(opener.dataset.key)}"]`) : null;
  again?.focus({ preventScroll: true });
  opener = null;
}

function headFigures(i) {
  const shown = ["output_tokens_per_s", "output_tokens_per_s_per_gpu", "output_tokens_per_s_per_user", "ttft_p50_ms", "tpot_p50_ms", "energy_per_output_token_j", "mfu", "mbu"].filter((f) => mean(i, f) !== null && (f !== "output_tokens_per_s_per_gpu" || num(i, "gpus") > 1));
  const above = ["mfu", "mbu", "mfu_prefill", "mbu_prefill", "mfu_decode", "mbu_decode"].filter((f) => mean(i, f) > 1);
  return [
    el("dl", { class: "figures" }, shown.flatMap((f) => el("div", {}, el("dt", {}, words(f)), el("dd", {}, `${withError(i, f)} `, el("small", {}, unit(f)))))),
    above.length ? el("p", { class: "note" }, `${above.map(words).join(", ")}: ${ABOVE}.`) : null,
  ];
}

// What limits the cell: explain's parts where it was asked, else those of a profile, and how to ask.
function limitSection(i, profiled) {
  if (!ok(i)) return [];
  const found = state.data.explained[i], out = [el("h3", {}, "What limits it")];
  if (found) {
    const total = Object.values(found.parts_us_per_output_token).reduce((a, b) => a + b, 0);
    out.push(el("p", { class: "note" }, `${brief(found.us_per_output_token)} \u00b5s an output token, by its ${found.source}.`),
      partsTable(Object.entries(found.parts_us_per_output_token).map(([name, us]) => [name, us, us / total])),
      el("ul", { class: "advice" }, found.findings.map((f) => el("li", {}, [f.limit, f.change].filter(Boolean).join("; "), f.gain === null ? "" : ` (predicted ${signed(f.gain)} tokens/s)`))));
    if (found.note) out.push(el("p", { class: "note" }, `${found.note}.`));
  }
  const phases = Object.entries(state.data.within[i]?.phases ?? {}).filter(([, s]) => s > 0), whole = phases.reduce((sum, [, s]) => sum + s, 0);
  if (!found && !profiled.length && phases.length) out.push(el("p", { class: "note" }, "Where the time of its last run went, by the log of its steps:"), partsTable(phases.sort((a, b) => b[1] - a[1]).map(([name, s]) => [name, s, s / whole]), "s"));
  for (const p of profiled) {
    out.push(el("p", {}, p.href ? el("a", { href: p.href }, `Profile: kernels, roofline, timeline of ${p.steps} ${p.phase} steps`) : `Profile of ${p.steps} ${p.phase} steps`, `, ${brief(p.step_us)} \u00b5s a step, ${p.started}.`));
    if (!found) out.push(partsTable(p.parts));
  }
  if (!found) out.push(el("p", { class: "note" }, `${profiled.length ? "What would help" : "Neither explained nor profiled here. What limits it"} is said by this command, or for the fastest cells in the page by dashboard --explain 8:`), commandLine(`trtllm-bench explain ${state.data.paths[dim(i, "source")] ?? "RESULTS"}@${state.data.keys[i].slice(0, 8)}`));
  return out;
}

function partsTable(parts, unitName = "\u00b5s/token") {
  const most = Math.max(...parts.map(([, , share]) => share));
  return wrapped("Parts of the time", el("table", { class: "parts" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "part"), el("th", { scope: "col", class: "num" }, unitName), el("th", { scope: "col", class: "num" }, "share"), el("th", { scope: "col" }, "of the longest"))),
    el("tbody", {}, parts.map(([name, us, share]) => el("tr", {}, el("td", { title: name }, name.split(".").pop()), el("td", { class: "num" }, brief(us)), el("td", { class: "num" }, `${(100 * share).toFixed(1)}%`),
      el("td", { class: "wide" }, el("span", { class: "share", style: `width:${Math.max(0, 100 * share / most).toFixed(1)}%` })))))));
}

function repeatPlots(i) {
  return Object.entries(state.data.runs).filter(([, runs]) => runs[i].length > 1).map(([figure, runs]) => {
    const value = mean(i, figure), h = half(i, figure);
    return {
      label: `${words(figure)} of each run`, frame: { left: 46, top: 14, bottom: 38 }, x: { title: `${words(figure)} (${unit(figure)}): each run, and the mean with its interval`, zero: false, include: h === null ? [] : [value - h, value + h] }, y: { title: "", categories: ["mean", "runs"] },
      series: [
        { name: "runs", look: lookOf("", 0), line: false, points: runs[i].map((v, k) => ({ x: v, y: 1, hollow: true, text: `run ${k + 1}: ${brief(v)} ${unit(figure)}` })) },
        { name: "mean", look: lookOf("", 1), line: false, points: [{ x: value, y: 0, text: `mean ${withError(i, figure)} ${unit(figure)}\n${runsText(i)}` }] },
      ],
      rules: h === null ? [] : [{ x0: value - h, x1: value + h, y0: 0, y1: 0, class: "strong" }],
    };
  });
}

// A ladder: one line a latency, its percentiles along a logarithmic axis, named at the marks.
function ladderPlot(i, latencies) {
  latencies = [...latencies].reverse();
  const quantiles = LADDER.filter((q) => q !== "mean"), symbols = ["circle", "square", "triangle", "diamond", "star"];
  return {
    label: "Latency percentiles", frame: { left: 56, top: 14 }, x: { title: "latency (ms): circle p50, square p90, triangle p95, diamond p99, star max", log: true }, y: { title: "", categories: latencies.map((m) => m.toUpperCase()) },
    series: latencies.map((m, at) => ({
      name: m, look: { ...lookOf("", at), dash: "solid" }, points: quantiles.filter((q) => mean(i, `${m}_${q}_ms`) > 0).map((q) => ({
        x: mean(i, `${m}_${q}_ms`), y: at, symbol: symbols[quantiles.indexOf(q)], hollow: half(i, `${m}_${q}_ms`) === null, text: `${m.toUpperCase()} ${q}: ${withError(i, `${m}_${q}_ms`)} ms\n${runsText(i)}`,
      })),
    })),
  };
}

function wrapped(name, table) { return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": name }, table); }

function percentileTable(i, latencies) {
  const shown = LADDER.filter((q) => latencies.some((m) => mean(i, `${m}_${q}_ms`) !== null));
  return wrapped("Latency percentiles in ms", el("table", { id: "percentiles" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "ms"), shown.map((q) => el("th", { scope: "col", class: "num" }, q)))),
    el("tbody", {}, latencies.map((m) => el("tr", {}, el("td", { title: state.data.definitions[`${m}_p50_ms`].meaning }, m.toUpperCase()), shown.map((q) => el("td", { class: "num" }, brief(mean(i, `${m}_${q}_ms`)))))))));
}

// What went on in one run: tokens per second, power and clock over it, and requests as bars.
function withinSection(i, chart) {
  const found = state.data.within[i];
  if (!found) return [];
  const time = { title: "time since the first arrival (s)" };
  const line = (t, values, label, title, more = {}) => ({ label, x: time, y: { title, ...more }, series: [{ name: label, look: { ...lookOf("", 0), dash: "solid" }, marks: false, points: t.map((x, k) => ({ x, y: values[k] ?? NaN, text: "" })) }] });
  const out = [el("h3", {}, `Within run ${found.repeat + 1}`)];
  if (found.rate) out.push(chart(line(found.rate.t, found.rate.tokens_per_s, "Output tokens per second over the run", "output throughput (tok/s)"), null, "small"));
  const t = found.telemetry;
  if (t?.power_w) out.push(chart(line(t.t, t.power_w, "Board power over the run", "board power, all GPUs (W)"), null, "small"));
  if (t?.sm_clock_mhz) out.push(chart(line(t.t, t.sm_clock_mhz, "SM clock over the run", "SM clock, mean (MHz)", { zero: false }), null, "small"));
  out.push(el("h4", {}, "Requests"), requestBars(found));
  return out;
}

function requestBars(found) {
  const { names, bars, of } = found.requests, at = (name) => names.indexOf(name), w = 780, row = Math.max(3, Math.min(9, 330 / bars.length)), h = bars.length * row + 22;
  const x = (s) => 4 + s / found.duration_s * (w - 8);
  const parts = [["waiting", "intended", at("scheduled") >= 0 ? "scheduled" : "first_token", "wait"], ...(at("scheduled") >= 0 ? [["prefill", "scheduled", "first_token", "prefill"]] : []), ["decode", "first_token", "end", "decode"]];
  const ticks = linearTicks(0, found.duration_s, 8).filter((s) => s < found.duration_s * 0.97);
  return el("div", {}, svg("svg", { class: "requests", viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `${bars.length} of ${of} requests: waiting, prefill and decode over time` },
    bars.flatMap((bar, k) => parts.filter(([, from, to]) => bar[at(from)] !== null && bar[at(to)] > bar[at(from)]).map(([, from, to, kind]) => svg("rect", { x: x(bar[at(from)]), width: Math.max(0.3, x(bar[at(to)]) - x(bar[at(from)])), y: k * row, height: row * 0.8, class: kind }))),
    ticks.map((s) => svg("text", { x: x(s), y: h - 6, "text-anchor": s ? "middle" : "start", class: "note" }, `${brief(s)} s`))),
    el("p", { class: "note keys" }, parts.map(([name, , , kind]) => el("span", {}, el("i", { class: kind }), name)), `${bars.length === of ? `all ${of} requests` : `${bars.length} of ${of} requests, evenly by arrival`}, one a line${at("scheduled") < 0 ? "; the target does not say when it began: waiting is part of prefill" : ""}.`));
}

function figureTable(i) {
  const names = Object.keys(state.data.figures).filter((n) => mean(i, n) !== null && !LATENCIES.some((m) => n.startsWith(`${m}_`)));
  return wrapped("Figures of the cell", el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "figure"), el("th", { scope: "col", class: "num" }, "value"), el("th", { scope: "col", class: "num" }, "±"), el("th", { scope: "col" }, "unit"), el("th", { scope: "col" }, "definition"))),
    el("tbody", {}, names.map((n) => el("tr", {}, el("td", {}, words(n)), el("td", { class: "num" }, brief(mean(i, n))), el("td", { class: "num" }, half(i, n) === null ? "-" : spreadText(half(i, n))), el("td", {}, unit(n)), el("td", { class: "wide" }, state.data.definitions[n].meaning))))));
}

function runsNote(i) {
  const runs = state.data.runs.output_tokens_per_s?.[i] ?? [], repeats = state.data.repeats[i];
  const spread = repeats >= 3 ? "± is the half width of a 95% t interval over them" : repeats === 2 ? "± is half the distance between the two" : "one run says nothing about spread";
  return el("p", { class: "note" }, `${repeats} run${repeats > 1 ? "s" : ""}; ${spread}. ${runs.length > 1 ? `Output tok/s of each: ${runs.map((v) => brief(v)).join(", ")}.` : ""}`);
}

// Earlier and later measurements of the same case: what a reader names alike, whatever code, driver or limits made it.
function versionsTable(i) {
  const names = dimensionNames().filter((n) => !["version", "status"].includes(n));
  const same = label(i, names);
  const found = [];
  for (let j = 0; j < state.data.n; j++) if (ok(j) && label(j, names) === same) found.push(j);
  if (found.length < 2) return null;
  found.sort((a, b) => natural(state.data.started[a], state.data.started[b]));
  return el("div", {}, el("h3", {}, "Versions of this cell"), el("p", { class: "note" }, "The newest speaks for the cell everywhere on this page."), wrapped("Versions of this cell", el("table", {},
    el("thead", {}, el("tr", {}, ["measured", "revision", "output tok/s", "runs", "cell"].map((t) => el("th", { scope: "col" }, t)))),
    el("tbody", {}, found.map((j) => el("tr", {}, el("td", {}, state.data.started[j].replace("T", " ")), el("td", {}, (state.data.environments[state.data.environment[j]].git_revision ?? "").slice(0, 10)),
      el("td", {}, withError(j, "output_tokens_per_s")), el("td", {}, brief(state.data.repeats[j])), el("td", {}, j === i ? "this" : el("button", { type: "button", onclick: () => openDetail(j) }, "open"))))))));
}

function commandLine(text) {
  const button = el("button", { type: "button", onclick: async () => { try { await navigator.clipboard.writeText(text); } catch { getSelection().selectAllChildren(code); document.execCommand("copy"); } button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1200); } }, "Copy");
  const code = el("code", {}, text);
  return el("div", { class: "command" }, code, button);
}

function environmentTable(which) {
  const all = which.map((e) => state.data.environments[e]);
  const fields = [...new Set(all.flatMap((e) => Object.keys(e)))];
  return wrapped("Environment", el("table", {},
    el("tbody", {}, fields.map((f) => {
      const differs = all.some((e) => String(e[f] ?? "") !== String(all[0][f] ?? ""));
      return el("tr", { class: differs ? "differs" : "" }, el("th", { scope: "row" }, f.replaceAll("_", " ")), all.map((e) => el("td", {}, String(e[f] ?? "-"))));
    }))));
}
