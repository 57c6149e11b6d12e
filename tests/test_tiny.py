"""Read this first: the whole of the system on the built-in tiny model, in a few seconds, without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtllm_bench.__main__ import main
from trtllm_engines import LLM, SamplingParams
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.engine.build import build
from trtllm_results.store.table import Store


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine: built ahead of time for a range of batches and lengths, a folder from then on. Its weights are drawn from a seed."""
    ranges = Profile(max_batch_size=4, max_num_tokens=64, max_seq_len=128)
    return build("tiny-llama", "fp32", out=tmp_path_factory.mktemp("tiny") / "engine", profile=ranges, arches=("cpu",))


def test_an_engine_generates_the_same_tokens_every_time(engine: Path) -> None:
    greedy = SamplingParams(max_tokens=8, ignore_eos=True)
    with LLM(engine, device="cpu") as llm:
        first = llm.generate([1, 2, 3], greedy)[0].token_ids.tolist()
    with LLM(engine, device="cpu") as llm:
        again = llm.generate([1, 2, 3], greedy)[0].token_ids.tolist()
    assert len(first) == 8
    assert first == again


def test_requests_in_one_batch_get_what_they_would_get_alone(engine: Path) -> None:
    prompts = [[7] * 3, list(range(100)), [5, 6], [9], [11, 12, 13, 14], [3] * 40]
    greedy = SamplingParams(max_tokens=6, ignore_eos=True)
    with LLM(engine, device="cpu") as llm:
        together = [output.token_ids.tolist() for output in llm.generate(prompts, greedy)]
        alone = [llm.generate(prompt, greedy)[0].token_ids.tolist() for prompt in prompts]
    assert together == alone


def test_a_sweep_measures_every_cell_and_keeps_it(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path / "cache"))
    grid = ["--model", "tiny-llama", "--precision", "fp32", "--batch-size", "1,4", "--isl", "8", "--osl", "4,8", "--num-requests", "6"]
    assert main(["sweep", *grid, "--device", "cpu", "--max-lag-ms", "1000", "--out", str(tmp_path / "out")]) == 0
    rows = Store(tmp_path / "out").rows()
    assert [(row.cell.batch, row.cell.osl, row.status) for row in rows] == [(1, 4, "ok"), (4, 4, "ok"), (1, 8, "ok"), (4, 8, "ok")]
    for row in rows:
        assert row.figures["output_tokens"] == 6 * row.cell.osl
        assert row.figures["output_tokens_per_s"] > 0
        assert 0 < row.figures["ttft_p50_ms"] <= row.figures["e2e_p50_ms"]
