"""Watches, in Triton's CPU interpreter, that every program of a kernel keeps to the order that `triton_kernels/pdl.py` requires.

Of each access the addresses are compared, so what a pointer argument stands for where an optional tensor is absent needs no list.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from triton.runtime import interpreter

from trtllm_kernels.triton_kernels import pdl, prefetch

_LINE_BYTES = 128


class Watch:
    """One launch: `seen` is what the program now running has done."""

    def __init__(self, kernel: str, constants: Sequence[torch.Tensor], bound: Sequence[torch.Tensor], waits: bool) -> None:
        self.kernel, self.seen, self.programs, self.waits = kernel, [], 0, waits
        self.prefetched: list[int] = []
        """Addresses of lines prefetched, by all programs."""
        self.ranges, self.bound = ([(t.data_ptr(), t.data_ptr() + t.nbytes) for t in of] for of in (constants, bound))

    def begin(self) -> None:
        self.end()
        self.programs += 1

    def end(self) -> None:
        done = [event for event in self.seen if event != "load"]
        first = ["let_next_start", "wait_for_previous"] if self.waits else ["let_next_start"]
        assert self.programs == 0 or done[: len(first)] == first, f"{self.kernel}: a program did {self.seen[:5]}"
        self.seen = []

    def let_next_start(self) -> None:
        assert not self.seen, f"{self.kernel}: lets the next start after {self.seen}"
        self.seen.append("let_next_start")

    def wait_for_previous(self) -> None:
        assert self.waits, f"{self.kernel}: waits for the one it runs concurrently with"
        assert "wait_for_previous" not in self.seen, f"{self.kernel}: waits twice"
        self.seen.append("wait_for_previous")

    def prefetch(self, at, enabled) -> None:
        """`prefetch._prefetch_lines`, of lines of the launch's memory: constants or not, they are read when their time comes."""
        assert "wait_for_previous" not in self.seen, f"{self.kernel}: prefetches after the wait"
        lines = at.handle.data[enabled.handle.data.astype(np.bool_)]
        inside = np.zeros(lines.shape, np.bool_)
        for first, end in self.bound:
            inside |= (lines >= first) & (lines + _LINE_BYTES <= end)
        assert inside.all(), f"{self.kernel}: prefetches what is not its memory"
        self.prefetched += lines.tolist()

    def access(self, kind: str, addresses: np.ndarray) -> None:
        if self.waits and "wait_for_previous" not in self.seen:
            constant = np.zeros(addresses.shape, np.bool_)
            for first, end in self.ranges:
                constant |= (addresses >= first) & (addresses < end)
            assert kind == "load", f"{self.kernel}: a {kind} comes before the wait"
            assert constant.all(), f"{self.kernel}: a load of what is no constant comes before the wait"
            self.seen.append("load")
        elif kind == "store":
            self.seen.append("store")


@contextmanager
def watched(kernel: str, constants: Sequence[torch.Tensor], bound: Sequence[torch.Tensor], waits: bool = True) -> Iterator[Watch]:
    """Asserts of every program that runs inside: lets the next start first of all, waits once, loads only `constants` before; or, where
    it is not to wait, that it never does. `bound`: all memory of the launch."""
    watch, builder = Watch(kernel, constants, bound, waits), interpreter.InterpreterBuilder
    load, store, place = builder.create_masked_load, builder.create_masked_store, builder.set_grid_idx

    def watched_load(self, ptrs, mask, *rest, **options):
        watch.access("load", ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)])
        return load(self, ptrs, mask, *rest, **options)

    def watched_store(self, ptrs, value, mask, *rest):
        watch.access("store", ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)])
        return store(self, ptrs, value, mask, *rest)

    def watched_place(self, *index):
        watch.begin()
        return place(self, *index)

    builder.create_masked_load, builder.create_masked_store, builder.set_grid_idx = watched_load, watched_store, watched_place
    pdl.gdc_launch_dependents, pdl.gdc_wait = watch.let_next_start, watch.wait_for_previous
    prefetch._prefetch_lines = watch.prefetch
    try:
        yield watch
        watch.end()
        assert watch.programs
    finally:
        builder.create_masked_load, builder.create_masked_store, builder.set_grid_idx = load, store, place
