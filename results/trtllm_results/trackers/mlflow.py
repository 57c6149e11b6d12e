"""MLflow, by its client: `place` is a tracking URI (a server's address, `file:///folder`), else MLflow's own default.

MLflow 3 refuses its file store unless told otherwise, since it adds nothing to it any more; who names a `file:` URI has told.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Sequence

from trtllm_results.errors import ResultsError
from trtllm_results.record.row import Row
from trtllm_results.trackers import ROW_ID, name_of, parameters, tags

AT_ONCE = 100
"""Parameters that MLflow takes in one call."""
LONGEST = 500
"""Characters of a value, in every version of MLflow."""


def push(rows: Sequence[Row], place: str, project: str) -> int:
    if place.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=place or None)
        experiment = client.get_experiment_by_name(project)
        identity = experiment.experiment_id if experiment is not None else client.create_experiment(project)
        present = _present(client, identity)
        new = [row for row in rows if row.row_id not in present]
        for row in new:
            _run(client, identity, row)
    except MlflowException as error:
        raise ResultsError(f"MLflow at {place or 'its default place'} refuses: {str(error).split('. ')[0].strip()[:300]}") from None
    return len(new)


def _present(client: object, experiment: str) -> set[str]:
    """Row ids of the runs that are there."""
    ids, token = set(), None
    while True:
        page = client.search_runs([experiment], page_token=token, max_results=1000)  # type: ignore[attr-defined]
        ids |= {run.data.tags[ROW_ID] for run in page if ROW_ID in run.data.tags}
        token = page.token
        if not token:
            return ids


def _run(client: object, experiment: str, row: Row) -> None:
    from mlflow.entities import Metric, Param

    at = int(datetime.datetime.fromisoformat(row.started_at).timestamp() * 1000) if row.started_at else 0
    labels = {name: value[:LONGEST] for name, value in tags(row).items()}
    run = client.create_run(experiment, start_time=at, tags=labels, run_name=name_of(row))  # type: ignore[attr-defined]
    identity = run.info.run_id
    named = [Param(re.sub(r"[^\w./ -]", "_", name), str(value)[:LONGEST]) for name, value in parameters(row).items()]
    for start in range(0, len(named), AT_ONCE):
        client.log_batch(identity, params=named[start : start + AT_ONCE])  # type: ignore[attr-defined]
    client.log_batch(identity, metrics=[Metric(name, value, at, 0) for name, value in row.figures.items()])  # type: ignore[attr-defined]
    ended = at + int(1000 * row.figures.get("duration_s", 0.0))
    client.set_terminated(identity, status="FINISHED" if row.status == "ok" else "FAILED", end_time=ended)  # type: ignore[attr-defined]
