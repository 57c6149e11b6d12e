"""What a model is, in numbers: one frozen record read from a Hugging Face `config.json`.

Hugging Face spells the same fact in several ways (`rope_theta` beside `rope_scaling`, or both inside `rope_parameters`; GPT-J's `n_embd`
for `hidden_size`). Each family reads its own fields (`models/<family>/`), with what several share here; nothing behind looks at a raw
configuration again. What a definition cannot express (other activations, YaRN, a sliding window shorter than the engine's sequences,
experts, soft caps) is refused when parsing or in `check_sequence_length`, rather than computed wrongly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trtllm_engines.documents import is_finite, read_object, read_object_if_there, shown
from trtllm_engines.errors import EngineError
from trtllm_engines.models import families
from trtllm_engines.models.fields import Fields

MOST_TOKEN_ID = 2**31 - 1
MOST_POSITIONS = 2**30
MOST_SIZES: Mapping[str, int] = {
    "hidden_size": 2**20,
    "num_layers": 4096,
    "num_heads": 2**16,
    "num_kv_heads": 2**16,
    "head_dim": 2**14,
    "intermediate_size": 2**24,
    "vocab_size": 2**24,
    "max_position_embeddings": MOST_POSITIONS,
}
"""No model comes near these; what is beyond them is damage, and is refused before anything of such a size is allocated."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding. `scaling`: `default`, `linear` (all / factor), `llama3` (Llama 3.1's), `factors` (a divisor a frequency)."""

    theta: float
    rotary_dim: int
    interleaved: bool = False
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    freq_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and sizes of one decoder-only model."""

    name: str
    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    rope: RopeConfig
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    sliding_window: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict, hash=False)
    """What a family's parser tells its own module and nobody else reads, such as the factor of scaled embeddings."""

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def to_dict(self) -> dict[str, Any]:
        """In JSON's own types."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`, also after a trip through JSON."""
        rope = dict(data["rope"])
        rope["freq_factors"] = tuple(rope["freq_factors"])
        return cls(**{**data, "rope": RopeConfig(**rope), "eos_token_ids": tuple(data["eos_token_ids"])})

    def check_sequence_length(self, max_seq_len: int, name: str = "max_seq_len") -> None:
        """Raises `EngineError` when sequences of this length, which the user calls `name`, would be computed wrongly."""
        if max_seq_len > self.max_position_embeddings:
            raise EngineError(
                f"{name} {max_seq_len} is beyond the {self.max_position_embeddings} positions {self.name} was trained for; "
                f"ask for at most {self.max_position_embeddings}"
            )
        if self.sliding_window is not None and max_seq_len > self.sliding_window:
            raise EngineError(
                f"{self.name} attends within a sliding window of {self.sliding_window} tokens, which is only supported while it covers "
                f"whole sequences; ask for {name} {self.sliding_window} or less"
            )


ADAPTER = "adapter_config.json"
"""By which PEFT and transformers know a folder with a LoRA or another adapter."""


def check_no_adapter(folder: Path) -> None:
    """Raises `EngineError` for a folder with an adapter, which transformers adds to the weights there, or to those of its base model."""
    if (folder / ADAPTER).is_file():
        raise EngineError(
            f"{folder} holds an adapter ({ADAPTER}), which no engine here adds to its model's weights; merge the two, as peft's "
            f"merge_and_unload does, and point at the folder of the result"
        )


def read_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json` (and end-of-sequence ids from `generation_config.json` when it lists more of them)."""
    check_no_adapter(folder)
    path = folder / "config.json"
    content = read_object(path, f"{folder} has no config.json; point at a Hugging Face model folder")
    config = config_from_hf(content, name=os.path.basename(os.path.realpath(folder)))
    generation = folder / "generation_config.json"
    ids = token_ids(Fields(read_object_if_there(generation), str(generation)), "eos_token_id")
    _check_eos(ids, config.vocab_size, str(generation))
    return replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *ids))))


def config_from_hf(raw: Mapping[str, Any], name: str) -> ModelConfig:
    """Parses the contents of a Hugging Face `config.json`; raises `EngineError` naming the field that cannot be used."""
    architecture = _architecture(raw, name)
    family = families.family_of(architecture)
    if family is None:
        raise EngineError(f"{name}: architecture {architecture[:60]} is not supported; supported are {families.supported()}")
    model_type = family.architectures[architecture]
    if raw.get("model_type", model_type) != model_type:
        raise EngineError(
            f"{name}: config.json: model_type is {shown(raw['model_type'])}, but architecture {architecture} goes with {model_type!r}; "
            f"one of the two is wrong"
        )
    fields = Fields(raw, f"{name}: config.json")
    with readable(fields, lambda key: f"{name}: config.json lacks {key!r}, which {architecture} needs"):
        config = family.parse(fields, architecture, name)
    fields.check_unread()
    check_sizes(config, fields.source)
    return config


@contextmanager
def readable(fields: Fields, missing: Callable[[object], str]) -> Iterator[None]:
    """Turns what a parser trips over into an `EngineError`: a missing key (`missing` says so) or a value of another type."""
    try:
        yield
    except KeyError as absent:
        raise EngineError(missing(absent.args[0])) from None
    except (TypeError, ValueError, ArithmeticError) as wrong:
        if isinstance(wrong, EngineError):
            raise
        raise EngineError(f"{fields.source} holds a value of the wrong type ({' '.join(str(wrong).split())[:200]})") from None


def _architecture(raw: Mapping[str, Any], name: str) -> str:
    """The first of `architectures`; without any, that of the `model_type`."""
    fields = Fields(raw, f"{name}: config.json")
    architectures, model_type = fields.strings("architectures"), fields.text("model_type")
    return architectures[0] if architectures else families.architecture_of(model_type) or "(none)"


def partial_rotary_factor(fields: Fields, default: float = 1.0) -> float:
    """Share of a head's dimensions that a `config.json` says are rotated; transformers lets each architecture decide whether to heed it."""
    outside = fields.number("partial_rotary_factor", default, most=1.0)
    return _rope_fields(fields).number("partial_rotary_factor", outside, most=1.0)


def rope_from_hf(fields: Fields, rotary_dim: int) -> RopeConfig:
    """Rotary embedding of `rotary_dim` dimensions a head. Old style: `rope_theta` and `rope_scaling`; new: one `rope_parameters`.

    Raises `EngineError` for frequency scalings that `models/rope.py` has not, and where layers differ.
    """
    parameters = _rope_fields(fields)
    theta = parameters.number("rope_theta", fields.number("rope_theta", 10000.0))
    scaling = parameters.text("rope_type") or parameters.text("type") or "default"
    rope = RopeConfig(theta=theta, rotary_dim=rotary_dim, scaling=scaling)
    if scaling == "default":
        return rope
    if scaling == "linear":
        return replace(rope, factor=parameters.number("factor"))
    if scaling == "llama3":
        return replace(
            rope,
            factor=parameters.number("factor"),
            low_freq_factor=parameters.number("low_freq_factor"),
            high_freq_factor=parameters.number("high_freq_factor"),
            original_max_position=parameters.integer("original_max_position_embeddings", least=1, most=MOST_POSITIONS),
        )
    raise EngineError(f"{fields.source}: rope scaling {shown(scaling)} is not supported; supported are default, linear and llama3")


def _rope_fields(fields: Fields) -> Fields:
    old, new = fields.section("rope_scaling"), fields.section("rope_parameters")
    if old and new and dict(old) != dict(new):
        raise EngineError(f"{fields.source}: rope_scaling and rope_parameters are both given and differ; keep one of them")
    parameters = new or old
    nested = next((key for key, value in parameters.items() if isinstance(value, Mapping)), None)
    if nested is not None:
        raise EngineError(f"{fields.source}: rope_parameters differ by layer ({nested} has its own), which is not supported")
    return parameters


def check_sizes(config: ModelConfig, source: str) -> None:
    """Raises `EngineError` for a size that no model has, and for sizes that do not go together."""
    for size, most in MOST_SIZES.items():
        value = getattr(config, size)
        if value < 1:
            raise EngineError(f"{source}: {size} is {value} but must be at least 1")
        if value > most:
            raise EngineError(f"{source}: {size} is {value} but must be at most {most}")
    for label, count in (("num_heads * head_dim", config.q_size), ("num_kv_heads * head_dim", config.kv_size)):
        if count > MOST_SIZES["intermediate_size"]:
            raise EngineError(f"{source}: {label} is {count} but must be at most {MOST_SIZES['intermediate_size']}")
    if config.num_heads % config.num_kv_heads:
        raise EngineError(
            f"{source}: {config.num_heads} attention heads cannot be shared evenly among {config.num_kv_heads} key-value heads"
        )
    rope = config.rope
    if not 0 < rope.rotary_dim <= config.head_dim or rope.rotary_dim % 2:
        raise EngineError(f"{source}: rotary dimension {rope.rotary_dim} must be even and at most head_dim {config.head_dim}")
    if rope.freq_factors and len(rope.freq_factors) != rope.rotary_dim // 2:
        raise EngineError(f"{source}: rope_freqs has {len(rope.freq_factors)} values; it must have {rope.rotary_dim // 2}, one a frequency")
    numbers = {"norm_eps": config.norm_eps, "rope theta": rope.theta, "rope factor": rope.factor}
    numbers |= {"rope low_freq_factor": rope.low_freq_factor, "rope high_freq_factor": rope.high_freq_factor}
    for label, number in [*numbers.items(), *(("rope_freqs", factor) for factor in rope.freq_factors)]:
        if not is_finite(number) or number <= 0:
            raise EngineError(f"{source}: {label} is {number}; it must be a positive number")
    if rope.scaling == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise EngineError(
            f"{source}: rope high_freq_factor is {rope.high_freq_factor:g}; it must be more than low_freq_factor {rope.low_freq_factor:g}"
        )
    _check_eos(config.eos_token_ids, config.vocab_size, source)


def _check_eos(ids: tuple[int, ...], vocab_size: int, source: str) -> None:
    outside = next((one for one in ids if not 0 <= one < vocab_size), None)
    if outside is not None:
        raise EngineError(f"{source}: eos_token_id is {outside}; it must be a token of the vocabulary, 0 to {vocab_size - 1}")


def token_ids(fields: Fields, key: str) -> tuple[int, ...]:
    """Of one id, a list of them, or none. Raises `EngineError`."""
    value = fields.get(key)
    if value is None:
        return ()
    ids = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= MOST_TOKEN_ID for one in ids):
        raise fields.wrong(key, "a token id or a list of them")
    return tuple(ids)


def token_id(fields: Fields, key: str) -> int | None:
    """One id, or none; the first of a list. Raises `EngineError`."""
    return next(iter(token_ids(fields, key)), None)
