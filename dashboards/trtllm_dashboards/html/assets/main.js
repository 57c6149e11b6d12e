"use strict";
// Starts the page, keeps it in step with the filters, the theme and, when live, the server.

const MOST_COMMANDS = 12, MOST_ENVIRONMENTS = 8;
const darkQuery = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";

function dark() { return document.documentElement.dataset.theme === "dark"; }

function applyTheme(next) {
  theme = next;
  document.documentElement.dataset.theme = theme === "auto" ? (darkQuery.matches ? "dark" : "light") : theme;
  document.getElementById("theme").textContent = `Theme: ${theme}`;
  try { localStorage.setItem("theme", theme); } catch { /* a file without storage keeps no choice */ }
  if (state.data) staleCharts();
}

function changed() {
  state.page = 0;
  select(passing());
  drawFilters();
  drawSummary();
  drawTable();
  drawCharts();
}

function show(data) {
  const first = state.data === null;
  state.data = data;
  document.title = data.title ? `${data.title}, trtllm-bench` : "trtllm-bench";
  document.getElementById("title").textContent = data.title || "trtllm-bench";
  document.getElementById("stamp").textContent = `trtllm-bench, ${data.n.toLocaleString("en-US")} cells, written ${data.generated.slice(0, 16).replace("T", " ")} UTC`;
  startFilters();
  startColumns();
  if (first || !cards.size) buildCharts();
  select(passing());
  drawFilters();
  drawSummary();
  drawTable();
  drawCharts();
  drawPublished();
  drawEnvironment();
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
  heads(table, ["case", "GPU", "ours", "published", "ratio", "source", "their GPU", "what differs"].map((t, at) => el("th", { class: at >= 2 && at <= 4 ? "num" : "" }, t)));
  table.tBodies[0].replaceChildren(...shown.slice(0, 300).map((p) => el("tr", {},
    el("td", {}, `${p.model} ${p.precision} ${p.isl}/${p.osl}${p.tp > 1 ? ` tp ${p.tp}` : ""}`), el("td", {}, p.gpu), el("td", { class: "num" }, fixed(p.ours, 0)), el("td", { class: "num" }, fixed(p.theirs, 0)),
    el("td", { class: `num ${p.same_gpu ? (p.ratio >= 1 ? "ok" : "failed") : ""}` }, `${p.ratio.toFixed(2)} x`), el("td", {}, p.source), el("td", {}, p.their_gpu), el("td", { class: "wide" }, p.differs))));
}

function drawEnvironment() {
  const section = document.getElementById("environment");
  const count = state.data.environments.length;
  const shown = [...Array(Math.min(count, MOST_ENVIRONMENTS)).keys()];
  section.querySelector(".scroll").replaceWith(environmentTable(shown));
  const commands = state.data.commands.filter(Boolean);
  const more = commands.length > MOST_COMMANDS ? [el("p", { class: "note" }, `${commands.length - MOST_COMMANDS} more commands; each cell shows its own.`)] : [];
  if (count > MOST_ENVIRONMENTS) more.push(el("p", { class: "note" }, `${MOST_ENVIRONMENTS} of ${count} environments shown; each cell shows its own.`));
  document.getElementById("commands").replaceChildren(el("h3", {}, "Commands that made these results"), ...commands.slice(0, MOST_COMMANDS).map(commandLine), ...more);
}

function openFromAddress() {
  const key = location.hash.match(/^#cell=(\w+)$/);
  const i = key ? state.data.keys.indexOf(key[1]) : -1;
  if (i >= 0) openDetail(i);
}

function follow() {
  const badge = document.getElementById("live");
  badge.hidden = false;
  const events = new EventSource("events");
  events.onmessage = async () => {
    const answer = await fetch("data");
    if (answer.ok) show(await answer.json());
  };
  events.onopen = () => { badge.textContent = "live"; badge.classList.remove("lost"); };
  events.onerror = () => { badge.textContent = "connection lost"; badge.classList.add("lost"); };
}

async function loadPlotly() {
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
  document.head.append(el("script", {}, await unpack("plotly")));
  drawSoon();
  performance.mark("charts");
  document.documentElement.dataset.ready = "charts";
}

async function main() {
  let saved = "auto";
  try { saved = localStorage.getItem("theme") || "auto"; } catch { /* no storage */ }
  applyTheme(["auto", "light", "dark"].includes(saved) ? saved : "auto");
  darkQuery.addEventListener("change", () => applyTheme(theme));
  document.getElementById("theme").addEventListener("click", () => applyTheme({ auto: "light", light: "dark", dark: "auto" }[theme]));
  document.getElementById("csv").addEventListener("click", downloadCsv);
  document.getElementById("detail").addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
  document.addEventListener("click", (event) => document.querySelectorAll("details.menu[open]").forEach((d) => { if (!d.contains(event.target) && event.target.isConnected) d.open = false; }));
  show(JSON.parse(await unpack("data")));
  performance.mark("table");
  document.documentElement.dataset.ready = "table";
  await loadPlotly();
  openFromAddress();
  addEventListener("hashchange", openFromAddress);
  if (window.LIVE) follow();
}
