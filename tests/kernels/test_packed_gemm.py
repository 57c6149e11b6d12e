"""Products with packed weights: results by emulation, launches, machine code."""

import re
from dataclasses import replace

import pytest
import torch
from emulated import emulate
from machine_code import Instruction, disassembled
from normed_samples import normed, normed_rows
from packed_samples import SCHEMES, Packed, large, lowered_for, result_like, sample, tile

from trtllm_kernels.compile import nvrtc
from trtllm_kernels.compile.catalogue import MODELS, ops_of
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import Lowered, TensorSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering import lower, search_space
from trtllm_kernels.lowering.packed_tiles import PADDED
from trtllm_kernels.references import OPS

INT4, NVFP4, W4A8 = SCHEMES[0], SCHEMES[6], SCHEMES[12]
FP8_INT4, FP8_BLOCKS, FP8_ROWS = Packed("int4", "fp8"), SCHEMES[14], SCHEMES[15]
EMULATED = {
    # two blocks and two warpgroups divide K, rows end within a tile of tokens; rings turn
    "int4": ("linear", INT4, 128, 1664, 5, {"bias": True, "residual": True}, tile(8, rows=64, turns=2, parts=2, columns=256)),
    # x is there as a whole; codes are numbers as they are
    "int4 of one token": ("linear", INT4, 64, 1024, 1, {"residual": True}, tile(8, rows=64, turns=2, parts=2)),
    # warpgroups have every other stage of short rings, and loads end in any order
    "w4a8 of one token": ("linear", FP8_INT4, 64, 2048, 1, {}, tile(8, rows=64, turns=2, blocks=3, columns=256)),
    # four blocks, rows end within a block's; scales are factors of the codes
    "nvfp4": ("linear", NVFP4, 192, 576, 30, {"residual": True}, tile(32, rows=128, parts=4)),
    # zero points are products, both scales of rows, gates and what they gate
    "w4a8": ("gate_up_silu", W4A8, 128, 448, 12, {"quantize": True}, tile(16, rows=128)),
    # warpgroups take turns, one of them a step more; sums of two groups
    "turns": ("linear", FP8_INT4, 64, 1280, 34, {}, tile(64, rows=64, turns=2, columns=256)),
    # two blocks have a tile of rows in common, of which one takes a step more; the ring turns
    "pair": ("linear", INT4, 192, 640, 70, {"residual": True}, tile(128, rows=96)),
    # and the gates of its rows; blocks of a pair each with half of a tile more
    "gated pair": ("gate_up_silu", FP8_INT4, 192, 256, 10, {"quantize": True}, tile(16, rows=96)),
    # x has a ring of its own, which turns
    "two rings": ("linear", INT4, 64, 768, 70, {}, tile(128, rows=64)),
    # tiles of many tokens follow each other in a block, and rows and tokens end within them; scales are factors, rounded to bf16
    "large int4": ("linear", INT4, 320, 384, 70, {"bias": True, "residual": True}, large(128, 256, 64)),
    # scales are factors, of few tokens and of many; fp16 has fewer exponents
    "fp8": ("linear", FP8_BLOCKS, 64, 512, 34, {"residual": True}, tile(64, rows=64, turns=2)),
    "large fp8": ("linear", FP8_ROWS, 64, 256, 20, {}, large(64, 128, 64)),
    # sums of parts of a tile's tokens, in turns
    "large w4a8": ("gate_up_silu", FP8_INT4, 192, 256, 140, {"quantize": True}, large(256, 128, 128)),
    # two blocks divide K, one of them a step more
    "large parts": ("linear", FP8_INT4, 192, 384, 36, {"residual": True}, large(64, 128, 64, 2)),
    # and store gates with what they gate
    "large gated parts": ("gate_up_silu", FP8_INT4, 128, 256, 36, {}, large(64, 128, 64, 2)),
}


@pytest.mark.parametrize("name", EMULATED)
def test_the_kernels_compute_their_reference(name: str) -> None:
    """By the source that is compiled for the GPU and the launch that engines have, on fibers: sums differ in their order alone."""
    op, scheme, rows, columns, tokens, epilogue, tactic = EMULATED[name]
    named = sample(op, scheme, rows, columns, tokens, **epilogue)
    y = result_like(op, named)
    y.view(torch.uint8).fill_(0xFF)
    emulate(
        lowered_for(op, named, y, tactic), named, y, tokens, blocks=2 if name.startswith("large") and not name.endswith("parts") else None
    )
    expected = OPS[op].reference(**{name: named.get(name) for name in OP_SPECS[op].tensors}).float()
    assert float((y.float() - expected).norm() / expected.norm()) < (3e-3 if name in ("large int4", "fp8", "pair", "two rings") else 1e-3)


NORMED = {
    # the last step of K is a part of one, and the second block has fewer
    "int4": ("linear", INT4, 64, 640, 3, {}, tile(8, rows=64, turns=2, parts=2, columns=256)),
    # rows of x after its one overlap it
    "w4a8 of one token": ("linear", FP8_INT4, 64, 1024, 1, {}, tile(8, rows=64, turns=2, parts=2)),
    "w4a8": ("gate_up_silu", FP8_INT4, 128, 512, 6, {"quantize": True}, tile(8, rows=128)),
    # codes are numbers as they are
    "int4 of one token": ("gate_up_silu", INT4, 128, 512, 1, {}, tile(8, rows=128)),
}


@pytest.mark.parametrize("name", NORMED)
def test_products_that_take_a_norm_compute_what_the_two_ops_do(name: str) -> None:
    """As above. What the norm would have left is NaN, and read by nothing."""
    op, scheme, rows, columns, tokens, epilogue, tactic = NORMED[name]
    product = {key: value for key, value in sample(op, scheme, rows, columns, tokens, **epilogue).items() if key != "x"}
    both = normed(op, product, normed_rows(tokens, columns, scheme.inputs), {"norms_to": 8} | tactic)
    y = torch.empty_like(both.expected)
    for unread in (y, both.named["x"]):
        unread.view(torch.uint8).fill_(0xFF)
    emulate(both.product, both.named, y, tokens)
    error = float((y.float() - both.expected.float()).norm() / both.expected.float().norm())
    assert error < (1e-2 if "out_scale" in both.named else 1e-3)


def linear(rows: int = 4096, columns: int = 4096, arch: str = "sm_90", group: int = 128, **tactic: int) -> Lowered:
    x, weight, y = TensorSpec(("T", columns), "bf16"), TensorSpec((rows, columns), "int4"), TensorSpec(("T", rows), "bf16")
    scale = TensorSpec((columns // group, rows), "bf16")
    return lower("linear", [x, weight, None, None, None, None, scale], [y], {}, arch, tactic=tactic)


def running(lowered: Lowered, tokens: int) -> list[str]:
    specs = {spec.key: spec for spec in lowered.kernels}
    names = []
    for launch in lowered.launches:
        if min(evaluate(dim, {"T": tokens}) for dim in launch.grid) > 0:
            spec = specs.get(launch.kernel)
            names.append(launch.library or f"{spec.function} {spec.constexprs.get('TOKENS', '')}".strip() if spec else launch.library)
    return names


@pytest.mark.parametrize(("few", "many"), [(128, 2048), (20, 300), (0, 64), (64, 0), (32, 1 << 30)])
def test_each_number_of_tokens_has_one_routine(few: int, many: int) -> None:
    lowered = linear(packed_to=few, large_to=many)
    for tokens in (0, 1, 8, 9, 20, 21, 32, 33, 64, 65, 128, 129, 256, 300, 301, 512, 2048, 2049, 9000):
        names = running(lowered, tokens)
        if tokens == 0:
            assert names == []
        elif tokens <= few:
            kernel = "packed_gemm" if tokens <= PADDED[0] else "packed_gemm_pipelined"
            assert names == [f"{kernel} {next(size for size in PADDED if tokens <= size)}"]
        elif tokens <= many:
            (name,) = names
            assert name.startswith("packed_gemm_large")
        else:
            assert names == ["widen_weight", "matmul"]
    assert any(name.endswith(":weight") for name in lowered.workspaces) == (many < 1 << 30)


def test_the_librarys_result_before_an_activation_is_never_fp8() -> None:
    """cuBLASLt refuses to write fp8 from wide operands; the activation kernel quantizes."""
    x, scale = TensorSpec(("T", 640), "bf16"), TensorSpec((1,), "fp32")
    inputs = [x, TensorSpec((384, 640), "int4"), None, None, scale, TensorSpec((5, 384), "bf16")]
    lowered = lower("gate_up_silu", inputs, [TensorSpec(("T", 192), "fp8")], {}, "sm_90", tactic={"large_to": 0})
    (library,) = [launch for launch in lowered.launches if launch.library]
    assert [lowered.workspaces[arg.value].dtype for arg in library.args if arg.value in lowered.workspaces] == ["bf16", "bf16"]


def test_a_wide_weight_lies_in_scratch_memory_where_there_is_no_kernel_of_few_tokens() -> None:
    for lowered, tokens in (
        (linear(arch="sm_89"), 257),
        (linear(group=24, columns=192), 7),
        (linear(group=24, columns=192, arch="sm_80"), 7),
    ):
        assert running(lowered, tokens)[0] == "widen_weight"
        (wide,) = [spec for name, spec in lowered.workspaces.items() if name.endswith(":weight")]
        assert wide.dtype == "bf16"
    with pytest.raises(KernelError, match="96 x 4096 cannot be stored as int4"):
        linear(rows=96)
    with pytest.raises(KernelError, match="none of those for packed weights in groups of 128"):
        linear(packed8_parts=3)
    with pytest.raises(KernelError, match=r"tile \(192, \d+, 1\) is none of"):
        linear(large2048_rows=192)


def test_every_tile_of_tunings_space_lowers_within_shared_memory() -> None:
    met = set()
    for op in ops_of(MODELS["llama-3.1-8b"], "fp8"):
        weight = op.inputs[1] if len(op.inputs) > 1 else None
        if op.op == "linear" and weight is not None and weight.dtype == "int4":
            for choice in search_space(op.op, op.inputs, op.outputs, op.attrs, "sm_90"):
                for candidate in choice.candidates:
                    for spec in lower(op.op, op.inputs, op.outputs, op.attrs, "sm_90", tactic=candidate).kernels:
                        if spec.function == "packed_gemm":
                            assert min(spec.constexprs["W_STAGES"], spec.constexprs["X_STAGES"]) > spec.constexprs["K_GROUPS"]
                        if spec.function == "packed_gemm_pipelined":
                            assert spec.constexprs["RING"] >= 2 * spec.constexprs["K_GROUPS"]
                        assert not spec.is_cuda or spec.constexprs["SHARED_BYTES"] <= 227 * 1024
                        met.add(spec.function)
    assert met >= {"packed_gemm", "packed_gemm_pipelined", "packed_gemm_large"}


@pytest.mark.parametrize(("columns", "turns", "blocks"), [(4096, 2, 2), (14336, 4, 1)], ids=["o", "down"])
def test_fp8_of_one_token_is_whole_and_small_blocks_leave_room(columns: int, turns: int, blocks: int) -> None:
    x, weight, one = TensorSpec(("T", columns), "fp8"), TensorSpec((4096, columns), "int4"), TensorSpec((1,), "fp32")
    y, scale = TensorSpec(("T", 4096), "bf16"), TensorSpec((columns // 128, 4096), "bf16")
    kernels = lower("linear", [x, weight, None, one, None, y, scale], [y], {}, "sm_90").kernels
    of_one = [spec.constexprs for spec in kernels if spec.constexprs.get("WHOLE_X") == 1]
    assert [(each["K_GROUPS"], each["BLOCKS"], each["COLUMNS"]) for each in of_one] == [(turns, blocks, 256)]
    uneven = lower("linear", [replace(x, shape=("T", 4160)), replace(weight, shape=(4096, 4160)), None, one], [y], {}, "sm_90").kernels
    assert not [spec for spec in uneven if spec.constexprs.get("WHOLE_X")]


def in_loop(code: list[Instruction]) -> int:
    """Instructions of the loop around the last products."""
    products = [address for address, opcode, _ in code if "MMA" in opcode]
    for address, opcode, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands)
        if opcode.startswith("BRA") and address > products[-1] and target and int(target[1], 16) <= products[-1]:
            return sum(int(target[1], 16) <= one <= address for one, *_ in code)
    raise AssertionError("no loop")


@pytest.mark.parametrize(
    ("scheme", "most", "whole"),
    [(INT4, 140, 0), (FP8_INT4, 110, 0), (INT4, 85, 1)],
    ids=["int4", "w4a8", "int4-1"],
)
def test_few_instructions_decode_a_tile_and_weights_do_not_wait(scheme: Packed, most: int, whole: int) -> None:
    """Of few tokens and of one: 64 x 128 codes, at whose rate memory brings them if the loop takes fewer than 200."""
    y = TensorSpec(("T", 4096), "bf16")
    scale = TensorSpec((4096 // scheme.group, 4096), scheme.scale)
    one = TensorSpec((1,), "fp32")
    x, weight = TensorSpec(("T", 4096), scheme.inputs), TensorSpec((4096, 4096), scheme.dtype)
    inputs = [x, weight, None, one if scheme.inputs == "fp8" else None, one if scheme.weight_scale else None, None, scale]
    kernels = lower("linear", inputs, [y], {}, "sm_90").kernels
    spec = next(s for s in kernels if (s.constexprs.get("TOKENS"), s.constexprs.get("WHOLE_X")) == (8, whole))
    machine_code, ptx, said = nvrtc.compile_source(spec, "sm_90")
    ((_, code),) = disassembled([machine_code], "sm_90")
    assert "0 bytes spill stores" in said
    assert in_loop(code) * 128 / spec.constexprs["COLUMNS"] <= most
    assert not [opcode for _, opcode, _ in code if opcode.startswith(("MEMBAR", "ERRBAR"))], "none waits for all its loads and stores"
    assert "wgmma" not in said
    of_x = r"ld\.global\S*\.v4" if whole else r"cp\.async\.bulk\.tensor|cp\.async\.cg"
    order = re.findall(rf"(griddepcontrol\.wait)|(cp\.async\.bulk\.shared\S+cache_hint)|({of_x})", ptx)
    kinds = ["wait" if a else "weight" if b else "x" for a, b, _ in order]
    assert kinds[0] == "weight"
    assert kinds.index("wait") < kinds.index("x")


@pytest.mark.parametrize(("scheme", "rows", "tokens"), [(INT4, 256, 128), (FP8_INT4, 128, 256)], ids=["int4", "w4a8"])
def test_large_tiles_keep_their_sums_in_registers(scheme: Packed, rows: int, tokens: int) -> None:
    """The assembler lets products run on while the next codes are decoded. Warpgroups that take registers wait for ever where all together
    would have more than the launch gives."""
    named = sample("linear", scheme, 256, 256, 1)
    lowered = lowered_for("linear", named, result_like("linear", named), large(512, rows, tokens))
    spec = next(s for s in lowered.kernels if (s.constexprs.get("M_TILES"), s.constexprs["TOKENS"]) == (rows // 128, tokens))
    _, ptx, said = nvrtc.compile_source(spec, "sm_90")
    assert "0 bytes spill stores" in said
    assert "wgmma" not in said
    given = int(re.search(r"Used (\d+) registers", said)[1])
    (less,), (more,) = (set(map(int, re.findall(rf"setmaxnreg\.{way}\S* (\d+)", ptx))) for way in ("dec", "inc"))
    assert less + 2 * more <= 3 * given


@pytest.mark.parametrize("scheme", [INT4, FP8_INT4], ids=["int4", "w4a8"])
def test_codes_are_decoded_while_products_of_the_last_ones_run(scheme: Packed) -> None:
    """Between the products of a unit and the wait for them the assembler leaves what decodes the next. Registers as in the large tiles."""
    named = sample("linear", scheme, 256, 512, 1)
    lowered = lowered_for("linear", named, result_like("linear", named), tile(64, rows=256))
    spec = next(s for s in lowered.kernels if s.constexprs["TOKENS"] == 64 and s.function == "packed_gemm_pipelined")
    machine_code, ptx, said = nvrtc.compile_source(spec, "sm_90")
    assert "wgmma" not in said
    given = int(re.search(r"Used (\d+) registers", said)[1])
    (less,), (more,) = (set(map(int, re.findall(rf"setmaxnreg\.{way}\S* (\d+)", ptx))) for way in ("dec", "inc"))
    assert less + 4 * more <= 5 * given
    ((_, code),) = disassembled([machine_code], "sm_90")
    opcodes = [opcode for _, opcode, _ in code]
    waits = [index for index, opcode in enumerate(opcodes) if opcode.startswith("WARPGROUP.DEPBAR")]
    assert len(waits) == 2
    for before, wait in zip((0, *waits), waits, strict=False):
        first = next(index for index in range(before, wait) if "GMMA" in opcodes[index])
        assert sum(opcode.startswith("LOP3") for opcode in opcodes[first:wait]) >= 16


@pytest.mark.parametrize(
    ("rows", "of_block", "paired", "blocks"), [(28672, 256, True, 128), (57344, 256, True, 256), (36864, 192, False, 192)]
)
def test_blocks_of_64_tokens_have_equal_shares_of_many_rows(rows: int, of_block: int, paired: bool, blocks: int) -> None:
    """`of_block`: with the tile that two have in common, of which each takes half."""
    lowered = linear(rows)
    (launch,) = [one for one in lowered.launches if min(evaluate(dim, {"T": 64}) for dim in one.grid) > 0]
    values = next(spec.constexprs for spec in lowered.kernels if spec.key == launch.kernel)
    assert (64 * values["ROW_GROUPS"], values["PAIRED"]) == (of_block, paired)
    assert evaluate(launch.grid[0], {"T": 64}) * evaluate(launch.grid[1], {"T": 64}) == blocks


@pytest.mark.parametrize(("rows", "columns"), [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)])
def test_blocks_of_one_token_run_at_once(rows: int, columns: int) -> None:
    """The blocks of all rows and parts fit on the 132 SMs of an H200 together."""
    lowered = linear(rows, columns)
    (launch,) = [one for one in lowered.launches if min(evaluate(dim, {"T": 1}) for dim in one.grid) > 0]
    values = next(spec.constexprs for spec in lowered.kernels if spec.key == launch.kernel)
    blocks = evaluate(launch.grid[0], {"T": 1}) * evaluate(launch.grid[1], {"T": 1})
    assert blocks <= 132 * values["BLOCKS"]
    assert values["SHARED_BYTES"] * values["BLOCKS"] <= 227 * 1024
