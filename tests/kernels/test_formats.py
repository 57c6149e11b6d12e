"""Packed weights: what is packed is unpacked, where each code lies, and what codes mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_kernels.errors import KernelError
from trtllm_kernels.formats import FORMATS, check_shape, is_packed, pack, unpack, values

CASES = [(dtype, inputs) for dtype in FORMATS for inputs in ("bf16", "fp16", "fp8", "fp32", "int8") if is_packed(dtype, inputs)]


def drawn(rows: int, columns: int, dtype: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == "fp8":
        return torch.randint(0, 256, (rows, columns), generator=generator).to(torch.uint8).view(torch.float8_e4m3fn)
    if dtype == "int8":
        return torch.randint(-128, 128, (rows, columns), generator=generator).to(torch.int8)
    return torch.randint(0, 16, (rows, columns), generator=generator).to(torch.uint8)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([*CASES, ("int8", "int8")]), st.integers(1, 3), st.integers(1, 4), st.integers(0, 1 << 30))
def test_what_is_packed_is_unpacked(case: tuple[str, str], rows: int, columns: int, seed: int) -> None:
    codes = drawn(64 * rows, 64 * columns, case[0], seed)
    storage = pack(codes, *case)
    bits = 8 if case[0] in ("int8", "fp8") else 4
    assert storage.shape == (64 * rows, 64 * columns * bits // 8)
    assert storage.is_contiguous()
    assert storage.dtype == codes.dtype
    assert torch.equal(unpack(storage, *case).view(torch.uint8), codes.view(torch.uint8))
    other = codes.clone()
    other.view(torch.uint8)[5, 3] ^= 1
    assert (pack(other, *case).view(torch.uint8) != storage.view(torch.uint8)).sum() == 1


def test_an_int4s_place_is_that_of_the_tensor_cores_register() -> None:
    """Row 16 w + 8 h + g and column 16 s + 8 e + 2 q + i of tile (1, 2) of 2 x 3: word s of thread 32 w + 4 g + q, nibble 2 e + h + 4 i."""
    for w, h, g, s, e, q, i in [(0, 0, 0, 0, 0, 0, 0), (1, 1, 5, 2, 0, 3, 1), (3, 0, 7, 3, 1, 1, 0), (2, 1, 0, 1, 1, 2, 1)]:
        codes = torch.zeros(128, 192, dtype=torch.uint8)
        codes[64 + 16 * w + 8 * h + g, 128 + 16 * s + 8 * e + 2 * q + i] = 9
        words = pack(codes, "int4", "bf16").reshape(-1).view(torch.int32)
        at = int(words.nonzero())
        assert at == (1 * 3 + 2) * 512 + (32 * w + 4 * g + q) * 4 + s
        assert int(words[at]) & 0xFFFFFFFF == 9 << 4 * (2 * e + h + 4 * i)


def test_what_codes_mean() -> None:
    all_of_them = torch.arange(16, dtype=torch.uint8)
    assert values(all_of_them, "int4").tolist() == list(range(16))
    assert values(torch.tensor([-128, 127], dtype=torch.int8), "int8").tolist() == [-128.0, 127.0]
    fp4 = values(all_of_them, "fp4")
    assert fp4[:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert torch.equal(fp4[8:], -fp4[:8])
    nf4 = values(all_of_them, "nf4")
    assert (nf4[0], nf4[7], nf4[15]) == (-1, 0, 1)
    assert bool((nf4.diff() > 0).all())
    # the largest gap of NormalFloat is its first
    assert float(nf4.diff().max()) == pytest.approx(0.3038, abs=1e-4)


def test_shapes_and_formats_without_tiles_are_refused() -> None:
    check_shape(64, 128, "int4")
    for rows, columns in ((96, 128), (64, 100), (0, 64)):
        with pytest.raises(KernelError, match=f"{rows} x {columns} cannot be stored as int4; rows and columns must be multiples of 64"):
            check_shape(rows, columns, "int4")
    with pytest.raises(KernelError, match="multiples of 64"):
        pack(torch.zeros(32, 64, dtype=torch.uint8), "int4", "bf16")
    with pytest.raises(KernelError, match="nf4 with inputs of fp8 have no packed form"):
        pack(torch.zeros(64, 64, dtype=torch.uint8), "nf4", "fp8")
    with pytest.raises(KernelError, match="packed as 'int3'; use one of int4, int8, fp8, fp4, nf4"):
        values(torch.zeros(1), "int3")
