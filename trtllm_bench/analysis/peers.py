"""Prints how far off the step model is (`model_errors.py`), as the tables of docs/facts/predictions.md.

python -m trtllm_bench.analysis.peers            # all tables of docs/facts/predictions.md
python -m trtllm_bench.analysis.peers --write    # and the errors that intervals of `sweep --predict` come from
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Sequence

from trtllm_bench.analysis.model_errors import (
    Factor,
    OwnError,
    PeerPoint,
    coverage,
    errors_left_out,
    factors,
    own_errors,
    predicted,
    write_tables,
)
from trtllm_bench.analysis.prediction_error import DIGITS, interval_for, interval_of, kind_of, read_errors
from trtllm_bench.analysis.step_constants import DEFAULT_GPU
from trtllm_bench.roofline.hardware import GPUS, published
from trtllm_results.compare.published import folder, load


def summary(points: Iterable[PeerPoint]) -> list[str]:
    """A line for each engine, GPU, model, precision and layout."""
    groups: dict[tuple[str, str, str, str, int], list[float]] = {}
    for point in points:
        one = point.theirs
        groups.setdefault((point.engine, point.gpu, one.model, one.precision, one.tp), []).append(point.error)
    return [
        f"{engine} {gpu} {model} {precision} tp {tp}: {len(errors)} points, median {statistics.median(errors):+.0%}, "
        f"{min(errors):+.0%} to {max(errors):+.0%}"
        for (engine, gpu, model, precision, tp), errors in sorted(groups.items())
    ]


def _median_and_worst(errors: Sequence[float]) -> str:
    """Median of sizes, and the largest with its sign."""
    return f"{statistics.median(map(abs, errors)):.1%} | {max(errors, key=lambda error: abs(math.log1p(error))):+.1%}" if errors else " | "


def own_table(own: Sequence[OwnError]) -> list[str]:
    lines = ["| our runs on | cells | median error | worst |", "|---|--:|--:|--:|"]
    for gpu, several in sorted({(one.gpu, one.cell.gpus > 1) for one in own}):
        here = [one for one in own if (one.gpu, one.cell.gpus > 1) == (gpu, several)]
        for told, chosen in (
            ("constants follow them", [one for one in here if one.in_sample]),
            ("each left out of the fit", [one for one in here if one.left_out]),
            ("precision left out of the fit", [one for one in here if one.precision_left_out]),
            ("held out", [one for one in here if one.of_no_fit and not one.transferred]),
            ("earlier engine, by the H100's constants", [one for one in here if one.earlier]),
        ):
            name = f"two {gpu}" if several else f"one {gpu}"
            for quantized in (False, True):
                errors = [one.error for one in chosen if one.quantized == quantized]
                lines += [f"| {name}, {'quantized, ' * quantized}{told} | {len(errors)} | {_median_and_worst(errors)} |"] if errors else []
    return lines


def cover_table(own: Sequence[OwnError]) -> list[str]:
    """How many cells lie within the interval of their prediction, by the constants as they are and by constants fitted without the cell.
    Cells of an earlier engine have the interval of the GPU whose constants predict them. Its quantized cells are left out: their kernels
    are gone."""
    groups: dict[tuple[str, str], list[OwnError]] = {}
    for one in own:
        if not (one.quantized and one.transferred):
            gpu = f"{one.gpu}, earlier engine" if one.transferred else one.gpu
            groups.setdefault((gpu, kind_of(one.cell.batch // one.cell.replicas, one.cell.tp * one.cell.pp, one.quantized)), []).append(one)
    lines = ["| GPU | kind | within | of cells | left out of the fit: within | of cells |", "|---|---|--:|--:|--:|--:|"]
    for (gpu, kind), cells in sorted(groups.items()):
        told = []
        for chosen in ([one for one in cells if not (one.left_out or one.precision_left_out)], [one for one in cells if one.left_out]):
            told += [str(sum(map(_within, chosen))), str(len(chosen))] if chosen else ["-", "-"]
        lines.append(f"| {gpu} | {kind} | {' | '.join(told)} |")
    return lines


def _within(one: OwnError) -> bool:
    hardware = published(DEFAULT_GPU if one.transferred else one.gpu.lower())
    interval = interval_for(hardware, one.cell.batch // one.cell.replicas, one.cell.tp * one.cell.pp, one.quantized)
    rounded = round(one.error, DIGITS)  # as in the file: a factor is one of its errors, and that one lies within
    return abs(math.log1p(rounded)) <= math.log(interval.factor) * (1 + 1e-9)


def step_table(own: Sequence[OwnError], gpu: str, quantized: bool) -> list[str]:
    """Errors of the cells on one GPU that constants follow: a line per model, precision and lengths."""
    cells: dict[tuple[str, ...], list[OwnError]] = {}
    for one in own:
        if one.in_sample and one.gpu == gpu and one.quantized == quantized and one.cell.gpus == 1:
            cells.setdefault((one.cell.model, one.cell.precision, f"{one.cell.isl}/{one.cell.osl}"), []).append(one)
    lines = ["| model | precision | ISL/OSL | sequences | error |", "|---|---|---|--:|--:|"]
    for key, members in sorted(cells.items()):
        ordered = sorted(members, key=lambda one: one.cell.batch)
        told = ", ".join(f"{one.cell.batch:,}" for one in ordered), ", ".join(f"{one.error:+.1%}" for one in ordered)
        lines.append(f"| {' | '.join((*key, *told))} |")
    return lines


def factor_table(factors: Sequence[Factor]) -> list[str]:
    lines = ["| engine | GPU | rows | median error | worst | factor | left out: median | worst |", "|---|---|--:|--:|--:|--:|--:|--:|"]
    for one in factors:
        median = statistics.median(one.errors)
        worst = max(one.errors, key=lambda error: abs(math.log1p(error)))
        row = f"| {one.engine} | {one.gpu} | {len(one.errors)} | {median:+.1%} | {worst:+.1%} | {one.factor:.2f} | "
        lines.append(row + f"{_median_and_worst(one.left_out)} |")
    return lines


def interval_table() -> list[str]:
    """What `sweep --predict` takes: by GPU and kind of step, from `prediction_errors.toml` as it is."""
    lines = ["| GPU | sequences | throughput within | in | errors | of |", "|---|---|--:|--:|--:|---|"]
    for gpu, kinds in read_errors().items():
        for kind, table in kinds.items():
            one = interval_of(table["errors"], table["basis"])
            lines.append(f"| {gpu} | {kind} | x or / {one.factor:.2f} | {one.cover:.0%} | {one.errors} | {one.basis} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trtllm_bench.analysis.peers")
    parser.add_argument("--gpu", choices=GPUS, help="published figures on this GPU only")
    parser.add_argument("--write", action="store_true", help="write the errors that intervals of predictions come from")
    options = parser.parse_args()
    if options.write and options.gpu:
        parser.error("--write needs all GPUs; leave --gpu out")
    chosen, why = coverage(load(), options.gpu)
    points = list(predicted(chosen))
    print("\n".join(factor_table(factors(points))))
    print(f"\n{len(points)} rows; left out: " + ", ".join(f"{reason} ({count})" for reason, count in why.most_common()))
    print("\n" + "\n".join(summary(points)))
    root = folder().parent / "recorded"
    if options.gpu or not root.is_dir():
        return
    own = own_errors(root) + errors_left_out(root)
    print("\n" + "\n".join(own_table(own)))
    if options.write:
        write_tables(own, points)
    print("\n" + "\n".join(interval_table()))
    print("\n" + "\n".join(cover_table(own)))


if __name__ == "__main__":
    main()
