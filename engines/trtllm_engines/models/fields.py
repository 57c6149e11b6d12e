"""What a model states about itself (`config.json`, GGUF metadata), as a family's parser reads it: every key that is read is remembered.

So what nobody read is known once parsing is done, and a statement that would change the model's results is refused instead of ignored. A
`config.json` holds any number of keys that change nothing (training, tokenizers, tools), so only keys of the kinds in `ALTERING` are
refused there. GGUF's metadata of an architecture is all hyperparameters, so there every key is refused that is neither read nor listed as
harmless (`gguf_file`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trtllm_engines.documents import is_finite, shown
from trtllm_engines.errors import EngineError

MOST = 2**40
"""Largest number that any size is read as."""

ALTERING: tuple[tuple[str, tuple[Any, ...]], ...] = (
    (r"soft_?cap", (0, False)),
    (r"expert|(^|_)moe(_|$)", (0, False)),
    (r"^attention_multiplier$|^query_pre_attn_scalar$", ()),
    (r"^(?!.*(dim|size|ffn)_).*multiplier", (1,)),
    (r"(^|_)(logits?|embed\w*|emb|att(entio)?n|resid\w*|query|qk|softmax|depth|width|output)_?(scale|scaling|scalar)(_factor)?$", (1,)),
    (r"^scale_attn_weights$", (1, True)),
    (r"^scale_(emb|depth|width|attn|resid|logit|query)", (1, False)),
    (r"^mup_|^use_mup", (1, False)),
    (r"clip_qkv|qkv_clip", ()),
    (r"alibi|bidirectional|prefix_lm|cross_attention|att(entio)?n_sink|temperature_tuning", (0, False)),
    (r"^hidden_activation$", ("silu",)),
    (r"^is_causal$", (True,)),
    (r"sliding_window|(attention|local)_window|window_size|attention_chunk_size", (0, False)),
    (r"^layer_types$|^attention_types$|^no_rope_layer", (0, False)),
    (r"^rope_parameters$", ({"rope_type": "default"}, {"rope_type": "default", "rope_theta": 10000})),
    (r"^rope_(scaling|local_base_freq)$|^(global|local)_rope_theta$|^rope_interleaved?$", (False,)),
    (r"^rope_theta$|^rotary_emb_base$", (10000,)),
    (r"^(partial_rotary_factor|rotary_pct)$", (1,)),
    (r"parallel_(att(entio)?n|residual)", (False,)),
    (r"(^|_)qk_(layer_?)?norm$", (False,)),
    (r"(^|_)bias(_|$)", (False,)),
    (r"kv_shared_layers|share_kv|cross_layer", (0, False)),
)
"""(pattern of `config.json` keys that change what a model computes, values with which they do not). Null and empty values never do."""


class Fields(Mapping[str, Any]):
    """`values` by key; `source` says where they are from in errors, such as `tiny: config.json`."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.source = source
        self._values = values
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def integer(self, key: str, default: int | None = None, *, least: int = 0, most: int = MOST) -> int:
        """A whole number within bounds; `default` stands for one absent or null.

        Raises KeyError where there is neither a value nor a default, `EngineError` for anything else.
        """
        value: Any = self[key] if default is None else self.get(key)
        if value is None and default is not None:
            return default
        if not is_finite(value) or value != int(value):
            raise self.wrong(key, "a whole number")
        number = int(value)
        if not least <= number <= most:
            raise self.wrong(key, f"at least {least}" if number < least else f"at most {most}")
        return number

    def number(self, key: str, default: float | None = None, *, most: float = MOST) -> float:
        """A finite number above 0, `most` at most; `default` stands for one absent or null. Raises as `integer` does."""
        value: Any = self[key] if default is None else self.get(key)
        if value is None and default is not None:
            return default
        if not is_finite(value):
            raise self.wrong(key, "a finite number")
        if not 0 < value <= most:
            raise self.wrong(key, "more than 0" if value <= 0 else f"at most {most:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false where it is absent or null. Raises `EngineError` for anything else, such as "false"."""
        value = self.get(key)
        if not isinstance(value, bool | None):
            raise self.wrong(key, "true or false")
        return bool(value)

    def text(self, key: str, default: str = "") -> str:
        """A string; `default` stands for one absent or null. Raises `EngineError` for anything else."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "text")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty where it is absent or null. Raises `EngineError` for anything else."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise self.wrong(key, "a list of names")
        return tuple(value)

    def section(self, key: str) -> Fields:
        """The object under `key`; empty where it is absent or null. Raises `EngineError` for anything else."""
        value = self.get(key)
        if value is None:
            return Fields({}, f"{self.source}: {key}")
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return Fields(value, f"{self.source}: {key}")

    def wrong(self, key: str, expected: str) -> EngineError:
        """What to raise for a value that is not as `expected`."""
        return EngineError(f"{self.source}: {key} is {shown(self._values.get(key))}; it must be {expected}")

    def only(self, key: str, supported: str) -> None:
        """Raises `EngineError` when `key` is there with another value than the one supported."""
        value = self.get(key, supported)
        if value != supported:
            raise EngineError(f"{self.source}: {key} {shown(value)} is not supported; only {supported!r} is")

    def passed_over(self, key: str) -> None:
        """Counts `key` as read: whatever its value, this model's results do not depend on it."""
        self._read.add(key)

    def unread(self) -> Iterable[str]:
        return [key for key in self._values if key not in self._read]

    def refuse(self, key: str) -> EngineError:
        """What to raise for a statement that nothing here carries out."""
        quoted = json.dumps(self._values[key], default=str)
        quoted = quoted if len(quoted) <= 60 else f"{quoted[:60]}..."
        return EngineError(f"{self.source}: {key} is {quoted}, which changes the model's results and is not supported")

    def check_unread(self) -> None:
        """Raises `EngineError` for a key that was not read, is of a kind in `ALTERING`, and has a value that changes results."""
        for key in self.unread():
            neutral = next((values for pattern, values in ALTERING if re.search(pattern, key)), None)
            if neutral is not None and not is_neutral(self._values[key], neutral):
                raise self.refuse(key)


def is_neutral(value: Any, neutral: Iterable[Any]) -> bool:
    """Whether `value` is null, empty or one of `neutral`; true and 1 are two values, and so are false and 0."""
    if value is None or value in ([], {}, ""):
        return True
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)
