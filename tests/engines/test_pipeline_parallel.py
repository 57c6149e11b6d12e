"""Pipelines give the tokens of one rank, alone and with tensor-parallel groups as stages; each stage has its layers and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compiler_models import LLAMA, checkpoint
from compiler_models import PROFILE as LLAMA_PROFILE
from hf_folders import hf_folder
from safetensors.torch import load_file
from test_tensor_parallel import (
    FEW_PAGES,
    MODELS,
    PAGES,
    PROFILE,
    SOURCE,
    TINY,
    compiled,
    of_one_rank,
    outputs_in_few_pages,
    tensors_of,
    tokens,
)
from thread_ranks import ThreadRanks

from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.compile import Compiled, compile_model
from trtllm_engines.compiler.graph import assign_schemes, trace
from trtllm_engines.compiler.passes.stage import apply as split
from trtllm_engines.compiler.passes.stage import head_layers, stages_of
from trtllm_engines.compiler.plan import HIDDEN, LOGITS, NEXT_HIDDEN, ParallelLayout, Profile, Stage
from trtllm_engines.engine.build import build, refit
from trtllm_engines.engine.check_plan import check_plan
from trtllm_engines.engine.folder import load_engine, rebuild_command
from trtllm_engines.engine.inspect import describe
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.presets import preset_config
from trtllm_engines.quantization import named_plan
from trtllm_engines.runtime.cpu import CpuRunner
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.rank import CacheSize
from trtllm_engines.runtime.ranks import start_ranks
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import SchedulerConfig
from trtllm_kernels.launch import peers

FOUR = {name: replace(config, num_layers=4) for name, config in MODELS.items()}


def staged(config: ModelConfig, tp: int, pp: int, precision: str = "fp32") -> list[Compiled]:
    layout = ParallelLayout(tp, pp)
    return [compile_model(config, precision, PROFILE, weights_source=SOURCE, layout=layout, stage=stage) for stage in range(pp)]


def ranks_of(stages: Sequence[Compiled], tp: int, pages: int = PAGES) -> ThreadRanks:
    return ThreadRanks([one.plan for one in stages], lambda rank: tensors_of(stages[rank // tp], rank % tp), pages)


def of_pipeline(config: ModelConfig, tp: int, pp: int) -> list[Any]:
    runner = ranks_of(staged(config, tp, pp), tp)
    try:
        return tokens(runner, config, pp)
    finally:
        runner.close()


@pytest.mark.parametrize(
    ("name", "tp", "pp"),
    [("llama", 1, 2), ("grouped", 1, 4), ("tied", 1, 2), ("gptj", 1, 3), ("grouped", 2, 2), ("tied", 2, 2), ("gptj", 2, 2)],
)
def test_tokens_are_those_of_one_rank(name: str, tp: int, pp: int) -> None:
    assert of_pipeline(FOUR[name], tp, pp) == of_one_rank(FOUR[name])


@pytest.mark.parametrize(("tp", "pp"), [(1, 2), (1, 4), (2, 2)])
def test_tokens_are_those_of_one_rank_when_sequences_are_preempted(tp: int, pp: int) -> None:
    runner = ranks_of(staged(FOUR["llama"], tp, pp), tp, FEW_PAGES)
    found, preempted = outputs_in_few_pages(runner, pp)
    runner.close()
    assert found == of_one_rank_in_few_pages()
    assert preempted > 0


@cache
def of_one_rank_in_few_pages() -> list[list[int]]:
    whole = compiled(FOUR["llama"], "fp32", 1)
    return outputs_in_few_pages(CpuRunner(whole.plan, tensors_of(whole, 0), FEW_PAGES))[0]


@pytest.mark.parametrize("pp", [2, 4])
def test_every_stage_has_a_step_while_sequences_decode(pp: int) -> None:
    """A sequence is in one step at a time, and each step has an equal share of them."""
    runner, together, shares = ranks_of(staged(FOUR["llama"], 1, pp), 1), [], list[int]()
    config = SchedulerConfig(8, 64, 256, PROFILE.page_size, PAGES, stages=pp)
    loop = EngineLoop(runner, config, vocab_size=512)
    for _ in range(8):
        loop.add_request([3, 4, 5], SamplingParams(max_tokens=20, ignore_eos=True))
    while not loop.idle:
        loop.step()
        decoding = [flight.batch.slots[: flight.batch.num_decodes] for flight in loop._flights]
        slots = np.concatenate(decoding) if decoding else np.empty(0)
        assert len(set(slots.tolist())) == len(slots)
        together.append(len(decoding))
        shares += [len(one) for one in decoding]
    runner.close()
    assert max(together) == pp
    assert sum(together) > 0.8 * pp * len(together)
    assert set(shares[8 * pp : -8 * pp]) == {8 // pp}


def test_a_stage_has_its_layers_and_what_goes_with_them() -> None:
    stages = [one.plan for one in staged(FOUR["grouped"], 1, 4)]
    assert [plan.stage for plan in stages] == [Stage(index, index, index + 1) for index in range(4)]
    for index, plan in enumerate(stages):
        named = {name.split(".")[2] for name in plan.weights if name.startswith("model.layers.")}
        assert named == {str(index)}
        assert plan.step_inputs["kv_cache"].shape[0] == 1
        assert (HIDDEN in plan.step_inputs) == (index > 0)
        assert plan.outputs == ((LOGITS,) if index == 3 else (NEXT_HIDDEN,))
        assert plan.values[plan.outputs[0]].shape == ("S" if index == 3 else "T", 512 if index == 3 else 128)
        assert any("sample" in op.op for op in plan.ops) == (index == 3)
    assert "model.embed_tokens.weight" in stages[0].weights
    assert "lm_head.weight" in stages[3].weights
    everything = [name for plan in stages for name in plan.weights]
    assert sorted(everything) == sorted(compile_model(FOUR["grouped"], "fp32", PROFILE, weights_source=SOURCE).plan.weights)


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_weights_of_a_stage_are_those_of_the_whole_model(precision: str) -> None:
    whole = compile_model(FOUR["gptj"], precision, PROFILE, weights_source=SOURCE).plan
    for stage in staged(FOUR["gptj"], 1, 2, precision):
        for name in stage.plan.weights:
            parts = [assemble(plan, name, DummyWeights(0), torch.device("cpu")).view(torch.uint8) for plan in (whole, stage.plan)]
            assert torch.equal(*parts), name


@pytest.mark.parametrize(
    ("layers", "pp", "head", "counts"),
    [
        (32, 2, 0.0, [16, 16]),
        (32, 2, 4.8, [18, 14]),  # Llama 3.1 8B in fp8, whose head stays wide
        (32, 4, 4.8, [9, 9, 9, 5]),
        (80, 2, 2.4, [41, 39]),
        (5, 4, 0.0, [2, 1, 1, 1]),
        (4, 4, 9.0, [1, 1, 1, 1]),
        (7, 1, 3.0, [7]),
    ],
)
def test_stages_are_balanced_with_the_head(layers: int, pp: int, head: float, counts: list[int]) -> None:
    stages = stages_of(layers, pp, head, "m")
    assert [stage.num_layers for stage in stages] == counts
    assert [stage.first_layer for stage in stages] == [sum(counts[:index]) for index in range(pp)]


def test_the_head_counts_by_its_bytes() -> None:
    """Llama 3.1 8B: 128,256 x 4,096 beside 218.1 M weights a layer, in bf16, and in fp8 twice that as the head stays wide."""
    config = preset_config("llama-3.1-8b")
    layer = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336
    for precision, times in (("bf16", 1), ("fp8", 2)):
        graph = trace(config, "bf16", PROFILE)
        assign_schemes(graph, named_plan(precision, "auto"))
        assert head_layers(graph) == pytest.approx(times * 128256 * 4096 / layer)
        graph.layout = ParallelLayout(1, 2)
        split(graph)
        assert graph.stage == Stage(0, 0, 17)  # half of that, as prompts hardly have it


def test_fewer_layers_than_stages_are_refused() -> None:
    with pytest.raises(EngineError, match=r"^[^\n]*num_hidden_layers is 2, fewer than the stages of --pp 3; choose a smaller --pp$"):
        staged(replace(TINY, num_layers=2), 1, 3)


def test_a_rank_of_another_stage_that_fails_ends_the_step_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = ranks_of(staged(FOUR["llama"], 2, 2), 2)
    fail: Callable[..., Any] = lambda batch: (_ for _ in ()).throw(RuntimeError("no memory"))  # noqa: E731
    monkeypatch.setattr(runner.ranks[0], "launch", fail)
    loop = EngineLoop(runner, SchedulerConfig(8, 64, 256, PROFILE.page_size, PAGES, stages=2), vocab_size=512)
    request = loop.add_request([3, 4, 5], SamplingParams(max_tokens=2))
    with pytest.raises(EngineError, match="rank 0 failed: RuntimeError: no memory"):
        loop.run()
    assert "rank 0 failed" in str(request.error)
    runner.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the small Llama, of three layers and a vocabulary that two ranks can share, with weights."""
    config = replace(LLAMA, vocab_size=96)
    folder = hf_folder(tmp_path_factory.mktemp("pipeline") / "model", checkpoint(trace(config, "fp32", LLAMA_PROFILE)))
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"vocab_size": 97', '"vocab_size": 96'))
    return folder


def test_a_folder_has_the_plan_of_each_stage_and_the_weights_of_each_rank(model: Path, tmp_path: Path) -> None:
    folder = build(model, "fp32", out=tmp_path / "e", profile=LLAMA_PROFILE, layout=ParallelLayout(1, 2))
    names = {file.name for file in folder.iterdir()}
    assert {"engine.json", "engine.1.json", "rank0.safetensors", "rank1.safetensors"} <= names
    assert "rank2.safetensors" not in names
    whole = load_engine(build(model, "fp32", out=tmp_path / "whole", profile=LLAMA_PROFILE)).tensors("cpu")
    stored = [load_engine(folder, stage=stage).tensors("cpu") for stage in range(2)]
    for name in whole:
        own = [tensors[name] for tensors in stored if name in tensors]
        assert own, name
        assert all(torch.equal(tensor, whole[name]) for tensor in own), name
    assert "--pp 2" in rebuild_command(load_engine(folder).plan, folder)
    described = describe(folder)
    assert described["parallel"] == {"tp": 1, "pp": 2, "layers": [2, 1]}
    assert described["model"]["parameters"] == describe(tmp_path / "whole")["model"]["parameters"]
    (folder / "engine.1.json").unlink()
    with pytest.raises(EngineError, match=r"engine\.1\.json"):
        load_engine(folder)


def test_refit_swaps_the_weights_of_every_stage(model: Path, tmp_path: Path) -> None:
    folder = build(model, "fp32", out=tmp_path / "e", profile=LLAMA_PROFILE, layout=ParallelLayout(2, 2))
    assert len(list(folder.glob("rank*.safetensors"))) == 4
    last = load_engine(folder, stage=1)
    assert torch.equal(last.tensors("cpu", rank=1)["lm_head.weight"], load_file(model / "model.safetensors")["lm_head.weight"][48:])
    refit(folder, "dummy", seed=3)
    assert not list(folder.glob("rank*.safetensors"))
    for stage in range(2):
        engine = load_engine(folder, stage=stage)
        name = f"model.layers.{engine.plan.stage.first_layer}.self_attn.o_proj.weight"
        expected = DummyWeights(3).read(name, (64, 64), torch.float32, torch.device("cpu"))
        assert torch.equal(engine.tensors("cpu", rank=1)[name], expected[:, 32:])


def test_marked_outputs_are_of_whole_models() -> None:
    with pytest.raises(EngineError, match=r"^--mark-output adds results of a whole model and --pp is 2; leave one of them out$"):
        compile_model(TINY, "fp32", PROFILE, weights_source=SOURCE, layout=ParallelLayout(1, 2), mark_outputs=["model.norm"])


def test_an_engine_for_gpus_of_one_host_is_refused_on_two(model: Path, tmp_path: Path) -> None:
    """Which way its ranks exchange data is in its plan."""
    folder = build(model, "fp32", out=tmp_path / "e", profile=LLAMA_PROFILE, layout=ParallelLayout(1, 2))
    engine = replace(load_engine(folder), arch="sm_90")
    hosts = SimpleNamespace(nnodes=2)
    with pytest.raises(EngineError, match=r"e was built for --nnodes 1, not 2; build another engine, with --nnodes 2$"):
        start_ranks(engine, CacheSize(), cuda_graphs=True, max_graph_batch=1, progress=lambda *_: None, hosts=hosts)  # type: ignore[arg-type]


def test_a_pipeline_of_an_earlier_release_is_refused(model: Path, tmp_path: Path) -> None:
    """Its stages were handed `hidden` and read the result; nothing in its plan sends."""
    folder = build(model, "fp32", out=tmp_path / "e", profile=LLAMA_PROFILE, weights="dummy", layout=ParallelLayout(1, 2))
    first, last = (load_engine(folder, stage=stage).plan for stage in range(2))
    for plan, op in ((first, "send"), (last, "receive")):
        check_plan(plan, "engine.json")
        ops = (replace(one, inputs=tuple(HIDDEN if name == "receive" else name for name in one.inputs)) for one in plan.ops)
        with pytest.raises(EngineError, match=f"^engine.json: stage {plan.stage.index} of 2 has no op {op}"):
            check_plan(replace(plan, ops=tuple(one for one in ops if one.op != op)), "engine.json")


@pytest.mark.parametrize(("name", "precision", "tp"), [("llama-3.1-8b", "fp8", 1), ("llama-3.1-8b", "bf16", 2), ("gptj-6b", "fp8", 2)])
def test_stages_send_and_receive_whole_rows_on_gpus(name: str, precision: str, tp: int) -> None:
    """In a tensor-parallel stage a rank may have its own rows only of what a fused reduction adds up (`all_reduce_add_rms_norm`, in large
    steps on GPUs), so only another reduction may read it: what is sent is made by one that gives whole rows."""
    profile, config = Profile(max_batch_size=64, max_num_tokens=2048, max_seq_len=1024), replace(preset_config(name), num_layers=4)
    for stage in range(2):
        layout = ParallelLayout(tp, 2)
        plan = compile_model(config, precision, profile, arches=("sm_90",), weights_source=SOURCE, layout=layout, stage=stage).plan
        assert [op.op for op in plan.ops if op.op in ("send", "receive")] == (["receive"] if stage else ["send"])
        moved = next(op for op in plan.ops if op.op in ("send", "receive"))
        (launch,) = moved.tactics["sm_90"].launches
        assert [arg.value for arg in launch.args if arg.kind == "tensor"][-2:] == ["pipe", moved.outputs[0]]
        assert launch.args[-1].value == "T"
        if stage == 0:
            assert (moved.reuses, moved.outputs) == (moved.inputs[0], (NEXT_HIDDEN,))
            assert plan.ops[-1] is moved
            assert not any(kernel.constexprs["KEEP"] for kernel in moved.tactics["sm_90"].kernels)
        partly = {op.outputs[1] for op in plan.ops if op.op == "all_reduce_add_rms_norm"}
        readers = {op.op for op in plan.ops if partly & set(op.inputs)}
        assert readers <= {"all_reduce_add_rms_norm", "all_reduce_add"}
        if tp > 1 and name.startswith("llama"):
            assert ("all_reduce_add" in readers) == (stage == 0)


def test_every_rank_maps_the_inbox_after_it_and_the_counters_of_both_sides(
    exchanges: Callable[[int], list[Callable[[bytes], list[bytes]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages of two ranks, and three of one, whose memory is the host's: what each finds in its `pipe` are the others' addresses."""
    kept: list[torch.Tensor] = []

    def allocated(nbytes: int) -> torch.Tensor:
        kept.append(torch.zeros(nbytes, dtype=torch.uint8))
        return kept[-1]

    monkeypatch.setattr(peers, "_allocated", allocated)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for size, tp in ((4, 2), (3, 1)):

        def join(rank: int, size: int, tp: int, exchange: Callable[[bytes], list[bytes]]) -> tuple[peers.PipeMemory, list[int]]:
            memory = peers.PipeMemory(rank, size, tp, exchange)
            words = memory.join(row_bytes=64, most_rows=10)
            return memory, [int(words[0]), int(words[1]) >> 32, *words[2:].tolist()]

        with ThreadPoolExecutor(size) as pool:
            joined = list(pool.map(join, range(size), [size] * size, [tp] * size, exchanges(size)))
        for rank, (memory, (zero, most_rows, inbox, next_inbox, arrived, next_arrived, taken, before_taken)) in enumerate(joined):
            assert (zero, most_rows, inbox) == (0, 10, memory.inbox.data_ptr())
            assert memory.inbox.numel() == (1 if rank < tp else 2 * 10 * 64)
            after, before = joined[rank + tp][1] if rank + tp < size else None, joined[rank - tp][1] if rank >= tp else None
            assert (next_inbox, next_arrived) == ((after[2], after[4]) if after else (0, 0))
            assert before_taken == (before[6] if before else 0)
            assert abs(taken - arrived) >= 128  # not in one cache line
