"""Kernel benchmarks without a GPU: the stopping rule on a made-up timer, the ops and their check on a CPU, verdicts against a baseline."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from trtllm_bench.__main__ import main
from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.micro.bench import MOST_COPIES, Bench, _reading
from trtllm_bench.micro.bound_op import BoundOp
from trtllm_bench.micro.cases import chunk_case, decode_case, prefill_case
from trtllm_bench.micro.peers import peer_of
from trtllm_bench.micro.results import Measured, Run, draw, is_right, judge
from trtllm_bench.micro.run import KernelSelection, cases_of, parse_m, run
from trtllm_bench.micro.show import print_findings
from trtllm_bench.micro.timing import Bursts, Call, How, StoppingRule, measure, split_samples
from trtllm_bench.roofline.counts import StepShape
from trtllm_bench.roofline.hardware import Hardware
from trtllm_kernels.dialect.types import SKINNY_TOKENS, Arg, Launch, Lowered, TensorSpec

RULE = StoppingRule()
SPEED = {"cold": 1.0, "warm": 0.5, "chained": 51.2}
"""Of a chain of 64 calls 0.8 each."""


class FakeTimer:
    """Draws times around `mean`; `slow` says for each batch whether the GPU was slowed down. Every batch takes a tenth of a second."""

    def __init__(self, mean: float = 10.0, spread: float = 0.0, slow: Iterator[bool] | None = None) -> None:
        self.mean, self.spread, self.slow = mean, spread, slow or iter(())
        self.now = 0.0
        self.batches = 0
        self.draw = np.random.default_rng(1)

    def sample(self, call: Call, count: int, how: How) -> list[float]:
        call()
        self.now += 0.1
        self.batches += 1
        return (self.mean * SPEED[how] + self.spread * self.draw.standard_normal(count)).tolist()

    def slowed(self) -> bool:
        return next(self.slow, False)

    def clock(self) -> float:
        return self.now


def timed(timer: FakeTimer, rule: StoppingRule = RULE) -> tuple[float, int, bool, bool]:
    found = measure(timer, lambda: None, "cold", rule, timer.clock)
    return found.mean_us, len(found.batches), found.settled, found.slowed


def test_a_quiet_kernel_takes_the_fewest_batches() -> None:
    assert timed(FakeTimer()) == (10.0, 3, True, False)


def test_noise_asks_for_as_many_samples_as_its_mean_needs() -> None:
    rule = StoppingRule(noise=0.005, batch=25, seconds=math.inf)
    mean, batches, settled, _ = timed(FakeTimer(spread=0.8), rule)
    assert settled
    assert mean == pytest.approx(10, rel=0.02)
    needed = (0.08 / 0.005) ** 2 / 25
    assert 0.7 * needed <= batches <= 1.5 * needed


def test_what_never_settles_is_given_with_its_noise() -> None:
    timer = FakeTimer(spread=9.0)
    found = measure(timer, lambda: None, "cold", StoppingRule(seconds=1.0), timer.clock)
    assert not found.settled
    assert found.noise > 0.01
    assert timer.now == pytest.approx(1.1)


def test_batches_on_a_slowed_down_gpu_are_measured_again() -> None:
    timer = FakeTimer(slow=iter([True, True, False, False, False]))
    assert timed(timer) == (10.0, 3, True, False)
    assert timer.batches == 5
    forever = FakeTimer(slow=iter([True] * 50))
    assert timed(forever, StoppingRule(retries=2)) == (10.0, 3, True, True)


def test_samples_are_cut_out_of_the_stream_of_kernels() -> None:
    assert split_samples([100.0, 1, 2, 100, 3, 4], 2, cold=True) == [3, 7]
    assert split_samples([1.0, 2, 3], 3, cold=False) == [1, 2, 3]
    with pytest.raises(RunFailure, match="not a whole number"):
        split_samples([1.0, 2, 3], 2, cold=False)
    with pytest.raises(RunFailure, match="2 kernels in 2 calls, none of them of the op itself"):
        split_samples([1.0, 2], 2, cold=True)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench("tiny-llama", "fp32", "cpu", [decode_case(4, 50), prefill_case(32)])


def test_ops_run_on_what_the_ops_before_them_made(bench: Bench) -> None:
    bound = {one.cost.name: one for one in bench.ops(decode_case(4, 50))}
    assert len(bound) < len(bench.plan.ops)
    assert {one.op.op for one in bound.values()} == {op.op for op in bench.plan.ops}
    positions = next(iter(bound.values())).memory["positions"]
    assert positions.tolist() == [49] * 4
    assert bound["lm_head"].memory["logits"].shape == (4, bench.plan.config.vocab_size)
    assert bound["lm_head"].memory["logits"].std() > 0.1
    assert all(one.error() == 0 for one in bound.values())


def test_kernels_find_room_for_more_tokens_behind_a_value_as_in_an_engine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a tile of padded tokens reads; references see the step's alone, weights and inputs are as they are."""
    found: dict[str, torch.Tensor] = {}

    class Binding:
        def __init__(self, lowered: Sequence[Lowered], resolve: Callable[[str], torch.Tensor], *_: object, **__: object) -> None:
            found.update({name: resolve(name) for name in ("value", "weight", "logits.scratch")})

        def set_symbols(self, **_: int) -> None:
            pass

    monkeypatch.setattr("trtllm_kernels.launch.driver.BoundProgram", Binding)
    symbols = {"T": 5, "R": 5, "D": 5, "S": 5, "C": 0}
    name = next(name for name, spec in bench.plan.values.items() if spec.shape[0] == "T" and len(spec.shape) == 2)
    value = bench._empty(bench.plan.values[name], symbols)
    weight = torch.zeros(300, 4)[:3]
    lowered = Lowered((), (), {"logits.scratch": TensorSpec(("T", 2), "fp32")})
    monkeypatch.setattr(bench, "plan", replace(bench.plan, values={**bench.plan.values, "value": bench.plan.values[name]}))
    bench._bind([lowered], {"value": value, "weight": weight}, symbols)
    assert len(value) == 5
    assert found["value"].data_ptr() == value.data_ptr()
    assert found["value"].shape == (SKINNY_TOKENS, value.shape[1])
    assert found["weight"] is weight
    assert found["logits.scratch"].shape == (5, 2)


def test_a_wrong_kernel_is_found(bench: Bench) -> None:
    for one in bench.ops(decode_case(4, 50)):
        if one.op.op == "paged_attention":

            class Wrong:
                def run(self, memory: dict[str, torch.Tensor] = one.memory, name: str = one.op.outputs[0]) -> None:
                    memory[name] = memory[name] * 1.1

            broken = replace(one, program=Wrong())
            assert broken.error() == pytest.approx(0.1, rel=0.01)
            assert not is_right(broken.error(), "bf16")
            return
    pytest.fail("no attention")


def test_an_op_that_does_the_work_of_another_is_held_against_both(bench: Bench) -> None:
    """Attention that rotates: what it reads is not rotated, and the cache lacks this step's keys."""
    ops = {one.op.op: one for one in bench.ops(decode_case(4, 50))}
    rope, attention = ops["rope_kv_write"], ops["paged_attention"]
    memory, result = attention.memory, attention.op.outputs[0]
    memory[rope.op.outputs[0]] = memory[rope.operand("qkv")].clone()
    memory[rope.operand("kv_cache")].fill_(0.5)

    class Both:
        def __init__(self, writes: float) -> None:
            self.writes = writes

        def run(self) -> None:
            (rotated,) = rope.reference(rope.arguments())
            (memory[result],) = attention.reference({**attention.arguments(), "qkv": rotated})
            memory[rope.operand("kv_cache")].mul_(self.writes)

    both = replace(attention, program=Both(1.0), includes=(rope,))
    assert both.error() == 0
    assert replace(both, program=Both(1.1)).error() == pytest.approx(0.1, rel=0.01), "the cache is among what is compared"
    assert replace(both, includes=()).error() > 0.1, "its own reference does not rotate"


def test_an_op_is_idle_in_a_step_that_skips_all_its_launches(bench: Bench) -> None:
    one = next(iter(bench.ops(decode_case(4, 50))))
    assert not one.idle, "references launch nothing"
    launches = (Launch("rotate", grid=("T - D", 8, 1)), Launch("chunks", grid=("8 * min(1, C)", 1, 1)))
    sizes = {"R": 4, "S": 4}
    assert replace(one, lowered=Lowered(launches), symbols={"T": 4, "D": 4, "C": 0, **sizes}).idle
    assert not replace(one, lowered=Lowered(launches), symbols={"T": 9, "D": 4, "C": 0, **sizes}).idle
    assert not replace(one, lowered=Lowered(launches), symbols={"T": 4, "D": 4, "C": 1, **sizes}).idle


def test_bursts_rest_nine_times_as_long_as_they_last() -> None:
    now, slept = 0.0, list[float]()

    class Slow(FakeTimer):
        def sample(self, call: Call, count: int, how: How) -> list[float]:
            nonlocal now
            now += 0.01 if len(slept) < 3 else 0.1
            return super().sample(call, count, how)

    bursts = Bursts(Slow(), slept.append, lambda: now)
    assert len(bursts.sample(lambda: None, 4, "chained")) == 4
    assert slept == pytest.approx([0.0, 0.09, 0.09, 0.3])


def test_not_a_number_is_never_right(bench: Bench) -> None:
    one = next(one for one in bench.ops(decode_case(4, 50)) if one.op.op == "linear")

    class Nan:
        def run(self) -> None:
            one.memory[one.op.outputs[0]].fill_(torch.nan)

    assert replace(one, program=Nan()).error() == math.inf


def test_prefill_adds_only_what_differs_from_decode(bench: Bench) -> None:
    wanted = KernelSelection("tiny-llama", "fp32", (4, 32), 50)
    assert [(case.label, case.shape.tokens) for case in cases_of(wanted)] == [("decode", 4), ("decode", 32), ("prefill", 32)]
    hardware = Hardware("test", {"fp32": 1e12}, 1e11)
    whole = Bench("tiny-llama", "fp32", "cpu", cases_of(wanted))
    found = run(wanted, whole, FakeTimer(), StoppingRule(), hardware, peers=False)
    assert {one.op for one in found if one.case == "prefill"} == {"paged_attention"}
    assert all(one.right and one.cold.mean_us == 10 and one.warm.mean_us == 5 for one in found)
    assert {one.op for one in found if one.chained} == {"linear", "gate_up_silu", "linear_sample"} & {one.op for one in found}
    head = next(one for one in found if one.role == "lm_head" and one.m == 32)
    calls = MOST_COPIES
    assert head.chained is not None
    assert head.chained.mean_us == pytest.approx(512 / calls)
    assert head.chained_share == pytest.approx((head.roof_us or 0) / (512 / calls))
    config = whole.plan.config
    moved = 4 * (config.vocab_size * config.hidden_size + 32 * (config.hidden_size + config.vocab_size))
    assert head.roof_us == pytest.approx(max(moved / 1e11, 2 * 32 * config.vocab_size * config.hidden_size / 1e12) * 1e6)
    assert head.share == pytest.approx((head.roof_us or 0) / 10)
    assert len({one.key for one in found}) == len(found)
    with pytest.raises(BenchError, match="no op of tiny-llama is named 'nothing'; it has embedding"):
        run(replace(wanted, name="nothing"), whole, FakeTimer(), StoppingRule(), None, peers=False)


@pytest.mark.parametrize(
    ("precision", "rows", "products"), [("fp8", 20, 5), ("fp8_rowwise", 20, 5), ("int8_sq", 20, 5), ("int8_sq", 16, 1)]
)
def test_peers_of_products_multiply_the_same_operands(precision: str, rows: int, products: int) -> None:
    """Codes with a scale for each row as codes alone; int8 of up to 16 rows, which torch does not take on a GPU, has none but the head."""
    case = prefill_case(rows)
    bench = Bench("tiny-llama", precision, "cpu", [case])
    config = bench.plan.config
    compared = 0
    for bound in bench.ops(case):
        peer = peer_of(bound, case.shape, config.num_heads, config.num_kv_heads, config.head_dim)
        if bound.cost.kind != "gemm" or peer is None:
            continue
        given = bound.arguments()
        scales = [scale.float() for scale in (given.get("x_scale"), given.get("weight_scale")) if scale is not None and scale.numel() == 1]
        expected = given["x"].float() @ given["weight"].float().T * math.prod(scale.item() for scale in scales)
        torch.testing.assert_close(peer.call().float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
        compared += 1
    assert compared == products


def test_a_chain_reads_a_weight_of_its_own_each_time_until_all_have_left_l2(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = next(one for one in bench.ops(decode_case(4, 50)) if one.op.op == "linear")
    weight = bound.memory[bound.operand("weight")]
    monkeypatch.setattr("trtllm_bench.micro.bench.FLUSH_BYTES", 24 * weight.nbytes - 1)
    read: list[int] = []

    def run(self: BoundOp) -> None:
        read.append(self.memory[bound.operand("weight")].data_ptr())
        assert torch.equal(self.memory[bound.operand("weight")], weight)

    chain = bench.chain(bound)
    assert chain is not None
    assert chain.calls == 72, "a whole number of rounds, at least 64 calls"
    monkeypatch.setattr(BoundOp, "run", run)
    chain.run()
    assert len(set(read)) == 24
    assert read == read[:24] * 3
    assert bench.chain(next(one for one in bench.ops(decode_case(4, 50)) if one.op.op == "rms_norm")) is None


def test_the_launches_of_a_chain_differ_in_the_weight_alone() -> None:
    args = (Arg("tensor", "x"), Arg("tma", "w", (64, 128)), Arg("tensor", "w"), Arg("i32", "T"), Arg("tensor", "y", index=1))
    lowered = Lowered((Launch("few", args=args), Launch("sum", args=(Arg("tensor", "y"),))))
    first, second = _reading(lowered, "w", "w copy 1").launches
    assert [one.value for one in first.args] == ["x", "w copy 1", "w copy 1", "T", "y"]
    assert [(one.kind, one.box, one.index) for one in first.args] == [(one.kind, one.box, one.index) for one in args]
    assert second == lowered.launches[1]


def test_a_prompt_may_continue_what_is_in_the_cache() -> None:
    wanted = KernelSelection("tiny-llama", "fp32", (4, 32), 50, "attention", past=70)
    (*_, chunk) = cases_of(wanted)
    assert (chunk.label, chunk.shape.symbols) == ("chunk", {"T": 32, "R": 1, "D": 0, "S": 1, "C": 1, "L": 0})
    found = run(wanted, Bench("tiny-llama", "fp32", "cpu", cases_of(wanted)), FakeTimer(), StoppingRule(), None, peers=False)
    assert [(one.case, one.m, one.kv_len) for one in found] == [("decode", 4, 50), ("decode", 32, 50), ("chunk", 32, 102)]
    assert all(one.right for one in found)
    pairs = sum(70 + i for i in range(1, 33))
    assert found[-1].flop == 4 * pairs * 128, "each query sees the past and the tokens up to its own"


def test_a_sequence_longer_than_the_model_has_positions_is_refused() -> None:
    for case in (chunk_case(64, 4033), decode_case(2, 4097)):
        with pytest.raises(BenchError, match=r"llama-2-7b has 4,096 positions; a sequence of 4,097 tokens is too long for it"):
            Bench("llama-2-7b", "fp32", "cpu", [case])


def results(scale: float, seed: int) -> Run:
    draw_from = np.random.default_rng(seed)
    found = []
    for role, mean in (("mlp.down_proj", 20.0), ("attn", 50.0)):
        base = measure(FakeTimer(mean), lambda: None, "cold", StoppingRule())
        batches = mean * (scale if role == "attn" else 1) * (1 + 0.003 * draw_from.standard_normal(6))
        timing = replace(base, batches=tuple(batches.tolist()), mean_us=float(batches.mean()))
        found.append(Measured("linear", role, "decode", 8, 100, 1e6, 1e9, timing, timing, 0.0, True, roof_us=mean / 2))
    return Run("tiny", "bf16", "GPU", tuple(found))


def test_a_baseline_passes_the_same_and_fails_the_slower(tmp_path: Path) -> None:
    results(1.0, 1).save(tmp_path / "base.json")
    base = Run.load(tmp_path / "base.json")
    assert base == results(1.0, 1)
    assert [one.verdict for one in judge(base, results(1.0, 2), 0.03)] == ["pass", "pass"]
    assert [one.verdict for one in judge(base, results(1.1, 3), 0.03)] == ["pass", "fail"]
    assert [one.verdict for one in judge(base, results(0.8, 3), 0.03)] == ["pass", "pass"]
    with pytest.raises(BenchError, match="measured on GPU and this is other"):
        judge(base, replace(base, device="other"), 0.03)
    with pytest.raises(BenchError, match="none of these kernels"):
        judge(base, replace(base, results=tuple(replace(one, m=9) for one in base.results)), 0.03)
    with pytest.raises(BenchError, match="write them with trtllm-bench kernels --out"):
        Run.load(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(BenchError, match="is not a file of trtllm-bench kernels"):
        Run.load(tmp_path / "other.json")
    written = json.loads((tmp_path / "base.json").read_text())
    for path in (("cold", "mean_us"), ("warm", "batches", 2)):
        damaged = copy.deepcopy(written)
        place = damaged["results"][1]
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = 0
        (tmp_path / "damaged.json").write_text(json.dumps(damaged))
        with pytest.raises(BenchError, match=r"damaged\.json: a time of attn \(linear\) decode m=8 kv=100 is not above 0"):
            Run.load(tmp_path / "damaged.json")


def test_inconclusive_is_explained_where_it_is_printed() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=200, no_color=True)
    assert print_findings(judge(results(1.0, 1), results(1.03, 4), 0.03), console) == 2
    assert "inconclusive: the interval of the change, in brackets, reaches across the margin" in stream.getvalue()
    stream.truncate(0)
    assert print_findings(judge(results(1.0, 1), results(1.0, 2), 0.03), console) == 0
    assert "reaches across" not in stream.getvalue()


def test_the_plot_is_written(tmp_path: Path) -> None:
    assert draw(results(1.0, 1), tmp_path / "k.svg").read_text().count("down_proj") >= 1


def test_shares_need_decode_lengths() -> None:
    assert StepShape.decode(3, 7).kv_tokens == 21


@pytest.mark.parametrize("text", ["", "0", "a", "1,-2"])
def test_m_is_a_list_of_tokens(text: str) -> None:
    with pytest.raises(BenchError, match="give numbers of tokens"):
        parse_m(text)


def test_without_a_gpu_the_command_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtllm_bench.machine.gpus", list)
    assert main(["kernels"]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no NVIDIA GPU is usable here" in said
