"""A gate report as records, sentences, Markdown, JSON, JUnit XML and GitHub annotations.

JUnit knows no "inconclusive": it becomes `skipped` with the reason, and the exit code (2) tells it from a pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from trtllm_results.compare.report import in_cell, percent
from trtllm_results.gate.verdict import INCONCLUSIVE_MEANS, Finding, GateReport, would_decide
from trtllm_results.metrics.registry import METRICS, brief, common_words, title

MEANS = "geometric means over the runs"
"""What the values of both sides are."""
NAMED = 3
"""Figures named one by one; of more only the first ones are."""
WORDS: Mapping[str, str] = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}


def records(report: GateReport) -> list[dict[str, Any]]:
    """One flat record a finding; changes and margins are relative."""
    return [_record(finding) for finding in report.findings]


def _record(finding: Finding) -> dict[str, Any]:
    item, change = finding.judged, finding.change
    return {
        "cell": item.label,
        "figure": item.figure,
        "unit": METRICS[item.figure].unit,
        "a": item.a_value,
        "b": item.b_value,
        "change": item.b_value / item.a_value - 1,
        "low": None if change is None else change.low,
        "high": None if change is None else change.high,
        "margin": item.margin,
        "verdict": finding.verdict,
        "detectable": None if math.isinf(finding.detectable) else finding.detectable,
        "p_fail": finding.p_fail,
        "p_pass": finding.p_pass,
        "runs": item.blocks,
        "runs_needed": finding.blocks_needed,
        "why": finding.why,
    }


def headline(report: GateReport) -> str:
    """The verdict in one sentence."""
    if report.why:
        return f"{WORDS[report.verdict]}: {report.why}."
    deciding = [finding for finding in report.findings if finding.verdict == report.verdict]
    reason = (
        f"{deciding[0].name} ({percent(deciding[0].judged.b_value / deciding[0].judged.a_value - 1)}): {deciding[0].why}"
        if deciding
        else ""
    )
    more = f"; and {_figures(len(deciding) - 1)} more" if len(deciding) > 1 and report.verdict != "pass" else ""
    if report.verdict == "pass":
        return f"PASS: {report.b} is within its margins of {report.a} in {_figures(len(report.findings))}."
    if not deciding and report.drift:
        return f"{WORDS[report.verdict]}: {report.drift[0]}."
    return f"{WORDS[report.verdict]}: {reason}{more}."


def explanations(report: GateReport) -> list[str]:
    """Why each figure got its verdict: one sentence for all that share a reason, and what `inconclusive` means where it occurs."""
    groups: dict[tuple[str, str, bool], list[tuple[str, Finding]]] = {}
    _, labels = common_words([finding.judged.label for finding in report.findings])
    for finding, label in zip(report.findings, labels, strict=True):
        name = f"{label} {title(finding.judged.figure)}".strip()
        groups.setdefault((finding.verdict, finding.cause, finding.more is None), []).append((name, finding))
    lines = []
    for (verdict, cause, _), members in groups.items():
        counts = [finding.more for _, finding in members if finding.more is not None]
        more = f"; {would_decide(min(counts), max(counts))}" if counts else ""
        lines.append(f"{verdict}: {_named([name for name, _ in members])}: {cause}{more}")
    if any(finding.verdict == "inconclusive" for finding in report.findings):
        lines.append(INCONCLUSIVE_MEANS)
    return lines


def _named(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= NAMED else f"{_figures(len(names))} ({', '.join(names[:NAMED])}, ...)"


def _figures(count: int) -> str:
    return "1 figure" if count == 1 else f"{count} figures"


def interval_text(finding: Finding) -> str:
    return "-" if finding.change is None else f"{percent(finding.change.low)} to {percent(finding.change.high)}"


def to_markdown(report: GateReport) -> str:
    """The report as a pull request or step summary shows it."""
    level = f"{1 - 2 * report.alpha:.0%}"
    lines = [
        f"**{headline(report)}**",
        "",
        f"| figure | {in_cell(report.a)} | {in_cell(report.b)} | change | {level} interval | tolerated | detectable | verdict |",
        "|---|--:|--:|--:|---|--:|--:|---|",
    ]
    for finding, one in zip(report.findings, records(report), strict=True):
        sign = "+" if METRICS[one["figure"]].better == "lower" else "-"
        detectable = "-" if one["detectable"] is None else f"{sign}{one['detectable']:.1%}"
        lines.append(
            f"| {in_cell(finding.name)} | {brief(one['a'])} | {brief(one['b'])} | {percent(one['change'])} | {interval_text(finding)} "
            f"| {sign}{one['margin']:.1%} | {detectable} | {one['verdict']} |"
        )
    lines += ["", f"A and B are {MEANS}.", "", *(f"- {line}" for line in explanations(report))]
    lines += [f"- drift: {text}" for text in report.drift] + [f"- note: {text}" for text in report.warnings]
    return "\n".join(lines).rstrip() + "\n"


def to_json(report: GateReport) -> str:
    content = {
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "headline": headline(report),
        "a": report.a,
        "b": report.b,
        "alpha": report.alpha,
        "blocks": report.blocks,
        "seed": report.seed,
        "means": MEANS,
        "findings": records(report),
        "warnings": list(report.warnings),
        "drift": list(report.drift),
    }
    return json.dumps(content, indent=1)


def to_junit(report: GateReport) -> str:
    """JUnit XML, one test case a figure (and one for drift when there is any)."""
    verdicts = [finding.verdict for finding in report.findings]
    drifted = bool(report.drift)
    suite = ElementTree.Element(
        "testsuite",
        name="trtllm-bench gate",
        tests=str(len(verdicts) + drifted),
        failures=str(verdicts.count("fail") + (drifted and report.verdict == "fail" and "fail" not in verdicts)),
        skipped=str(verdicts.count("inconclusive")),
        errors="0",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("a", report.a),
        ("b", report.b),
        ("verdict", report.verdict),
        ("alpha", f"{report.alpha:g}"),
        ("blocks", str(report.blocks)),
    ):
        ElementTree.SubElement(properties, "property", name=name, value=value)
    for finding in report.findings:
        case = ElementTree.SubElement(suite, "testcase", classname="gate", name=finding.name)
        message = f"{percent(finding.judged.b_value / finding.judged.a_value - 1)} ({interval_text(finding)}): {finding.why}"
        if finding.verdict == "fail":
            ElementTree.SubElement(case, "failure", message=message)
        elif finding.verdict == "inconclusive":
            ElementTree.SubElement(case, "skipped", message=f"inconclusive: {report.why or message}")
    if drifted:
        case = ElementTree.SubElement(suite, "testcase", classname="gate", name="drift")
        if report.verdict == "fail" and "fail" not in verdicts:
            ElementTree.SubElement(case, "failure", message="; ".join(report.drift))
        else:
            ElementTree.SubElement(case, "system-out").text = "\n".join(report.drift)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def to_annotations(report: GateReport) -> str:
    """GitHub workflow commands: an error a failed figure, a warning an undecided one or a drift, a notice for a pass."""
    level = {"fail": "error", "inconclusive": "warning", "pass": "notice"}
    lines = [f"::{level[report.verdict]} title=trtllm-bench gate::{_escape(headline(report))}"]
    for finding in report.findings:
        if finding.verdict != "pass":
            text = f"{percent(finding.judged.b_value / finding.judged.a_value - 1)} ({interval_text(finding)}): {finding.why}"
            lines.append(f"::{level[finding.verdict]} title={_escape(finding.name, True)}::{_escape(text)}")
    lines += [f"::warning title=drift::{_escape(text)}" for text in report.drift]
    lines += [f"::notice title=note::{_escape(text)}" for text in report.warnings]
    return "\n".join(lines) + "\n"


def _escape(text: str, in_property: bool = False) -> str:
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return escaped.replace(":", "%3A").replace(",", "%2C") if in_property else escaped
