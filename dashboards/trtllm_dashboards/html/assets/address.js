"use strict";
// What is chosen stands in the address (after #), so that a view is shared by its link: filters, search, case, limits, the open cell.

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state.chosen = {};
  for (const [name, text] of given) {
    const dimension = name.startsWith("f.") && state.data.dimensions[name.slice(2)];
    if (dimension) state.chosen[name.slice(2)] = new Set(text.split("~").filter((value) => dimension.names.includes(value)));
  }
  if (!given.has("all")) startFilters();
  state.find = given.get("q") ?? "";
  state.case = given.get("case");
  state.group = given.get("group");
  state.limits = {};
  for (const part of (given.get("slo") ?? "").split(",").filter(Boolean)) {
    const [name, value] = part.split(":");
    if (LIMITED.includes(name) && Number(value) > 0) state.limits[name] = Number(value);
  }
  state.quantile = QUANTILES.includes(given.get("at")) ? given.get("at") : "p99";
  state.price = Number(given.get("usd")) > 0 ? Number(given.get("usd")) : null;
  const sort = given.get("sort");
  if (sort) state.sort = { key: sort.replace(/^-/, ""), down: sort.startsWith("-") };
  return given.get("cell");
}

function writeAddress(cell = openCell()) {
  const now = new URLSearchParams();
  if (cell) now.set("cell", cell);
  for (const [name, wanted] of Object.entries(state.chosen)) {
    if (!(name === "version" && wanted.size === 1 && wanted.has("newest"))) now.set(`f.${name}`, [...wanted].join("~"));
  }
  if (state.data.dimensions.version.names.includes("older") && !("version" in state.chosen)) now.set("all", "1");
  if (state.find) now.set("q", state.find);
  if (state.case && state.case !== state.firstCase) now.set("case", state.case);
  if (state.group && state.group !== state.firstGroup) now.set("group", state.group);
  const limits = Object.entries(state.limits).map(([name, value]) => `${name}:${value}`).join(",");
  if (limits) now.set("slo", limits);
  if (state.quantile !== "p99") now.set("at", state.quantile);
  if (state.price) now.set("usd", state.price);
  if (state.sort.key !== FIRST_SORT || !state.sort.down) now.set("sort", `${state.sort.down ? "-" : ""}${state.sort.key}`);
  const text = now.toString().replaceAll("%7E", "~").replaceAll("%3A", ":").replaceAll("%2C", ",").replaceAll("%2F", "/");
  if (text !== location.hash.slice(1)) history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

function openCell() {
  const dialog = document.getElementById("detail");
  return dialog.open ? dialog.dataset.cell : null;
}
