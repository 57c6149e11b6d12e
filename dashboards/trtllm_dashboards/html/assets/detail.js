"use strict";
// One cell in full: percentiles, every figure, its runs, its earlier versions, where it ran and the command that repeats it.

const LATENCIES = ["ttft", "tpot", "itl", "e2e", "queue"];
const QUANTILES = ["mean", "p50", "p90", "p95", "p99", "max"];

function openDetail(i) {
  const dialog = document.getElementById("detail");
  const d = state.data;
  const latencies = LATENCIES.filter((m) => mean(i, `${m}_p50_ms`) !== null);
  const plot = latencies.length ? el("div", { class: "plot", id: "detail-plot" }) : null;
  dialog.replaceChildren(...[
    el("div", { class: "bar tight" }, el("h2", { id: "detail-h" }, cellLabel(i)), el("button", { type: "button", id: "close", onclick: () => dialog.close() }, "Close")),
    el("p", { class: "note" }, [dim(i, "device"), dim(i, "target"), dim(i, "source"), `measured ${d.started[i].replace("T", " ")} UTC`, `cell ${d.keys[i]}`].filter(Boolean).join(" · ")),
    d.reasons[i] ? el("p", { class: "error" }, `${dim(i, "status")}: ${d.reasons[i]}`) : null,
    d.profiles?.[d.keys[i]] ? el("p", {}, el("a", { href: d.profiles[d.keys[i]] }, "Profile of this cell: kernels, roofline, timeline")) : null,
    ...(d.warnings[i] ?? []).map((w) => el("p", { class: "warning" }, `Warning: ${w}`)),
    latencies.length ? el("h3", {}, "Latency percentiles (ms)") : null, plot, latencies.length ? percentileTable(i, latencies) : null,
    ok(i) ? el("h3", {}, "Figures") : null, ok(i) ? figureTable(i) : null,
    runsNote(i), versionsTable(i),
    el("h3", {}, "Repeat it"), commandLine(d.commands[d.command[i]] || "(the command was not recorded)"),
    el("h3", {}, "Environment"), environmentTable([d.environment[i]]),
  ].filter(Boolean));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  if (location.hash !== `#cell=${d.keys[i]}`) history.replaceState(null, "", `#cell=${d.keys[i]}`);
  if (plot && window.Plotly) drawPercentiles(plot, i, latencies);
}

function drawPercentiles(plot, i, latencies) {
  const quantiles = QUANTILES.filter((q) => q !== "mean");
  const traces = latencies.map((m, at) => {
    const look = lookOf(m, at);
    const shown = quantiles.filter((q) => mean(i, `${m}_${q}_ms`) !== null);
    return {
      x: shown, y: shown.map((q) => mean(i, `${m}_${q}_ms`)), name: m.toUpperCase(), mode: "lines+markers",
      error_y: { array: shown.map((q) => half(i, `${m}_${q}_ms`) ?? 0), thickness: 1, width: 3 }, line: { color: look.color }, marker: { color: look.color, symbol: look.symbol, size: 7 },
      hovertemplate: `${m.toUpperCase()} %{x}: <b>%{y:,.4~g} ms</b><extra></extra>`,
    };
  });
  const layout = layoutOf({ id: "detail" , x: "load", y: ["ttft_p50_ms"], ylog: true }, traces);
  Plotly.react(plot, traces, { ...layout, xaxis: { gridcolor: css("--rule"), type: "category", title: { text: "percentile over requests" } }, yaxis: { ...layout.yaxis, title: { text: "latency (ms)" } } }, { responsive: true, displayModeBar: false });
}

function wrapped(table) { return el("div", { class: "scroll" }, table); }

function percentileTable(i, latencies) {
  const shown = QUANTILES.filter((q) => latencies.some((m) => mean(i, `${m}_${q}_ms`) !== null));
  return wrapped(el("table", { id: "percentiles" },
    el("thead", {}, el("tr", {}, el("th", {}, "ms"), shown.map((q) => el("th", { class: "num" }, q)))),
    el("tbody", {}, latencies.map((m) => {
      const count = places(shown.map((q) => mean(i, `${m}_${q}_ms`)));
      return el("tr", {}, el("td", { title: state.data.definitions[`${m}_p50_ms`].meaning }, m.toUpperCase()), shown.map((q) => el("td", { class: "num" }, fixed(mean(i, `${m}_${q}_ms`), count))));
    }))));
}

function figureTable(i) {
  const names = Object.keys(state.data.figures).filter((n) => mean(i, n) !== null && !LATENCIES.some((m) => n.startsWith(`${m}_`)));
  return wrapped(el("table", {},
    el("thead", {}, el("tr", {}, el("th", {}, "figure"), el("th", { class: "num" }, "value"), el("th", { class: "num" }, "±"), el("th", {}, "unit"), el("th", {}, "definition"))),
    el("tbody", {}, names.map((n) => {
      const h = half(i, n), count = places([mean(i, n), h].filter((v) => v));
      return el("tr", {}, el("td", {}, words(n)), el("td", { class: "num" }, fixed(mean(i, n), count)), el("td", { class: "num" }, h === null ? "-" : fixed(h, count)), el("td", {}, unit(n)), el("td", { class: "wide" }, state.data.definitions[n].meaning));
    }))));
}

function runsNote(i) {
  const runs = state.data.runs[i], repeats = state.data.repeats[i];
  if (!ok(i)) return null;
  const spread = repeats >= 3 ? "± is the half width of a 95% t interval over them" : repeats === 2 ? "± is half the distance between the two" : "one run says nothing about spread";
  return el("p", { class: "note" }, `${repeats} run${repeats > 1 ? "s" : ""}; ${spread}. ${runs.length > 1 ? `Output tok/s of each: ${runs.map((v) => plain(v)).join(", ")}.` : ""}`);
}

// Earlier and later measurements of the same case: what a reader names alike, whatever code, driver or limits made it.
function versionsTable(i) {
  const names = dimensionNames().filter((n) => !["version", "status"].includes(n));
  const same = label(i, names);
  const found = [];
  for (let j = 0; j < state.data.n; j++) if (ok(j) && label(j, names) === same) found.push(j);
  if (found.length < 2) return null;
  found.sort((a, b) => natural(state.data.started[a], state.data.started[b]));
  return el("div", {}, el("h3", {}, "Versions of this cell"), wrapped(el("table", {},
    el("thead", {}, el("tr", {}, ["measured", "revision", "output tok/s", "cell"].map((t) => el("th", {}, t)))),
    el("tbody", {}, found.map((j) => el("tr", {}, el("td", {}, state.data.started[j].replace("T", " ")), el("td", {}, (state.data.environments[state.data.environment[j]].git_revision ?? "").slice(0, 10)),
      el("td", {}, withError(j, "output_tokens_per_s")), el("td", {}, j === i ? "this" : el("button", { type: "button", onclick: () => openDetail(j) }, "open"))))))));
}

function commandLine(text) {
  const button = el("button", { type: "button", onclick: async () => { try { await navigator.clipboard.writeText(text); } catch { getSelection().selectAllChildren(code); document.execCommand("copy"); } button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1200); } }, "Copy");
  const code = el("code", {}, text);
  return el("div", { class: "command" }, code, button);
}

function environmentTable(which) {
  const all = which.map((e) => state.data.environments[e]);
  const fields = [...new Set(all.flatMap((e) => Object.keys(e)))];
  return wrapped(el("table", {},
    el("tbody", {}, fields.map((f) => {
      const differs = all.some((e) => String(e[f] ?? "") !== String(all[0][f] ?? ""));
      return el("tr", { class: differs ? "differs" : "" }, el("td", {}, f.replaceAll("_", " ")), all.map((e) => el("td", {}, String(e[f] ?? "-"))));
    }))));
}
