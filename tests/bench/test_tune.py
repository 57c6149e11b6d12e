"""Tuning without a GPU: a real plan, its search spaces lowered for sm_90, references on the CPU, and a timer that knows every time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from trtllm_bench.__main__ import main
from trtllm_bench.errors import RunFailure
from trtllm_bench.micro.bench import Bench
from trtllm_bench.micro.bound_op import BoundOp
from trtllm_bench.micro.cases import KernelCase, decode_case
from trtllm_bench.micro.timing import Call, How, StoppingRule
from trtllm_bench.roofline.counts import PlanCounter
from trtllm_bench.tune import check
from trtllm_bench.tune.plan import Race, TuningPlan, steps, threshold_steps
from trtllm_bench.tune.race import run_race
from trtllm_bench.tune.run import TimedProgram, Tuned, Tuner
from trtllm_bench.tune.session import record
from trtllm_bench.tune.show import print_decisions, rows
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.models.presets import resolve_model
from trtllm_kernels import tactics
from trtllm_kernels.compile.cubin import Cubin, CubinInfo
from trtllm_kernels.dialect.types import KernelSpec, Lowered
from trtllm_kernels.lowering import lower
from trtllm_kernels.references.sampling import EMPTY

ARCH = "sm_90"
RULE = StoppingRule(noise=0.01, batch=5, min_batches=4, max_batches=12, seconds=50.0)
CASES = steps((1, 24), 40, 256)
PROMPTS = steps((256,), 1, 256)
Times = Callable[[Race, Mapping[str, int]], float]


class FakeTimer:
    """Every batch takes a tenth of a second; times are `times(race, tactic)` with 0.3% of noise, on a clock that drifts by a tenth."""

    def __init__(self, times: Times, noise: float = 0.003) -> None:
        self.times, self.noise = times, noise
        self.now, self.laps = 0.0, 0
        self.draw = np.random.default_rng(3)

    def sample(self, call: Call, count: int, how: How) -> list[float]:
        assert isinstance(call, TimedProgram)
        assert (how == "chained") == (call.chain is not None)
        self.now += 0.1
        self.laps += 1
        mean = call.calls * self.times(call.race, call.tactic) * (1 + 0.1 * math.sin(self.now / 20))
        return [mean * (1 + self.noise * float(x)) for x in self.draw.standard_normal(count)]

    def slowed(self) -> bool:
        return False

    def clock(self) -> float:
        return self.now


class CpuBench(Bench):
    """References in place of launches; `broken` says which launches compute something else."""

    broken: Callable[[Lowered], bool] = staticmethod(lambda lowered: False)

    def variant(self, bound: BoundOp, lowered: Lowered) -> BoundOp:
        class Wrong:
            def run(self) -> None:
                right = replace(bound, program=None)
                right.run()
                for name in bound.op.outputs:
                    bound.memory[name] = bound.memory[name] * 2

        return replace(bound, program=Wrong()) if self.broken(lowered) else super().variant(bound, lowered)


@pytest.fixture(scope="module")
def bench() -> CpuBench:
    return CpuBench("tiny-llama", "bf16", "cpu", [*CASES, *PROMPTS])


def cubin(shared: int = 1000, spill: int = 0) -> Cubin:
    return Cubin(CubinInfo("k", ARCH, 4, shared, 64, spill), b"")


def compiled(specs: Sequence[KernelSpec], seconds: float, progress: Callable[[int, int], None]) -> dict[str, Any]:
    progress(len(specs), len(specs))
    return {spec.key: cubin() for spec in specs}


def tune(
    bench: CpuBench,
    times: Times,
    name: str = "",
    seconds: float = 1e6,
    compiler: Callable[..., dict[str, Any]] = compiled,
    recorded: Mapping[str, Mapping[str, int]] | None = None,
    cases: Sequence[KernelCase] = CASES,
    arch: str = ARCH,
) -> tuple[Tuned, FakeTimer, list[tuple[str, int, int, str]]]:
    said: list[tuple[str, int, int, str]] = []
    timer = FakeTimer(times)
    tuner = Tuner(
        bench,
        TuningPlan(bench.counter, arch, name=name),
        timer,
        RULE,
        compiler,
        lambda *args: said.append((*args, "")[:4]),
        "",
        timer.clock,
    )
    return tuner.tune(cases, recorded or {}, seconds), timer, said


def flat(race: Race, tactic: Mapping[str, int]) -> float:
    return 10.0


def test_races_are_where_a_choice_shows() -> None:
    profile = Profile(2048, 2048, 4096, 32)
    config = replace(resolve_model("llama-3.1-8b").config, num_layers=2)
    plan = compile_model(config, "fp8", profile, arches=("cpu",), weights_source={"kind": "dummy", "seed": 0}).plan
    course = TuningPlan(PlanCounter(plan), ARCH)
    races = course.races(steps((1, 64, 2048), 1024, 8191), False, {})
    shown = {(race.op.op, race.choice.name, race.case.label, race.case.shape.tokens) for race in races}

    def where(choice: str) -> set[tuple[str, int]]:
        return {(label, m) for _, name, label, m in shown if name == choice}

    assert not where("one token")
    assert where("uncached prefill") == {("prefill", 64), ("prefill", 2048)}
    assert where("context chunks") == {("chunk", 64), ("chunk", 2048)}
    assert where("decode") == {("decode", 2048)}
    assert where("tiles") == {("prefill", 2048)}
    assert where("skinny 64") == {("decode", 64)}
    assert {race.case.shape.kv_lens[0] for race in races if race.case.label == "decode"} == {1024, 256}
    for race in races:
        assert race.entrants[0].tactic == {}
        placed = [index for entrant in race.entrants for index in entrant.candidates]
        assert sorted(placed) == list(range(len(race.choice.candidates)))
    later = course.races(threshold_steps((c for cs in course.choices.values() for c in cs), 400), True, {})
    fused = [race for race in later if race.choice.name == "fused from"]
    assert [race.case.shape.tokens for race in fused] == [32, 64, 128, 192, 256, 384]
    assert all(len(race.entrants) == 2 for race in fused)
    few = [race for race in later if race.choice.name == "skinny to"]
    assert {race.case.shape.tokens for race in few} == {8, 16, 32, 64, 96, 128}
    assert all(len(race.entrants) == 2 for race in few)
    algorithms = {(race.choice.name, race.case.shape.tokens) for race in later if race.choice.name.startswith("algorithm")}
    assert algorithms == {(f"algorithm to {size}", m) for size in (256, 512) for m in (size * 3 // 4, size) if m <= 400}
    assert {race.role.rpartition(".")[2] for race in later} == {"gate_up_silu", "qkv_proj", "o_proj", "down_proj"}
    assert all(len(race.entrants) == 6 for race in later if race.choice.name.startswith("algorithm"))
    assert not TuningPlan(PlanCounter(plan), ARCH, done=frozenset(course.choices)).choices


@pytest.fixture(scope="module")
def whole(bench: CpuBench) -> tuple[Tuned, FakeTimer, list[tuple[str, int, int, str]]]:
    """All ops, all programs equally fast."""
    return tune(bench, flat)


def test_equal_programs_keep_every_default(whole: tuple[Tuned, FakeTimer, list[tuple[str, int, int, str]]], tmp_path: Path) -> None:
    tuned, _, said = whole
    assert tuned.decisions
    assert [one.winner for one in tuned.decisions] == [{}] * len(tuned.decisions)
    assert tuned.skipped == 0
    assert tuned.failed == ()
    path = tmp_path / "h100.json"
    record(path, "H100", ARCH, tuned.decisions)
    assert json.loads(path.read_text())["tactics"] == {}
    stages = {stage for stage, *_ in said}
    assert stages == {"compile", "measure"}
    assert all(done <= total for _, done, total, _ in said)


def test_the_faster_tile_and_threshold_are_recorded_and_lowered(bench: CpuBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def times(race: Race, tactic: Mapping[str, int]) -> float:
        if race.choice.name == "decode":
            return 10.0 - 2.0 * (tactic.get("decode_warps") == 2) + 0.1 * (tactic.get("decode_stages", 4) != 3)
        if race.choice.name == "fused from":
            fused = race.case.shape.tokens >= tactic.get("fused_from", 192)
            assert tactic.get("group") == 16
            return (12.0 if race.case.shape.tokens < 64 else 8.0) if fused else 10.0
        if race.choice.name == "tiles":
            return 9.0 if tactic.get("group") == 16 else 10.0
        return 10.0

    tuned, _, _ = tune(bench, times, "paged_attention")
    products, _, _ = tune(bench, times, "gate_up", cases=PROMPTS)
    tuned = Tuned((*tuned.decisions, *products.decisions), (), 0)
    found = {one.choice.name: one.winner for one in tuned.decisions if one.winner}
    assert found["decode"] == {"decode_pages": 1, "decode_ahead": 0, "decode_warps": 2, "decode_stages": 3}
    assert found["tiles"]["group"] == 16
    assert found["fused from"] == {"fused_from": 64}
    assert set(found) == {"decode", "tiles", "fused from"}

    path = tmp_path / "h100.json"
    record(path, "H100", ARCH, tuned.decisions)
    monkeypatch.setattr(tactics, "folder", lambda: tmp_path)
    kernels = lowered_kernels(bench, "paged_attention", None)
    assert {(k.num_warps, k.num_stages) for k in kernels if k.function.startswith("decode_")} == {(2, 3)}

    again, _, _ = tune(bench, flat, "paged_attention", recorded=tactics.read(path))
    record(path, "H100", ARCH, again.decisions)
    assert {name.split()[0] for name in tactics.read(path)} == {"gate_up_silu"}

    shown = [row for row in rows(tuned.decisions) if row["choice"] == "decode" and row["m"] == 24]
    assert shown[0]["gain"] == pytest.approx(20, abs=2)
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_decisions(tuned.decisions, "title", console)
    assert "paged_attention" in console.export_text() or "attn" in console.export_text()


def test_a_faster_candidate_that_is_wrong_spills_or_does_not_fit_never_wins(bench: CpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(specs: Sequence[KernelSpec], seconds: float, progress: Any) -> dict[str, Any]:
        bad: dict[int, Any] = {2: cubin(spill=8), 4: "does not compile", 16: cubin(shared=300_000)}
        return {s.key: bad.get(s.num_warps, cubin()) if s.function == "rms_norm" else cubin() for s in specs}

    assert {kernel.num_warps for kernel in lowered_kernels(bench, "rms_norm", {})} == {1}
    monkeypatch.setattr(bench, "broken", lambda lowered: any(k.function == "rms_norm" and k.num_warps == 8 for k in lowered.kernels))
    tuned, _, _ = tune(bench, lambda race, tactic: 5.0 if tactic else 10.0, "rms_norm", compiler=compiler)
    (decision,) = tuned.decisions
    assert decision.winner == {}
    reasons = sorted(decision.outcomes[0].dropped.values())
    assert len(reasons) == 4
    assert reasons[0] == "does not compile"
    assert "300000 B of shared memory" in reasons[1]
    assert reasons[2].startswith("spills 8 B")
    assert reasons[3].startswith("wrong: differs from the reference by 100")


def lowered_kernels(bench: CpuBench, name: str, tactic: Mapping[str, int] | None) -> Sequence[KernelSpec]:
    specs = bench.counter.specs
    op = next(op for op in bench.plan.ops if op.op == name)
    inputs, outputs = [specs[name] if name else None for name in op.inputs], [specs[name] for name in op.outputs]
    return lower(op.op, inputs, outputs, op.attrs, ARCH, tactic=tactic).kernels


def test_a_wrong_default_is_reported_and_nothing_of_it_decided(bench: CpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "broken", lambda lowered: any(k.function == "rms_norm" for k in lowered.kernels))
    tuned, _, said = tune(bench, flat, "rms_norm")
    assert tuned.decisions == ()
    assert len(tuned.failed) == 1
    assert any(total < 0 and "by default is wrong" in note for _, _, total, note in said)


def test_when_time_is_short_the_least_work_is_given_up_first(
    bench: CpuBench, whole: tuple[Tuned, FakeTimer, list[tuple[str, int, int, str]]]
) -> None:
    all_of_it, timer, _ = whole
    short, clocked, _ = tune(bench, flat, seconds=timer.now / 3)
    assert 0 < len(short.decisions) < len(all_of_it.decisions)
    assert short.skipped == len(all_of_it.decisions) - len(short.decisions)
    assert clocked.now < timer.now / 3 + 2
    complete = {(one.key, one.choice.name): one for one in all_of_it.decisions}
    kept = {(one.key, one.choice.name): one for one in short.decisions}
    assert all(len(complete[name].outcomes) == len(one.outcomes) for name, one in kept.items())

    def stake(name: tuple[str, str]) -> float:
        return max(outcome.race.stake for outcome in complete[name].outcomes)

    assert max(kept, key=stake) == max(complete, key=stake)
    assert sum(map(stake, kept)) / len(kept) > sum(map(stake, complete)) / len(complete)


def test_noise_alone_wins_nothing(bench: CpuBench) -> None:
    for seed in range(3):
        timer = FakeTimer(flat, noise=0.05)
        timer.draw = np.random.default_rng(seed)
        tuner = Tuner(bench, TuningPlan(bench.counter, ARCH, name="norm"), timer, RULE, compiled, lambda *args: None, "", timer.clock)
        assert not any(one.winner for one in tuner.tune(CASES, {}, 1e6).decisions)


def test_what_is_hopeless_leaves_a_race_early() -> None:
    class Timer(FakeTimer):
        def __init__(self) -> None:
            super().__init__(flat)
            self.count: dict[int, int] = {}

        def sample(self, call: Call, count: int, how: How) -> list[float]:
            which = call()
            self.count[which] = self.count.get(which, 0) + 1
            return [(10.0, 9.9, 20.0)[which] * (1 + 0.05 * float(x)) for x in self.draw.standard_normal(count)]

    timer = Timer()
    found = run_race(timer, [lambda: 0, lambda: 1, lambda: 2], replace(RULE, noise=1e-9), math.inf, timer.clock)
    assert timer.count == {0: 12, 1: 12, 2: 4}
    assert [len(one.batches) for one in found] == [12, 12, 4]


def test_what_looks_faster_goes_on_until_it_is_known() -> None:
    class Timer(FakeTimer):
        def sample(self, call: Call, count: int, how: How) -> list[float]:
            return [float(call()) * (1 + 0.01 * float(x)) for x in self.draw.standard_normal(count)]

    def rounds(*means: float) -> list[int]:
        found = run_race(Timer(flat), [partial(float, mean) for mean in means], replace(RULE, noise=0.02), math.inf)
        return [len(one.batches) for one in found]

    assert rounds(10.0, 10.0) == [4, 4]
    first, close, far = rounds(10.0, 9.8, 8.0)
    assert first == close > 4
    assert far == 4


def test_a_candidate_that_is_slower_in_another_step_does_not_win(bench: CpuBench) -> None:
    def other(factor: float) -> Times:
        return lambda race, tactic: 10.0 if not tactic else 8.0 if race.case.shape.tokens == 1 else 10.0 * factor

    for factor, wins in ((1.05, False), (1.0, True)):
        (decision,) = tune(bench, other(factor), "rms_norm")[0].decisions
        assert len(decision.outcomes) == 2
        assert bool(decision.winner) == wins


def test_results_are_spoiled_and_the_cache_is_put_back(bench: CpuBench) -> None:
    for dtype in (torch.float8_e4m3fn, torch.bfloat16):
        tensor = torch.ones(4).to(dtype)
        check.spoil(tensor)
        assert tensor.float().isnan().all()
    for bound in bench.ops(CASES[0]):
        if bound.op.op == "rope_kv_write":
            before = bound.arguments()["kv_cache"].clone()

            class Lazy:
                def run(self) -> None:
                    pass

            with check.checking(bound) as checked:
                assert checked.error_of(bound) == ""
                assert checked.error_of(replace(bound, program=Lazy())).startswith("wrong")
            assert torch.equal(bound.arguments()["kv_cache"], before)
            return
    pytest.fail("no rope_kv_write")


def test_a_kernel_that_works_in_place_is_given_its_input_anew(bench: CpuBench) -> None:
    """As on a GPU, where the result is the input's memory: what one variant left there must not be what the next one starts from."""
    bound = next(one for one in bench.ops(CASES[1]) if one.op.reuses)
    memory, given, result = bound.memory, bound.op.reuses, bound.op.outputs[0]

    class InPlace:
        def run(self, part: slice = slice(None)) -> None:
            made = bound.reference(bound.arguments())[0]
            memory[given][part] = made[part]

    class HalfDone(InPlace):
        def run(self, part: slice = slice(0, 1)) -> None:
            super().run(part)

    memory[result] = memory[given]
    right, wrong = replace(bound, program=InPlace()), replace(bound, program=HalfDone())
    assert right.error() == 0.0
    with check.checking(right) as checked:
        for _ in range(2):
            assert checked.error_of(right) == ""
            assert checked.error_of(wrong).startswith("wrong")
    assert not memory[given].isnan().any()


def test_a_profiler_that_loses_kernels_costs_one_choice_and_not_the_run(bench: CpuBench) -> None:
    def times(race: Race, tactic: Mapping[str, int]) -> float:
        if race.choice.name == "decode":
            raise RunFailure("the profiler saw 7 kernels in 3 calls")
        return 10.0

    tuned, _, said = tune(bench, times, "paged_attention")
    assert [one.choice.name for one in tuned.decisions] == ["split", "context chunks"]
    assert tuned.skipped == 1
    assert sum(total < 0 for _, _, total, _ in said) >= 2


def test_the_command_writes_what_the_next_build_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def times(race: Race, tactic: Mapping[str, int]) -> float:
        return 7.0 if tactic.get("decode_warps") == 4 else 10.0

    class HereBench(CpuBench):
        def __init__(self, model: str, precision: str, arch: str, cases: list[KernelCase], page_size: int, kv_dtype: str) -> None:
            assert arch == ARCH
            super().__init__(model, precision, "cpu", cases, page_size, kv_dtype=kv_dtype)

    def compile_many(specs: Any, arch: str, *, seconds: float, progress: Callable[[int, int], None]) -> dict[str, Any]:
        assert arch == ARCH
        assert 0 < seconds < 60
        return compiled(list(specs), seconds, progress)

    monkeypatch.setattr("trtllm_bench.machine.gpus", lambda: [{"gpu": "NVIDIA H100", "compute_capability": "9.0"}])
    monkeypatch.setattr("trtllm_bench.micro.bench.Bench", HereBench)
    monkeypatch.setattr("trtllm_bench.micro.timing.CuptiTimer", lambda: FakeTimer(times, 0.001))
    monkeypatch.setattr("trtllm_bench.tracing.collect.prime", lambda device: None)
    monkeypatch.setattr("trtllm_kernels.compile.pool.compile_many", compile_many)
    out = tmp_path / "t.json"
    arguments = [
        "tune",
        "paged_attention",
        "--by",
        "ops",
        "--model",
        "tiny-llama",
        "--precision",
        "bf16,fp8",
        "--m",
        "4",
        "--seconds",
        "60",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "2 choices differ from the default" in said.out
    assert "decode_warps=4" in said.out
    assert "measure bf16: 2 of 2" in said.err
    content = json.loads(out.read_text())
    assert (content["gpu"], content["arch"]) == ("NVIDIA H100", ARCH)
    assert sorted(content["tactics"]) == sorted(tactics.read(out))
    assert {key.split()[2].partition("[")[0] for key in content["tactics"]} == {"bf16", "fp8"}
    assert main([*arguments[:1], "nothing", *arguments[2:]]) == 3
    assert "no op of tiny-llama is named 'nothing'; it has embedding" in capsys.readouterr().err
    monkeypatch.setattr("trtllm_bench.machine.gpus", lambda: [{"gpu": "NVIDIA H200", "compute_capability": "9.0"}])
    assert main(arguments) == 3
    assert "was measured on NVIDIA H100 and this is NVIDIA H200" in capsys.readouterr().err
    monkeypatch.setattr(tactics, "folder", lambda: tmp_path)
    assert main([*arguments[:1], "nothing", *arguments[2:-2]]) == 3
    assert json.loads((tmp_path / "h200.json").read_text()) == {"gpu": "NVIDIA H200", "arch": ARCH, "tactics": {}}


def test_without_a_gpu_the_command_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtllm_bench.machine.gpus", list)
    assert main(["tune"]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no NVIDIA GPU is usable here" in said
    assert main(["tune", "--seconds", "0"]) == 3
    assert main(["tune", "--m", "x"]) == 3
    assert main(["tune", "--precision", ","]) == 3


def test_choices_of_algorithms_are_recorded_with_the_librarys_version(
    bench: CpuBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times(race: Race, tactic: Mapping[str, int]) -> float:
        return 8.0 if tactic.get(best) == 2 else 10.0

    def versions(version: int) -> None:
        monkeypatch.setattr("trtllm_kernels.launch.cublaslt.library", lambda: SimpleNamespace(version=version))

    path = tmp_path / "h100.json"
    versions(131000)
    for best in ("lt_128", "lt_256"):
        tuned, _, _ = tune(bench, times, "o_proj", cases=(), arch="sm_89")
        assert [one.winner for one in tuned.decisions if one.winner] == [{best: 2}]
        decided = [one for one in tuned.decisions if one.choice.name == f"algorithm to {best[3:]}"]
        record(path, "H100", ARCH, decided)
    (entry,) = tactics.read(path).values()
    assert entry == {"cublaslt": 131000, "lt_128": 2, "lt_256": 2}
    record(path, "H100", ARCH, [replace(one, winner={}) for one in decided])
    assert list(tactics.read(path).values()) == [{"cublaslt": 131000, "lt_128": 2}]
    versions(140000)
    record(path, "H100", ARCH, decided)
    assert list(tactics.read(path).values()) == [{"cublaslt": 140000, "lt_256": 2}]
    record(path, "H100", ARCH, [replace(one, winner={}) for one in decided])
    assert not tactics.read(path)


def test_a_product_that_samples_finds_its_scratch_empty_and_may_swap_equal_logits_but_no_others() -> None:
    """The kernels leave `argmax_scratch` as they found it, not zero; of two logits that rounding makes equal, either token is right."""
    case = decode_case(3, 20)
    head = next(one for one in Bench("tiny-llama", "fp32", "cpu", [case]).ops(case) if one.op.op == "linear_sample")

    class Kernel:
        def __init__(self, swap: float | None) -> None:
            self.swap = swap
            """How far below the best of row 0 the token that is taken there lies; None: the best."""

        def run(self) -> None:
            arguments = head.arguments()
            assert (arguments["argmax_scratch"] == EMPTY).all()
            logits, tokens = head.reference(arguments)
            if self.swap is not None:
                other = int(tokens[0]) ^ 1
                logits[0, other] = logits[0].max() - self.swap
                tokens[0] = arguments["last_tokens"][arguments["sample_slots"][0]] = arguments["token_ring"][
                    arguments["ring_slot"][0], 0
                ] = other
            for name, value in zip(head.op.outputs, (logits, tokens), strict=True):
                head.memory[name].copy_(value)

    kernel = Kernel(None)
    with check.checking(replace(head, program=kernel)) as checked:
        assert checked.error_of(replace(head, program=kernel)) == ""
        other = replace(head, program=Kernel(1e-3))
        assert checked.error_of(other).startswith("wrong")
    near = head.expected()
    kernel.swap = 0.0
    kernel.run()
    near[0] = head.memory[head.op.outputs[0]].clone()
    assert replace(head, program=kernel).difference(near) == 0.0
