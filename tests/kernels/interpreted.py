"""Runs every kernel in Triton's CPU interpreter against its reference and prints one JSON line a case. Started by test_interpreted.py.

A process of its own, because `TRITON_INTERPRET=1` must be set before a kernel is imported. The launches run are the lowering's: grid,
argument order and skipped launches are tested too. The interpreter's casts to and from bfloat16 and fp8 truncate or miss subnormals, and
its `tl.dot` multiplies their bit patterns; the patches below make both exact. Kernels upcast right after loading, so nothing else touches
those types.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from interpreted_pdl import watched
from torch.testing._comparison import default_tolerances
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

import trtllm_kernels.references
from samples import OUT_SCALE, BatchShape, code_steps, fp8_sample, int8_cache_sample, sample
from trtllm_kernels import lowering
from trtllm_kernels.compile.aot import load_function
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.dialect.types import VALUE_COLUMNS, Lowered
from trtllm_kernels.launch.torch_ops import as_list, lower_call, step_sizes
from trtllm_kernels.lowering import tile_gemm
from trtllm_kernels.lowering.call import OpCall
from trtllm_kernels.lowering.skinny_gemm import IN_TRITON
from trtllm_kernels.references import OPS, communication
from trtllm_kernels.references.quantize import FP8, dequantized
from trtllm_kernels.references.rope import columns_of_values
from trtllm_kernels.triton_kernels import gemv

BY_TRITON = {
    "paged_attention": {"uncached_prefill_cuda": 0, "context_cuda": 0, "decode_cuda_to": 0, "decode_many_to": 0},
    **{
        op: {"skinny_to": 64} | {f"skinny{padded}_blocks": 0 for padded in IN_TRITON}
        for op in ("linear", "linear_sample", "gate_up_silu", "linear_gelu")
    },
}
"""Of an op that has a kernel in CUDA C++, which no interpreter runs: the tactic that does without."""
_FLOATS = {tl.float32: torch.float32, tl.float16: torch.float16, tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn}
_BITS = {4: (torch.int32, np.float32), 2: (torch.int16, np.uint16), 1: (torch.uint8, np.uint8)}


def _values(data, kind):
    """fp32 tensor of what the interpreter's array of `kind` holds: floats of 2 bytes and less are bit patterns to it, but for fp16."""
    kind = _FLOATS[kind]
    bits = torch.from_numpy(np.ascontiguousarray(data).view(f"i{kind.itemsize}" if kind.itemsize > 1 else "u1"))
    return bits.view(kind).float()


def _stored(values, kind):
    """The interpreter's array of fp32 `values` rounded to `kind`, to nearest, ties to even; fp8 saturates, as the GPU's conversion does."""
    if kind == tl.float8e4nv:
        values = torch.where(values.isnan(), values, values.clamp(-448.0, 448.0))
    bits, stored = _BITS[_FLOATS[kind].itemsize]
    return values.to(_FLOATS[kind]).view(bits).numpy().view(np.float16 if kind == tl.float16 else stored)


def without_cuda(arch: str, op: str, inputs, *_) -> dict[str, int] | None:
    """`tactics.recorded`."""
    tactic, codes = BY_TRITON.get(op), inputs[0].dtype
    by_row = codes in ("int8", "fp8") and codes == inputs[1].dtype and any(one and one.shape[1:] == (1,) for one in inputs)
    return tactic | {"row_scaled_cuda": 0} if tactic and by_row else tactic


def make_interpreter_fast() -> None:
    """The interpreter puts its functions into `triton.language` at every call of a function in a kernel, by a search of the whole module,
    which takes a third of the time. Here once for each module with kernels, for good: nothing else runs in this process. And it makes a
    table of all types whenever it looks one up, and a type's name and shape anew for each value."""
    patch, patched = interpreter._patch_lang, set()

    def patch_once(fn) -> interpreter._LangPatchScope:
        if fn.__module__ not in patched:
            patched.add(fn.__module__)
            patch(fn)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once
    make_types_once()
    of_scalar = cache(interpreter._get_np_dtype)
    interpreter._get_np_dtype = lambda kind: np.dtype(np.uint64) if kind.scalar.is_ptr() else of_scalar(kind.scalar)


def make_types_once() -> None:
    """Values of one type share what is known of it."""
    make_block, known = tl.block_type.__init__, {}

    def block(self, element_ty, shape) -> None:
        key = (element_ty.name, *(tl.core._unwrap_if_constexpr(size) for size in shape))
        if key not in known:
            make_block(self, element_ty, shape)
            known[key] = self.__dict__
        self.__dict__ = known[key]

    make_value = tl.tensor.__init__

    def value(self, handle, type) -> None:
        if (shared := type.__dict__.get("of_values")) is None:
            make_value(self, handle, type)
            type.of_values = {name: one for name, one in self.__dict__.items() if name != "handle"}
        else:
            self.__dict__ = {"handle": handle, **shared}

    tl.block_type.__init__, tl.tensor.__init__ = block, value


def make_interpreter_exact() -> None:
    """And what is lowered to what it can run."""
    make_interpreter_fast()
    lowering.tactics.recorded = without_cuda
    tile_gemm.takes_tiles = lambda call: False
    builder = interpreter.InterpreterBuilder
    original_cast, original_convert, original_dot = builder.cast_impl, interpreter._convert_float, builder.create_dot

    def convert(data, have, want, rounding):
        if have in _FLOATS and want in _FLOATS:
            return _stored(_values(data, have), want).reshape(np.shape(data))
        return original_convert(data, have, want, rounding)

    def cast(self, source, target):
        have, want = source.dtype.scalar, target.scalar
        if have in _FLOATS and want in _FLOATS:
            return interpreter.TensorHandle(convert(source.data, have, want, None), want)
        return original_cast(self, source, target)

    def dot(self, a, b, *rest):
        if a.dtype.scalar in _FLOATS:
            a, b = (interpreter.TensorHandle(_values(x.data, x.dtype.scalar).numpy(), tl.float32) for x in (a, b))
        return original_dot(self, a, b, *rest)

    def dot4(w, x):
        """`sums.dot4`: of the four int8 in each word."""
        each = [np.ascontiguousarray(one.handle.data).view(np.int8).reshape(*one.shape, 4).astype(np.int32) for one in (w, x)]
        return tl.core.tensor(interpreter.TensorHandle((each[0] * each[1]).sum(-1, dtype=np.int32), tl.int32), w.type)

    gemv.dot4 = dot4
    interpreter._convert_float = convert
    builder.cast_impl = builder.create_fp_trunc = builder.create_fp_ext = cast
    builder.create_dot = dot


CONSTANTS = ("weight", "bias", "weight_scale", "out_scale", "scale", "index", "factor", "k_scale", "v_scale", "q_norm", "k_norm", "cos_sin")
"""Arguments of ops that an engine stores; an activation's scale may be computed in the step."""


STEP_INPUTS = (
    "block_table",
    "seq_slots",
    "query_start",
    "kv_lens",
    "positions",
    "kv_slots",
    "sampling_words",
    "sample_slots",
    "ring_slot",
    "group",
)
"""Complete before any kernel but `prepare_step` begins."""


def by_nccl(named: dict) -> dict:
    """Arguments as ranks of several hosts have them, of a group of one rank, whose number is 0."""
    for name, joined in (("group", communication._COMMUNICATORS), ("pipe", communication._LINKS)):
        if name in named:
            joined[0] = joined[int(named[name][0])]
            named = {**named, name: torch.zeros(2, dtype=torch.int32)}
    return named


def by_library(name: str, rows: int, x: torch.Tensor, *others: torch.Tensor) -> None:
    """What `gemm.LtMatmul`, `gemm.RowScaledMatmul` and, for one rank, `nccl.NcclCall` do."""
    match name:
        case "nccl_sum":
            others[0][:rows] = x[:rows]
            return
        case "nccl_send":
            communication._LINKS[0].send(x[:rows])
            return
        case "nccl_receive":
            communication._LINKS[0].receive(x[:rows])
            return
        case "nccl_largest":
            return
    weight, *rest = others
    scales, added, y = (rest[:2], rest[2:-1], rest[-1]) if name == "scaled_matmul" else ((None, None), rest[:-1], rest[-1])
    product = dequantized(x[:rows], None if scales[0] is None else scales[0][:rows]) @ dequantized(weight, scales[1]).T
    for one in added:
        product = product + (one if one.dim() == 1 else one[:rows]).float()
    y[:rows] = product


def run_launches(lowered: Lowered, tensors: dict[str, torch.Tensor], symbols: dict[str, int], constants: Collection[str]) -> None:
    """What `driver.BoundProgram` does, in the interpreter. `constants` are tensors that no kernel of a step writes, as of its inputs."""
    constants = {*constants, *STEP_INPUTS}
    kernels = {spec.key: spec for spec in lowered.kernels}
    for launch in lowered.launches:
        grid = tuple(evaluate(dim, symbols) for dim in launch.grid)
        if min(grid) <= 0:
            continue
        if launch.library:
            by_library(launch.library, grid[0], *(tensors[arg.value] for arg in launch.args if arg.kind == "tensor"))
            continue
        spec = kernels[launch.kernel]
        values = []
        for arg in launch.args:
            if arg.kind == "tma":
                values.append(TensorDescriptor.from_tensor(tensors[arg.value], list(arg.box)))
            elif arg.kind == "tensor":
                values.append(tensors[arg.value] if arg.index is None else tensors[arg.value][arg.index])
            else:
                values.append(float(arg.value) if arg.kind == "fp32" else evaluate(arg.value, symbols))
        bound = {arg.value: tensors[arg.value] for arg in launch.args if arg.kind in ("tensor", "tma")}
        known = [tensor for name, tensor in bound.items() if name in constants]
        watch = watched(launch.kernel, known, list(bound.values()), waits=not launch.concurrent)
        with watch if spec.constexprs["PDL"] else nullcontext():
            load_function(spec)[grid](**dict(zip(spec.signature, values, strict=True)), **spec.constexprs)


def run(op_name: str, named: dict, arch: str, in_place: bool = False) -> list[torch.Tensor]:
    """The op's results by its lowering's launches. `in_place`: by those that lay the first over an input, which is a copy here."""
    op = OPS[op_name]
    outputs = as_list(op.fake(*(named[a.name] for a in op.overload._schema.arguments)))
    for y in outputs:
        y.fill_(torch.nan if y.is_floating_point() else torch.iinfo(y.dtype).min)
    if in_place:
        outputs[0].copy_(named[op.spec.in_place])
        named = {**named, op.spec.in_place: outputs[0]}
    lowered = lower_call(op, named, outputs, arch, in_place)
    symbols = step_sizes(named)
    tensors = {name: named[name] for name in op.tensors} | {f"out{i}": y for i, y in enumerate(outputs)}
    for name, spec in lowered.workspaces.items():
        shape = [max(1, evaluate(dim, symbols)) for dim in spec.shape]
        tensors[name] = torch.full(shape, torch.nan, dtype=DTYPES[spec.dtype])
    run_launches(lowered, tensors, symbols, CONSTANTS)
    return outputs


def changes_too_much(named: dict) -> bool:
    """Whether `rope_kv_write` in place, its result kept apart to see it, writes there anything but the rotary parts of q and k, or needs
    the rest of q."""
    tokens, d, rotary = named["qkv"].shape[0], named["head_dim"], named["cos_sin"].shape[1]
    heads = torch.arange(named["qkv"].shape[1] // d)[:, None]
    column = torch.arange(d)[None, :]
    turned = ((heads < named["num_heads"] + named["num_kv_heads"]) & (column < rotary)).flatten()
    unread = ((heads < named["num_heads"]) & (column >= rotary)).flatten()
    qkv, y = named["qkv"].clone(), torch.full_like(named["qkv"], torch.nan)
    qkv[:, unread] = torch.nan
    op = OPS["rope_kv_write"]
    lowered = lower_call(op, named, [y], "sm_90", in_place=True)
    cache = torch.zeros_like(named["kv_cache"])
    scales = None if named["kv_scales"] is None else named["kv_scales"].clone()
    run_launches(lowered, {**named, "qkv": qkv, "kv_cache": cache, "kv_scales": scales, "out0": y}, step_sizes(named), CONSTANTS)
    kept = torch.equal(y.isnan(), ~turned.expand(tokens, -1))
    pages, offsets = (named["kv_slots"] // cache.shape[4]).long(), (named["kv_slots"] % cache.shape[4]).long()
    rows = [one[named["layer"]][pages, :, :, offsets].float() for one in (cache, named["kv_cache"])]
    return not kept or not torch.equal(*rows)


def prompt_codes() -> Iterator[dict[str, Any]]:
    """`rope_kv_write_quantize` in place, as an engine launches it: beside decoding sequences, whose rows alone are rotated."""
    op, batch = OPS[OF_PROMPTS], BatchShape(query_lens=(1, 1, 1, 30, 7), kv_lens=(1, 32, 77, 30, 47), max_pages=3)
    normed = ModelShape(heads=2, kv_heads=1, head_dim=64, rotary_dim=64, qk_norm=True)
    for name, model, decodes in (("normed", normed, 3), ("gptj", GPTJ, 0), ("still", STILL, 3)):
        named = fp8_sample(op.name, model, batch)
        want_written = {**named, "kv_cache": torch.zeros_like(named["kv_cache"])}
        got_written = {**named, "kv_cache": torch.zeros_like(named["kv_cache"]), "qkv": named["qkv"].clone()}
        wanted = as_list(op.reference(**want_written))
        got = [got_written["qkv"], *(torch.full_like(y.view(torch.uint8), 0x7F).view(FP8) for y in wanted[1:])]
        lowered = lower_call(op, got_written, got, "sm_90", in_place=True)
        symbols = {**step_sizes(named), "D": decodes}
        run_launches(lowered, {**got_written, **{f"out{i}": y for i, y in enumerate(got)}}, symbols, CONSTANTS)
        prompts = slice(decodes, batch.tokens)
        pairs = [(got[0][:decodes], wanted[0][:decodes]), (got[0][prompts], named["qkv"][prompts])]
        pairs += [(got[index][prompts], wanted[index][prompts]) for index in (1, 2)]
        columns = columns_of_values(named["query_start"])[prompts]
        ends = columns[-1] + 1 + torch.arange(-int(columns[-1] + 1) % VALUE_COLUMNS)
        pairs += [(got[3][:, at], wanted[3][:, at]) for at in (columns, ends)]
        pairs += [(got_written["kv_cache"], want_written["kv_cache"])]
        failure = "; ".join(filter(None, (difference(op.name, "bf16", *pair) for pair in pairs)))
        yield {"case": f"{op.name}-{name}-{decodes}", "worst": 0.0, "failure": failure}


def tolerance(op: str, precision: str) -> dict[str, float]:
    """Attention rounds its probabilities before the second product, and a product its result before the activation when a step has few
    tokens; everything else rounds once, at the end."""
    if precision == "fp32":
        return {"rtol": 1e-5, "atol": 2e-6}
    if op == "paged_attention":
        return {"rtol": 2e-3, "atol": 5e-4} if precision == "fp16" else {"rtol": 2e-2, "atol": 4e-3}
    return {"rtol": 2e-2, "atol": 5e-4} if op in ACTIVATED else {}


def difference(op: str, precision: str, got: torch.Tensor, want: torch.Tensor) -> str:
    """What is wrong with `got`, or "". Codes may lie a step apart where a rounding flips (kernels multiply by the scale's inverse), and
    attention's further where they stand for less than its error in bf16."""
    if want.dtype == torch.int8:
        steps = (got.int() - want.int()).abs()
        return "" if int(steps.max()) <= 1 and float((steps > 0).float().mean()) < 1e-3 else f"codes up to {int(steps.max())} steps apart"
    if want.dtype != FP8:
        allowed = tolerance(op, precision) or dict(zip(("rtol", "atol"), default_tolerances(got), strict=True))
        if (got.dtype, got.shape) == (want.dtype, want.shape) and torch.allclose(got, want, equal_nan=True, **allowed):
            return ""  # `assert_close` loads SymPy and half of torch.distributed first, a second in each of five scripts
        try:
            torch.testing.assert_close(got, want, equal_nan=True, **allowed)
        except AssertionError as error:
            return str(error).replace("\n", " ")
        return ""
    steps = code_steps(got, want)
    close = (got.float() - want.float()).abs() * OUT_SCALE <= (4e-3 if op == "paged_attention" else 0.0)
    flipped = float((steps > 0).float().mean())
    if flipped > (0.05 if op in ("paged_attention", *ACTIVATED) else 0.01) or bool(((steps > 1) & ~close).any()):
        return f"codes up to {int(steps.max())} steps apart, {flipped:.1%} of them differ"
    return ""


MIXED = BatchShape(query_lens=(1, 1, 1, 5, 20, 1, 17), kv_lens=(1, 32, 77, 5, 70, 9, 17), max_pages=3)
DECODES = BatchShape(query_lens=(1, 1), kv_lens=(300, 33), max_pages=10)
CONTEXT = BatchShape(query_lens=(3,), kv_lens=(130,), max_pages=5)
PROMPTS = BatchShape(query_lens=(1, 5, 40), kv_lens=(33, 5, 40), max_pages=3)
ONE = BatchShape(query_lens=(1,), kv_lens=(1,), max_pages=1)

GQA = ModelShape()
MHA = ModelShape(hidden=40, heads=2, kv_heads=2, head_dim=32, rotary_dim=32, qk_norm=True)
GPTJ = ModelShape(heads=2, kv_heads=2, head_dim=64, rotary_dim=16, interleaved=True, page_size=64)
STILL = ModelShape(heads=6, kv_heads=3, head_dim=32, rotary_dim=0)
ODD = ModelShape(heads=9, kv_heads=3, head_dim=64, rotary_dim=64, hidden=576)

BATCHED = ("prepare_step", "rope_kv_write", "paged_attention")
OF_PROMPTS = "rope_kv_write_quantize"
ACTIVATED = ("gate_up_silu", "linear_gelu")
PRODUCTS = ("linear", *ACTIVATED)
FEW, MANY = BatchShape(query_lens=(7,), kv_lens=(7,)), BatchShape(query_lens=(200,), kv_lens=(200,))
FUSED = ModelShape(hidden=256, intermediate=256)
"""Sizes that fill whole tiles of the fused products; 1 token, a few and 192 or more take different launches."""

ROWS = tuple(op for op in OPS if OP_SPECS[op].kind == "rows" and op not in (*BATCHED, OF_PROMPTS))
QUANTIZED = tuple(op for op in (*ROWS, *BATCHED) if any(tensor.endswith("scale") for tensor in OPS[op].tensors))
CASES = [(op, "gqa", GQA, "few", FEW, dtype) for op in ROWS for dtype in ("fp32", "bf16")]
CASES += [(op, "gqa", GQA, "mixed", MIXED, dtype) for op in BATCHED for dtype in ("fp32", "bf16")]
CASES += [(op, "gqa", GQA, "mixed", MIXED, "fp8") for op in QUANTIZED]
CASES += [
    (op, "fused", FUSED, name, batch, dtype)
    for op in PRODUCTS
    for name, batch in (("one", ONE), ("few", FEW), ("many", MANY))
    for dtype in ("bf16", "fp8")
]
CASES += [
    ("paged_attention", name, model, "mixed", MIXED, dtype) for name, model in (("odd", ODD), ("gptj", GPTJ)) for dtype in ("fp16", "fp8")
]
CASES += [("rope_kv_write", "gptj", GPTJ, "mixed", MIXED, "fp8")]
CASES += [("rope_kv_write", "grouped", ModelShape(64, 96, 8, 1, 64, 64), "mixed", MIXED, "fp8")]
CASES += [("rope_kv_write", "gptj", GPTJ, "mixed", MIXED, "bf16")]
CASES += [("rope_kv_write", "still", STILL, "mixed", MIXED, dtype) for dtype in ("bf16", "fp8", "int8 cache")]
CASES += [(op, name, model, "mixed", MIXED, "int8 cache") for op in BATCHED[-2:] for name, model in (("gptj", GPTJ), ("gqa", GQA))]
CASES += [("paged_attention", "mha", MHA, "decodes", DECODES, "int8 cache")]
CASES += [("paged_attention", "gptj", GPTJ, name, batch, "bf16") for name, batch in (("prompts", PROMPTS), ("chunk", CONTEXT))]
CASES += [(op, "mha", MHA, "decodes", DECODES, "fp16") for op in ("rms_norm", "add_layer_norm", "silu_mul_packed", "rope", *BATCHED)]
CASES += [(op, "gptj", GPTJ, name, batch, "fp32") for op in ("rope", *BATCHED) for name, batch in (("context", CONTEXT), ("one", ONE))]
CASES += [(op, "odd", ODD, "decodes", DECODES, "bf16") for op in BATCHED]
CASES += [("paged_attention", name, model, "decodes", DECODES, "fp8") for name, model in (("odd", ODD), ("gptj", GPTJ))]
CASES += [("paged_attention", "odd", ODD, "mixed", MIXED, "bf16"), ("prepare_step", "gqa", GQA, "decodes", DECODES, "fp32")]

LONG = (ModelShape(hidden=4096, intermediate=32, vocab=64), ModelShape(hidden=768, intermediate=64, vocab=64))
"""Rows of two tiles of the one-token product, and of three, whose loop is written out."""
CASES += [(op, str(m.hidden), m, "one", ONE, "bf16") for op in ("linear", "gate_up_silu", "linear_sample") for m in LONG]
CASES += [(op, str(LONG[1].hidden), LONG[1], "one", ONE, "fp8") for op in ("linear", "gate_up_silu")]
VOCABULARY = ModelShape(hidden=256, vocab=300)
CASES += [
    ("linear_sample", "vocabulary", VOCABULARY, str(n), BatchShape(query_lens=(n,), kv_lens=(n,)), dtype)
    for n, dtype in ((1, "bf16"), (7, "bf16"), (20, "fp16"), (64, "bf16"), (70, "bf16"), (3, "fp32"))
]
CASES += [("linear_sample", "long", ModelShape(hidden=64, vocab=4200), "70", BatchShape(query_lens=(70,), kv_lens=(70,)), "bf16")]
REDUCED = ("all_reduce", "all_reduce_add", "all_reduce_add_rms_norm")
CASES += [(op, "gqa", GQA, "few", FEW, dtype) for op in (*REDUCED, "send", "receive") for dtype in ("fp32", "bf16")]
CASES += [("all_reduce_add_rms_norm", "gqa", GQA, "few", FEW, "fp8")]
CASES += [("sharded_linear_sample", "vocabulary", VOCABULARY, "20", BatchShape(query_lens=(20,), kv_lens=(20,)), "fp32")]
CASES += [("sharded_linear_sample", "vocabulary", VOCABULARY, "one", ONE, "bf16")]
CASES += [("linear_sample", "pairs", ModelShape(hidden=512, vocab=256), "one", ONE, dtype) for dtype in ("bf16", "fp16")]

CONCURRENT = BatchShape(query_lens=(*[1] * 14, 5, 150, 40), kv_lens=(*range(20, 34), 25, 150, 40), max_pages=5)
"""On three SMs: decode attention beside prompts of more tiles than there are programs."""
ON_THREE = [
    ("paged_attention", name, model, "concurrent", CONCURRENT, "fp8")
    for name, model in (("odd", ODD), ("grouped", ModelShape(64, 96, 2, 1, 64, 64)))
]


def cases() -> Iterator[tuple[str, str, ModelShape, str, BatchShape, str]]:
    """Ops one after another, so that each is done as early as it can be; last those that a chip of three SMs is for."""
    first = {case[0]: place for place, case in reversed(list(enumerate(CASES)))}
    yield from sorted(CASES, key=lambda case: first[case[0]])
    OpCall.sm_count = 3
    yield from ON_THREE


def main() -> None:
    make_interpreter_exact()
    for row in prompt_codes():
        print(json.dumps(row), flush=True)
    print(json.dumps({"done": OF_PROMPTS}), flush=True)
    left = Counter(case[0] for case in cases())
    for op, model_name, model, batch_name, batch, dtype in cases():
        if dtype == "int8 cache":
            named = int8_cache_sample(op, model, batch)
        else:
            named = fp8_sample(op, model, batch) if dtype == "fp8" else sample(op, model, batch, dtype)
        named = by_nccl(named)
        reference_arguments = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in named.items()}
        expected = as_list(OPS[op].reference(**reference_arguments))
        actual = run(op, named, "sm_90")
        expected += OPS[op].written_in(reference_arguments).values()
        actual += OPS[op].written_in(named).values()
        worst, failure = 0.0, ""
        if OPS[op].spec.in_place:
            again = {name: torch.zeros_like(tensor) for name, tensor in OPS[op].written_in(named).items()}
            once_more = run(op, {**named, **again}, "sm_90", in_place=True)
            failure += "" if torch.equal(once_more[0], actual[0]) else "in place it gives something else "
            failure += "it writes more than what it changes " if op == "rope_kv_write" and changes_too_much(named) else ""
        for index, (want, got) in enumerate(zip(expected, actual, strict=True)):
            wrong = difference(op, dtype, got, want)
            failure += f"result {index}: {wrong} " if wrong else ""
            worst = max(worst, float((got.double() - want.double()).abs().nan_to_num(0.0).max()))
        print(json.dumps({"case": f"{op}-{model_name}-{batch_name}-{dtype}", "worst": worst, "failure": failure}), flush=True)
        left[op] -= 1
        if not left[op]:
            print(json.dumps({"done": op}), flush=True)


if __name__ == "__main__":
    assert trtllm_kernels.references is not None
    sys.exit(main())
