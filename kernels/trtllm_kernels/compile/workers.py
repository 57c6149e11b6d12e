"""Compiles kernels that the cache lacks by processes beside this one, into the cache, from which `aot.compile_all` then takes them.

A compiler in Python and NVRTC each use one core, and an engine has some fifty kernels: one after another they take 12 s where all cores
take 2. Processes are started by `subprocess` and run this module. Those of multiprocessing (`pool`, which tuning has) begin by running the
user's script again, and a script that makes an `LLM` need not expect that.

What a process fails at stays missing: whoever compiles it next hears of it.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from trtllm_kernels.compile import aot
from trtllm_kernels.dialect.types import KernelSpec
from trtllm_kernels.errors import KernelError

LEAST_WORKERS = 4
"""Fewer gain less than their start costs."""
KERNELS_EACH = 2
"""Of a worker at least: it takes about a second to start, two kernels a half each."""
_POLL_S = 0.05


def worker_count(kernels: int) -> int:
    """How many processes to start for so many kernels; 0: compile them here."""
    count = min(len(os.sched_getaffinity(0)), kernels // KERNELS_EACH)
    return count if count >= LEAST_WORKERS else 0


def compile_beside(specs: Sequence[KernelSpec], arch: str, workers: int, progress: Callable[[int], None] = lambda done: None) -> None:
    """`progress` is told how many of `specs`, which the cache lacks, it has since."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "trtllm_kernels.compile.workers"]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(workers):
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
            running.append(worker)
            assert worker.stdin is not None
            with worker.stdin as pipe:
                pickle.dump((arch, specs[number::workers]), pipe)
        while any(worker.poll() is None for worker in running):
            time.sleep(_POLL_S)
            progress(sum((aot.cubin_folder(arch, cuda=spec.is_cuda) / f"{spec.key}.json").exists() for spec in specs))
    except OSError:  # a worker that ended before it had read its kernels, or no more processes
        pass
    finally:
        for worker in running:
            worker.kill()
            worker.wait()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process of the terminal; the parent says what there is to say
    arch, specs = pickle.load(sys.stdin.buffer)
    for spec in specs:
        try:
            aot.compile_kernel(spec, arch)
        except KernelError:
            continue


if __name__ == "__main__":
    main()
