"use strict";
// Which cells are shown: one menu a dimension that varies, and a search over the cells' names. Everything else on the page follows.

const FILTER_NAMES = {
  source: "Result set", device: "Device", target: "Target", model: "Model", precision: "Precision", kv_dtype: "KV cache", tp: "TP", pp: "PP",
  shape: "ISL/OSL", workload: "Workload", loop: "Load", request_rate: "Rate", batch: "Batch", status: "Status", version: "Version",
};

function startFilters() {
  const versions = state.data.dimensions.version;
  if (versions.names.includes("older") && !("version" in state.chosen)) state.chosen.version = new Set(["newest"]);
}

// Cells that pass every filter but that of dimension `except`.
function passing(except = null) {
  const tests = Object.entries(state.chosen)
    .filter(([name]) => name !== except && state.data.dimensions[name])
    .map(([name, wanted]) => {
      const { names, index } = state.data.dimensions[name];
      const pass = names.map((value) => wanted.has(value));
      return (i) => pass[index[i]];
    });
  const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length) {
    const names = dimensionNames();
    tests.push((i) => { const text = label(i, names).toLowerCase(); return words.every((w) => text.includes(w)); });
  }
  const rows = [];
  for (let i = 0; i < state.data.n; i++) if (tests.every((test) => test(i))) rows.push(i);
  return rows;
}

function natural(a, b) { return a.localeCompare(b, "en", { numeric: true }); }

function drawFilters() {
  const bar = document.getElementById("filters");
  const open = new Set([...bar.querySelectorAll("details[open]")].map((d) => d.dataset.name));
  const menus = dimensionNames()
    .filter((name) => state.data.dimensions[name].names.length > 1)
    .map((name) => menu(name, open.has(name)));
  const found = document.getElementById("find") || el("input", {
    id: "find", type: "search", placeholder: "Search cells", "aria-label": "Search cells",
    oninput: (event) => { state.find = event.target.value; changed(); },
  });
  const reset = el("button", { type: "button", id: "reset", onclick: () => { state.chosen = {}; state.find = ""; found.value = ""; startFilters(); changed(); } }, "Reset");
  const counted = el("span", { id: "counted", role: "status" }, `${state.rows.length.toLocaleString("en-US")} of ${state.data.n.toLocaleString("en-US")} cells`);
  const focused = document.activeElement === found;
  bar.replaceChildren(...menus, found, reset, counted);
  if (focused) found.focus();
}

function menu(name, open) {
  const { names, index } = state.data.dimensions[name];
  const counts = new Array(names.length).fill(0);
  for (const i of passing(name)) counts[index[i]]++;
  const wanted = state.chosen[name];
  const order = names.map((value, at) => [value, counts[at]]).sort((a, b) => natural(a[0], b[0]));
  const choose = (values) => {
    if (values.size === names.length) delete state.chosen[name]; else state.chosen[name] = values;
    changed();
  };
  const boxes = order.map(([value, count]) => el("label", {},
    el("input", {
      type: "checkbox", value, checked: !wanted || wanted.has(value),
      onchange: (event) => {
        const next = new Set(wanted || names);
        if (event.target.checked) next.add(value); else next.delete(value);
        choose(next);
      },
    }),
    el("span", {}, value || "(none)"), el("span", { class: "count" }, count.toLocaleString("en-US"))));
  const summary = wanted ? `${FILTER_NAMES[name]}: ${[...wanted].slice(0, 2).join(", ") || "none"}${wanted.size > 2 ? ` +${wanted.size - 2}` : ""}` : FILTER_NAMES[name];
  return el("details", { class: wanted ? "menu active" : "menu", "data-name": name, open },
    el("summary", {}, summary),
    el("div", { class: "choices" },
      el("div", { class: "all" },
        el("button", { type: "button", onclick: () => choose(new Set(names)) }, "All"),
        el("button", { type: "button", onclick: () => choose(new Set()) }, "None")),
      boxes));
}
