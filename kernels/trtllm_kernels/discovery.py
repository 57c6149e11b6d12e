"""Imports every module of a package, so that what registers itself on import is known without a list of modules anywhere.

Three packages are registries of this kind: `dialect/ops` (specifications), `references` and `lowering`. An op is added by adding files
to them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable


def import_modules(package: str, path: Iterable[str]) -> None:
    """Imports the modules of `package`, in alphabetical order. `path` is the package's `__path__`."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
