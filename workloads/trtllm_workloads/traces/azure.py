"""Azure's LLM inference traces of 2023 and 2024: `TIMESTAMP,ContextTokens,GeneratedTokens`.

github.com/Azure/AzurePublicDataset (CC-BY-4.0): 2023 for Splitwise (ISCA 2024), a time without zone and seven fractional digits; 2024 for
DynamoLLM (HPCA 2025), a time with `+00:00`. Line ends are CR LF in one of them, and the last line may lack its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from trtllm_workloads.traces.columns import Csv, counts
from trtllm_workloads.traces.trace import Trace


class Azure(Csv):
    def __init__(self, header: str) -> None:
        super().__init__(header, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
        self._origin: np.datetime64 | None = None

    def parse(self, lines: Sequence[str]) -> Trace:
        columns = self.columns(lines)
        stamps = columns["TIMESTAMP"]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # NumPy's, that it turns times with a zone into UTC: what is wanted
                moments = np.asarray(stamps, dtype="datetime64[ns]")
        except ValueError:
            shown = repr(stamps[0]) if len(stamps) == 1 else "in some row"
            raise ValueError(f"TIMESTAMP is {shown}, not a date and time like 2023-11-16 18:15:46.6805900") from None
        if np.isnat(moments).any():
            raise ValueError("TIMESTAMP is empty")
        inputs = counts(columns["ContextTokens"], "ContextTokens")
        outputs = counts(columns["GeneratedTokens"], "GeneratedTokens")
        if self._origin is None:
            self._origin = moments[0]
        arrival = (moments - self._origin).astype(np.int64) / 1e9
        return Trace("azure", inputs, outputs, arrival)
