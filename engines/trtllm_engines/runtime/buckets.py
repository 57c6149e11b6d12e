"""Which decode steps are captured as CUDA graphs: those of some batch sizes and, where a plan's launches depend on them, lengths.

A step that only decodes is padded up to the next batch size. Sizes are close together where a few sequences more are much of the work, and
wider where tiles of 128 rows make them free. Beyond the largest, kernels outlast their launches. A step's length is symbol `L`, of which an
engine has a few values. Steps of one size and several lengths that make the same launches share a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping

from trtllm_kernels.dialect.types import rounded_keys

GraphKey = tuple[int, int]
"""(sequences, L) of a decode step."""
FINE, LARGEST_GRAPH = 256, 1024


def graph_buckets(max_batch_size: int) -> tuple[int, ...]:
    """1, 2, 4, multiples of 8 to 256, multiples of 32 to 1024, no larger than the profile's, which is one of them."""
    largest = min(max_batch_size, LARGEST_GRAPH)
    sizes = (1, 2, 4, *range(8, FINE + 1, 8), *range(FINE, LARGEST_GRAPH + 1, 32), largest)
    return tuple(sorted({size for size in sizes if size <= largest}))


def decode_symbols(key: GraphKey) -> dict[str, int]:
    """All symbols of such a step."""
    sequences, keys = key
    return {**dict.fromkeys("TRDS", sequences), "C": 0, "L": keys}


def shared_graphs(buckets: Iterable[int], max_seq_len: int, launches: Callable[[GraphKey], Hashable]) -> Mapping[GraphKey, GraphKey]:
    """Every decode step that needs a graph, and the one whose graph it replays. `launches`: what a step with a key launches."""
    lengths = sorted({rounded_keys(1 << power) for power in range(rounded_keys(max_seq_len).bit_length())})
    shared = {}
    for bucket in buckets:
        captured: dict[Hashable, GraphKey] = {}
        for keys in lengths:
            shared[bucket, keys] = captured.setdefault(launches((bucket, keys)), (bucket, keys))
    return shared
