"""The noise floor: what the gate says of A against A on this machine.

Runs ABBA blocks with the same thing on both arms. The spread of the blocks gives the loss that the configured gate finds with power 0.8 by
each of its looks, the uncertainty of the spread included; drawing blocks again with random signs (A/A differences are symmetric) and
letting the gate judge gives its false-positive rate on this machine's own noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from trtllm_results import stats
from trtllm_results.errors import ResultsError
from trtllm_results.gate.config import GateConfig
from trtllm_results.gate.power import MOST_DF, detectable_shift
from trtllm_results.gate.run import Blocks
from trtllm_results.gate.sessions import SessionNoise
from trtllm_results.gate.simulate import verdicts
from trtllm_results.store.document import read_document
from trtllm_results.store.files import write_text

FROM_FILE = (
    "the noise between days is taken from a noise file, which was measured within one session; days may differ by more, and sessions of "
    "one state (gate accept --same-state) would tell"
)


@dataclass(frozen=True)
class NoiseFloor:
    """Noise of one figure, as standard deviations of ln(value) or of a block's ln(B/A)."""

    figure: str
    blocks: int
    run_sd: float
    """Between runs of one block."""
    drift_sd: float
    """Between blocks beyond what run_sd explains: clocks, temperature, neighbours. A lower bound of what differs between days."""
    drift_df: float
    """Degrees of freedom of drift_sd (Satterthwaite)."""
    block_sd: float
    block_sd_interval: tuple[float, float]
    """95% chi-square interval of block_sd: with few blocks the noise floor is itself uncertain."""
    mean: float
    """Mean block difference; should be near 0."""
    false_fail_rate: float
    pass_rate: float
    detectable: Mapping[int, float]
    """Blocks of each look -> loss beyond the margin that this gate finds by then with power 0.8."""


def noise_floor(blocks: Blocks, config: GateConfig, resamples: int = 2000, seed: int = 0) -> list[NoiseFloor]:
    """The noise of every figure of `config.margins` in A/A `blocks` (at least 3). Raises `ResultsError` for fewer."""
    if len(blocks.runs) < 3:
        raise ResultsError(f"calibration needs at least 3 blocks; there are {len(blocks.runs)}")
    floors = []
    rng, tests = np.random.default_rng(seed), len(config.margins)
    for figure, margin in config.margins.items():
        runs = np.log(np.concatenate([blocks.values(figure, "A"), blocks.values(figure, "B")], axis=1))
        within = float(runs.var(axis=1, ddof=1).mean())
        spread = float(runs.mean(axis=1).var(ddof=1))
        between = max(0.0, spread - within / runs.shape[1])
        differences = np.array(blocks.differences(figure))
        last = config.look_blocks[-1]
        drawn = rng.choice(differences, (resamples, last)) * rng.choice([-1.0, 1.0], (resamples, last))
        outcome = verdicts(drawn, math.log1p(-margin), config)
        sd = float(differences.std(ddof=1))
        floors.append(
            NoiseFloor(
                figure=figure,
                blocks=len(differences),
                run_sd=math.sqrt(within),
                drift_sd=math.sqrt(between),
                drift_df=_drift_df(spread, within, *runs.shape),
                block_sd=sd,
                block_sd_interval=stats.sd_interval(sd, len(differences)),
                mean=float(differences.mean()),
                false_fail_rate=float((outcome == "fail").mean()),
                pass_rate=float((outcome == "pass").mean()),
                detectable={
                    int(look): -math.expm1(-sd * detectable_shift(config.plan.design.until(look), len(differences) - 1.0, tests))
                    for look in config.plan.design.counts
                },
            )
        )
    return floors


def _drift_df(spread: float, within: float, blocks: int, runs: int) -> float:
    """Of the variance between blocks, which is a difference of two mean squares; at least 1."""
    between = spread - within / runs
    if between <= 0:
        return 1.0
    return max(1.0, between**2 / (spread**2 / (blocks - 1) + (within / runs) ** 2 / (blocks * (runs - 1))))


def save(floors: list[NoiseFloor], path: Path) -> None:
    write_text(path, json.dumps({"schema_version": 1, "noise": [asdict(one) for one in floors]}, indent=1) + "\n")


def load_noise(path: Path | None) -> dict[str, SessionNoise]:
    """figure -> noise between blocks, for `baseline.check`; empty without a file. Raises `ResultsError` if it is not a noise file."""
    if path is None:
        return {}
    try:
        return {
            one["figure"]: SessionNoise(float(one["drift_sd"]), float(one.get("drift_df", MOST_DF)), sentence=FROM_FILE)
            for one in read_document(path)["noise"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path} is not a noise file of gate calibrate") from error
