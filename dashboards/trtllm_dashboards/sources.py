"""Result sets as the command line names them: `PATH` or `NAME=PATH`, filtered, with a way back to each row's per-request table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_results.errors import ResultsError
from trtllm_results.record.row import Row
from trtllm_results.store.selection import keep, load_set, named_path, none_passes
from trtllm_results.store.table import Store, stores_below

if TYPE_CHECKING:
    from pyarrow import Table


@dataclass(frozen=True)
class Sources:
    """Result sets by name, filtered, and the stores among them, each with all its rows."""

    sets: dict[str, list[Row]]
    stored: tuple[tuple[Store, tuple[Row, ...]], ...]
    skipped: tuple[str, ...] = ()
    """Stores of a folder that could not be read or are empty, a sentence each."""

    @property
    def stores(self) -> tuple[Store, ...]:
        return tuple(store for store, _ in self.stored)

    def requests(self, row: Row) -> Table | None:
        """The per-request table of `row`, from whichever store holds it."""
        for store in self.stores:
            table = store.read_side("requests", row)
            if table is not None:
                return table
        return None


def load(specs: Sequence[str], filters: Sequence[str] = ()) -> Sources:
    """Read the sets; a folder of stores stands for those in it that can be read, as one set where it is named (`NAME=FOLDER`).

    Raises `ResultsError` for what cannot be read, for two sets of one name, and when the filters leave nothing.
    """
    sets: dict[str, list[Row]] = {}
    stored, skipped = [], list[str]()
    inside = {named: stores_in(named) for named in dict.fromkeys(specs)}
    often = Counter(named_path(spec)[0] for named in specs for spec in inside[named])
    for named in specs:
        read: dict[str, list[Row]] = {}
        for spec in inside[named]:
            try:
                found = load_set(spec)
            except ResultsError as error:
                if len(inside[named]) == 1:
                    raise
                skipped.append(str(error).rstrip("."))
                continue
            read.setdefault(_set_name(named, spec, found.name, often), []).extend(keep(found.rows, filters))
            _, path = named_path(spec)
            if path.is_dir():
                stored.append((Store(path, create=False), found.rows))
        if twice := next((name for name in read if name in sets), ""):
            raise DashboardError(f"two result sets are called '{twice}'; name them, such as before={named.split('=')[-1]}")
        sets |= read
    if not sets and skipped:
        raise DashboardError(f"none of the stores in {', '.join(specs)} can be read: {skipped[0]}")
    if not any(sets.values()):
        raise DashboardError(none_passes(filters))
    return Sources(sets if len(sets) > 1 else {"": next(iter(sets.values()))}, tuple(stored), tuple(skipped))


def _set_name(named: str, spec: str, name: str, often: Mapping[str, int]) -> str:
    """What the set of a store `spec`, called `name`, is called: as `named` says; else by its folder too, where several are so called."""
    if spec == named:
        return name
    folder, _ = named_path(named)
    if "=" in named and not os.path.exists(named):
        return folder
    return f"{folder}/{name}" if often[name] > 1 else name


def stores_in(spec: str) -> list[str]:
    """The stores directly in a folder that is not a store itself, such as `results/recorded/h100`; else what was named."""
    _, folder = named_path(spec)
    return [str(path) for path in stores_below(folder)] or [spec]
