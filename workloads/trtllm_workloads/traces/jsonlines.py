"""JSON lines to columns, for the formats that are such lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from trtllm_workloads.tokens import Int64Array


def objects(lines: Sequence[str], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Each line's object, with these keys present. One `json.loads` for the whole block: one call per line costs twice the time."""
    try:
        rows = json.loads("[" + ",".join(lines) + "]")
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({getattr(error, 'msg', 'a number has too many digits')})") from None
    if len(rows) != len(lines) or not all(type(row) is dict for row in rows):
        raise ValueError("expected one JSON object a line")
    for key in keys:
        if not all(key in row for row in rows):
            raise ValueError(f"there is no {key}")
    return rows  # type: ignore[no-any-return]


def numbers(rows: Sequence[dict[str, Any]], key: str) -> list[Any]:
    """The values of a key, each a JSON number (a text or `true` would be converted silently)."""
    values = [row[key] for row in rows]
    if not set(map(type, values)) <= {int, float}:
        odd = next(value for value in values if type(value) not in (int, float))
        raise ValueError(f"{key} is {odd!r:.60}, not a number")
    return values


def blocks(rows: Sequence[dict[str, Any]]) -> tuple[Int64Array, Int64Array]:
    """(offsets, flat ids) of `hash_ids`; a row without has none."""
    lists = [row.get("hash_ids", []) for row in rows]
    if not all(type(ids) is list for ids in lists):
        raise ValueError("hash_ids is not a list")
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in lists])]).astype(np.int64)
    flat = [block for ids in lists for block in ids]
    if not set(map(type, flat)) <= {int}:
        raise ValueError("hash_ids must hold whole numbers")
    try:
        return offsets, np.asarray(flat, dtype=np.int64)
    except OverflowError:
        raise ValueError("hash_ids must hold 64-bit numbers") from None
