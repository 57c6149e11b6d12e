"""The layout of a group of ranks as kernels see it: the op argument `group`, int64 [group_words(ranks)]; and `pipe`, a place in a pipeline.

On a GPU it is the struct `Group` of `cuda_kernels/all_reduce.cuh`: counters of rounds, then for each rank the addresses of its memory as
this rank has them mapped (`launch/peers.py` fills it). On a CPU its first word is the number of a communicator
(`references/communication.py`). Only its length is known when an engine is built, and tells how many ranks there are; which of them a
process is, it finds in it at run time. So all ranks of a stage run one plan.

Ranks that do not share memory exchange by NCCL. Their arguments are int32, and so the dtype tells lowerings the way: `group` is [ranks],
this rank's number and that of a communicator (`launch/nccl.py`), then zeros; `pipe` is [2], the ranks of a stage and the number of a
communicator of all ranks.
"""

from __future__ import annotations

from typing import Literal

from trtllm_kernels.dialect.types import TensorSpec

Way = Literal["memory", "nccl"]
"""How ranks exchange data: by writing into each other's GPU memory, or by NCCL."""

HEADER_WORDS = 6
ADDRESSES = ("arena", "buffer", "flags", "words")
"""Memory of each rank that the others reach: values of the plan, the buffers of one-shot reductions, counters where blocks meet, and the
sampling words that ranks exchange."""
ONE_SHOT_ROWS = 128
"""Rows up to which a reduction is one-shot. Two H200: at 128 rows of 8,192 it takes 10.1 us and the two-shot 10.8; at 64 rows 7.0 and
8.5."""
TWO_SHOT_BLOCKS = 132
"""Blocks of a two-shot reduction: all of them run at once on any Hopper GPU."""


PIPE_WORDS = 8
"""64-bit words of a rank's place in a pipeline: on a GPU the struct `Pipe` of `cuda_kernels/pipe.cuh`, on a CPU the number of a link."""
PIPE_HEADER_WORDS = 2
"""Counters of rounds and sizes; addresses follow."""
INBOXES = 2
"""Steps whose rows the receiving stage has room for."""


def pipe_spec(way: Way = "memory") -> TensorSpec:
    return TensorSpec((2,), "int32") if way == "nccl" else TensorSpec((PIPE_WORDS,), "int64")


def way_of(place: TensorSpec) -> Way:
    """How ranks exchange data whose `group` or `pipe` argument is so specified."""
    return "nccl" if place.dtype == "int32" else "memory"


def group_words(ranks: int) -> int:
    """64-bit words of a group of `ranks`."""
    return HEADER_WORDS + len(ADDRESSES) * ranks


def group_spec(ranks: int, way: Way = "memory") -> TensorSpec:
    return TensorSpec((ranks,), "int32") if way == "nccl" else TensorSpec((group_words(ranks),), "int64")


def ranks_of(group: TensorSpec) -> int:
    """How many ranks a group argument is of."""
    (words,) = group.shape
    assert isinstance(words, int)
    return words if way_of(group) == "nccl" else (words - HEADER_WORDS) // len(ADDRESSES)
