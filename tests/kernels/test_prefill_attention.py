"""Attention of prompts in fp8, in CUDA C++: results by emulation."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from emulated import emulate_attention, emulate_prompts
from machine_code import disassembled

from samples import BatchShape, code_steps, fp8_prompts_sample, row_errors
from trtllm_kernels.compile import aot, nvrtc
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.types import Lowered, TensorSpec
from trtllm_kernels.launch.torch_ops import lower_call, step_sizes
from trtllm_kernels.lowering import describe
from trtllm_kernels.lowering.call import Builder, OpCall, Operand
from trtllm_kernels.lowering.prefill import CUDA_TILE, fp8_context_launch, fp8_launch
from trtllm_kernels.references import OPS
from trtllm_kernels.references.quantize import FP8

K_SCALE, V_SCALE, OUT_SCALE = 2.0**-5, 2.0**-6, 2.0**-8
Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Prompts:
    """Sequences of a step: `decodes` of them decode, the others have `lengths` new tokens; those in `continued` have a past, too."""

    heads: int
    kv_heads: int
    head_dim: int
    lengths: tuple[int, ...]
    decodes: int = 0
    continued: tuple[int, ...] = ()
    out: torch.dtype = FP8

    @property
    def starts(self) -> list[int]:
        lengths = (1,) * self.decodes + self.lengths
        return [sum(lengths[:r]) for r in range(len(lengths) + 1)]

    @property
    def tokens(self) -> int:
        return self.starts[-1]

    def prompts(self) -> list[tuple[int, int]]:
        """First and last row of each whole prompt."""
        every = list(pairwise(self.starts))[self.decodes :]
        return [rows for r, rows in enumerate(every) if r not in self.continued]

    def call(self) -> OpCall:
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        dtype = "fp16" if self.out == torch.float16 else "bf16"
        ints, scale = TensorSpec(("R",), "int32"), TensorSpec((1,), "fp32")
        inputs = [
            TensorSpec(("T", width + 2 * kv_width), dtype),
            TensorSpec((1, 99, 2, self.kv_heads, 32, self.head_dim), "fp8"),
            TensorSpec((99, 99), "int32"), ints, replace(ints, shape=("R + 1",)), ints, scale, scale, None,
        ]  # fmt: skip
        quantized = self.out == FP8
        attrs = {"layer": 0, "num_heads": self.heads, "num_kv_heads": self.kv_heads, "scale": self.head_dim**-0.5}
        call = describe("paged_attention", inputs, [TensorSpec(("T", width), "fp8" if quantized else dtype)], attrs, "sm_90")
        if quantized:
            call = replace(call, inputs={**call.inputs, "out_scale": Operand("out_scale", scale)})
        return call

    def lowered(self) -> Lowered:
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {"queries": ("T", width), "keys": (f"T + {CUDA_TILE}", kv_width), "values": (kv_width, self.columns)}
        builder = Builder(self.call())
        fp8_launch(builder, *(Operand(name, TensorSpec(shape, "fp8")) for name, shape in shapes.items()), "R - D - C")
        return builder.finish()

    def column(self, begin: int) -> int:
        """Of the values of the sequence whose first row is `begin`."""
        return 16 * (begin // 16 + self.starts.index(begin))

    @property
    def columns(self) -> int:
        return -(-self.tokens // 16) * 16 + 16 * len(self.starts) + 2 * CUDA_TILE

    def drawn(self) -> dict[str, torch.Tensor]:
        """Scores reach from -4 to 4, and rise with the position, so that the maximum moves. What no prompt owns is not a number."""
        torch.manual_seed(self.tokens)
        tokens, width, kv_width = self.tokens, self.heads * self.head_dim, self.kv_heads * self.head_dim
        queries = torch.full((tokens, width), torch.nan)
        keys, values = torch.full((tokens + CUDA_TILE, kv_width), torch.nan), torch.full((kv_width, self.columns), torch.nan)
        for begin, end in self.prompts():
            queries[begin:end] = torch.randn(end - begin, width) + 0.3
            keys[begin:end] = (torch.randn(end - begin, kv_width) + torch.linspace(-0.5, 0.5, end - begin)[:, None]) / K_SCALE
            column = self.column(begin)
            values[:, column : column + end - begin] = (torch.randn(kv_width, end - begin) + 0.5) / V_SCALE
        lengths = [1 + 40 * (r < self.decodes or r - self.decodes in self.continued) for r in range(len(self.starts) - 1)]
        return {
            "queries": queries.to(FP8), "keys": keys.to(FP8), "values": values.to(FP8),
            "k_scale": torch.tensor([K_SCALE]), "v_scale": torch.tensor([V_SCALE]), "out_scale": torch.tensor([OUT_SCALE]),
            "query_start": torch.tensor(self.starts, dtype=torch.int32),
            "kv_lens": torch.tensor([b - a + n - 1 for (a, b), n in zip(pairwise(self.starts), lengths, strict=True)], dtype=torch.int32),
        }  # fmt: skip


def rounded(x: Array) -> Array:
    return torch.from_numpy(x.astype(np.float32)).to(FP8).float().numpy()


def attended(q: Array, k: Array, v: Array, scale: float, *, exact: bool) -> Array:
    """One head: q [n, D], k and v [m, D], of which the last n are of the queries' tokens. Unless `exact`: as the kernels do it, in tiles of
    queries, by blocks of keys from the last one down."""
    n, past = len(q), len(k) - len(q)
    out = np.empty_like(q)
    for first in range(0, n, CUDA_TILE):
        rows = slice(first, min(first + CUDA_TILE, n))
        end = past + rows.stop
        scores = q[rows] @ k[:end].T * np.float32(scale * np.log2(np.e))
        scores[np.arange(end)[None] > past + np.arange(n)[rows, None]] = -np.inf
        if exact:
            weights = np.exp2(scores - scores.max(1, keepdims=True))
            out[rows] = weights @ v[:end] / weights.sum(1, keepdims=True)
            continue
        highest, total, sums = np.full((len(scores), 1), -1e30, np.float32), np.float32(0), np.float32(0)
        for begin in range((end - 1) // CUDA_TILE * CUDA_TILE, -1, -CUDA_TILE):
            keys = slice(begin, min(begin + CUDA_TILE, end))
            most = np.maximum(highest, scores[:, keys].max(1, keepdims=True))
            weights, shrink = np.exp2(scores[:, keys] - most + 8), np.exp2(highest - most)
            weights = rounded(weights)
            total, sums = total * shrink + weights.sum(1, keepdims=True), sums * shrink + weights @ v[keys]
            highest = most
        out[rows] = sums / total
    return out


def expected(case: Prompts, named: dict[str, torch.Tensor], *, exact: bool) -> torch.Tensor:
    q, k, v = (named[name].float().numpy() for name in ("queries", "keys", "values"))
    d, out = case.head_dim, np.full((case.tokens, case.heads * case.head_dim), np.nan, np.float32)
    for begin, end in case.prompts():
        for head in range(case.heads):
            own, shared = (slice(h * d, (h + 1) * d) for h in (head, head // (case.heads // case.kv_heads)))
            rows, columns = slice(begin, end), slice(case.column(begin), case.column(begin) + end - begin)
            out[rows, own] = attended(q[rows, own], k[rows, shared], v[shared, columns].T, d**-0.5 * K_SCALE, exact=exact) * V_SCALE
    return torch.from_numpy(out)


CASES = {
    # tiles of every fill; one block after another takes them, so that queues go around; sequences that others attend to in between
    "ragged": Prompts(3, 1, 128, (1, 130, 260, 128, 17), decodes=2, continued=(4,)),
    "one token": Prompts(3, 1, 128, (1,)),
}


def check(case: Prompts, out: torch.Tensor, want: torch.Tensor, exact: torch.Tensor) -> None:
    """Results are NumPy's, but that a probability between two codes may become either. Of exact attention over the same codes an eighth of
    the values' deviation apart at most, 2% of it on average: a probability is rounded by 2^-4 of itself, or by 2^-18 of the largest."""
    if case.out == FP8:
        steps = code_steps(out, (want / OUT_SCALE).clamp(-448, 448).to(FP8))
        assert int(steps.max()) <= 1
        assert float((steps > 0).float().mean()) < 0.01
    else:
        outside = (out.float() - want).abs() - 2.0**-8 * want.abs()
        assert float(outside.max()) < 0.01
        assert float((outside > 1e-5).float().mean()) < 0.01
    apart = want - exact
    assert float(apart.abs().max()) < 0.125
    assert float(apart.std()) < 0.02


@pytest.mark.parametrize("name", CASES)
def test_whole_prompts_have_rounded_probabilities(name: str) -> None:
    case = CASES[name]
    named = case.drawn()
    out = torch.full((case.tokens, case.heads * case.head_dim), torch.nan).to(case.out)
    emulate_prompts(case.lowered(), named, out, case.decodes, blocks=2)
    written = torch.zeros(case.tokens, dtype=torch.bool)
    for begin, end in case.prompts():
        written[begin:end] = True
    assert out[~written].isnan().all()
    want, exact = (expected(case, named, exact=exactly)[written] for exactly in (False, True))
    assert (want.abs() > 448 * OUT_SCALE).any()  # and saturates
    check(case, out[written], want, exact)


@dataclass(frozen=True)
class Chunks(Prompts):
    """Continued prompts: those of `lengths` have `past` tokens in the cache. One with none is another kernel's."""

    past: tuple[int, ...] = ()
    page: int = 32

    def lowered_over(self, pages: int, most: int) -> Lowered:
        call = self.call()
        cache = TensorSpec((1, pages, 2, self.kv_heads, self.page, self.head_dim), "fp8")
        table = TensorSpec((len(self.lengths), most), "int32")
        named = {"kv_cache": Operand("cache", cache), "block_table": Operand("block_table", table)}
        builder = Builder(replace(call, inputs={**call.inputs, **named}))
        queries = Operand("queries", TensorSpec(("T", self.heads * self.head_dim), "fp8"))
        fp8_context_launch(builder, queries, named["kv_cache"].slice(0), "C")
        return builder.finish()

    def check(self) -> None:
        """Pages in any order; what no sequence owns is not a number, and a page number of nobody's is none."""
        torch.manual_seed(len(self.past))
        kv, d, page = self.kv_heads, self.head_dim, self.page
        lengths = [new + old for new, old in zip(self.lengths, self.past, strict=True)]
        counts = [-(-length // page) for length in lengths]
        free, most = iter(torch.randperm(sum(counts)).tolist()), max(counts) + 1
        cache = torch.full((1, sum(counts), 2, kv, page, d), torch.nan)
        table = torch.full((len(lengths), most), 1 << 24, dtype=torch.int32)
        slots = torch.randperm(len(lengths)).int()
        owned = []
        for slot, length, count in zip(slots.tolist(), lengths, counts, strict=True):
            keys_values = torch.stack(
                (torch.randn(length, kv, d) + torch.linspace(-0.5, 0.5, length)[:, None, None], torch.randn(length, kv, d) + 0.5)
            ) / torch.tensor([K_SCALE, V_SCALE]).view(2, 1, 1, 1)
            owned.append(keys_values.to(FP8).float().numpy())
            for i in range(count):
                table[slot, i] = number = next(free)
                rows = keys_values[:, i * page : (i + 1) * page]
                cache[0, number, :, :, : rows.shape[1]] = rows.transpose(1, 2)
        named = {
            "queries": (torch.randn(self.tokens, self.heads * d) + 0.3).to(FP8),
            "cache": cache.to(FP8), "block_table": table, "seq_slots": slots,
            "k_scale": torch.tensor([K_SCALE]), "v_scale": torch.tensor([V_SCALE]), "out_scale": torch.tensor([OUT_SCALE]),
            "query_start": torch.tensor(self.starts, dtype=torch.int32), "kv_lens": torch.tensor(lengths, dtype=torch.int32),
        }  # fmt: skip
        out = torch.full((self.tokens, self.heads * d), torch.nan).to(self.out)
        emulate_prompts(self.lowered_over(sum(counts), most), named, out, 0, blocks=2)
        want, exact = torch.zeros(self.tokens, self.heads * d), torch.zeros(self.tokens, self.heads * d)
        q = named["queries"].float().numpy()
        for (begin, end), (keys, values), past in zip(pairwise(self.starts), owned, self.past, strict=True):
            for head in range(self.heads if past else 0):
                own, shared = slice(head * d, head * d + d), head // (self.heads // kv)
                for result, exactly in ((want, False), (exact, True)):
                    one = attended(q[begin:end, own], keys[:, shared], values[:, shared], d**-0.5 * K_SCALE, exact=exactly)
                    result[begin:end, own] = torch.from_numpy(one) * V_SCALE
        written = torch.cat([torch.full((n,), bool(past)) for n, past in zip(self.lengths, self.past, strict=True)])
        assert out[~written].isnan().all()
        check(self, out[written], want[written], exact[written])


CHUNKS = {
    # tiles whose diagonal ends in the block before the last; more blocks than there is room for; pages of which some are not full
    "fp8": Chunks(2, 1, 128, (130, 40, 3), past=(260, 100, 0)),
    "heads of 64, bf16": Chunks(2, 1, 64, (1, 90), past=(127, 600), page=16, out=torch.bfloat16),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_continued_prompts_have_rounded_probabilities(name: str) -> None:
    CHUNKS[name].check()


def test_a_step_of_every_kind_of_sequence_is_the_references() -> None:
    """Sequences that decode, whole prompts and continued ones, of one token too, by all launches of a step. A row's error is that of its
    probabilities' rounding: the reference rounds relative to the largest score of all."""
    op, model = OPS["paged_attention"], ModelShape(heads=2, kv_heads=1, head_dim=64, rotary_dim=64)
    batch = BatchShape((1, 1, 1, 65, 1, 130, 1), (70, 1, 300, 65, 90, 300, 1), 20)
    named = fp8_prompts_sample(model, batch)
    want = op.reference(**named)
    out = torch.full_like(want, torch.nan)
    ran = emulate_attention(lower_call(op, named, [out], "sm_90"), named, out, step_sizes(named), blocks=2)
    assert ran == ["decode_attention", "uncached_prefill_attention", "context_attention"]
    errors = row_errors(out, want, model.heads)
    assert float(errors[:3].max()) < 0.004
    assert float(errors.max()) < 0.06
    assert float((out.float() - want.float()).norm() / want.float().norm()) < 0.02


def test_the_assembler_keeps_products_of_values_beside_the_softmax() -> None:
    """A warpgroup waits for the scores, and for values only behind exponentials: the assembler moves that wait up to the other unless
    something that follows from them stands between."""
    lowered = [CASES["ragged"].lowered(), Prompts(2, 2, 64, (1,), out=torch.float16).lowered(), CHUNKS["fp8"].lowered_over(9, 9)]
    specs = [spec for one in lowered for spec in one.kernels]
    compiled = [nvrtc.compile_source(spec, "sm_90") for spec in specs]
    for spec, (code, _, said), (_, instructions) in zip(
        specs, compiled, disassembled([code for code, *_ in compiled], "sm_90"), strict=True
    ):
        assert aot.resource_usage(code) == (168, 0)
        head_dim, past = spec.constexprs["D"], spec.function == "context_attention"
        tiles = (10 + 2 * past) * 128 * head_dim
        assert tiles < spec.constexprs["SHARED_BYTES"] <= tiles + 5 * 1024
        names = [name for _, name, _ in instructions]
        assert sum(name.startswith("QGMMA") for name in names) == 2 * head_dim // 32 + 2 * 4
        assert any(name.startswith("LDSM.16.MT88.4") for name in names) == past
        waits = [at for at, name in enumerate(names) if name.startswith("WARPGROUP.DEPBAR")]
        exponentials = [sum(name.startswith("MUFU.EX2") for name in names[a:b]) for a, b in pairwise(waits)]
        assert len(waits) == 4
        assert exponentials[0] >= 64
        assert waits[2] - waits[1] > 150
        assert exponentials[1] >= 8
        assert "serialized" not in said
        assert "setmaxnreg" not in said
