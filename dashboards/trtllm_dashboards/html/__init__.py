"""The dashboard: one HTML file that holds everything it shows and asks the network for nothing.

`render(stores, out)` writes it; `serve.py` shows the same page live. The plotting library (plotly.js, 4.8 MB) and the data travel gzipped
in base64 and are unpacked by the browser's own `DecompressionStream`: a third of the size, and the summary and the table are on screen
before the library is parsed. A content-security policy in the page forbids every outside request, so that a report from an air-gapped
machine behaves the same anywhere, and a mistake in the page cannot leak the results in it.

Rejected: a plotly figure's `to_html` a chart (each carries its own data, no shared filters), a bundler (a build step for 900 lines of
script).
"""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trtllm_dashboards import profile_page
from trtllm_dashboards.errors import NotWritten
from trtllm_dashboards.html.payload import build
from trtllm_dashboards.sources import Sources, load
from trtllm_results.errors import WriteError
from trtllm_results.store.files import write_text
from trtllm_results.store.selection import named_path

SCRIPTS = ("data.js", "filters.js", "summary.js", "charts.js", "table.js", "detail.js", "main.js")
"""In this order; each defines functions the later ones use."""
STYLES = ("style.css",)


def render(stores: str | Path | Sequence[str | Path], out: str | Path, *, where: Sequence[str] = (), title: str = "") -> Path:
    """Write the dashboard of one or more result sets (`PATH` or `NAME=PATH`) to `out`. Returns its path.

    A single folder that holds a profile gives that profile's page instead. Raises `ResultsError` for sets that cannot be read or are empty
    and `NotWritten` when `out` cannot be written.
    """
    specs = [str(s) for s in ([stores] if isinstance(stores, str | Path) else stores)]
    if len(specs) == 1 and (Path(specs[0]) / profile_page.DATA_FILE).is_file():
        return profile_page.render(profile_page.load(Path(specs[0])), Path(out))
    sources = load(specs, where)
    target = Path(out)
    named = title or ", ".join(named_path(spec)[0] for spec in specs)
    text = page(build(sources.sets, named) | {"profiles": profiles(sources, target.parent)})
    try:
        write_text(target, text)
    except WriteError as error:
        raise NotWritten(target, error) from error
    return target


def profiles(sources: Sources, beside: Path) -> dict[str, str]:
    """Cell key to the page of its profile, as a link from `beside`. A profile without its page (recorded ones are kept so) gets it here."""
    links = {}
    for store in sources.stores:
        for row in store.rows():
            if row.extra.get("profile") and (rendered := profile_page.ensure(store.path / str(row.extra["profile"]))) is not None:
                links[row.key] = quote(os.path.relpath(rendered, beside))
    return links


def page(payload: dict[str, Any], *, live: bool = False) -> str:
    """The HTML text; with `live`, a page that asks its own server for newer data."""
    from plotly.offline import get_plotlyjs

    parts = {
        "policy": "connect-src 'self'" if live else "connect-src 'none'",
        "live": "true" if live else "false",
        "style": "\n".join(asset(name) for name in STYLES),
        "script": "\n".join(asset(name) for name in SCRIPTS),
        "data": packed(json.dumps(payload, separators=(",", ":"), allow_nan=False)),
        "plotly": packed(get_plotlyjs()),
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
