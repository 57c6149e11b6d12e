"""Runs CUDA C++ kernels of GEMMs and of attention on the host (`emulation/hopper.cuh`), by the launches that lowering
makes."""

import ctypes
import hashlib
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

from trtllm_kernels.compile import nvrtc
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.types import LEAST_KEYS, KernelSpec, Launch, Lowered

HERE = Path(__file__).parent / "emulation"


@lru_cache(maxsize=64)
def library(kernel: str, macros: tuple[str, ...]) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="emulated-") as name:  # what is loaded stays so without its file
        folder = Path(name)
        for file in (nvrtc.SOURCES / f"{kernel}.cu", *nvrtc.SOURCES.glob("*.cuh")):
            (folder / file.name).write_text(file.read_text().replace("extern __shared__ __align__(1024) char memory[];", ""))
        (folder / "hopper.cuh").write_text((HERE / "hopper.cuh").read_text())
        out = folder / f"{hashlib.sha256(' '.join(macros).encode()).hexdigest()[:8]}.so"
        command = ["g++", "-std=c++17", "-Og", "-w", "-shared", "-fPIC", f"-I{folder}", f"-DKERNEL={kernel}", *macros]
        done = subprocess.run(
            [*command, f'-DKERNEL_SOURCE="{kernel}.cu"', str(HERE / "run.cpp"), "-o", str(out)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[:3000]
        return ctypes.CDLL(str(out))


def running(lowered: Lowered, tokens: int) -> tuple[Launch, KernelSpec]:
    """The one launch of a step of so many tokens."""
    symbols = {"T": tokens, "R": tokens, "D": tokens, "S": tokens, "C": 0, "L": LEAST_KEYS}
    (launch,) = [one for one in lowered.launches if min(evaluate(dim, symbols) for dim in one.grid) > 0]
    return launch, next(spec for spec in lowered.kernels if spec.key == launch.kernel)


def emulate(lowered: Lowered, named: dict[str, torch.Tensor], y: torch.Tensor, tokens: int, blocks: int | None = None) -> None:
    """`blocks`: at most so many, of a persistent kernel."""
    launch, spec = running(lowered, tokens)
    form = ("-DROW_SCALED",) if spec.function == "row_scaled_gemm" else ()
    macros = (*form, *(f"-D{name}={int(value)}" for name, value in spec.constexprs.items()))
    grid = min(blocks or 1 << 30, evaluate(launch.grid[0], {"T": tokens}))
    tensors = [y if arg.value == "out0" else named[str(arg.value)] for arg in launch.args if arg.kind in ("tma", "tensor")]
    floats = [ctypes.c_float(float(arg.value)) for arg in launch.args if arg.kind == "fp32"]
    addresses = [*(one.data_ptr() for one in tensors), *map(ctypes.addressof, floats)]
    pointers = (ctypes.c_void_p * len(addresses))(*addresses)
    code = library(spec.function, macros).emulate(pointers, ctypes.c_long(named["x"].shape[0]), tokens, grid, 32 * spec.num_warps)
    assert code == 0, f"{spec.constexprs}: emulation ended with {code}"


def emulate_decode(
    lowered: Lowered, named: dict[str, torch.Tensor], out: torch.Tensor, decodes: int, blocks: int | None = None
) -> KernelSpec:
    """The launch of a step of so many decoding sequences, or that of equal shares and that which merges them. Returns the first's kernel.
    `blocks`: as in `emulate`; so many shares there are, too."""
    symbols = {"D": decodes, "T": decodes, "R": decodes, "S": decodes, "C": 0, "L": LEAST_KEYS}
    specs = {spec.key: spec for spec in lowered.kernels}
    pieces = {name: torch.full(spec.shape, float("nan")) for name, spec in lowered.workspaces.items() if name.endswith(":pieces")}
    named = {**named, **pieces, "out0": out}
    used = [specs[launch.kernel] for launch in lowered.launches if _emulate_decode(launch, specs[launch.kernel], named, symbols, blocks)]
    assert [spec.function for spec in used[1:]] in ([], ["decode_attention_merge"])
    return used[0]


def _emulate_decode(launch: Launch, spec: KernelSpec, named: dict[str, torch.Tensor], symbols: dict[str, int], blocks: int | None) -> bool:
    """Whether the step has this launch."""
    if min(evaluate(dim, symbols) for dim in launch.grid) <= 0:
        return False
    by_tma = spec.function in ("decode_attention_many", "decode_attention_even")
    form = "MERGE" if spec.function == "decode_attention_merge" else "MANY" if by_tma else "ATTENTION"
    constants = spec.constexprs | ({"SHARES": blocks} if blocks and "SHARES" in spec.constexprs else {})
    macros = (f"-D{form}", *(f"-D{name}={int(value)}" for name, value in constants.items()))
    used = [arg for arg in launch.args if arg.kind in ("tma", "tensor")]
    tensors = [named[str(arg.value)] if arg.index is None else named[str(arg.value)][arg.index] for arg in used]
    pointers = (ctypes.c_void_p * (len(tensors) + 1))(*(one.data_ptr() for one in tensors))
    rows = [ctypes.c_long(tensors[0].numel() // tensors[0].shape[-1])] if by_tma else []
    scale = [ctypes.c_float(float(arg.value)) for arg in launch.args if arg.kind == "fp32"]
    integers = [ctypes.c_int(evaluate(arg.value, symbols)) for arg in launch.args if arg.kind == "i32"]
    grid = min(blocks or 1 << 30, evaluate(launch.grid[0], symbols))
    code = library(spec.function, macros).emulate(pointers, *rows, *scale, *integers, grid, 32 * spec.num_warps)
    assert code == 0, f"{spec.constexprs}: emulation ended with {code}"
    return True


def emulate_prompts(lowered: Lowered, named: dict[str, torch.Tensor], out: torch.Tensor, decodes: int, blocks: int | None = None) -> None:
    """The one launch of attention in fp8 of whole prompts or of continued ones, behind so many decoding sequences. `blocks`: as in
    `emulate`."""
    (launch,), (spec,) = lowered.launches, lowered.kernels
    sequences, tokens = named["kv_lens"].numel(), named["queries"].shape[0]
    continued = sequences - decodes if spec.function == "context_attention" else 0
    symbols = {"D": decodes, "T": tokens, "R": sequences, "S": sequences, "C": continued}
    _emulate_prompts(launch, spec, {**named, "out0": out}, symbols, blocks)


def _emulate_prompts(launch: Launch, spec: KernelSpec, named: dict[str, torch.Tensor], symbols: dict[str, int], blocks: int | None) -> None:
    whole = spec.function == "uncached_prefill_attention"
    macros = ("-DPROMPTS" if whole else "-DCHUNKS", *(f"-D{name}={int(value)}" for name, value in spec.constexprs.items()))
    used = [arg for arg in launch.args if arg.kind in ("tma", "tensor")]
    tensors = [named[str(arg.value)] if arg.index is None else named[str(arg.value)][arg.index] for arg in used]
    pointers = (ctypes.c_void_p * len(tensors))(*(one.data_ptr() for one in tensors))
    (scale,) = (ctypes.c_float(float(arg.value)) for arg in launch.args if arg.kind == "fp32")
    integers = [ctypes.c_int(evaluate(arg.value, symbols)) for arg in launch.args if arg.kind == "i32"]
    grid = min(blocks or 1 << 30, evaluate(launch.grid[0], symbols))
    size = named["values"].shape[1] if whole else tensors[1].numel() // tensors[1].shape[-1]
    code = library(spec.function, macros).emulate(
        pointers, ctypes.c_long(named["queries"].shape[0]), ctypes.c_long(size), scale, *integers, grid, 32 * spec.num_warps
    )
    assert code == 0, f"{spec.constexprs}: emulation ended with {code}"


def emulate_attention(
    lowered: Lowered, named: dict[str, torch.Tensor], out: torch.Tensor, symbols: dict[str, int], blocks: int | None = None
) -> list[str]:
    """All launches of attention whose prompts are in fp8. Returns the names of the kernels that ran. `blocks`: as in `emulate`, of those of
    prompts."""
    specs, named, ran = {spec.key: spec for spec in lowered.kernels}, {**named, "out0": out}, []
    for launch in lowered.launches:
        spec = specs[launch.kernel]
        if min(evaluate(dim, symbols) for dim in launch.grid) <= 0:
            continue
        if spec.function.startswith("decode_attention"):
            _emulate_decode(launch, spec, named, symbols, None)
        else:
            _emulate_prompts(launch, spec, named, symbols, blocks)
        ran.append(spec.function)
    return ran
