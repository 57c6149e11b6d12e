"""The cell: what one measurement was asked to run, and the fields by which result sets are lined up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

OWN_TARGET = "native"
"""The target that is our own engine, as rows name it."""
FIXED_LENGTHS = "fixed"
"""The workload whose requests all have `isl` prompt tokens and `osl` output tokens."""


@dataclass(frozen=True)
class Cell:
    """What was asked for. `batch` is the number of sequences in flight (0: not bounded); `request_rate` is in requests/s (0: closed
    loop)."""

    model: str
    precision: str
    batch: int
    isl: int
    osl: int
    kv_dtype: str = ""
    tp: int = 1
    pp: int = 1
    replicas: int = 1
    num_requests: int = 0
    request_rate: float = 0.0
    workload: str = ""
    """Name of the workload; its content is `workload_hash`."""
    workload_hash: str = ""
    target: str = OWN_TARGET
    target_version: str = ""
    engine_fingerprint: str = ""
    weights_hash: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that can change the result (policy, max_num_tokens, sampling), as JSON."""

    @property
    def align(self) -> tuple[tuple[str, Any], ...]:
        """The fields by which result sets are lined up."""
        return tuple((name, getattr(self, name)) for name in ALIGN_FIELDS)

    @property
    def gpus(self) -> int:
        """GPUs the cell ran on, where it ran on GPUs; however many the machine has."""
        return max(self.tp * self.pp * self.replicas, 1)

    @property
    def named_workload(self) -> str:
        """The workload's name; empty where the row has none, and where all requests have the lengths `isl` and `osl`."""
        return "" if self.workload == FIXED_LENGTHS else self.workload

    @property
    def label(self) -> str:
        """Short human name: `llama-3.1-8b fp8 b64 128/128`."""
        parts = [self.model, self.precision]
        if self.kv_dtype and self.kv_dtype != self.precision:
            parts.append(f"kv-{self.kv_dtype}")
        if self.tp > 1:
            parts.append(f"tp{self.tp}")
        if self.pp > 1:
            parts.append(f"pp{self.pp}")
        if self.replicas > 1:
            parts.append(f"x{self.replicas}")
        if self.batch:
            parts.append(f"b{self.batch}")
        if self.request_rate:
            parts.append(f"{self.request_rate:g}/s")
        parts.append(f"{self.isl}/{self.osl}")
        if self.named_workload:
            parts.append(self.named_workload)
        return " ".join(parts)


ALIGN_FIELDS = ("model", "precision", "kv_dtype", "tp", "pp", "batch", "request_rate", "isl", "osl", "workload", "replicas")
CELL_FIELDS: Mapping[str, str] = {f.name: str(f.type) for f in fields(Cell)}
