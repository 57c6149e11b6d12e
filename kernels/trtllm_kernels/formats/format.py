"""What a format of packed weights consists of: the order of its codes in memory and what the codes mean."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class Format(ABC):
    """One format of codes, with one layout for each kind of inputs."""

    name: str

    @abstractmethod
    def pack(self, codes: torch.Tensor, input_dtype: str) -> torch.Tensor:
        """[N, K] codes, one an element -> storage [N, K * bits / 8]."""

    @abstractmethod
    def unpack(self, storage: torch.Tensor, input_dtype: str) -> torch.Tensor:
        """The inverse of `pack`."""

    @abstractmethod
    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """fp32: what codes mean before zero points and scales."""


def join_nibbles(nibbles: torch.Tensor) -> torch.Tensor:
    """Pairs of 4-bit codes that follow each other as bytes, the first in the low half."""
    pairs = nibbles.to(torch.uint8).view(-1, 2)
    return pairs[:, 0] | pairs[:, 1] << 4


def split_nibbles(storage: torch.Tensor) -> torch.Tensor:
    """The inverse of `join_nibbles`."""
    flat = storage.view(torch.uint8).reshape(-1)
    return torch.stack((flat & 15, flat >> 4), dim=1).reshape(-1)
