"""`cache`, and engines of the cache: damage is mended, and a model too large is told before it is built, as an `oom` cell."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path

import pytest
from command_line import refused, run

from trtllm_bench.commands.build import check_gpu, note_if_not_tuned
from trtllm_engines.engine import cache as engine_cache
from trtllm_engines.engine import fits, verified
from trtllm_engines.errors import OutOfMemoryError
from trtllm_engines.memory import allocating
from trtllm_results.store.table import Store

ONE = ["--isl", 4, "--osl", 2, "--num-requests", 1, "--warmup", 0, "--max-lag-ms", 100000, "--device", "cpu"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_cache, "_in_use", deque(maxlen=4))
    return tmp_path / "cache"


def forget() -> None:
    while engine_cache._in_use:
        os.close(engine_cache._in_use.popleft())


def test_ls_and_clean(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    run(capsys, "generate", "--model", "tiny-llama", "--token-ids", "1,2", "--max-tokens", 2, "--device", "cpu")
    code, out, _ = run(capsys, "cache", "ls", "--json")
    found = json.loads(out)
    assert (code, found["limit_bytes"], found["folder"]) == (0, 100 * 2**30, str(cache))
    (engine,) = found["engines"]
    assert engine["name"].startswith("tiny-llama-fp32-")
    assert engine["bytes"] == found["bytes"] == sum(file.stat().st_size for file in Path(engine["path"]).rglob("*") if file.is_file())
    assert engine["name"] in run(capsys, "cache", "ls")[1]
    assert json.loads(run(capsys, "cache", "clean", "--all", "--json")[1]) == {"removed": [], "freed_bytes": 0, "kept": 1}
    forget()
    assert "removed 0 engines" in run(capsys, "cache", "clean")[1]
    cleaned = json.loads(run(capsys, "cache", "clean", "--max-gib", 0, "--json")[1])
    assert cleaned == {"removed": [engine["path"]], "freed_bytes": found["bytes"], "kept": 0}
    assert "--all or --max-gib" in refused(capsys, "cache", "clean", "--all", "--max-gib", 1)


def test_a_damaged_cached_engine_is_built_again_and_measured(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert run(capsys, "throughput", "--model", "tiny-llama", *ONE)[0] == 0
    (constants,) = (cache / "engines").glob("*/constants.safetensors")
    content = bytearray(constants.read_bytes())
    content[-1] ^= 1
    constants.write_bytes(content)
    code, _, err = run(capsys, "throughput", "--model", "tiny-llama", *ONE)
    assert code == 0
    notes = [line for line in err.splitlines() if line.startswith("trtllm-bench: note: ")]
    assert len(notes) == 1
    assert "is damaged and is built again" in notes[0]
    assert "built again" not in run(capsys, "throughput", "--model", "tiny-llama", *ONE)[2]


def test_a_model_too_large_is_told_and_its_cells_are_oom(
    capsys: pytest.CaptureFixture[str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits, "room_of", lambda arch: 10 * 2**30)
    said = refused(capsys, "throughput", "--model", "llama-3.1-8b", *ONE, code=1)
    assert "llama-3.1-8b in fp32 needs" in said
    assert "it fits in fp8 (8.5 GiB)" in said
    sweep = ["sweep", "--model", "llama-3.1-8b,tiny-llama", "--precision", "fp32", "--batch-size", 1, *ONE]
    run(capsys, *sweep, "--out", tmp_path / "s")
    rows = Store(tmp_path / "s").rows()
    assert {(row.cell.model, row.status) for row in rows} == {("llama-3.1-8b", "oom"), ("tiny-llama", "ok")}
    assert not list((cache / "engines").glob("llama-*"))


def test_a_failing_host_allocation_is_an_oom_cell(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtllm_engines.runtime.cpu import CpuRunner

    def forward(self: CpuRunner, sizes: object) -> None:
        with allocating("running a step"):
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )

    monkeypatch.setattr(CpuRunner, "forward", forward)
    run(capsys, "sweep", "--model", "tiny-llama", "--batch-size", 1, *ONE, "--out", tmp_path / "s")
    (row,) = Store(tmp_path / "s").rows()
    assert row.status == "oom"
    assert "out of memory while running a step" in row.reason
    assert issubclass(OutOfMemoryError, ValueError)


def test_build_tells_what_it_made_as_json_and_what_cannot_run_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run(capsys, "build", "--model", "gptj-6b", "--precision", "bf16", "--arch", "cpu", "--out", tmp_path / "e", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["path"], found["profile"]["max_seq_len"], found["model"]["num_layers"]) == (str(tmp_path / "e"), 2048, 28)
    assert found["build_s"] > 0
    assert "note:" not in err
    monkeypatch.setattr(fits, "room_of", lambda arch: 2**30)
    code, _, err = run(capsys, "build", "--model", "gptj-6b", "--precision", "bf16", "--arch", "cpu", "--out", tmp_path / "f")
    assert code == 0
    assert "note: this machine cannot run the engine: gptj-6b in bf16 needs" in err


def test_a_gpu_without_tactics_of_its_own_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for gpu, arches in (("h200", ["sm_90"]), (None, ["sm_90"]), ("h300", ["cpu"])):
        note_if_not_tuned(gpu, arches)
    assert capsys.readouterr().err == ""
    note_if_not_tuned("h300", ["sm_90", "sm_89"])
    assert capsys.readouterr().err.splitlines() == [
        "trtllm-bench: note: no tactics of h300 are recorded for sm_90; those of h100 are taken",
        "trtllm-bench: note: no tactics of h300 are recorded for sm_89; defaults are taken",
    ]


def test_an_unknown_gpu_is_refused_where_no_note_would_tell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = ("build", "--model", "tiny-llama", "--precision", "fp32", "--arch", "cpu", "--out", tmp_path / "e")
    said = "is 'h300', which no tactics or data sheet here are of; choose from a100, l40s, h100, h200, b200, or leave it out"
    assert refused(capsys, *asked, "--gpu", "h300") == f"trtllm-bench: --gpu {said}"
    recipe = tmp_path / "r.toml"
    sizes = "".join(f"{name} = 32\n" for name in ("max_batch_size", "max_num_tokens", "max_seq_len"))
    recipe.write_text(f'model = "tiny-llama"\nprecision = "fp32"\narches = ["cpu"]\ngpu = "h300"\n{sizes}')
    assert refused(capsys, "build", "--recipe", recipe, "--out", tmp_path / "e") == f"trtllm-bench: {recipe}: gpu {said}"
    check_gpu("NVIDIA H200", ["cpu"], "--gpu")
    check_gpu("h300", ["sm_90"], "--gpu")


def test_verify_and_chat_with_token_ids(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, "build", "--model", "tiny-llama", "--arch", "cpu", "--max-seq-len", 64, "--out", tmp_path / "e")
    ask = ["generate", "--engine-dir", tmp_path / "e", "--token-ids", "1", "--max-tokens", 2, "--device", "cpu"]
    assert run(capsys, *ask, "--verify")[0] == 0
    constants = tmp_path / "e" / "constants.safetensors"
    before = constants.stat()
    content = bytearray(constants.read_bytes())
    content[-1] ^= 1
    with constants.open("r+b") as file:
        file.write(content)
    os.utime(constants, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "constants.safetensors was altered" in refused(capsys, *ask, "--verify")
    assert "constants.safetensors was altered" in refused(capsys, "inspect", tmp_path / "e", "--verify")
    assert "--chat takes a prompt of text" in refused(capsys, *ask, "--chat")


def test_verify_hashes_an_engine_of_the_cache_too(capsys: pytest.CaptureFixture[str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte changed by the disk: neither the file's size nor its time tells of it."""
    monkeypatch.setattr(verified, "_CLOCK_TICK_NS", 0)
    ask = ["generate", "--model", "tiny-llama", "--token-ids", "1", "--max-tokens", 2, "--device", "cpu"]
    assert run(capsys, *ask)[0] == 0
    (constants,) = cache.glob("engines/*/constants.safetensors")
    before, content = constants.stat(), bytearray(constants.read_bytes())
    content[-1] ^= 1
    with constants.open("r+b") as file:
        file.write(content)
    os.utime(constants, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(capsys, *ask)[0] == 0
    assert f"{constants} was altered" in refused(capsys, *ask, "--verify")
