"""Sizes of a model, and the tensors its layers are made of: what each op's specification writes its examples with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trtllm_kernels.dialect.types import KEY_BLOCK, Attr, TensorSpec, value_columns


@dataclass(frozen=True)
class ModelShape:
    hidden: int = 64
    intermediate: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    rotary_dim: int = 16
    interleaved: bool = False
    qk_norm: bool = False
    vocab: int = 50
    page_size: int = 32
    layers: int = 2


@dataclass(frozen=True)
class ModelTensors:
    """Specifications of a model's tensors with symbolic leading dimensions. Precision `fp8`: GEMMs, what feeds them and the KV cache are
    fp8, the rest is bf16. Precision `int8`: GEMMs and what feeds them are int8 with a scale per row, the rest is bf16."""

    model: ModelShape
    precision: str
    max_seq_len: int = 4096
    max_batch_size: int = 256

    @property
    def quantized(self) -> bool:
        return self.precision in ("fp8", "int8")

    @property
    def dtype(self) -> str:
        """Of activations between GEMMs."""
        return "bf16" if self.quantized else self.precision

    @property
    def scale(self) -> TensorSpec | None:
        """One scale for a tensor; None where nothing is quantized, or rows have scales."""
        return TensorSpec((1,), "fp32") if self.precision == "fp8" else None

    @property
    def x_scale(self) -> TensorSpec | None:
        """Of what GEMMs take."""
        return self.row_scales if self.precision == "int8" else self.scale

    def weight_scale(self, rows: int) -> TensorSpec | None:
        return TensorSpec((rows, 1), "fp32") if self.precision == "int8" else self.scale

    @property
    def row_scales(self) -> TensorSpec:
        return TensorSpec(("T", 1), "fp32")

    def ints(self, *shape: int | str) -> TensorSpec:
        return TensorSpec(shape, "int32")

    def rows(self, width: int, count: str = "T") -> TensorSpec:
        return TensorSpec((count, width), self.dtype)

    def codes(self, *shape: int | str) -> TensorSpec:
        """What GEMMs multiply."""
        return TensorSpec(shape, self.precision)

    def vector(self, n: int) -> TensorSpec:
        return TensorSpec((n,), self.dtype)

    @property
    def hidden(self) -> TensorSpec:
        return self.rows(self.model.hidden)

    @property
    def inner(self) -> TensorSpec:
        return self.rows(self.model.intermediate)

    @property
    def hidden_codes(self) -> TensorSpec:
        return self.codes("T", self.model.hidden)

    @property
    def inner_codes(self) -> TensorSpec:
        return self.codes("T", self.model.intermediate)

    @property
    def hidden_result(self) -> TensorSpec:
        """Of an op that quantizes where there is one scale for a tensor."""
        return self.hidden_codes if self.scale else self.hidden

    @property
    def inner_result(self) -> TensorSpec:
        return self.inner_codes if self.scale else self.inner

    @property
    def heads_result(self) -> TensorSpec:
        return self.codes("T", self.q_width) if self.scale else self.rows(self.q_width)

    @property
    def norm_weight(self) -> TensorSpec:
        return self.vector(self.model.hidden)

    @property
    def q_width(self) -> int:
        return self.model.heads * self.model.head_dim

    @property
    def kv_width(self) -> int:
        return self.model.kv_heads * self.model.head_dim

    @property
    def qkv_width(self) -> int:
        return self.q_width + 2 * self.kv_width

    @property
    def cos_sin(self) -> TensorSpec:
        return TensorSpec((self.max_seq_len, self.model.rotary_dim), "fp32")

    @property
    def kv_cache(self) -> TensorSpec:
        model = self.model
        shape = (model.layers, 1, 2, model.kv_heads, model.page_size, model.head_dim)
        return TensorSpec(shape, self.precision if self.scale else self.dtype)

    @property
    def int8_cache(self) -> tuple[TensorSpec, TensorSpec]:
        """A cache in int8, and its scales."""
        shape = self.kv_cache.shape
        return TensorSpec(shape, "int8"), TensorSpec(shape[:-1], "fp32")

    @property
    def columns(self) -> int:
        """Of transposed values of a step of 8,192 tokens."""
        return value_columns(8192, self.max_batch_size)

    @property
    def context_codes(self) -> tuple[TensorSpec, ...]:
        """Queries, keys, and values transposed, as attention of prompts multiplies them in fp8; none where it does not."""
        if not self.scale or self.model.head_dim not in (64, 128):
            return ()
        return self.codes("T", self.q_width), self.codes(f"T + {KEY_BLOCK}", self.kv_width), self.codes(self.kv_width, self.columns)

    @property
    def block_table(self) -> TensorSpec:
        return self.ints(self.max_batch_size + 1, -(-self.max_seq_len // self.model.page_size))

    @property
    def sequences(self) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
        """(seq_slots, query_start, kv_lens)"""
        return self.ints("R"), self.ints("R + 1"), self.ints("R")

    @property
    def heads(self) -> Mapping[str, Attr]:
        return {"num_heads": self.model.heads, "num_kv_heads": self.model.kv_heads}

    @property
    def rotary(self) -> Mapping[str, Attr]:
        return {"head_dim": self.model.head_dim, "interleaved": self.model.interleaved}
