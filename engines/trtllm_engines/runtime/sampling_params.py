"""What a caller may ask of one request: when it ends and how its tokens are chosen.

Validated once, here, so that nothing downstream checks again. The default is greedy (`temperature=0`): a benchmark must give the same
tokens twice. Order of the filters and their definitions: `runtime/sampler.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trtllm_engines.errors import EngineError

MAX_LOGPROBS = 20


class SamplingError(EngineError):
    """A sampling parameter is out of range."""


@dataclass(frozen=True)
class SamplingParams:
    """`top_k=0`, `top_p=1`, `min_p=0`, `repetition_penalty=1` and zero penalties switch the respective filter off.

    `min_tokens` forbids end-of-sequence and stop tokens until so many were generated; `ignore_eos` generates exactly `max_tokens`
    unless another stop applies; `logprobs=n` returns the chosen token's log-probability and the n most likely ones', of the raw
    distribution. `seed=None` draws a seed per request; with a seed the tokens depend on (seed, position) alone, not on the batch
    (but for near ties: where a neighbour asks for filters, the step is sampled by other kernels, whose logarithm differs in its last bits).
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(int(token) for token in self.stop_token_ids))
        _check(self.max_tokens >= 1, f"max_tokens must be at least 1, not {self.max_tokens}")
        _check(0 <= self.min_tokens <= self.max_tokens, f"min_tokens must lie in 0..max_tokens ({self.max_tokens}), not {self.min_tokens}")
        _check(_finite(self.temperature) and self.temperature >= 0, f"temperature must be 0 (greedy) or more, not {self.temperature}")
        _check(self.top_k >= 0, f"top_k must be 0 (off) or more, not {self.top_k}")
        _check(0 < self.top_p <= 1, f"top_p must lie in (0, 1], not {self.top_p}")
        _check(0 <= self.min_p <= 1, f"min_p must lie in [0, 1], not {self.min_p}")
        _check(
            _finite(self.repetition_penalty) and self.repetition_penalty > 0,
            f"repetition_penalty must be above 0 (1 is off), not {self.repetition_penalty}",
        )
        _check(-2 <= self.presence_penalty <= 2, f"presence_penalty must lie in [-2, 2], not {self.presence_penalty}")
        _check(-2 <= self.frequency_penalty <= 2, f"frequency_penalty must lie in [-2, 2], not {self.frequency_penalty}")
        _check(self.seed is None or 0 <= self.seed < 2**63, f"seed must lie in 0..2^63-1, not {self.seed}")
        _check(all(self.stop), "a stop string must not be empty")
        _check(all(token >= 0 for token in self.stop_token_ids), "stop_token_ids must not be negative")
        _check(self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, f"logprobs must lie in 0..{MAX_LOGPROBS}, not {self.logprobs}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _check(ok: bool, sentence: str) -> None:
    if not ok:
        raise SamplingError(f"invalid sampling parameters: {sentence}")
