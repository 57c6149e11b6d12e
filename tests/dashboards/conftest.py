"""Synthetic rows, labelled as such: shapes like a GPU's, from a two-line cost model, never to be read as a measurement."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row

if TYPE_CHECKING:
    from browser import Browser

sys.path.insert(0, str(Path(__file__).parent))

GPU = Environment(
    gpu="NVIDIA Synthetic 80GB",
    gpu_count=8,
    compute_capability="9.0",
    gpu_memory_gib=79.6,
    driver="580.65.06",
    cuda="13.0",
    power_limit_w=700.0,
    sm_clock_limit_mhz=1980,
    cpu="Synthetic CPU",
    cpu_count=16,
    os="Linux",
    host="synthetic-host",
    python="3.11.9",
    torch="2.13.0",
    triton="3.7.1",
    bench="0.1.0",
    source_hash="0123456789abcdef",
    git_revision="3f" * 20,
)
BYTES_PER_WEIGHT = {"fp8": 1.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}
SPEED = {"fp8": 1250e12, "bf16": 680e12, "int8": 750e12, "int4": 600e12}


def figures(cell: Cell, noise: random.Random) -> dict[str, float]:
    weights = 8e9 / cell.tp
    batch = cell.batch or 64
    kv_bytes = batch * (cell.isl + cell.osl / 2) * 65536 / cell.tp
    bytes_moved = weights * BYTES_PER_WEIGHT[cell.precision] + kv_bytes
    flop = 2 * weights * batch
    sync = 2e-4 * (cell.tp - 1)
    step = max(bytes_moved / 3e12, flop / SPEED[cell.precision]) + 4e-4 + sync
    prefill = 2 * weights * cell.isl / SPEED[cell.precision] + 2e-4
    shared = step + prefill * batch / cell.osl
    wobble = 1 + noise.gauss(0, 0.012)
    rate = batch / shared * wobble
    found = {
        "output_tokens_per_s": rate,
        "total_tokens_per_s": rate * (1 + cell.isl / cell.osl),
        "output_tokens_per_s_per_gpu": rate / (cell.tp * cell.pp),
        "output_tokens_per_s_per_user": rate / batch,
        "requests_per_s": rate / cell.osl,
        "duration_s": 60.0,
        "energy_per_output_token_j": (250 + 420 * min(1, batch / 256)) * cell.tp / rate,
        "power_mean_w": (250 + 420 * min(1, batch / 256)) * cell.tp,
        "mfu": (flop / SPEED[cell.precision] + batch / cell.osl * prefill) / shared,
        "mbu": bytes_moved / 3e12 / shared,
        "memory_peak_gib": 20 + kv_bytes / 2**30,
        "load_s": 3.1,
    }
    ttft = (prefill + step) * 1e3 * (1 + batch / 60)
    for name, centre in (("ttft", ttft), ("tpot", shared * 1e3), ("itl", shared * 1e3), ("e2e", ttft + shared * 1e3 * cell.osl)):
        found[f"{name}_mean_ms"] = centre * 1.05 * wobble
        for percent, factor in ((50, 1.0), (90, 1.3), (95, 1.5), (99, 2.1)):
            found[f"{name}_p{percent}_ms"] = centre * factor * wobble
        found[f"{name}_max_ms"] = centre * 2.8
    return found


def rows_of(cells: Iterable[Cell], repeats: int = 3, environment: Environment = GPU, seed: int = 0) -> list[Row]:
    noise = random.Random(seed)
    return [
        Row(
            cell,
            environment,
            repeat=repeat,
            figures=figures(cell, noise),
            started_at=f"2026-01-{1 + index // 96 % 28:02d}T{index // 4 % 24:02d}:{index % 4 * 15:02d}:00.000+00:00",
            run_id="synthetic",
            command=f"trtllm-bench throughput --model {cell.model} --precision {cell.precision} --batch-size {cell.batch} "
            f"--isl {cell.isl} --osl {cell.osl} --tp {cell.tp}",
            row_id=f"{seed:04x}{index:08x}{repeat:020x}",
        )
        for index, cell in enumerate(cells)
        for repeat in range(repeats)
    ]


def grid(
    models: Iterable[str] = ("synthetic-8b",),
    precisions: Iterable[str] = ("fp8", "bf16", "int8"),
    batches: Iterable[int] = (1, 4, 16, 64, 256, 1024),
    shapes: Iterable[tuple[int, int]] = ((128, 128), (2048, 128), (128, 2048)),
    tps: Iterable[int] = (1,),
) -> list[Cell]:
    return [
        Cell(m, p, b, i, o, kv_dtype="fp8", tp=t, num_requests=4 * b)
        for m in models
        for p in precisions
        for (i, o) in shapes
        for t in tps
        for b in batches
    ]


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., list[Row]]:
    return rows_of


@pytest.fixture(scope="session")
def make_grid() -> Callable[..., list[Cell]]:
    return grid


@pytest.fixture(scope="session")
def sweep_rows() -> list[Row]:
    """54 cells, three repeats each, and one cell that ran out of memory."""
    rows = rows_of(grid())
    lost = Cell("synthetic-8b", "bf16", 4096, 128, 2048, kv_dtype="fp8")
    return [
        *rows,
        Row(lost, GPU, status="oom", reason="out of memory at 4096 sequences", started_at="2026-01-02T00:00:00.000+00:00", row_id="f" * 32),
    ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    from browser import Browser, chromium

    tab = Browser(chromium(), tmp_path_factory.mktemp("chromium"))
    yield tab
    tab.close()
