"""The engine folder: what is built is what is loaded, damage and foreign machines are refused by name, and writing is all or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compiler_models import LLAMA, checkpoint
from safetensors.torch import save_file

import trtllm_engines.engine.build as build_module
from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import _check_same_model, assemble
from trtllm_engines.compiler.fingerprint import DetectedDevice, compatible_arch, parse_arches
from trtllm_engines.compiler.graph import trace
from trtllm_engines.compiler.plan import FORMAT_VERSION, Profile
from trtllm_engines.engine import folder as engine_dir
from trtllm_engines.engine import verified
from trtllm_engines.engine.build import build, refit
from trtllm_engines.engine.checksums import check_files, write_checksums
from trtllm_engines.engine.folder import load_engine, rebuild_command
from trtllm_engines.errors import EngineError
from trtllm_engines.models import presets

PROFILE = Profile(max_batch_size=4, max_num_tokens=64, max_seq_len=64)
CPU = torch.device("cpu")
HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(HF_CONFIG))
    save_file(checkpoint(trace(LLAMA, "fp32", PROFILE)), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def built(hf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(hf_folder, "fp32", out=tmp_path_factory.mktemp("engines") / "engine", profile=PROFILE)


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


def edit_plan(engine: Path, **fields: object) -> None:
    data = json.loads((engine / "engine.json").read_text())
    data["fingerprint"] |= fields
    (engine / "engine.json").write_text(json.dumps(data))


def test_loaded_weights_are_the_models_stacked(built: Path, hf_folder: Path) -> None:
    loaded = load_engine(built)
    tensors = loaded.tensors("cpu")
    original = checkpoint(trace(LLAMA, "fp32", PROFILE))
    assert set(tensors) == {*loaded.plan.weights, *loaded.plan.constants}
    for name in loaded.plan.weights:
        parts = [original[part] for part, _ in loaded.plan.weight_recipes[name].inputs]
        interleaved = loaded.plan.weight_recipes[name].interleave
        assert torch.equal(tensors[name], torch.stack(parts, 1).flatten(0, 1) if interleaved else torch.cat(parts))
    assert loaded.plan.config.hidden_size == 64
    assert loaded.plan.profile == PROFILE
    assert loaded.arch == "cpu"
    assert loaded.tokenizer is None


def test_dummy_engines_store_no_weights_and_draw_the_same_ones_each_time(tmp_path: Path) -> None:
    out = build("tiny-llama", "bf16", out=tmp_path / "e", profile=PROFILE, seed=7)
    assert not (out / "rank0.safetensors").exists()
    loaded = load_engine(out)
    first, second = loaded.tensors("cpu"), loaded.tensors("cpu")
    assert all(torch.equal(first[name], second[name]) for name in first)
    name = "model.layers.0.mlp.gate_up_proj.weight"
    assert torch.equal(first[name], assemble(loaded.plan, name, DummyWeights(7), CPU))


def test_a_preset_takes_the_tokenizer_of_the_weights_it_is_built_with(
    hf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Path(shutil.copytree(hf_folder, tmp_path / "w"))
    (weights / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    monkeypatch.setitem(presets.PRESETS, "test-preset", HF_CONFIG)  # type: ignore[arg-type]
    tokenizer = load_engine(build("test-preset", "fp32", weights=weights, out=tmp_path / "e", profile=PROFILE)).tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("a") == [0]
    assert load_engine(build("test-preset", "fp32", out=tmp_path / "f", profile=PROFILE)).tokenizer is None


def test_loading_needs_no_triton(tmp_path: Path) -> None:
    out = build("tiny-llama", "bf16", out=tmp_path / "e", profile=PROFILE, arches=("sm_90",))
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "from trtllm_engines.engine.folder import load_engine\n"
        "from trtllm_engines.compiler.fingerprint import DetectedDevice\n"
        f"engine = load_engine({str(out)!r}, DetectedDevice('sm_90', '999'))\n"
        "keys = [k.key for op in engine.plan.ops for k in op.tactics['sm_90'].kernels]\n"
        "print(len(engine.tensors('cpu')), sum(len(engine.cubin(k).code) > 0 for k in set(keys)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    tensors, kernels = map(int, run.stdout.split())
    assert tensors == 28
    assert kernels >= 8


def test_building_again_replaces_the_engine(engine: Path) -> None:
    build("tiny-llama", "fp32", out=engine, profile=PROFILE)
    assert load_engine(engine).plan.model["name"] == "tiny-llama"
    assert [p.name for p in engine.parent.iterdir()] == [engine.name]


def test_a_folder_that_is_no_engine_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(EngineError, match="exists and is not an engine folder"):
        build("tiny-llama", "fp32", out=tmp_path, profile=PROFILE)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failed_build_leaves_the_old_engine_and_no_litter(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (engine / "engine.json").read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build_module, "_copy_tokenizer", full)
    with pytest.raises(EngineError, match="no space left on disk while writing the engine to"):
        build("tiny-llama", "fp32", out=engine, profile=PROFILE)
    assert (engine / "engine.json").read_text() == before
    assert [p.name for p in engine.parent.iterdir()] == [engine.name]


def test_too_little_space_is_said_before_writing(hf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(EngineError, match=r"no space for the engine at .*: it needs 0\.0 GiB and 0\.0 GiB are free"):
        build(hf_folder, "fp32", out=tmp_path / "e", profile=PROFILE)


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot write the engine to"):
        build("tiny-llama", "fp32", out=tmp_path / "file" / "engine", profile=PROFILE)


def test_read_only_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:  # root, as in a container, may write anywhere: the refusal is acted
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(engine_dir.tempfile, "mkdtemp", refuse)
    with pytest.raises(EngineError, match=r"cannot write the engine to .* \(Permission denied\); choose a folder you may write to"):
        build("tiny-llama", "fp32", out=tmp_path / "engine", profile=PROFILE)


@pytest.mark.parametrize("name", ["engine.json", "constants.safetensors", "rank0.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damage_is_named(engine: Path, name: str, damage: str) -> None:
    file = engine / name
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-10])
    elif damage == "altered":
        content[-3] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    expected = "is not an engine: it has no" if (name, damage) == ("engine.json", "missing") else f"{name} (is|was) (damaged|{damage})"
    with pytest.raises(EngineError, match=expected) as caught:
        load_engine(engine)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        (byte,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte ^ 64]))


def test_a_flipped_byte_anywhere_is_found_and_files_are_hashed_once(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    hash_file = verified.Verifier._hash
    monkeypatch.setattr(verified.Verifier, "_hash", lambda self, path: (hashed.append(path.name), hash_file(self, path))[1])
    monkeypatch.setattr(verified, "_CLOCK_TICK_NS", 0)
    file = engine / "rank0.safetensors"
    check_files(engine)
    hashed.clear()
    check_files(engine)
    assert hashed == []
    check_files(engine, "full")
    assert "rank0.safetensors" in hashed
    size = file.stat().st_size
    for at in (0, 9, size // 3, size // 2 + 100, size - 1):
        flip(file, at)
        for _ in range(2):
            with pytest.raises(EngineError, match=r"rank0\.safetensors was altered \(its checksum differs\)"):
                load_engine(engine)
        flip(file, at)
        load_engine(engine)


def test_a_change_that_leaves_size_and_time_is_found_on_request(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "_CLOCK_TICK_NS", 0)
    file = engine / "rank0.safetensors"
    check_files(engine)
    before = file.stat()
    flip(file, before.st_size // 2)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    check_files(engine)
    with pytest.raises(EngineError, match=r"rank0\.safetensors was altered"):
        check_files(engine, "full")


def test_long_hashing_shows_progress(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "_SHOW_AFTER_S", -1.0)
    seen: list[tuple[str, int, int]] = []
    load_engine(engine, verify="full", progress=lambda *told: seen.append(told))
    assert {stage for stage, _, _ in seen} == {"verify"}
    assert all(done <= total for _, done, total in seen)


def edited(engine: Path, name: str, change: Callable[[dict[str, Any]], Any], checksums: bool = True) -> Path:
    content = json.loads((engine / name).read_text())
    (engine / name).write_text(json.dumps(change(content) or content))
    if checksums:
        write_checksums(engine)
    return engine


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda sums: sums.update({"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}), "passwd' is not a file of the engine"),
        (lambda sums: sums.update({"/dev/zero": {"bytes": 0, "sha256": "0" * 64}}), "'/dev/zero' is not a file of the engine"),
        (lambda sums: sums.update({"a\0b": {"bytes": 1, "sha256": "0" * 64}}), "is not a file of the engine"),
        (lambda sums: sums.update({"engine.json": [1]}), r"engine\.json is \[1\]; it must be an object"),
        (lambda sums: sums["engine.json"].update(bytes="12"), r"engine\.json\.bytes is '12'; it must be a whole number"),
        (lambda sums: sums["engine.json"].pop("sha256"), r"engine\.json\.sha256 is missing"),
        (lambda sums: sums["engine.json"].update(sha256="x"), r"engine\.json\.sha256 is 'x'; it must match"),
        (lambda sums: sums.pop("rank0.safetensors"), r"does not list rank0\.safetensors, which the engine reads"),
        (lambda sums: sums.pop("config.json"), r"does not list config\.json, which the engine reads"),
        (lambda sums: sums.clear(), r"does not list engine\.json, which the engine reads"),
    ],
)
def test_checksums_name_the_files_of_the_folder(engine: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        load_engine(edited(engine, "checksums.json", lambda sums: (change(sums), None)[1], checksums=False))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: plan.update(precision="fp32"), "precision is not a known key"),
        (lambda plan: plan["ops"][0].update(extra=1), r"ops\.0\.extra is not a known key"),
        (lambda plan: plan.update(fingerprint="x"), r"fingerprint is 'x'; it must be an object"),
        (lambda plan: plan.update(ops="x"), "ops is 'x'; it must be a list"),
        (lambda plan: plan.pop("buffers"), "buffers is missing"),
        (lambda plan: plan["profile"].update(max_batch_size=-1), "max_batch_size is -1 but must be at least 1"),
        (lambda plan: plan["profile"].update(max_seq_len=10**12), "max_seq_len is 1000000000000 but must be at most 1073741824"),
        (lambda plan: plan["profile"].update(max_seq_len=10**6), "max_seq_len 1000000 is beyond the 64 positions"),
        (lambda plan: plan["model"].update(hidden_size=10**9), "hidden_size is 1000000000 but must be at most 1048576"),
        (lambda plan: plan["model"].update(extra=1), r"model\.extra is not a known key"),
        (lambda plan: plan["model"]["rope"].update(theta="x"), r"model: rope\.theta is 'x'; it must be a number"),
        (lambda plan: plan.update(arena_bytes=16), "lies outside the arena of 16 bytes"),
        (lambda plan: plan["ops"][2].update(inputs=[]), "has 0 inputs and"),
        (lambda plan: plan["ops"][2].update(op="rm_rf"), "is 'rm_rf', which is not in this release"),
        (lambda plan: plan["ops"][2]["inputs"].__setitem__(0, "nobody"), "reads 'nobody', which nothing before it makes"),
        (lambda plan: plan["values"]["logits"].update(dtype="fp3"), "values logits is of dtype 'fp3'"),
        (lambda plan: plan["values"]["logits"].update(shape=["__import__('os')", 4]), "has a size .* that cannot be read"),
        (
            lambda plan: plan["weights"]["lm_head.weight"].update(shape=[3, 3]),
            r"tensor lm_head\.weight is float32 \[97, 64\]; the plan has",
        ),
        (lambda plan: plan["weight_recipes"].clear(), "has no recipe"),
        (lambda plan: plan.update(outputs=["nothing"]), "output 'nothing' is made by none of its ops"),
        (lambda plan: plan.update(weights_source={"kind": "dummy"}), "weights_source.seed is None; it must be a whole number"),
        (lambda plan: plan["fingerprint"]["provenance"].clear(), "provenance has no model"),
    ],
)
def test_a_plan_that_makes_no_sense_is_named(engine: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        load_engine(edited(engine, "engine.json", lambda plan: (change(plan), None)[1])).tensors("cpu")
    assert "\n" not in str(caught.value)


def test_pipes_and_links_in_an_engine(engine: Path, tmp_path: Path) -> None:
    weights = engine / "rank0.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    load_engine(engine)
    for target in ("/etc/passwd", "/nonexistent", str(weights)):
        weights.unlink()
        weights.symlink_to(target)
        with pytest.raises(EngineError, match=r"rank0\.safetensors (was|is|cannot)"):
            load_engine(engine)
    for name in ("rank0.safetensors", "checksums.json", "engine.json"):
        (engine / name).unlink()
        os.mkfifo(engine / name)
        with pytest.raises(EngineError, match=rf"{name} is a pipe; it must be a regular file"):
            load_engine(engine)


def test_no_engine_here(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no engine at .*: there is no such folder"):
        load_engine(tmp_path / "absent")
    with pytest.raises(EngineError, match=r"is not an engine: it has no engine\.json"):
        load_engine(tmp_path)


def test_other_format_and_kernel_abi_are_refused(engine: Path) -> None:
    edit_plan(engine, format_version=99)
    with pytest.raises(
        EngineError,
        match=f"has folder format version 99 but this release runs version {FORMAT_VERSION}; rebuild with: trtllm-bench build --model",
    ):
        load_engine(engine)
    edit_plan(engine, format_version=FORMAT_VERSION, kernel_abi=0)
    with pytest.raises(EngineError, match="has kernel ABI version 0 but this release runs version"):
        load_engine(engine)


def test_other_architecture_and_older_driver_are_refused(tmp_path: Path) -> None:
    out = build("tiny-llama", "bf16", out=tmp_path / "e", profile=PROFILE, arches=("sm_80",))
    assert load_engine(out, DetectedDevice("sm_80", "580.65.06")).arch == "sm_80"
    assert load_engine(out, DetectedDevice("sm_86", "580.65.06")).arch == "sm_80"
    with pytest.raises(
        EngineError, match=r"was built for sm_80 but this GPU \(NVIDIA H100\) is sm_90; rebuild with: trtllm-bench build .*--arch sm_90"
    ):
        load_engine(out, DetectedDevice("sm_90", "580.65.06", "NVIDIA H100"))
    with pytest.raises(EngineError, match=r"needs NVIDIA driver \S+ or later but this machine has 450\.80\.02"):
        load_engine(out, DetectedDevice("sm_80", "450.80.02"))


def test_a_cpu_engine_on_a_gpu_is_refused(built: Path) -> None:
    with pytest.raises(EngineError, match="was built for cpu but this GPU is sm_90"):
        load_engine(built, DetectedDevice("sm_90", "580.65.06"))


def test_which_machine_code_runs_where() -> None:
    assert compatible_arch(("sm_80", "sm_89"), "sm_89") == "sm_89"
    assert compatible_arch(("sm_80", "sm_86"), "sm_89") == "sm_86"
    assert compatible_arch(("sm_89",), "sm_80") is None
    assert compatible_arch(("sm_90",), "sm_100") is None
    assert compatible_arch(("cpu", "sm_80"), "sm_90") is None
    with pytest.raises(EngineError, match="unknown architecture 'sm_12'; supported are cpu, sm_80"):
        parse_arches(["sm_12"])


def test_the_rebuild_command_rebuilds_the_same_plan(engine: Path, tmp_path: Path) -> None:
    """Parsed as the command line would, it gives the plan back."""
    plan = load_engine(engine).plan
    words = rebuild_command(plan, tmp_path / "again").split()
    assert words[:2] == ["trtllm-bench", "build"]
    flags = dict(zip(words[2::2], words[3::2], strict=True))
    profile = Profile(*(int(flags[f"--{name}"]) for name in ("max-batch-size", "max-num-tokens", "max-seq-len", "page-size")))
    again = build(
        flags["--model"],
        flags["--precision"],
        weights=flags["--weights"],
        arches=flags["--arch"].split(","),
        profile=profile,
        out=flags["--out"],
    )
    assert load_engine(again).plan == plan


def test_kernels_are_stored_for_every_architecture_and_spill_nothing(tmp_path: Path) -> None:
    stages = []
    out = build(
        "tiny-llama",
        "bf16",
        out=tmp_path / "e",
        profile=PROFILE,
        arches=("sm_80", "sm_90"),
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )
    for arch in ("sm_80", "sm_90"):
        engine = load_engine(out, DetectedDevice(arch, "999"))
        keys = {kernel.key for op in engine.plan.ops for kernel in op.tactics[arch].kernels}
        assert {p.stem for p in (out / "kernels" / arch).glob("*.cubin")} == keys
        for key in keys:
            cubin = engine.cubin(key)
            assert cubin.code[:4] == b"\x7fELF"
            assert cubin.info.arch == arch
            assert cubin.info.spill_bytes == 0
        assert (f"kernels {arch}", len(keys), len(keys)) in stages


def test_refit_swaps_weights_and_recompiles_nothing(engine: Path, hf_folder: Path, tmp_path: Path) -> None:
    before = load_engine(engine)
    new = checkpoint(trace(LLAMA, "fp32", PROFILE), seed=9)
    save_file(new, tmp_path / "model.safetensors")
    refit(engine, tmp_path)
    after = load_engine(engine)
    assert torch.equal(after.tensors("cpu")["lm_head.weight"], new["lm_head.weight"])
    assert replace(after.plan, weights_source={}) == replace(before.plan, weights_source={})
    refit(engine, "dummy", seed=4)
    assert not (engine / "rank0.safetensors").exists()
    drawn = load_engine(engine).tensors("cpu")["lm_head.weight"]
    assert torch.equal(drawn, DummyWeights(4).read("lm_head.weight", (97, 64), torch.float32, CPU))


def test_refit_with_weights_that_do_not_fit_changes_nothing(engine: Path, tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(5, 5)}, tmp_path / "model.safetensors")
    before = {p.name: p.read_bytes() for p in engine.iterdir() if p.is_file()}
    with pytest.raises(EngineError, match=r"has shape \[5, 5\]|is missing from"):
        refit(engine, tmp_path)
    assert {p.name: p.read_bytes() for p in engine.iterdir() if p.is_file()} == before


def test_weights_that_state_no_sliding_window_may_be_of_a_model_with_one() -> None:
    """A GGUF file of Mistral 7B states none."""
    without = presets.preset_config("tiny-llama")
    window = replace(without, sliding_window=without.max_position_embeddings)
    _check_same_model(window, without, "w")
    _check_same_model(window, window, "w")
    with pytest.raises(EngineError, match=f"of a model with sliding_window {window.sliding_window}, and the engine is of one with None"):
        _check_same_model(without, window, "w")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_hidden_layers": 1}, r"of a model with num_layers 1, and the engine is of one with \d"),
        ({"rms_norm_eps": 0.01}, "of a model with norm_eps 0.01, and the engine"),
        ({"rope_theta": 77.0}, r"other rotary embeddings \(\{'theta': 77\.0\}\), and the engine is of one with \{'theta': "),
        ({"eos_token_id": 5}, None),
    ],
)
def test_refit_with_weights_of_another_model_of_the_same_shapes_is_refused(
    engine: Path, hf_folder: Path, tmp_path: Path, changed: dict[str, Any], said: str | None
) -> None:
    """Their shapes fit; only what the configuration beside them says does not."""
    folder = tmp_path / "other"
    shutil.copytree(hf_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    if "rope_theta" in changed:
        config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(config | changed))
    if said is None:
        refit(engine, folder)
    else:
        with pytest.raises(EngineError, match=said):
            refit(engine, folder)


def test_marked_outputs_join_the_plan_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    out = build("tiny-llama", "fp32", out=tmp_path / "e", profile=PROFILE, mark_outputs=["model.layers.1.add", "model.layers.1.add"])
    assert load_engine(out).plan.outputs == ("logits", "model.layers.1.add")
    with pytest.raises(EngineError, match=r"cannot mark 'model\.layers\.1\.ad' as an output: .* near it are model\.layers\.1\.add"):
        build("tiny-llama", "fp32", out=tmp_path / "f", profile=PROFILE, mark_outputs=["model.layers.1.ad"])


def test_unknown_precision() -> None:
    with pytest.raises(EngineError, match="unknown precision 'fp4'; supported are fp32, fp16, bf16"):
        build("tiny-llama", "fp4", out="unused", profile=PROFILE)
