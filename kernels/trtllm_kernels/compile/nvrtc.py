"""Compiles CUDA C++ kernels (`cuda_kernels/`) to machine code by NVRTC, without a GPU, nvcc or CUDA headers. The counterpart of `aot` for
Triton.

A kernel is a `.cu` file with one function of the file's name; the constants of its specification become macros. It takes what the launch
ABI passes (`driver`), so only this file knows its language. Its SHARED_BYTES says how much shared memory its launch requests (static shared
memory ends at 48 KiB), and a matrix that it reads by TMA comes in boxes of rows of 128 bytes, or 64, with the swizzle of as many.

The code is for `sm_90a`: its instructions (wgmma, setmaxnreg) are why these kernels are written. Other architectures have no such kernels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from trtllm_kernels.dialect.types import KernelSpec
from trtllm_kernels.errors import KernelError

SOURCES = Path(__file__).resolve().parents[1] / "cuda_kernels"
_ELEMENT_TYPES = {"fp8e4nv": (0, 1), "i8": (0, 1), "fp16": (6, 2), "bf16": (10, 2)}
"""(number, bytes): the numbering of `CubinInfo.tensordesc`, which is Triton's."""
_SWIZZLES = {64: 2, 128: 3}
"""By bytes of a box's row."""


@lru_cache(maxsize=1)
def source_hashes() -> Mapping[str, str]:
    """sha256 of each source file and header."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(SOURCES.glob("*.cu*"))}


@lru_cache(maxsize=1)
def version() -> str:
    """NVRTC's version, such as 13.0. Raises `KernelError` if it is missing."""
    nvrtc = _bindings()
    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}"


def compile_source(spec: KernelSpec, arch: str) -> tuple[bytes, str, str]:
    """(machine code, PTX, the assembler's log) of a kernel. Raises `KernelError` if it does not compile."""
    nvrtc = _bindings()
    path = SOURCES / f"{spec.module.rpartition('.')[2]}.cu"
    if not path.is_file() or path.stem != spec.function:
        raise KernelError(f"kernel {spec.module}.{spec.function} cannot be found in {SOURCES}")
    headers = sorted(SOURCES.glob("*.cuh"))
    names, texts = [header.name.encode() for header in headers], [header.read_bytes() for header in headers]
    _, program = nvrtc.nvrtcCreateProgram(path.read_bytes(), path.name.encode(), len(headers), texts, names)
    try:
        options = [f"--gpu-architecture={arch}a", "--std=c++17", "--ptxas-options=-v"]
        options += [f"-D{name}={int(value)}" for name, value in spec.constexprs.items()]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode().rstrip("\0\n")
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            reason = next((line for line in log.splitlines() if "error" in line), error.name).strip()
            raise KernelError(f"kernel {spec.function} does not compile for {arch} with {dict(spec.constexprs)}: {reason}")
        code = _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        ptx = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).decode().rstrip("\0")
        return code, ptx, log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def tensor_descriptions(spec: KernelSpec) -> tuple[Mapping[str, Any], ...]:
    """`CubinInfo.tensordesc`: one box per TMA parameter, as the specification states it; `interleaved` only where it is."""
    matches = (re.fullmatch(r"tensordesc<(\w+)\[(\d+),(\d+)\](,interleaved)?>", type_name) for type_name in spec.signature.values())
    boxes = [(match[1], int(match[2]), int(match[3]), match[4] is not None) for match in matches if match]
    types = [_ELEMENT_TYPES.get(element, (0, 0)) for element, *_ in boxes]
    if any(columns * size not in _SWIZZLES for (_, _, columns, _), (_, size) in zip(boxes, types, strict=True)):
        raise KernelError(f"kernel {spec.function} takes boxes {boxes}; a row must be 128 bytes of {', '.join(_ELEMENT_TYPES)}, or 64")
    return tuple(
        {
            "block_size": [rows, columns],
            "elem_size": size,
            "elem_type": number,
            "swizzle": _SWIZZLES[columns * size],
            **({"interleaved": True} if interleaved else {}),
        }
        for (_, rows, columns, interleaved), (number, size) in zip(boxes, types, strict=True)
    )


def _text(size: Any, get: Any, program: Any) -> bytes:
    text = bytes(size(program)[1])
    get(program, text)
    return text


def _bindings() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except ImportError as error:
        raise KernelError("cuda-python, which compiles CUDA C++ kernels, is missing; run python3 -m pip install cuda-python") from error
    except (RuntimeError, OSError) as error:
        raise KernelError("NVRTC, which compiles CUDA C++ kernels, is missing; run python3 -m pip install nvidia-cuda-nvrtc") from error
    return nvrtc
