"""Folders that are written beside their place: nothing is left of them, not even where the process was killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trtllm_engines import partial_folder as module
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
