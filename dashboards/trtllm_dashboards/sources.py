"""Result sets as the command line names them: `PATH` or `NAME=PATH`, filtered, with a way back to each row's per-request table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_results.errors import ResultsError
from trtllm_results.record.row import Row
from trtllm_results.store.selection import keep, load_set, named_path
from trtllm_results.store.table import Store, stores_below

if TYPE_CHECKING:
    from pyarrow import Table


ROWS = "results.parquet"


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
    """Read the sets; a folder of stores stands for those in it that can be read.

    Raises `ResultsError` for what cannot be read, for two sets of one name, and when the filters leave nothing.
    """
    sets: dict[str, list[Row]] = {}
    stored, skipped = [], list[str]()
    for named in specs:
        inside = stores_in(named)
        for spec in inside:
            try:
                found = load_set(spec)
            except ResultsError as error:
                if len(inside) == 1:
                    raise
                skipped.append(str(error).rstrip("."))
                continue
            if found.name in sets:
                raise DashboardError(f"two result sets are called '{found.name}'; name them, such as before={spec.split('=')[-1]}")
            sets[found.name] = keep(found.rows, filters)
            _, path = named_path(spec)
            if path.is_dir():
                stored.append((Store(path, create=False), found.rows))
    if not sets and skipped:
        raise DashboardError(f"none of the stores in {', '.join(specs)} can be read: {skipped[0]}")
    if not any(sets.values()):
        raise DashboardError(f"no row passes {' and '.join(filters)}")
    return Sources(sets if len(sets) > 1 else {"": next(iter(sets.values()))}, tuple(stored), tuple(skipped))


def stores_in(spec: str) -> list[str]:
    """The stores directly in a folder that is not a store itself, such as `results/recorded/h100`; else what was named."""
    _, folder = named_path(spec)
    return [str(path) for path in stores_below(folder)] or [spec]
