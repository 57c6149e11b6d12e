"""Random but valid arguments for every op, at any model's and batch's shape: what tests compare kernels and references on.

Memory that an op must not read is poisoned with NaN (cache rows past a sequence's end, pages of nobody) or with page numbers that do not
exist (block-table entries past a sequence's last page), so that reading it shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.dialect.types import KEY_BLOCK, value_columns
from trtllm_kernels.launch.torch_ops import num_decodes
from trtllm_kernels.references import OPS
from trtllm_kernels.references.communication import communicate, connect
from trtllm_kernels.references.quantize import FP8, FP8_MAX, INT8_MAX, codes_by_row, finish, row_scales
from trtllm_kernels.references.rope import columns_of_values
from trtllm_kernels.references.sampling import EMPTY


@dataclass(frozen=True)
class BatchShape:
    """`query_lens[r]` new tokens of sequence r, which then has `kv_lens[r]` in the cache. Decode sequences (one token) come first."""

    query_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    max_pages: int = 8

    @property
    def tokens(self) -> int:
        return sum(self.query_lens)


def _int32(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


def rope_table(positions: int, rotary_dim: int, theta: float = 10000.0) -> torch.Tensor:
    """fp32 [positions, rotary_dim]: cosines, then sines (Su et al. 2021, section 3.2.2)."""
    frequencies = theta ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


_BLOCK = 1_000_003


def paged_cache(
    model: ModelShape, batch: BatchShape, dtype: torch.dtype, poison: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(kv_cache, block_table, seq_slots) with pages in random order and slots in random order."""
    sequences = len(batch.kv_lens)
    pages = [-(-length // model.page_size) for length in batch.kv_lens]
    shape = (model.layers, sum(pages) + 2, 2, model.kv_heads, model.page_size, model.head_dim)
    # a block of prime length over and over: no two pages hold the same, and drawing them all would take most of a test's time
    count = math.prod(shape)
    block = torch.randn(min(count, _BLOCK)).to(dtype)
    cache = block.repeat(-(-count // len(block)))[:count].view(shape)
    free = iter((torch.randperm(sum(pages)) + 1).tolist())
    table = torch.full((sequences + 2, batch.max_pages), 1 << 24 if poison else 0, dtype=torch.int32)
    slots = torch.randperm(sequences + 2)[:sequences].int()
    owned = torch.zeros(shape[1], model.page_size, dtype=torch.bool)
    for slot, length, count in zip(slots.tolist(), batch.kv_lens, pages, strict=True):
        for i in range(count):
            number = next(free)
            table[slot, i] = number
            owned[number, : length - i * model.page_size] = True
    if poison:
        cache.masked_fill_(~owned[None, :, None, None, :, None], torch.nan)
    return cache, table, slots


QUANTIZABLE = tuple(name for name, op in OPS.items() if "out_scale" in op.tensors)
"""Ops that can end in a quantization."""

OUT_SCALE = 0.02
"""Of samples: results of a few units fill E4M3's range without leaving it."""


def int8_sample(op: str, model: ModelShape, batch: BatchShape, dtype: str = "bf16", seed: int = 0) -> dict[str, Any]:
    """As `sample`, with a product's operands in int8 with a scale per row, or rows quantized to int8."""
    named = sample(op, model, batch, dtype, seed)
    for name in ("x", "weight") if "x_scale" in OPS[op].tensors else ():
        named[name], named[f"{name}_scale"] = codes_by_row(named[name].float(), "int8")
    return named | ({"dtype": "int8"} if "dtype" in OPS[op].attrs else {})


def fp8_sample(
    op: str, model: ModelShape, batch: BatchShape, dtype: str = "bf16", seed: int = 0, poison: bool = True, by_row: bool = False
) -> dict[str, Any]:
    """As `sample`, with everything of the op quantized that can be: inputs, weights, cache, result. `by_row`: with a scale a row of
    products' operands."""
    named = sample(op, model, batch, dtype, seed, poison)
    for name in ("x", "weight") if "x_scale" in OPS[op].tensors else ():
        values = named[name].float()
        scale = row_scales(values) if by_row else (values.abs().max() / FP8_MAX).reshape(1)
        named[name], named[f"{name}_scale"] = finish(values, FP8, scale), scale
    if op in ("rope_kv_write", "rope_kv_write_quantize", "paged_attention"):
        # powers of two: what a code stands for is then exact in bf16, where this step's own keys and values are read
        named |= {"k_scale": torch.tensor([2.0**-7]), "v_scale": torch.tensor([2.0**-6])}
        scales = torch.stack((named["k_scale"], named["v_scale"])).view(1, 1, 2, 1, 1, 1)
        named["kv_cache"] = (named["kv_cache"] / scales.to(named["kv_cache"].dtype)).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
        if op == "paged_attention":
            _uncached_as_cached(named, model, batch)
    if op in QUANTIZABLE:
        named["out_scale"] = torch.tensor([OUT_SCALE])
    return named


def fp8_prompts_sample(model: ModelShape, batch: BatchShape) -> dict[str, Any]:
    """Of `paged_attention` with prompts in fp8, its result not quantized. The step's keys and values are in the cache. qkv holds what the
    queries' codes stand for: of a chunk of one token a kernel reads the codes, the reference qkv. What decoding sequences have among the
    codes is not a number."""
    named = fp8_sample("paged_attention", model, batch) | {"out_scale": None}
    width, tokens = model.kv_heads * model.head_dim, batch.tokens
    columns = value_columns(tokens, len(batch.query_lens))
    sizes = {"queries": (tokens, model.heads * model.head_dim), "keys": (tokens + KEY_BLOCK, width), "values": (tokens, width)}
    drawn = {name: (torch.randn(size) * (1 if name == "queries" else 100)).clamp(-FP8_MAX, FP8_MAX).to(FP8) for name, size in sizes.items()}
    _put_into_cache(named, drawn["keys"], drawn["values"])
    named["qkv"][:, : model.heads * model.head_dim] = drawn["queries"].to(named["qkv"].dtype)
    by_column = torch.full((width, columns), torch.nan).to(FP8)
    by_column[:, columns_of_values(named["query_start"])] = drawn["values"].T
    decodes = num_decodes(named["query_start"])
    for codes in (drawn["queries"], drawn["keys"]):
        codes[:decodes] = torch.nan
    by_column[:, columns_of_values(named["query_start"])[:decodes]] = torch.nan
    return named | drawn | {"values": by_column}


def _put_into_cache(named: dict[str, Any], keys: torch.Tensor, values: torch.Tensor) -> None:
    """Writes a step's codes [tokens, width] where decoding and attention of continued prompts read them, as the op before would."""
    cache, starts = named["kv_cache"][named["layer"]], named["query_start"].tolist()
    _, _, kv_heads, page, head_dim = cache.shape
    tables = named["block_table"][named["seq_slots"].long()]
    for table, (begin, end), length in zip(tables, pairwise(starts), named["kv_lens"].tolist(), strict=True):
        positions = torch.arange(length - (end - begin), length)
        for which, codes in enumerate((keys, values)):
            cache[table[positions // page].long(), which, :, positions % page] = codes[begin:end].view(-1, kv_heads, head_dim)


def row_errors(got: torch.Tensor, want: torch.Tensor, heads: int) -> torch.Tensor:
    """[tokens, heads]: the error of each row and head of attention, relative to the norm of what it should be."""
    error, norm = (x.float().view(len(x), heads, -1).norm(dim=2) for x in (got.float() - want.float(), want))
    return error / norm


def int8_cache_sample(op: str, model: ModelShape, batch: BatchShape, dtype: str = "bf16", seed: int = 0) -> dict[str, Any]:
    """As `sample`, with the cache in int8. What no sequence owns has scales that are not numbers."""
    named = sample(op, model, batch, dtype, seed)
    cache = named["kv_cache"].float()
    # powers of two, as above
    scales = (cache.abs().amax(-1) / INT8_MAX).log2().ceil().exp2()
    named["kv_cache"] = (cache / scales[..., None]).round().nan_to_num(127.0).to(torch.int8)
    named["kv_scales"] = torch.zeros_like(scales) if op == "rope_kv_write" else scales
    if op == "paged_attention":
        _uncached_as_cached(named, model, batch)
    return named


def _uncached_as_cached(named: dict[str, Any], model: ModelShape, batch: BatchShape) -> None:
    """Makes this step's keys and values in qkv those the cache holds, as `rope_kv_write` leaves them."""
    qkv, cache, page = named["qkv"], named["kv_cache"][named["layer"]].float(), model.page_size
    cache = cache * torch.cat([*(torch.ones(1) if named.get(n) is None else named[n] for n in ("k_scale", "v_scale"))]).view(1, 2, 1, 1, 1)
    if named.get("kv_scales") is not None:
        cache = cache * named["kv_scales"][named["layer"]][..., None]
    token, width = 0, model.heads * model.head_dim
    for r, (queries, length) in enumerate(zip(batch.query_lens, batch.kv_lens, strict=True)):
        for position in range(length - queries, length):
            at = cache[int(named["block_table"][int(named["seq_slots"][r]), position // page]), :, :, position % page]
            qkv[token, width:] = at.reshape(-1).to(qkv.dtype)
            token += 1


def code_steps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How many E4M3 values apart two fp8 tensors are, element by element; 0 where both are NaN."""

    def place(x: torch.Tensor) -> torch.Tensor:
        bits = x.view(torch.int8).int()
        return torch.where(bits < 0, -(bits & 127), bits)

    return torch.where(a.float().isnan() & b.float().isnan(), 0, (place(a) - place(b)).abs())


class Alone:
    """A group of one rank."""

    rank, size = 0, 1

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


class Echo:
    """A pipeline of one stage, which receives `rows` again and again."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self.sent: list[torch.Tensor] = []

    def send(self, hidden: torch.Tensor) -> None:
        self.sent.append(hidden.clone())

    def receive(self, hidden: torch.Tensor) -> None:
        hidden.copy_(self.rows)


def sample(op: str, model: ModelShape, batch: BatchShape, dtype: str, seed: int = 0, poison: bool = True) -> dict[str, Any]:
    """Arguments of `op` by name, on the CPU; optional tensors not drawn are None."""
    torch.manual_seed(seed)
    return {**dict.fromkeys(OPS[op].tensors), **_draw(op, model, batch, dtype, poison)}


def _draw(op: str, model: ModelShape, batch: BatchShape, dtype: str, poison: bool) -> dict[str, Any]:
    t, h, d = batch.tokens, model.hidden, model.head_dim
    kind = DTYPES[dtype]
    scale = d**-0.5

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(kind)

    starts = _int32([0, *torch.tensor(batch.query_lens).cumsum(0).tolist()])
    positions = torch.cat([torch.arange(n - q, n) for q, n in zip(batch.query_lens, batch.kv_lens, strict=True)]).int()
    table = rope_table(max(batch.kv_lens, default=1) + 1, model.rotary_dim)
    qkv_width = (model.heads + 2 * model.kv_heads) * d
    grouping = {"num_heads": model.heads, "num_kv_heads": model.kv_heads}
    match op:
        case "embedding":
            return {"ids": torch.randint(0, model.vocab, (t,)).int(), "weight": randn(model.vocab, h)}
        case "gather_rows":
            return {"x": randn(t, h), "rows": (starts[1:] - 1).clamp_min(0)}
        case "arrange_columns":
            return {"x": randn(t, h), "index": torch.randperm(h).int(), "factor": torch.rand(h) + 0.5}
        case "rms_norm":
            return {"x": randn(t, h), "weight": randn(h), "eps": 1e-5}
        case "layer_norm":
            return {"x": randn(t, h), "weight": randn(h), "bias": randn(h), "eps": 1e-5}
        case "add_rms_norm":
            return {"x": randn(t, h), "residual": randn(t, h), "weight": randn(h), "eps": 1e-5}
        case "add_layer_norm":
            return {"x": randn(t, h), "residual": randn(t, h), "weight": randn(h), "bias": randn(h), "eps": 1e-5, "addend": randn(t, h)}
        case "linear" | "linear_gelu":
            more = {"residual": randn(t, model.intermediate)} if op == "linear" else {}
            return {"x": randn(t, h), "weight": randn(model.intermediate, h) / h**0.5, "bias": randn(model.intermediate), **more}
        case "all_reduce":
            return {"x": randn(t, h), "group": communicate(Alone())}
        case "all_reduce_add":
            return {"x": randn(t, h), "residual": randn(t, h), "group": communicate(Alone())}
        case "send":
            return {"x": randn(t, h), "pipe": connect(Echo(randn(t, h)))}
        case "receive":
            return {"hidden": torch.full((t, h), torch.nan), "pipe": connect(Echo(randn(t, h)))}
        case "all_reduce_add_rms_norm":
            return {"x": randn(t, h), "residual": randn(t, h), "weight": randn(h), "group": communicate(Alone()), "eps": 1e-5}
        case "sharded_linear_sample":
            return {**_draw("linear_sample", model, batch, dtype, poison), "group": communicate(Alone())}
        case "linear_sample":
            kinds = torch.tensor([0.0, 1.0, 0.7])[torch.arange(t) % 3]
            seeds = torch.randint(-(1 << 31), 1 << 31, (t, 2)).int()
            sampling_words = torch.cat((kinds.view(torch.int32)[:, None], seeds, torch.arange(t).int()[:, None]), 1).contiguous()
            state = {"argmax_scratch": torch.full((t + 3,), EMPTY), "last_tokens": torch.full((t + 2,), -5).int()}
            state |= {
                "token_ring": torch.full((4, t + 5), -5).int(),
                "ring_slot": _int32([2]),
                "sample_slots": torch.randperm(t + 2)[:t].int(),
            }
            return {
                "x": randn(t, h),
                "weight": 3 * randn(model.vocab, h) / h**0.5,
                "bias": randn(model.vocab),
                "sampling_words": sampling_words,
                **state,
            }
        case "gate_up_silu":
            return {"x": randn(t, h), "weight": randn(2 * model.intermediate, h) / h**0.5}
        case "quantize_rows":
            return {"x": randn(t, h) * torch.logspace(-2, 2, t)[:, None].to(kind), "dtype": "fp8"}
        case _ if op.endswith("_quantize_rows"):
            return {**_draw(op.removesuffix("_quantize_rows"), model, batch, dtype, poison), "dtype": "fp8"}
        case "quantize":
            return {"x": randn(t, h), "scale": torch.tensor([0.01])}
        case "split":
            return {"x": randn(t, qkv_width), "sizes": [model.heads * d, model.kv_heads * d, model.kv_heads * d]}
        case "silu_mul":
            return {"gate": 3 * randn(t, model.intermediate), "up": randn(t, model.intermediate)}
        case "silu_mul_packed":
            return {"gate_up": 3 * randn(t, 2 * model.intermediate)}
        case "gelu":
            return {"x": 3 * randn(t, model.intermediate)}
        case "add":
            return {"a": randn(t, h), "b": randn(t, h)}
        case "rope":
            x = randn(t, model.heads * d)
            return {"x": x, "positions": positions, "cos_sin": table, "head_dim": d, "interleaved": model.interleaved}
        case "attention":
            q, k, v = randn(t, model.heads * d), randn(t, model.kv_heads * d), randn(t, model.kv_heads * d)
            return {"q": q, "k": k, "v": v, "query_start": starts, **grouping, "scale": scale}
    cache, block_table, slots = paged_cache(model, batch, kind, poison)
    kv_lens = _int32(batch.kv_lens)
    context = torch.randint(0, model.vocab, (t,)).int()
    context[: sum(1 for q in batch.query_lens if q == 1)] = -1
    last_tokens = torch.randint(0, model.vocab, (block_table.shape[0],)).int()
    prepare = {"context_tokens": context, "seq_slots": slots, "query_start": starts, "kv_lens": kv_lens}
    prepare |= {"last_tokens": last_tokens, "block_table": block_table}
    match op:
        case "prepare_step":
            return {**prepare, "page_size": model.page_size}
        case "rope_kv_write":
            kv_slots = torch.ops.trtllm.prepare_step(*prepare.values(), model.page_size)[2]
            norms = {"q_norm": randn(d), "k_norm": randn(d)} if model.qk_norm else {"q_norm": None, "k_norm": None}
            caches = {"qkv": randn(t, qkv_width), "positions": positions, "cos_sin": table, "kv_cache": cache, "kv_slots": kv_slots}
            return {**caches, **norms, "layer": 1, **grouping, "head_dim": d, "interleaved": model.interleaved, "eps": 1e-6}
        case "rope_kv_write_quantize":
            drawn = _draw("rope_kv_write", model, batch, dtype, poison)
            return {**drawn, "query_start": starts, "columns": value_columns(t, len(batch.query_lens))}
        case "paged_attention":
            lists = {"block_table": block_table, "seq_slots": slots, "query_start": starts, "kv_lens": kv_lens}
            named = {"qkv": randn(t, qkv_width), "kv_cache": cache, **lists, "layer": 1, **grouping, "scale": scale}
            _uncached_as_cached(named, model, batch)
            return named
    raise KeyError(op)
