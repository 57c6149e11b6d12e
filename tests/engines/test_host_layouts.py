"""How ranks exchange data follows from how an engine's layout lies on hosts, and is in its plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_tensor_parallel import PROFILE, SOURCE, TINY

from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import HIDDEN, ParallelLayout
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime import group
from trtllm_engines.runtime.group import GpuLink, NcclGroup, NcclLink, PeerGroup, ProcessGroup, ProcessLink, group_for, link_for

MODEL = replace(TINY, hidden_size=256, num_heads=8, num_kv_heads=8, head_dim=32, intermediate_size=256, num_layers=3)
BY_MEMORY = {"all_reduce_one_shot", "all_reduce_two_shot", "exchange_words", "send", "receive"}
BY_NCCL = {"nccl_sum", "nccl_largest", "nccl_send", "nccl_receive"}


@pytest.mark.parametrize(
    ("layout", "reduces", "passes_on"),
    [
        (ParallelLayout(4), "memory", ""),
        (ParallelLayout(4, 1, 2), "nccl", ""),
        (ParallelLayout(2, 2, 2), "memory", "nccl"),
        (ParallelLayout(2, 2, 4), "nccl", "nccl"),
        (ParallelLayout(1, 2, 2), "", "nccl"),
        (ParallelLayout(2, 3, 2), "nccl", "nccl"),  # the second stage has a rank on each
    ],
    ids=str,
)
def test_stages_within_a_host_reduce_through_memory_and_what_passes_hosts_does_so_by_nccl(
    layout: ParallelLayout, reduces: str, passes_on: str
) -> None:
    found: set[str] = set()
    for index in range(layout.pp):
        plan = compile_model(MODEL, "bf16", PROFILE, arches=("sm_90",), weights_source=SOURCE, layout=layout, stage=index).plan
        launches = [launch for op in plan.ops for launch in op.tactics["sm_90"].launches]
        found |= {launch.library or launch.kernel.rpartition("-")[0] for launch in launches}
        bound = {arg.value for launch in launches for arg in launch.args if arg.kind in ("tensor", "tma")}
        assert bound <= {*plan.buffers, *plan.weights, *plan.constants, *plan.step_inputs} - {HIDDEN}
    expected = {
        "memory": {"all_reduce_one_shot", "all_reduce_two_shot", "exchange_words"},
        "nccl": {"nccl_sum", "nccl_largest"},
        "": set(),
    }[reduces]
    expected |= {"memory": {"send", "receive"}, "nccl": {"nccl_send", "nccl_receive"}, "": set()}[passes_on]
    assert found & (BY_MEMORY | BY_NCCL) == expected


def test_each_way_has_its_group_and_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(group.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(group.dist, "new_group", lambda *_, **__: None)
    chosen = {
        (ParallelLayout(2, 2), True): (PeerGroup, GpuLink),
        (ParallelLayout(2, 2, 2), True): (PeerGroup, NcclLink),
        (ParallelLayout(2, 2, 4), True): (NcclGroup, NcclLink),
        (ParallelLayout(2, 2, 2), False): (ProcessGroup, ProcessLink),
    }
    for (layout, on_gpu), kinds in chosen.items():
        assert (type(group_for(layout, on_gpu)), type(link_for(layout, on_gpu))) == kinds
    assert link_for(ParallelLayout(4, 1, 2), True) is None


def test_ranks_that_do_not_divide_among_hosts_are_refused() -> None:
    with pytest.raises(EngineError, match=r"^tp x pp is 3, which does not divide by --nnodes 2; use another --nnodes$"):
        ParallelLayout(1, 3, 2)
    with pytest.raises(EngineError, match=r"^nnodes is 0 but must be at least 1$"):
        ParallelLayout(1, 1, 0)
