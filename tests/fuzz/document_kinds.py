"""What the tool or a user keeps beside models and results: the gate's files, ceilings, profiles, kernel runs, traces, datasets, workloads,
other tools' results."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from random import Random

from damage import of_bytes, of_json, of_toml
from kinds import Prepared, _rows, _store, command, file_kind
from rich.console import Console

from trtllm_bench.errors import BenchError
from trtllm_bench.micro.results import Measured, Run, judge
from trtllm_bench.micro.timing import Timing
from trtllm_bench.profiling.record import CellProfile
from trtllm_bench.profiling.show import print_profile
from trtllm_bench.roofline import ceilings
from trtllm_bench.tracing import trace as chrome
from trtllm_dashboards import profile_page
from trtllm_dashboards.errors import DashboardError
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.precision_map import read_precision_map
from trtllm_results import importers
from trtllm_results.compare.published_ops import OpBeside, OpRun, OpShape
from trtllm_results.errors import ResultsError
from trtllm_results.gate import baseline, calibrate, config, stored
from trtllm_results.store.layout import GATE_REPORT
from trtllm_workloads import dataset
from trtllm_workloads.errors import WorkloadError
from trtllm_workloads.open_workload import open_workload
from trtllm_workloads.traces import read_trace
from trtllm_workloads.traces.info import info

FOREIGN = Path(__file__).parents[1] / "results" / "data"
KERNEL = {
    "role": "mlp",
    "op": "linear",
    "kernel": "k",
    "calls": 2,
    "time_us": 60.0,
    "share": 0.6,
    "bytes": 1e8,
    "flop": 1e9,
    "compute": "bf16",
}
STEP = {
    "number": 4,
    "phase": "decode",
    "tokens": 8,
    "sequences": 8,
    "decodes": 8,
    "kv_tokens": 900,
    "graph": True,
    "start_us": 0.0,
    "span_us": 100.0,
}
PROFILE = {
    "cell": {"label": "tiny b8"},
    "device": "GPU",
    "collector": "test",
    "ceilings": {"bytes_per_s": 3e12, "flops_per_s": {"bf16": 8e14}},
    "kernels": [{**KERNEL, "ceiling_share": 0.5, "bound": "memory"}],
    "roles": {"mlp": 60.0},
    "steps": [{**STEP, "busy_us": 95.0, "gap_inside_us": 3.0, "gap_before_us": 2.0, "samples": 8}],
    "timeline": [{"name": "k", "op": "linear", "role": "mlp", "start_us": 0.0, "duration_us": 30.0, "step": 0}],
    "counters": [],
    "notes": ["a note"],
    "free_step_us": 99.0,
    "recorded_step_us": 100.0,
    "command": "profile",
    "started_at": "2026-01-01",
}
LINE = {"task_id": 0, "input_ids": [1, 2, 3], "output_tokens": 2, "arrival_s": 0.5, "session": 1, "turn": 0, "slo_ms": {"ttft": 5.0}}
TIMED = {"timestamp": 10, "input_length": 700, "output_length": 2, "hash_ids": [1, 2]}
WORKLOAD = """requests = 4
correlation = 0.5
input = {kind = "lognormal", mean = 20, stdev = 5}
output = {kind = "uniform", low = 2, high = 5}
arrivals = {kind = "poisson", rate = 2.0}
slo = {ttft_ms = 200}
"""
GATE = """alpha = 0.05
blocks = 4
max_blocks = 20
looks = 4
spending = "pocock"
drift = "warn"
margins = {output_tokens_per_s = "2%"}
"""


def of_line(chance: Random, content: bytes) -> bytes:
    """One line of JSON lines is damaged as JSON, or the file as bytes."""
    lines = content.splitlines()
    if chance.random() < 0.25 or not lines:
        return of_bytes(chance, content)
    at = chance.randrange(len(lines))
    lines[at] = of_json(chance, lines[at])
    return b"\n".join(lines) + b"\n"


def written(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


@file_kind("gate baseline", of_json, ResultsError)
def _baseline(folder: Path) -> Prepared:
    rows = [row for row in _rows() if row.status == "ok"]
    path = folder / "base.json"
    baseline.accept_into(path, rows, "first")
    baseline.accept_into(path, rows, "second", same_state=True)

    def use() -> None:
        baseline.check(baseline.load(path), rows, config.GateConfig(), {})
        command("gate", "history", "--baseline", path)

    return path, use


@file_kind("gate.toml", of_toml, ResultsError)
def _gate(folder: Path) -> Prepared:
    path = written(folder / "gate.toml", GATE)
    return path, lambda: config.load_config(path).look_alphas


@file_kind("noise of the gate", of_json, ResultsError)
def _noise(folder: Path) -> Prepared:
    path = written(folder / "noise.json", json.dumps({"noise": [{"figure": "ttft_p50_ms", "drift_sd": 0.01, "drift_df": 5}]}))
    return path, lambda: calibrate.load_noise(path)


@file_kind("report of the gate", of_json)
def _report(folder: Path) -> Prepared:
    said = {"verdict": "pass", "findings": [{"figure": "ttft_p50_ms", "margin": 0.02}], "blocks": 2, "alpha": 0.05}
    path = written(folder / GATE_REPORT, json.dumps(said))
    return path, lambda: stored.judged_again(_rows(), stored.report_of(folder))


@file_kind("ceilings", of_json, BenchError)
def _ceilings(folder: Path) -> Prepared:
    store = _store(folder)
    content = {
        "device": "H100",
        "flops_per_s": {"bf16": 7e14},
        "copy_bytes_per_s": 3e12,
        "read_bytes_per_s": 3e12,
        "measured_s": 1.0,
        "key": "k",
    }
    path = written(folder / "ceilings.json", json.dumps({**content, "link_gpus": 2, "all_reduce_us": {"1024": 5.0}}))
    return path, lambda: (ceilings.load(path), command("ceilings", "--apply", store.path, "--from", path))


@file_kind("kernel run", of_json, BenchError)
def _kernels(folder: Path) -> Prepared:
    timing = Timing(20.0, 20.0, 0.01, 30, (19.0, 20.0, 21.0), True)
    path = folder / "kernels.json"
    Run("tiny", "bf16", "GPU", (Measured("linear", "mlp", "decode", 8, 100, 1e6, 1e9, timing, timing, 0.0, True, roof_us=10.0),)).save(path)
    return path, lambda: judge(Run.load(path), Run.load(path), 0.03)


@file_kind("kernel run beside others", of_json, ResultsError)
def _beside(folder: Path) -> Prepared:
    path = folder / "ops.json"
    OpRun("H200", (OpBeside(OpShape("gemm", (4096, 4096), "fp8", 64), 10.0, 9.0, {"vllm": 20.0}, roof_us=5.0),), "kernels").save(path)
    return path, lambda: OpRun.load(path)


@file_kind("profile.json", of_json, BenchError)
def _profile(folder: Path) -> Prepared:
    path = written(folder / "profile.json", json.dumps(PROFILE))
    return path, lambda: print_profile(CellProfile.load(folder), Console(file=io.StringIO(), markup=False, highlight=False, emoji=False))


@file_kind("profile.json by its page", of_json, DashboardError)
def _profile_page(folder: Path) -> Prepared:
    path = written(folder / "profile.json", json.dumps(PROFILE))
    return path, lambda: (profile_page.page(profile_page.load(folder)), profile_page.parts_per_token(profile_page.load(folder)))


@file_kind("Chrome trace", of_json, BenchError)
def _chrome(folder: Path) -> Prepared:
    kernel = {"ph": "X", "cat": "kernel", "name": "k", "ts": 1.0, "dur": 2.0, "args": {"stream": 7}}
    named = {"ph": "X", "cat": "user_annotation", "name": "trtllm: step", "ts": 0.0, "dur": 5.0}
    path = written(folder / "trace.json", json.dumps({"traceEvents": [kernel, named]}))

    def use() -> None:
        content = chrome.read_json(path)
        chrome.device_events(content)
        chrome.ranges(content)

    return path, use


@file_kind("dataset", of_line, WorkloadError)
def _dataset(folder: Path) -> Prepared:
    path = written(folder / "data.jsonl", "".join(json.dumps({**LINE, "turn": turn}) + "\n" for turn in range(3)))
    return path, lambda: dataset.read(path)


@file_kind("workload.toml", of_toml, WorkloadError)
def _workload(folder: Path) -> Prepared:
    path = written(folder / "workload.toml", WORKLOAD)
    return path, lambda: open_workload(str(path), requests=4)


def _trace_kind(name: str, file: str, content: str, damage: Callable[[Random, bytes], bytes]) -> None:
    @file_kind(name, damage, WorkloadError)
    def _trace(folder: Path) -> Prepared:
        path = written(folder / file, content)
        return path, lambda: info(read_trace(path))


_trace_kind("trace of Azure", "a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "2023-11-16 18:15:46.68,374,44\n" * 3, of_bytes)
_trace_kind("trace of Mooncake", "m.jsonl", (json.dumps(TIMED) + "\n") * 3, of_line)
_talk = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good day"}]
_trace_kind("ShareGPT", "s.json", json.dumps([{"id": "a", "conversations": _talk}]), of_json)


@file_kind("precision map", of_toml, EngineError)
def _map(folder: Path) -> Prepared:
    path = written(folder / "map.toml", 'default = "fp8"\nlm_head = "bf16"\n"*.mlp.*" = "int4"\n')
    tomllib.loads(path.read_text())
    return path, lambda: read_precision_map(path)


def _foreign(source: Path) -> None:
    @file_kind(f"results of {source.name}", of_json if source.suffix == ".json" else of_bytes, ResultsError)
    def _results(folder: Path) -> Prepared:
        path = folder / source.name
        path.write_bytes(source.read_bytes())
        return path, lambda: importers.read(path)


for one in ("vllm-serve.json", "genai-perf-0.0.16.json", "guidellm-0.8.1.json", "aiperf-0.13.0.json", "nvidia-throughput.json"):
    _foreign(FOREIGN / one)
_foreign(FOREIGN / "mlperf-6.0.17-server-summary.txt")
