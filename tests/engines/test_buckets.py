"""Which decode steps have a graph of their own."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.models.presets import preset_config
from trtllm_engines.runtime.buckets import LARGEST_GRAPH, GraphKey, decode_symbols, graph_buckets, shared_graphs
from trtllm_kernels.dialect.expr import compile_all
from trtllm_kernels.dialect.types import SYMBOLS, rounded_keys


@given(most=st.integers(1, 4096), seqs=st.integers(1, 1024))
def test_every_batch_has_a_bucket_that_wastes_little(most: int, seqs: int) -> None:
    buckets = graph_buckets(most)
    assert buckets[0] == 1
    assert buckets[-1] == min(most, LARGEST_GRAPH)
    assert len(set(buckets)) == len(buckets)
    if seqs <= buckets[-1]:
        padding = min(bucket for bucket in buckets if bucket >= seqs) - seqs
        assert padding <= (7 if seqs <= 256 else 31)


@given(max_seq_len=st.integers(1, 200_000), longest=st.integers(1, 200_000))
def test_every_length_has_a_graph(max_seq_len: int, longest: int) -> None:
    graphs = shared_graphs((1, 8), max_seq_len, lambda key: key)
    assert all(graph == key for key, graph in graphs.items()), "no two make the same launches"
    if longest <= max_seq_len:
        assert (8, rounded_keys(longest)) in graphs
    assert max(keys for _, keys in graphs) == rounded_keys(max_seq_len)


@pytest.mark.parametrize(
    ("model", "precision", "apart"),
    [
        ("llama-3.1-8b", "fp8", {1024: (range(9, 67),), 2048: (range(9, 25), range(67, 1000)), 8192: (range(1, 67),)}),
        ("llama-3.1-8b", "bf16", {2048: (range(67, 1000),), 8192: (range(1, 3), range(9, 67))}),
        ("gptj-6b", "fp8", {2048: (range(34, 1000),)}),
        ("smollm2-135m", "fp8", {1024: (range(23, 177),), 2048: (range(23, 67),), 8192: (range(1, 23), range(67, 133))}),
    ],
)
def test_lengths_have_graphs_of_their_own_only_where_launches_depend_on_them(
    model: str, precision: str, apart: dict[int, tuple[range, ...]]
) -> None:
    """`apart`: numbers of sequences that decode by another kernel or tile at that length than at half of it."""
    config = replace(preset_config(model), num_layers=1)
    profile = Profile(256, 8192, min(8192, config.max_position_embeddings))
    plan = compile_model(config, precision, profile, arches=("sm_90",), weights_source={"kind": "dummy", "seed": 0}).plan
    grids = compile_all([dim for op in plan.ops for launch in op.tactics["sm_90"].launches for dim in launch.grid])
    buckets = graph_buckets(256)

    def launches(key: GraphKey) -> tuple[int, ...]:
        return grids(*(decode_symbols(key)[symbol] for symbol in SYMBOLS))

    graphs = set(shared_graphs(buckets, profile.max_seq_len, launches).values())
    longer = {(size, keys) for keys, ranges in apart.items() for sizes in ranges for size in buckets if size in sizes}
    assert graphs == {(size, 512) for size in buckets} | longer
