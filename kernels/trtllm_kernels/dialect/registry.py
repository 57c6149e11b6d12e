"""How an op enters the dialect: one schema, one fake (shapes), one reference (its definition and its CPU implementation).

Ops are registered with `torch.library.Library` rather than the `custom_op` decorator: the dialect is for inference only, and the
decorator's autograd wrapper costs more per call than many of the references themselves. The CUDA implementation is generic
(`trtllm_kernels.launch.torch_ops`): it lowers, compiles and launches exactly what an engine would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

NAMESPACE = "trtllm"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class OpDef:
    """One op of the dialect. `tensors` and `attrs` name its arguments, each in schema order."""

    name: str
    tensors: tuple[str, ...]
    attrs: tuple[str, ...]
    mutates: tuple[str, ...]
    reference: Callable[..., Any]
    fake: Callable[..., Any]

    @property
    def overload(self) -> Any:
        return getattr(torch.ops.trtllm, self.name).default


OPS: dict[str, OpDef] = {}


def dialect_op(schema: str, *, fake: Callable[..., Any]) -> Callable[[F], F]:
    """Register the decorated reference under `schema`, whose text before `(` is the op's name."""

    def register(reference: F) -> F:
        name = schema.split("(", 1)[0]
        LIBRARY.define(schema)  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, reference, "CPU")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
        arguments = getattr(torch.ops.trtllm, name).default._schema.arguments
        tensors = tuple(a.name for a in arguments if "Tensor" in str(a.type))
        OPS[name] = OpDef(
            name=name,
            tensors=tensors,
            attrs=tuple(a.name for a in arguments if a.name not in tensors),
            mutates=tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write),
            reference=reference,
            fake=fake,
        )
        return reference

    return register


def fake_like_first(x: torch.Tensor, *_: Any) -> torch.Tensor:
    """Shape function of every op whose result looks like its first argument."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)
