"""Kernels of a fixture that every worker of `pytest -n` needs: the first compiles them on all cores, the others wait and read the cache.

Without the lock each of ten workers would compile all of them, ten to a core.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from pathlib import Path

from trtllm_engines.checkpoints.checkpoint_precision import plan_for
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.models.presets import resolve_model
from trtllm_kernels.compile.aot import cubin_folder
from trtllm_kernels.compile.cubin import Cubin
from trtllm_kernels.compile.pool import compile_many
from trtllm_kernels.dialect.types import KernelSpec


def compiled_once(specs: Iterable[KernelSpec], arch: str) -> dict[str, Cubin]:
    """By key; one that does not compile fails the test."""
    folder = cubin_folder(arch)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        compiled = compile_many(specs, arch)
    wrong = [reason for reason in compiled.values() if isinstance(reason, str)]
    assert not wrong, wrong[0]
    return {key: one for key, one in compiled.items() if not isinstance(one, str)}


def compile_engines(model: str | Path, precisions: Iterable[str], profile: Profile, arch: str) -> None:
    """Leaves the kernels of a model's engines in the cache, where their builds find them."""
    resolved, source = resolve_model(model), {"kind": "dummy", "seed": 0}
    plans = [
        compile_model(resolved.config, plan_for(resolved.path, precision), profile, arches=(arch,), weights_source=source).plan
        for precision in precisions
    ]
    compiled_once((kernel for plan in plans for op in plan.ops for kernel in op.tactics[arch].kernels), arch)
