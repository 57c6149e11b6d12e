"use strict";
// Result sets named together: what the later ones gained or lost against the first, cell by cell, with the verdicts of `compare`.

const MOST_CHANGES = 10, LOSS = ["slower", "worse"], GAIN = ["faster", "better"];

function comparisonSentence() {
  const { base, counts } = state.data.comparison;
  return Object.entries(counts).flatMap(([other, of]) => {
    const cells = Object.values(of).reduce((a, b) => a + b, 0), lost = of.slower ?? 0, undecided = of.inconclusive ?? 0;
    const verdict = lost ? "fail" : undecided ? "inconclusive" : "pass";
    const told = ["slower", "faster", "same", "inconclusive"].filter((word) => of[word]).map((word) => `${of[word]} ${word}`).join(", ");
    return [el("b", { class: `verdict ${verdict}` }, `${other} against ${base}: ${told}`), ` of ${cells} shared cell${cells > 1 ? "s" : ""}, by output tok/s. `];
  });
}

function drawComparison() {
  const found = state.data.comparison, section = document.getElementById("comparison");
  section.hidden = !found;
  if (!found) return;
  const others = Object.keys(found.counts), several = others.length > 1, shown = state.allChanges ? found.changes : found.changes.slice(0, MOST_CHANGES);
  const table = section.querySelector("table"), titles = ["cell", "figure", "unit", several ? "against" : "", found.base, several ? "other" : others[0] ?? "other", "change", "95% interval", "runs", "verdict"];
  heads(table, titles.map((t, at) => (t ? el("th", { scope: "col", class: at > 3 && at < 9 ? "num" : "" }, t) : null)));
  table.tBodies[0].replaceChildren(...shown.map((c) => el("tr", {},
    el("td", { class: "name" }, c.label), el("td", {}, c.title), el("td", {}, c.unit || "ratio"), several ? el("td", {}, c.other) : null, el("td", { class: "num" }, brief(c.base_value)), el("td", { class: "num" }, brief(c.other_value)),
    el("td", { class: "num" }, signed(c.change)), el("td", { class: "num" }, c.low === null ? "-" : `${signed(c.low)} to ${signed(c.high)}`), el("td", { class: "num" }, c.runs),
    el("td", {}, el("span", { class: `verdict ${LOSS.includes(c.verdict) ? "fail" : GAIN.includes(c.verdict) ? "pass" : c.verdict === "inconclusive" ? "inconclusive" : ""}` }, c.verdict)))));
  const more = document.getElementById("more-changes");
  more.hidden = shown.length === found.changes.length;
  more.textContent = `Show all ${brief(found.changes.length)}, losses first`;
  more.onclick = () => { state.allChanges = true; drawComparison(); };
  const notes = [...found.notes, ...(found.left_out ? [`${found.left_out} cells or figures are in one set only, or failed`] : []), "All cells are compared, whatever the filters"];
  section.querySelector(".said-of-it").replaceChildren(...notes.map((text) => el("p", { class: "note" }, `${text[0].toUpperCase()}${text.slice(1)}.`)));
}
