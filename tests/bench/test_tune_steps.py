"""Tuning by whole decode steps without a GPU: real plans and search spaces, and a bench that knows what every step takes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from trtllm_bench.__main__ import main
from trtllm_bench.micro.cases import KernelCase, decode_case
from trtllm_bench.roofline.counts import PlanCounter
from trtllm_bench.tune.plan import TuningPlan
from trtllm_bench.tune.session import record_choice
from trtllm_bench.tune.show_steps import choice_rows, print_steps, step_rows
from trtllm_bench.tune.step_bench import StepBench, StepLowering, StepProgram, Sustained, Tactics, cut_plan
from trtllm_bench.tune.step_rounds import LEAST_GAIN, MAX_ROUNDS, rounds
from trtllm_bench.tune.steps import SizeOutcome, StepDecision, StepTuner, TunedSteps
from trtllm_engines.compiler.plan import Plan
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.runtime.rank import RankMemory
from trtllm_kernels import tactics
from trtllm_kernels.compile.cubin import Cubin, CubinInfo
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.dialect.types import KernelSpec, Lowered, TensorSpec
from trtllm_kernels.lowering.space import Choice

ARCH, GPU = "sm_90", "NVIDIA H200"
CASES = [decode_case(tokens, 40) for tokens in (1, 16, 64)]
Times = Callable[[int, Tactics], float]
"""(tokens, tactics by key) -> microseconds of a step."""


class FakeBench:
    """Steps take `times`, sustained ones `sustained` where that is given, with 0.1% of noise on a clock that drifts; `broken` tactics are
    wrong."""

    def __init__(self, times: Times, sustained: Times | None = None, broken: Callable[[Tactics], bool] = lambda chosen: False) -> None:
        self.times, self.lasting, self.broken = times, sustained or times, broken
        self.now = 0.0
        self.draw = np.random.default_rng(5)

    def kernels(self, case: KernelCase, chosen: Tactics, key: str = "") -> Sequence[KernelSpec]:
        return []

    def add_kernels(self, cubins: Mapping[str, Any]) -> None:
        pass

    def upload(self, case: KernelCase) -> None:
        self.tokens = case.shape.tokens

    def program(self, case: KernelCase, chosen: Tactics) -> StepProgram:
        self.now += 0.03
        return StepProgram((case.shape.tokens, chosen), None, 1000.0)

    def batch(self, program: StepProgram, seconds: float) -> float:
        tokens, chosen = program.graph
        assert tokens == self.tokens, "another step's inputs are on the device"
        self.now += seconds
        return self.times(tokens, chosen) * (1 + 0.05 * math.sin(self.now)) * (1 + 0.001 * float(self.draw.standard_normal()))

    def sustained(self, program: StepProgram, seconds: float) -> Sustained:
        self.now += 1.2 * seconds
        return Sustained(self.lasting(*program.graph), 600.0, 1700.0)

    def error(self, case: KernelCase, key: str, chosen: Tactics, holding: Tactics) -> str:
        return "wrong" if self.broken(chosen) else ""

    def runs(self, case: KernelCase, key: str, chosen: Tactics) -> bool:
        return True


@pytest.fixture(scope="module")
def plan() -> Plan:
    return cut_plan(resolve_model("tiny-llama").config, "bf16", ARCH, CASES, 32, "auto", 1, GPU)[0]


def tuned_by(
    plan: Plan,
    bench: FakeBench,
    name: str,
    recorded: Tactics | None = None,
    seconds: float = 1e5,
    hold: Callable[[str, Choice, tactics.Tactic], None] = lambda key, choice, values: None,
) -> TunedSteps:
    course = TuningPlan(PlanCounter(plan), ARCH, name=name, whole_steps=True)
    tuner = StepTuner(bench, course, lambda specs, seconds, progress: {}, lambda *args: None, hold, "", lambda: bench.now)
    return tuner.tune(CASES, recorded or {}, seconds)


def of(chosen: Tactics, op: str) -> Mapping[str, int]:
    return next((tactic for key, tactic in chosen.items() if key.startswith(op)), {})


def test_a_choice_goes_to_what_makes_whole_steps_faster_and_is_recorded(plan: Plan, tmp_path: Path) -> None:
    def times(tokens: int, chosen: Tactics) -> float:
        mine = of(chosen, "gate_up_silu")
        few = -4.0 * (mine.get("skinny16_blocks") == 4 and tokens == 16)
        return 1000.0 + few - 10.0 * (mine.get("skinny8_blocks") == 3 and tokens == 1) - 3.0 * (of(chosen, "rms_norm").get("warps") == 2)

    bench = FakeBench(times)
    path = tmp_path / "h200.json"
    tuned = tuned_by(plan, bench, "", hold=partial(record_choice, path, GPU, ARCH))
    winners = {(one.role.rpartition(".")[2], one.choice.name): (one.winner, one.confirmed) for one in tuned.decisions if one.winner}
    four = {"skinny16_blocks": 4, "skinny16_parts": 1, "skinny16_height": 64}
    assert winners.pop(("gate_up_silu", "skinny 16")) == (four, True)
    three = {"skinny8_blocks": 3, "skinny8_parts": 1, "skinny8_height": 64}
    assert winners.pop(("gate_up_silu", "skinny 8")) == (three, True)
    assert {(choice, *winner.values(), confirmed) for (_, choice), (winner, confirmed) in winners.items()} == {("rows", 2, True)}
    assert [one.after.us - one.before.us for one in tuned.whole] == pytest.approx([-13.0, -7.0, -3.0])
    assert not tuned.slower
    assert of(tactics.read(path), "gate_up_silu") == {**four, **three}

    shown = {(row["op"], row["choice"], row["m"]): row for row in choice_rows(tuned)}
    row = shown["gate_up_silu", "skinny 8", 1]
    assert (row["verdict"], row["tactic"]) == ("taken, confirmed", "skinny8_blocks=3 skinny8_parts=1 skinny8_height=64")
    assert row["gain"] == pytest.approx(1.0, abs=0.1)
    assert step_rows(tuned)[0]["mj_before"] == pytest.approx(600.0)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_steps(tuned, "title", console)
    text = console.export_text()
    assert "gate_up_silu, skinny 8: skinny8_blocks=3" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_is_wrong_slower_elsewhere_or_not_confirmed_is_not_taken(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def faster_but_at_64(by: float) -> Times:
        return lambda tokens, chosen: 1000.0 - (20.0 if tokens < 64 else by) * (of(chosen, "rms_norm").get("warps") == 4)

    for by, found in ((-5.0, {}), (0.0, {"warps": 4})):
        assert all(one.winner == found for one in tuned_by(plan, FakeBench(faster_but_at_64(by)), "input_layernorm").decisions)
    times = faster_but_at_64(20.0)
    wrong = tuned_by(plan, FakeBench(times, broken=lambda chosen: of(chosen, "rms_norm").get("warps") == 4), "input_layernorm")
    assert [one.winner for one in wrong.decisions] == [{}] * len(wrong.decisions)
    assert set(wrong.decisions[0].sizes[0].dropped.values()) == {"wrong"}
    told: list[tactics.Tactic] = []
    bench = FakeBench(times, sustained=lambda tokens, chosen: 1000.0 + 2.0 * bool(of(chosen, "rms_norm")))
    lasting = tuned_by(plan, bench, "input_layernorm", hold=lambda key, choice, values: told.append(values))
    assert told == [{"warps": 4}, {}]
    assert {(one.confirmed, *one.winner) for one in lasting.decisions} == {(False,)}
    assert lasting.whole == ()
    told.clear()
    monkeypatch.setattr(StepTuner, "_confirmed", lambda tuner, decisions, *rest: decisions)
    unconfirmed = tuned_by(plan, bench, "input_layernorm", hold=lambda key, choice, values: told.append(values))
    assert unconfirmed.slower
    assert told == [{"warps": 4}, {}]


def test_noise_wins_nothing_and_what_holds_is_what_was_recorded(plan: Plan) -> None:
    key = next(key for key in StepLowering(plan, PlanCounter(plan).specs, ARCH).keys.values() if key.startswith("rms_norm"))
    seen: list[Mapping[str, int]] = []

    def times(tokens: int, chosen: Tactics) -> float:
        seen.append(chosen.get(key, {}))
        return 1000.0

    tuned = tuned_by(plan, FakeBench(times), "input_layernorm", {key: {"warps": 8}})
    assert not any(one.winner for one in tuned.decisions)
    assert {one["warps"] for one in seen} == {1, 2, 4, 8, 16}


def test_when_time_is_short_the_smallest_work_is_skipped(plan: Plan) -> None:
    bench = FakeBench(lambda tokens, chosen: 1000.0 - 9.0 * bool(of(chosen, "gate_up_silu")))
    tuned = tuned_by(plan, bench, "", seconds=20.0)
    assert tuned.skipped > 0
    assert any(one.winner for one in tuned.decisions)
    assert bench.now < 20
    assert "rms_norm" not in {one.key.split()[0] for one in tuned.decisions}


def test_rounds_end_for_what_is_known() -> None:
    draw = np.random.default_rng(1)
    means = {0: 1000.0, 1: 1000.0 * (1 - 20 * LEAST_GAIN), 2: 1100.0, 3: 1000.0 * (1 - LEAST_GAIN)}
    programs = {number: StepProgram(mean, None, mean) for number, mean in means.items()}
    times = rounds(programs, lambda program: program.graph * (1 + 0.0005 * float(draw.standard_normal())))
    assert [len(times[number]) for number in range(4)] == [MAX_ROUNDS, MAX_ROUNDS, 4, MAX_ROUNDS]
    del programs[3]
    times = rounds(programs, lambda program: program.graph * (1 + 0.0001 * float(draw.standard_normal())))
    assert [len(one) for one in times.values()] == [4, 4, 4]


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gptj-6b"])
def test_one_rank_alone_has_its_own_shapes_and_exchanges_nothing(model: str) -> None:
    config = replace(resolve_model(model).config, num_layers=2)
    rank, constants, replaced = cut_plan(config, "bf16", ARCH, CASES, 32, "auto", 2, GPU)
    assert not {op.op for op in rank.ops if OP_SPECS[op.op].kind == "communication" or "group" in op.inputs}
    assert constants
    known = {*rank.weights, *rank.constants, *rank.step_inputs, ""}
    for op in rank.ops:
        assert known >= {*op.inputs}
        known |= {*op.outputs}
    products = {key for key in StepLowering(rank, PlanCounter(rank).specs, ARCH).keys.values() if key.startswith("linear ")}
    hidden, half = config.hidden_size, config.intermediate_size // 2
    assert any(f"bf16[:,{half}] bf16[:,{half}]" in key and key.endswith(f"-> bf16[:,{hidden}]") for key in products)
    assert replaced
    assert not {*TuningPlan(PlanCounter(rank), ARCH, replaced, whole_steps=True).choices} & replaced


@pytest.fixture(scope="module")
def of_8b() -> Plan:
    return cut_plan(replace(resolve_model("llama-3.1-8b").config, num_layers=2), "fp8", ARCH, CASES, 32, "auto", 1, GPU)[0]


def test_without_a_gemv_tiles_of_few_tokens_are_raced_for_one(of_8b: Plan) -> None:
    def times(tokens: int, chosen: Tactics) -> float:
        mine = of(chosen, "linear fp8[:,14336]")
        return 1000.0 - (5.0 + 5.0 * (mine.get("skinny8_blocks") == 3)) * (tokens == 1 and mine.get("gemv") == 0)

    down = next(key for key in StepLowering(of_8b, PlanCounter(of_8b).specs, ARCH).keys.values() if key.startswith("linear fp8[:,14336]"))
    tuned = tuned_by(of_8b, FakeBench(times), "down_proj", {down: {"gemv": 1}})
    found = [
        (one.choice.name, one.winner.get("skinny8_blocks"), [size.tokens for size in one.sizes]) for one in tuned.decisions if one.winner
    ]
    assert found == [("one token", None, [1]), ("skinny 8", 3, [1])]


def test_whole_steps_try_what_ops_alone_do_not_show(of_8b: Plan) -> None:
    counter = PlanCounter(of_8b)
    whole, alone = (TuningPlan(counter, ARCH, whole_steps=steps) for steps in (True, False))
    shown: dict[str, set[tuple[str, int]]] = {}
    for key in (next(key for key in whole.choices if key.startswith(op)) for op in ("linear ", "paged_attention")):
        for choice in whole.choices[key]:
            races = whole.races_of(key, choice, CASES, {})
            shown.setdefault(key.split()[0], set()).update((choice.name, race.case.shape.tokens) for race in races)
    assert shown["linear"] == {("skinny 8", 1), ("skinny 16", 16), ("skinny 64", 64), ("norms to", 1), ("one token", 1)}
    assert {("decode one", 1), ("decode to", 1), ("decode to", 64)} < shown["paged_attention"]
    assert not {"one token", "decode one"} & {choice.name for choices in alone.choices.values() for choice in choices}
    down = next(key for key in whole.choices if key.startswith("linear fp8[:,14336]"))
    with_gemv = [choice.name for choice in whole.choices[down] if whole.races_of(down, choice, CASES[:1], {"gemv": 1})]
    assert with_gemv == ["one token", "evict first"]


def test_what_is_recorded_of_the_h200_is_of_plans_and_lowers(of_8b: Plan) -> None:
    """A tunable that a lowering does not have would fail there, a shape that no plan has is never read."""
    small, large = (replace(resolve_model(f"llama-3.1-{size}").config, num_layers=2) for size in ("8b", "70b"))
    rank = cut_plan(large, "fp8", ARCH, CASES, 32, "auto", 2, GPU)[0]
    packed = [cut_plan(config, "int4", ARCH, CASES[:1], 32, "fp8", 1, GPU)[0] for config in (small, large)]
    keys = {key for plan in (of_8b, rank, *packed) for key in StepLowering(plan, PlanCounter(plan).specs, ARCH).keys.values()}
    assert {*tactics.read(tactics.own_file(GPU))} <= keys


def test_launches_of_a_step_are_those_of_an_engine_and_follow_the_tactics(plan: Plan) -> None:
    lowering = StepLowering(plan, PlanCounter(plan).specs, ARCH)
    assert lowering({}) == [op.tactics[ARCH] for op in plan.ops]
    key = next(key for key in lowering.keys.values() if key.startswith("gate_up_silu"))
    chosen = {key: {"skinny16_blocks": 3}}
    changed = lowering(chosen)
    assert [op.op for op, one, held in zip(plan.ops, changed, lowering({}), strict=True) if one != held] == ["gate_up_silu"] * 4
    at = next(i for i, op in enumerate(plan.ops) if op.op == "gate_up_silu")
    assert lowering(chosen, key) == changed[at - 1 : at + 1], "with the norm that it takes itself"


def test_results_are_compared_with_those_of_what_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with kernels that write what the test says. All that launches name is there."""

    class Program:
        first_row, value = 0, 2.0

        def __init__(self, lowered: Sequence[Lowered], resolve: Callable[[str], torch.Tensor], cubins: Mapping[str, Cubin]) -> None:
            for launch in (launch for one in lowered for launch in one.launches):
                assert not launch.kernel or launch.kernel in cubins
                assert all(resolve(str(arg.value)) is not None for arg in launch.args if arg.kind in ("tensor", "tma"))
            self.y = resolve(bench.plan.ops[len(lowered) - 1].outputs[0])

        def set_symbols(self, **symbols: int) -> None:
            self.tokens = symbols["T"]

        def run(self) -> None:
            self.y[self.first_row : self.tokens].fill_(self.value)

    def empty(memory: RankMemory, name: str, spec: TensorSpec) -> torch.Tensor:
        shape = [memory.plan.profile.max_num_tokens if isinstance(dim, str) else dim for dim in spec.shape]
        return torch.empty(shape, dtype=DTYPES[spec.dtype])

    monkeypatch.setattr("trtllm_kernels.launch.driver.BoundProgram", Program, raising=False)
    monkeypatch.setattr(RankMemory, "view", empty)
    bench = StepBench("tiny-llama", "bf16", ARCH, CASES, gpu=GPU, device="cpu")
    course = TuningPlan(bench.counter, ARCH, name="o_proj", whole_steps=True)
    ((key, choices),) = course.choices.items()
    (race,) = course.races_of(key, next(one for one in choices if one.name == "skinny 64"), CASES, {})
    tried = {key: race.entrants[1].tactic}
    cubin = Cubin(CubinInfo("k", ARCH, 4, 0, 64, 0), b"")
    for chosen in (tried, {}):
        specs = bench.kernels(race.case, chosen)
        assert {spec.key for spec in bench.kernels(race.case, chosen, key)} < {spec.key for spec in specs}
        bench.add_kernels({spec.key: cubin for spec in specs})
    held = bench.kernels(race.case, {}, key)
    assert bench.kernels(race.case, tried, key) != held

    assert bench.error(race.case, key, tried, {}) == ""
    Program.value = 3.0
    assert bench.error(race.case, key, tried, {}) == "wrong: differs from what holds by 50.00%"
    Program.first_row, Program.value = 1, 2.0
    assert bench.error(race.case, key, tried, {}).startswith("wrong")
    assert bench.runs(race.case, key, {})
    rope = next(key for key in bench._lowering.keys.values() if key.startswith("rope_kv_write"))
    assert bench.runs(race.case, rope, {})


def test_entries_of_the_architectures_gpu_count_where_the_gpu_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tactics, "folder", lambda: tmp_path)
    general, own = tmp_path / "h100.json", tmp_path / "h200.json"
    tactics.merge(general, "H100", ARCH, {"a": {"x": 1, "y": 2}, "b": {"z": 3}, "c": {"z": 4}}, {"a": {"x", "y"}, "b": {"z"}, "c": {"z"}})
    tactics.merge(own, GPU, ARCH, {"a": {"x": 5}, "d": {}}, {"a": {"x"}, "b": {"z"}, "d": {"w"}})
    assert json.loads(own.read_text())["tactics"] == {"a": {"x": 5, "y": 2}, "b": {}}
    assert tactics.read_for(ARCH, GPU) == {"a": {"x": 5, "y": 2}, "b": {}, "c": {"z": 4}}
    assert tactics.read_for(ARCH, "NVIDIA H100") == tactics.read_for(ARCH) == {"a": {"x": 1, "y": 2}, "b": {"z": 3}, "c": {"z": 4}}
    assert [file.stem for file in tactics.files_for(ARCH, GPU)] == ["h200", "h100"]
    tactics._load.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--by", "layers"], "--by is 'layers'; give ops, steps, or both"),
        (["--tp", "2"], "--tp 2 is measured by whole steps only; add --by steps"),
        (["--by", "steps", "--m", "4096"], "decode steps of more than 1024 tokens are no CUDA graphs"),
    ],
)
def test_bad_options_are_one_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *arguments]) == 3
    assert said in capsys.readouterr().err


def test_the_command_tunes_by_steps_and_writes_it_down(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class HereBench(FakeBench):
        replaced: frozenset[str] = frozenset()

        def __init__(self, *given: Any) -> None:
            assert given[:3] == ("tiny-llama", "bf16", ARCH)
            assert given[-2:] == (1, GPU)
            super().__init__(lambda tokens, chosen: 1000.0 - 9.0 * (of(chosen, "rms_norm").get("warps") == 2))
            self.plan, self.counter = plan, PlanCounter(plan)

    cubin = Cubin(CubinInfo("k", ARCH, 4, 0, 64, 0), b"")
    monkeypatch.setattr("trtllm_bench.machine.gpus", lambda: [{"gpu": GPU, "compute_capability": "9.0"}])
    monkeypatch.setattr("trtllm_bench.tune.step_bench.StepBench", HereBench)
    monkeypatch.setattr("trtllm_kernels.compile.pool.compile_many", lambda specs, *rest, **named: {spec.key: cubin for spec in specs})
    out = tmp_path / "t.json"
    given = ["--by", "steps", "--model", "tiny-llama", "--precision", "bf16", "--m", "1,16", "--seconds", "30", "--out", str(out)]
    assert main(["tune", "input_layernorm", *given]) == 0
    said = capsys.readouterr().out
    assert "input_layernorm, rows: warps=2" in said
    assert "all that was taken, sustained" in said
    assert of(tactics.read(out), "rms_norm") == {"warps": 2}


def test_what_is_shown_is_what_was_taken_and_not_the_fastest() -> None:
    """The fastest of the mean may be slower in one size, and then another goes."""
    choice = Choice("tile", ({"rows": 1}, {"rows": 2}))
    size = SizeOutcome(64, 100.0, {0: 98.0, 1: 97.0}, {})
    decision = StepDecision("linear", "layers.*.qkv_proj", choice, {"rows": 1}, {"rows": 2}, 0.02, (size,))
    kept = replace(decision, winner={})
    shown = [(row["verdict"], row["tactic"], row["best"]) for row in choice_rows(TunedSteps((decision, kept), (), 0))]
    assert shown == [("taken", "rows=1", 98.0), ("kept", "rows=2", 97.0)]
