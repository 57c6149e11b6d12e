"""Inline PTX in Triton's CPU interpreter, which has none: single instructions on words, as the PTX ISA says what they do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from triton.runtime import interpreter

Words = NDArray[np.uint32]


def _multiply_add(dtype: torch.dtype) -> Callable[[Words, Words, Words], Words]:
    """fma.rn of pairs. A product and a sum of such numbers fit float64 but for bits that no rounding sees, unless they lie far apart."""

    def values(words: Words) -> torch.Tensor:
        return torch.from_numpy(words.view(np.int16).copy()).view(dtype).double()

    def run(a: Words, b: Words, c: Words) -> Words:
        exact = values(a) * values(b) + values(c)
        return exact.to(dtype).view(torch.int16).numpy().view(np.uint32)

    return run


def _permute(a: Words, b: Words, selector: Words) -> Words:
    """prmt.b32 in its default mode: a nibble of the selector names one of eight bytes; with bit 3 set the byte's sign fills the
    result's."""
    eight = np.stack([part >> np.uint32(8 * i) & np.uint32(0xFF) for part in (a, b) for i in range(4)])
    result = np.zeros_like(a)
    for place in range(4):
        nibble = selector >> np.uint32(4 * place) & np.uint32(15)
        chosen = np.take_along_axis(eight, (nibble & np.uint32(7)).astype(np.int64)[None], 0)[0]
        filled = np.where(chosen & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
        result |= np.where(nibble & np.uint32(8), filled, chosen).astype(np.uint32) << np.uint32(8 * place)
    return result


_INSTRUCTIONS: dict[str, Callable[..., Words]] = {
    "fma.rn.bf16x2": _multiply_add(torch.bfloat16),
    "fma.rn.f16x2": _multiply_add(torch.float16),
    "prmt.b32": _permute,
}


class _Result:
    def __init__(self, handle: interpreter.TensorHandle) -> None:
        self._handle = handle

    def get_result(self, _: int) -> interpreter.TensorHandle:
        return self._handle


def _create_inline_asm(
    self: object, asm: str, constraints: str, arguments: Sequence[interpreter.TensorHandle], types: Sequence[object], *_: object
) -> _Result:
    found = re.fullmatch(r"(\S+) \$0, \$1, \$2, \$3;", asm)
    assert found, f"no emulation of {asm!r}"
    words = [np.ascontiguousarray(one.data).astype(np.int64).astype(np.uint32) for one in arguments]
    words = [np.ascontiguousarray(one) for one in np.broadcast_arrays(*words)]
    shape = words[0].shape
    result = _INSTRUCTIONS[found[1]](*(one.reshape(-1) for one in words)).reshape(shape).view(np.int32)
    return _Result(interpreter.TensorHandle(result, types[0].scalar))  # type: ignore[attr-defined]


def make_interpreter_run_asm() -> None:
    interpreter.InterpreterBuilder.create_inline_asm = _create_inline_asm
