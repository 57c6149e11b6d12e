"""The two steady-state rules on logs whose steady part is known."""

from __future__ import annotations

import numpy as np
import pytest

from trtllm_bench.load import steady
from trtllm_results.metrics.requests import RequestLog, figures


def log_of(sent: np.ndarray, end: np.ndarray) -> RequestLog:
    n = len(sent)
    return RequestLog(sent, sent, sent + 0.1, end, np.full(n, 8), np.full(n, 4), np.ones(n, bool))


def trapezoid() -> RequestLog:
    """Ten places filling one a second from 0, each serving 5-second requests back to back until 60, then draining."""
    sent = np.concatenate([np.arange(k, 60, 5.0) for k in np.arange(0, 10, 1.0)])
    return log_of(sent, sent + 5.0)


def test_in_flight_counts() -> None:
    times, count = steady.in_flight(log_of(np.array([0.0, 1.0]), np.array([2.0, 3.0])))
    assert times.tolist() == [0, 1, 2, 3]
    assert count.tolist() == [1, 2, 1, 0]


def test_concurrency_rule_finds_the_plateau() -> None:
    span = steady.by_concurrency(trapezoid())
    assert span is not None
    assert span.start_s == pytest.approx(8.0)
    assert span.end_s == pytest.approx(60.0, abs=1.1)
    assert span.share == pytest.approx(52 / 64, abs=0.03)


def test_concurrency_rule_takes_the_longest_of_several_spans() -> None:
    sent = np.array([0.0, 0.0, 10.0, 10.0])
    span = steady.by_concurrency(log_of(sent, np.array([1.0, 1.0, 15.0, 15.0])))
    assert span is not None
    assert (span.start_s, span.end_s) == (10.0, 15.0)


def test_slope_rule_finds_a_flat_middle() -> None:
    span = steady.by_slope(trapezoid())
    assert span is not None
    assert 2 < span.start_s < 15
    assert 50 < span.end_s <= 64


def test_slope_rule_accepts_poisson_load_below_saturation() -> None:
    rng = np.random.default_rng(0)
    sent = np.cumsum(rng.exponential(0.02, 5000))
    span = steady.by_slope(log_of(sent, sent + 1.0))
    assert span is not None
    assert span.share > 0.8
    assert not steady.grows(log_of(sent, sent + 1.0), sent[-1])


def test_a_growing_queue_is_not_steady_and_is_called_growing() -> None:
    sent = np.linspace(0, 100, 2000)
    end = 1 + np.arange(2000) * 0.2  # served at 5/s, sent at 20/s
    log = log_of(sent, np.maximum(end, sent + 0.1))
    until_arrivals_end = log_of(sent, np.minimum(log.end_s, 1e9))
    assert steady.grows(until_arrivals_end, 100.0)
    span = steady.by_slope(log)
    assert span is None or span.share < 0.6


def test_an_empty_log_has_no_steady_span() -> None:
    empty = log_of(np.full(2, np.nan), np.full(2, np.nan))
    assert steady.by_concurrency(empty) is None
    assert steady.by_slope(empty) is None


@pytest.mark.parametrize("jitter_s", [0.0, 0.002])
def test_a_closed_loop_of_equal_lengths_is_steady_over_whole_waves(jitter_s: float) -> None:
    """Twelve waves of eight streams of 32 tokens, 82 ms each: 97.6 requests/s and 3,122 tokens/s in any part of it."""
    rng = np.random.default_rng(0)
    sent = np.repeat(np.arange(12) * 0.082, 8) + rng.random(96) * jitter_s
    first = sent + 0.02
    times = first[:, None] + np.arange(32) * 0.002
    log = RequestLog(
        sent,
        sent,
        first,
        times[:, -1],
        np.full(96, 64),
        np.full(96, 32),
        np.ones(96, bool),
        token_times_s=times.ravel(),
        token_offsets=np.arange(97) * 32,
    )
    span = steady.by_turnover(log, 8)
    assert span is not None
    assert span.share == pytest.approx(10 / 12, abs=0.02)
    found = figures(log, window=(span.start_s, span.end_s))
    assert found["steady_requests_per_s"] == pytest.approx(8 / 0.082, rel=0.01)
    assert found["steady_output_tokens_per_s"] == pytest.approx(8 * 32 / 0.082, rel=0.01)


def test_turnover_of_unequal_requests_covers_the_plateau() -> None:
    log = trapezoid()
    span = steady.by_turnover(log, 10)
    assert span is not None
    assert (span.start_s, span.end_s) == (12.0, 59.0)  # the tenth end, and the tenth before the last ten
    assert steady.by_turnover(log, 0) == steady.by_concurrency(log)
