"""Profiles that lie beside or in the shown stores, each with its page and the cells that it profiles.

A cell's rows name their profile where a sweep made it. Others (`trtllm-bench profile --out FOLDER`) are found in the stores and in the
folders beside them, and belong to the cells of the same model, precision, layout, shape and load. The profile's page links back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trtllm_dashboards import profile_page
from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.points import Point
from trtllm_results.record.cell import ALIGN_FIELDS
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store

MOST = 200


@dataclass(frozen=True)
class Profile:
    """One profile's folder, what its cell is, and a summary for the page."""

    folder: Path
    key: str
    cell: Mapping[str, Any]
    summary: Mapping[str, Any] = field(default_factory=dict)


def profiles(stored: Iterable[tuple[Store, Sequence[Row]]]) -> list[Profile]:
    """Of the folders that rows name, then of those in and beside the stores; unreadable ones are left out."""
    folders: dict[Path, str] = {}
    for store, rows in stored:
        named = {str(row.extra["profile"]): row.key for row in rows if row.extra.get("profile")}
        for relative, key in named.items():
            folders.setdefault(Path(os.path.realpath(store.path / relative)), key)
        for path in sorted([*store.path.glob(f"*/*/{profile_page.DATA_FILE}"), *store.path.parent.glob(f"*/{profile_page.DATA_FILE}")])[
            :MOST
        ]:
            folders.setdefault(Path(os.path.realpath(path.parent)), "")
    return [profile for folder, key in folders.items() if (profile := _profile(folder, key)) is not None]


def _profile(folder: Path, key: str) -> Profile | None:
    try:
        content = profile_page.load(folder)
    except DashboardError:
        return None
    cell = content.get("cell", {})
    parts = profile_page.parts_per_token(content)
    steps = content.get("steps") or [{}]
    total = sum(parts.values()) or 1.0
    summary = {
        "label": cell.get("label", folder.name),
        "device": content.get("device", ""),
        "steps": len(steps),
        "phase": ", ".join(dict.fromkeys(str(step.get("phase", "")) for step in steps)),
        "step_us": sum(step.get("span_us", 0.0) for step in steps) / len(steps),
        "parts": [[name, us, us / total] for name, us in sorted(parts.items(), key=lambda part: -part[1])[:12]],
        "started": str(content.get("started_at", ""))[:16],
    }
    return Profile(folder, key or str(cell.get("cell_key", "")), cell, summary)


def cells_of(profile: Profile, points: Sequence[Point]) -> list[int]:
    """Indices of the cells it is of: the very cell, else those a reader calls the same."""
    exact = [index for index, point in enumerate(points) if point.key == profile.key]
    if exact or not profile.cell:
        return exact
    names = [name for name in ALIGN_FIELDS if name in profile.cell]
    device = profile.summary.get("device", "")
    return [
        index
        for index, point in enumerate(points)
        if all(getattr(point.cell, name) == profile.cell[name] for name in names)
        and point.environment.device == device
        and not point.rows[0].arm
    ]


def linked(profile: Profile, beside: Path, page: str, key: str) -> str:
    """The profile's page as a link from `beside`, drawn with a link back to `page` and the cell there; empty where it cannot be written."""
    target = profile.folder / profile_page.PAGE_FILE
    back = quote(os.path.relpath(beside / page, profile.folder)) + (f"#cell={key}" if key else "")
    with contextlib.suppress(DashboardError):
        profile_page.render(profile_page.load(profile.folder), target, back=back)
    return quote(os.path.relpath(target, beside)) if target.is_file() else ""
