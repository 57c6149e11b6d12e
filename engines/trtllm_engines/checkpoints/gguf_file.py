"""GGUF, llama.cpp's format: configuration, tokenizer and (quantized) weights, in one file or several. The `gguf` library dequantizes.

What an architecture's metadata means, and how its tensors are called and laid out, each model family says (`models/<family>/`).
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from trtllm_engines.checkpoints import check_finite, check_shape
from trtllm_engines.checkpoints.formats.gguf import Blocks, common, kind_of, unpacked
from trtllm_engines.checkpoints.gguf_header import check_frame
from trtllm_engines.checkpoints.stored_codes import SCALE_DTYPES, StoredCodes
from trtllm_engines.documents import shown
from trtllm_engines.errors import EngineError
from trtllm_engines.models import families
from trtllm_engines.models.config import ModelConfig, check_sizes, readable, token_id, token_ids
from trtllm_engines.models.families import FloatArray
from trtllm_engines.models.fields import Fields, is_neutral
from trtllm_engines.quantization.precision import kv_scheme
from trtllm_engines.quantization.registry import HEAD, definition, scheme_for
from trtllm_engines.quantization.scheme import Codes, Inputs, ModuleRule, QuantPlan, QuantScheme

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
        shape = tuple(int(n) for n in reversed(stored.shape))
        with np.errstate(all="ignore"):
            if (blocks := self.blocks(name)) is not None:
                return blocks.values()
            values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        return np.array(values, dtype=np.float32).reshape(shape)

    def kind(self, name: str) -> Codes | None:
        """What the codes of matrix `name` are; None for one that is wide, or in codes that are read as wide numbers only."""
        stored = self._tensors.get(name)
        return None if stored is None or len(stored.shape) != 2 else kind_of(stored.tensor_type)

    def blocks(self, name: str) -> Blocks | None:
        """The codes of matrix `name`, where `kind` says that it has some."""
        stored = self._tensors[name]
        return None if self.kind(name) is None else unpacked(np.asarray(stored.data), stored.tensor_type)

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


class GgufWeights:
    """A GGUF file as a source of weights."""

    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "gguf", "path": str(self._file.path)}

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        stored = stored_name(name, self._file.format.names)
        found = None if stored is None else self._file.shape(stored)
        if found is None:
            raise EngineError(f"weight {name} ({stored} in GGUF) is missing from {self._file.path} (expected shape {list(shape)})")
        check_shape(name, shape, found, str(self._file.path))
        self._file.check_numbers(str(stored))

    def unread(self, read: Collection[str]) -> Iterator[str]:
        stored = {stored_name(name, self._file.format.names) for name in read}
        blocks = tuple(f"blk.{layer}." for layer in range(self._file.config.num_layers))
        of_blocks = (name for name in self._file.names() if name.startswith(blocks) and name.endswith((".weight", ".bias")))
        return (name for name in of_blocks if name not in stored)

    def codes(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        return None

    def stored(self, name: str, shape: tuple[int, ...], kind: Codes, device: torch.device) -> StoredCodes | None:
        self.check(name, shape)
        stored_as = str(stored_name(name, self._file.format.names))
        own = self._file.kind(stored_as)
        if own is None:
            return None

        @cache
        def blocks() -> Blocks:
            read = self._file.blocks(stored_as)
            assert read is not None
            return read

        def converted(values: Any) -> Tensor:
            """Rows in the model's order."""
            return torch.from_numpy(np.ascontiguousarray(self._file.format.convert(name, values, self._file.config)))

        def scale() -> Tensor:
            values = blocks().zero_and_scale()[1] if own.zero_point else blocks().scale
            return converted(values).to(SCALE_DTYPES[own.scale_dtype])

        rows, columns = shape
        codes = StoredCodes(
            name,
            own,
            (rows, columns),
            lambda: converted(blocks().kept_codes()),
            scale,
            (lambda: converted(blocks().zero_and_scale()[0]).float()) if own.zero_point else None,
        ).on(device)
        return codes.as_kind(kind) if (own.dtype, kind.dtype) == ("int4", "int8") and codes.gives(kind) else codes

    def largest(self, name: str, shape: tuple[int, ...]) -> None:
        return None

    def kv_scale(self, name: str) -> float:
        return 1.0

    def input_scale(self, name: str) -> float:
        raise EngineError("a GGUF file has no activation scales, which an fp8 engine needs; calibrate first: trtllm-bench quantize")

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        self.check(name, shape)
        values = self._file.tensor(str(stored_name(name, self._file.format.names)))
        assert values is not None
        check_finite(name, torch.from_numpy(values), dtype, str(self._file.path))
        values = self._file.format.convert(name, values, self._file.config)
        return torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype)


def gguf_plan(path: Path) -> QuantPlan | None:
    """The plan that keeps every product's codes as they are stored; None for a file of wide numbers.

    It goes by the scheme that most weights have. Query, key and value projections, which run as one GEMM, take codes that all of theirs
    are exactly. Raises `EngineError` as `GgufFile` does.
    """
    file = GgufFile(path)
    kinds: dict[str, Codes] = {}
    elements: Counter[str] = Counter()
    for module, layer in itertools.product(file.format.names, range(file.config.num_layers)):
        if "{n}" in module:
            name = module.replace("{n}", str(layer))
            stored = str(stored_name(f"{name}.weight", file.format.names))
            if (kind := file.kind(stored)) is not None and (scheme := scheme_for(kind, Inputs())) is not None:
                kinds[name] = kind
                elements[scheme.name] += math.prod(file.shape(stored) or ())
    if not kinds:
        return None
    chosen = definition(elements.most_common(1)[0][0])
    for name in [name for name in kinds if name.endswith(".q_proj")]:
        parts = [f"{name.removesuffix('q_proj')}{part}_proj" for part in "qkv"]
        if all(part in kinds for part in parts):
            kinds.update(dict.fromkeys(parts, common([kinds[part] for part in parts])))
    modules: dict[Codes, list[str]] = {}
    for name, kind in kinds.items():
        modules.setdefault(kind, []).append(re.escape(name))
    named = {kind: scheme.name for kind in modules if (scheme := scheme_for(kind, Inputs())) is not None}
    rules = tuple(ModuleRule("|".join(modules[kind]), QuantScheme(name, kind)) for kind, name in named.items())
    wide = ModuleRule(HEAD, definition(chosen.wide_dtype).scheme)
    return QuantPlan(chosen.name, chosen.wide_dtype, kv_scheme(chosen.name, "auto"), (wide, *rules), path.name)


def stored_name(name: str, names: Mapping[str, str]) -> str | None:
    """llama.cpp's name of weight `name` (`model.layers.3.mlp.up_proj.weight`), by a family's `GgufFormat.names`; None when it has none."""
    module, _, kind = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    number = "" if layer is None else layer.group(1)
    stored = names.get(module if layer is None else f"{module[: layer.start(1)]}{{n}}{module[layer.end(1) :]}")
    return None if stored is None or kind not in ("weight", "bias") else f"{stored.replace('{n}', number)}.{kind}"
