"""A profile as one HTML page: where the step's time goes, the roofline of its kernels, its timeline and the kernel table.

The page draws its own SVG: a plotting library would be a hundred times the data. It asks the network for nothing, like the dashboard.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from trtllm_dashboards import looks
from trtllm_dashboards.errors import DashboardError, NotWritten
from trtllm_results.errors import WriteError
from trtllm_results.store.files import read_document, write_text

DATA_FILE, PAGE_FILE = "profile.json", "profile.html"

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
        raise DashboardError(f"{path} cannot be read as a profile ({error}); record it again with trtllm-bench profile.") from error
    if not isinstance(profile, dict) or "kernels" not in profile:
        raise DashboardError(f"{path} is no profile of trtllm-bench; record one with trtllm-bench profile.")
    return profile


def parts_per_token(profile: Mapping[str, Any]) -> dict[str, float]:
    """Microseconds an output token in each op and in the gaps."""
    steps = profile.get("steps") or []
    tokens = max(1.0, float(sum(step.get("samples", step.get("sequences", 0)) for step in steps)))
    gaps = {
        "gaps between kernels": sum(step.get("gap_inside_us", 0.0) for step in steps),
        "gaps between steps": sum(step.get("gap_before_us", 0.0) for step in steps),
    }
    return {name: us / tokens for name, us in {**profile.get("roles", {}), **gaps}.items() if us > 0}


def ensure(folder: Path) -> Path | None:
    """The page of a profile's folder, rendered from its `profile.json` where it is missing. None where there is neither, or it cannot be
    written."""
    path, data = folder / PAGE_FILE, folder / DATA_FILE
    if not path.is_file() and data.is_file():
        with contextlib.suppress(DashboardError):
            render(load(folder), path)
    return path if path.is_file() else None


def _asset(name: str) -> str:
    return resources.files(__name__).joinpath("assets", name).read_text(encoding="utf-8")
