"""Ops in which the ranks of a tensor-parallel group exchange data. `group` says which ranks there are (`dialect/group.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trtllm_kernels.dialect.dtypes import nbytes
from trtllm_kernels.dialect.group import group_spec, pipe_spec, ranks_of
from trtllm_kernels.dialect.model_shape import ModelTensors
from trtllm_kernels.dialect.op_spec import ExampleCall, OpSpec, Trait, register
from trtllm_kernels.dialect.types import SAMPLING_WORDS, TensorSpec
from trtllm_kernels.dialect.work import OpInStep, Work, elementwise, gemm

_EXAMPLE_RANKS = 2


def _reduced(flop: int) -> Callable[[OpInStep], Work]:
    """As `elementwise`, and what a rank sends: its rows to each peer (as in a one-shot reduction, which steps of few tokens take)."""
    rows = elementwise(flop)

    def work(op: OpInStep) -> Work:
        counted = rows(op)
        peers = ranks_of(op.tensors["group"]) - 1
        sent = float(peers * nbytes(op.tensors["x"], op.step.symbols))
        return Work(counted.flop, counted.weight_bytes, 0.0, counted.activation_bytes, link_bytes=sent)

    return work


def _sent(op: OpInStep) -> Work:
    """Rows that are read here and written into another GPU's memory."""
    moved = float(nbytes(op.tensors["x"], op.step.symbols))
    return Work(0.0, 0.0, 0.0, moved if op.in_place else 3 * moved, link_bytes=moved)


def _received(op: OpInStep) -> Work:
    """Rows that are copied out of the inbox; what they take over the link is the sender's."""
    return Work(0.0, 0.0, 0.0, 2.0 * nbytes(op.tensors["hidden"], op.step.symbols))


def _pipe_examples(t: ModelTensors) -> Iterator[ExampleCall]:
    yield (t.hidden, pipe_spec()), (t.hidden,), {}


def _sample_examples(t: ModelTensors) -> Iterator[ExampleCall]:
    if t.dtype == "fp32":
        return
    sampling = (t.ints("S", SAMPLING_WORDS), t.ints("S"), t.ints(1))
    state = (TensorSpec((t.max_batch_size,), "int64"), t.ints(t.max_batch_size + 1), t.ints(4, t.max_batch_size))
    rows = t.model.vocab // _EXAMPLE_RANKS
    head = TensorSpec((rows, t.model.hidden), t.dtype)
    inputs = (t.rows(t.model.hidden, "S"), head, None, *sampling, *state, group_spec(_EXAMPLE_RANKS))
    yield inputs, (t.rows(rows, "S"), t.ints("S")), {}


def _reduces(t: ModelTensors) -> bool:
    """Whether the GPU kernels take rows of this width: whole vectors for whole warps."""
    return t.model.hidden % 256 == 0 and t.dtype in ("bf16", "fp16")


def _all_reduce_examples(t: ModelTensors) -> Iterator[ExampleCall]:
    if _reduces(t):
        yield (t.hidden, group_spec(_EXAMPLE_RANKS)), (t.hidden,), {}


def _added_examples(t: ModelTensors) -> Iterator[ExampleCall]:
    if _reduces(t):
        yield (t.hidden, t.hidden, group_spec(_EXAMPLE_RANKS)), (t.hidden,), {}


def _fused_examples(t: ModelTensors) -> Iterator[ExampleCall]:
    if _reduces(t):
        inputs = (t.hidden, t.hidden, t.norm_weight, group_spec(_EXAMPLE_RANKS), t.scale)
        yield inputs, (t.hidden_codes, t.hidden), {"eps": 1e-5}


register(
    OpSpec(
        "all_reduce(Tensor x, Tensor group) -> Tensor",
        "sum of x over the ranks, in rank order, rounded once: the same bits on every rank",
        work=_reduced(1),
        traits=frozenset({Trait.REDUCES}),
        examples=_all_reduce_examples,
        kind="communication",
        state=("group",),
    )
)
register(
    OpSpec(
        "all_reduce_add_rms_norm(Tensor x, Tensor residual, Tensor weight, Tensor group, float eps, Tensor? out_scale=None) "
        "-> (Tensor, Tensor)",
        "(RMS norm of the sum, the sum) of x over the ranks and the residual",
        work=_reduced(6),
        traits=frozenset({Trait.REDUCES}),
        examples=_fused_examples,
        kind="communication",
        alone="add_rms_norm",
        state=("group",),
        same_shape=("x", "residual"),
    )
)
register(
    OpSpec(
        "all_reduce_add(Tensor x, Tensor residual, Tensor group) -> Tensor",
        "the sum of x over the ranks, rounded, plus the residual: whole rows on every rank",
        work=_reduced(2),
        traits=frozenset({Trait.REDUCES}),
        examples=_added_examples,
        kind="communication",
        alone="add",
        state=("group",),
        same_shape=("x", "residual"),
    )
)
register(
    OpSpec(
        "send(Tensor x, Tensor pipe) -> Tensor",
        "x, which the same rank of the next pipeline stage receives",
        work=_sent,
        examples=_pipe_examples,
        kind="communication",
        in_place="x",
        state=("pipe",),
    )
)
register(
    OpSpec(
        "receive(Tensor hidden, Tensor pipe) -> Tensor",
        "what the same rank of the pipeline stage before has sent, shaped as hidden",
        work=_received,
        examples=_pipe_examples,
        kind="communication",
        state=("hidden", "pipe"),
    )
)
register(
    OpSpec(
        "sharded_linear_sample(Tensor x, Tensor weight, Tensor? bias, Tensor sampling_words, Tensor sample_slots, Tensor ring_slot, "
        "Tensor(a!) argmax_scratch, Tensor(b!) last_tokens, Tensor(c!) token_ring, Tensor group) -> (Tensor, Tensor)",
        "(this rank's columns of the logits, sampled tokens) where each rank has rows of the vocabulary",
        work=gemm,
        examples=_sample_examples,
        kind="gemm",
        alone="linear_sample",
        traits=frozenset({Trait.SAMPLES}),
        state=("argmax_scratch", "last_tokens", "token_ring", "group"),
    )
)
