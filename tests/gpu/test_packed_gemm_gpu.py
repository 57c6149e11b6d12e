"""Products with packed weights on the GPU against their references, by the launches that engines run. Results are poisoned before."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

from compiled_once import compiled_once
from normed_samples import Normed, normed, normed_rows
from packed_samples import SCHEMES, Packed, copied, lowered_for, result_like, sample, tile

from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.dialect.types import Lowered
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.lowering.packed_large import LARGE_SIZES, LARGE_TILES
from trtllm_kernels.references import OPS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("packed"),
    pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"),
]
TOKENS = (1, 2, 7, 8, 9, 16, 33, 64, 96, 128, 200, 513)
EPILOGUES = {
    "linear": ({}, {"bias": True}, {"residual": True}, {"bias": True, "residual": True}),
    "gate_up_silu": ({}, {"quantize": True}),
    "linear_gelu": ({"bias": True}, {"bias": True, "quantize": True}),
}
ALL = [(op, scheme, epilogue) for op, epilogues in EPILOGUES.items() for scheme in SCHEMES for epilogue in epilogues]
WHOLE = [(op, scheme, epilogue) for op, scheme, epilogue in ALL if scheme == SCHEMES[0] or epilogue == EPILOGUES[op][-1]]
"""Every epilogue of the first scheme, the largest one of the others."""
TILES = [
    tile(8, rows=64, turns=1, parts=1, columns=256) | tile(16, rows=64, turns=2, parts=4, columns=256),
    tile(8, rows=128, blocks=2) | tile(16, rows=256) | tile(64, rows=64, turns=2, parts=2) | tile(128, rows=64, parts=4),
    tile(8, rows=64) | tile(16, rows=160) | tile(32, rows=64, turns=3) | tile(64, rows=160) | tile(128, rows=160),
    tile(8, rows=128, turns=2, parts=2) | tile(16, rows=128, turns=2) | tile(64, rows=128, parts=2) | tile(128, rows=128, parts=4),
]
SHARED_STAGES = [
    tile(8, rows=64, turns=2, parts=2, blocks=3, columns=256) | tile(16, rows=64, turns=2, parts=2, blocks=2, columns=256),
    tile(8, rows=64, turns=4, parts=1, blocks=2, columns=256) | tile(16, rows=64, turns=2, parts=1, blocks=2, columns=256),
]
"""Short rings that turn often, which warpgroups share."""
WIDENED = {"large_to": 0}
NORMED = [(op, scheme, {}) for op in ("linear", "gate_up_silu") for scheme in SCHEMES if not scheme.x_by_row]
NORMED += [(op, scheme, tile(8, rows=128, blocks=2)) for op in ("linear", "gate_up_silu") for scheme in (SCHEMES[0], SCHEMES[11])]
LARGE_SCHEMES = (SCHEMES[0], SCHEMES[1], SCHEMES[6], SCHEMES[11], SCHEMES[12], SCHEMES[13])
LARGE = [
    (scheme, tile)
    for scheme in LARGE_SCHEMES
    for tile in LARGE_TILES
    if not (scheme.inputs == "fp8" and scheme.group and tile[:2] == (256, 128))
]


def of_many(tile: tuple[int, int, int]) -> dict[str, int]:
    """A tactic that takes the kernel of many tokens for more than 8, by one tile."""
    names = ("rows", "tokens", "parts")
    return {f"large{size}_{name}": value for size in LARGE_SIZES for name, value in zip(names, tile, strict=True)} | {"packed_to": 8}


def case(op: str, scheme: Packed, rows: int, columns: int, epilogue: dict[str, bool]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    return (named := sample(op, scheme, rows, columns, max(TOKENS), **epilogue)), result_like(op, named)


def case_of_norm(op: str, scheme: Packed, tactic: dict[str, int]) -> Normed:
    """Of 8 tokens; K ends within a step."""
    named = sample(op, scheme, 384, 1152, 8, quantize=op == "gate_up_silu")
    product = {name: value for name, value in named.items() if name != "x"}
    return normed(op, product, normed_rows(8, 1152, scheme.inputs), {"norms_to": 8} | tactic)


def all_lowered() -> list[Lowered]:
    found = [case_of_norm(op, scheme, tactic).product for op, scheme, tactic in NORMED]
    for op, scheme, epilogue in WHOLE:
        named, y = case(op, scheme, 384, 640, epilogue)
        found.append(lowered_for(op, named, y))
    for tactic in TILES:
        named, y = case("linear", SCHEMES[0], 320, 2176, {"residual": True})
        found.append(lowered_for("linear", named, y, tactic))
    for tactic in SHARED_STAGES:
        named, y = case("linear", SCHEMES[11], 2112, 10240, {"residual": True})
        found.append(lowered_for("linear", named, y, tactic))
    for scheme in LARGE_SCHEMES:
        named, y = case("linear", scheme, 2624, 2176, {"residual": True})
        found += [lowered_for("linear", named, y, of_many(tile)) for one, tile in LARGE if one == scheme]
    for scheme in (SCHEMES[0], SCHEMES[11]):
        named, y = case("gate_up_silu", scheme, 384, 640, {"quantize": True})
        found.append(lowered_for("gate_up_silu", named, y, WIDENED))
    return found


@pytest.fixture(scope="module")
def cubins() -> dict[str, object]:
    """All kernels of this file, compiled by all cores at once."""
    return dict(compiled_once([spec for one in all_lowered() for spec in one.kernels], "sm_90"))


def on_gpu(lowered: Lowered, named: dict[str, torch.Tensor], tokens: int) -> dict[str, torch.Tensor]:
    """Copies of `named`, and poisoned scratch memory for steps of up to so many tokens."""
    tensors = {name: copied(value, "cuda") for name, value in named.items()}
    for name, spec in lowered.workspaces.items():
        tensors[name] = torch.empty([evaluate(dim, {"T": tokens}) for dim in spec.shape], dtype=DTYPES[spec.dtype], device="cuda")
        tensors[name].view(torch.uint8).fill_(0xFF)
    return tensors


def run(lowered: Lowered, named: dict[str, torch.Tensor], y: torch.Tensor, cubins: dict[str, object]) -> dict[int, torch.Tensor]:
    """The result at every number of tokens, from buffers of the largest step."""
    tensors = on_gpu(lowered, {**named, "out0": y}, max(TOKENS))
    program = BoundProgram([lowered], tensors.__getitem__, cubins)  # type: ignore[arg-type]
    results = {}
    for tokens in TOKENS:
        tensors["out0"].view(torch.uint8).fill_(0xFF)
        program.set_symbols(T=tokens, R=1, D=0, S=1, C=0)
        program.run()
        results[tokens] = tensors["out0"][:tokens].cpu()
        assert bool((tensors["out0"][tokens:].view(torch.uint8) == 0xFF).all()), f"rows behind {tokens} tokens were written"
    return results


def apart(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.float() - want.float()).norm() / want.float().norm())


@pytest.mark.parametrize(("op", "scheme", "epilogue"), WHOLE, ids=lambda value: getattr(value, "name", str(value)))
def test_products_equal_their_references(op: str, scheme: Packed, epilogue: dict[str, bool], cubins: dict[str, object]) -> None:
    """Results are rounded once, to bf16 (2^-9 at most) or fp8; wide weights of many tokens, and nf4's numbers, once more."""
    named, y = case(op, scheme, 384, 640, epilogue)
    expected = OPS[op].reference(**{name: named.get(name) for name in OP_SPECS[op].tensors})
    allowed = 4e-2 if epilogue.get("quantize") else 6e-3 if op == "linear" else 1e-2
    wrong = {}
    for tokens, got in run(lowered_for(op, named, y), named, y, cubins).items():
        error = apart(got, expected[:tokens])
        if not error < allowed:
            wrong[tokens] = error
    assert not wrong, f"relative errors by tokens: {wrong}"


@pytest.mark.parametrize(("op", "scheme", "tactic"), NORMED, ids=lambda value: getattr(value, "name", str(value)))
def test_products_that_take_a_norm_equal_the_two_ops(op: str, scheme: Packed, tactic: dict[str, int], cubins: dict[str, object]) -> None:
    """The same bits again and again; what the norm would have left is read by nothing."""
    both = case_of_norm(op, scheme, tactic)
    tensors = on_gpu(both.product, {**both.named, "out0": both.expected}, 8)
    tensors["x"].view(torch.uint8).fill_(0xFF)
    program = BoundProgram([both.product], tensors.__getitem__, cubins)  # type: ignore[arg-type]
    out = tensors["out0"]
    for tokens in (1, 2, 7, 8):
        results = []
        for _ in range(10):
            out.view(torch.uint8).fill_(0xFF)
            program.set_symbols(T=tokens, R=1, D=0, S=1, C=0)
            program.run()
            results.append(out.view(torch.uint8).cpu())
        assert all(torch.equal(result, results[0]) for result in results)
        assert bool((results[0][tokens:] == 0xFF).all())
        assert apart(out[:tokens].cpu(), both.expected[:tokens]) < (4e-2 if op == "gate_up_silu" else 6e-3), tokens


@pytest.mark.parametrize("tactic", TILES, ids=range(len(TILES)))
def test_every_tile_gives_the_same(tactic: dict[str, int], cubins: dict[str, object]) -> None:
    """Rings that turn, rows that end within a block, parts and turns of K; and the same bits again and again."""
    named, y = case("linear", SCHEMES[0], 320, 2176, {"residual": True})
    expected = OPS["linear"].reference(**{name: named.get(name) for name in OP_SPECS["linear"].tensors})
    lowered = lowered_for("linear", named, y, tactic)
    first = run(lowered, named, y, cubins)
    for tokens, got in first.items():
        assert apart(got, expected[:tokens]) < 6e-3, tokens
    for _ in range(20):
        again = run(lowered, named, y, cubins)
        assert all(torch.equal(again[tokens], got) for tokens, got in first.items() if tokens <= 128)


@pytest.mark.parametrize("tactic", SHARED_STAGES, ids=range(len(SHARED_STAGES)))
def test_warpgroups_that_take_turns_keep_their_stages_apart(tactic: dict[str, int], cubins: dict[str, object]) -> None:
    """Where two blocks share an SM, rings are short and loads of a stage follow each other closely."""
    named, y = case("linear", SCHEMES[11], 2112, 10240, {"residual": True})
    expected = OPS["linear"].reference(**{name: named.get(name) for name in OP_SPECS["linear"].tensors})
    lowered = lowered_for("linear", named, y, tactic)
    first = run(lowered, named, y, cubins)
    assert all(apart(got, expected[:tokens]) < 6e-3 for tokens, got in first.items() if tokens <= 16)
    for _ in range(50):
        again = run(lowered, named, y, cubins)
        assert all(torch.equal(again[tokens], got) for tokens, got in first.items() if tokens <= 16)


@pytest.mark.parametrize(("scheme", "tile"), LARGE, ids=[f"{scheme.name}-{tile}" for scheme, tile in LARGE])
def test_every_tile_of_many_tokens_gives_the_same(scheme: Packed, tile: tuple[int, int, int], cubins: dict[str, object]) -> None:
    """Blocks have several tiles, of whose rows and tokens some end within them; and the same bits again and again."""
    named, y = case("linear", scheme, 2624, 2176, {"residual": True})
    expected = OPS["linear"].reference(**{name: named.get(name) for name in OP_SPECS["linear"].tensors})
    lowered = lowered_for("linear", named, y, of_many(tile))
    first = run(lowered, named, y, cubins)
    for tokens, got in first.items():
        assert apart(got, expected[:tokens]) < 6e-3, tokens
    for _ in range(5):
        again = run(lowered, named, y, cubins)
        assert all(torch.equal(again[tokens], got) for tokens, got in first.items() if tokens > 8)


@pytest.mark.parametrize("scheme", [SCHEMES[0], SCHEMES[11]], ids=lambda scheme: scheme.name)
def test_a_weight_made_wide_gives_quantized_results(scheme: Packed, cubins: dict[str, object]) -> None:
    named, y = case("gate_up_silu", scheme, 384, 640, {"quantize": True})
    expected = OPS["gate_up_silu"].reference(**{name: named.get(name) for name in OP_SPECS["gate_up_silu"].tensors})
    results = run(lowered_for("gate_up_silu", named, y, WIDENED), named, y, cubins)
    assert all(apart(results[tokens], expected[:tokens]) < 4e-2 for tokens in TOKENS if tokens > 128)
