"""Engines built on the way, for callers that name a model: kept, so that the second start is a load.

The folder's name hashes all the engine depends on: model description, weights (paths, sizes, times of last change), seed, precision,
ranges, architectures, and the sources of compiler and kernels. So nothing is ever invalidated; what is stale is no longer looked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import trtllm_engines
import trtllm_kernels
from trtllm_engines.compiler.plan import ONE_GPU, ParallelLayout, Profile
from trtllm_engines.engine.build import Progress, build
from trtllm_engines.engine.folder import PLAN
from trtllm_engines.models.presets import resolve_model
from trtllm_kernels import tactics


def cache_folder() -> Path:
    """`$TRTLLM_BENCH_CACHE`, else `trtllm-bench` in the user's cache folder."""
    chosen = os.environ.get("TRTLLM_BENCH_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtllm-bench"


def cached_engine(
    model: str | Path,
    precision: str,
    *,
    kv_dtype: str = "auto",
    weights: str | Path = "auto",
    seed: int = 0,
    profile: Profile,
    arches: Sequence[str],
    layout: ParallelLayout = ONE_GPU,
    progress: Progress | None = None,
) -> Path:
    """The engine's folder, built now if it was not before. Raises `EngineError`."""
    source = resolve_model(model)
    chosen = str(weights) if str(weights) != "auto" else ("dummy" if source.path is None else str(source.path))
    content = {
        "model": source.config.to_dict(),
        "path": None if source.path is None else _identity(str(source.path)),
        "weights": _identity(chosen),
        "seed": seed,
        "precision": precision,
        "kv_dtype": kv_dtype,
        "profile": asdict(profile),
        "arches": list(arches),
        "layout": asdict(layout),
        "sources": source_digest(),
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "engines" / f"{Path(model).name}-{precision}-{key}"
    if not (folder / PLAN).is_file():
        build(
            model,
            precision,
            kv_dtype=kv_dtype,
            out=folder,
            weights=chosen,
            seed=seed,
            profile=profile,
            arches=arches,
            layout=layout,
            progress=progress,
        )
    return folder


@lru_cache(maxsize=1)
def source_digest() -> str:
    """Of every source file that decides what a build makes."""
    digest = hashlib.sha256()
    roots = [Path(str(package.__file__)).parent for package in (trtllm_engines, trtllm_kernels)]
    for root in (*roots, tactics.folder()):
        for file in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".json", ".cu", ".cuh")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _identity(weights: str) -> object:
    """Names, sizes and times of the files: enough to notice another checkpoint without reading gigabytes."""
    path = Path(weights)
    if not path.exists():
        return weights
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.json")])
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
