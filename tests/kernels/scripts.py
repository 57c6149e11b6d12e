"""Scripts that run beside tests."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Script:
    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @classmethod
    def start(cls, name: str, folder: Path) -> "Script":
        """A script of this folder; what it writes lies in `folder`."""
        out, err = folder / f"{name}.out", folder / f"{name}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            return cls(subprocess.Popen([sys.executable, Path(__file__).with_name(name)], stdout=stdout, stderr=stderr), out, err)

    def until(self, case: str) -> list[dict[str, Any]]:
        """What it has written when it says that `case` is done: a test waits for its own cases and not for all."""
        mark = json.dumps({"done": case})
        while (code := self.process.poll()) is None and mark not in self.out.read_text().splitlines():
            time.sleep(0.1)
        lines = self.out.read_text().splitlines()
        assert mark in lines, f"exit code {code}: {self.err.read_text()[-3000:]}"
        return [row for row in map(json.loads, lines[: lines.index(mark)]) if "done" not in row]

    def rows(self) -> list[dict[str, Any]]:
        """One a line of JSON, once it has ended."""
        assert self.process.wait() == 0, self.err.read_text()[-3000:]
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Scripts:
    """By name; one that was not started before starts when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: dict[str, Script] = {}

    def start(self, *names: str) -> None:
        for name in names:
            if name not in self._started:
                self._started[name] = Script.start(name, self._folder)

    def __getitem__(self, name: str) -> Script:
        self.start(name)
        return self._started[name]

    def end(self) -> None:
        for script in self._started.values():
            script.end()
