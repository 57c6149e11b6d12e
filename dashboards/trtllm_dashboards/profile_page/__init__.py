"""A profile as one HTML page: where the step's time goes, the roofline of its kernels, its timeline and the kernel table.

The page draws its own SVG: a plotting library would be a hundred times the data. It asks the network for nothing, like the dashboard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from trtllm_dashboards import looks
from trtllm_dashboards.errors import DashboardError, NotWritten
from trtllm_results.errors import WriteError
from trtllm_results.record.flat import shown
from trtllm_results.store.document import read_document
from trtllm_results.store.files import write_text

DATA_FILE, PAGE_FILE = "profile.json", "profile.html"

STEP_NUMBERS = ("samples", "sequences", "gap_inside_us", "gap_before_us")
SCRIPTS = ("page.js", "roofline.js", "timeline.js", "tables.js")
"""In this order; the first defines what the others use, the last draws."""


def page(profile: Mapping[str, Any], back: str = "") -> str:
    """The HTML text of a profile (`trtllm_bench.profiling.record.CellProfile` as a mapping); `back` is the page it is linked from."""
    text = _asset("page.html")
    content = {**profile, "back": back, "looks": {"light": looks.LIGHT, "dark": looks.DARK}}
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    parts = {"style": _asset("page.css"), "script": "\n".join(_asset(name) for name in SCRIPTS), "data": data}
    for name, value in parts.items():
        text = text.replace(f"{{{{{name}}}}}", value, 1)
    return text


def render(profile: Mapping[str, Any], out: Path, back: str = "") -> Path:
    """Writes the page. Raises `NotWritten` when it cannot be written."""
    try:
        write_text(out, page(profile, back))
    except WriteError as error:
        raise NotWritten(out, error) from error
    return out


def load(folder: Path) -> Mapping[str, Any]:
    """The profile that `trtllm-bench profile` wrote to a folder. Raises `DashboardError` when it cannot be read."""
    path = folder / DATA_FILE
    try:
        profile = read_document(path)
    except (OSError, ValueError) as error:
        raise DashboardError(f"{path} cannot be read as a profile ({error}); record it again with trtllm-bench profile") from error
    if not isinstance(profile, dict) or "kernels" not in profile:
        raise DashboardError(f"{path} is not a profile of trtllm-bench; record one with trtllm-bench profile")
    if (wrong := next(_wrong_parts(profile), "")) != "":
        raise DashboardError(f"{path} is not a profile of trtllm-bench: {wrong}; record it again with trtllm-bench profile")
    return profile


def _wrong_parts(profile: Mapping[str, Any]) -> Iterator[str]:
    """What is of another type than the page and its callers take it for."""
    for name in ("kernels", "steps", "timeline"):
        value = profile.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            yield f"{name} is {shown(value)}, not a list of objects"
    for name in ("cell", "ceilings", "roles"):
        if not isinstance(value := profile.get(name, {}), dict):
            yield f"{name} is {shown(value)}, not an object"
    numbers = {f"roles.{role[:60]}": us for role, us in profile.get("roles", {}).items()}
    for step in profile.get("steps", []):
        numbers |= {f"steps.{name}": step[name] for name in STEP_NUMBERS if name in step}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{name} is {shown(value)}, not a number"


def parts_per_token(profile: Mapping[str, Any]) -> dict[str, float]:
    """Microseconds an output token in each op and in the gaps."""
    steps = profile.get("steps") or []
    tokens = max(1.0, float(sum(step.get("samples", step.get("sequences", 0)) for step in steps)))
    gaps = {
        "gaps between kernels": sum(step.get("gap_inside_us", 0.0) for step in steps),
        "gaps between steps": sum(step.get("gap_before_us", 0.0) for step in steps),
    }
    return {name: us / tokens for name, us in {**profile.get("roles", {}), **gaps}.items() if us > 0}


def _asset(name: str) -> str:
    return resources.files(__name__).joinpath("assets", name).read_text(encoding="utf-8")
