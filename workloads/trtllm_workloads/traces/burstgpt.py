"""BurstGPT (github.com/HPMLL/BurstGPT, CC-BY-4.0): CSV read by column name, since later versions insert `Session ID` and `Elapsed time`.

`Timestamp` is in seconds from the start of the first day. A row whose `Response tokens` is 0 is a request that failed; it is a bad row
here, which every command that takes a trace leaves out with `--skip-bad-rows`; the publisher has files without failures too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtllm_workloads.traces.columns import Csv, counts, seconds
from trtllm_workloads.traces.trace import Trace


class BurstGPT(Csv):
    def __init__(self, header: str) -> None:
        super().__init__(header, ("Timestamp", "Request tokens", "Response tokens"), ("Session ID",))
        self._sessions: dict[str, int] = {}
        self._turns: dict[int, int] = {}

    def parse(self, lines: Sequence[str]) -> Trace:
        columns = self.columns(lines)
        arrival = seconds(columns["Timestamp"], "Timestamp")
        inputs = counts(columns["Request tokens"], "Request tokens")
        outputs = counts(columns["Response tokens"], "Response tokens")
        if "Session ID" not in columns:
            return Trace("burstgpt", inputs, outputs, arrival)
        session, turn = np.empty(len(lines), np.int64), np.empty(len(lines), np.int32)
        for row, name in enumerate(columns["Session ID"]):
            known = len(self._sessions)
            number = self._sessions.setdefault(name.strip(), known) if name.strip() else -1
            session[row] = number
            turn[row] = self._turns.get(number, 0) if number >= 0 else 0
            self._turns[number] = int(turn[row]) + 1
        return Trace("burstgpt", inputs, outputs, arrival, session=session, turn=turn)
