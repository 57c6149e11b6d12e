"""Scripts that run beside tests."""

import json
import subprocess
import sys
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
