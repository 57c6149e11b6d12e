"""A norm inside the product that reads it: in steps of few tokens the product normalizes the rows of x itself, and the norm is launched for
larger steps only.

At few tokens a product has its first weights long before its x, and a norm between two products is a launch and a wait more, for a few
kilobytes: without it a step of one sequence is 3.4% shorter (docs/facts/decode-steps.md). Each block of a product normalizes all that it
reads, so at 8 tokens that takes longer than the norm's kernel. Both ops stay in the plan with their meaning. Only what their launches do is
divided otherwise, so this is decided where an engine's ops are lowered, and an op alone is lowered without it.
"""

from __future__ import annotations

from dataclasses import replace

from trtllm_kernels.dialect.types import Lowered
from trtllm_kernels.lowering.call import Normed, OpCall
from trtllm_kernels.lowering.registry import LOWERINGS

_CHUNK = 8
"""Elements of a row that a thread normalizes at once."""


def norm_in_product(norm: OpCall, product: OpCall) -> tuple[Lowered, Lowered] | None:
    """Launches of a norm, and of the product that alone reads its result; None where the product cannot take it.

    Until the product has ended, nothing may write over what the norm reads.
    """
    to = normed_to(norm, product)
    if not to:
        return None
    normed = Normed(norm["x"], norm["weight"], norm.get("out_scale"), norm.number("eps"), to)
    return LOWERINGS[norm.op].lower(replace(norm, skip_to=to)), LOWERINGS[product.op].lower(replace(product, normed=normed))


def normed_to(norm: OpCall, product: OpCall) -> int:
    """In steps of up to how many tokens the product takes the norm itself; 0 where it cannot."""
    of_product = LOWERINGS[product.op].normed_to
    return of_product(product) if of_product is not None and _fits(norm, product) else 0


def _fits(norm: OpCall, product: OpCall) -> bool:
    if norm.op != "rms_norm" or product.capability != 90:
        return False
    x, y = norm["x"], product["x"]
    whole_rows = norm["weight"].size(0) == x.size(1) and x.size(1) % _CHUNK == 0
    wide = x.dtype in ("bf16", "fp16") and norm["weight"].dtype == x.dtype
    quantized = norm.get("out_scale") is not None
    x_scale = product.get("x_scale")
    constants = product.get("residual") is None and (x_scale is None or len(x_scale.shape) == 1)
    return norm.outputs[0].name == y.name and whole_rows and wide and constants and y.dtype == ("fp8" if quantized else x.dtype)
