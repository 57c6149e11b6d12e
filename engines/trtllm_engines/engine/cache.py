"""Engines built on the way, for callers that name a model: kept, so that the second start is a load.

The folder's name hashes all the engine depends on: model description, weights (paths, sizes, times of last change), seed, precision,
ranges, architectures, and the sources of compiler and kernels. So nothing is ever invalidated; what is stale is no longer looked for.

What is no longer looked for goes when it is the longest unused and the cache is larger than its limit (`LIMIT_GIB`, or
`$TRTLLM_BENCH_CACHE_GIB`), after each build. An engine that some process uses is locked and stays. An engine that is damaged is built
again, which one note says. Engines of one model that differ in ranges share their weights (`shared_weights`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import trtllm_engines
import trtllm_kernels
from trtllm_engines import cache_locks
from trtllm_engines.checkpoints.checkpoint_precision import plan_for
from trtllm_engines.compiler.fingerprint import CPU
from trtllm_engines.compiler.plan import ONE_GPU, ParallelLayout, Profile
from trtllm_engines.engine import shared_weights
from trtllm_engines.engine.build import Progress, build
from trtllm_engines.engine.fits import check_fits
from trtllm_engines.engine.folder import load_engine
from trtllm_engines.errors import EngineError
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.quantization.scheme import WIDE
from trtllm_kernels import tactics
from trtllm_kernels.files import cache_folder

ENGINES = "engines"
LIMIT_GIB = 100.0
LIMIT_VARIABLE = "TRTLLM_BENCH_CACHE_GIB"
_KEPT_OPEN = 4
"""Engines of this process that are locked at once: those it used last."""
_in_use: deque[int] = deque(maxlen=_KEPT_OPEN)


def cached_engine(
    model: str | Path,
    precision: str,
    *,
    kv_dtype: str = "auto",
    context_attention: str = WIDE,
    weights: str | Path = "auto",
    seed: int = 0,
    profile: Profile,
    arches: Sequence[str],
    layout: ParallelLayout = ONE_GPU,
    gpu: str = "",
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda text: print(f"trtllm-bench: note: {text}", file=sys.stderr),
) -> Path:
    """The engine's folder, built now if it was not before, or is damaged. `gpu`: the GPU it is for. Raises `EngineError`, also for a
    model too large to run here."""
    source = resolve_model(model)
    chosen = str(weights) if str(weights) != "auto" else ("dummy" if source.path is None else str(source.path))
    origin = {
        "path": None if source.path is None else _identity(str(source.path)),
        "weights": _identity(chosen),
        "sources": source_digest(),
    }
    content = {
        "model": source.config.to_dict(),
        **origin,
        "seed": seed,
        "precision": precision,
        "kv_dtype": kv_dtype,
        "context_attention": context_attention,
        "profile": asdict(profile),
        "arches": list(arches),
        "tactics": [tactics.in_use(arch, gpu) for arch in arches if arch != CPU],
        "layout": asdict(layout),
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    root = cache_folder()
    folder = root / ENGINES / f"{Path(model).name[:100]}-{precision}-{key}"
    stored = source.path if chosen == "dummy" else chosen
    quant = plan_for(stored, precision, kv_dtype, arches=arches, context_attention=context_attention)
    for arch in arches:
        check_fits(source.config, quant, profile, arch, layout)
    with cache_locks.one_at_a_time(folder.name):
        if _usable(folder, note, progress):
            _use(folder)
            return folder
        build(
            model,
            precision,
            kv_dtype=kv_dtype,
            context_attention=context_attention,
            out=folder,
            weights=chosen,
            seed=seed,
            profile=profile,
            arches=arches,
            layout=layout,
            gpu=gpu,
            share=shared_weights.SharedWeights(root / shared_weights.FOLDER, origin),
            progress=progress,
        )
        _use(folder)
    clean(limit_bytes())
    return folder


def _usable(folder: Path, note: Callable[[str], None], progress: Progress | None) -> bool:
    """Whether there is a whole engine; a damaged one is told of and removed."""
    if not os.path.lexists(folder):
        return False
    try:
        load_engine(folder, progress=progress)
    except EngineError as error:
        note(f"a cached engine is damaged and is built again ({error})")
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.unlink(missing_ok=True)
        return False
    return True


def _use(folder: Path) -> None:
    """Marks the engine as used now, and keeps other processes from removing it while this one lives."""
    with suppress(OSError):
        os.utime(folder)
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_SH)
        if len(_in_use) == _in_use.maxlen:
            os.close(_in_use.popleft())
        _in_use.append(handle)


@dataclass(frozen=True)
class CachedEngine:
    """`own_bytes` are those that no other file of the cache shares. `used_s` is in seconds since 1970."""

    path: Path
    total_bytes: int
    own_bytes: int
    used_s: float


def engines() -> list[CachedEngine]:
    """The cache's engines, the longest unused first."""
    cached = []
    for folder in (cache_folder() / ENGINES).glob("[!.]*"):
        with suppress(OSError):
            files = [file.stat() for file in folder.rglob("*") if file.is_file()]
            own = sum(file.st_size for file in files if file.st_nlink == 1)
            cached.append(CachedEngine(folder, sum(file.st_size for file in files), own, folder.stat().st_mtime))
    return sorted(cached, key=lambda one: one.used_s)


def total_bytes() -> int:
    """What engines and shared weights take on disk; a file with several links counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for name in (ENGINES, shared_weights.FOLDER):
        for file in (cache_folder() / name).rglob("*"):
            with suppress(OSError):
                if not file.is_symlink() and file.is_file():
                    status = file.stat()
                    sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def limit_bytes() -> int:
    """What engines may take together. Raises `EngineError` for a limit that is not a number."""
    stated = os.environ.get(LIMIT_VARIABLE, "")
    try:
        limit = float(stated) if stated else LIMIT_GIB
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise EngineError(f"{LIMIT_VARIABLE} is {stated!r}; it must be a number of GiB, such as {LIMIT_GIB:g}")
    return int(limit * 2**30)


def clean(limit: int) -> list[Path]:
    """Removes what builds that were cut short left, and the longest unused engines until the rest has at most `limit` bytes; returns those.

    An engine that a process uses stays.
    """
    root = cache_folder()
    _remove_remains(root)
    removed = []
    for engine in engines():
        if total_bytes() <= limit:
            break
        if _remove(engine.path):
            removed.append(engine.path)
        _remove_unshared(root)
    _remove_unshared(root)
    return removed


def _remove_unshared(root: Path) -> None:
    for file in shared_weights.unused(root / shared_weights.FOLDER):
        with suppress(OSError):
            shared_weights.remove(file)


def _remove(folder: Path) -> bool:
    """Whether the engine was removed: it is not while another process has it locked."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _remove_remains(root: Path) -> None:
    """Temporary folders of builds whose process is gone: the lock of their engine can be had. Then locks without an engine."""
    for remains in (root / ENGINES).glob(".*"):
        name = remains.name[1:].rpartition(".")[0].removesuffix(".old")
        if remains.is_dir() and not cache_locks.is_locked(cache_locks.lock_file(name)):
            shutil.rmtree(remains, ignore_errors=True)
    for lock in cache_locks.folder().glob("*.lock"):
        if not (root / ENGINES / lock.stem).exists() and not cache_locks.is_locked(lock):
            lock.unlink(missing_ok=True)


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
    kinds = ("*.safetensors", "*.bin", "*.json", "*.jinja")
    files = [path] if path.is_file() else sorted(file for kind in kinds for file in path.glob(kind))
    if path.is_file() and path.suffix == ".gguf":
        from trtllm_engines.models.gguf_file import parts_of

        files = parts_of(path)
    return [_stamp(file) for file in files]


def _stamp(file: Path) -> tuple[str, int, int]:
    """Of a file that cannot be looked at (a dangling link, a loop of links) its place alone: whoever reads it says what is wrong."""
    place = os.path.realpath(file)
    try:
        status = file.stat()
    except OSError:
        return place, -1, -1
    return place, status.st_size, status.st_mtime_ns
