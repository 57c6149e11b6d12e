"""Tuned tile configurations: data in one JSON file per GPU, never branches in code.

    {"gpu": "NVIDIA H100 80GB HBM3", "arch": "sm_90", "tactics": {"linear bf16[:,4096] bf16[:,4096] -> bf16[:,6144]": {"gemv_rows": 2}}}

The key is built by one rule: the op; for every numeric tensor, in and out, its dtype and the sizes of one row; every integer attribute but
the layer. What a step or a profile decides (tokens, pages, the length of a table) stays open and is written `:`, so an engine of any
profile and any layer finds the entry. Integer tensors (indices) are left out. An op that is not recorded runs with the default its lowering
states; only what differs from the default is recorded.

A build takes the entries of the GPU that it is for and, of ops and shapes that have none there, those of its architecture's GPU
(`GPU_OF_ARCH`): the H200 is an H100 with faster memory, so what was found on one is a start for the other. An entry counts as a whole. So
`merge` copies into a new entry what the architecture's has of tunables that were not measured, and keeps an empty one where the defaults
won against it.

The files live beside the source (`kernels/tactics/`) and, in an installed wheel, inside the package. Only `merge` writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import Attr, TensorSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.files import write_whole

GPU_OF_ARCH: Mapping[str, str] = {"sm_80": "a100", "sm_89": "l40s", "sm_90": "h100"}
Tactic = Mapping[str, int]
_HERE = Path(__file__).resolve().parent
_OPEN = ("layer", "columns")
"""Attributes that a layer or a profile decides."""
_CACHE_DIMS = 6
"""Rank of the KV cache; its layers, pages and key-value pair do not affect a tile."""


def folder() -> Path:
    installed = _HERE / "tactics"
    return installed if installed.is_dir() else _HERE.parent / "tactics"


def short_name(gpu: str) -> str:
    """`h200` of `NVIDIA H200`: the first word of a GPU's name with a digit in it."""
    words = [word for word in re.split(r"[^a-z0-9]+", gpu.lower()) if word]
    return next((word for word in words if any(map(str.isdigit, word))), "-".join(words))


def own_file(gpu: str) -> Path:
    """The file of one GPU, by its driver's name or its short name, whether it was tuned or not."""
    return folder() / f"{short_name(gpu)}.json"


def _file_of_arch(arch: str) -> Path:
    return folder() / f"{GPU_OF_ARCH.get(arch, arch)}.json"


def files_for(arch: str, gpu: str = "") -> tuple[Path, ...]:
    """The files that a build for `arch` reads, the first that has an entry counts. `gpu`: the GPU it is for, whose own file comes first
    where there is one of that architecture. Raises `KernelError` for a file that cannot be read."""
    own, general = own_file(gpu), _file_of_arch(arch)
    mine = (own,) if gpu and own != general and own.is_file() and _load(own)[0] == arch else ()
    return (*mine, *((general,) if general.is_file() else ()))


def in_use(arch: str, gpu: str = "") -> str:
    """Short name of the GPU whose tactics a build takes first; "" where it has defaults alone. Raises as `files_for`."""
    return next((file.stem for file in files_for(arch, gpu)), "")


def key(op: str, inputs: Sequence[TensorSpec | None], outputs: Sequence[TensorSpec], attrs: Mapping[str, Attr]) -> str:
    """Name of the class of shapes that a tactic is for."""
    names, untuned = OP_SPECS[op].tensors, OP_SPECS[op].untuned
    read_from = [_tensor(spec) for name, spec in zip(names, inputs, strict=False) if spec and name not in untuned and _is_numeric(spec)]
    written_to = [_tensor(spec) for spec in outputs if _is_numeric(spec)]
    sizes = [f"{name}={int(value)}" for name, value in sorted(attrs.items()) if isinstance(value, int) and name not in _OPEN]
    return " ".join([op, *read_from, *(["->", *written_to] if written_to else []), *sizes])


def _is_numeric(spec: TensorSpec) -> bool:
    return spec.dtype not in ("int32", "int64", "uint8")


def _tensor(spec: TensorSpec) -> str:
    if len(spec.shape) == 1:
        return f"{spec.dtype}[{spec.shape[0]}]"
    row = spec.shape[3 if len(spec.shape) == _CACHE_DIMS else 1 :]
    return f"{spec.dtype}[:,{','.join(map(str, row))}]"


@lru_cache(maxsize=16)
def _load(path: Path) -> tuple[str, Mapping[str, Tactic]]:
    """(architecture, tactics)"""
    content, table = _parsed(path)
    return str(content.get("arch", "")), table


def _parsed(path: Path) -> tuple[dict[str, Any], dict[str, Tactic]]:
    try:
        content: Any = json.loads(path.read_text())
        table = content["tactics"]
        return content, {str(name): {str(k): int(v) for k, v in values.items()} for name, values in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelError(f"tactics file {path} is not readable ({error}); delete it or run trtllm-bench tune again") from error


def recorded(
    arch: str, op: str, inputs: Sequence[TensorSpec | None], outputs: Sequence[TensorSpec], attrs: Mapping[str, Attr], gpu: str = ""
) -> Tactic | None:
    """The tactic recorded for `gpu`, or for the GPU that stands for `arch`; or None."""
    tables = [table for file in files_for(arch, gpu) if (table := read(file))]
    name = key(op, inputs, outputs, attrs) if tables else ""
    return next((table[name] for table in tables if name in table), None)


def read_for(arch: str, gpu: str = "") -> Mapping[str, Tactic]:
    """Everything recorded that a build takes, by key. Raises as `files_for`."""
    merged: dict[str, Tactic] = {}
    for file in reversed(files_for(arch, gpu)):
        merged |= read(file)
    return merged


def read(path: Path) -> Mapping[str, Tactic]:
    """Everything a file records; empty if the file does not exist. Raises `KernelError` for a file that cannot be read."""
    return _load(path)[1] if path.is_file() else {}


def merge(path: Path, gpu: str, arch: str, faster: Mapping[str, Tactic], measured: Mapping[str, set[str]]) -> None:
    """Writes what tuning found into `path`, whole or not at all. Keeps what it holds of other ops and of tunables that are not in
    `measured`.

    `faster`: values that beat the default, by key. `measured`: the tunables that were decided, by key; one that is not in `faster` goes
    back to its default, whatever the file of the architecture's GPU says. Raises `KernelError` for a file that cannot be read or is of
    another GPU, whose times do not apply to this one.
    """
    tactics: dict[str, Tactic] = {}
    if path.is_file():
        content, tactics = _parsed(path)
        if content.get("gpu") != gpu:
            raise KernelError(f"{path} was measured on {content.get('gpu')} and this is {gpu}; choose another file with --out")
    of_arch = _file_of_arch(arch)
    general = {} if path.resolve() == of_arch.resolve() else read(of_arch)
    for name, decided in measured.items():
        before = tactics.get(name, general.get(name, {}))
        kept = {tunable: value for tunable, value in before.items() if tunable not in decided}
        tactics[name] = dict(sorted({**kept, **faster.get(name, {})}.items()))
    ordered = {name: tactics[name] for name in sorted(tactics) if tactics[name] or name in general}
    write_whole(path, (json.dumps({"gpu": gpu, "arch": arch, "tactics": ordered}, indent=1) + "\n").encode())
    _load.cache_clear()
