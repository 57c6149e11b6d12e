"""A model run one layer at a time over a whole text, so that only one layer's weights are ever in memory.

It is the graph as traced (`compiler.graph`): every op is one layer's, and one value passes from a layer to the next, the residual stream.
The streams of all windows wait in the host's memory: in bf16, as a bf16 engine has them (1 GiB for 128 windows of 512 tokens of a Llama
of 70 billion parameters), or as they were computed. A layer is computed in the wide type of the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from trtllm_engines.checkpoints import WeightSource
from trtllm_engines.checkpoints.write import check_tensors
from trtllm_engines.compiler.graph import ModelGraph, op_name, trace
from trtllm_engines.compiler.passes.stage import layer_of
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.runtime.batch import IntArray
from trtllm_kernels.dialect.specs import DTYPES

Seen = Callable[[Node, Tensor], None]
"""Told (value, tensor) of every value that is asked for, as it is computed."""


@dataclass(frozen=True)
class Part:
    """Ops that follow one another: those of one layer, or what comes before the layers or after them (layer None)."""

    layer: int | None
    ops: tuple[Node, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """Weights and constants that they read, in order."""
        return tuple(dict.fromkeys(str(node.target) for op in self.ops for node in op.all_input_nodes if node.op == "get_attr"))


def quantizable(part: Part) -> Iterator[tuple[Node, str]]:
    """(product, module of its weight) of a part's products that may be quantized: those of layers."""
    for op in part.ops:
        if op_name(op) == "linear" and part.layer is not None:
            weight = op.args[1]
            assert isinstance(weight, Node)
            yield op, str(weight.target).removesuffix(".weight")


class Layerwise:
    """`weights` gives the tensors; `windows` the text. `exact`: streams are not rounded to bf16."""

    def __init__(self, config: ModelConfig, weights: WeightSource, windows: Sequence[IntArray], device: str, exact: bool = False) -> None:
        """Raises `EngineError` for a tensor that the checkpoint lacks, for one of its that the model does not read, and for longer windows
        than the model was trained for."""
        self.device = torch.device(device)
        self.dtype = "fp32" if self.device.type == "cpu" else "bf16"
        self._stream_dtype = DTYPES[self.dtype] if exact else torch.bfloat16
        longest = max(map(len, windows), default=1)
        config.check_sequence_length(longest, "--calib-seq-len")
        self.graph: ModelGraph = trace(config, self.dtype, Profile(1, longest, longest))
        check_tensors(weights, self.graph.checkpoint_shapes, config.architecture)
        self._weights, self._windows = weights, windows
        self._constants = {name: tensor.to(self.device) for name, tensor in self.graph.constants.items()}
        self._streams: list[Tensor] = []
        """Of each window, the value that passes from one part to the next, [T, hidden]."""
        self._enters: Node | None = None
        self.parts = _parts(self.graph)

    def read(self, part: Part, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The tensors of a part, on the device. Raises `EngineError` for what the checkpoint lacks."""
        shapes = self.graph.checkpoint_shapes
        named = [name for name in part.weights if name not in self._constants]
        return {name: self._weights.read(name, shapes[name], dtype, self.device) for name in named}

    def stored_bytes(self, bits: int) -> int:
        """Of the checkpoint with codes of so many bits, scales not counted; all else is of 16 bits."""
        quantized = {f"{module}.weight" for part in self.parts for _, module in quantizable(part)}
        shapes = self.graph.checkpoint_shapes.items()
        return sum(math.prod(shape) * (bits if name in quantized else 16) for name, shape in shapes) // 8

    @torch.inference_mode()
    def run(self, part: Part, tensors: Mapping[str, Tensor], values: Sequence[Node] = (), seen: Seen | None = None) -> list[Tensor]:
        """The part's result for every window, on the host; `seen` is told of `values` window by window."""
        wide = {name: tensor.to(DTYPES[self.dtype]) for name, tensor in tensors.items()} | self._constants
        asked, results = set(values), []
        for number, ids in enumerate(self._windows):
            positions = torch.arange(len(ids), dtype=torch.int32, device=self.device)
            known: dict[Node, Any] = {}
            for node in self.graph.fx.nodes:
                if node.op == "placeholder":
                    known[node] = positions
            known[self._input("token_ids")] = torch.as_tensor(ids, dtype=torch.int32, device=self.device)
            known[self._input("query_start")] = torch.tensor([0, len(ids)], dtype=torch.int32, device=self.device)
            if self._enters is not None:
                known[self._enters] = self._streams[number].to(self.device, DTYPES[self.dtype])
            for op in part.ops:
                call: Callable[..., Any] = op.target  # type: ignore[assignment]
                for node in op.all_input_nodes:
                    if node.op == "get_attr":
                        known[node] = wide[str(node.target)]
                known[op] = call(*fx.node.map_arg(op.args, known.__getitem__))
                if seen is not None and op in asked:
                    seen(op, known[op])
            results.append(known[part.ops[-1]].to("cpu", self._stream_dtype))
        return results

    @property
    def windows(self) -> int:
        """How many there are."""
        return len(self._windows)

    def tokens_per_window(self, most: int) -> int:
        """How many tokens of each window make `most` of all, at least one."""
        return max(1, most // len(self._windows))

    def _input(self, name: str) -> Node:
        placeholders = (node for node in self.graph.fx.nodes if node.op == "placeholder")
        placeholder: Node = next(node for node in placeholders if node.name == name)
        return placeholder

    def enter(self, part: Part, results: list[Tensor]) -> None:
        """Makes the results of `part` what the next one starts from."""
        self._enters, self._streams = part.ops[-1], results


def _parts(graph: ModelGraph) -> list[Part]:
    """Ops without a layer's number (rotation, whose table all share) belong to the layer they stand in.

    Raises `EngineError` for a model of which more than one value passes from a layer to later ones."""
    ops = [node for node in graph.fx.nodes if op_name(node)]
    layers = [layer_of(op) for op in ops]
    numbered = [place for place, layer in enumerate(layers) if layer is not None]
    for place in range(numbered[0] + 1, numbered[-1]):
        layers[place] = layers[place - 1] if layers[place] is None else layers[place]
    by_layer = groupby(zip(ops, layers, strict=True), key=lambda pair: pair[1])
    parts = [Part(layer, tuple(op for op, _ in several)) for layer, several in by_layer]
    for part in parts:
        inside = set(part.ops)
        for op in part.ops[:-1]:
            if any(op_name(user) and user not in inside for user in op.users):
                raise EngineError(f"{graph.config.name}: later layers read {op.meta['label']}; only a layer's last value can pass on")
    return parts
