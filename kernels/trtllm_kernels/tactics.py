"""Tuned tile configurations: data, one JSON file a GPU, never branches in code.

    {"gpu": "NVIDIA H100 80GB HBM3", "arch": "sm_90", "tactics": {"paged_attention bf16 num_heads=32 ...": {"decode_warps": 1}}}

A tactic's key is the op, the dtype of its first floating tensor, and the sizes that decide its tiles. What is not recorded runs with the
lowering's stated default. Files live beside the source (`kernels/tactics/`) and, in an installed wheel, inside the package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from trtllm_kernels.errors import KernelError
from trtllm_kernels.types import Attr, TensorSpec

GPU_OF_ARCH: Mapping[str, str] = {"sm_80": "a100", "sm_89": "l40s", "sm_90": "h100"}
_HERE = Path(__file__).resolve().parent
_SIZES = ("num_heads", "num_kv_heads", "head_dim", "interleaved", "page_size")


def folder() -> Path:
    installed = _HERE / "tactics"
    return installed if installed.is_dir() else _HERE.parent / "tactics"


def key(op: str, inputs: Sequence[TensorSpec | None], attrs: Mapping[str, Attr]) -> str:
    """Name of the shape class a tactic is for."""
    present = [spec for spec in inputs if spec is not None]
    dtype = next((spec.dtype for spec in present if spec.dtype not in ("int32", "uint8")), "int32")
    sizes = [f"{name}={int(value)}" for name in _SIZES if isinstance(value := attrs.get(name), int)]
    if op == "paged_attention" and (cache := inputs[1]) is not None:
        sizes += [f"head_dim={cache.shape[5]}", f"page_size={cache.shape[4]}"]
    elif not sizes and present:
        sizes = [f"n={present[0].shape[-1]}"]
    return " ".join([op, dtype, *sizes])


@lru_cache(maxsize=16)
def _load(path: Path) -> Mapping[str, Mapping[str, int]]:
    try:
        content: Any = json.loads(path.read_text())
        table = content["tactics"]
        return {str(name): {str(k): int(v) for k, v in values.items()} for name, values in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelError(f"tactics file {path} is not readable ({error}); delete it or tune again") from error


def recorded(arch: str, op: str, inputs: Sequence[TensorSpec | None], attrs: Mapping[str, Attr]) -> Mapping[str, int] | None:
    """The tactic recorded for the GPU that stands for `arch`, or None."""
    path = folder() / f"{GPU_OF_ARCH.get(arch, arch)}.json"
    return _load(path).get(key(op, inputs, attrs)) if path.is_file() else None
