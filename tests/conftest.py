"""Signals as a terminal has them, garbage collected less often, no waiting for the disk, and ranks that are threads.

nohup and a shell's background jobs ignore some signals, and tests' processes would inherit that.
"""

import gc
import os
import signal
from collections.abc import Callable
from functools import partial
from threading import Barrier

import pytest

for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


os.fsync = lambda _: None
"""No test cuts the power. A store syncs its files and its folder with each row, 5 ms each time: up to a quarter of what its tests take."""


def pytest_collection_finish() -> None:
    """Modules loaded by now stay: to look through their half a million objects again and again is 8% of what tests of the compiler take."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[Callable[[bytes], list[bytes]]]]:
    """Memory that ranks share is that of this process, and not exported. Called with a number of ranks: what each, as a thread, exchanges
    words with the others through."""
    from trtllm_kernels.launch import peers

    monkeypatch.setattr(peers, "_export", lambda tensor: tensor.data_ptr().to_bytes(8, "little").ljust(64, b"\0"))
    monkeypatch.setattr(peers, "_mapped", lambda handle, rank: int.from_bytes(handle[:8], "little"))

    def of(ranks: int) -> list[Callable[[bytes], list[bytes]]]:
        barrier, given = Barrier(ranks), [b""] * ranks

        def exchange(rank: int, data: bytes) -> list[bytes]:
            given[rank] = data
            barrier.wait()
            every = list(given)
            barrier.wait()
            return every

        return [partial(exchange, rank) for rank in range(ranks)]

    return of
