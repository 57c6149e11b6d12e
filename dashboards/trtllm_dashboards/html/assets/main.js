"use strict";
// Starts the page, keeps it in step with the filters, the theme, the address and, when live, the server.

const MOST_COMMANDS = 12, MOST_ENVIRONMENTS = 8, MOST_PUBLISHED = 300;
const darkQuery = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";

function dark() { return document.documentElement.dataset.theme === "dark"; }

function applyTheme(next) {
  theme = next;
  document.documentElement.dataset.theme = theme === "auto" ? (darkQuery.matches ? "dark" : "light") : theme;
  document.getElementById("theme").textContent = `Theme: ${theme}`;
  try { localStorage.setItem("theme", theme); } catch { /* a file without storage keeps no choice */ }
  if (!state.data) return;
  drawGates();
  drawLimits();
  staleCharts();
}

// After a filter: the sentence, the tiles and the table at once; what takes longer in the turns after, so that a click is never waited for.
let waiting = [];
function changed() {
  state.page = 0;
  keepingFocus(drawFirst);
  writeAddress();
  if (!waiting.length) setTimeout(drawWaiting, 0);
  waiting = [drawCharts, drawLimits, drawPrecisions];
}

function drawWaiting() {
  const next = waiting.shift();
  if (!next) return;
  keepingFocus(next);
  if (waiting.length) setTimeout(drawWaiting, 0); else writeAddress();
}

function drawFirst() {
  const { rows, counts } = passing();
  select(rows);
  drawFilters(counts);
  drawSummary();
  drawTable();
}

function redraw() {
  drawFirst();
  drawLimits();
  drawPrecisions();
  drawCharts();
}

function show(data) {
  const first = state.data === null;
  state.data = data;
  document.title = data.title ? `${data.title}, trtllm-bench` : "trtllm-bench";
  document.getElementById("title").textContent = data.title || "trtllm-bench";
  document.getElementById("stamp").textContent = `trtllm-bench, ${brief(data.n)} cells, written ${data.generated.slice(0, 16).replace("T", " ")} UTC`;
  let cell = null;
  if (first) { startLimits(); cell = readAddress(); fillLimits(); }
  startColumns();
  if (!cards.size) buildCharts();
  drawProgress();
  keepingFocus(() => {
    redraw();
    drawGates();
    drawComparison();
    drawGpus();
    drawPublished();
    drawProfiles();
    drawEnvironment();
  });
  return cell;
}

function drawPublished() {
  const found = state.data.published;
  const section = document.getElementById("published");
  section.hidden = !found.length;
  if (!found.length) return;
  const table = section.querySelector("table");
  const near = found.filter((p) => p.same_gpu);
  const all = state.allPublished || !near.length;
  const shown = all ? found : near;
  const more = document.getElementById("more-published");
  more.hidden = shown.length === found.length;
  more.textContent = `Show the ${found.length - shown.length} on other GPUs`;
  more.onclick = () => { state.allPublished = true; drawPublished(); };
  heads(table, ["case", "GPU", "ours, tok/s", "published, tok/s", "ratio", "source", "their GPU", "what differs"].map((t, at) => el("th", { scope: "col", class: at >= 2 && at <= 4 ? "num" : "" }, t)));
  table.tBodies[0].replaceChildren(...shown.slice(0, MOST_PUBLISHED).map((p) => el("tr", {},
    el("td", {}, `${p.model} ${p.precision} ${p.isl}/${p.osl}${p.tp > 1 ? ` tp ${p.tp}` : ""}`), el("td", {}, p.gpu), el("td", { class: "num" }, withError(p.cell, "output_tokens_per_s")), el("td", { class: "num" }, brief(p.theirs)),
    el("td", { class: `num ${p.same_gpu ? (p.ratio >= 1 ? "ok" : "failed") : ""}` }, `${brief(p.ratio)} x`), el("td", {}, p.source), el("td", {}, p.their_gpu), el("td", { class: "wide" }, p.differs))));
}

function drawProfiles() {
  const found = state.data.profiles, section = document.getElementById("profiles");
  section.hidden = !found.length;
  const table = section.querySelector("table");
  heads(table, ["profile", "steps", "\u00b5s a step", "longest op", "recorded", "cell"].map((t, at) => el("th", { scope: "col", class: at === 2 ? "num" : "" }, t)));
  table.tBodies[0].replaceChildren(...found.map((p) => el("tr", {},
    el("td", {}, p.href ? el("a", { href: p.href }, p.label) : p.label), el("td", {}, `${p.steps} ${p.phase}`), el("td", { class: "num" }, brief(p.step_us)),
    el("td", {}, p.parts.length ? `${p.parts[0][0].split(".").pop()}, ${(100 * p.parts[0][2]).toFixed(1)}%` : "-"), el("td", {}, p.started.replace("T", " ")),
    el("td", {}, p.cells.length ? el("button", { type: "button", "data-key": `profiled ${p.label}`, onclick: () => openDetail(p.cells[0]) }, "open") : "not among these cells"))));
}

function drawEnvironment() {
  const section = document.getElementById("environment");
  const count = state.data.environments.length;
  section.hidden = !count;
  const shown = [...Array(Math.min(count, MOST_ENVIRONMENTS)).keys()];
  section.querySelector(".scroll").replaceWith(environmentTable(shown));
  const commands = state.data.commands.filter(Boolean);
  const more = commands.length > MOST_COMMANDS ? [el("p", { class: "note" }, `${commands.length - MOST_COMMANDS} more commands; each cell shows its own.`)] : [];
  if (count > MOST_ENVIRONMENTS) more.push(el("p", { class: "note" }, `${MOST_ENVIRONMENTS} of ${count} environments shown; each cell shows its own.`));
  document.getElementById("commands").replaceChildren(el("h3", {}, "Commands that made these results"), ...commands.slice(0, MOST_COMMANDS).map(commandLine), ...more);
}

function openFromAddress(key) {
  const i = key ? state.data.keys.indexOf(key) : -1;
  if (i >= 0) openDetail(i);
}

async function main() {
  let saved = "auto";
  try { saved = localStorage.getItem("theme") || "auto"; } catch { /* no storage */ }
  applyTheme(["auto", "light", "dark"].includes(saved) ? saved : "auto");
  darkQuery.addEventListener("change", () => applyTheme(theme));
  document.getElementById("theme").addEventListener("click", () => applyTheme({ auto: "light", light: "dark", dark: "auto" }[theme]));
  document.getElementById("csv").addEventListener("click", downloadCsv);
  document.getElementById("detail").addEventListener("close", closedDetail);
  startMenus();
  const cell = show(JSON.parse(await unpack("data")));
  performance.mark("table");
  openFromAddress(cell);
  setTimeout(() => requestAnimationFrame(() => { // by now the charts near the window are drawn
    performance.mark("charts");
    document.documentElement.dataset.ready = "charts";
  }), 0);
  addEventListener("hashchange", () => { const key = readAddress(); fillLimits(); redraw(); openFromAddress(key); });
  if (window.LIVE) follow();
}
