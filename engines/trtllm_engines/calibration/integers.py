"""From a model folder to a checkpoint of integers, one layer at a time: int4, int8 (weight-only or with int8 inputs) and w4a8.

Each layer is read, run over the text (what reaches it comes through the layers before as they were rounded), given factors where the method
has them, rounded, run once more for the next one, and written. Only that layer's weights and the streams between layers are in memory, so
that the size of a model does not matter.

    rtn           rounds to nearest; reads no text
    awq           factors on input channels (`search.awq`), then scales shrunk where that helps (`search.clipped`)
    gptq          later columns make up for the errors of earlier ones (`gptq`)
    smoothquant   factors on input channels for products whose inputs are rounded too (`search.smooth`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import Node

from trtllm_engines.calibration import text
from trtllm_engines.calibration.folds import Fold, fold_of
from trtllm_engines.calibration.gptq import ACT_ORDERS, DAMPING, ActOrder, best_damping, gptq
from trtllm_engines.calibration.grid import Grid, Rounded
from trtllm_engines.calibration.layerwise import Layerwise, Part, quantizable
from trtllm_engines.calibration.new_folder import new_folder
from trtllm_engines.calibration.packed import Layout, ShardWriter
from trtllm_engines.calibration.probe import Progress
from trtllm_engines.calibration.search import Statistics, awq, clipped, output_error, smooth
from trtllm_engines.checkpoints import open_weights
from trtllm_engines.checkpoints.model_tokenizer import model_tokenizer
from trtllm_engines.errors import EngineError
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.quantization.precision import canonical
from trtllm_engines.quantization.registry import definition
from trtllm_kernels.dialect.dtypes import bits_of

_SAMPLE = 2048
"""Tokens of the text that searches try their candidates on, where the whole would cost more."""
GROUPS = (16, 32, 64, 128)
METHODS: Mapping[str, tuple[str, ...]] = {
    "int4": ("awq", "gptq", "rtn"),
    "int8_wo": ("rtn", "gptq", "awq"),
    "int8_sq": ("smoothquant", "gptq", "rtn"),
    "w4a8": ("awq", "gptq", "rtn"),
}
"""What each precision whose weights are integers may be made by; the first is the default."""


def named(precision: str) -> tuple[str, str | None]:
    """A precision by our name, and the method that its name implies, such as ("int4", "awq") of NVIDIA's `W4A16_AWQ`."""
    ending = precision.rpartition("_")[2].lower()
    ours = canonical(precision)
    return ours, ending if ours != precision and ending in METHODS.get(ours, ()) else None


@dataclass(frozen=True)
class Recipe:
    """What is asked for. `group_size` None: the format's own; 0: one scale per row. `damping` None: what suits the text."""

    precision: str
    method: str | None = None
    group_size: int | None = None
    symmetric: bool = True
    act_order: ActOrder = "static"
    damping: float | None = None

    @property
    def chosen_method(self) -> str:
        return self.method or METHODS[self.precision][0]

    def layout(self) -> Layout:
        """Raises `EngineError` for what does not go together."""
        scheme, methods, method = definition(self.precision).scheme, METHODS[self.precision], self.chosen_method
        assert scheme.weights is not None
        inputs = scheme.inputs.dtype
        if method not in methods:
            raise EngineError(f"unknown method {method!r} for {self.precision}; supported are {', '.join(methods)}")
        group = scheme.weights.group_size if self.group_size is None else self.group_size
        if group not in (0, *GROUPS):
            raise EngineError(f"group size is {group}; it must be {', '.join(map(str, GROUPS))}, or 0 for one scale per row")
        if self.act_order not in ACT_ORDERS:
            raise EngineError(f"unknown act-order {self.act_order!r}; supported are {', '.join(ACT_ORDERS)}")
        if inputs and not self.symmetric:
            raise EngineError(f"{self.precision} has symmetric weights, since its inputs are codes as well; leave the zero points out")
        if inputs == "int8" and group:
            raise EngineError(f"{self.precision} has one scale per row, since sums over a row are integers; leave the group size out")
        if self.damping is not None and not (math.isfinite(self.damping) and self.damping >= 0):
            raise EngineError(f"damping is {self.damping:g}; it must be a share of the diagonal's mean, such as {DAMPING:g}")
        order = self.act_order if method == "gptq" and group else "none"
        return Layout(Grid(bits_of(scheme.weights.dtype), group, self.symmetric), inputs, order)


@dataclass(frozen=True)
class Errors:
    """Of one product: the root of the mean squared error over that of the values themselves, of weights and (over the text) of outputs."""

    weight: float
    output: float | None


@dataclass(frozen=True)
class Integers:
    """What was written. `errors` by module; `alphas` by the module whose input got factors first, and `dampings` that were chosen
    likewise."""

    method: str
    layout: Layout
    windows: int
    tokens: int
    nbytes: int
    errors: Mapping[str, Errors]
    alphas: Mapping[str, float]
    dampings: Mapping[str, float]


def quantize_integers(
    model: str | Path,
    out: Path | str,
    recipe: Recipe,
    *,
    dataset: Path | None = None,
    samples: int = 128,
    length: int = 512,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Integers:
    """Writes Hugging Face folder `model` as a checkpoint of integers to the new folder `out`, calibrated on at most `samples` windows of
    `length` tokens of `dataset` (default: the text that ships with the project). The folder appears whole or not at all.

    Raises `EngineError` for input that cannot be used and a folder that cannot be written.
    """
    layout, method = recipe.layout(), recipe.chosen_method
    source = resolve_model(model)
    if source.path is None or not source.path.is_dir():
        raise EngineError(f"{model} is not a Hugging Face folder; quantize needs one, with config.json and weights")
    windows = []
    if method != "rtn":
        windows = text.windows(dataset, model_tokenizer(source.path), length=length, count=samples, vocab_size=source.config.vocab_size)
    layerwise = Layerwise(source.config, open_weights(source.path), windows, device)
    job = _Job(layerwise, layout, method, recipe)
    job.check()
    with torch.inference_mode(), new_folder(Path(out), layerwise.stored_bytes(layout.grid.bits)) as folder:
        writer = ShardWriter(folder)
        for done, part in enumerate(layerwise.parts, start=1):
            stored = job.quantize(part, last=done == len(layerwise.parts))
            writer.add({name: tensor for name, tensor in stored.items() if name not in writer})
            if progress is not None:
                progress("layers", done, len(layerwise.parts))
        writer.finish(source.path, layout)
    return Integers(method, layout, len(windows), sum(map(len, windows)), writer.nbytes, job.errors, job.alphas, job.dampings)


@dataclass
class _Job:
    layerwise: Layerwise
    layout: Layout
    method: str
    recipe: Recipe
    errors: dict[str, Errors] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    dampings: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Raises `EngineError` for a product that the grid does not fit."""
        for part in self.layerwise.parts:
            for products in self._by_input(part).values():
                for product in products:
                    name = _weight(product)
                    self.layout.grid.check(name, self.layerwise.graph.checkpoint_shapes[name][1])

    def quantize(self, part: Part, last: bool) -> dict[str, Tensor]:
        """The tensors to be stored of a part. Runs it over the text, up to the last one, whose result nobody needs."""
        tensors = self.layerwise.read(part, torch.float32 if part.layer is not None else torch.bfloat16)
        by_input = self._by_input(part)
        statistics: dict[Node, Statistics] = {}
        if self.method != "rtn" and by_input:
            statistics = self._measure(part, tensors, list(by_input))
            if self.method in ("awq", "smoothquant"):
                self._scale(by_input, tensors, statistics)
        stored: dict[str, Tensor] = {}
        for value, products in by_input.items():
            names = [_weight(product) for product in products]
            inputs = statistics.pop(value, None)
            for name, rounded in zip(names, self._round(names, tensors, inputs), strict=True):
                module, values = name.removesuffix(".weight"), rounded.values()
                self.errors[module] = _errors(tensors[name], values, inputs)
                stored |= self.layout.tensors(module, rounded)
                tensors[name] = values
        if self.method != "rtn" and not last:
            self.layerwise.enter(part, self.layerwise.run(part, tensors))
        quantized = {_weight(product) for products in by_input.values() for product in products}
        return stored | {name: tensor.bfloat16() for name, tensor in tensors.items() if name not in quantized}

    def _by_input(self, part: Part) -> dict[Node, list[Node]]:
        """The products of a part that are quantized, by the value they read."""
        by_input: dict[Node, list[Node]] = {}
        for op, _ in quantizable(part):
            value = op.args[0]
            assert isinstance(value, Node)
            by_input.setdefault(value, []).append(op)
        return by_input

    def _measure(self, part: Part, tensors: Mapping[str, Tensor], values: Sequence[Node]) -> dict[Node, Statistics]:
        halves = self.method == "gptq" and self.recipe.damping is None
        per_window, windows = self.layerwise.tokens_per_window(_SAMPLE), self.layerwise.windows
        sums = {value: _Sums(per_window, windows, halves) for value in values}
        self.layerwise.run(part, tensors, values, lambda value, tensor: sums[value].add(tensor))
        return {value: one.statistics(str(value.meta["label"])) for value, one in sums.items()}

    def _scale(self, by_input: Mapping[Node, Sequence[Node]], tensors: dict[str, Tensor], statistics: dict[Node, Statistics]) -> None:
        """Gives every input its factors: columns of what reads it are multiplied, what makes it is divided."""
        products = {product for several in by_input.values() for product in several}
        for value, readers in by_input.items():
            weights = [tensors[_weight(reader)] for reader in readers]
            fold = fold_of(value, weights[0].shape[1], products)
            if fold is None:
                continue
            search = awq if self.method == "awq" else smooth
            scaling = search(weights, statistics[value], self.layout.grid, fold)
            self.alphas[_weight(readers[0]).removesuffix(".weight")] = scaling.alpha
            if scaling.factors is None:
                continue
            factors = _divide(fold, scaling.factors, tensors)
            statistics[value] = statistics[value].divided(factors)
            for reader in readers:
                tensors[_weight(reader)] = tensors[_weight(reader)] * factors

    def _round(self, names: Sequence[str], tensors: Mapping[str, Tensor], inputs: Statistics | None) -> list[Rounded]:
        """The weights of these names, which read one input."""
        grid, weights = self.layout.grid, [tensors[name] for name in names]
        if self.method == "gptq":
            assert inputs is not None
            act_order, damping, stacked = self.layout.act_order, self.recipe.damping, torch.cat(weights)
            if damping is None:
                assert inputs.half is not None
                damping = best_damping(stacked, inputs.gram, inputs.half, inputs.share, grid, act_order)
                self.dampings[names[0].removesuffix(".weight")] = damping
            whole = gptq(stacked, inputs.gram, grid, act_order=act_order, damping=damping)
            return whole.split([len(weight) for weight in weights])
        if self.method == "awq":
            assert inputs is not None
            return [grid.nearest(weight, clipped(weight, inputs.gram, grid)) for weight in weights]
        return [grid.nearest(weight) for weight in weights]


class _Sums:
    """Of an input [T, K], over the `windows` that it is added from; `halves`: also over every other window alone, or, of one window, over
    its first half."""

    def __init__(self, per_window: int, windows: int, halves: bool) -> None:
        self._per_window, self._windows, self._halves = per_window, windows, halves
        self._seen = self._tokens = self._tokens_of_half = 0
        self._gram = self._half = self._magnitudes = self._largest = torch.empty(0)
        self._sample: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        values = values.float()
        if not self._seen:
            columns = values.shape[1]
            self._gram = values.new_zeros(columns, columns)
            self._half = values.new_zeros(columns, columns) if self._halves else self._half
            self._magnitudes, self._largest = values.new_zeros(columns), values.new_zeros(columns)
        self._tokens += len(values)
        self._gram.addmm_(values.T, values)
        if self._halves and self._seen % 2 == 0:
            half = values if self._windows > 1 else values[: len(values) // 2]
            self._tokens_of_half += len(half)
            self._half.addmm_(half.T, half)
        self._seen += 1
        self._magnitudes += values.abs().sum(0)
        self._largest = torch.maximum(self._largest, values.abs().amax(0))
        self._sample.append(values[:: -(-len(values) // self._per_window)].clone())

    def statistics(self, label: str) -> Statistics:
        if not bool(torch.isfinite(self._largest).all()):
            raise EngineError(f"{label} is not finite on the calibration text; the model's weights are damaged, or need a wider type")
        self._gram /= self._tokens
        of_all = self._magnitudes / self._tokens, self._largest, torch.cat(self._sample)
        if not self._halves:
            return Statistics(self._gram, *of_all)
        self._half /= self._tokens_of_half
        return Statistics(self._gram, *of_all, self._half, self._tokens_of_half / self._tokens)


def _weight(product: Node) -> str:
    return str(product.args[1].target)  # type: ignore[union-attr]


def _divide(fold: Fold, factors: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """Divides what makes an input, and returns the factors by which its readers are to be multiplied.

    A norm's weight is stored in bf16: the factors are those that its rounded quotient has, so that the product stays what it was.
    """
    rows = fold.rows(factors)
    first = tensors[fold.divided[0]]
    if first.dim() == 1:
        divided = (first / rows).bfloat16().float()
        rows = torch.where(divided != 0, first / torch.where(divided != 0, divided, 1.0), 1.0)
    for name in fold.divided:
        tensor = tensors[name]
        tensors[name] = tensor / (rows if tensor.dim() == 1 else rows[:, None])
    return fold.spread(rows)


def _errors(weight: Tensor, rounded: Tensor, inputs: Statistics | None) -> Errors:
    relative = float((weight - rounded).norm() / weight.norm().clamp_min(1e-30))
    return Errors(relative, None if inputs is None else output_error(weight, rounded, inputs.gram))
