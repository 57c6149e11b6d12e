"""The last GEMM of a step, and the token it decides for each row."""

from __future__ import annotations

from collections.abc import Iterator

from trtllm_kernels.dialect.model_shape import ModelTensors
from trtllm_kernels.dialect.op_spec import ExampleCall, OpSpec, Trait, register
from trtllm_kernels.dialect.types import SAMPLING_WORDS, TensorSpec
from trtllm_kernels.dialect.work import gemm


def _linear_sample_examples(t: ModelTensors) -> Iterator[ExampleCall]:
    sampling = (t.ints("S", SAMPLING_WORDS), t.ints("S"), t.ints(1))
    state = (TensorSpec((t.max_batch_size,), "int64"), t.ints(t.max_batch_size + 1), t.ints(4, t.max_batch_size))
    head = TensorSpec((t.model.vocab, t.model.hidden), t.dtype)
    yield (t.rows(t.model.hidden, "S"), head, None, *sampling, *state), (t.rows(t.model.vocab, "S"), t.ints("S")), {}


register(
    OpSpec(
        "linear_sample(Tensor x, Tensor weight, Tensor? bias, Tensor sampling_words, Tensor sample_slots, Tensor ring_slot, "
        "Tensor(a!) argmax_scratch, Tensor(b!) last_tokens, Tensor(c!) token_ring) -> (Tensor, Tensor)",
        "(logits, sampled tokens); the tokens are stored for the next step and the host",
        work=gemm,
        examples=_linear_sample_examples,
        kind="gemm",
        traits=frozenset({Trait.SAMPLES}),
        state=("argmax_scratch", "last_tokens", "token_ring"),
    )
)
