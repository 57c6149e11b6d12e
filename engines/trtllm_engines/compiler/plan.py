"""The plan: what an engine is, as data. Written by the compiler, read by the runtime, printed by `inspect`.

Nothing here computes. A plan is the topologically ordered list of dialect ops over named values, with the buffer each value lives in and,
for each architecture built for, the launches that carry the op out. The CPU runtime ignores launches and runs the references.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from trtllm_engines.documents import checked_json, parse_object
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.quantization.scheme import KvScheme, QuantPlan, QuantScheme, WeightRecipe
from trtllm_kernels.dialect.group import Way, group_spec, pipe_spec
from trtllm_kernels.dialect.types import SAMPLING_WORDS, Attr, Lowered, TensorSpec

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FORMAT_VERSION = 7
KERNEL_ABI = 7
"""Raised when the meaning of a launch's arguments, its symbols, or of the step inputs below, changes."""

RING_SLOTS = 4
"""Steps whose tokens the host may not have read yet, and whose inputs may still be on their way."""

LOGITS = "logits"
"""The model's result: float [S, vocabulary]."""
HIDDEN = "hidden"
"""Step input of every pipeline stage but the first: the residual stream, [T, hidden_size] in the wide dtype."""
KV_SCALES = "kv_scales"
"""Step input of an engine whose cache has a scale per token and head."""
PIPE = "pipe"
"""Step input of every stage of a pipeline: a rank's ends of it."""
NEXT_HIDDEN = "next_hidden"
"""Result of every pipeline stage but the last: `hidden` of the next."""

STEP_INPUTS: Mapping[str, str] = {
    "context_tokens": "int32 [T]: token id of each context token; -1 where the token is the slot's last sampled one",
    "seq_slots": "int32 [R]: slot of each sequence; decode sequences first",
    "query_start": "int32 [R + 1]: first token of each sequence in this step's ragged batch",
    "kv_lens": "int32 [R]: tokens each sequence has in the KV cache once this step has written its own",
    "logit_rows": "int32 [S]: tokens of the batch whose logits are asked for",
    "sampling_words": "int32 [S, 4]: how each token is sampled (`trtllm_kernels.dialect.types.SAMPLING_WORDS`)",
    "sample_slots": "int32 [S]: slot of each row that is sampled",
    "ring_slot": "int32 [1]: row of token_ring that this step writes",
    "token_ring": "int32 [ring slots, max_batch_size]: sampled tokens, in the host's memory",
    "argmax_scratch": "int64 [max_batch_size]: scratch of sampling",
    "last_tokens": "int32 [max_batch_size + 1]: state, last sampled token of each slot (the last row is padding's)",
    "block_table": "int32 [max_batch_size + 1, max_pages_per_seq]: state, pages of each slot (page 0 is padding's)",
    "kv_cache": "kv dtype [layers, pages, 2, kv_heads, page_size, head_dim]: state",
    KV_SCALES: "fp32 [layers, pages, 2, kv_heads, page_size]: state, scales of a cache that has one per token and head",
    "hidden": "wide dtype [T, hidden_size]: where the residual stream of the pipeline stage before arrives, where there is one",
    "pipe": "int64 [8], or int32 [2]: a rank's place in a pipeline (`trtllm_kernels.dialect.group`), where there is one",
    "group": "int64 [words], or int32 [ranks]: the ranks of a tensor-parallel group (as `pipe`), where there are several",
}


MOST_RANKS = 256


@dataclass(frozen=True)
class ParallelLayout:
    """Over how many GPUs an engine runs: `tp` ranks share every layer, `pp` stages follow each other.

    `nnodes` hosts run the ranks, each as many, stage after stage in order of hosts. Which way ranks exchange data follows from it, and is
    in the plan: on GPUs an engine runs on as many hosts as it was built for. On CPUs all of them exchange through gloo.
    """

    tp: int = 1
    pp: int = 1
    nnodes: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "nnodes"):
            size = getattr(self, name)
            if not 1 <= size <= MOST_RANKS:
                raise EngineError(f"{name} is {size} but must be at {'least 1' if size < 1 else f'most {MOST_RANKS}'}")
        if self.ranks % self.nnodes:
            raise EngineError(f"tp x pp is {self.ranks}, which does not divide by --nnodes {self.nnodes}; use another --nnodes")

    @property
    def ranks(self) -> int:
        return self.tp * self.pp

    @property
    def group_way(self) -> Way:
        """How the ranks of a stage exchange data: through memory where every host has whole stages."""
        return "memory" if self.ranks // self.nnodes % self.tp == 0 else "nccl"

    @property
    def pipe_way(self) -> Way:
        """How stages do: one way for all, and some are on different hosts where there are several."""
        return "memory" if self.nnodes == 1 else "nccl"

    def kv_heads(self, config: ModelConfig) -> int:
        """KV heads that one rank caches; where there are fewer than ranks, neighbours cache the same one."""
        return max(1, config.num_kv_heads // self.tp)

    @property
    def ring_slots(self) -> int:
        """Rows of the token ring, and copies of a step's inputs: a pipeline has a step in each stage, and the host is at one more."""
        return max(RING_SLOTS, self.pp + 2)


ONE_GPU = ParallelLayout()


@dataclass(frozen=True)
class Stage:
    """What one stage of a pipeline has: layers [first_layer, end_layer), the first the embedding too, the last the head."""

    index: int
    first_layer: int
    end_layer: int

    @property
    def num_layers(self) -> int:
        return self.end_layer - self.first_layer


def step_input_specs(
    config: ModelConfig, profile: Profile, kv: KvScheme, layout: ParallelLayout, stage: Stage, wide_dtype: str
) -> Mapping[str, TensorSpec]:
    """Shape and dtype of each of `STEP_INPUTS` that this stage of an engine of this layout has; the cache's number of pages, known only at
    run time, is the symbol P."""
    slots = profile.max_batch_size + 1
    cache = (stage.num_layers, "P", 2, layout.kv_heads(config), profile.page_size, config.head_dim)
    return {
        "context_tokens": TensorSpec(("T",), "int32"),
        "seq_slots": TensorSpec(("R",), "int32"),
        "query_start": TensorSpec(("R + 1",), "int32"),
        "kv_lens": TensorSpec(("R",), "int32"),
        "logit_rows": TensorSpec(("S",), "int32"),
        "sampling_words": TensorSpec(("S", SAMPLING_WORDS), "int32"),
        "sample_slots": TensorSpec(("S",), "int32"),
        "ring_slot": TensorSpec((1,), "int32"),
        "token_ring": TensorSpec((layout.ring_slots, profile.max_batch_size), "int32"),
        "argmax_scratch": TensorSpec((profile.max_batch_size,), "int64"),
        "last_tokens": TensorSpec((slots,), "int32"),
        "block_table": TensorSpec((slots, profile.max_pages_per_seq), "int32"),
        "kv_cache": TensorSpec(cache, kv.dtype),
        **({KV_SCALES: TensorSpec(cache[:-1], "fp32")} if kv.granularity == "row" else {}),
        **({HIDDEN: TensorSpec(("T", config.hidden_size), wide_dtype)} if stage.index > 0 else {}),
        **({PIPE: pipe_spec(layout.pipe_way)} if layout.pp > 1 else {}),
        **({"group": group_spec(layout.tp, layout.group_way)} if layout.tp > 1 else {}),
    }


MOST_RANGES = {"max_batch_size": 2**16, "max_num_tokens": 2**24, "max_seq_len": 2**30, "page_size": 2**20}
"""Largest ranges of an engine, in sequences and tokens."""


@dataclass(frozen=True)
class Profile:
    """The ranges an engine was built for."""

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    page_size: int = 32

    def __post_init__(self) -> None:
        for name, most in MOST_RANGES.items():
            size = getattr(self, name)
            if size < 1:
                raise EngineError(f"{name} is {size} but must be at least 1")
            if size > most:
                raise EngineError(f"{name} is {size} but must be at most {most}")
        if self.page_size < 16 or self.page_size & (self.page_size - 1):
            raise EngineError(f"page_size is {self.page_size} but must be a power of two of at least 16")
        if self.max_num_tokens < self.max_batch_size:
            raise EngineError(
                f"max_num_tokens {self.max_num_tokens} cannot hold one token of each of max_batch_size {self.max_batch_size} sequences; "
                f"raise the first or lower the second"
            )

    @property
    def max_pages_per_seq(self) -> int:
        return -(-self.max_seq_len // self.page_size)


@dataclass(frozen=True)
class Fingerprint:
    """`arches`, `min_driver`, `kernel_abi`, `format_version` decide whether an engine may run; `provenance` says what made it."""

    arches: tuple[str, ...]
    min_driver: str
    kernel_abi: int
    format_version: int
    provenance: Mapping[str, str]


@dataclass(frozen=True)
class Op:
    """`inputs` in the dialect's argument order, naming values, weights, constants or step inputs; "" stands for an absent optional."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attr]
    tactics: Mapping[str, Lowered] = field(default_factory=dict)
    reuses: str = ""
    """The input, not needed afterwards, whose memory the first result takes; "" where it has its own. The references know nothing of it."""


@dataclass(frozen=True)
class Buffer:
    """Byte range of a value in the activation arena, sized for the profile's maximum."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class Plan:
    model: Mapping[str, Any]
    quant: QuantPlan
    profile: Profile
    parallel: ParallelLayout
    stage: Stage
    """What part of the model this plan is of: its ranks, those of one tensor-parallel group, run nothing else."""
    fingerprint: Fingerprint
    weights: Mapping[str, TensorSpec]
    weight_recipes: Mapping[str, WeightRecipe]
    """How each weight is made of checkpoint tensors. What `build`, `refit` and the generator read."""
    schemes: Mapping[str, QuantScheme]
    """How each product is quantized, by its weight."""
    constants: Mapping[str, TensorSpec]
    """Tables the compiler computed (the rotary one), stored in `constants.safetensors`; named in `Op.inputs` like weights."""
    weights_source: Mapping[str, Any]
    """`{"kind": "safetensors"}`, or `{"kind": "dummy", "seed": n}`: drawn on the device at load."""
    values: Mapping[str, TensorSpec]
    buffers: Mapping[str, Buffer]
    arena_bytes: int
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]
    """`("logits",)` plus what `--mark-output` added; `("next_hidden",)` of a stage before the last."""

    @property
    def config(self) -> ModelConfig:
        return ModelConfig.from_dict(self.model)

    @property
    def is_last_stage(self) -> bool:
        """Whether it ends in logits and samples."""
        return self.stage.index == self.parallel.pp - 1

    @property
    def step_inputs(self) -> Mapping[str, TensorSpec]:
        """Of `STEP_INPUTS`, those it has."""
        return step_input_specs(self.config, self.profile, self.quant.kv, self.parallel, self.stage, self.quant.wide_dtype)

    @property
    def kv_heads(self) -> int:
        """KV heads of one rank."""
        return self.parallel.kv_heads(self.config)

    @property
    def precision(self) -> str:
        """The name its quantization goes by."""
        return self.quant.name

    @property
    def kv_dtype(self) -> str:
        return self.quant.kv.dtype

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """In JSON's own types."""
        data: dict[str, Any] = _plan_reader().dump_python(self, mode="json")
        return data

    @classmethod
    def from_json(cls, text: str, source: str = "the plan") -> Plan:
        """Inverse of `to_json`, every field of its type. Raises `EngineError` naming `source`, the field and its value."""
        content = parse_object(text, source)
        if "stage" not in content:  # written before there were pipelines
            model = content.get("model")
            content["stage"] = {"index": 0, "first_layer": 0, "end_layer": model.get("num_layers") if isinstance(model, dict) else None}
            text = json.dumps(content)
        plan = checked_json(_plan_reader(), text, source)
        model = checked_json(_model_reader(), json.dumps(plan.model), f"{source}: model")
        return replace(plan, model=model.to_dict())


@cache
def _plan_reader() -> TypeAdapter[Plan]:
    from pydantic import TypeAdapter

    return TypeAdapter(Plan)


@cache
def _model_reader() -> TypeAdapter[ModelConfig]:
    from pydantic import TypeAdapter

    return TypeAdapter(ModelConfig)
