"""A product that takes the norm of its rows itself: arguments of the two ops, and their launches together."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES, spec_of
from trtllm_kernels.dialect.types import Lowered, TensorSpec
from trtllm_kernels.lowering import LOWERINGS, describe, norm_in_product
from trtllm_kernels.references import OPS

EPS = 1e-5


@dataclass(frozen=True)
class Normed:
    """`named`: arguments of the norm (`rows`, `norm_weight`, `norm_scale`) and of the product, whose `x` is what the norm leaves."""

    norm: Lowered
    product: Lowered
    alone: Lowered
    """The product that reads `x`."""
    named: dict[str, torch.Tensor]
    expected: torch.Tensor


def normed_rows(tokens: int, columns: int, dtype: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Arguments of a norm whose result is `dtype`; a row's elements are about as large as its number."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float16 if dtype == "fp16" else torch.bfloat16
    rows = torch.randn(tokens, columns, generator=generator) * torch.arange(1, tokens + 1)[:, None]
    named = {"rows": rows.to(wide), "norm_weight": (1 + 0.2 * torch.randn(columns, generator=generator)).to(wide)}
    return named | ({"norm_scale": torch.tensor([0.013])} if dtype == "fp8" else {})


def normed(op: str, product: dict[str, torch.Tensor], norm: dict[str, torch.Tensor], tactic: Mapping[str, int]) -> Normed:
    """`product`: its arguments but x; `norm`: those of `normed_rows`. In steps of up to 8 tokens, unless `tactic` says otherwise."""
    tactic = {"norms_to": 8} | dict(tactic)
    x = OPS["rms_norm"].reference(norm["rows"], norm["norm_weight"], EPS, norm.get("norm_scale"))
    named = {**product, "x": x}
    expected = OPS[op].reference(**{name: named.get(name) for name in OP_SPECS[op].tensors})

    def of_step(value: torch.Tensor) -> TensorSpec:
        return TensorSpec(("T", *value.shape[1:]), spec_of(value).dtype)

    names = ["rows", "norm_weight", "norm_scale"]
    inputs = [of_step(norm["rows"]), spec_of(norm["norm_weight"]), spec_of(norm["norm_scale"]) if "norm_scale" in norm else None]
    first = describe("rms_norm", inputs, [of_step(x)], {"eps": EPS}, "sm_90", tactic={}, input_names=names, output_names=["x"])
    specs = {name: of_step(value) if name in ("x", "residual") else spec_of(value) for name, value in named.items()}
    second = describe(op, [specs.get(name) for name in OP_SPECS[op].tensors], [of_step(expected)], {}, "sm_90", tactic=tactic)
    both = norm_in_product(first, second)
    assert both is not None
    return Normed(*both, LOWERINGS[op].lower(second), named | norm, expected)


def product_of(op: str, dtype: str, rows: int, columns: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Arguments of a product but x, with results of about unit size."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    if dtype != "fp8":
        return {"weight": (weight * columns**-0.5).to(DTYPES[dtype])}
    scales = {"x_scale": torch.tensor([0.013]), "weight_scale": torch.tensor([columns**-0.5])}
    return {"weight": weight.to(DTYPES[dtype]), **scales, **({"out_scale": torch.tensor([0.02])} if op == "gate_up_silu" else {})}
