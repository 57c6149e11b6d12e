"""Weights of cached engines, kept once: engines of one model that differ in their ranges or GPUs have the same files, as hard links.

A file's name is a hash of all that its content depends on: where its numbers come from, how each is made, and the sources that make them.
The sum of its bytes lies beside it, so that a damaged file is made again instead of being linked.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from trtllm_engines.compiler.plan import Plan
from trtllm_engines.documents import read_text
from trtllm_engines.engine.verified import Verifier
from trtllm_engines.errors import EngineError

FOLDER = "weights"


class SharedWeights:
    """Under `folder`. `origin`: identity of the checkpoint and of the code that reads it."""

    def __init__(self, folder: Path, origin: object) -> None:
        self._folder, self._origin = folder, origin

    def _file(self, plan: Plan, rank: int) -> Path:
        made = {name: asdict(recipe) for name, recipe in plan.weight_recipes.items()}
        specs = {name: asdict(spec) for name, spec in plan.weights.items()}
        content = [self._origin, dict(plan.weights_source), asdict(plan.parallel), rank, specs, made]
        key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]
        return self._folder / f"{key}.safetensors"

    def link(self, plan: Plan, rank: int, path: Path) -> bool:
        file = self._file(plan, rank)
        verifier = Verifier()
        try:
            if verifier.digest(file) != read_text(file.with_suffix(".sha256")).strip():
                remove(file)
                return False
            os.link(file, path)
        except (OSError, EngineError):
            return False
        finally:
            verifier.close()
        return True

    def add(self, plan: Plan, rank: int, path: Path) -> None:
        """A file system without hard links, or without room, only shares nothing."""
        file = self._file(plan, rank)
        verifier = Verifier()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove(file)
            digest = verifier.digest(path)
            file.with_suffix(".sha256").write_text(digest)
            os.link(path, file)
        except (OSError, EngineError):
            remove(file)
        finally:
            verifier.close()


def remove(file: Path) -> None:
    """A shared file and its sum. Engines that have it keep it."""
    file.unlink(missing_ok=True)
    file.with_suffix(".sha256").unlink(missing_ok=True)


def unused(folder: Path) -> list[Path]:
    """Shared files that no engine has any more."""
    return [file for file in folder.glob("*.safetensors") if file.stat().st_nlink == 1]
