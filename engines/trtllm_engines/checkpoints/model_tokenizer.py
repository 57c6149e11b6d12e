"""The tokenizer of a model as it was published: beside its weights, or inside a GGUF file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from trtllm_engines.checkpoints.tokenizer import Tokenizer


def model_tokenizer(model: Path | None) -> Tokenizer | None:
    """Of a Hugging Face folder or a .gguf file; None of a preset, and of a model without one that is covered.

    What a .gguf file carries is its tokens; a chat template in it is left to the engine that is built of it. Raises `EngineError` for a
    tokenizer that cannot be read.
    """
    if model is None:
        return None
    if model.is_file():
        from trtllm_engines.checkpoints.gguf_tokenizer import write_tokenizer
        from trtllm_engines.models.gguf_file import GgufFile

        with tempfile.TemporaryDirectory() as folder:
            return Tokenizer(Path(folder)) if write_tokenizer(GgufFile(model), Path(folder)) else None
    return Tokenizer(model) if (model / "tokenizer.json").is_file() else None
