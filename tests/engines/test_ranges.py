"""Ranges around what the engine does: which, how nested, and that an engine without them is untouched."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from fake_runner import VOCAB, FakeRunner, expected_tokens

from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.errors import EngineError
from trtllm_engines.models.presets import preset_config
from trtllm_engines.runtime import ranges
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.launch_order import LaunchOrder, run_in_groups
from trtllm_engines.runtime.observer import op_groups
from trtllm_engines.runtime.ranges import RangeObserver, annotate, nvtx_marker
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import SchedulerConfig
from trtllm_kernels.dialect.types import SYMBOLS


class Recorder:
    """A marker that keeps (depth, name, payload)."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str, int]] = []
        self.depth = 0

    def push(self, name: str, payload: int = 0) -> None:
        self.seen.append((self.depth, name, payload))
        self.depth += 1

    def pop(self) -> None:
        self.depth -= 1

    def mark(self, name: str) -> None:
        self.seen.append((self.depth, name, -1))


def make_loop() -> EngineLoop:
    config = SchedulerConfig(4, 16, 64, 4, 40)
    runner = FakeRunner(config.max_batch_size, config.max_pages_per_seq, config.num_pages, config.page_size, config.max_num_tokens)
    return EngineLoop(runner, config, vocab_size=VOCAB, overlap=False)


def test_off_leaves_the_engine_as_it_was() -> None:
    loop = make_loop()
    before = (dict(vars(loop)), dict(vars(loop.scheduler)), dict(vars(loop._runner)))
    annotate(loop, "off")
    assert (dict(vars(loop)), dict(vars(loop.scheduler)), dict(vars(loop._runner))) == before
    with pytest.raises(EngineError, match="unknown NVTX detail 'all'; choose one of off, step, layer, op"):
        annotate(loop, "all")


def test_a_step_shows_its_phases_and_who_was_admitted() -> None:
    loop, recorder = make_loop(), Recorder()
    annotate(loop, "step", marker=recorder)
    requests = [loop.add_request([1, 2, n], SamplingParams(max_tokens=3, ignore_eos=True)) for n in range(2)]
    loop.run()
    assert recorder.depth == 0
    assert [request.output.tolist() for request in requests] == [expected_tokens([1, 2, n], 3) for n in range(2)]
    first = recorder.seen[: recorder.seen.index(next(one for one in recorder.seen[1:] if one[1] == "step"))]
    ids = ", ".join(str(request.request_id) for request in requests)
    assert [(depth, name) for depth, name, _ in first] == [
        (0, "step"),
        (1, "schedule"),
        (1, f"admit 2: {ids}"),
        (1, "launch prefill"),
        (1, "finish"),
    ]
    launches = [(name, payload) for _, name, payload in recorder.seen if name.startswith("launch")]
    assert launches == [("launch prefill", 6), ("launch decode", 2), ("launch decode", 2)]


def test_an_error_closes_its_ranges() -> None:
    loop, recorder = make_loop(), Recorder()
    annotate(loop, "step", marker=recorder)
    loop._runner.launch = lambda batch: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    annotate(loop, "step", marker=recorder)
    loop.add_request([1], SamplingParams(max_tokens=1))
    with pytest.raises(ZeroDivisionError):
        loop.run()
    assert recorder.depth == 0


def test_groups_are_ops_or_layers() -> None:
    names = ["prepare_step", "model.layers.0.a", "model.layers.0.b", "model.layers.1.a", "lm_head"]
    assert op_groups(names, "op") == [(name, i, i + 1) for i, name in enumerate(names)]
    assert op_groups(names, "layer") == [("prepare_step", 0, 1), ("layer 0", 1, 3), ("layer 1", 3, 4), ("lm_head", 4, 5)]


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4, 0, 512), (40, 6, 4, 6, 1, 512), (1, 1, 1, 1, 0, 512)])
@pytest.mark.parametrize("detail", ["op", "layer"])
def test_launches_run_in_order_each_in_its_range(sizes: tuple[int, ...], detail: Any) -> None:
    symbols = dict(zip(SYMBOLS, sizes, strict=True))
    plan = compile_model(
        preset_config("tiny-llama"), "bf16", Profile(8, 64, 64), arches=("sm_90",), weights_source={"kind": "dummy", "seed": 0}
    ).plan
    order = LaunchOrder(plan, "sm_90")
    ran: list[tuple[str, Any]] = []
    recorder = Recorder()

    class Program:
        """Stands for the driver's: its active launches are the plan's that have a grid."""

        def run(self, first: int = 0, end: int | None = None) -> None:
            ran.extend((recorder.seen[-1][1], launch) for launch in order.active(symbols)[first:end])

    names = [op.name for op in plan.ops]
    run_in_groups(Program(), op_groups(names, detail), order.ends(symbols), RangeObserver(recorder, detail))
    assert recorder.depth == 0
    assert [launch for _, launch in ran] == order.active(symbols)
    for label, launch in ran:
        expected = next(name for name, first, end in op_groups(names, detail) if first <= launch.op < end)
        assert label == expected


@pytest.fixture
def no_nvtx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)


def test_without_nvtx_the_ranges_go_through_torch(no_nvtx: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    said: list[str] = []
    fake = SimpleNamespace(range_push=said.append, range_pop=lambda: said.append("pop"), mark=said.append)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "nvtx", fake)
    marker = nvtx_marker()
    marker.push("step", 3)
    marker.mark("admit")
    marker.pop()
    assert said == ["trtllm: step", "trtllm: admit", "pop"]
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(EngineError, match="NVTX ranges need the nvtx package"):
        nvtx_marker()


def test_nvtx_ranges_go_to_a_domain_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, Any]] = []
    domain = SimpleNamespace(
        get_event_attributes=lambda message, payload=None: (message, payload),
        push_range=lambda attributes: said.append(("push", attributes)),
        pop_range=lambda: said.append(("pop", None)),
        mark=lambda attributes: said.append(("mark", attributes)),
    )
    domains: list[str] = []
    fake = SimpleNamespace(get_domain=lambda name: domains.append(name) or domain)
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    marker = ranges.nvtx_marker()
    marker.push("step", 7)
    marker.push("schedule")
    marker.pop()
    marker.mark("admit 1: 5")
    assert domains == ["trtllm"]
    assert said == [("push", ("step", 7)), ("push", ("schedule", None)), ("pop", None), ("mark", ("admit 1: 5", None))]
