"""A checkpoint's folder, which appears whole or not at all: written beside its place and renamed. And its config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtllm_engines.errors import EngineError, WriteError
from trtllm_engines.partial_folder import check_space, folder_for, is_empty


@contextmanager
def new_folder(out: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """The folder to write so many bytes into; a link is followed. Raises `EngineError` where `out` is not empty, before and after, and
    where the disk has less room."""
    check_new(out)
    try:
        check_space("the checkpoint", out, needed_bytes)
        with folder_for(out, "config.json") as folder:
            yield folder
    except OSError as error:
        raise WriteError(f"the checkpoint to {out}", error, "choose another output folder") from None


def check_new(out: Path) -> None:
    """Raises `EngineError` unless `out` is new or empty."""
    if out.exists() and not (out.is_dir() and is_empty(out)):
        raise EngineError(f"{out} exists and is not empty; choose another output folder or remove it")


def write_config(model: Path, folder: Path, quantization: Mapping[str, Any]) -> None:
    """The config.json of `model` for a checkpoint of codes in `folder`, where all that is not codes is bf16."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    names = ("torch_dtype", "dtype") if "dtype" in config else ("torch_dtype",)  # as transformers calls it before and since version 5
    config |= {**dict.fromkeys(names, "bfloat16"), "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
