"""The flag that prices results; apart from `_options`, so that commands which read results load nothing of a measurement."""

from __future__ import annotations

from typing import Annotated

import typer

GpuPrice = Annotated[
    str | None,
    typer.Option(
        "--gpu-price-per-hour",
        metavar="USD",
        help="Price of one GPU for an hour, or list (a dated public list): adds cost per million output tokens, tokens/J and tokens/s/MW.",
    ),
]
