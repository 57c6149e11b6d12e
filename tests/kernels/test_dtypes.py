"""Sizes of number formats: torch's own where torch has the format, whole bytes of a tensor, unknown names refused."""

import pytest
import torch

from trtllm_kernels.dialect import dtypes
from trtllm_kernels.dialect.dtypes import BITS, bits_of, bytes_of, elements_in, nbytes
from trtllm_kernels.dialect.specs import DTYPES, bytes_of_codes, spec_of, storage_shape
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.errors import KernelError


def test_sizes_are_torchs() -> None:
    packed = {"int4": 2, "fp4": 2, "nf4": 2}
    assert {name: BITS[name] * packed.get(name, 1) for name in DTYPES} == {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()}


@pytest.mark.parametrize("dtype", ["int4", "fp4", "nf4"])
def test_a_specification_counts_codes_and_torch_their_bytes(dtype: str) -> None:
    tensor = torch.zeros(storage_shape((3, 10), dtype), dtype=torch.uint8).view(DTYPES[dtype])
    assert tensor.shape == (3, 5)
    assert spec_of(tensor) == TensorSpec((3, 10), dtype)
    assert nbytes(spec_of(tensor)) == 15
    assert bytes_of_codes(tensor).dtype == torch.uint8
    with pytest.raises(KernelError, match=f"a row of 7 {dtype} codes does not fill whole bytes; it must be a multiple of 2"):
        storage_shape((3, 7), dtype)


def test_a_tensor_takes_the_bytes_of_its_shape_at_a_step() -> None:
    assert nbytes(TensorSpec(("ceil_div(T, 2)", 3), "bf16"), {"T": 5}) == 18
    with pytest.raises(KernelError, match="expression 'T' needs a value for T"):
        nbytes(TensorSpec(("T",), "bf16"))


def test_packed_elements_take_whole_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "BITS", {**BITS, "code4": 4})
    assert [bytes_of(count, "code4") for count in (0, 1, 2, 5)] == [0, 1, 1, 3]
    assert elements_in(128, "code4") == 256
    assert nbytes(TensorSpec((3, 5), "code4")) == 8


def test_an_unknown_dtype_is_refused_with_those_there_are() -> None:
    with pytest.raises(KernelError, match="dtype 'fp5' is unknown; use one of fp32, fp16, bf16"):
        bits_of("fp5")
