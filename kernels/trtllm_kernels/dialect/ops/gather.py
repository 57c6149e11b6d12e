"""Gathers of rows and columns, and the step's bookkeeping."""

from __future__ import annotations

from dataclasses import replace

from trtllm_kernels.dialect.op_spec import OpSpec, Trait, register
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.dialect.work import OpInStep, Work, elementwise, picked_rows

register(
    OpSpec(
        "embedding(Tensor ids, Tensor weight) -> Tensor",
        "rows of the embedding table",
        work=picked_rows("weight"),
        examples=lambda t: [((t.ints("T"), TensorSpec((t.model.vocab, t.model.hidden), t.dtype)), (t.hidden,), {})],
        traits=frozenset({Trait.LAYER, Trait.PICKS_ROWS}),
    )
)
register(
    OpSpec(
        "gather_rows(Tensor x, Tensor rows) -> Tensor",
        "rows of x, such as those whose logits are needed",
        work=picked_rows("x"),
        examples=lambda t: [((t.hidden, t.ints("S")), (t.rows(t.model.hidden, "S"),), {})],
        traits=frozenset({Trait.PICKS_ROWS}),
    )
)
register(
    OpSpec(
        "arrange_columns(Tensor x, Tensor? index=None, Tensor? factor=None, Tensor? out_scale=None) -> Tensor",
        "column k is column index[k] of x times factor[k]: inputs of a product whose weight was quantized with its columns so",
        work=elementwise(1),
        traits=frozenset({Trait.COLUMNWISE, Trait.ROWWISE}),
        own_dtype=("factor",),
        examples=lambda t: [((t.inner, t.ints(t.model.intermediate), TensorSpec((t.model.intermediate,), "fp32")), (t.inner,), {})],
    )
)


def _prepare_step(op: OpInStep) -> Work:
    """Beside its lists it reads a last token for each decode sequence and an entry of the block table for each token."""
    work = elementwise(0)(op)
    return replace(work, activation_bytes=work.activation_bytes + 4.0 * (op.step.num_decodes + op.step.tokens))


register(
    OpSpec(
        "prepare_step(Tensor context_tokens, Tensor seq_slots, Tensor query_start, Tensor kv_lens, Tensor last_tokens, "
        "Tensor block_table, int page_size) -> (Tensor, Tensor, Tensor)",
        "token id, position and cache slot of each token of the ragged batch",
        work=_prepare_step,
        examples=lambda t: [
            (
                (t.ints("T"), *t.sequences, t.ints(t.max_batch_size + 1), t.block_table),
                (t.ints("T"),) * 3,
                {"page_size": t.model.page_size},
            )
        ],
        state=("last_tokens", "block_table"),
    )
)
