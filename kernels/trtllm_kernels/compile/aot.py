"""KernelSpec to machine code, ahead of time, on a machine with or without a GPU.

Triton's compiler is called on the kernel's source directly (no launcher, no driver, no torch), with the promise that every pointer is
16-byte aligned: without it no load would be 128 bits wide. Results are cached on disk by the specification, the architecture, the
compiler's version and a hash of all kernel sources of that compiler, so a change to a helper function never leads to stale code. Registers
and spills are read back from the cubin by `cuobjdump`, which is part of Triton's wheel.

Kernels in CUDA C++ go to NVRTC instead (`nvrtc`) and are treated like the others from there on.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from trtllm_kernels.compile import nvrtc
from trtllm_kernels.compile.cubin import Cubin, CubinInfo
from trtllm_kernels.dialect.types import KernelSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.files import cache_folder
from trtllm_kernels.lowering.call import capability

SOURCES = Path(__file__).resolve().parents[1] / "triton_kernels"


@lru_cache(maxsize=1)
def _triton_hashes() -> Mapping[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(SOURCES.glob("*.py"))}


def source_hashes() -> Mapping[str, str]:
    """sha256 of each kernel source file: part of an engine's provenance."""
    return {**_triton_hashes(), **nvrtc.source_hashes()}


def cubin_folder(arch: str, *, cuda: bool = False) -> Path:
    """Where in the user's cache compiled kernels are kept, one folder per compiler."""
    hashes = nvrtc.source_hashes() if cuda else _triton_hashes()
    sources = hashlib.sha256("".join(hashes.values()).encode()).hexdigest()[:16]
    return cache_folder() / "cubins" / f"{_compiler(cuda)}-{sources}" / arch


def _compiler(cuda: bool) -> str:
    if cuda:
        return f"nvrtc-{nvrtc.version()}"
    import triton

    return f"triton-{triton.__version__}"


def cached(spec: KernelSpec, arch: str) -> Cubin | None:
    """A kernel from the cache; None if it is missing or damaged."""
    folder = cubin_folder(arch, cuda=spec.is_cuda)
    if not (folder / f"{spec.key}.json").is_file():
        return None
    with contextlib.suppress(KernelError):
        return Cubin.load(folder, spec.key)
    return None


def compile_kernel(spec: KernelSpec, arch: str, *, cache: bool = True) -> Cubin:
    """Compiles one kernel for `arch`, or takes it from the cache. Raises `KernelError` if it does not compile."""
    if cache and (stored := cached(spec, arch)) is not None:
        return stored
    cubin = _compile_cuda(spec, arch) if spec.is_cuda else _compile(spec, arch)
    if cache:
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            cubin.save(cubin_folder(arch, cuda=spec.is_cuda), spec.key)
    return cubin


def compile_all(
    specs: Iterable[KernelSpec], arch: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Cubin]:
    """Compiles every distinct kernel of `specs`, many at once where there are cores; the result is by key. `progress(done, total)` is told
    of them as they come. Raises `KernelError` for the first that does not compile."""
    from trtllm_kernels.compile.workers import compile_beside, worker_count

    distinct = {spec.key: spec for spec in specs}
    missing = [spec for spec in distinct.values() if cached(spec, arch) is None]
    there = len(distinct) - len(missing)
    if workers := worker_count(len(missing)):
        compile_beside(missing, arch, workers, lambda done: progress(there + done, len(distinct)))
    compiled: dict[str, Cubin] = {}
    for key, spec in distinct.items():
        compiled[key] = compile_kernel(spec, arch)
        if not workers or len(compiled) == len(distinct):
            progress(len(compiled), len(distinct))
    return compiled


def load_function(spec: KernelSpec) -> Any:
    """The `@triton.jit` function a specification names."""
    try:
        return getattr(importlib.import_module(spec.module), spec.function)
    except (ImportError, AttributeError) as error:
        raise KernelError(f"kernel {spec.module}.{spec.function} cannot be imported: {error}") from error


def _compile(spec: KernelSpec, arch: str) -> Cubin:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = load_function(spec)
    if not hasattr(function, "arg_names") or os.environ.get("TRITON_INTERPRET") == "1":
        raise KernelError("kernels cannot be compiled under TRITON_INTERPRET=1; unset it")
    known = {*spec.signature, *spec.constexprs}
    if set(function.arg_names) != known:
        raise KernelError(f"kernel {spec.function} takes {list(function.arg_names)}, the specification gives {sorted(known)}")
    signature = {name: spec.signature.get(name, "constexpr") for name in function.arg_names}
    attrs = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in spec.aligned}
    source = ASTSource(fn=function, signature=signature, constexprs=dict(spec.constexprs), attrs=attrs)
    try:
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", capability(arch), 32),
            options={"num_warps": spec.num_warps, "num_stages": spec.num_stages},
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise KernelError(f"kernel {spec.function} does not compile for {arch} with {dict(spec.constexprs)}: {reason}") from error
    metadata = compiled.metadata
    code: bytes = compiled.asm["cubin"]
    registers, spill_bytes = resource_usage(code)
    return Cubin(
        CubinInfo(
            entry=metadata.name,
            arch=arch,
            num_warps=metadata.num_warps,
            shared_bytes=metadata.shared,
            registers=registers,
            spill_bytes=spill_bytes,
            tensordesc=tuple(dict(d) for d in getattr(metadata, "tensordesc_meta", None) or ()),
            waits="griddepcontrol.wait" in compiled.asm["ptx"],
        ),
        code,
    )


def _compile_cuda(spec: KernelSpec, arch: str) -> Cubin:
    code, ptx, _ = nvrtc.compile_source(spec, arch)
    registers, spill_bytes = resource_usage(code)
    info = CubinInfo(
        entry=spec.function,
        arch=arch,
        num_warps=spec.num_warps,
        shared_bytes=spec.constexprs["SHARED_BYTES"],
        registers=registers,
        spill_bytes=spill_bytes,
        tensordesc=nvrtc.tensor_descriptions(spec),
        waits="griddepcontrol.wait" in ptx,
    )
    return Cubin(info, code)


def resource_usage(code: bytes) -> tuple[int, int]:
    """(registers, stack + local bytes) per thread, as `cuobjdump --dump-resource-usage` states them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        run = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=False)
    usage = dict(item.split(":", 1) for item in run.stdout.rsplit("Function", 1)[-1].split() if ":" in item)
    if run.returncode or "REG" not in usage:
        raise KernelError(f"cuobjdump could not read a compiled kernel: {(run.stderr or run.stdout).strip()}")
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])
