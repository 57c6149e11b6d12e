"""The frame of a GGUF file, checked before the `gguf` library reads it: counts, lengths and offsets all lie within the file.

The library trusts them. A count of 2^60 makes it loop, and fill memory, for as long as it is let. What the keys mean is not looked at here.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import gguf

from trtllm_engines.documents import regular_file
from trtllm_engines.errors import EngineError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type."""
MOST_KEYS, MOST_TENSORS, MOST_DIMENSIONS = 65_536, 1_048_576, 4
MOST_ELEMENTS = 2**40
MOST_ENTRIES = 2**22
"""Of an array; the largest vocabularies and merge lists have half a million. The library makes an object of each."""


class _Frame:
    """A cursor over the file that never leaves it. Raises ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.end = data, 0, len(data)
        self.order = "<"

    def number(self, form: str) -> int:
        size = struct.calcsize(form)
        self.need(size)
        (value,) = struct.unpack_from(self.order + form, self.data, self.at)
        self.at += size
        return int(value)

    def need(self, count: int) -> None:
        if count > self.end - self.at:
            raise ValueError(f"it ends at byte {self.end}, within what it says it holds")

    def skip(self, count: int) -> None:
        self.need(count)
        self.at += count

    def string(self) -> str:
        length = self.number("Q")
        self.need(length)
        text = self.data[self.at : self.at + length]
        self.at += length
        return text.decode("utf-8", errors="replace")


def check_frame(path: Path) -> None:
    """Raises `EngineError` for a file that is not a whole GGUF."""
    try:
        size = regular_file(path).st_size
        if size < 24:
            raise ValueError(f"it has {size} bytes")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(_Frame(data))
    except (OSError, ValueError) as error:
        if isinstance(error, EngineError):
            raise
        raise EngineError(f"{path} is not a whole GGUF file ({error}); download it again") from None


def _check(frame: _Frame) -> None:
    if frame.data[:4] != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    frame.at = 4
    version = frame.number("I")
    if version & 0xFFFF == 0:
        frame.order, frame.at = ">", 4
        version = frame.number("I")
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}; versions 2 and 3 are read")
    tensors, keys = frame.number("Q"), frame.number("Q")
    if tensors > MOST_TENSORS or keys > MOST_KEYS:
        raise ValueError(f"it says it has {tensors} tensors and {keys} keys")
    alignment, names = 32, set()
    for _ in range(keys):
        key = frame.string()
        if key in names:
            raise ValueError(f"key {key[:60]!r} is there twice")
        names.add(key)
        kind = frame.number("I")
        if key == "general.alignment":
            if kind != 4:
                raise ValueError("general.alignment is not an unsigned number")
            alignment = frame.number("I")
        else:
            _skip_value(frame, kind, depth=0)
    if not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment}")
    ends = [_tensor_end(frame, names) for _ in range(tensors)]
    start = -(-frame.at // alignment) * alignment
    for name, offset, nbytes in ends:
        if offset % alignment or start + offset + nbytes > frame.end:
            raise ValueError(f"tensor {name[:60]!r} lies beyond its {frame.end} bytes")


def _skip_value(frame: _Frame, kind: int, depth: int) -> None:
    if kind in _SCALARS:
        frame.skip(_SCALARS[kind])
    elif kind == _STRING:
        frame.skip(frame.number("Q"))
    elif kind == _ARRAY:
        inner, count = frame.number("I"), frame.number("Q")
        if count > MOST_ENTRIES:
            raise ValueError(f"it has an array of {count} entries at byte {frame.at}")
        if inner in _SCALARS:
            frame.skip(_SCALARS[inner] * count)
            return
        if inner not in (_STRING, _ARRAY) or depth:
            raise ValueError(f"it has an array of type {inner} at byte {frame.at}")
        frame.need(8 * count)
        for _ in range(count):
            _skip_value(frame, inner, depth + 1)
    else:
        raise ValueError(f"it has a value of type {kind} at byte {frame.at}")


def _tensor_end(frame: _Frame, names: set[str]) -> tuple[str, int, int]:
    """(name, offset, bytes) of the next tensor."""
    name = frame.string()
    dimensions = frame.number("I")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise ValueError(f"tensor {name[:60]!r} has {dimensions} dimensions")
    elements, shape = 1, [frame.number("Q") for _ in range(dimensions)]
    for size in shape:
        elements *= size
        if not 1 <= elements <= MOST_ELEMENTS:
            raise ValueError(f"tensor {name[:60]!r} has shape {shape}")
    kind = frame.number("I")
    if kind not in gguf.GGML_QUANT_SIZES:
        raise ValueError(f"tensor {name[:60]!r} is of type {kind}")
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    if shape[0] % block:
        raise ValueError(f"tensor {name[:60]!r} has rows of {shape[0]} values, in blocks of {block}")
    if f"tensor {name}" in names:
        raise ValueError(f"tensor {name[:60]!r} is there twice")
    names.add(f"tensor {name}")
    return name, frame.number("Q"), elements // block * block_bytes
