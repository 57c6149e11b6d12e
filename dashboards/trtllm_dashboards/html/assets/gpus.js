"use strict";
// The brief's cases over GPUs: ours on top where measured or predicted (hatched), NVIDIA's tables and the brief below, as labelled bars.

const WHOSE = { ours: "ours", predicted: "predicted", nvidia: "NVIDIA", brief: "brief" };

function drawGpus() {
  const found = state.data.gpus, section = document.getElementById("gpus");
  section.hidden = !found;
  if (!found) return;
  document.getElementById("gpus-keys").replaceChildren(...Object.entries(found.kinds).map(([kind, text]) => el("span", {}, el("i", { class: `of-${kind}` }), text)));
  document.getElementById("gpus-cases").replaceChildren(...found.cases.map(gpuCase));
  document.getElementById("gpus-notes").replaceChildren(...found.notes.map((text) => el("p", { class: "note" }, `${text[0].toUpperCase()}${text.slice(1)}.`)),
    el("p", { class: "note" }, "One GPU each. NVIDIA's: the highest it published for the case. Published figures carry no interval; methods differ, as the table below says."));
}

function gpuCase(found) {
  const most = Math.max(...found.gpus.flatMap((g) => g.bars.map((bar) => bar.mean)));
  const line = (bar) => {
    const value = bar.half === null ? brief(bar.mean) : `${brief(bar.mean)} ± ${spreadText(bar.half)}`;
    return el("li", { title: bar.doubt || null }, el("span", { class: `length of-${bar.kind}`, style: `width:${(62 * bar.mean / most).toFixed(2)}%`, "aria-hidden": "true" }),
      el("span", { class: "told" }, el("b", {}, value), ` tok/s${bar.doubt ? " \u2020" : ""}, ${WHOSE[bar.kind]}${bar.detail ? ` ${bar.detail}` : ""}`));
  };
  return el("article", { class: "chart" }, el("h3", {}, found.title),
    found.gpus.filter((g) => g.bars.length).map((g) => el("div", { class: "gpu" }, el("h4", {}, g.gpu), el("ul", { class: "lengths" }, g.bars.map(line)))));
}
