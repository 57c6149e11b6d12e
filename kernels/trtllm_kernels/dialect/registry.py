"""How an op enters torch: the schema of its specification, one fake (shapes), one reference (its definition and its CPU implementation).

Ops are registered with `torch.library.Library` rather than the `custom_op` decorator: the dialect is for inference only, and the
decorator's autograd wrapper costs more per call than many of the references themselves. The CUDA implementation is generic
(`trtllm_kernels.launch.torch_ops`): it lowers, compiles and launches exactly what an engine would.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from trtllm_kernels.dialect.ops import OP_SPECS, OpSpec
from trtllm_kernels.errors import KernelError

NAMESPACE = "trtllm"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class OpDef:
    """One op of the dialect in torch."""

    spec: OpSpec
    reference: Callable[..., Any]
    fake: Callable[..., Any]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def tensors(self) -> tuple[str, ...]:
        return self.spec.tensors

    @property
    def attrs(self) -> tuple[str, ...]:
        return self.spec.attrs

    @property
    def mutates(self) -> tuple[str, ...]:
        return self.spec.mutates

    def written_in(self, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Of a call's arguments, the tensors that it writes to."""
        return {name: arguments[name] for name in self.mutates if arguments.get(name) is not None}

    @property
    def overload(self) -> Any:
        return getattr(torch.ops.trtllm, self.name).default


OPS: dict[str, OpDef] = {}


def dialect_op(name: str, *, fake: Callable[..., Any]) -> Callable[[F], F]:
    """Registers the decorated reference of the op whose specification is `name`. Raises `KernelError` where there is none.

    `fake` makes results of the right shapes. It gets the call's arguments by name and says which it needs: `lambda x, out_scale, **_: ...`.
    """
    if name not in OP_SPECS:
        raise KernelError(f"op {name!r} has no specification; register one in trtllm_kernels.dialect.ops")
    spec = OP_SPECS[name]

    def register(reference: F) -> F:
        LIBRARY.define(spec.schema)  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, reference, "CPU")  # type: ignore[no-untyped-call]
        by_name = _with_arguments_of(reference, fake)
        torch.library.register_fake(f"{NAMESPACE}::{name}", by_name, lib=LIBRARY)
        OPS[name] = OpDef(spec, reference, by_name)
        return reference

    return register


def _with_arguments_of(reference: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """`fake` as a function of what `reference` takes, in the same order and with the same defaults."""
    signature = inspect.signature(reference)

    def called(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return fake(**bound.arguments)

    return called


def fake_like_first(**arguments: Any) -> torch.Tensor:
    """The fake of every op whose result looks like its first argument.

    Like all fakes it uses `new_empty`: `empty_like` of a tensor without data loads SymPy, which takes half a second.
    """
    first: torch.Tensor = next(iter(arguments.values()))
    return first.new_empty(first.shape)
