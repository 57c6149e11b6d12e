"""Random arguments of products with packed weights, in every format, and their lowering with a symbolic number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trtllm_kernels import formats
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES, as_stored, bytes_of_codes, dtype_name, spec_of
from trtllm_kernels.dialect.types import Lowered, TensorSpec
from trtllm_kernels.lowering import lower
from trtllm_kernels.references import OPS

CODES_STD = {"int4": 4.6, "int8": 74.0, "fp4": 2.9, "nf4": 0.5, "fp8": 100.0}
"""Standard deviation of what uniformly drawn codes mean."""


@dataclass(frozen=True)
class Packed:
    """How a weight is quantized. `group` 0: no scales of groups. `weight_scale`: dimensions of the weight's own scale, 0 for none."""

    dtype: str
    inputs: str = "bf16"
    group: int = 128
    scale: str = "bf16"
    zero: bool = False
    weight_scale: int = 0
    x_by_row: bool = False

    @property
    def name(self) -> str:
        parts = [self.dtype, self.inputs, f"g{self.group}", self.scale if self.group else "", "zero" if self.zero else ""]
        parts += [f"w{self.weight_scale}" if self.weight_scale else "", "rows" if self.x_by_row else ""]
        return "-".join(filter(None, parts))


SCHEMES = (
    Packed("int4"),
    Packed("int4", "fp16", 64, "fp16", zero=True),
    Packed("int4", "bf16", 32, "fp32", zero=True),
    Packed("int4", "bf16", 0, weight_scale=2),
    Packed("int8", group=0, weight_scale=2),
    Packed("int8", "fp16", 128, "fp16", zero=True),
    Packed("fp4", "bf16", 16, "fp8", weight_scale=1),
    Packed("fp4", "fp16", 16, "fp8", weight_scale=1),
    Packed("fp4", "bf16", 32, "uint8"),
    Packed("fp4", "fp16", 32, "uint8"),
    Packed("nf4", "bf16", 64, "fp32"),
    Packed("int4", "fp8"),
    Packed("int4", "fp8", 64, "fp16", zero=True, x_by_row=True),
    Packed("int4", "fp8", 0, weight_scale=2),
    Packed("fp8", "bf16", 128, "fp32"),
    Packed("fp8", "fp16", 0, weight_scale=2),
)


def storage_of(scheme: Packed, rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """A weight of random codes as an engine holds it."""
    if scheme.dtype == "fp8":
        normal = torch.randn(rows, columns, generator=generator) * CODES_STD["fp8"]
        return formats.pack(normal.clamp(-448, 448).to(torch.float8_e4m3fn), scheme.dtype, scheme.inputs)
    low, high = (-128, 128) if scheme.dtype == "int8" else (0, 16)
    codes = torch.randint(low, high, (rows, columns), generator=generator).to(torch.int8 if scheme.dtype == "int8" else torch.uint8)
    return as_stored(formats.pack(codes, scheme.dtype, scheme.inputs), scheme.dtype)


def sample(
    op: str,
    scheme: Packed,
    rows: int,
    columns: int,
    tokens: int,
    *,
    bias: bool = False,
    residual: bool = False,
    quantize: bool = False,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Arguments by name; results are of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    wide = DTYPES["bf16" if scheme.inputs == "fp8" else scheme.inputs]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def about_one(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * 0.6 + 0.7

    x = normal(tokens, columns)
    named = {"x": (2 * x if scheme.inputs == "fp8" else x).to(DTYPES[scheme.inputs])}
    named["weight"] = storage_of(scheme, rows, columns, generator)
    unit = 1 / (CODES_STD[scheme.dtype] * columns**0.5)
    if scheme.group:
        shape = (columns // scheme.group, rows)
        if scheme.scale == "uint8":
            named["group_scale"] = (127 + torch.randint(-2, 3, shape, generator=generator) - int(0.5 * columns.bit_length() + 1.5)).to(
                torch.uint8
            )
        elif scheme.scale == "fp8":
            named["group_scale"] = (16 * about_one(*shape)).to(DTYPES["fp8"])
        else:
            named["group_scale"] = (unit * about_one(*shape)).to(DTYPES[scheme.scale])
        if scheme.zero:
            low, high = (-30, 31) if scheme.dtype == "int8" else (0, 16)
            named["weight_zero"] = torch.randint(low, high, shape, generator=generator).bfloat16()
    if scheme.weight_scale:
        scales = about_one(1) if scheme.weight_scale == 1 else about_one(rows, 1)
        named["weight_scale"] = scales * (unit / 16 if scheme.scale == "fp8" and scheme.group else 1.0 if scheme.group else unit)
    if scheme.inputs == "fp8":
        named["x_scale"] = about_one(tokens, 1) / 2 if scheme.x_by_row else about_one(1) / 2
    if bias:
        named["bias"] = normal(rows).to(wide)
    if residual:
        named["residual"] = normal(tokens, rows).to(wide)
    if quantize:
        named["out_scale"] = torch.tensor([0.02])
    return {name: named[name] for name in OP_SPECS[op].tensors if name in named}


def copied(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """A copy; of 4-bit codes by their bytes, since torch knows no more of them."""
    stored = bytes_of_codes(tensor)
    return as_stored(stored.to(device, copy=True), dtype_name(tensor.dtype)) if stored is not tensor else tensor.to(device, copy=True)


def result_like(op: str, named: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Memory for the result."""
    fake: torch.Tensor = OPS[op].fake(*(named.get(name) for name in OP_SPECS[op].tensors))
    return fake


def lowered_for(
    op: str, named: Mapping[str, torch.Tensor], y: torch.Tensor, tactic: Mapping[str, int] | None = None, arch: str = "sm_90"
) -> Lowered:
    """With T for the number of rows of activations."""
    specs = {name: spec_of(tensor) for name, tensor in {**named, "out0": y}.items()}
    for name in ("x", "residual", "out0", *(["x_scale"] if "x_scale" in specs and len(specs["x_scale"].shape) == 2 else [])):
        if name in specs:
            specs[name] = TensorSpec(("T", *specs[name].shape[1:]), specs[name].dtype)
    return lower(op, [specs.get(name) for name in OP_SPECS[op].tensors], [specs["out0"]], {}, arch, tactic=tactic or {})


def tile(tokens: int, *, rows: int, turns: int = 1, parts: int = 1, blocks: int = 1, columns: int = 128) -> dict[str, int]:
    """A tactic for one padded number of tokens."""
    values = {"rows": rows, "turns": turns, "parts": parts, "blocks": blocks, "columns": columns}
    return {f"packed{tokens}_{name}": value for name, value in values.items()}


def large(size: int, rows: int, tokens: int, parts: int = 1) -> dict[str, int]:
    """A tactic that takes the kernel of many tokens for any number of them, by one tile for up to `size`."""
    return {"packed_to": 0, f"large{size}_rows": rows, f"large{size}_tokens": tokens, f"large{size}_parts": parts}
