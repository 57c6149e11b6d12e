"""Every kernel at the shapes it is used at: the examples that ops give of themselves, at the sizes of whole models.

What the resource report lists and the compile tests hold to zero spills. Both dtype and model matter: registers grow with head_dim and with
the size of an element. Plans of real models were rejected as the source: they belong to the engines, and hold no op that is fused away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from trtllm_kernels.dialect.model_shape import ModelShape, ModelTensors
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import Attr, KernelSpec, TensorSpec
from trtllm_kernels.lowering import lower
from trtllm_kernels.lowering.registry import has_kernels

MODELS: Mapping[str, ModelShape] = {
    "llama-3.1-8b": ModelShape(4096, 14336, 32, 8, 128, 128, vocab=128256, layers=32),
    "llama-2-7b": ModelShape(4096, 11008, 32, 32, 128, 128, vocab=32000, layers=32),
    "gptj-6b": ModelShape(4096, 16384, 16, 16, 256, 64, interleaved=True, vocab=50400, layers=28),
    "smollm2-135m": ModelShape(576, 1536, 9, 3, 64, 64, vocab=49152, layers=30),
    "qwen3-8b": ModelShape(4096, 12288, 32, 8, 128, 128, qk_norm=True, vocab=151936, layers=36),
}


@dataclass(frozen=True)
class OpShape:
    op: str
    inputs: tuple[TensorSpec | None, ...]
    outputs: tuple[TensorSpec, ...]
    attrs: Mapping[str, Attr]

    def kernels(self, arch: str) -> tuple[KernelSpec, ...]:
        """In place where the op can be, as engines have it."""
        in_place = bool(OP_SPECS[self.op].in_place)
        return lower(self.op, self.inputs, self.outputs, self.attrs, arch, in_place=in_place).kernels


def ops_of(model: ModelShape, precision: str, *, max_seq_len: int = 4096) -> Iterator[OpShape]:
    """Every op that lowers, at a model's shapes. `ModelTensors` says what each precision means."""
    tensors = ModelTensors(model, precision, max_seq_len)
    for spec in OP_SPECS.values():
        for inputs, outputs, attrs in spec.examples(tensors):
            yield OpShape(spec.name, tuple(inputs), tuple(outputs), attrs)


def kernels_of(name: str, precision: str, arch: str, page_size: int = 32) -> dict[str, KernelSpec]:
    """The kernels of a model of `MODELS`, by key."""
    ops = (op for op in ops_of(replace(MODELS[name], page_size=page_size), precision) if has_kernels(op.op, arch))
    return {spec.key: spec for op in ops for spec in op.kernels(arch)}
