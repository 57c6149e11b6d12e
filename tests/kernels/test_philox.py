"""The random numbers: published vectors, the distribution of the noise, and independence of everything but (seed, position)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from trtllm_kernels.references.philox import gumbel_noise, philox_4x32, random_words

VECTORS = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_matches_random123_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    words = philox_4x32(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))  # type: ignore[arg-type]
    assert [int(w) for w in words] == expected


def test_words_depend_on_seed_and_position_only() -> None:
    seeds = torch.tensor([5, 5, 2**62 + 11, 5])
    positions = torch.tensor([9, 10, 9, 9])
    together = random_words(seeds, positions, 1001)
    for row in range(4):
        alone = random_words(seeds[row : row + 1], positions[row : row + 1], 1001)
        assert torch.equal(together[row], alone[0])
    assert torch.equal(together[0], together[3])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], together[2])
    assert torch.equal(random_words(seeds, positions, 10), together[:, :10])


def test_words_fill_the_32_bit_range_evenly() -> None:
    words = random_words(torch.tensor([123]), torch.tensor([0]), 200_000)[0].numpy()
    assert words.min() >= 0
    assert words.max() < 2**32
    assert stats.kstest(words / 2**32, "uniform").pvalue > 0.001
    bits = (words[:, None] >> np.arange(32)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.006


def test_gumbel_noise_is_gumbel_and_finite() -> None:
    noise = gumbel_noise(torch.tensor([7, 8]), torch.tensor([1, 1]), 100_000)
    assert torch.isfinite(noise).all()
    for row in noise.numpy():
        assert stats.kstest(row, "gumbel_r").pvalue > 0.001
