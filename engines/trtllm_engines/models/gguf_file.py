"""GGUF, llama.cpp's format, in one file or several: configuration, tokenizer and tensors, which the `gguf` library dequantizes.

What an architecture's metadata means, and how its tensors are called and laid out, each model family says (`models/<family>/`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from trtllm_engines.documents import shown
from trtllm_engines.errors import EngineError
from trtllm_engines.models import families
from trtllm_engines.models.config import ModelConfig, check_sizes, readable, token_id, token_ids
from trtllm_engines.models.families import FloatArray
from trtllm_engines.models.fields import Fields, is_neutral
from trtllm_engines.models.gguf_header import check_frame

HARMLESS: Mapping[str, tuple[Any, ...] | None] = {
    "vocab_size": None,
    "tensor_data_layout": None,
    "pooling_type": None,
    "rope.scaling.original_context_length": None,
    "rope.scaling.finetuned": None,
    "rope.scaling.attn_factor": (1.0,),
    "rope.scale_linear": (1.0,),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
}
"""Metadata of an architecture, without its prefix, that a family's parser need not read: the values (None: all) with which it changes no
result. llama.cpp takes 0 of a scale or a cap for none."""
MOST_PARTS = 1024
SPLIT_EXAMPLE = "model-00001-of-00002.gguf"
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")
"""Names that llama.cpp's `gguf-split` gives."""
_CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of special tokens."""


class GgufFile:
    """One model in GGUF, memory-mapped: a file, or all parts of a split one, of which any may be named.

    Raises `EngineError` for a file that is damaged, a part that is missing, or an architecture we have no model for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        readers = [_reader(part) for part in parts_of(path)]
        self._reader = readers[0]
        self._tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
        if len(readers) > 1 and len(self._tensors) < sum(len(reader.tensors) for reader in readers):
            raise EngineError(f"{path}: parts of this split GGUF file hold a tensor twice; download it again")
        self.general = Fields(_Metadata(self._reader, "", path), f"{path}: GGUF metadata")
        count = self.general.integer("split.count", 1, least=1, most=MOST_PARTS)
        if count != len(readers):
            raise EngineError(
                f"{path} is part of a split GGUF file of {count} parts; keep their names, as in {SPLIT_EXAMPLE}, in one folder"
            )
        architecture = self.general.text("general.architecture")
        formats = families.gguf_formats()
        if architecture not in formats:
            raise EngineError(f"{path}: GGUF architecture {shown(architecture)} is not supported; supported are {', '.join(formats)}")
        self.architecture: str = architecture
        self.format = formats[architecture]

    def tensor(self, name: str) -> FloatArray | None:
        """fp32, dequantized, shape as Hugging Face has it; None when absent. Raises `EngineError` for integers and unknown codes."""
        stored = self._tensors.get(name)
        if stored is None:
            return None
        self.check_numbers(name)
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        return np.array(values, dtype=np.float32).reshape(self.shape(name))

    def stored(self, name: str) -> gguf.ReaderTensor | None:
        """As it lies in the file, in whatever it is stored as; None when absent."""
        return self._tensors.get(name)

    def names(self) -> Iterable[str]:
        return self._tensors

    def check_numbers(self, name: str) -> None:
        """Raises `EngineError` unless tensor `name` holds numbers, wide or quantized in a way that is known."""
        kind = self._tensors[name].tensor_type
        if not _are_numbers(kind):
            raise EngineError(f"weight {name} in {self.path} is stored as {kind.name}, which is read neither as numbers nor as their codes")

    def shape(self, name: str) -> tuple[int, ...] | None:
        stored = self._tensors.get(name)
        return None if stored is None else tuple(int(n) for n in reversed(stored.shape))

    @cached_property
    def config(self) -> ModelConfig:
        """Read from the metadata by the family. Raises `EngineError` for what is missing, and for what would change results unheeded."""
        prefix = f"{self.architecture}."
        source = f"{self.path}: GGUF metadata of {self.architecture}"
        fields = Fields(_Metadata(self._reader, prefix, self.path), source)
        with readable(fields, lambda key: f"{self.path}: metadata {prefix}{key} is missing"):
            config = self.format.parse(fields, self, self.path.stem)
        for key in fields.unread():
            neutral = HARMLESS.get(key, ())
            if neutral is not None and not is_neutral(fields[key], neutral):
                raise fields.refuse(key)
        bos, eos = token_id(self.tokenizer, "bos_token_id"), token_ids(self.tokenizer, "eos_token_id")
        config = replace(config, bos_token_id=bos, eos_token_ids=eos)
        check_sizes(config, source)
        return config

    @cached_property
    def tokenizer(self) -> Fields:
        """Metadata of `tokenizer.ggml`."""
        return Fields(_Metadata(self._reader, "tokenizer.ggml.", self.path), f"{self.path}: GGUF metadata of tokenizer.ggml")

    def special_tokens(self) -> list[str]:
        """Raises `EngineError` for a list of kinds that does not go with the tokens."""
        tokens, kinds = self.tokenizer.strings("tokens"), self.tokenizer.get("token_type") or ()
        if kinds and len(kinds) != len(tokens):
            raise EngineError(f"{self.tokenizer.source}: token_type has {len(kinds)} entries and tokens has {len(tokens)}")
        return [token for token, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL_TOKEN]


@cache
def _are_numbers(kind: gguf.GGMLQuantizationType) -> bool:
    """Whether the library knows what tensors of this type hold: it has the codes of most quantizers, and no integers."""
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


class _Metadata(Mapping[str, Any]):
    """The keys of a file that begin with `prefix`, without it; a value is decoded when it is asked for. Raises `EngineError`."""

    def __init__(self, reader: gguf.GGUFReader, prefix: str, path: Path) -> None:
        self._reader, self._prefix, self._path = reader, prefix, path

    def __getitem__(self, key: str) -> Any:
        field = self._reader.get_field(f"{self._prefix}{key}")
        if field is None:
            raise KeyError(key)
        try:
            return field.contents()
        except Exception as error:
            raise EngineError(f"{self._path}: metadata {self._prefix}{key} cannot be read ({error}); download the file again") from None

    def __iter__(self) -> Iterator[str]:
        names = map(str, self._reader.fields)
        return (name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def parts_of(path: Path) -> list[Path]:
    """Files of the model that `path` is, or is a part of, in order. Raises `EngineError` naming the part that is missing."""
    split = _SPLIT.fullmatch(path.name)
    if split is None:
        return [path]
    count = int(split["count"])
    if not 1 <= count <= MOST_PARTS:
        raise EngineError(f"{path} is one of {count} parts; a split GGUF file has at most {MOST_PARTS}")
    parts = [path.with_name(f"{split['stem']}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]
    missing = [part for part in parts if not part.is_file()]
    if missing:
        raise EngineError(f"{path} is one of {count} parts and {missing[0].name} is not beside it; download it too")
    return parts


def _reader(path: Path) -> gguf.GGUFReader:
    check_frame(path)
    try:
        return gguf.GGUFReader(path)
    except Exception as error:
        raise EngineError(f"{path} is not a whole GGUF file ({' '.join(str(error).split())[:200]}); download it again") from None
