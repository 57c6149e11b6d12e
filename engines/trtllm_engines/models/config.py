"""What a model is, in numbers: one frozen record read from a Hugging Face `config.json`.

Hugging Face spells the same fact in several ways (`rope_theta` beside `rope_scaling`, or both inside `rope_parameters`; GPT-J's `n_embd`
for `hidden_size`). All spellings end here; nothing behind this module looks at a raw configuration again. What the model
definitions cannot express (other activations, YaRN, a sliding window shorter than the engine's sequences) is refused here or in
`check_sequence_length`, rather than computed wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trtllm_engines.errors import EngineError

LLAMA_FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
SUPPORTED_ARCHITECTURES = (*LLAMA_FAMILY, "GPTJForCausalLM")


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

    @property
    def family(self) -> str:
        """`llama` or `gptj`: which model definition builds it."""
        return "gptj" if self.architecture == "GPTJForCausalLM" else "llama"

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
        ids = _token_ids(_read_json(generation, "").get("eos_token_id"))
        config = replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *ids))))
    return config


def config_from_hf(raw: Mapping[str, Any], name: str) -> ModelConfig:
    """Parses the contents of a Hugging Face `config.json`; raises `EngineError` naming the field that cannot be used."""
    architectures = raw.get("architectures") or []
    architecture = str(architectures[0]) if architectures else "(none)"
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise EngineError(f"{name}: architecture {architecture} is not supported; supported are {', '.join(SUPPORTED_ARCHITECTURES)}")
    try:
        config = _gptj(raw, name) if architecture == "GPTJForCausalLM" else _llama(raw, name, architecture)
    except KeyError as missing:
        raise EngineError(f"{name}: config.json lacks {missing.args[0]!r}, which {architecture} needs") from None
    except (TypeError, ValueError) as wrong:
        if isinstance(wrong, EngineError):
            raise
        raise EngineError(f"{name}: config.json holds a value of the wrong type ({wrong})") from None
    _validate(config)
    return config


def _llama(raw: Mapping[str, Any], name: str, architecture: str) -> ModelConfig:
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise EngineError(f"{name}: hidden_act {activation!r} is not supported for {architecture}; only 'silu' is")
    heads = int(raw["num_attention_heads"])
    hidden = int(raw["hidden_size"])
    head_dim = int(raw.get("head_dim") or hidden // heads)
    bias = bool(raw.get("attention_bias", False))
    window = raw.get("sliding_window")
    if architecture.startswith("Qwen") and not raw.get("use_sliding_window", False):
        window = None
    return ModelConfig(
        name=name,
        architecture=architecture,
        hidden_size=hidden,
        num_layers=int(raw["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        intermediate_size=int(raw["intermediate_size"]),
        vocab_size=int(raw["vocab_size"]),
        max_position_embeddings=int(raw["max_position_embeddings"]),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=_rope(raw, name, head_dim),
        qkv_bias=architecture == "Qwen2ForCausalLM" or bias,
        output_bias=bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        sliding_window=None if window is None else int(window),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=_token_ids(raw.get("eos_token_id")),
    )


def _gptj(raw: Mapping[str, Any], name: str) -> ModelConfig:
    activation = raw.get("activation_function", "gelu_new")
    if activation != "gelu_new":
        raise EngineError(f"{name}: activation_function {activation!r} is not supported for GPTJForCausalLM; only 'gelu_new' is")
    hidden, heads = int(raw["n_embd"]), int(raw["n_head"])
    head_dim = hidden // heads
    return ModelConfig(
        name=name,
        architecture="GPTJForCausalLM",
        hidden_size=hidden,
        num_layers=int(raw["n_layer"]),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=int(raw.get("n_inner") or 4 * hidden),
        vocab_size=int(raw["vocab_size"]),
        max_position_embeddings=int(raw["n_positions"]),
        norm_eps=float(raw.get("layer_norm_epsilon", 1e-5)),
        rope=RopeConfig(theta=10000.0, rotary_dim=int(raw.get("rotary_dim") or head_dim), interleaved=True),
        mlp_bias=True,
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=_token_ids(raw.get("eos_token_id")),
    )


def _rope(raw: Mapping[str, Any], name: str, head_dim: int) -> RopeConfig:
    """Old style: `rope_theta` and `rope_scaling`. New style: one `rope_parameters` holding both."""
    scaling: Mapping[str, Any] = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    partial = float(scaling.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0)
    rope = RopeConfig(theta=theta, rotary_dim=int(head_dim * partial), scaling=kind)
    if kind == "default":
        return rope
    if kind == "linear":
        return replace(rope, factor=float(scaling["factor"]))
    if kind == "llama3":
        return replace(
            rope,
            factor=float(scaling["factor"]),
            low_freq_factor=float(scaling["low_freq_factor"]),
            high_freq_factor=float(scaling["high_freq_factor"]),
            original_max_position=int(scaling["original_max_position_embeddings"]),
        )
    raise EngineError(f"{name}: rope scaling {kind!r} is not supported; supported are default, linear and llama3")


def _validate(config: ModelConfig) -> None:
    for field in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size"):
        if getattr(config, field) < 1:
            raise EngineError(f"{config.name}: {field} is {getattr(config, field)} in config.json but must be at least 1")
    if config.num_heads % config.num_kv_heads:
        raise EngineError(
            f"{config.name}: {config.num_heads} attention heads cannot be shared evenly among {config.num_kv_heads} key-value heads"
        )
    if config.rope.rotary_dim % 2 or config.rope.rotary_dim > config.head_dim:
        raise EngineError(f"{config.name}: rotary dimension {config.rope.rotary_dim} must be even and at most head_dim {config.head_dim}")


def _token_ids(value: Any) -> tuple[int, ...]:
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
