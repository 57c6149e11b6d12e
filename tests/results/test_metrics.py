"""Metric definitions against hand-made logs, a slow per-request reference, and other tools' rules."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_results.errors import ResultsError
from trtllm_results.metrics import definitions
from trtllm_results.metrics import requests as metrics
from trtllm_results.metrics.registry import METRICS
from trtllm_results.metrics.requests import RequestLog


def make(requests: list[tuple[float, float, list[float]]], **more: Any) -> RequestLog:
    """Requests as (intended, sent, token times)."""
    times = [r[2] for r in requests]
    return RequestLog(
        intended_s=np.array([r[0] for r in requests]),
        sent_s=np.array([r[1] for r in requests]),
        first_token_s=np.array([t[0] if t else np.nan for t in times]),
        end_s=np.array([t[-1] if t else np.nan for t in times]),
        input_tokens=np.full(len(requests), 10),
        output_tokens=np.array([len(t) for t in times]),
        ok=np.array([bool(t) for t in times]),
        token_times_s=np.array([x for t in times for x in t]),
        token_offsets=np.concatenate([[0], np.cumsum([len(t) for t in times])]).astype(int),
        **more,
    )


LOG = make([(0.0, 0.1, [1.0, 1.5, 2.5]), (1.0, 1.0, [2.0, 2.25]), (2.0, 2.0, [4.0])])


def test_definitions_by_hand() -> None:
    assert metrics.ttft(LOG).tolist() == [1.0, 1.0, 2.0]
    assert metrics.e2e(LOG).tolist() == [2.5, 1.25, 2.0]
    np.testing.assert_array_equal(metrics.tpot(LOG), [0.75, 0.25, np.nan])
    assert metrics.itl(LOG).tolist() == [0.5, 1.0, 0.25]
    found = metrics.figures(LOG)
    assert found["duration_s"] == 4.0
    assert found["output_tokens_per_s"] == pytest.approx(6 / 4)
    assert found["total_tokens_per_s"] == pytest.approx(36 / 4)
    assert found["requests_per_s"] == pytest.approx(3 / 4)
    assert found["output_tokens_per_s_per_user"] == pytest.approx((1 / 0.75 + 1 / 0.25) / 2)
    assert found["ttft_p50_ms"] == 1000.0
    assert found["lag_max_ms"] == pytest.approx(100.0)


def test_latency_counts_from_the_intended_arrival_and_not_from_the_late_send() -> None:
    late = make([(0.0, 5.0, [6.0, 7.0])])
    assert metrics.figures(late)["ttft_p50_ms"] == 6000.0
    assert definitions.figures(late, "vllm")["ttft_p50_ms"] == 1000.0


def test_failed_requests_count_and_do_not_contribute() -> None:
    log = make([(0.0, 0.0, [1.0, 2.0]), (0.0, 0.0, [])])
    found = metrics.figures(log, slo={"ttft": 1000.0})
    assert (found["completed_requests"], found["failed_requests"]) == (1, 1)
    assert found["goodput_ratio"] == 0.5
    assert found["output_tokens"] == 2
    assert metrics.figures(make([(0.0, 0.0, [])]))["completed_requests"] == 0


def test_goodput_needs_every_limit() -> None:
    assert metrics.goodput_mask(LOG, {"ttft": 1500, "tpot": 500}).tolist() == [False, True, False]
    assert metrics.goodput_mask(LOG, {"tpot": 800}).tolist() == [True, True, True], "one-token answers have no TPOT to miss"
    assert metrics.parse_slo("ttft:200, tpot:50,e2e:5000") == {"ttft": 200.0, "tpot": 50.0, "e2e": 5000.0}
    for bad in ("ttft", "ttft:x", "p99:5", "ttft:-1", "ttft:nan", ""):
        with pytest.raises(ResultsError, match="is not understood"):
            metrics.parse_slo(bad)
    with pytest.raises(ResultsError, match="two limits of ttft; give one"):
        metrics.parse_slo("ttft:200,e2e:9,ttft:100")


def test_short_outputs_show() -> None:
    found = metrics.figures(make([(0.0, 0.0, [1.0, 2.0])], requested_tokens=np.array([8])))
    assert found["output_length_ratio"] == 0.25


def test_log_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ResultsError, match="sent_s has 1 entries for 2"):
        RequestLog(np.zeros(2), np.zeros(1), np.zeros(2), np.zeros(2), np.ones(2, int), np.ones(2, int), np.ones(2, bool))


def test_steady_window_counts_only_what_lies_inside() -> None:
    requests = [(float(i), float(i), [i + 0.5, i + 1.0]) for i in range(10)]
    found = metrics.figures(make(requests), window=(2.0, 7.0))
    assert found["steady_output_tokens_per_s"] == pytest.approx(10 / 5)
    assert found["steady_requests_per_s"] == pytest.approx(1.0)
    assert found["steady_ttft_p50_ms"] == 500.0
    assert (found["steady_start_s"], found["steady_end_s"]) == (2.0, 7.0)
    unknown = make(requests)
    spread = RequestLog(**{**unknown.__dict__, "token_times_s": None, "token_offsets": None})
    assert metrics.steady(spread, (2.0, 7.0))["steady_output_tokens_per_s"] == pytest.approx(2.0, rel=0.1)


REQUESTS = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0, 1), st.lists(st.floats(0.001, 2), min_size=1, max_size=6)),
    min_size=1,
    max_size=12,
)


@given(REQUESTS)
@settings(max_examples=60, deadline=None)
def test_vectorised_definitions_equal_a_plain_loop(raw: list[tuple[float, float, list[float]]]) -> None:
    requests = [(t, t + late, (t + late + np.cumsum(gaps)).tolist()) for t, late, gaps in raw]
    log = make(requests)
    found = metrics.figures(log)
    gaps = [b - a for _, _, times in requests for a, b in itertools.pairwise(times)]
    tpots = [(times[-1] - times[0]) / (len(times) - 1) for _, _, times in requests if len(times) > 1]
    seconds = max(times[-1] for *_, times in requests) - min(t for t, *_ in requests)
    assert metrics.itl(log).tolist() == pytest.approx(gaps)
    assert found["output_tokens_per_s"] == pytest.approx(sum(len(times) for *_, times in requests) / seconds)
    if tpots:
        assert found["tpot_p99_ms"] == pytest.approx(float(np.percentile(tpots, 99)) * 1e3)
        assert found["itl_mean_ms"] == pytest.approx(float(np.mean(gaps)) * 1e3)
    else:
        assert "tpot_p50_ms" not in found
    assert found["ttft_p50_ms"] <= found["ttft_p90_ms"] <= found["ttft_p99_ms"] <= found["ttft_max_ms"] + 1e-9
    assert set(found) <= set(METRICS)


@given(REQUESTS, st.data())
@settings(max_examples=40, deadline=None)
def test_select_keeps_each_request_with_its_own_tokens(raw: list[tuple[float, float, list[float]]], data: st.DataObject) -> None:
    requests = [(t, t + late, (t + late + np.cumsum(gaps)).tolist()) for t, late, gaps in raw]
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(requests), max_size=len(requests))))
    chosen, expected = make(requests).select(keep), [r for r, k in zip(requests, keep, strict=True) if k]
    np.testing.assert_array_equal(metrics.itl(chosen), metrics.itl(make(expected)) if expected else np.empty(0))


def test_other_tools_definitions() -> None:
    log = make([(0.0, 0.5, [1.0, 1.5, 2.5]), (0.0, 0.0, [2.0]), (0.0, 0.0, [1.0, 1.2])])
    guide = definitions.figures(log, "guidellm")
    assert guide["tpot_max_ms"] == pytest.approx(2000.0), "E2E / N, first token included"
    assert guide["itl_mean_ms"] == pytest.approx((2 * 750 + 200) / 3), "a request's mean gap, weighted by its gaps"
    assert guide["tpot_mean_ms"] == pytest.approx((2000 + 2000 + 1200) / 6), "weighted by tokens"
    nvidia = definitions.figures(log, "nvidia")
    assert nvidia["tpot_mean_ms"] == pytest.approx((750 + 0 + 200) / 3), "a one-token answer counts as 0"
    assert nvidia["output_tokens_per_s_per_user"] == pytest.approx((3 / 2 + 1 / 2 + 2 / 1.2) / 3)
    aiperf = definitions.figures(log, "aiperf")
    assert aiperf["itl_p50_ms"] == pytest.approx((750 + 200) / 2)
    vllm = definitions.figures(log, "vllm")
    assert vllm["itl_mean_ms"] == pytest.approx((500 + 1000 + 200) / 3)
    with pytest.raises(ResultsError, match="no definitions named"):
        definitions.figures(log, "sglang")


def test_percentile_rules_differ_as_stated() -> None:
    values = np.arange(1.0, 11.0)
    assert definitions.percentile_linear(values, 50) == 5.5
    assert definitions.percentile_index(values, 50) == 6.0
    assert definitions.percentile_cumulative(values, 50) == 5.0
    assert definitions.percentile_index(values, 99) == 10.0


def chunked(tokens: int, size: int, gap_s: float = 0.02, ttft_s: float = 0.1, sent_s: float = 0.0) -> tuple[float, float, list[float]]:
    """An answer whose tokens are made every `gap_s` and come `size` at a time, when the last of them is made."""
    made = [ttft_s + gap_s * k for k in range(tokens)]
    return sent_s, sent_s, [sent_s + made[min(k // size * size + size, tokens) - 1] for k in range(tokens)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_per_user_speed_is_the_servers_whatever_the_chunks_hold(size: int) -> None:
    found = metrics.figures(make([chunked(32, size)] * 3))
    assert found["output_tokens_per_s_per_user"] == pytest.approx(50.0)


def test_tokens_that_came_at_once_have_no_tpot_and_no_speed() -> None:
    log = make([chunked(32, 1), chunked(32, 1), (0.0, 0.0, [0.7 + 1e-6 * k for k in range(32)]), chunked(32, 32)])
    assert metrics.came_at_once(log).tolist() == [False, False, True, True]
    found = metrics.figures(log)
    assert found["tpot_p50_ms"] == pytest.approx(20.0)
    assert found["output_tokens_per_s_per_user"] == pytest.approx(50.0)
    assert "tpot_p50_ms" not in metrics.figures(make([chunked(32, 32)]))


def test_itl_of_vllm_is_gaps_between_chunks() -> None:
    log = make([chunked(9, 3)])
    assert definitions.figures(log, "vllm")["itl_p50_ms"] == pytest.approx(60.0)
    assert metrics.figures(log)["itl_p50_ms"] == 0.0
    together = make([chunked(9, 3)], columns={"chunks": np.array([9])})  # nine chunks, read three at a time
    assert definitions.figures(together, "vllm")["itl_mean_ms"] == pytest.approx(120 / 8)


def test_vllm_counts_from_before_the_first_wait_to_the_end_of_the_last_stream() -> None:
    columns = {"start_s": np.array([0.0, 0.0]), "closed_s": np.array([3.0, 5.0])}
    log = make([(1.0, 1.0, [2.0, 2.5]), (2.0, 2.0, [])], columns=columns)
    assert definitions.figures(log, "vllm")["duration_s"] == 5.0
    assert definitions.figures(log, "vllm")["output_tokens_per_s"] == pytest.approx(2 / 5)
    assert definitions.figures(log, "nvidia")["duration_s"] == 1.5


def test_e2e_of_guidellm_ends_with_the_stream() -> None:
    log = make([(0.0, 0.5, [1.0, 1.5])], columns={"closed_s": np.array([2.0])})
    assert definitions.figures(log, "guidellm")["e2e_p50_ms"] == pytest.approx(1500.0)
    assert definitions.figures(log, "guidellm")["tpot_p50_ms"] == pytest.approx(500.0)
    assert definitions.figures(log, "vllm")["e2e_p50_ms"] == pytest.approx(1000.0)


GUIDELLM_PERCENTILES = {10: [5, 10, 10, 10], 77: [39, 70, 74, 77], 220: [111, 199, 210, 218], 400: [200, 361, 381, 397]}
"""p50, p90, p95, p99 of 1, 2, ..., n by GuideLLM 0.8.0 itself (`DistributionSummary.from_values`)."""


def test_percentiles_of_guidellm_are_its_own_to_the_order_statistic() -> None:
    for n, expected in GUIDELLM_PERCENTILES.items():
        values = np.arange(1.0, n + 1)
        assert [definitions.percentile_cumulative(values, p) for p in (50, 90, 95, 99)] == expected


def test_a_request_never_sent_does_not_take_the_rates_away() -> None:
    log = make([(0.0, 0.0, [1.0, 2.0]), (0.0, float("nan"), [])])
    assert definitions.figures(log, "vllm")["output_tokens_per_s"] == pytest.approx(1.0)


def test_figures_of_tokens_nobody_counted_are_left_out() -> None:
    requests = [(0.0, 0.0, [1.0, 2.0]), (0.0, 0.0, [1.0, 3.0])]
    found = metrics.figures(make(requests, columns={"counted": np.array([True, False])}), window=(0.0, 3.0))
    assert not [name for name in found if "output" in name or "total" in name or "tpot" in name or "itl" in name]
    assert found["ttft_p50_ms"] == 1000.0
    assert found["input_tokens"] == 20
    assert found["steady_requests_per_s"] == pytest.approx(2 / 3)
    unknown = RequestLog(**{**make(requests).__dict__, "input_tokens": np.array([0, 5])})
    assert not {"input_tokens", "total_tokens_per_s", "input_length_mean"} & set(metrics.figures(unknown))
    assert metrics.figures(unknown)["output_tokens"] == 4


def test_a_window_in_which_nothing_ended_has_no_request_rate() -> None:
    log = make([(0.0, 0.0, [1.0, 2.0])])
    assert "steady_requests_per_s" not in metrics.figures(log, window=(0.5, 1.5))


def test_the_share_of_prompts_from_a_cache_is_a_figure() -> None:
    log = make([(0.0, 0.0, [1.0, 2.0])] * 3, columns={"cached_tokens": np.array([0, 5, -1])})
    assert metrics.figures(log)["prefix_hit_ratio"] == 0.25
    assert "prefix_hit_ratio" not in metrics.figures(LOG)
