"""Text to tokens and back, and the chat template, from a Hugging Face folder's `tokenizer.json` and `tokenizer_config.json`.

Detokenisation while streaming must not emit half a character: a token may hold part of a UTF-8 sequence, and some decoders join or trim
spaces by context. `Detokenizer` decodes a short window twice and emits what the newest token added, holding back while the text ends in
U+FFFD (the method of Hugging Face's text-generation-inference).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import tokenizers
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from trtllm_engines.checkpoints import chat_template
from trtllm_engines.checkpoints.chat_template import ChatTemplate
from trtllm_engines.documents import MOST_BYTES, checked, read_object_if_there, read_text, regular_file
from trtllm_engines.errors import EngineError

Message = Mapping[str, Any]
"""`role` and `content` (text, or a list of parts), and whatever else the model's template reads."""
DEFAULT, TOOL_USE = "default", "tool_use"
"""Names of templates where a model has several."""
_REASONING = ("reasoning_content", "thinking", "reasoning")
_Template = Annotated[str, Field(max_length=chat_template.MOST_CHARACTERS)]


class SpecialToken(BaseModel):
    """A string, or an object with the string in `content`."""

    model_config = ConfigDict(strict=True)

    content: Annotated[str, Field(max_length=1000)]


class NamedTemplate(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Annotated[str, Field(max_length=100)]
    template: _Template


def _as_object(token: Any) -> Any:
    return {"content": token} if isinstance(token, str) else token


def _as_templates(stated: Any) -> Any:
    return [{"name": DEFAULT, "template": stated}] if isinstance(stated, str) else stated


_Special = Annotated[SpecialToken | None, BeforeValidator(_as_object)]


class TokenizerConfig(BaseModel):
    """What is used of `tokenizer_config.json`."""

    model_config = ConfigDict(strict=True)

    bos_token: _Special = None
    eos_token: _Special = None
    unk_token: _Special = None
    sep_token: _Special = None
    pad_token: _Special = None
    cls_token: _Special = None
    mask_token: _Special = None
    chat_template: Annotated[list[NamedTemplate] | None, BeforeValidator(_as_templates)] = None

    def special_tokens(self) -> dict[str, SpecialToken]:
        """Those there are, by their fields' names."""
        tokens = {name: getattr(self, name) for name in type(self).model_fields if name.endswith("_token")}
        return {name: token for name, token in tokens.items() if token is not None}


class Tokenizer:
    """Raises `EngineError` when the folder's tokenizer cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / "tokenizer.json"
        try:
            if (size := regular_file(path).st_size) > MOST_BYTES:
                raise EngineError(f"{path} has {size / 2**20:,.0f} MiB; it must have at most {MOST_BYTES / 2**20:,.0f}")
            with _silent_panics():
                self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:
            if isinstance(error, EngineError) or not _is_library_error(error):
                raise
            raise EngineError(f"{path} cannot be read ({' '.join(str(error).split())[:200]})") from None

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if (lone := next((at for at, one in enumerate(text) if "\ud800" <= one <= "\udfff"), None)) is not None:
            raise EngineError(f"the text is not valid Unicode: character {lone} is half of a surrogate pair")
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        except BaseException as error:
            if not _is_library_error(error):
                raise
            raise EngineError(f"the text cannot be tokenized by {self._folder} ({' '.join(str(error).split())[:200]})") from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_id(self, token: str) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def detokenizer(self, skip_special_tokens: bool = True) -> Detokenizer:
        return Detokenizer(self, skip_special_tokens)

    @cached_property
    def _config(self) -> TokenizerConfig:
        path = self._folder / "tokenizer_config.json"
        return checked(TokenizerConfig, read_object_if_there(path), str(path))

    @cached_property
    def _templates(self) -> Mapping[str, str]:
        """By name; one without a name is `default`. A file of its own counts before a field of `tokenizer_config.json`."""
        try:
            return {DEFAULT: read_text(self._folder / "chat_template.jinja", chat_template.MOST_CHARACTERS)}
        except FileNotFoundError:
            return {one.name: one.template for one in self._config.chat_template or ()}

    @cached_property
    def _compiled(self) -> dict[str, ChatTemplate]:
        return {name: ChatTemplate(source, str(self._folder)) for name, source in self._templates.items()}

    @property
    def chat_template(self) -> str | None:
        """A file of its own, or a field of `tokenizer_config.json` (a string, or named ones of which `default` counts)."""
        return self._templates.get(DEFAULT)

    def render_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as the model was trained to see it, which is as transformers' `apply_chat_template` renders it.

        `tools` are JSON schemas; `variables` are the template's own, such as `enable_thinking`. Raises `EngineError` when there is no
        template, when it refuses, and when it takes too long or too much.
        """
        name = TOOL_USE if tools is not None and TOOL_USE in self._templates else DEFAULT
        if name not in self._templates:
            named = ", ".join(self._templates)[:200]
            known = f"only templates named {named}" if named else "no chat template"
            raise EngineError(f"{self._folder} has {known}; give a plain prompt instead of messages")
        special = {field: token.content for field, token in self._config.special_tokens().items()}
        return self._compiled[name].render(
            **{
                **special,
                **(variables or {}),
                "messages": [_message(message) for message in messages],
                "tools": None if tools is None else list(tools),
                "documents": None if documents is None else list(documents),
                "add_generation_prompt": add_generation_prompt,
            }
        )

    def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Tokens of `render_chat`. Raises `EngineError` as it does, and for a template that makes nothing of the messages."""
        text = self.render_chat(messages, add_generation_prompt, tools=tools, variables=variables)
        if not text.strip():
            raise EngineError(f"the chat template of {self._folder} gives no text for these messages; give a plain prompt instead")
        return self.encode(text, add_special_tokens=False)


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


def _is_library_error(error: BaseException) -> bool:
    """Whether tokenizers raised it: its panics are no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextmanager
def _silent_panics() -> Iterator[None]:
    """tokenizers is Rust, whose panics print to the process's standard error before Python hears of them: lines that say what it was."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _message(message: Message) -> dict[str, Any]:
    """As transformers hands it on: absent where null, and reasoning under every name that templates know it by."""
    given = {name: value for name, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}
