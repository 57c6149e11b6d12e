"""Which batch sizes have a graph of their own."""

from hypothesis import given
from hypothesis import strategies as st

from trtllm_engines.runtime.buckets import LARGEST_GRAPH, graph_buckets


@given(most=st.integers(1, 4096), seqs=st.integers(1, 1024))
def test_every_batch_has_a_bucket_that_wastes_little(most: int, seqs: int) -> None:
    buckets = graph_buckets(most)
    assert buckets[0] == 1
    assert buckets[-1] == min(most, LARGEST_GRAPH)
    assert len(set(buckets)) == len(buckets)
    if seqs <= buckets[-1]:
        padding = min(bucket for bucket in buckets if bucket >= seqs) - seqs
        assert padding <= (7 if seqs <= 256 else 31)
