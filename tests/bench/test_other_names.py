"""Every option of NVIDIA's `trtllm-bench` works here, or one sentence says what to use; this tool's older names work too."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, run

from trtllm_bench.app import CommandFolder
from trtllm_bench.errors import BenchError
from trtllm_results.store.table import Store

# What TensorRT-LLM's trtllm-bench took from 0.12 to 1.2: command, option as it is typed, and what must come of it here: the parameter and
# the value it gets, words of the sentence that refuses it, or (a tuple) words of the note beside which the run goes on.
MEASURED = ("throughput", "latency")
NVIDIA: list[tuple[tuple[str, ...], str, dict[str, Any] | str | tuple[str, ...]]] = [
    (MEASURED, "--engine_dir e", {"engine_dir": Path("e")}),
    (MEASURED, "--dataset d.jsonl", {"dataset": "d.jsonl"}),
    (MEASURED, "--max_seq_len 99", {"max_seq_len": 99}),
    (("throughput", "build"), "--max_batch_size 8", {"max_batch_size": 8}),
    (("throughput", "build"), "--max_num_tokens 8", {"max_num_tokens": 8}),
    (("build",), "--max_seq_len 99", {"max_seq_len": 99}),
    (MEASURED, "--kv_cache_free_gpu_mem_fraction 0.5", {"kv_cache_fraction": 0.5}),
    (MEASURED, "--num_requests 12", {"num_requests": 12}),
    (MEASURED, "--num_requests 0", {"num_requests": 0}),
    (MEASURED, "--warmup 3", {"warmup": 3}),
    (MEASURED, "--concurrency 5", {"concurrency": 5}),
    (("throughput",), "--concurrency -1", {"concurrency": -1}),
    (("throughput",), "--request_rate 4", {"request_rate": 4.0}),
    (("throughput",), "--streaming", {"streaming": True}),
    (("latency",), "--streaming", ("--streaming has no effect",)),
    (MEASURED, "--report_json r.json", {"report_json": Path("r.json")}),
    (("throughput",), "--scheduler_policy max_utilization", {"policy": "max_utilization"}),
    (MEASURED, "--tp 2", {"tp": 2}),
    (MEASURED, "--pp 2", {"pp": 2}),
    (MEASURED, "--tp_size 2", {"tp": 2}),
    (MEASURED, "-tp 2", {"tp": 2}),
    (MEASURED, "--pp_size 2", {"pp": 2}),
    (("build",), "-tp 2", {"tp": 2}),
    (("build",), "-pp 2", {"pp": 2}),
    (MEASURED, "--ep 1", {}),
    (MEASURED, "--ep 8", "have no experts; use --tp"),
    (("throughput",), "--cluster_size 2", "have no experts; use --tp"),
    (MEASURED, "--beam_width 1", {}),
    (MEASURED, "--beam_width 4", "--beam-width 4 above 1 is not built"),
    (MEASURED, "--eos_id -1", {}),
    (MEASURED, "--eos_id 2", "each makes as many tokens as it asks for"),
    (MEASURED, "--backend pytorch", "--target http://"),
    (MEASURED, "--backend tensorrt", "leave it out to measure this tool's engine"),
    (MEASURED, "--backend _autodeploy", "leave it out"),
    (MEASURED, "--extra_llm_api_options x.yml", "give the flags instead"),
    (MEASURED, "--config x.yml", "--config x.yml is a file of TensorRT-LLM's settings"),
    (MEASURED, "--sampler_options x.yml", "trtllm-bench generate"),
    (("throughput",), "--custom_module_dirs m", "model family"),
    (("throughput",), "--custom_tokenizer t", "--tokenizer"),
    (MEASURED, "--modality image", "text and token ids only"),
    (("throughput",), "--image_data_format pt", "belongs to --modality"),
    (("throughput",), "--data_device cuda", "belongs to --modality"),
    (MEASURED, "--max_input_len 4096", ("belongs to --modality",)),
    (("throughput", "build"), "--target_input_len 128", "--max-batch-size and --max-num-tokens"),
    (("throughput", "build"), "--target_output_len 128", "--max-batch-size and --max-num-tokens"),
    (("latency",), "--medusa_choices m.yml", "no draft tokens"),
    (MEASURED, "--iteration_log i.log", "--out FOLDER keeps every step"),
    (("throughput",), "--request_json q.json", "--request-json q.json is not written; --out FOLDER"),
    (("throughput",), "--output_json o.json", "--report-json FILE"),
    (("throughput",), "--no_skip_tokenizer_init", ("has no effect",)),
    (("throughput",), "--enable_chunked_context", ("always prefilled in chunks",)),
    (("throughput",), "--disable_chunked_context", "as large as the longest prompt"),
    (("build",), "--quantization FP8", {"precision": "fp8"}),
    (("build",), "-q FP8_PER_CHANNEL_PER_TOKEN", {"precision": "fp8_rowwise"}),
    (("build", "throughput"), "-q NO_QUANT", {"precision": "bf16"}),
    (("tune",), "--quantization W4A16_AWQ,fp8", {"precision": "int4,fp8"}),
    (("perplexity",), "m --dataset t.txt --quantization W4A16_AWQ", {"precision": "int4"}),
    (("quantize",), "m --out o --quantization W4A16_AWQ", {"precision": "W4A16_AWQ"}),
    (("build",), "-q INT8_OF_NO_ONE", "is not built; choose from NO_QUANT, FP8"),
    (("build",), "--no_weights_loading true", {"weights": "dummy"}),
    (("build",), "--no_weights_loading false", {"weights": None}),
    (("build",), "--trust_remote_code true", ("no code of a checkpoint is ever run",)),
    (("build",), "--dataset d.jsonl", "is not read for sizes"),
    (("",), "--model m", {"model": "m"}),
    (("",), "-m m", {"model": "m"}),
    (("",), "--model_path folder", {"model": "folder"}),
    (("",), "--workspace w", {"workspace": Path("w")}),
    (("",), "-w w", {"workspace": Path("w")}),
    (("",), "--log_level info", ("has no effect",)),
    (("",), "--revision main", "a local folder"),
    (("",), "--no-telemetry", ("nothing is ever sent",)),
    (("prepare-dataset",), "--output f", {"output": Path("f")}),
    (("prepare-dataset",), "--random-seed 3", {"seed": 3}),
    (("prepare-dataset",), "--stdout", {"stdout": True}),
    (("prepare-dataset",), "--tokenizer t", "--vocab-size"),
    (("prepare-dataset",), "--task-id -1", {}),
    (("prepare-dataset",), "--task-id 3", "--num-loras N"),
    (("prepare-dataset",), "--rand-task-id 0 9", "--rand-task-id 0 9 is not written"),
    (("prepare-dataset",), "--lora-dir d", "--num-loras N"),
    (("prepare-dataset",), "--log-level info", ("has no effect",)),
    (("prepare-dataset",), "--trust-remote-code", ("has no effect",)),
    (
        ("prepare-dataset token-norm-dist",),
        "--input-mean 4 --input-stdev 0 --output-mean 3 --output-stdev 0 --num-requests 2",
        {"input_mean": 4},
    ),
    (("prepare-dataset token-unif-dist",), "--input-min 4 --input-max 5 --output-min 3 --output-max 4 --num-requests 2", {"input_max": 5}),
]
OURS: list[tuple[str, str, dict[str, Any]]] = [
    ("inspect", "--engine-dir e", {"engine": Path("e")}),
    ("refit", "--engine-dir e --weights w", {"engine": Path("e")}),
    ("quantize", "--model m --output-dir o", {"model": "m", "out": Path("o")}),
    ("perplexity", "-m m --dataset d", {"model": "m"}),
    ("fetch", "--model smollm2-135m", {"name": "smollm2-135m"}),
    ("kernels", "--shapes m --json o.json", {"model": "m", "out": Path("o.json")}),
    ("kernels", "--model m --out o.json", {"model": "m", "out": Path("o.json")}),
    ("build", "--output-dir o", {"out": Path("o")}),
    ("prepare-dataset", "--out o", {"output": Path("o")}),
    ("results export", "store --out o.csv", {"store": "store", "out": Path("o.csv")}),
]


@cache
def command_at(path: str) -> Any:
    """The click command of a path such as `results ls`; "" is the tool itself."""
    from typer.main import get_command

    from trtllm_bench.app import app

    if not path:
        return get_command(app)
    name, *rest = path.split()
    command = CommandFolder()[name]
    for child in rest:
        command = command.commands[child]
    return command


def parsed(path: str, arguments: str) -> dict[str, Any]:
    """The parameters that a command gets, without running it."""
    settings = {"token_normalize_func": lambda token: token.replace("_", "-")}
    given = shlex.split(arguments)
    command = command_at(path)
    if hasattr(command, "commands"):  # a group wants a command, and parses no further
        given.append(next(iter(command.commands)))
    with command.make_context(path or "trtllm-bench", given, **settings) as context:
        return dict(context.params)


@pytest.mark.parametrize(("path", "typed", "outcome"), [(path, typed, outcome) for paths, typed, outcome in NVIDIA for path in paths])
def test_every_option_of_nvidias_tool(
    capsys: pytest.CaptureFixture[str], path: str, typed: str, outcome: dict[str, Any] | str | tuple[str, ...]
) -> None:
    if isinstance(outcome, str):
        with pytest.raises(BenchError) as caught:
            parsed(path, typed)
        sentence = str(caught.value)
        assert outcome in sentence
        assert sentence.startswith(typed.split()[0].replace("_", "-") if typed[:2] == "--" else "-"), "it names the flag"
        assert not sentence.endswith(".")
        assert "\n" not in sentence
        return
    found = parsed(path, typed)
    said = capsys.readouterr().err
    if isinstance(outcome, tuple):
        assert said.startswith("note: ")
        assert all(words in said for words in outcome)
        return
    assert said == ""
    assert {name: found[name] for name in outcome} == outcome


@pytest.mark.parametrize(("path", "typed", "outcome"), OURS)
def test_one_name_for_one_thing_and_the_older_names_still_work(path: str, typed: str, outcome: dict[str, Any]) -> None:
    found = parsed(path, typed)
    assert {name: found[name] for name in outcome} == outcome


def test_an_argument_and_its_flag_are_not_given_both() -> None:
    with pytest.raises(BenchError, match="ENGINE and --engine-dir say the same; give one of them"):
        parsed("inspect", "a --engine-dir b")


def commands(path: str = "", command: Any = None) -> Iterator[tuple[str, Any]]:
    """Every command and sub-command with its path."""
    children = CommandFolder() if command is None else getattr(command, "commands", {})
    for name in children:
        child = f"{path} {name}".strip()
        yield child, children[name]
        yield from commands(child, children[name])


def test_no_flag_is_hidden_behind_another_name_that_is_not_in_a_table() -> None:
    """Where results go is `--out`, an engine `--engine-dir` or ENGINE, a model `--model` or MODEL."""
    for path, command in commands():
        shown = {flag for param in command.params if not getattr(param, "hidden", False) for flag in param.opts}
        assert not shown & {"--output", "--output-dir", "--shapes", "--model-path", "--store-to"}, path


def test_a_dataset_from_standard_input_is_run_and_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path / "cache"))
    lines = "".join(json.dumps({"task_id": n, "input_ids": [1, 2, 3], "output_tokens": 4 + n}) + "\n" for n in range(3))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    code, _, _ = run(capsys, "throughput", "--target", "null", "--dataset", "-", "--num_requests", 0, "--out", tmp_path / "out")
    assert code == 0
    (row,) = Store(tmp_path / "out").rows()
    assert (row.cell.num_requests, row.cell.isl, row.cell.osl) == (3, 3, 5)
    assert Path(row.extra["asked"]["dataset"]).read_text() == lines


def test_a_model_before_the_command_gives_way_to_an_engine(capsys: pytest.CaptureFixture[str]) -> None:
    """NVIDIA's tool wants the model there even where an engine is named."""
    said = refused(capsys, "--model", "tiny-llama", "throughput", "--engine_dir", "nowhere")
    assert "no engine at nowhere" in said
    assert "give either" in refused(capsys, "throughput", "--model", "tiny-llama", "--engine_dir", "nowhere")


def test_the_workspace_holds_what_is_built_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", "elsewhere")
    from trtllm_kernels.files import cache_folder

    assert run(capsys, "-w", tmp_path, "throughput", "--target", "null", "--isl", 4, "--osl", 2, "--num-requests", 2)[0] == 0
    assert cache_folder() == tmp_path
