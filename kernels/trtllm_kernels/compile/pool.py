"""Many kernels at once, one process a core: what tuning compiles, where most of a minute would pass one kernel after another.

Processes and not threads: Triton's compiler is Python for the larger part. They are started afresh, since a process with a CUDA context
cannot be forked. A kernel that cannot be compiled is a result here and no error, and one that takes its process down (compilers do crash)
costs the others nothing: they are tried once more, in the opposite order. What the cache holds starts no process.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from trtllm_kernels.compile.aot import cached, compile_kernel
from trtllm_kernels.compile.cubin import Cubin
from trtllm_kernels.dialect.types import KernelSpec
from trtllm_kernels.errors import KernelError

Compiled = Mapping[str, Cubin | str]
"""By kernel key: the machine code, or why there is none."""


def compile_many(
    specs: Iterable[KernelSpec],
    arch: str,
    *,
    workers: int | None = None,
    seconds: float = float("inf"),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Compiled:
    """Every distinct kernel; those not begun after `seconds` are given up."""
    distinct = {spec.key: spec for spec in specs}
    total, deadline = len(distinct), time.monotonic() + seconds
    found: dict[str, Cubin | str] = {key: cubin for key, spec in distinct.items() if (cubin := cached(spec, arch)) is not None}
    left = {key: spec for key, spec in distinct.items() if key not in found}
    if found:
        progress(len(found), total)
    context = multiprocessing.get_context("spawn")
    count = min(workers or len(os.sched_getaffinity(0)), max(1, len(left)))
    for order in (1, -1):
        if not left:
            break
        with ProcessPoolExecutor(count, mp_context=context) as pool:
            futures = [pool.submit(_attempt, spec, arch) for spec in list(left.values())[::order]]
            try:
                for future in as_completed(futures, None if deadline == float("inf") else max(0.0, deadline - time.monotonic())):
                    key, result = future.result()
                    found[key] = result
                    del left[key]
                    progress(len(found), total)
            except BrokenProcessPool:
                continue
            except TimeoutError:
                pool.shutdown(wait=True, cancel_futures=True)
                return found | dict.fromkeys(left, "no time was left to compile it")
    return found | dict.fromkeys(left, "the compiler crashed")


def _attempt(spec: KernelSpec, arch: str) -> tuple[str, Cubin | str]:
    try:
        return spec.key, compile_kernel(spec, arch)
    except KernelError as error:
        return spec.key, str(error)
