"""From a model folder and a text to an fp8 checkpoint folder: measure ranges, derive scales, write. It appears whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from trtllm_engines.calibration import export, ranges, text
from trtllm_engines.calibration.integers import METHODS
from trtllm_engines.calibration.layerwise import Layerwise
from trtllm_engines.calibration.new_folder import new_folder
from trtllm_engines.calibration.probe import Progress
from trtllm_engines.calibration.ranges import Ranges
from trtllm_engines.checkpoints import open_weights
from trtllm_engines.checkpoints.model_tokenizer import model_tokenizer
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.errors import EngineError
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.quantization import named_plan
from trtllm_engines.quantization.registry import definition, definitions

KV_DTYPES = ("fp8", "none")


def writable() -> tuple[str, ...]:
    """Precisions in fp8 that a checkpoint can be written in."""
    schemes = [one.scheme for one in definitions().values()]
    return tuple(one.name for one in schemes if one.weights is not None and one.weights.dtype == one.inputs.dtype == "fp8")


@dataclass(frozen=True)
class Quantized:
    """What was measured and written."""

    ranges: Ranges
    windows: int
    tokens: int
    modules: int
    nbytes: int


def quantize(
    model: str | Path,
    out: Path | str,
    *,
    precision: str = "fp8",
    dataset: Path | None = None,
    samples: int = 128,
    length: int = 512,
    kv_dtype: str = "fp8",
    device: str = "cpu",
    progress: Progress | None = None,
) -> Quantized:
    """Writes the fp8 checkpoint of Hugging Face folder `model` to the new folder `out`, calibrated on at most `samples` windows of `length`
    tokens of `dataset` (default: the text that ships with the project). `kv_dtype` `none` leaves out the cache's scales.

    Raises `EngineError` for input that cannot be used and a folder that cannot be written.
    """
    out = Path(out)
    if precision not in writable():
        raise EngineError(f"unknown precision {precision!r} for quantization; supported are {', '.join((*writable(), *METHODS))}")
    if kv_dtype not in KV_DTYPES:
        raise EngineError(f"unknown KV cache dtype {kv_dtype!r} for quantization; supported are {', '.join(KV_DTYPES)}")
    source = resolve_model(model)
    if source.path is None or not source.path.is_dir():
        raise EngineError(f"{model} is not a Hugging Face folder; quantize needs one, with config.json and weights")
    windows = text.windows(dataset, model_tokenizer(source.path), length=length, count=samples, vocab_size=source.config.vocab_size)
    weights = open_weights(source.path)
    layerwise = Layerwise(source.config, weights, windows, device, exact=True)
    with torch.inference_mode(), new_folder(out, layerwise.stored_bytes(8)) as folder:
        measured = ranges.measure(layerwise, progress)
        plan = compile_model(source.config, named_plan("bf16"), Profile(1, 1, 1), weights_source=weights.description).plan
        checkpoint = export.Fp8Checkpoint(plan, weights, measured, definition(precision), quantize_cache=kv_dtype == "fp8")
        nbytes = export.write(checkpoint, source.path, folder, progress)
    return Quantized(measured, len(windows), sum(map(len, windows)), len(checkpoint.quantized), nbytes)
