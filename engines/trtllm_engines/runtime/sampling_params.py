"""What a caller may ask of one request: when it ends and how its tokens are chosen.

Validated once, here, so that nothing downstream checks again. The default is greedy (`temperature=0`): a benchmark must give the same
tokens twice. Order of the filters and their definitions: `runtime/sampler.py`. What other engines' parameters are called here, or that
they are not built, is told by name (`ELSEWHERE`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Self

from trtllm_engines.errors import EngineError

MAX_LOGPROBS = 20
MAX_ANSWERS = 128
MAX_BIASED = 200
"""Tokens with a bias."""
MAX_BIAS = 100.0
MAX_BAD_WORDS, MAX_BAD_TOKENS = 64, 128
"""Bad words of a request, and their tokens together."""
ELSEWHERE = {
    "bad": "use bad_words",
    "bad_token_ids": "use bad_words, which takes token ids too",
    "best_of": "is not built; ask for n answers with logprobs and choose among them",
    "embedding_bias": "use logit_bias",
    "early_stopping": "is not built, since beam search is not",
    "end_id": "use stop_token_ids",
    "guided_decoding": "is not built",
    "guided_decoding_backend": "is not built",
    "length_penalty": "is not built, since beam search is not",
    "logits_processor": "is not built; logit_bias and bad_words change logits",
    "logits_processors": "is not built; logit_bias and bad_words change logits",
    "max_completion_tokens": "use max_tokens",
    "max_new_tokens": "use max_tokens",
    "no_repeat_ngram_size": "is not built; repetition_penalty and frequency_penalty are",
    "prompt_logprobs": "is not built; logprobs are those of generated tokens",
    "random_seed": "use seed",
    "structured_outputs": "is not built",
    "use_beam_search": "is not built; ask for n answers at a temperature",
}
"""Parameters of other engines (TensorRT-LLM, vLLM, OpenAI) that are not ours, and what to do instead."""
BadWord = str | Sequence[int]


class SamplingError(EngineError):
    """A sampling parameter is out of range."""


@dataclass(frozen=True)
class SamplingParams:
    """`top_k=0`, `top_p=1`, `min_p=0`, `repetition_penalty=1` and zero penalties switch the respective filter off.

    `min_tokens` forbids end-of-sequence and stop tokens until so many were generated; `ignore_eos` generates exactly `max_tokens`
    unless another stop applies; `logprobs=n` returns the chosen token's log-probability and the n most likely ones', of the raw
    distribution. `seed=None` draws a seed per request; with a seed the tokens depend on (seed, position) alone, not on the batch
    (but for near ties: where a neighbour asks for filters, the step is sampled by other kernels, whose logarithm differs in its last bits).

    `n` answers are drawn for one prompt, with seeds `seed`, `seed + 1`, ...; `logit_bias` (token id to a number in [-100, 100]) is added to
    the logits before all else; `bad_words` (texts, or token ids) are never completed: the last token of one is forbidden where the tokens
    before it have just been generated or stand at the prompt's end.
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
    n: int = 1
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    """Kept as pairs in order of token ids."""
    bad_words: tuple[BadWord, ...] = ()

    def __new__(cls, *args: Any, **given: Any) -> Self:
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                what = ELSEWHERE.get(name, f"is unknown; known are {', '.join(known)}")
                raise SamplingError(f"invalid sampling parameters: {name} {'' if what.startswith('is ') else 'is another name: '}{what}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_kind(field.name, str(field.type), getattr(self, field.name))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "bad_words", _bad_words(self.bad_words))
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
        _check(1 <= self.n <= MAX_ANSWERS, f"n must lie in 1..{MAX_ANSWERS}, not {self.n}")
        _check(self.n == 1 or self.temperature > 0, f"n is {self.n}, and greedy answers would all be the same; give a temperature above 0")
        _check(self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, f"logprobs must lie in 0..{MAX_LOGPROBS}, not {self.logprobs}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def _check_kind(name: str, kind: str, value: Any) -> None:
    """Whole numbers, numbers and switches are what they should be; the others are read field by field."""
    if value is None and kind.endswith("| None"):
        return
    kind = kind.removesuffix(" | None")
    expected = {"int": (Integral, "a whole number"), "float": (Real, "a number"), "bool": (bool, "True or False")}.get(kind)
    if expected is not None:
        right = isinstance(value, expected[0]) and (kind == "bool" or not isinstance(value, bool))
        _check(right, f"{name} must be {expected[1]}, not {value!r}")


def _biases(given: Any) -> tuple[tuple[int, float], ...]:
    """Pairs in order of token ids. Raises `SamplingError`."""
    sentence = f"logit_bias must map up to {MAX_BIASED} token ids to numbers in [-{MAX_BIAS:g}, {MAX_BIAS:g}]"
    try:
        pairs = tuple(sorted((int(token), float(bias)) for token, bias in (given.items() if isinstance(given, Mapping) else given)))
    except (TypeError, ValueError):
        raise SamplingError(f"invalid sampling parameters: {sentence}, not {str(given)[:80]}") from None
    for token, bias in pairs:
        _check(token >= 0 and abs(bias) <= MAX_BIAS, f"{sentence}, not {token} to {bias:g}")
    _check(len(pairs) <= MAX_BIASED, f"{sentence}, not {len(pairs)}")
    _check(len({token for token, _ in pairs}) == len(pairs), f"{sentence}, each once")
    return pairs


def _bad_words(given: Any) -> tuple[BadWord, ...]:
    """Texts as they are, token ids as tuples. Raises `SamplingError`."""
    sentence = "bad_words must be texts, or lists of token ids, none of them empty"
    words: list[BadWord] = []
    for word in [given] if isinstance(given, str) else given if isinstance(given, Sequence) else [given]:
        _check(isinstance(word, Sequence) and len(word) > 0, f"{sentence}, not {word!r}")
        if isinstance(word, str):
            words.append(word)
            continue
        _check(all(isinstance(token, Integral) and int(token) >= 0 for token in word), f"{sentence}, not {word!r}")
        words.append(tuple(int(token) for token in word))
    tokens = sum(1 if isinstance(word, str) else len(word) for word in words)
    _check(
        len(words) <= MAX_BAD_WORDS and tokens <= MAX_BAD_TOKENS,
        f"at most {MAX_BAD_WORDS} bad_words of {MAX_BAD_TOKENS} tokens together are taken, not {len(words)} of {tokens}",
    )
    return tuple(words)


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _check(ok: bool, sentence: str) -> None:
    if not ok:
        raise SamplingError(f"invalid sampling parameters: {sentence}")
