"""Draws `docs/gate.svg`: the gate's promises under simulated noise. Run from the repository: `python docs/gate_figure.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from trtllm_results.gate.config import GateConfig
from trtllm_results.gate.simulate import MODELS, simulate

LOSSES = [0.0, 0.005, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.0225, 0.025, 0.0275, 0.03, 0.035, 0.04, 0.05]
MACHINES, MARGIN, SD = 20_000, 0.02, 0.01
FAIL, PASS, NAIVE = "#D55E00", "#0072B2", "#7F7F7F"


def main(out: Path) -> None:
    config = GateConfig()
    style = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "gate", "axes.spines.top": False, "axes.spines.right": False}
    plt.rcParams.update(style)
    figure, axes = plt.subplots(2, 3, figsize=(9.2, 5.6), sharex=True, sharey=True, layout="constrained")
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
    axes[0, 0].text(100 * MARGIN, 1.06, "margin 2%", color="0.45", fontsize=8, ha="center")
    axes[0, 0].text(5, config.alpha + 0.015, "alpha 5%", color="0.45", fontsize=8, ha="right")
    for axis in axes[1]:
        axis.set_xlabel("true loss of B, %")
    for axis in axes[:, 0]:
        axis.set_ylabel("probability of the verdict")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("gate.svg"))
