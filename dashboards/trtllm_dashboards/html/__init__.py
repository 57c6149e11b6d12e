"""The dashboard: one HTML file that holds everything it shows and asks the network for nothing.

`render(stores, out)` writes it; `serve.py` shows the same page live. The data travel gzipped in base64 and are unpacked by the browser's
own `DecompressionStream`. A content-security policy in the page forbids every outside request, so that a report from an air-gapped
machine behaves the same anywhere, and a mistake in the page cannot leak the results in it.

The page draws its own SVG (`chart.js`). plotly.js, used before, is 4.8 MB of script a browser must parse before the first chart, puts
points out of a keyboard's reach and lets two axes be titled on top of each other; its basic bundle, a third of that, is in no package.
Rejected too: a bundler (a build step for 1,500 lines of script).
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from trtllm_dashboards import profile_page
from trtllm_dashboards.errors import NotWritten
from trtllm_dashboards.html.comparison import compared
from trtllm_dashboards.html.gates import gates
from trtllm_dashboards.html.gpus import gpu_section
from trtllm_dashboards.html.payload import build, cells_in
from trtllm_dashboards.html.profiles import Profile, cells_of, linked, profiles
from trtllm_dashboards.points import newest
from trtllm_dashboards.sources import Sources, load
from trtllm_results.errors import WriteError
from trtllm_results.metrics.registry import HEADLINE
from trtllm_results.record.row import Row
from trtllm_results.store.files import write_text
from trtllm_results.store.selection import named_path
from trtllm_results.store.table import Store

SCRIPTS = (
    *("data.js", "address.js", "filters.js", "chart.js", "summary.js", "gate.js", "comparison.js", "limits.js", "precision.js"),
    *("curves.js", "gpus.js", "table.js", "detail.js", "live.js", "main.js"),
)
"""In this order; each defines functions the later ones use."""
STYLES = ("style.css",)


Explain = Callable[[Store, Row], Mapping[str, Any]]
"""What limits a row's cell and what would help: `trtllm_bench.analysis` knows, which this package does not import. Raises `ValueError`
where nothing can be said."""


def render(
    stores: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    where: Sequence[str] = (),
    title: str = "",
    explain: Explain | None = None,
    explained: int = 0,
) -> Path:
    """Write the dashboard of one or more result sets (`PATH` or `NAME=PATH`) to `out`. Returns its path.

    A single folder that holds a profile gives that profile's page instead. `explain` is asked for the `explained` fastest cells.
    Raises `ResultsError` for sets that cannot be read or are empty and `NotWritten` when `out` cannot be written.
    """
    specs = [str(s) for s in ([stores] if isinstance(stores, str | Path) else stores)]
    if len(specs) == 1 and (Path(specs[0]) / profile_page.DATA_FILE).is_file():
        return profile_page.render(profile_page.load(Path(specs[0])), Path(out))
    sources = load(specs, where)
    target = Path(out)
    named = title or ", ".join(named_path(spec)[0] for spec in specs)
    content = contents(sources, named, lambda profile, key: linked(profile, target.parent, target.name, key))
    content["explained"] = explanations(sources, content, explain, explained) if explain is not None else {}
    try:
        write_text(target, page(content))
    except WriteError as error:
        raise NotWritten(target, error) from error
    return target


def contents(sources: Sources, title: str, link: Callable[[Profile, str], str]) -> dict[str, Any]:
    """The page's data of these sources; `link` gives the address of a profile's page, linking back to a cell."""
    content = build(sources.sets, title, sources.stores)
    cells = cells_in(sources.sets)
    stored_profiles = profiles(sources.stored)
    entries = []
    for profile in stored_profiles:
        own = cells_of(profile, cells)
        entries.append({**profile.summary, "cells": own, "href": link(profile, cells[own[0]].key if own else "")})
    skipped = [f"Left out: {text}." for text in sources.skipped]
    paths = {store.path.name: str(store.path) for store in sources.stores} | {
        "": str(sources.stores[0].path) if len(sources.stores) == 1 else "RESULTS"
    }
    return {
        **content,
        "paths": paths,
        "profiles": entries,
        "gates": gates(sources.stored, stored_profiles),
        "comparison": compared(sources.sets),
        "gpus": gpu_section([row for rows in sources.sets.values() for row in rows]),
        "notes": [*skipped, *content["notes"]],
    }


def explanations(sources: Sources, content: Mapping[str, Any], explain: Explain, count: int) -> dict[int, Mapping[str, Any]]:
    """By cell number, of the fastest cells of the newest version that can be explained."""
    cells = cells_in(sources.sets)
    current = {id(p) for p in newest(p for p in cells if p.rows[0].status == "ok")}
    rates = content["figures"].get(HEADLINE, {"mean": []})["mean"]
    order = sorted((i for i, p in enumerate(cells) if id(p) in current and rates[i] is not None), key=lambda i: -rates[i])
    by_cell: dict[int, Mapping[str, Any]] = {}
    for index in order:
        if len(by_cell) == count:
            break
        row = cells[index].rows[-1]
        for store in sources.stores:
            with contextlib.suppress(ValueError):
                if store.read_side("steps", row, ["done_s"]) is not None:
                    by_cell[index] = explain(store, row)
    return by_cell


def page(payload: dict[str, Any], *, live: bool = False) -> str:
    """The HTML text; with `live`, a page that asks its own server for newer data."""
    parts = {
        "policy": "connect-src 'self'" if live else "connect-src 'none'",
        "live": "true" if live else "false",
        "style": "\n".join(asset(name) for name in STYLES),
        "script": "\n".join(asset(name) for name in SCRIPTS),
        "data": packed(json.dumps(payload, separators=(",", ":"), allow_nan=False)),
    }
    text = asset("page.html")
    for name, value in parts.items():
        text = text.replace(f"{{{{{name}}}}}", value, 1)
    return text


def asset(name: str) -> str:
    return resources.files(__name__).joinpath("assets", name).read_text(encoding="utf-8")


def packed(text: str) -> str:
    """Gzip in base64; `mtime=0` so that equal pages are equal bytes."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
