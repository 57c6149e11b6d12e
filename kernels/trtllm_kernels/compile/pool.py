"""Compiles many kernels at once, one process per core. Tuning would otherwise spend most of a minute compiling one after another.

Processes and not threads: most of Triton's compiler is Python. They are spawned, since a process with a CUDA context cannot be forked. A
kernel that cannot be compiled is a result here and not an error. A kernel that crashes its process (compilers do crash) does not harm the
others: they are tried once more, in the opposite order. If the cache holds all kernels, no process is started.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from trtllm_kernels.compile.aot import cached, compile_kernel
from trtllm_kernels.compile.cubin import Cubin
from trtllm_kernels.dialect.types import KernelSpec
from trtllm_kernels.errors import KernelError

Compiled = Mapping[str, Cubin | str]
"""By kernel key: the machine code, or the reason why there is none."""


def compile_many(
    specs: Iterable[KernelSpec],
    arch: str,
    *,
    workers: int | None = None,
    seconds: float = float("inf"),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Compiled:
    """Compiles every distinct kernel. Those not begun after `seconds` are given up."""
    distinct = {spec.key: spec for spec in specs}
    total, deadline = len(distinct), time.monotonic() + seconds
    results: dict[str, Cubin | str] = {key: cubin for key, spec in distinct.items() if (cubin := cached(spec, arch)) is not None}
    left = {key: spec for key, spec in distinct.items() if key not in results}
    if results:
        progress(len(results), total)
    context = multiprocessing.get_context("spawn")
    count = min(workers or len(os.sched_getaffinity(0)), max(1, len(left)))
    for order in (1, -1):
        if not left:
            break
        with ProcessPoolExecutor(count, mp_context=context, initializer=_end_quietly) as pool:
            futures = [pool.submit(_attempt, spec, arch) for spec in list(left.values())[::order]]
            try:
                for future in as_completed(futures, None if deadline == float("inf") else max(0.0, deadline - time.monotonic())):
                    key, result = future.result()
                    results[key] = result
                    del left[key]
                    progress(len(results), total)
            except BrokenProcessPool:
                continue
            except TimeoutError:
                pool.shutdown(wait=True, cancel_futures=True)
                return results | dict.fromkeys(left, "no time was left to compile it")
    return results | dict.fromkeys(left, "the compiler crashed")


def _end_quietly() -> None:
    """Ctrl-C reaches every process of the terminal; the one that started the workers says what there is to say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _attempt(spec: KernelSpec, arch: str) -> tuple[str, Cubin | str]:
    try:
        return spec.key, compile_kernel(spec, arch)
    except KernelError as error:
        return spec.key, str(error)
