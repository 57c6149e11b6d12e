"""Batch sizes whose decode steps are captured as CUDA graphs.

A step that only decodes is padded up to the next of them. Steps are close together where a few sequences more are much of the work, and
wider where tiles of 128 rows make them free. Beyond the largest, kernels outlast their launches.
"""

from __future__ import annotations

FINE, LARGEST_GRAPH = 256, 1024


def graph_buckets(max_batch_size: int) -> tuple[int, ...]:
    """1, 2, 4, multiples of 8 to 256, multiples of 32 to 1024, no larger than the profile's, which is one of them."""
    largest = min(max_batch_size, LARGEST_GRAPH)
    sizes = (1, 2, 4, *range(8, FINE + 1, 8), *range(FINE, LARGEST_GRAPH + 1, 32), largest)
    return tuple(sorted({size for size in sizes if size <= largest}))
