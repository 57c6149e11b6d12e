"""What tuning by whole decode steps found, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from trtllm_bench.tune.steps import StepDecision, TunedSteps
from trtllm_dashboards.tables import Column, show

CHOICES = (
    Column("op", hoist=False, whole=True),
    Column("choice", hoist=False),
    Column("m", "M", kind="number"),
    Column("held", unit="us", kind="number", places=1),
    Column("best", unit="us", kind="number", places=1),
    Column("gain", unit="%", kind="number", places=2),
    Column("verdict", hoist=False),
    Column("tactic", hoist=False, priority=2),
    Column("tried", kind="number", places=0, priority=3),
    Column("dropped", kind="number", places=0, priority=3),
)
STEPS = (
    Column("m", "M", kind="number"),
    Column("before", unit="us", kind="number", places=1),
    Column("after", unit="us", kind="number", places=1),
    Column("gain", unit="%", kind="number", places=2),
    Column("w_before", "power before", unit="W", kind="number", places=0),
    Column("w_after", "after", unit="W", kind="number", places=0),
    Column("mj_before", "energy before", unit="mJ", kind="number", places=1),
    Column("mj_after", "after", unit="mJ", kind="number", places=1),
    Column("mhz_before", "SM clock before", unit="MHz", kind="number", places=0, priority=2),
    Column("mhz_after", "after", unit="MHz", kind="number", places=0, priority=2),
)


def choice_rows(tuned: TunedSteps) -> list[dict[str, object]]:
    """One row per choice and size: what held against the candidate that was taken, or the fastest where none was."""
    rows: list[dict[str, object]] = []
    for decision in tuned.decisions:
        tactic = decision.winner or decision.best
        best = decision.choice.candidates.index(tactic) if tactic else -1
        for size in decision.sizes:
            us = size.us.get(best, size.held_us)
            rows.append(
                {
                    "op": decision.role.rpartition(".")[2],
                    "choice": decision.choice.name,
                    "m": size.tokens,
                    "held": size.held_us,
                    "best": us,
                    "gain": 100 * (1 - us / size.held_us),
                    "verdict": verdict(decision),
                    "tactic": text_of(tactic),
                    "tried": len(size.us),
                    "dropped": len(size.dropped),
                }
            )
    return rows


def verdict(decision: StepDecision) -> str:
    if decision.winner:
        return "taken, confirmed" if decision.confirmed else "taken"
    return "not confirmed" if decision.confirmed is False else "kept"


def text_of(tactic: Mapping[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in tactic.items())


def step_rows(tuned: TunedSteps) -> list[dict[str, object]]:
    return [
        {
            "m": one.tokens,
            "before": one.before.us,
            "after": one.after.us,
            "gain": 100 * (1 - one.after.us / one.before.us),
            "w_before": one.before.watts,
            "w_after": one.after.watts,
            "mj_before": one.before.mj,
            "mj_after": one.after.mj,
            "mhz_before": one.before.mhz,
            "mhz_after": one.after.mhz,
        }
        for one in tuned.whole
    ]


def print_steps(tuned: TunedSteps, title: str, console: Console) -> None:
    if tuned.decisions:
        show(choice_rows(tuned), CHOICES, title=title, console=console)
    if tuned.whole:
        show(step_rows(tuned), STEPS, title="all that was taken, sustained", console=console)
    for decision in tuned.decisions:
        if decision.winner:
            console.print(
                f"{decision.role.rpartition('.')[2]}, {decision.choice.name}: {text_of(decision.winner)}", style="green", soft_wrap=True
            )
    if tuned.slower:
        console.print("together they are no faster than what held before, so none is kept", style="yellow", soft_wrap=True)
