"""What an observer of the engine is told, in which order, and that a profile's window is cut from it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fake_runner import VOCAB, FakeHandle, FakeRunner

from trtllm_bench.profiling.window import StepWindow, Window
from trtllm_bench.roofline.counts import StepShape
from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.models.presets import preset_config
from trtllm_engines.runtime.batch import StepBatch
from trtllm_engines.runtime.cpu import CpuRunner
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.observer import NOBODY, StepObserver
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import SchedulerConfig

EVENTS = [name for name, method in vars(StepObserver).items() if callable(method) and not name.startswith("_")]


def recorder(name: str, heard: list[tuple[str, str]], detail: str = "off") -> StepObserver:
    """Keeps (name, event) of all that it is told."""
    methods = {event: lambda self, *args, event=event: heard.append((name, event)) for event in EVENTS}
    return type("Recorder", (StepObserver,), {**methods, "op_detail": detail})()  # type: ignore[no-any-return]


class GraphRunner(FakeRunner):
    """Runs steps that only decode as graphs of four sequences."""

    observer = NOBODY

    def observe(self, observer: StepObserver) -> None:
        self.observer = observer

    def launch(self, batch: StepBatch) -> FakeHandle:
        if batch.num_decodes == batch.num_seqs:
            self.observer.replays_graph(4)
        return super().launch(batch)


def make_loop(overlap: bool = True) -> EngineLoop:
    config = SchedulerConfig(4, 16, 64, 4, 40)
    return EngineLoop(GraphRunner(4, config.max_pages_per_seq, 40, 4, 16), config, vocab_size=VOCAB, overlap=overlap)


def test_the_later_observer_is_told_around_the_earlier() -> None:
    loop, heard = make_loop(overlap=False), list[tuple[str, str]]()
    loop.observe(recorder("inner", heard))
    loop.observe(recorder("outer", heard))
    loop.add_request([1, 2], SamplingParams(max_tokens=1, ignore_eos=True))
    loop.step()
    step = ["step", ["schedule"], "admitted", ["launch"], ["receive"]]
    expected: list[tuple[str, str]] = []
    for part in step[1:]:
        if isinstance(part, list):
            expected += [("outer", f"{part[0]}_begins"), ("inner", f"{part[0]}_begins")]
            expected += [("inner", f"{part[0]}_ends"), ("outer", f"{part[0]}_ends")]
        else:
            expected += [("outer", part), ("inner", part)]
    assert heard[:2] == [("outer", "step_begins"), ("inner", "step_begins")]
    assert heard[2:-2] == expected
    assert heard[-2:] == [("inner", "step_ends"), ("outer", "step_ends")]


@pytest.mark.parametrize("detail", ["off", "layer", "op"])
def test_ops_are_told_of_as_far_as_an_observer_asks(detail: Any) -> None:
    profile = Profile(2, 16, 32)
    compiled = compile_model(preset_config("tiny-llama"), "fp32", profile, weights_source=DummyWeights().description)
    plan = compiled.plan
    tensors = {name: assemble(plan, name, DummyWeights(), plan_device()) for name in plan.weights} | dict(compiled.constants)
    tokens, counts = [], []
    for observed in ("off", detail):
        loop = EngineLoop(CpuRunner(plan, tensors, 4), SchedulerConfig(2, 16, 32, 32, 4), vocab_size=512, overlap=False)
        heard: list[tuple[str, str]] = []
        loop.observe(recorder("one", heard, observed))
        request = loop.add_request([5, 6, 7], SamplingParams(max_tokens=2, ignore_eos=True, logprobs=1))
        loop.run()
        tokens.append(request.output.tolist())
        events = [event for _, event in heard]
        assert events.count("ops_begin") == events.count("ops_end")
        assert events.count("sample_begins") == events.count("sample_ends") == 2
        counts.append(events.count("ops_begin") // 2)
    layers = plan.config.num_layers
    outside = sum("layers." not in op.name for op in plan.ops)
    assert counts == [0, {"off": 0, "layer": layers + outside, "op": len(plan.ops)}[detail]]
    assert tokens[0] == tokens[1]


def plan_device() -> Any:
    import torch

    return torch.device("cpu")


class Collector:
    def __init__(self, loop: EngineLoop) -> None:
        self.loop = loop
        self.at: list[int] = []

    def start(self) -> None:
        self.at.append(len(self.loop.log))

    def stop(self) -> None:
        self.at.append(len(self.loop.log))


def served(loop: EngineLoop, tokens: int) -> None:
    stop = threading.Event()
    loop.add_request([1, 2, 3], SamplingParams(max_tokens=tokens, ignore_eos=True), on_finish=lambda _: stop.set())
    loop.serve(stop)


def test_a_window_is_numbered_from_the_measured_run_and_knows_graphs() -> None:
    loop = make_loop(overlap=False)
    collector = Collector(loop)
    window = StepWindow(loop, Window(4, 6), collector, runs_before=1)
    served(loop, 7)
    assert not window.seen
    served(loop, 12)
    assert [step.number for step in window.seen] == [2, 3, 4, 5, 6]
    assert window.lead_in == 2
    assert collector.at == [7 + 3, 7 + 8]  # while step 2 is launched, and before step 7 is: its row is in the log already
    assert all(step.graph and step.symbols == StepShape.decode(1, step.number + 3).padded(4) for step in window.seen)


def test_a_window_from_the_first_step_sees_the_prompt_and_ends_with_the_run() -> None:
    loop = make_loop(overlap=False)
    collector = Collector(loop)
    window = StepWindow(loop, Window(0, 50), collector)
    served(loop, 3)
    seen = [(step.number, step.shape.phase, step.graph) for step in window.seen]
    assert seen == [(0, "prefill", False), (1, "decode", True), (2, "decode", True)]
    assert collector.at == [1, 3]
