"""Engines that commands build for themselves, kept so that the second run starts at once.

The folder's name hashes all that the engine depends on: model description, precision, ranges, architecture, weights (path, size, time of
last change), and the sources of the compiler and its kernels; nothing needs to be invalidated, old folders are merely no longer looked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from trtllm_bench.build_progress import build_progress
from trtllm_engines.build import build
from trtllm_engines.engine_dir import PLAN
from trtllm_engines.plan import Profile
from trtllm_engines.presets import resolve_model
from trtllm_results.environment import source_hash


def cache_folder() -> Path:
    """`$TRTLLM_BENCH_CACHE`, else `trtllm-bench` in the user's cache folder."""
    chosen = os.environ.get("TRTLLM_BENCH_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtllm-bench"


def cached_engine(model: str, precision: str, weights: str | None, seed: int, profile: Profile, arch: str) -> Path:
    """The engine's folder, built now if it was not before. Raises `EngineError`."""
    source = resolve_model(model)
    chosen = weights or ("dummy" if source.path is None else str(source.path))
    content = {
        "model": source.config.to_dict(),
        "path": str(source.path.resolve()) if source.path is not None else model,
        "precision": precision,
        "weights": _identity_of(chosen),
        "seed": seed,
        "profile": asdict(profile),
        "arch": arch,
        "sources": source_hash(),
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = cache_folder() / "engines" / f"{Path(model).name}-{precision}-{key}"
    if not (folder / PLAN).is_file():
        with build_progress() as report:
            build(model, precision, out=folder, weights=chosen, seed=seed, profile=profile, arches=(arch,), progress=report)
    return folder


def _identity_of(weights: str) -> object:
    """Names, sizes and times of the weight files: enough to notice another checkpoint without reading gigabytes."""
    path = Path(weights)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted([*path.glob("*.safetensors"), *path.glob("*.json")])
    else:
        return weights
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
