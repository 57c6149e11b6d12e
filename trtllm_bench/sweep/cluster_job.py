"""What a cluster's job does: the sweep of its part of the grid, in its own folder. submitit pickles it and runs it on the job's host.

Signals are submitit's: when Slurm announces preemption or the end of the job's time, `checkpoint` is asked what to run after the job was
requeued, which is the same sweep, that goes on behind its last finished cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SweepJob:
    """`folder` holds the part's `sweep.json`, and takes its rows. `command`: as rows name it."""

    folder: str
    command: str

    def __call__(self) -> None:
        """Raises what a sweep raises: a grid that cannot work, a store that cannot be written. Failed cells are rows."""
        from trtllm_bench.sweep.folder import resumed_folder
        from trtllm_bench.sweep.here import sweep_here
        from trtllm_bench.sweep.progress import SweepView
        from trtllm_bench.sweep.settle import settled
        from trtllm_bench.sweep.spec import load_spec
        from trtllm_dashboards.tables import plain_console
        from trtllm_results.store.table import Store

        with resumed_folder(Path(self.folder), grid_given=False) as folder:
            spec = load_spec({}, None, folder)
            engines = settled(spec)
            store = Store(folder)
            with SweepView(spec, plain_console(), store) as view:
                sweep_here(store, spec, engines, view, self.command).run()

    def checkpoint(self) -> Any:
        """What a requeued job runs."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
