"""SQL over the rows of any number of stores, by DuckDB.

The rows are read as every command reads them (folders, tables, addresses), so a query sees what the tables show, with one more column:
`store`, the name of the result set. DuckDB is an optional dependency: 20 MB for one command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trtllm_results.errors import ResultsError
from trtllm_results.store.rows import to_table
from trtllm_results.store.selection import ResultSet

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "results"
MOST_REASON = 300
"""Characters of a refusal."""


def query(sql: str, sets: Sequence[ResultSet]) -> pa.Table:
    """The answer to `sql` over the table `results`.

    Raises `ResultsError` where DuckDB is not installed, and for a statement that it refuses or that answers with no table.
    """
    import pyarrow as pa

    try:
        import duckdb
    except ImportError:
        raise ResultsError("results query needs DuckDB; install it with: pip install 'trtllm-bench[query]'") from None
    rows = to_table([row for one in sets for row in one.rows])
    names = pa.array([one.name for one in sets for _ in one.rows], pa.string())
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    try:
        connection.register(TABLE, rows.append_column("store", names))
        answer = connection.sql(sql)
        if answer is None:
            raise ResultsError(f"the statement answers with no table; write SELECT ... FROM {TABLE}")
        return answer.to_arrow_table()
    except duckdb.Error as error:
        raise ResultsError(f"DuckDB refuses the statement: {_reason(error)}") from None
    finally:
        connection.close()


def _reason(error: Exception) -> str:
    """The first line of DuckDB's message, and the names that it thinks were meant."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    meant = [line for line in lines[1:] if line.startswith(("Candidate", "Did you mean"))]
    return "; ".join([lines[0], *meant[:1]])[:MOST_REASON]
