"""Sizes of models that figures are published for, and the work of a token in them.

The results side cannot ask the engine, so these are data here, from the models' `config.json`; a test holds them to the engine's presets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

SAME_SHAPE: Mapping[str, str] = {
    "llama-3-8b": "llama-3.1-8b",
    "llama-3-70b": "llama-3.1-70b",
    "llama-3.3-70b": "llama-3.1-70b",
    "gpt-j-6b": "gptj-6b",
    "gpt-j": "gptj-6b",
    "gptj": "gptj-6b",
    "mistral-7b-v0.3": "mistral-7b",
}
"""Models with the same layer shapes (Llama 3, 3.1 and 3.3 differ in RoPE scaling and weights only), and other names of one model."""
_NOT_OF_SHAPES = re.compile(
    r"-(instruct|chat|hf|fp8|fp4|nvfp4|bf16|fp16|int4|int8|awq|gptq|dynamic|kv|quantized\.w\d+a\d+|99(\.9)?)(?=-|$)"
)
"""Words of a name that tell the training or number format of weights, and MLPerf's accuracy targets: nothing of shapes."""
_LLAMA = re.compile(r"^(?:meta-)?llama-?v?(\d)(?:[.-](\d)(?=-))?")
"""A Llama and its version, which other names have without a hyphen, or with one in place of the point."""


@dataclass(frozen=True)
class ModelSize:
    """A dense decoder. `gated`: the MLP has three matrices and not two."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    gated: bool = True

    @property
    def layer_weights(self) -> float:
        """Elements of all matrices that every token is multiplied by."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return float(self.layers * (attention + (3 if self.gated else 2) * self.hidden * self.intermediate))

    @property
    def head_weights(self) -> float:
        """Elements of the matrix that makes logits."""
        return float(self.vocabulary * self.hidden)

    @property
    def pair_flops(self) -> float:
        """Attention, a query token and one key it sees: 2 for the score and 2 for the value, each head and element."""
        return 4.0 * self.layers * self.heads * self.head_dim

    @property
    def kv_elements(self) -> float:
        """Of one token in the cache."""
        return 2.0 * self.layers * self.kv_heads * self.head_dim

    def request_flops(self, isl: float, osl: float) -> float:
        """Of a whole request, 2 a weight and token plus attention. The last output token is sampled but never fed back."""
        tokens = max(isl + osl - 1, 0)
        return 2 * self.layer_weights * tokens + 2 * self.head_weights * osl + self.pair_flops * tokens * (tokens + 1) / 2


SIZES: Mapping[str, ModelSize] = {
    "gptj-6b": ModelSize(28, 4096, 16, 16, 256, 16384, 50400, gated=False),
    "llama-2-7b": ModelSize(32, 4096, 32, 32, 128, 11008, 32000),
    "llama-2-70b": ModelSize(80, 8192, 64, 8, 128, 28672, 32000),
    "llama-3.1-8b": ModelSize(32, 4096, 32, 8, 128, 14336, 128256),
    "llama-3.1-70b": ModelSize(80, 8192, 64, 8, 128, 28672, 128256),
    "llama-3.1-405b": ModelSize(126, 16384, 128, 8, 128, 53248, 128256),
    "mistral-7b": ModelSize(32, 4096, 32, 8, 128, 14336, 32768),
    "qwen2.5-7b": ModelSize(28, 3584, 28, 4, 128, 18944, 152064),
    "qwen3-8b": ModelSize(36, 4096, 32, 8, 128, 12288, 151936),
    "qwen3-32b": ModelSize(64, 5120, 64, 8, 128, 25600, 151936),
}


@cache
def canonical(name: str) -> str:
    """The model whose shapes `name` has, by its names on Hugging Face and in MLPerf: `meta-llama/Meta-Llama-3.1-8B-Instruct`, `llama3.1-8b`
    and `llama-3-8b` are `llama-3.1-8b`."""
    short = name.lower().rstrip("/").rpartition("/")[2].replace("_", "-")
    short = _LLAMA.sub(lambda found: f"llama-{'.'.join(filter(None, found.groups()))}", _NOT_OF_SHAPES.sub("", short))
    return SAME_SHAPE.get(short, short)


def size_of(name: str) -> ModelSize | None:
    return SIZES.get(canonical(name))
