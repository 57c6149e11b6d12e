"""Decode attention that rotates and writes the cache itself: what it is given, and what the two ops' references make of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from samples import BatchShape, code_steps, fp8_sample, int8_cache_sample, sample
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.specs import spec_of
from trtllm_kernels.dialect.types import Lowered
from trtllm_kernels.lowering import describe, rotate_in_attention
from trtllm_kernels.references import OPS
from trtllm_kernels.references.quantize import FP8


@dataclass(frozen=True)
class Rotated:
    """`attention` and its arguments `named` on the CPU, its result as `expected`, and the cache as it is after it."""

    attention: Lowered
    named: dict[str, Any]
    expected: torch.Tensor
    written: dict[str, torch.Tensor]

    def check_written(self, named: Mapping[str, Any]) -> None:
        """Codes may lie a step apart where a rounding flips."""
        for name, want in self.written.items():
            got = named[name].cpu()
            if want.dtype == torch.int8:
                assert int((got.int() - want.int()).abs().max()) <= 1
            elif want.dtype == FP8:
                assert int(code_steps(got, want).max()) <= 1
            else:
                torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-3, equal_nan=True)


def rotated_sample(model: ModelShape, lengths: tuple[int, ...], precision: str, tactic: Mapping[str, int]) -> Rotated:
    """Of sequences of `lengths` tokens, which all decode. `precision`: fp8, int8 (the cache), or that of everything."""

    def draw(op: str) -> dict[str, Any]:
        if precision in ("fp8", "int8"):
            return (fp8_sample if precision == "fp8" else int8_cache_sample)(op, model, batch)
        return sample(op, model, batch, precision)

    batch = BatchShape(query_lens=(1,) * len(lengths), kv_lens=lengths, max_pages=max(lengths) // model.page_size + 1)
    rope, attention = OPS["rope_kv_write"], OPS["paged_attention"]
    given, read, page = draw(rope.name), draw(attention.name), model.page_size
    cached = {name: read[name] for name in ("kv_cache", "kv_scales")}
    last = [length - 1 for length in lengths]
    pages = [int(read["block_table"][int(slot), at // page]) for slot, at in zip(read["seq_slots"], last, strict=True)]
    slots = torch.tensor([page * number + at % page for number, at in zip(pages, last, strict=True)])
    given |= cached | {"kv_slots": slots.int(), "positions": torch.tensor(last).int()}
    after = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    rotated = rope.reference(**after)
    expected = attention.reference(**read | {"qkv": rotated} | {name: after[name] for name in cached})

    def described(op: Any, named: dict[str, Any], result: torch.Tensor, own: Mapping[str, int]) -> Any:
        inputs = [None if named[tensor] is None else spec_of(named[tensor]) for tensor in op.tensors]
        names = ["rotated" if op is attention and name == "qkv" else name for name in op.tensors]
        attrs, out = {attr: named[attr] for attr in op.attrs}, "rotated" if op is rope else "out0"
        results, in_place = [spec_of(result)], op is rope
        return describe(op.name, inputs, results, attrs, "sm_90", input_names=names, output_names=[out], in_place=in_place, tactic=own)

    both = rotate_in_attention(described(rope, given, rotated, {}), described(attention, read, expected, tactic))
    assert both is not None
    named = {**read, "cos_sin": given["cos_sin"], "rotated": given["qkv"]}
    return Rotated(both[1], named, expected, {name: after[name] for name in cached if after[name] is not None})
