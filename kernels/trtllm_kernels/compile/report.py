"""`python -m trtllm_kernels.compile.report --arch sm_90`: compiles every kernel and prints its registers, shared memory and spills."""

from __future__ import annotations

import argparse
import sys

from trtllm_kernels.compile.aot import compile_kernel
from trtllm_kernels.compile.catalogue import MODELS, kernels_of
from trtllm_kernels.errors import KernelError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trtllm_kernels.compile.report", description=__doc__)
    parser.add_argument("--arch", default="sm_90", help="comma-separated, such as sm_80,sm_90")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp16", "fp32", "fp8", "int8"))
    parser.add_argument("--model", default=",".join(MODELS), help="comma-separated, of " + ", ".join(MODELS))
    options = parser.parse_args(argv)
    print(f"{'arch':6} {'kernel':18} {'constants':58} {'warps':>5} {'regs':>5} {'shared B':>9} {'spill B':>8}")
    seen: set[tuple[str, str]] = set()
    spilling = 0
    for arch in options.arch.split(","):
        for model in options.model.split(","):
            if model not in MODELS:
                raise KernelError(f"unknown model {model!r}; use one of {', '.join(MODELS)}")
            for key, spec in kernels_of(model, options.precision, arch).items():
                if (arch, key) in seen:
                    continue
                seen.add((arch, key))
                info = compile_kernel(spec, arch).info
                constants = " ".join(f"{name}={value}" for name, value in spec.constexprs.items())
                numbers = f"{info.num_warps:5} {info.registers:5} {info.shared_bytes:9} {info.spill_bytes:8}"
                print(f"{arch:6} {spec.function:18} {constants[:58]:58} {numbers}", flush=True)
                spilling += info.spill_bytes > 0
    print(f"{len(seen)} kernels, {spilling} of them spill")
    return 1 if spilling else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KernelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
