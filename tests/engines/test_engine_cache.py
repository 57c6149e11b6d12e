"""When a cached engine is no longer the one a build would make."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compiler_models import LLAMA, PROFILE, checkpoint
from hf_folders import hf_folder

import trtllm_kernels
from trtllm_engines.compiler.fingerprint import make_fingerprint
from trtllm_engines.compiler.graph import trace
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.engine import cache as engine_cache
from trtllm_engines.engine.build import refit
from trtllm_engines.engine.cache import cached_engine
from trtllm_engines.engine.folder import load_engine
from trtllm_engines.errors import EngineError
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


def test_an_engine_says_whose_tactics_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tactics, "folder", lambda: tmp_path)
    for name in ("h100", "h200"):
        (tmp_path / f"{name}.json").write_text(f'{{"gpu": "{name}", "arch": "sm_90", "tactics": {{}}}}')
    built = make_fingerprint(("sm_80", "sm_90"), gpu="NVIDIA H200").provenance
    assert {name: built[name] for name in built if name.startswith("tactics/")} == {"tactics/sm_90": "h200"}
    assert make_fingerprint(("sm_90",)).provenance["tactics/sm_90"] == "h100"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_cache, "_in_use", deque(maxlen=4))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return hf_folder(tmp_path / "model", checkpoint(trace(LLAMA, "fp32", PROFILE)))


def make(model: Path | str, batch: int = 1, **given: Any) -> Path:
    return cached_engine(model, "fp32", profile=Profile(batch, 16, 32), arches=("cpu",), **given)


def forget() -> None:
    """As if the process that used the engines had ended."""
    while engine_cache._in_use:
        os.close(engine_cache._in_use.popleft())


@pytest.mark.parametrize("damage", ["flip", "cut", "no plan", "no folder"])
def test_a_damaged_engine_is_built_again_with_one_note(cache: Path, model: Path, damage: str) -> None:
    notes: list[str] = []
    folder = make(model, note=notes.append)
    before = {name: tensor.clone() for name, tensor in load_engine(folder).tensors("cpu").items()}
    weights = folder / "rank0.safetensors"
    if damage == "flip":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        with weights.open("r+b") as file:  # in place: the shared copy is damaged too
            file.write(content)
    elif damage == "cut":
        os.truncate(weights, 100)
    elif damage == "no plan":
        (folder / "engine.json").unlink()
    else:
        shutil.rmtree(folder)
        folder.write_text("no folder")
    assert make(model, note=notes.append) == folder
    assert len(notes) == 1
    assert "a cached engine is damaged and is built again (" in notes[0]
    after = load_engine(folder, verify="full").tensors("cpu")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert make(model, note=notes.append) == folder
    assert len(notes) == 1


def test_engines_of_one_model_share_their_weights(cache: Path, model: Path) -> None:
    one, two = make(model, 1), make(model, 2)
    assert one != two
    assert os.path.samefile(one / "rank0.safetensors", two / "rank0.safetensors")
    weights = (one / "rank0.safetensors").stat().st_size
    assert engine_cache.total_bytes() < 2 * weights
    assert all(entry.own_bytes < entry.total_bytes - weights + 1 for entry in engine_cache.engines())
    other = cached_engine(model, "bf16", profile=Profile(1, 16, 32), arches=("cpu",))
    assert not os.path.samefile(one / "rank0.safetensors", other / "rank0.safetensors")
    refit(two, "dummy")
    load_engine(one, verify="full")


def test_the_longest_unused_engines_go_first(cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [make(name) for name in (model, "tiny-llama")] + [make("tiny-llama", 2)]
    for age, folder in zip((30, 10, 20), folders, strict=True):
        os.utime(folder, (time.time() - age, time.time() - age))
    assert [entry.path for entry in engine_cache.engines()] == [folders[0], folders[2], folders[1]]
    assert engine_cache.clean(0) == []  # all three are in use
    forget()
    total = engine_cache.total_bytes()
    assert engine_cache.clean(total) == []
    assert engine_cache.clean(total - 1) == [folders[0]]
    assert not list((cache / "weights").iterdir())
    assert engine_cache.total_bytes() < total
    monkeypatch.setenv("TRTLLM_BENCH_CACHE_GIB", "0")
    forget()
    newest = make("tiny-llama", 3)
    assert [entry.path for entry in engine_cache.engines()] == [newest]
    assert load_engine(newest).plan.profile.max_batch_size == 3


def test_what_an_interrupted_build_left_is_removed(cache: Path) -> None:
    folder = make("tiny-llama")
    remains = folder.with_name(f".{folder.name}.abc123")
    (remains / "kernels").mkdir(parents=True)
    engine_cache.clean(engine_cache.limit_bytes())
    assert not remains.exists()
    assert folder.exists()


@pytest.mark.parametrize("stated", ["x", "-1", "nan", "inf"])
def test_the_limit_is_a_number(stated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_cache.limit_bytes() == 100 * 2**30
    monkeypatch.setenv("TRTLLM_BENCH_CACHE_GIB", stated)
    with pytest.raises(EngineError, match=r"TRTLLM_BENCH_CACHE_GIB is .*; it must be a number of GiB"):
        engine_cache.limit_bytes()


def test_a_template_of_its_own_file_counts(model: Path) -> None:
    before = engine_cache._identity(str(model))
    (model / "chat_template.jinja").write_text("AAAA")
    assert engine_cache._identity(str(model)) != before


def test_two_processes_build_one_engine_once_and_load_nothing_of_torchs_compiler(cache: Path) -> None:
    code = (
        "import sys\n"
        "from trtllm_engines.engine.cache import cached_engine\n"
        "from trtllm_engines.compiler.plan import Profile\n"
        "built = []\n"
        "print(cached_engine('tiny-llama', 'fp32', profile=Profile(5, 16, 32), arches=('cpu',), "
        "progress=lambda stage, done, total: built.append(stage)), bool(built))\n"
        "print(*(sys.modules.keys() & {'torch._dynamo', 'sympy'}))\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].splitlines() for process in processes]
    assert len({folder for folder, _ in (lines[0].split() for lines in said)}) == 1
    assert [lines[1] for lines in said] == ["", ""]
    assert sorted(lines[0].split()[1] for lines in said) == ["False", "True"]
