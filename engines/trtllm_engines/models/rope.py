"""The rotary table: all frequency scaling happens here, once, on the host.

Frequencies are computed in fp32, as Hugging Face's checkpoints were trained and are evaluated: fp64 would differ from them by up to 5e-4
radians at position 8192. Scaling of Llama 3.1: long wavelengths divided by `factor`, short ones kept, a linear ramp between (Meta's
`apply_scaling`, described in the Llama 3.1 model card's reference code).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trtllm_engines.models.config import RopeConfig


def inverse_frequencies(rope: RopeConfig) -> Tensor:
    """fp32 [rotary_dim / 2], radians per position."""
    exponent = torch.arange(0, rope.rotary_dim, 2, dtype=torch.int64).float() / rope.rotary_dim
    base = 1.0 / (rope.theta**exponent)
    if rope.scaling == "linear":
        return base / rope.factor
    if rope.scaling == "factors":
        return base / torch.tensor(rope.freq_factors)
    if rope.scaling == "llama3":
        wavelength = 2 * math.pi / base
        turns = rope.original_max_position / wavelength
        kept = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0.0, 1.0)
        return (1 - kept) * base / rope.factor + kept * base
    return base


def cos_sin_table(rope: RopeConfig, positions: int) -> Tensor:
    """fp32 [positions, rotary_dim]: cosines of every frequency, then sines."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), inverse_frequencies(rope))
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
