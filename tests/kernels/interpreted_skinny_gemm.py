"""Runs the skinny GEMMs in Triton's CPU interpreter against the references; one JSON line a case.."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import interpreted
import torch
from interpreted import FUSED, as_list, difference, make_interpreter_exact, run

from samples import BatchShape, fp8_sample, sample
from trtllm_kernels import lowering
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.lowering.skinny_gemm import IN_TRITON
from trtllm_kernels.references import OPS

ODD = ModelShape(hidden=304, intermediate=104)
"""Rows and columns of the weight that fill no whole number of tiles."""


def tactic(**tile: int) -> dict[str, int]:
    """The same tile for all padded sizes."""
    tile = {"rows": 64, "k": 256, "splits": 1, "prefetch": 16, "blocks": 0} | tile
    return {"skinny_to": 64} | {f"skinny{padded}_{name}": value for padded in IN_TRITON for name, value in tile.items()}


TACTICS = {"whole": tactic(), "divided": tactic(splits=3, k=64), "tall": tactic(rows=128, prefetch=32)}


def cases() -> list[tuple[str, str, ModelShape, int, str, str]]:
    found = [("linear", name, model, tokens, dtype, tactic)
             for name, model in (("fused", FUSED), ("odd", ODD))
             for tactic, tokens in (("whole", 2), ("divided", 17), ("tall", 64), ("divided", 65))
             for dtype in ("bf16", "fp8")]  # fmt: skip
    found += [("linear", "rows", model, tokens, "fp8 by row", tactic)
              for model in (FUSED, ODD) for tactic, tokens in (("whole", 5), ("divided", 33))]  # fmt: skip
    found += [(op, "fused", FUSED, tokens, dtype, tactic)
              for op in ("gate_up_silu", "linear_gelu")
              for tactic, tokens in (("whole", 16), ("tall", 23), ("whole", 66))
              for dtype in ("bf16", "fp8")]  # fmt: skip
    return [*found, ("gate_up_silu", "odd", ODD, 3, "bf16", "whole"), ("linear_gelu", "odd", ODD, 48, "fp8", "whole")]


LINE = 128


class Prefetched:
    """The lines that each launched kernel prefetched. `interpreted_pdl` asserts that none lies outside the weight and none is prefetched
    after the wait."""

    def __init__(self) -> None:
        self.launches, self._plain = [], interpreted.watched
        interpreted.watched = self._watched

    @contextmanager
    def _watched(self, kernel: str, *args, **options) -> Iterator[object]:
        with self._plain(kernel, *args, **options) as watch:
            yield watch
        if kernel.startswith("skinny_") and not kernel.startswith("skinny_sum"):
            self.launches.append(watch.prefetched)

    def wrong(self, weight: torch.Tensor, tactic: dict[str, int]) -> str:
        """Compared with the beginning of each row's part of each program, by rows and parts and not as the kernel computes it."""
        lines, self.launches = self.launches, []
        rows, k, parts, prefetch = (tactic[f"skinny16_{name}"] for name in ("rows", "k", "splits", "prefetch"))
        row_bytes, share = weight.shape[1] * weight.itemsize, -(-weight.shape[1] // (k * parts)) * k * weight.itemsize
        count = min(prefetch * 1024 // LINE // rows, (row_bytes - share * (parts - 1)) // LINE)
        if len(weight) % rows or row_bytes % LINE:
            count = 0
        first = [weight.data_ptr() + row * row_bytes + part * share for row in range(len(weight)) for part in range(parts)]
        wanted = sorted(at + LINE * i for at in first for i in range(count))
        return "" if all(sorted(one) == wanted for one in lines) else "other lines than those meant are prefetched, or some twice"


def main() -> None:
    make_interpreter_exact()
    prefetched = Prefetched()
    for op, name, model, tokens, dtype, tile in cases():
        lowering.tactics.recorded = lambda *_, chosen=TACTICS[tile]: chosen
        batch = BatchShape((tokens,), (tokens,))
        by_row = dtype.endswith("by row")
        named = fp8_sample(op, model, batch, by_row=by_row) if dtype.startswith("fp8") else sample(op, model, batch, dtype)
        want = as_list(OPS[op].reference(**named))[0]
        got = run(op, named, "sm_90")[0]
        failure = difference(op, dtype.split()[0], got, want)
        if named.get("residual") is not None and not torch.equal(run(op, named, "sm_90", in_place=True)[0], got):
            failure += "in place it gives something else"
        failure += prefetched.wrong(named["weight"], TACTICS[tile])
        print(json.dumps({"case": f"{op}-{name}-{tokens}-{dtype}-{tile}", "failure": failure}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
