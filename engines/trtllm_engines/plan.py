"""The plan: what an engine is, as data. Written by the compiler, read by the runtime, printed by `inspect`.

Nothing here computes. A plan is the topologically ordered list of dialect ops over named values, with the buffer each value lives in and,
for each architecture built for, the launches that carry the op out. The CPU runtime ignores launches and runs the references.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trtllm_kernels.types import Attr, Lowered, TensorSpec

FORMAT_VERSION = 1
KERNEL_ABI = 1
"""Raised when the meaning of a launch's arguments, or of the step inputs below, changes."""

STEP_INPUTS: Mapping[str, str] = {
    "context_tokens": "int32 [T]: token id of each context token; -1 where the token is the slot's last sampled one",
    "seq_slots": "int32 [R]: slot of each sequence; decode sequences first",
    "query_start": "int32 [R + 1]: first token of each sequence in this step's ragged batch",
    "kv_lens": "int32 [R]: tokens each sequence has in the KV cache once this step has written its own",
    "logit_rows": "int32 [S]: tokens of the batch whose logits are wanted",
    "last_tokens": "int32 [max_batch_size + 1]: state, last sampled token of each slot (the last row is padding's)",
    "block_table": "int32 [max_batch_size + 1, max_pages_per_seq]: state, pages of each slot (page 0 is padding's)",
    "kv_cache": "kv dtype [layers, pages, 2, kv_heads, page_size, head_dim]: state",
}


@dataclass(frozen=True)
class Profile:
    """The ranges an engine was built for."""

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    page_size: int = 32

    @property
    def max_pages_per_seq(self) -> int:
        return -(-self.max_seq_len // self.page_size)


@dataclass(frozen=True)
class ParallelLayout:
    tp: int = 1
    pp: int = 1
    rank: int = 0


@dataclass(frozen=True)
class Fingerprint:
    """`arches`, `min_driver`, `kernel_abi`, `format_version` decide whether an engine may run; `provenance` says what made it."""

    arches: tuple[str, ...]
    min_driver: str
    kernel_abi: int
    format_version: int
    provenance: Mapping[str, str]


@dataclass(frozen=True)
class Op:
    """`inputs` in the dialect's argument order, naming values, weights, constants or step inputs; "" stands for an absent optional."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attr]
    tactics: Mapping[str, Lowered] = field(default_factory=dict)


@dataclass(frozen=True)
class Buffer:
    """Byte range of a value in the activation arena, sized for the profile's maximum."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class Plan:
    model: Mapping[str, Any]
    precision: str
    kv_dtype: str
    profile: Profile
    parallel: ParallelLayout
    fingerprint: Fingerprint
    weights: Mapping[str, TensorSpec]
    weights_source: Mapping[str, Any]
    """`{"kind": "safetensors"}`, or `{"kind": "dummy", "seed": n}`: drawn on the device at load."""
    values: Mapping[str, TensorSpec]
    buffers: Mapping[str, Buffer]
    arena_bytes: int
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]
    """`("logits",)` plus what `--mark-output` added."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)
