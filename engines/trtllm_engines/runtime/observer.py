"""Observers of the engine. They are told what happens in a step as it happens, in the engine's thread.

Tracing (`ranges.py`) and a profile's window of steps are observers, and reach into nothing else. An engine that nobody observes has an
observer that does nothing, at the price of eight empty calls per step. The calls around ops are made only where an observer asks for them
(`op_detail`), since they split a step's launches into groups.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from trtllm_engines.runtime.batch import StepBatch

if TYPE_CHECKING:
    from trtllm_engines.runtime.request import Request

OpDetail = Literal["off", "layer", "op"]
OP_DETAILS: tuple[OpDetail, ...] = get_args(OpDetail)


class StepObserver:
    """Does nothing; an observer overrides what it wants to know. Each `..._begins` is followed by its `..._ends`, after an error too."""

    op_detail: OpDetail = "off"
    """Whether the runner calls `ops_begin` and `ops_end`, and around what: each layer's launches, or each op's."""

    def serve_begins(self, step: int) -> None:
        """The loop begins to serve; `step` is the number of the next step, its row in the step log."""

    def serve_ends(self) -> None: ...

    def step_begins(self, kv_pages_used: int) -> None: ...

    def step_ends(self) -> None: ...

    def schedule_begins(self, waiting: int) -> None:
        """`waiting`: requests in the queue."""

    def schedule_ends(self) -> None: ...

    def admitted(self, requests: Sequence[Request]) -> None:
        """Requests that take their slots in the step about to be launched; not called where there are none."""

    def launch_begins(self, step: int, batch: StepBatch) -> None: ...

    def launch_ends(self) -> None: ...

    def replays_graph(self, sequences: int) -> None:
        """Within a launch: the step is a CUDA graph of so many sequences, padding included."""

    def ops_begin(self, label: str) -> None:
        """Within a launch: the launches of a layer (`layer 3`), or of the op of this name. Graphs replay as one launch and have none."""

    def ops_end(self) -> None: ...

    def sample_begins(self, rows: int) -> None:
        """Within a launch: sampling that takes more than the plan's last op."""

    def sample_ends(self) -> None: ...

    def receive_begins(self, step: int) -> None:
        """A step's tokens are on the host and are about to be taken in."""

    def receive_ends(self) -> None: ...


NOBODY = StepObserver()


class Observers(StepObserver):
    """Two observers, one around the other: the outer one is the first to hear that something begins and the last that it ends.

    Ops are told of in the finer of the two details.
    """

    def __init__(self, outer: StepObserver, inner: StepObserver) -> None:
        self._outer, self._inner = outer, inner
        self.op_detail = max(outer.op_detail, inner.op_detail, key=OP_DETAILS.index)

    def serve_begins(self, step: int) -> None:
        self._outer.serve_begins(step)
        self._inner.serve_begins(step)

    def serve_ends(self) -> None:
        self._inner.serve_ends()
        self._outer.serve_ends()

    def step_begins(self, kv_pages_used: int) -> None:
        self._outer.step_begins(kv_pages_used)
        self._inner.step_begins(kv_pages_used)

    def step_ends(self) -> None:
        self._inner.step_ends()
        self._outer.step_ends()

    def schedule_begins(self, waiting: int) -> None:
        self._outer.schedule_begins(waiting)
        self._inner.schedule_begins(waiting)

    def schedule_ends(self) -> None:
        self._inner.schedule_ends()
        self._outer.schedule_ends()

    def admitted(self, requests: Sequence[Request]) -> None:
        self._outer.admitted(requests)
        self._inner.admitted(requests)

    def launch_begins(self, step: int, batch: StepBatch) -> None:
        self._outer.launch_begins(step, batch)
        self._inner.launch_begins(step, batch)

    def launch_ends(self) -> None:
        self._inner.launch_ends()
        self._outer.launch_ends()

    def replays_graph(self, sequences: int) -> None:
        self._outer.replays_graph(sequences)
        self._inner.replays_graph(sequences)

    def ops_begin(self, label: str) -> None:
        if self._outer.op_detail != "off":
            self._outer.ops_begin(label)
        if self._inner.op_detail != "off":
            self._inner.ops_begin(label)

    def ops_end(self) -> None:
        if self._inner.op_detail != "off":
            self._inner.ops_end()
        if self._outer.op_detail != "off":
            self._outer.ops_end()

    def sample_begins(self, rows: int) -> None:
        self._outer.sample_begins(rows)
        self._inner.sample_begins(rows)

    def sample_ends(self) -> None:
        self._inner.sample_ends()
        self._outer.sample_ends()

    def receive_begins(self, step: int) -> None:
        self._outer.receive_begins(step)
        self._inner.receive_begins(step)

    def receive_ends(self) -> None:
        self._inner.receive_ends()
        self._outer.receive_ends()


def op_groups(names: Sequence[str], detail: OpDetail) -> list[tuple[str, int, int]]:
    """(label, first op, end) of consecutive ops: one per op, or one per layer and one for each op outside the layers, or none at all."""
    groups: list[tuple[str, int, int]] = []
    if detail == "off":
        return groups
    for index, name in enumerate(names):
        layer = re.search(r"\.(\d+)\.", name)
        label = name if detail == "op" or layer is None else f"layer {layer.group(1)}"
        if groups and groups[-1][0] == label:
            groups[-1] = (label, groups[-1][1], index + 1)
        else:
            groups.append((label, index, index + 1))
    return groups
