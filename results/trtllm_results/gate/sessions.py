"""Compares two sessions of measurement. The error holds what differs from day to day; where nobody has measured that, the verdict says so.

Repeats of one session share its day. Their spread says how well that day's level is known, and nothing of the next day's. A comparison
that knows repeats only is wrong in 27 to 40% of cases where days differ by as much as runs do. The noise between sessions is therefore
taken, in this order, from

    sessions   the spread between sessions of one state (`gate accept --same-state`), three sessions or more
    history    the steps between successive states, four states or more; real changes count as noise, which makes the gate blunter
    assumed    `ASSUMED_SD`: the stated bound. A verdict then holds only if days differ by no more than that

and from a noise file where that is larger. With a measured deviation the test is Student's with that deviation's degrees of freedom, so
three sessions decide only what is far beyond their spread. Rejected: a prior that mixes the assumed and the measured deviation (its
error rate depends on the prior being right), and Welch's test over all runs of several sessions (they are not independent).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trtllm_results.gate.power import MOST_DF, Component, combined
from trtllm_results.stats import Evidence

ASSUMED_SD = 0.01
"""Deviation of ln(value) between sessions while nobody has measured it."""
FEWEST_SESSIONS = 3
FEWEST_STATES = 4
Runs = Sequence[float]


@dataclass(frozen=True)
class SessionNoise:
    """Standard deviation of ln(value) between sessions.

    `with_runs`: `sd` is that of session means as they were measured, so it holds their run noise too.
    """

    sd: float
    df: float = MOST_DF
    with_runs: bool = False
    sentence: str = ""
    """What a reader has to know of where it comes from; empty where it was measured for this purpose."""


@dataclass(frozen=True)
class SessionComparison:
    """ln(candidate / baseline), and the part of its error that further repeats of the candidate do not shrink."""

    evidence: Evidence
    fixed: Component


def level(runs: Runs) -> float:
    """Mean of ln(value) over one session's runs."""
    return float(np.mean(np.log(np.asarray(runs, dtype=float))))


def session_noise(states: Sequence[Sequence[Runs]], from_file: SessionNoise | None = None) -> SessionNoise:
    """The noise between sessions, from [states][sessions] runs of one figure and from a noise file; the larger of both."""
    measured = _of_sessions(states) or _of_history(states)
    if measured is None and from_file is None:
        spread = _within_states(states)
        sd = max(ASSUMED_SD, spread.error) if spread else ASSUMED_SD
        return SessionNoise(sd, sentence=_assumed(sd))
    if measured is None or from_file is None:
        return measured or from_file  # type: ignore[return-value]
    return max(measured, from_file, key=lambda one: one.sd)


def _assumed(sd: float) -> str:
    return (
        f"how much this machine differs from one day to the next was never measured; {sd:.1%} is assumed, and the verdict is wrong more "
        f"often than alpha says where it is more. Accept {FEWEST_SESSIONS} sessions of the same state from different days "
        "(gate accept --same-state), or use gate run"
    )


def _within_states(states: Sequence[Sequence[Runs]]) -> Component | None:
    """Pooled deviation of session means within states; None without a second session of any."""
    levels = [np.array([level(runs) for runs in sessions]) for sessions in states if len(sessions) > 1]
    df = sum(len(one) - 1 for one in levels)
    if df == 0:
        return None
    return Component(math.sqrt(sum(float(((one - one.mean()) ** 2).sum()) for one in levels) / df), float(df))


def _of_sessions(states: Sequence[Sequence[Runs]]) -> SessionNoise | None:
    spread = _within_states(states)
    if spread is None or spread.df < FEWEST_SESSIONS - 1:
        return None
    return SessionNoise(spread.error, spread.df, with_runs=True)


def _of_history(states: Sequence[Sequence[Runs]]) -> SessionNoise | None:
    """From the steps between states (von Neumann's mean square successive difference, 1941, with its equivalent degrees of freedom)."""
    if len(states) < FEWEST_STATES:
        return None
    steps = np.diff([float(np.mean([level(runs) for runs in sessions])) for sessions in states])
    sd, n = math.sqrt(float((steps**2).mean()) / 2), len(steps)
    sentence = (
        f"the noise between days is taken from the steps between {len(states)} accepted states; real changes among them make this check "
        "blunter, and sessions of one state (gate accept --same-state) would make it sharper"
    )
    return SessionNoise(sd, 2 * n**2 / (3 * n - 1), with_runs=True, sentence=sentence)


def compared(sessions: Sequence[Runs], candidate: Runs, noise: SessionNoise, in_pairs: bool = False) -> SessionComparison | None:
    """The candidate's one session against the baseline's; None where either has a session of a single run. `in_pairs`: the k-th runs of all
    sessions met the same arrivals, whose luck is then alike on both sides.

    With K sessions of the baseline the difference has variance s^2 (1 + 1/K), and the run noise of both sides on top where `s` does not
    hold it (Satterthwaite's degrees of freedom).
    """
    if min(len(candidate), *(len(runs) for runs in sessions)) < 2:
        return None
    if in_pairs:
        return _in_pairs(sessions, candidate, noise)
    count = len(sessions)
    difference = level(candidate) - float(np.mean([level(runs) for runs in sessions]))
    run = _mean_error(candidate)
    own = [_mean_error(runs) for runs in sessions]
    base_error, base_df = combined([Component(one.error / count, one.df) for one in own])
    if noise.with_runs:
        # The deviation of session means cannot lie below what their runs explain; where it seems to, that is luck.
        held = math.sqrt(sum(one.error**2 for one in own) / count)
        sd = max(noise.sd, held)
        parts = [Component(sd * math.sqrt(1 + 1 / count), noise.df), Component(math.sqrt(max(run.error**2 - held**2, 0.0)), run.df)]
        fixed_variance = sd**2 * (1 + 1 / count) - min(held, run.error) ** 2
    else:
        parts = [Component(noise.sd * math.sqrt(1 + 1 / count), noise.df), Component(base_error, base_df), run]
        fixed_variance = noise.sd**2 * (1 + 1 / count) + base_error**2
    error, df = combined(parts)
    fixed = Component(math.sqrt(max(fixed_variance, 0.0)), noise.df if noise.with_runs else combined(parts[:2])[1])
    return SessionComparison(Evidence(difference, error, df), fixed)


def _in_pairs(sessions: Sequence[Runs], candidate: Runs, noise: SessionNoise) -> SessionComparison:
    """By the differences of the k-th runs, of as many as every session has. Further repeats would have no fellow, so all of the error
    stays."""
    repeats, count = min(len(candidate), *map(len, sessions)), len(sessions)
    before = np.log(np.asarray([runs[:repeats] for runs in sessions], dtype=float)).mean(axis=0)
    differences = np.log(np.asarray(candidate[:repeats], dtype=float)) - before
    run = Component(float(differences.std(ddof=1)) / math.sqrt(repeats), repeats - 1.0)
    between = Component(noise.sd * math.sqrt(1 + 1 / count), noise.df)
    if noise.with_runs:  # as in `compared`, not below what the runs explain
        error, df = (between.error, between.df) if between.error >= run.error else (run.error, min(run.df, between.df))
    else:
        error, df = combined([between, run])
    return SessionComparison(Evidence(float(differences.mean()), error, df), Component(error, df))


def _mean_error(runs: Runs) -> Component:
    values = np.log(np.asarray(runs, dtype=float))
    return Component(float(values.std(ddof=1)) / math.sqrt(len(values)), len(values) - 1.0)
