"""Real checkpoints of quantizing tools (`data/quantized`), and decoders of theirs, written from the formats' definitions and not from the
project's readers: dense weights, for transformers to run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "data" / "quantized"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]


def dense(name: str) -> dict[str, Tensor]:
    """fp32 weights by the names of the model."""
    tensors = load_file(FOLDER / name / "model.safetensors")
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, leaf = key.partition("_proj.")
        if leaf:
            modules.setdefault(f"{module}_proj", {})[leaf] = tensor
    table = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items() if "embed_tokens." in key}
    head = {key: tensor for key, tensor in tensors.items() if key == "lm_head.weight" and "weight" not in table}
    norms = {key: tensor for key, tensor in tensors.items() if "norm" in key}
    wide = {key: tensor.float() for key, tensor in {**norms, **head}.items()} | {"model.embed_tokens.weight": _weight(name, table)}
    return wide | {f"{module}.weight": _decoded(name, parts) for module, parts in modules.items()}


def _decoded(name: str, parts: dict[str, Tensor]) -> Tensor:
    weight = _weight(name, parts)
    return weight * parts["pre_quant_scale"].float() if "pre_quant_scale" in parts else weight


def _weight(name: str, parts: dict[str, Tensor]) -> Tensor:
    if "qweight" in parts:
        return _awq(parts) if "awq" in name else _gptq(parts, int(name.split("gptq")[1][0]), 96 if "partial-group" in name else 0)
    if "weight.absmax" in parts:
        return _nf4(parts)
    if "SCB" in parts:
        return parts["weight"].float() * parts["SCB"][:, None] / 127
    packed = parts.get("weight_packed", parts.get("weight"))
    assert packed is not None
    if packed.dtype == torch.bfloat16:
        return packed.float()
    if packed.dtype == torch.int32:
        return _words(parts, packed)
    scale = parts["weight_scale"]
    if packed.dtype == torch.uint8 and scale.dtype == torch.float32:  # ModelOpt's int4: two rows a byte
        nibbles = torch.stack((packed & 15, packed >> 4), 1).flatten(0, 1).to(torch.int16)
        return _scaled(torch.where(nibbles > 7, nibbles - 16, nibbles).float(), scale)
    if packed.dtype == torch.uint8:
        values = E2M1[torch.stack((packed & 15, packed >> 4), -1).flatten(-2).long()]
        if scale.dtype == torch.uint8:
            return _scaled(values, 2.0 ** (scale.float() - 127))
        scale = scale.float() / parts["weight_global_scale"] if "weight_global_scale" in parts else scale.float() * parts["weight_scale_2"]
        return _scaled(values, scale)
    return _scaled(packed.float(), scale)


def _scaled(codes: Tensor, scale: Tensor) -> Tensor:
    scale = scale.float()
    if scale.numel() == 1:
        return codes * scale
    scale = scale[:, None] if scale.ndim == 1 else scale
    by_row = scale.repeat_interleave(codes.shape[0] // scale.shape[0], 0)
    return codes * by_row.repeat_interleave(codes.shape[1] // scale.shape[1], 1)


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Numbers of `bits` bits in a stream of int32 words along the last dimension, bit by bit."""
    stream = ((words.long()[..., None] >> torch.arange(32)) & 1).flatten(-2)
    return (stream.unflatten(-1, (-1, bits)) * 2 ** torch.arange(bits)).sum(-1)


def _words(parts: dict[str, Tensor], packed: Tensor) -> Tensor:
    rows, columns = parts["weight_shape"].tolist()
    bits = packed.shape[1] * 32 // columns
    codes, zero = _unpacked(packed, bits)[:, :columns], torch.tensor([[1 << (bits - 1)]])
    if "weight_zero_point" in parts:
        zero = _unpacked(parts["weight_zero_point"].T, bits).T[:rows].repeat_interleave(columns // parts["weight_scale"].shape[1], 1)
    if "weight_g_idx" in parts:
        return (codes - zero).float() * parts["weight_scale"].float()[:, parts["weight_g_idx"].long()]
    return _scaled((codes - zero).float(), parts["weight_scale"])


def _gptq(parts: dict[str, Tensor], bits: int, size: int) -> Tensor:
    codes = _unpacked(parts["qweight"].T, bits)
    group = torch.arange(codes.shape[1]) // size if size else parts["g_idx"].long()
    zeros = _unpacked(parts["qzeros"], bits).T + 1
    return (codes - zeros[:, group]).float() * parts["scales"].float().T[:, group]


def _awq(parts: dict[str, Tensor]) -> Tensor:
    def columns(words: Tensor) -> Tensor:
        return _unpacked(words, 4).unflatten(-1, (-1, 8))[..., AWQ_ORDER].flatten(-2)

    codes, zeros, scales = columns(parts["qweight"]), columns(parts["qzeros"]), parts["scales"].float()
    size = len(codes) // len(scales)
    return ((codes - zeros.repeat_interleave(size, 0)) * scales.repeat_interleave(size, 0)).T


def _nf4(parts: dict[str, Tensor]) -> Tensor:
    state = json.loads(bytes(next(tensor for leaf, tensor in parts.items() if "quant_state" in leaf).tolist()))
    packed, largest = parts["weight"].view(torch.uint8).flatten(), parts["weight.absmax"]
    if "weight.nested_absmax" in parts:
        block = parts["weight.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(largest)]
        largest = parts["weight.nested_quant_map"][largest.long()] * block + state["nested_offset"]
    values = parts["weight.quant_map"][torch.stack((packed >> 4, packed & 15), -1).flatten().long()]
    return (values.view(-1, state["blocksize"]) * largest[:, None]).view(state["shape"])
