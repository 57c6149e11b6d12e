"use strict";
// Which cells are shown: one menu a dimension that varies, and a search over the cells' names. Everything else on the page follows.

const FILTER_NAMES = {
  source: "Result set", device: "Device", target: "Target", model: "Model", precision: "Precision", kv_dtype: "KV cache", tp: "TP", pp: "PP",
  replicas: "Replicas", settings: "Settings", arm: "Arm", shape: "ISL/OSL", workload: "Workload", loop: "Load", request_rate: "Rate", batch: "Batch", status: "Status", version: "Version",
};

function startFilters() {
  const versions = state.data.dimensions.version;
  if (versions.names.includes("older") && !("version" in state.chosen)) state.chosen.version = new Set(["newest"]);
}

let searchTexts = null;

// The cells that pass every filter, and for each menu how many would pass were it open: one pass over the cells.
function passing() {
  const names = dimensionNames();
  const tests = Object.entries(state.chosen).filter(([name]) => state.data.dimensions[name])
    .map(([name, wanted]) => ({ name, index: state.data.dimensions[name].index, pass: state.data.dimensions[name].names.map((value) => wanted.has(value)) }));
  const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length && (!searchTexts || searchTexts.of !== state.data)) {
    searchTexts = { of: state.data, texts: Array.from({ length: state.data.n }, (_, i) => label(i, names).toLowerCase()) };
  }
  const counts = Object.fromEntries(names.map((name) => [name, new Array(state.data.dimensions[name].names.length).fill(0)]));
  const rows = [];
  for (let i = 0; i < state.data.n; i++) {
    if (words.length && !words.every((w) => searchTexts.texts[i].includes(w))) continue;
    let failed = null, lost = 0;
    for (const test of tests) if (!test.pass[test.index[i]]) { failed = test.name; if (++lost > 1) break; }
    if (lost > 1) continue;
    if (lost === 1) { counts[failed][state.data.dimensions[failed].index[i]]++; continue; }
    rows.push(i);
    for (const name of names) counts[name][state.data.dimensions[name].index[i]]++;
  }
  return { rows, counts };
}

const collator = new Intl.Collator("en", { numeric: true });
function natural(a, b) { return collator.compare(a, b); }

function drawFilters(counts) {
  const bar = document.getElementById("filters");
  const open = new Set([...bar.querySelectorAll("details[open]")].map((d) => d.dataset.name));
  const menus = dimensionNames()
    .filter((name) => state.data.dimensions[name].names.length > 1)
    .map((name) => menu(name, open.has(name), counts[name]));
  const found = document.getElementById("find") || el("input", {
    id: "find", type: "search", placeholder: "Search cells", "aria-label": "Search cells",
    oninput: (event) => { state.find = event.target.value; changed(); },
  });
  if (found.value !== state.find) found.value = state.find;
  const reset = document.getElementById("reset") || el("button", { type: "button", id: "reset", onclick: () => { state.chosen = {}; state.find = ""; startFilters(); changed(); } }, "Reset");
  const counted = document.getElementById("counted") || el("span", { id: "counted", role: "status" });
  const text = `${brief(state.rows.length)} of ${brief(state.data.n)} cells`;
  if (counted.textContent !== text) counted.textContent = text;
  for (const old of bar.querySelectorAll("details")) old.remove();
  if (found.parentElement !== bar) bar.append(found, reset, counted);
  bar.prepend(...menus);
}

function menu(name, open, counts) {
  const { names } = state.data.dimensions[name];
  const wanted = state.chosen[name];
  const order = names.map((value, at) => [value, counts[at]]).sort((a, b) => natural(a[0], b[0]));
  const choose = (values) => {
    if (values.size === names.length) delete state.chosen[name]; else state.chosen[name] = values;
    changed();
  };
  const boxes = () => order.map(([value, count]) => el("label", {},
    el("input", {
      type: "checkbox", value, checked: !wanted || wanted.has(value), "data-key": `filter ${name} ${value}`,
      onchange: (event) => {
        const next = new Set(wanted || names);
        if (event.target.checked) next.add(value); else next.delete(value);
        choose(next);
      },
    }),
    el("span", {}, value || "(none)"), el("span", { class: "count" }, brief(count))));
  const summary = wanted ? `${FILTER_NAMES[name]}: ${[...wanted].slice(0, 2).join(", ") || "none"}${wanted.size > 2 ? ` +${wanted.size - 2}` : ""}` : FILTER_NAMES[name];
  return el("details", { class: wanted ? "menu active" : "menu", "data-name": name, open },
    el("summary", { "data-key": `filter ${name}` }, summary),
    el("div", { class: "choices", role: "group", "aria-label": FILTER_NAMES[name] },
      el("div", { class: "all" },
        el("button", { type: "button", "data-key": `filter ${name} all`, onclick: () => choose(new Set(names)) }, "All"),
        el("button", { type: "button", "data-key": `filter ${name} none`, onclick: () => choose(new Set()) }, "None")),
      boxes()));
}

// Escape closes an open menu and goes back to its button; a click elsewhere closes it too.
function startMenus() {
  document.addEventListener("toggle", (event) => { // an open menu stays within the window
    const choices = event.target.open && event.target.querySelector?.(".choices");
    if (!choices) return;
    choices.style.left = "0px";
    const beyond = choices.getBoundingClientRect().right - (innerWidth - 8);
    if (beyond > 0) choices.style.left = `${-beyond}px`;
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const open of document.querySelectorAll("details.menu[open]")) {
      const inside = open.contains(document.activeElement);
      open.open = false;
      if (inside) open.querySelector("summary").focus();
      event.preventDefault();
    }
  });
  document.addEventListener("click", (event) => document.querySelectorAll("details.menu[open]").forEach((d) => {
    if (event.target.isConnected && !d.contains(event.target)) d.open = false;
  }));
}
