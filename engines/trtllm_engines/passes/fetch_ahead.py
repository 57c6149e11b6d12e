"""Which weight each product may bring nearer while it waits: the one that the product after it reads.

Runs on the plan's ops, whose order is the step's, and says what launches are told beside their op's own arguments: the op stays a function
of its inputs, and the references, the verifier and byte counts know nothing of it. The last product has none after it: by the next
step the head's own weight, larger than L2, has passed through.
"""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_engines.plan import Op
from trtllm_kernels.lowering import ARGUMENTS, PRODUCTS


def weights_ahead(ops: Sequence[Op]) -> list[str]:
    """Of each op the weight that the next product reads; "" for what is no product, and for the last of them."""
    found: list[str] = []
    following = ""
    for op in reversed(ops):
        is_product = op.op in PRODUCTS
        found.append(following if is_product else "")
        following = op.inputs[ARGUMENTS[op.op].index("weight")] if is_product else following
    return found[::-1]
