"""The types that the compiler and the kernels exchange: tensor specifications, kernel specifications and launches.

A *launch* is data: a kernel, a grid and arguments, all serialisable to JSON. The engine stores launches, so running it needs neither
Triton nor the heuristics that chose them. Sizes known only at run time are *symbols*:

    T  tokens in this step            R  sequences in this step
    D  decode sequences (rows [0, D), one token each; context chunks follow)
    S  rows whose logits are needed
    C  continued context sequences: part of their prompt is in the cache from earlier steps
    L  keys of the longest decode sequence, rounded up (`rounded_keys`); 0 in a step without

Grid sizes and integer arguments may be expressions over symbols (`ceil_div(T - D, 64) + R - D`), evaluated once per step by
`trtllm_kernels.dialect.expr`. Rejected: Python callables in the plan (not serialisable), and padding every step to the profile (wasteful).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

SYMBOLS = ("T", "R", "D", "S", "C", "L")
LEAST_KEYS = 512
"""Least value of `L` in a step with decode sequences."""
SAMPLING_WORDS = 4
"""Words that say how a row's token is sampled: the bits of its temperature (0: greedy), the low and the high half of its seed, and the
number of tokens before it."""
EMPTY_WORD = -(1 << 63)
"""A row's word of sampling that no column was offered under, as int64."""
NO_TOKEN = -1
"""What the host reads as token of a row whose best logit is NaN or infinite."""
SKINNY_TOKENS = 128
"""Largest number of tokens in a step whose GEMMs run in our own kernels on Hopper; larger steps use the library."""
KEY_BLOCK = 128
"""Keys that attention of prompts takes at a time: it may read those of so many tokens behind a step's last."""
VALUE_COLUMNS = 16
"""The columns of a sequence's transposed values begin at a multiple of this: what TMA reads must be aligned to 16 bytes. Token i of
sequence r is in column `VALUE_COLUMNS * (query_start[r] // VALUE_COLUMNS + r) + i`, which needs no prefix sum, and behind a sequence's last
token the columns up to the next multiple are its own."""
Dim = int | str
Attr = int | float | bool | str | list[int] | list[float] | None


def value_columns(tokens: int, sequences: int) -> int:
    """Columns that transposed values of so many tokens and sequences may need."""
    return -(-(tokens + VALUE_COLUMNS * sequences) // KEY_BLOCK) * KEY_BLOCK


def rounded_keys(longest: int) -> int:
    """`L` of a step whose longest decode sequence has `longest` keys: a power of two, `LEAST_KEYS` at least; 0 where none decodes.

    Rounded, so that sequences that grow by a token change no launch, and that a few CUDA graphs serve all lengths.
    """
    return max(LEAST_KEYS, 1 << (longest - 1).bit_length()) if longest else 0


@dataclass(frozen=True)
class TensorSpec:
    """Shape (ints, or expressions over `SYMBOLS`) and dtype (a key of `dialect.dtypes.BITS`) of a contiguous tensor.

    The shape counts elements: a weight of 4-bit codes is [N, K] here, and half as many bytes in memory (`dialect.specs`).
    """

    shape: tuple[Dim, ...]
    dtype: str


@dataclass(frozen=True)
class KernelSpec:
    """One specialisation of one kernel, in Triton or (in `cuda_kernels`) CUDA C++, that compiles without a GPU.

    `signature` maps every parameter that is not a constexpr, in order, to its Triton type (`*bf16`, `i32`, `fp32`,
    `tensordesc<fp8e4nv[128,128]>`). `aligned` names those divisible by 16 (pointers, and integers known to be).
    """

    module: str
    function: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3

    @property
    def is_cuda(self) -> bool:
        """Whether the kernel is CUDA C++."""
        return self.module.split(".")[-2:-1] == ["cuda_kernels"]

    @cached_property
    def key(self) -> str:
        """Stable name of this specialisation: the function and a hash of everything that changes the code."""
        everything = {field.name: getattr(self, field.name) for field in fields(self)}
        digest = hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()
        return f"{self.function}-{digest[:16]}"


@dataclass(frozen=True)
class Arg:
    """One launch argument.

    kind `tensor`: `value` names a value, weight or workspace of the op. The argument is a pointer to its first byte or, with `index`, to
    its `index`-th slice along dimension 0 (a layer of the KV cache, whose number of pages only the runtime knows).
    kind `tma`: as `tensor`, flattened to rows of the last dimension and passed as a host-made 2-D TMA descriptor with `box` (rows,
    columns).
    kind `i32`, `i64`, `fp32`: `value` is a number or, for integers, an expression over symbols.
    """

    kind: Literal["tensor", "tma", "i32", "i64", "fp32"]
    value: str | int | float
    box: tuple[int, int] | None = None
    index: int | None = None


@dataclass(frozen=True)
class Launch:
    """A kernel launch or, when `library` is set, a call of a library routine (`launch/gemm.py`, `launch/nccl.py`).

    library `matmul`: args are x, weight, bias (optional: a vector), residual (optional: a matrix) and y; grid is (rows, N, K);
    y[:rows] = x[:rows] @ weight.T + bias + residual[:rows], rounded once; y may be the residual's memory.
    Three `i32` may follow y: the number of the algorithm among cuBLASLt's proposals, the rows it was proposed for, and the library version.
    library `scaled_matmul`: the same with two scales, of one element or of [rows, 1] and [N, 1], after x and weight, which are fp8.
    library `nccl_sum` (x, y, group), `nccl_largest` (words in place, group), `nccl_send` (x, pipe), `nccl_receive` (y, pipe): what ranks
    exchange by NCCL (`launch/nccl.py`), grid (rows, elements of a row, 1).
    A launch is skipped at run time when any grid dimension evaluates to zero or less.

    concurrent: the launch neither needs nor disturbs anything of the launch before it, so the two may run concurrently where kernels can
    overlap. Its kernel does not wait: it may begin when all blocks of the one before have begun. Therefore the one before begins only after
    everything before it has ended, and so does the launch after this one.
    serialize_next: the launch after this one begins only when this one has ended, so all later kernels may load its results before they
    wait.
    """

    kernel: str = ""
    grid: tuple[Dim, Dim, Dim] = (1, 1, 1)
    args: tuple[Arg, ...] = ()
    library: str = ""
    concurrent: bool = False
    serialize_next: bool = False


@dataclass(frozen=True)
class Lowered:
    """How one op runs on one architecture: its launches in order, the kernels they name, and the scratch memory they need."""

    launches: tuple[Launch, ...]
    kernels: tuple[KernelSpec, ...] = ()
    workspaces: Mapping[str, TensorSpec] = field(default_factory=dict)
