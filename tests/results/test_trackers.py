"""Rows as runs of MLflow and W&B, with stand-ins for their clients (`tests/peers/mlflow_store.py` is against MLflow itself)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trtllm_bench.__main__ import main
from trtllm_results.store.table import read_rows
from trtllm_results.trackers import ROW_ID, parameters

AB = Path(__file__).parents[2] / "results" / "recorded" / "h100" / "gate" / "ab"


class Page(list[Any]):
    token = None


class Client:
    """MLflow's, as far as it is used; a process has one server."""

    runs: dict[str, SimpleNamespace]

    def __init__(self, tracking_uri: str | None) -> None:
        if tracking_uri == "http://closed":
            raise sys.modules["mlflow.exceptions"].MlflowException("API request failed. Try again")

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id=name) if self.runs else None

    def create_experiment(self, name: str) -> str:
        return name

    def search_runs(self, experiments: list[str], page_token: str | None, max_results: int) -> Page:
        return Page(self.runs.values())

    def create_run(self, experiment: str, start_time: int, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        data = SimpleNamespace(tags=tags, params={}, metrics={})
        run = SimpleNamespace(info=SimpleNamespace(run_id=run_name + tags[ROW_ID]), data=data, start=start_time, status="")
        self.runs[run.info.run_id] = run
        return run

    def log_batch(self, run_id: str, params: Any = (), metrics: Any = ()) -> None:
        assert len(params) <= 100
        self.runs[run_id].data.params |= {one.key: one.value for one in params}
        self.runs[run_id].data.metrics |= {one.key: one.value for one in metrics}

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self.runs[run_id].status = status


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    modules = {name: ModuleType(name) for name in ("mlflow", "mlflow.exceptions", "mlflow.entities")}
    Client.runs = {}
    modules["mlflow"].MlflowClient = Client  # type: ignore[attr-defined]
    modules["mlflow.exceptions"].MlflowException = type("MlflowException", (Exception,), {})  # type: ignore[attr-defined]
    modules["mlflow.entities"].Param = lambda key, value: SimpleNamespace(key=key, value=value)  # type: ignore[attr-defined]
    modules["mlflow.entities"].Metric = lambda key, value, at, step: SimpleNamespace(key=key, value=value)  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return Client


def test_a_row_is_a_run_of_mlflow_once(mlflow: type[Client], capsys: pytest.CaptureFixture[str]) -> None:
    for count in (22, 0):
        assert main(["results", "push", str(AB), "--to", "mlflow", "--uri", "http://tracker"]) == 0
        assert f"{count} of 22 rows are new and sent to mlflow at http://tracker" in capsys.readouterr().out
    found = {run.data.tags[ROW_ID]: run for run in mlflow.runs.values()}
    for row in read_rows(AB):
        run = found[row.row_id]
        assert run.data.metrics == dict(row.figures)
        assert (run.data.tags["arm"], run.status, run.data.params["settings.max_batch_size"]) == (row.arm, "FINISHED", "128")


def test_a_row_is_a_run_of_wandb_that_is_resumed_and_not_doubled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: dict[str, SimpleNamespace] = {}

    def init(**given: Any) -> SimpleNamespace:
        resumed = given["id"] in runs
        run = runs.setdefault(given["id"], SimpleNamespace(given=given, summary={}, codes=[]))
        run.resumed, run.finish = resumed, lambda exit_code: run.codes.append(exit_code)
        return run

    module = ModuleType("wandb")
    module.init, module.Settings, module.Error = init, dict, type("Error", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    for count in (22, 0):
        assert main(["results", "push", str(AB), "--to", "wandb", "--project", "gates"]) == 0
        assert f"{count} of 22 rows are new and sent to wandb" in capsys.readouterr().out
    row = read_rows(AB)[0]
    run = runs[row.row_id]
    assert (run.given["project"], run.given["config"], run.codes) == ("gates", parameters(row), [0, 0])
    assert run.summary["output_tokens_per_s"] == row.figures["output_tokens_per_s"]


def test_what_cannot_be_pushed_to_is_one_sentence(
    mlflow: type[Client], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for given, says in (
        (["--to", "notebook"], "there is no tracker 'notebook'; choose mlflow or wandb"),
        (["--to", "wandb"], "--to wandb needs wandb; install it with: pip install 'trtllm-bench[wandb]'"),
        (["--to", "mlflow", "--uri", "http://closed"], "MLflow at http://closed refuses: API request failed"),
        (["--to", "mlflow", "--where", "batch=7"], "no result passes batch=7; leave a filter out"),
    ):
        assert main(["results", "push", str(AB), *given]) == 3
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert says in error
