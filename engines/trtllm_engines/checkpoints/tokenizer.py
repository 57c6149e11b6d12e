"""Text to tokens and back, and the chat template, from a Hugging Face folder's `tokenizer.json` and `tokenizer_config.json`.

Detokenisation while streaming must not emit half a character: a token may hold part of a UTF-8 sequence, and some decoders join or trim
spaces by context. `Detokenizer` decodes a short window twice and emits what the newest token added, holding back while the text ends in
U+FFFD (the method of Hugging Face's text-generation-inference).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from trtllm_engines.errors import EngineError

Message = Mapping[str, str]


class Tokenizer:
    """Raises `EngineError` when the folder's tokenizer cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:
            raise EngineError(f"{folder / 'tokenizer.json'} cannot be read ({error})") from None

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_id(self, token: str) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def detokenizer(self, skip_special_tokens: bool = True) -> Detokenizer:
        return Detokenizer(self, skip_special_tokens)

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        path = self._folder / "tokenizer_config.json"
        try:
            config: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        except ValueError as error:
            raise EngineError(f"{path} cannot be read as JSON ({error})") from None
        return config

    @cached_property
    def chat_template(self) -> str | None:
        """A file of its own, or a field of `tokenizer_config.json` (a string, or named ones of which `default` counts)."""
        file = self._folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text()
        template = self._config.get("chat_template")
        if isinstance(template, list):
            return next((t["template"] for t in template if t["name"] == "default"), None)
        return template

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as the model was trained to see it. Raises `EngineError` when there is no template or it refuses."""
        if self.chat_template is None:
            raise EngineError(f"{self._folder} has no chat template; give a plain prompt instead of messages")
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        special = {name: _text(self._config.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        try:
            template = environment.from_string(self.chat_template)
            return template.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **special)
        except TemplateError as error:
            raise EngineError(f"the chat template of {self._folder} refuses these messages ({error})") from None

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        return self.encode(self.render_chat(messages, add_generation_prompt), add_special_tokens=False)


class Detokenizer:
    """Text of a growing token sequence, in pieces that are always whole characters. Pieces and `flush` add up to `decode` of it all."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._emitted_from = 0
        self._emitted_to = 0

    def add(self, ids: Sequence[int]) -> str:
        """The text these tokens complete, perhaps none yet."""
        self._ids.extend(ids)
        before, now = self._window()
        if now.endswith("�") or len(now) <= len(before):
            return ""
        self._emitted_from, self._emitted_to = self._emitted_to, len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """What was held back, once no more tokens will come."""
        before, now = self._window()
        self._emitted_from = self._emitted_to = len(self._ids)
        return now[len(before) :]

    def _window(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        before = decode(self._ids[self._emitted_from : self._emitted_to], self._skip)
        return before, decode(self._ids[self._emitted_from :], self._skip)


def _text(token: Any) -> str:
    """Special tokens are strings, or objects with the string in `content`."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
