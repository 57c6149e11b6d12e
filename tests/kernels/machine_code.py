"""Machine code of kernels as tests read it.

The disassembler takes 0.4 s to start and next to nothing for a kernel, so it is given many at once: their sections one after another, as
one raw binary. What it says of each is what `cuobjdump -sass` says of its cubin.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import triton

from trtllm_kernels.compile.aot import compile_kernel
from trtllm_kernels.dialect.types import KernelSpec

_TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
_ARCHITECTURES = {"sm_80": "SM80", "sm_89": "SM89", "sm_90": "SM90a"}
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)$", re.MULTILINE)

Instruction = tuple[int, str, str]
"""Address within its kernel, opcode with its modifiers, operands, in which addresses of branches count from `base`."""


def disassembled(cubins: Sequence[bytes], arch: str) -> list[tuple[int, list[Instruction]]]:
    """(base, instructions in order) of each cubin."""
    texts = [b"".join(_sections(cubin)) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(texts))
        file.flush()
        command = [_TOOL, "--binary", _ARCHITECTURES[arch], file.name]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    every = iter([(int(address, 16), opcode, operands) for address, opcode, operands in _INSTRUCTION.findall(sass)])
    base, found = 0, []
    for text in texts:
        own = [next(every) for _ in range(len(text) // 16)]
        assert (own[0][0], own[-1][0]) == (base, base + len(text) - 16)
        found.append((base, [(address - base, opcode, operands) for address, opcode, operands in own]))
        base += len(text)
    return found


def opcodes(specs: Sequence[KernelSpec], arch: str = "sm_90") -> list[list[str]]:
    """Opcodes of each kernel's machine code in order, with their modifiers."""
    cubins = [compile_kernel(spec, arch).code for spec in specs]
    return [[opcode for _, opcode, _ in code] for _, code in disassembled(cubins, arch)]


def _sections(cubin: bytes) -> Iterator[bytes]:
    """Sections of instructions of an ELF file, in its order."""
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, start + size * index) for index in range(count)]
    for name, _, _, _, offset, length, *_ in headers:
        if cubin.startswith(b".text.", headers[names][4] + name):
            yield cubin[offset : offset + length]
