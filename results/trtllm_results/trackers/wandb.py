"""Weights & Biases: `place` is a server's address, else its own default; `WANDB_MODE=offline` keeps runs in a folder, to be synced later.

A run's id is the row's, so pushing again finds the run that is there and changes nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_results.errors import ResultsError
from trtllm_results.record.row import Row
from trtllm_results.trackers import name_of, parameters, tags


def push(rows: Sequence[Row], place: str, project: str) -> int:
    import wandb

    settings = {"base_url": place} if place else {}
    new = 0
    try:
        for row in rows:
            run = wandb.init(
                project=project,
                id=row.row_id,
                name=name_of(row),
                config=parameters(row),
                tags=[row.status, *(["predicted"] if row.predicted else [])],
                job_type="measurement",
                resume="allow",
                reinit="finish_previous",
                settings=wandb.Settings(silent=True, console="off", **settings),
            )
            if not run.resumed:
                run.summary.update({**row.figures, **tags(row)})
                new += 1
            run.finish(exit_code=0 if row.status == "ok" else 1)
    except (wandb.Error, ValueError) as error:
        raise ResultsError(f"W&B at {place or 'its default place'} refuses: {' '.join(str(error).split())[:300]}") from None
    return new
