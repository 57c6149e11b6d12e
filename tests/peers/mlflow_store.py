"""`results push --to mlflow` against MLflow itself and its file store: do rows arrive whole, once?

Not a test that pytest collects: MLflow's client brings thirty distributions, which CI has no time for (`tests/results/test_trackers.py`
holds the calls with a stand-in). Run it as

    pip install 'trtllm-bench[mlflow]' && python tests/peers/mlflow_store.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from trtllm_results.store.table import read_rows
from trtllm_results.trackers import ROW_ID, push

AB = Path(__file__).parents[2] / "results" / "recorded" / "h100" / "gate" / "ab"


def main() -> None:
    rows = read_rows(AB)
    with tempfile.TemporaryDirectory() as folder:
        counts = [push("mlflow", rows, f"file://{folder}") for _ in range(2)]
        assert counts == [len(rows), 0], counts
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"file://{folder}")
        experiment = client.get_experiment_by_name("trtllm-bench")
        assert experiment is not None
        runs = {run.data.tags[ROW_ID]: run for run in client.search_runs([experiment.experiment_id])}
    for row in rows:
        run = runs[row.row_id]
        assert run.data.metrics == dict(row.figures), row.row_id
        assert run.data.params["model"] == row.cell.model
        assert run.data.params["env_gpu"] == row.environment.gpu
        assert (run.data.tags["arm"], run.info.status) == (row.arm, "FINISHED")
    print(f"{len(rows)} rows arrived whole, and once")


if __name__ == "__main__":
    main()
