"""The product of few tokens with packed weights that GPUs before Hopper have, forced on Hopper, against its references.

Hopper has mma.sync, too: only the tiles (two warps, so that Triton does not take wgmma) and the wait for the kernel before differ there.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

from compiled_once import compiled_once
from packed_samples import SCHEMES, Packed, copied, lowered_for, result_like, sample
from test_packed_gemm_gpu import EPILOGUES, TOKENS, apart, run
from time_packed_gemm import SHAPES, drawn

from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import Lowered
from trtllm_kernels.lowering.packed_triton import MMA_TO
from trtllm_kernels.references import OPS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("packed"),
    pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"),
]
FORCED = {MMA_TO: 256, "large_to": 0}
SMALL = [("linear", scheme, EPILOGUES["linear"][-1]) for scheme in SCHEMES]
SMALL += [(op, SCHEMES[number], EPILOGUES[op][-1]) for op in ("gate_up_silu", "linear_gelu") for number in (0, 6, 11)]
LARGE = [(shape, SCHEMES[number]) for shape in SHAPES for number in (0, 4, 11)]


def small(op: str, scheme: Packed, epilogue: dict[str, bool]) -> tuple[Lowered, dict[str, torch.Tensor], torch.Tensor]:
    named = sample(op, scheme, 384, 640, max(TOKENS), **epilogue)
    y = result_like(op, named)
    return lowered_for(op, named, y, FORCED), named, y


def large(shape: str, scheme: Packed) -> tuple[Lowered, dict[str, torch.Tensor], torch.Tensor]:
    op, rows, columns = SHAPES[shape]
    named = drawn(op, scheme, rows, columns, max(TOKENS))
    y = result_like(op, named)
    return lowered_for(op, named, y, FORCED), named, y


@pytest.fixture(scope="module")
def cubins() -> dict[str, object]:
    """All kernels of this file, compiled by all cores at once."""
    lowered = [small(*one)[0] for one in SMALL] + [large(*one)[0] for one in LARGE]
    return dict(compiled_once([spec for one in lowered for spec in one.kernels], "sm_90"))


def check(op: str, lowered: Lowered, named: dict[str, torch.Tensor], y: torch.Tensor, cubins: dict[str, object], allowed: float) -> None:
    assert {spec.function for spec in lowered.kernels} >= {"packed_few"}
    on_gpu = {name: copied(value, "cuda") for name, value in named.items()}
    expected = OPS[op].reference(**{name: on_gpu.get(name) for name in OP_SPECS[op].tensors}).cpu()
    results = run(lowered, named, y, cubins)
    wrong = {tokens: error for tokens, got in results.items() if not (error := apart(got, expected[:tokens])) < allowed}
    assert not wrong, f"relative errors by tokens: {wrong}"
    again = run(lowered, named, y, cubins)
    assert all(torch.equal(again[tokens].view(torch.uint8), got.view(torch.uint8)) for tokens, got in results.items() if tokens <= 256)


@pytest.mark.parametrize(("op", "scheme", "epilogue"), SMALL, ids=lambda value: getattr(value, "name", str(value)))
def test_every_format_equals_its_reference(op: str, scheme: Packed, epilogue: dict[str, bool], cubins: dict[str, object]) -> None:
    """Scales of short groups, and of all in tiles of 64 tokens, are rounded once more, as factors of the codes."""
    check(op, *small(op, scheme, epilogue), cubins, 4e-2 if epilogue.get("quantize") else 6e-3 if op == "linear" else 1e-2)


@pytest.mark.parametrize(("shape", "scheme"), LARGE, ids=lambda value: getattr(value, "name", str(value)))
def test_products_of_an_8b_equal_their_references(shape: str, scheme: Packed, cubins: dict[str, object]) -> None:
    op = SHAPES[shape][0]
    lowered, named, y = large(shape, scheme)
    check(op, lowered, named, y, cubins, 4e-2 if "out_scale" in named else 6e-3 if op == "linear" else 1e-2)
