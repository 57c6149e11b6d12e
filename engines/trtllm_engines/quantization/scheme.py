"""How the products of a model are quantized, as values: nothing here computes, and all of it is stored in the plan.

A `QuantScheme` belongs to one product: what its weight is stored as, and what its input is quantized to. A `QuantPlan` belongs to a model:
which scheme each module of the checkpoint takes, and what the KV cache is kept in. It comes from a precision's name or from what a
checkpoint says of itself; a checkpoint may leave any of its layers wide.

What a scheme does to the graph and to the checkpoint's tensors is code, found by the scheme's name (`registry`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from trtllm_engines.quantization.module_names import expression
from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.dialect.types import TensorSpec

UNQUANTIZED = ("fp32", "fp16", "bf16")
"""Precisions without codes (`wide.py` has their schemes). They are known here, since looking into the schemes' files loads torch."""

WIDE = "wide"
CONTEXT_ATTENTION = (WIDE, "fp8")
"""What attention of prompts may multiply: numbers of 16 bits (or 32), or E4M3."""

Granularity = Literal["tensor", "row", "group", "block"]


@dataclass(frozen=True)
class Codes:
    """A weight [N, K] stored as codes: it is about `scale * code`, or `scale * (code - zero)` with a `zero_point`.

    What of it an op takes, and what it makes of that, is said by the formula in `trtllm_kernels.dialect.ops.linear`.
    """

    dtype: str
    granularity: Granularity
    """What shares a scale: the tensor, a row (an output channel), `group_size` neighbours of a row, or a square of that side."""
    group_size: int = 0
    zero_point: bool = False
    scale_dtype: str = "fp32"
    """Of the scales of groups; others are fp32. `e8m0` is a power of two."""
    tensor_scale: bool = False
    """Whether the scales of groups are codes too, with one scale for the tensor (NVFP4). Of a stack of tensors, each row has its own's."""

    def is_like(self, other: Codes) -> bool:
        """Whether a scheme of these codes takes `other` too: they may differ in groups, zero points, and the dtype of scales that are
        numbers."""

        def form(codes: Codes) -> tuple[object, ...]:
            return codes.dtype, codes.granularity == "block", codes.scale_dtype == "e8m0", codes.tensor_scale

        return form(self) == form(other)

    @property
    def in_groups(self) -> bool:
        return self.granularity in ("group", "block")

    def scale_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Shape of the scales of a weight [rows, columns] as they are made; an op takes those of groups transposed."""
        if self.granularity == "tensor":
            return (1,)
        return (rows, columns // self.group_size if self.in_groups else 1)

    def parameters(self, rows: int, columns: int) -> dict[str, TensorSpec]:
        """What an op takes beside a weight [rows, columns], by argument."""
        groups = columns // self.group_size if self.in_groups else 1
        scale_dtype = "uint8" if self.scale_dtype == "e8m0" else self.scale_dtype
        given = {}
        if self.tensor_scale or not self.in_groups:
            given["weight_scale"] = TensorSpec((rows, 1) if self.tensor_scale else self.scale_shape(rows, columns), "fp32")
        if self.in_groups:
            given["group_scale"] = TensorSpec((groups, rows), scale_dtype)
        if self.zero_point:
            given["weight_zero"] = TensorSpec((groups, rows), "bf16")
        return given

    def __str__(self) -> str:
        side = self.group_size
        unit = {"group": f"group of {side}", "block": f"block of {side} x {side}"}.get(self.granularity, self.granularity)
        return f"{self.dtype}, one scale per {unit}{' with a zero point' if self.zero_point else ''}"


@dataclass(frozen=True)
class Inputs:
    """What a product's input is multiplied as: wide, or codes with one static scale per tensor or one dynamic scale per token."""

    dtype: str = ""
    """"" for wide inputs."""
    scaling: Literal["none", "static", "dynamic"] = "none"
    ordered: bool = False
    """Whether columns are gathered first, in the order in which the weight's were quantized (act-order)."""
    factored: bool = False
    """Whether columns are multiplied by factors first, by the inverse of which the weight's were (AWQ, SmoothQuant)."""

    def __str__(self) -> str:
        said = {"none": "wide", "static": f"{self.dtype}, static scale", "dynamic": f"{self.dtype}, one scale per token"}[self.scaling]
        arranged = [*(("columns in order",) if self.ordered else ()), *(("a factor per column",) if self.factored else ())]
        return ", ".join([said, *arranged])


@dataclass(frozen=True)
class QuantScheme:
    """How one product is quantized. `weights` is None for a wide product, whose scheme is named for its dtype."""

    name: str
    weights: Codes | None = None
    inputs: Inputs = Inputs()

    def with_groups_for(self, columns: int) -> QuantScheme:
        """This scheme with groups that divide `columns`: half as large, or a quarter, and so on, but of 16 at least."""
        codes = self.weights
        if codes is None or not codes.in_groups:
            return self
        size = codes.group_size
        while columns % size and size > 16:
            size //= 2
        return replace(self, weights=replace(codes, group_size=size))


@dataclass(frozen=True)
class KvScheme:
    """What keys and values are cached in. `granularity`: `none` for a wide cache, `tensor` for one scale per layer for each of the two,
    `row` for one fp32 scale per token and head, kept beside the page."""

    dtype: str
    granularity: Literal["none", "tensor", "row"] = "none"

    def nbytes(self, rows: int, head_dim: int) -> int:
        """Memory of `rows` keys or values of one head each, with their scales."""
        return bytes_of(rows * head_dim, self.dtype) + (bytes_of(rows, "fp32") if self.granularity == "row" else 0)


@dataclass(frozen=True)
class ModuleRule:
    """Modules whose whole name the regular expression `pattern` matches take `scheme`."""

    pattern: str
    scheme: QuantScheme


@dataclass(frozen=True)
class QuantPlan:
    """The scheme of every product of a model. The first rule that matches decides; a module that none matches stays wide."""

    name: str
    """The precision it goes by: the name of its scheme, or of the one that needs no calibration where a checkpoint has several."""
    wide_dtype: str
    """Of everything that is not quantized."""
    kv: KvScheme
    rules: tuple[ModuleRule, ...] = field(default=())
    source: str = ""
    """Where it comes from, for people: `precision fp8`, or the file of the checkpoint."""
    smaller_groups: bool = False
    """Whether a weight whose rows the groups do not divide has smaller ones: where the name of a precision asks for groups, not codes."""
    context_attention: str = WIDE
    """What attention of prompts multiplies, of `CONTEXT_ATTENTION`."""

    @property
    def wide(self) -> QuantScheme:
        return QuantScheme(self.wide_dtype)

    def scheme_of(self, module: str) -> QuantScheme:
        """The scheme of the product whose weight is `module`'s, such as `model.layers.0.mlp.down_proj`.

        Raises `EngineError` for a rule that takes too long to match."""
        return next((rule.scheme for rule in self.rules if expression(rule.pattern).matches(module)), self.wide)


@dataclass(frozen=True)
class Shard:
    """Which part of a tensor a rank of a tensor-parallel group has: one of `pieces` along dimension `dim`.

    Each piece is held by `copies` neighbouring ranks (KV heads that are fewer than the ranks). `dim` None: the first rank has all of it and
    the others have zeros (a bias that is added once).
    """

    dim: int | None
    pieces: int = 1
    copies: int = 1

    def local_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a rank's part of a tensor of `shape`."""
        return tuple(size // self.pieces if dim == self.dim else size for dim, size in enumerate(shape))

    def along(self, dim: int, count: int, rank: int) -> range:
        """Which of `count` indices of dimension `dim` a rank has."""
        if self.dim != dim:
            return range(count)
        size, piece = count // self.pieces, rank // self.copies
        return range(piece * size, (piece + 1) * size)


@dataclass(frozen=True)
class WeightRecipe:
    """How a weight of the engine is made of checkpoint tensors.

    `kind` names the function that makes it, registered by a scheme (`registry.RecipeKind`). `inputs` are the checkpoint tensors it reads
    (name, shape), stacked along their first dimension, row by row in turn where they `interleave`.
    """

    kind: str
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    interleave: bool = False
    shards: tuple[Shard | None, ...] = ()
    """Which part of each input a rank has, None for all of it; empty where every rank has all of all. `kind` makes the whole weight, so
    that its codes and scales are those of one rank, and the rank takes its part (`checkpoints.shard`)."""
    scheme: QuantScheme | None = None
    """That of the weight's product, where `kind` does not say alone what to make."""
    input_dtype: str = ""
    """What the weight is multiplied by, on which the order of codes in memory depends."""

    @property
    def local_inputs(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Inputs with the shapes of a rank's parts."""
        shards = self.shards or (None,) * len(self.inputs)
        pairs = zip(self.inputs, shards, strict=True)
        return tuple((name, shape if shard is None else shard.local_shape(shape)) for (name, shape), shard in pairs)
