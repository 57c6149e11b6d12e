"""Whether a figure can be true: the FLOP and bytes it implies against what its GPU can do.

The work is a lower bound: two FLOP a weight and token plus attention; each key and value of a sequence read once a decode step, in one byte
where its type is not told; all weights once a step, where the number of sequences at once is known, in half a byte where their type is not
known here. The limit is an upper bound: the data
sheet, and on dies that were measured a tenth above the rate that GEMMs sustain there, since short bursts on a cool GPU pass a sustained
rate by up to that (a data sheet's rate is at clocks a board does not hold). So a figure beyond it is wrong, or stands for other work than
it says, and what remains is to say what. A figure within it may still be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from trtllm_results.gpus import ACHIEVABLE_BYTES, ACHIEVABLE_FLOPS, Sheet, gpu_class, reads_faster_than_sheet, sheet_of
from trtllm_results.model_sizes import ModelSize, size_of
from trtllm_results.precision_names import our_precision

BURST = 1.1
"""Largest rate over a sustained one."""
WIDE = ("bf16", "fp16")
BYTES: Mapping[str, float] = {
    "fp32": 4,
    "bf16": 2,
    "fp16": 2,
    **dict.fromkeys(("fp8", "fp8_rowwise", "fp8_block", "fp8_wo", "int8_sq", "int8_wo", "int8"), 1),
    **dict.fromkeys(("int4", "w4a8", "nf4", "nvfp4_wo", "mxfp4_wo", "nvfp4", "mxfp4", "mixed"), 0.5),
}
"""Of a weight or an element of the cache, scales left out; of several in one engine the least."""
LEAST_BYTES = min(BYTES.values())
_FORMATS: Mapping[str, tuple[str, ...]] = {
    "fp8": ("fp8", "bf16"),
    "fp8_rowwise": ("fp8", "bf16"),
    "fp8_block": ("fp8", "bf16"),
    "int8_sq": ("int8", "bf16"),
    "int8": ("int8", "bf16"),
    "w4a8": ("fp8", "bf16"),
    "mixed": ("fp8", "int8", "bf16"),
    **dict.fromkeys(("int4", "int8_wo", "nf4", "nvfp4_wo", "mxfp4_wo", "fp8_wo"), ("bf16",)),
    "bf16": ("bf16",),
    "fp16": ("fp16",),
}
"""A precision's number formats, in order of preference: a GPU without the first computes in the next."""


@dataclass(frozen=True)
class Claim:
    """What a figure says. `batch`: sequences at once, 0 where not known; `prompt_share`: of the prompt tokens, those computed; `replicas`:
    copies of the engine, which share `batch` and `gpus`."""

    gpu: str
    model: str
    precision: str
    isl: float
    osl: float
    output_tokens_per_s: float
    gpus: int = 1
    kv_dtype: str = ""
    batch: int = 0
    prompt_share: float = 1.0
    replicas: int = 1


@dataclass(frozen=True)
class Implausible:
    """`needed` and `limit` are of one GPU, a second."""

    what: Literal["FLOP", "bytes"]
    needed: float
    limit: float
    gpu: str
    precision: str
    cause: str

    @property
    def text(self) -> str:
        if self.what == "FLOP":
            does = f"{self.needed / 1e12:,.0f} TFLOP/s where an {self.gpu} does at most {self.limit / 1e12:,.0f} in {self.precision}"
        else:
            does = f"{self.needed / 1e12:.2f} TB/s where an {self.gpu} reads at most {self.limit / 1e12:.2f}"
        return f"implausible: it implies {does}; likely {self.cause}"


def judge(claim: Claim) -> Implausible | None:
    """What is wrong with a claim; None where nothing is, or where the model, the GPU or the number format is not known here."""
    size, sheet = size_of(claim.model), sheet_of(claim.gpu)
    if size is None or sheet is None or claim.output_tokens_per_s <= 0 or claim.osl <= 0:
        return None
    claim = replace(claim, precision=our_precision(claim.precision))
    return _flops(claim, size, sheet) or (None if reads_faster_than_sheet(claim.gpu) else _bytes(claim, size, sheet))


def not_judged(claim: Claim) -> str:
    """Why a throughput on a GPU is not judged; empty where it is, and where no GPU took part or there is no throughput."""
    if not claim.gpu or claim.output_tokens_per_s <= 0:
        return ""
    if size_of(claim.model) is None:
        return f"the sizes of model '{claim.model}' are not known here" if claim.model else "no model is named"
    return "" if sheet_of(claim.gpu) else f"no data sheet of GPU '{claim.gpu}' is known here"


def _flops(claim: Claim, size: ModelSize, sheet: Sheet) -> Implausible | None:
    form = next((one for one in _FORMATS.get(claim.precision, ()) if one in sheet.flops_per_s), "")
    if not form:
        return None
    requests_per_s = claim.output_tokens_per_s / claim.osl / max(claim.gpus, 1)
    all_flops = size.request_flops(claim.isl, claim.osl)
    cached = size.request_flops((1 - claim.prompt_share) * claim.isl, 0)
    needed, limit = requests_per_s * (all_flops - cached), flops_limit(sheet, form)
    if needed <= limit:
        return None
    outputs = requests_per_s * (all_flops - size.request_flops(claim.isl, 0))
    narrow = [one.upper() for one in ("int8", "fp8") if one != form and flops_limit(sheet, one) >= needed]
    wanted = _FORMATS[claim.precision][0]
    if wanted != form and narrow:
        cause = f"another number format ({' or '.join(narrow)}; the GPU has no {wanted}) or another count of tokens"
    elif narrow and form in WIDE:
        cause = f"a narrower number format than told ({' or '.join(narrow)})"
    elif claim.isl > claim.osl and outputs <= limit:
        cause = "prompts served from a prefix cache, or shorter prompts than told"
    else:
        cause = "shorter outputs than asked for, or another count of tokens or GPUs"
    return Implausible("FLOP", needed, limit, gpu_class(claim.gpu), form, cause)


def _bytes(claim: Claim, size: ModelSize, sheet: Sheet) -> Implausible | None:
    rate, gpus = claim.output_tokens_per_s, max(claim.gpus, 1)
    context = claim.isl + claim.osl / 2
    kv = rate * context * size.kv_elements * BYTES.get(claim.kv_dtype, 1)
    each = BYTES.get(claim.precision, LEAST_BYTES)
    # Each replica reads all weights for its own sequences alone. Of those one makes rate / batch tokens a second of each or more.
    weights = rate / claim.batch * (size.layer_weights * each + size.head_weights) * claim.replicas if claim.batch else 0.0
    needed, limit = (kv + weights) / gpus, bytes_limit(sheet)
    if needed <= limit:
        return None
    cause = "more tokens per step (speculation, more sequences at once) or narrower weights than told"
    if kv / gpus > limit:
        cause = "shorter sequences than told, or keys and values shared by a prefix cache"
    return Implausible("bytes", needed, limit, gpu_class(claim.gpu), claim.precision, cause)


def flops_limit(sheet: Sheet, form: str) -> float:
    """FLOP/s of a number format that nothing passes; 0 where the GPU lacks it.

    Formats of one data-sheet rate share the tensor cores. So what GEMMs sustain in the fastest of them bounds the others: a library that is
    slow in one (cuBLASLt in int8) says nothing of the GPU.
    """
    peak = sheet.flops_per_s.get(form, 0.0)
    if not sheet.measured:
        return peak
    sustained = max((ACHIEVABLE_FLOPS[one] for one, rate in sheet.flops_per_s.items() if rate == peak), default=0.0)
    return min(peak, BURST * peak * sustained)


def bytes_limit(sheet: Sheet) -> float:
    """Bytes/s of device memory that nothing passes."""
    return min(sheet.bytes_per_s, BURST * sheet.bytes_per_s * ACHIEVABLE_BYTES) if sheet.measured else sheet.bytes_per_s
