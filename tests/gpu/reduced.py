"""Reductions over two ranks, each a process of `reduce_again.py`, and what they must have computed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

Tensors = dict[str, torch.Tensor]


def reduced_on_two_ranks(
    folder: Path, rows: Sequence[int], steps: int, flags: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> tuple[dict[int, Tensors], dict[int, Tensors]]:
    """Tensors of the last of `steps` reductions on each of the two ranks, by number of `rows`."""
    command = [sys.executable, str(Path(__file__).with_name("reduce_again.py")), "--meet", str(folder / "meet"), "--seconds", "35"]
    command += ["--steps", str(steps), *flags, "--rows", *map(str, rows)]
    of_ranks = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "GLOO_SOCKET_IFNAME": "lo", **(environment or {})}
    ranks = [
        subprocess.Popen([*command, "--out", str(folder / f"{rank}.pt"), str(rank)], env=of_ranks, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    return first, second


def check_normed_sum(one: Tensors, two: Tensors) -> None:
    """Checks that rank `one` has the norm of the residual plus both ranks' parts, and that those differ."""
    total = one["residual"].float() + one["x"].float() + two["x"].float()
    expected = total * torch.rsqrt(total.square().mean(1, keepdim=True) + 1e-5)
    torch.testing.assert_close(one["last"], expected, atol=0.02, rtol=0.08)
    assert not torch.equal(one["x"], two["x"])
