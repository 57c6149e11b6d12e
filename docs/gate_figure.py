"""Draws `docs/gate.svg` and prints the tables of `docs/gate.md`: the gate's promises under simulated noise.

Run from the repository: `python docs/gate_figure.py [FILE]`; `python docs/gate_figure.py --tables` prints the other promises' tables only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from trtllm_results.gate import promises
from trtllm_results.gate.config import GateConfig
from trtllm_results.gate.simulate import MODELS, simulate

LOSSES = [0.0, 0.005, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.0225, 0.025, 0.0275, 0.03, 0.035, 0.04, 0.05]
MACHINES, MARGIN, SD = 20_000, 0.02, 0.01
CHECKED = {
    "one session": (1,),
    "three sessions of one state": (3,),
    "six sessions of one state": (6,),
    "four states": (1, 1, 1, 1),
    "ten states": (1,) * 10,
}
HISTORIES: dict[str, promises.Levels] = {
    "unchanged, 1.5% noise": lambda rng, n: rng.normal(0, 0.015, n),
    "unchanged, 0.3% noise, one accept in ten 5% slow": lambda rng, n: rng.normal(0, 0.003, n) - 0.05 * (rng.random(n) < 0.1),
    "unchanged, 5% noise": lambda rng, n: rng.normal(0, 0.05, n),
    "0.3% lost at every accept, 0.2% noise": lambda rng, n: rng.normal(0, 0.002, n) - 0.003 * np.arange(n),
    "0.3% lost at every accept, 0.5% noise": lambda rng, n: rng.normal(0, 0.005, n) - 0.003 * np.arange(n),
    "0.3% lost at every accept, 1% noise": lambda rng, n: rng.normal(0, 0.01, n) - 0.003 * np.arange(n),
    "the same after 30 flat accepts, 0.2% noise": lambda rng, n: rng.normal(0, 0.002, n) - 0.003 * np.maximum(0, np.arange(n) - 30),
    "one drop of 3% at accept 20, 0.5% noise": lambda rng, n: rng.normal(0, 0.005, n) - 0.03 * (np.arange(n) >= 20),
}
FAIL, PASS, NAIVE = "#D55E00", "#0072B2", "#7F7F7F"


def main(out: Path) -> None:
    config = GateConfig()
    style = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "gate", "axes.spines.top": False, "axes.spines.right": False}
    plt.rcParams.update(style)
    figure, axes = plt.subplots(2, 4, figsize=(11.6, 5.6), sharex=True, sharey=True, layout="constrained")
    percent = [100 * loss for loss in LOSSES]
    print("model, design, P(fail) at no loss, P(fail) at margin, P(pass) at margin, P(fail) at 3%, P(fail) at 4%, mean blocks at no loss")
    for axis, model in zip(axes.flat, MODELS, strict=True):
        ours = [simulate(model, loss, config, MARGIN, SD, MACHINES) for loss in LOSSES]
        naive = [simulate(model, loss, config, MARGIN, SD, MACHINES, interleaved=False) for loss in LOSSES]
        axis.axvline(100 * MARGIN, color="0.75", linewidth=1, zorder=0)
        axis.axhline(config.alpha, color="0.75", linewidth=1, linestyle=":", zorder=0)
        axis.plot(percent, [one.fail for one in naive], color=NAIVE, linestyle="--", linewidth=1.2, label="fail, if all A then all B")
        axis.plot(percent, [one.fail for one in ours], color=FAIL, linewidth=1.8, label="fail")
        axis.plot(percent, [one.passed for one in ours], color=PASS, linewidth=1.8, label="pass")
        axis.set_title(model, loc="left", fontsize=9, fontweight="bold")
        for design in (ours, naive):
            at = dict(zip(LOSSES, design, strict=True))
            values = (at[0.0].fail, at[MARGIN].fail, at[MARGIN].passed, at[0.03].fail, at[0.04].fail)
            print(f"{model}, {design[0].design}, " + ", ".join(f"{value:.4f}" for value in values) + f", {at[0.0].mean_blocks:.1f}")
    axes[0, 0].text(100 * MARGIN + 0.05, 1.06, "margin 2%", color="0.45", fontsize=8, ha="left")
    axes[0, 0].text(5, config.alpha + 0.015, "alpha 5%", color="0.45", fontsize=8, ha="right")
    for axis in axes[1]:
        axis.set_xlabel("true loss of B, %")
    for axis in axes[:, 0]:
        axis.set_ylabel("probability of the verdict")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=110)


def tables() -> None:
    """Power, projections, stored baselines and drift, one line each."""
    config = GateConfig()
    print("\ncalibration blocks, power delivered by each look where 0.8 is stated")
    for blocks in (4, 8, 20):
        print(f"{blocks}, " + ", ".join(f"{promises.delivered_power(config, look, blocks):.3f}" for look in config.look_blocks))
    print("\ntrue loss, decided after `about N more`, wrong of those, median blocks (noise 2% a block)")
    for loss in (0.0, 0.01, 0.015, 0.0175, 0.0225, 0.025, 0.03):
        print("{:.2%}, {:.3f}, {:.3f}, {}".format(loss, *promises.decided_after(config, loss, machines=1000)))
    print("\ntrue loss, decided after so many more repeats of the candidate (gate check)")
    for loss in (0.0, 0.01, 0.015, 0.025, 0.03):
        print(f"{loss:.2%}, {promises.repeats_that_decide(loss, machines=1000)[0]:.3f}")
    print("\nbaseline, noise between days, noise between runs: fail and pass at the margin, pass at no loss, fail at 5% loss")
    for name, states in CHECKED.items():
        for days, runs in ((0.0, 0.01), (0.005, 0.005), (0.01, 0.005)):
            margin, none, large = (promises.check_verdicts(loss, days, runs, states) for loss in (MARGIN, 0.0, 0.05))
            print(f"{name}, {days:.1%}, {runs:.1%}: {margin[0]:.3f}, {margin[1]:.3f}, {none[1]:.3f}, {large[0]:.3f}")
    print("\nhistory of 50 accepts: share with an alarm, median accept of it")
    for name, levels in HISTORIES.items():
        alarms = promises.first_alarms(levels, histories=1000 if "unchanged" in name else 100)
        told = alarms[alarms > 0]
        print(f"{name}: {np.mean(alarms > 0):.3f}, {np.median(told) if len(told) else '-'}")


if __name__ == "__main__":
    if sys.argv[1:] != ["--tables"]:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("gate.svg"))
    tables()
