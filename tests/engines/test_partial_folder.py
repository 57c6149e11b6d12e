"""Folders that are written beside their place: nothing is left of them, not even where the process was killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from trtllm_engines import partial_folder as module
from trtllm_engines.calibration.new_folder import new_folder
from trtllm_engines.engine.folder import writing
from trtllm_engines.errors import EngineError
from trtllm_engines.partial_folder import partial_folder


def test_a_folder_is_gone_where_it_was_not_renamed(tmp_path: Path) -> None:
    def fail() -> None:
        with partial_folder(tmp_path / "new" / "model") as folder:
            (folder / "half").write_text("half")
            assert [one.name for one in folder.parent.iterdir()] == [folder.name]
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    writes = (
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(Path(module.__file__).parent)!r})\n"  # alone: the package would load torch
        "from partial_folder import partial_folder\n"
        "with partial_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('half'); print(folder, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", writes, str(tmp_path / "model")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with partial_folder(tmp_path / "model"):
            assert (left / "half").is_file(), "its process still writes"
        process.send_signal(signal.SIGKILL)
    assert left.is_dir()
    with partial_folder(tmp_path / "model") as folder:
        assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("step", ["mkdtemp", "open"])
def test_one_that_another_process_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    where = module.tempfile if step == "mkdtemp" else module.os
    made: list[Path] = []
    original = getattr(where, step)

    def then_removed(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if not made:
            made.extend(tmp_path.iterdir())
            made[0].rmdir()
        return result

    monkeypatch.setattr(where, step, then_removed)
    with partial_folder(tmp_path / "model") as folder:
        (folder / "file").write_text("written")
        assert [folder] == list(tmp_path.iterdir()) != made


def test_room_is_looked_for_where_a_link_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "new")
    asked: list[Path] = []
    usage = module.shutil.disk_usage
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: asked.append(path) or usage(path))
    module.check_space("the model", tmp_path / "model", 1)
    assert asked == [tmp_path / "disk"]


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    others = [".model.backup", ".model.abcdefgh.partial.old", ".modelx.abcdefgh.partial", ".model.old.abcdefgh", "model.abcdefgh.partial"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".model.zzzzzzzz.partial").symlink_to(tmp_path / ".model.backup")
    with partial_folder(tmp_path / "model") as folder:
        descriptor = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
    assert {one.name for one in tmp_path.iterdir()} == {*others, ".model.zzzzzzzz.partial"}


@pytest.mark.parametrize("writer", [new_folder, writing])
def test_an_empty_folder_that_is_there_is_written_into(tmp_path: Path, writer: Callable[[Path], AbstractContextManager[Path]]) -> None:
    """It may be mounted, or a shell may stand in it; what a killed process left in it is removed."""
    out = tmp_path / "out"
    (out / ".out.abcdefgh.partial" / "half").mkdir(parents=True)
    before = out.stat().st_ino
    with writer(out) as folder:
        assert folder.parent == out
        for name in ("engine.json", "config.json"):
            (folder / name).write_text("{}")
        with pytest.raises(EngineError, match="exists and is not"), writer(out):
            pass
    assert out.stat().st_ino == before
    assert {one.name for one in out.iterdir()} - {"checksums.json"} == {"engine.json", "config.json"}


def test_what_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def write() -> None:
        with new_folder(out) as folder:
            (folder / "config.json").write_text("{}")
            (out / "config.json").write_text("mine")

    with pytest.raises(EngineError, match=r"cannot write the checkpoint to .*not empty"):
        write()
    assert [(one.name, one.read_text()) for one in out.iterdir()] == [("config.json", "mine")]
