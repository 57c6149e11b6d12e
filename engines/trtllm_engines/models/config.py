"""What a model is, in numbers: one frozen record read from a Hugging Face `config.json`.

Hugging Face spells the same fact in several ways (`rope_theta` beside `rope_scaling`, or both inside `rope_parameters`; GPT-J's `n_embd`
for `hidden_size`). Each family reads its own fields (`models/<family>/`), with what several share here; nothing behind looks at a raw
configuration again. What a definition cannot express (other activations, YaRN, a sliding window shorter than the engine's sequences,
experts, soft caps) is refused when parsing or in `check_sequence_length`, rather than computed wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trtllm_engines.errors import EngineError
from trtllm_engines.models import families
from trtllm_engines.models.fields import Fields


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

    def check_sequence_length(self, max_seq_len: int) -> None:
        """Raises `EngineError` when sequences of this length would be computed wrongly."""
        if max_seq_len > self.max_position_embeddings:
            raise EngineError(
                f"max_seq_len {max_seq_len} is beyond the {self.max_position_embeddings} positions {self.name} was trained for; "
                f"ask for at most {self.max_position_embeddings}"
            )
        if self.sliding_window is not None and max_seq_len > self.sliding_window:
            raise EngineError(
                f"{self.name} attends within a sliding window of {self.sliding_window} tokens, which is only supported while it covers "
                f"whole sequences; ask for max_seq_len {self.sliding_window} or less"
            )


def read_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json` (and end-of-sequence ids from `generation_config.json` when it lists more of them)."""
    path = folder / "config.json"
    config = config_from_hf(
        _read_json(path, f"{folder} has no config.json; point at a Hugging Face model folder"), name=folder.resolve().name
    )
    generation = folder / "generation_config.json"
    if generation.is_file():
        ids = token_ids(_read_json(generation, "").get("eos_token_id"))
        config = replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *ids))))
    return config


def config_from_hf(raw: Mapping[str, Any], name: str) -> ModelConfig:
    """Parses the contents of a Hugging Face `config.json`; raises `EngineError` naming the field that cannot be used."""
    architecture = _architecture(raw, name)
    family = families.family_of(architecture)
    if family is None:
        raise EngineError(f"{name}: architecture {architecture} is not supported; supported are {families.supported()}")
    model_type = family.architectures[architecture]
    if raw.get("model_type", model_type) != model_type:
        raise EngineError(
            f"{name}: config.json: model_type is {raw['model_type']!r}, but architecture {architecture} goes with {model_type!r}; "
            f"one of the two is wrong"
        )
    fields = Fields(raw, f"{name}: config.json")
    with readable(fields, lambda key: f"{name}: config.json lacks {key!r}, which {architecture} needs"):
        config = family.parse(fields, architecture, name)
    fields.check_unread()
    _validate(config)
    return config


@contextmanager
def readable(fields: Fields, missing: Callable[[object], str]) -> Iterator[None]:
    """Turns what a parser trips over into an `EngineError`: a missing key (`missing` says so) or a value of another type."""
    try:
        yield
    except KeyError as absent:
        raise EngineError(missing(absent.args[0])) from None
    except (TypeError, ValueError, OverflowError) as wrong:
        if isinstance(wrong, EngineError):
            raise
        raise EngineError(f"{fields.source} holds a value of the wrong type ({wrong})") from None


def _architecture(raw: Mapping[str, Any], name: str) -> str:
    """The first of `architectures`; without any, that of the `model_type`."""
    architectures = raw.get("architectures") or []
    if not isinstance(architectures, list):
        raise EngineError(f"{name}: config.json: architectures is {architectures!r}; it must be a list of names")
    if architectures:
        return str(architectures[0])
    return families.architecture_of(str(raw.get("model_type"))) or "(none)"


def partial_rotary_factor(fields: Fields, default: float = 1.0) -> float:
    """Share of a head's dimensions that a `config.json` says are rotated; transformers lets each architecture decide whether to heed it."""
    outside = fields.get("partial_rotary_factor")
    return float(_rope_fields(fields).get("partial_rotary_factor") or outside or default)


def rope_from_hf(fields: Fields, rotary_dim: int) -> RopeConfig:
    """Rotary embedding of `rotary_dim` dimensions a head. Old style: `rope_theta` and `rope_scaling`; new: one `rope_parameters`.

    Raises `EngineError` for frequency scalings that `models/rope.py` has not, and where layers differ.
    """
    parameters = _rope_fields(fields)
    outside = fields.get("rope_theta")
    theta = float(parameters.get("rope_theta") or outside or 10000.0)
    scaling = str(parameters.get("rope_type") or parameters.get("type") or "default")
    rope = RopeConfig(theta=theta, rotary_dim=rotary_dim, scaling=scaling)
    if scaling == "default":
        return rope
    if scaling == "linear":
        return replace(rope, factor=float(parameters["factor"]))
    if scaling == "llama3":
        return replace(
            rope,
            factor=float(parameters["factor"]),
            low_freq_factor=float(parameters["low_freq_factor"]),
            high_freq_factor=float(parameters["high_freq_factor"]),
            original_max_position=int(parameters["original_max_position_embeddings"]),
        )
    raise EngineError(f"{fields.source}: rope scaling {scaling!r} is not supported; supported are default, linear and llama3")


def _rope_fields(fields: Fields) -> Mapping[str, Any]:
    old, new = fields.get("rope_scaling") or {}, fields.get("rope_parameters") or {}
    if old and new and old != new:
        raise EngineError(f"{fields.source}: rope_scaling and rope_parameters are both given and differ; keep one of them")
    parameters: Mapping[str, Any] = new or old
    nested = next((key for key, value in parameters.items() if isinstance(value, Mapping)), None)
    if nested is not None:
        raise EngineError(f"{fields.source}: rope_parameters differ by layer ({nested} has its own), which is not supported")
    return parameters


def _validate(config: ModelConfig) -> None:
    for size in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size"):
        if getattr(config, size) < 1:
            raise EngineError(f"{config.name}: {size} is {getattr(config, size)} in config.json but must be at least 1")
    if config.num_heads % config.num_kv_heads:
        raise EngineError(
            f"{config.name}: {config.num_heads} attention heads cannot be shared evenly among {config.num_kv_heads} key-value heads"
        )
    if config.rope.rotary_dim % 2 or config.rope.rotary_dim > config.head_dim:
        raise EngineError(f"{config.name}: rotary dimension {config.rope.rotary_dim} must be even and at most head_dim {config.head_dim}")


def token_ids(value: Any) -> tuple[int, ...]:
    """Of one id, a list of them, or none."""
    if value is None:
        return ()
    return tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)


def _read_json(path: Path, absent: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EngineError(absent or f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(data, dict):
        raise EngineError(f"{path} should hold a JSON object but holds a {type(data).__name__}")
    return data
