"""The schema document is what the code says."""

from __future__ import annotations

from pathlib import Path

from trtllm_results.metrics import registry as figures
from trtllm_results.record import schema
from trtllm_results.record.cell import CELL_FIELDS
from trtllm_results.record.flat import ROW_FIELDS


def test_the_document_is_current() -> None:
    document = Path(__file__).parents[2] / "docs" / "schema.md"
    assert document.read_text() == schema.markdown(), "run: python -m trtllm_results.record.schema > docs/schema.md"


def test_every_identity_column_has_a_meaning_and_no_figure_hides_behind_one() -> None:
    assert set(schema.MEANINGS) == set(CELL_FIELDS) | set(ROW_FIELDS)
    assert not set(figures.METRICS) & (set(CELL_FIELDS) | set(ROW_FIELDS))


def test_titles_are_unique_within_a_unit_and_readable() -> None:
    assert figures.title("output_tokens_per_s") == "output"
    assert figures.title("ttft_p50_ms") == "TTFT p50"
    assert figures.title("steady_output_tokens_per_s_per_gpu") == "steady output per GPU"
    pairs = [(figures.title(name), one.unit) for name, one in figures.METRICS.items()]
    assert len(set(pairs)) == len(pairs)


def test_common_words_are_said_once() -> None:
    assert figures.common_words(["m fp8 b1 128/128", "m bf16 b1 128/128"]) == ("m b1 128/128", ["fp8", "bf16"])
    assert figures.common_words(["m fp8", "m fp8"]) == ("", ["m fp8", "m fp8"])
    assert figures.common_words(["m fp8"]) == ("", ["m fp8"])
