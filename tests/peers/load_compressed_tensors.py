"""Do others load what `quantize` writes, and compute the same with it? transformers with the `compressed-tensors` library, on a CPU.

Not a test that pytest collects: the library brings more than a test needs. In an environment that has our torch and transformers:

    pip install --no-deps compressed-tensors loguru psutil accelerate
    python tests/peers/load_compressed_tensors.py MODEL-int4 MODEL-int8 ...

Each folder is loaded twice. `theirs` is what the library makes of it in fp32: it decodes weights and, where the checkpoint says so, rounds
the inputs of products. `decoded` is transformers' plain model with weights as the format's definition has them, read here with NumPy. Its
inputs are not rounded, so a folder whose inputs are codes differs by that. It fails where logits of weight-only folders differ by more than
fp32 rounds.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

TOLERANCE = 1e-4
"""Of logits, rms over rms."""


def fields(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` unsigned fields of each row of 32-bit words, lowest bits first."""
    parts = [((words.astype(np.int64) & 0xFFFFFFFF) >> shift) & ((1 << bits) - 1) for shift in range(0, 32, bits)]
    return np.stack(parts, -1).reshape(len(words), -1)[:, :count]


def decoded(folder: Path, group: dict) -> dict[str, torch.Tensor]:
    stored = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    bits = group["weights"]["num_bits"]
    weights = {}
    for name, tensor in stored.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight_packed":
            rows, columns = stored[f"{module}.weight_shape"].tolist()
            scale = stored[f"{module}.weight_scale"].float().numpy()
            codes = fields(tensor.numpy(), bits, columns) - 2 ** (bits - 1)
            of = np.arange(columns) // (columns // scale.shape[1])
            of = stored[f"{module}.weight_g_idx"].numpy() if f"{module}.weight_g_idx" in stored else of
            if f"{module}.weight_zero_point" in stored:
                codes = codes - (fields(stored[f"{module}.weight_zero_point"].numpy().T, bits, rows).T - 2 ** (bits - 1))[:, of]
            weights[f"{module}.weight"] = torch.from_numpy(codes * scale[:, of]).float()
        elif tensor.dtype == torch.int8:
            weights[name] = tensor.float() * stored[f"{module}.weight_scale"].float()
        elif not leaf.startswith("weight_"):
            weights[name] = tensor.float()
    return weights


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, nargs="+")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable()
    failed = False
    for folder in parser.parse_args().folders:
        config = json.loads((folder / "config.json").read_text())
        (group,) = config.pop("quantization_config")["config_groups"].values()
        vocabulary = config["vocab_size"]
        ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary, (2, 32)))
        with torch.inference_mode():
            theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
            plain = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config), dtype=torch.float32).eval()
            missing, unexpected = plain.load_state_dict(decoded(folder, group), strict=False)
            assert not unexpected, unexpected
            assert set(missing) <= {"lm_head.weight"}, missing
            plain.tie_weights()
            ours = plain(ids).logits
        error = float((theirs - ours).norm() / ours.norm())
        inputs = group["input_activations"]
        verdict = "inputs are codes as well" if inputs else "same" if error < TOLERANCE else "DIFFERENT"
        failed |= verdict == "DIFFERENT"
        print(f"{folder.name:<24} int{group['weights']['num_bits']} logits differ by {error:.1e}: {verdict}", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
