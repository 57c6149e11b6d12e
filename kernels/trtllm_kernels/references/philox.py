"""Random numbers that depend on (seed, position) alone: Philox4x32-10 in torch's integer operations, with the same bits on CPU and CUDA.

Counter-based, so a token sampled in a batch of 512, after a preemption or on another machine is the token sampled alone: there is no
generator state to keep, save or replay. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); test vectors from
Random123's `kat_vectors`. Words are 32-bit values in int64 tensors: a product wraps modulo 2^64, and its bits are those of the unsigned
one.
"""

from __future__ import annotations

import torch

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox_4x32(counter: Words, key: tuple[torch.Tensor, torch.Tensor], rounds: int = 10) -> Words:
    """Four 32-bit words for each counter (shapes broadcast)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((second >> 32) & MASK) ^ c1 ^ k0, second & MASK, ((first >> 32) & MASK) ^ c3 ^ k1, first & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def random_words(seeds: torch.Tensor, positions: torch.Tensor, count: int) -> torch.Tensor:
    """`count` words for each of S (seed, position) pairs, both int64 [S]; int64 [S, count] with values in 0..2^32-1."""
    block = torch.arange(-(-count // 4), device=seeds.device, dtype=torch.int64)[None, :]
    zero = torch.zeros_like(block)
    counter = (block, positions[:, None] & MASK, zero, zero)
    key = (seeds[:, None] & MASK, (seeds[:, None] >> 32) & MASK)
    words = torch.stack(philox_4x32(counter, key), dim=-1)
    return words.flatten(1)[:, :count]


def gumbel_noise(seeds: torch.Tensor, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Standard Gumbel noise, fp32 [S, count]: the arg-max of logits plus this noise is a sample from their softmax.

    -log(E) with E = -log(1 - u). Large values, which decide, come from small u, where fp32 keeps all 32 bits. u stays below 1.
    """
    u = (random_words(seeds, positions, count).to(torch.float32) + 0.5) * 2.0**-32
    exponential = -torch.log1p(-u.clamp_max_(1.0 - 2.0**-24))
    return -torch.log(exponential)
