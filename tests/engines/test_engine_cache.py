"""When a cached engine is no longer the one a build would make."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import trtllm_kernels
from trtllm_engines.engine import cache as engine_cache
from trtllm_kernels import tactics
from trtllm_kernels.compile import nvrtc


def test_every_source_of_a_kernel_and_the_recorded_tactics_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "trtllm_kernels"
    shutil.copytree(Path(str(trtllm_kernels.__file__)).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    chosen = tmp_path / "tactics"
    shutil.copytree(tactics.folder(), chosen)
    monkeypatch.setattr(engine_cache, "trtllm_kernels", SimpleNamespace(__file__=str(package / "__init__.py")))
    monkeypatch.setattr(tactics, "folder", lambda: chosen)
    digest = engine_cache.source_digest.__wrapped__
    changed = [package / "cuda_kernels" / name for name in nvrtc.source_hashes()]
    changed += [package / "triton_kernels" / "gemv.py", next(chosen.glob("*.json"))]
    seen = {digest()}
    for file in changed:
        file.write_bytes(file.read_bytes() + b" ")
        seen.add(digest())
    assert len(seen) == len(changed) + 1
    assert {".cu", ".cuh"} <= {file.suffix for file in changed}
