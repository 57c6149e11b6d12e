"""Ways to damage a file: types swapped, values huge, negative, not a number, keys gone, nesting without end, cut and flipped bytes.

Each takes the bytes of a valid file and a source of chance (hypothesis's in CI, so that failures shrink; a seeded one in the script).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Damage = Callable[[Random, bytes], bytes]

_MARK = '"@@hostile@@"'
HOSTILE = (
    *("null", "true", "false", "0", "-1", "1", "-0.0", "0.5", "1e-320", "1e308", "-1e308", "1e999", "NaN", "Infinity", "-Infinity"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775809", "4294967296", "1" + "0" * 400, "1" + "0" * 5000),
    *(
        '""',
        '" "',
        '"0"',
        '"-5"',
        '"nan"',
        '"[/x]"',
        '"a=b@c"',
        '"../../../etc/passwd"',
        '"/dev/zero"',
        '"\\u0000"',
        '"\\ud800"',
        '"\\u202e"',
    ),
    *('"' + "x" * 200_000 + '"', '"{"', '"[1"', '"{\\"a\\": {}}"', "[]", "{}", "[[]]", "[null]", "[1, 2]", '{"a": 1}', '{"": {}}'),
    *("[" * depth + "]" * depth for depth in (40, 900, 100_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (40, 900, 100_000)),
    '"' + "[" * 500 + "]" * 500 + '"',
    "[" + ",".join("0" for _ in range(50_000)) + "]",
)
"""Values as JSON text, since some of them are no Python object that json would write."""


def of_json(chance: Random, content: bytes) -> bytes:
    """One place of a JSON document, any depth, gets another value, goes, or is renamed; or its bytes are damaged."""
    if chance.random() < 0.25:
        return of_bytes(chance, content)
    document = json.loads(content)
    for _ in range(chance.randint(1, 2)):
        holder, key = _place(chance, document)
        if holder is None:
            return chance.choice(HOSTILE).encode()
        action = chance.randrange(6)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[chance.choice(["", "x" * 300, str(key).upper(), f"{key} ", "\u202e", "[/red]"])] = holder.pop(key)
        elif action == 2:
            other, other_key = _place(chance, document)
            holder[key] = json.loads(json.dumps(other[other_key])) if other is not None else None
        else:
            holder[key] = _MARK.strip('"')
    text = json.dumps(document)
    while _MARK in text:
        text = text.replace(_MARK, chance.choice(HOSTILE), 1)
    return text.encode()


def _place(chance: Random, document: Any) -> tuple[Any, Any]:
    """A random (container, key) of the document; the document itself is (None, None)."""
    holder: Any = None
    key: Any = None
    here = document
    while isinstance(here, dict | list) and here and (holder is None or chance.random() < 0.8):
        holder, key = here, chance.choice(sorted(here, key=str)) if isinstance(here, dict) else chance.randrange(len(here))
        here = holder[key]
    return holder, key


def of_bytes(chance: Random, content: bytes) -> bytes:
    """Cut, flipped, doubled, emptied or overwritten anywhere."""
    action = chance.randrange(7)
    at = chance.randrange(len(content) + 1)
    if action == 0:
        return content[:at]
    if action == 1:
        return content[at:]
    if action == 2:
        return content[:at] + content + content[at:]
    if action == 3:
        return content[:at] + bytes(chance.randrange(1, 64)) + content[at:]
    if action == 4:
        return chance.choice([b"", b"\n", b"\xff\xfe", b"PAR1", b"PAR1PAR1", b"{}", b"[]", b"\0" * 4096])
    damaged = bytearray(content)
    for _ in range(chance.choice([1, 1, 4, 32])):
        if damaged:
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def of_parquet(chance: Random, content: bytes) -> bytes:
    """A column gets other types or values, goes, is renamed or doubled, or the metadata change; or the bytes are damaged."""
    if chance.random() < 0.4:
        return of_bytes(chance, content)
    table = pq.read_table(io.BytesIO(content))
    metadata = dict(table.schema.metadata or {})
    for _ in range(chance.randint(1, 2)):
        if not table.num_columns:
            break
        at = chance.randrange(table.num_columns)
        name = table.column_names[at]
        action = chance.randrange(7)
        if action == 0:
            table = table.remove_column(at)
        elif action == 1:
            fresh = chance.choice(["", "model", f"{name}x", "x" * 300, "\u202e", "status"])
            table = table.rename_columns([fresh if place == at else one for place, one in enumerate(table.column_names)])
        elif action == 2:
            table = table.append_column(name, table.column(at))
        elif action == 3:
            table = table.slice(0, 0)
        elif action == 4:
            metadata = {b"trtllm_results.schema_version": chance.choice([b"", b"0", b"-1", b"2", b"1" * 50, b"x", b"\xff", b"1.0", b"NaN"])}
        else:
            table = table.set_column(at, name, _hostile_column(chance, table.num_rows))
    sink = io.BytesIO()
    try:
        pq.write_table(table.replace_schema_metadata(metadata), sink)
    except pa.ArrowException:  # not every type can be written
        return of_bytes(chance, content)
    return sink.getvalue()


def _hostile_column(chance: Random, rows: int) -> pa.Array:
    value, kind = chance.choice(
        [
            (None, pa.null()),
            (None, pa.int64()),
            (-1, pa.int64()),
            (2**63 - 1, pa.int64()),
            (2**64 - 1, pa.uint64()),
            (float("nan"), pa.float64()),
            (float("inf"), pa.float64()),
            (-1e308, pa.float64()),
            (0.5, pa.float32()),
            (True, pa.bool_()),
            ("", pa.string()),
            ("12", pa.string()),
            ("\u202e[/x]", pa.string()),
            ("../../etc", pa.string()),
            ("[" * 900 + "]" * 900, pa.string()),
            ("{", pa.string()),
            ("x" * 200_000, pa.large_string()),
            (b"\xff\xfe", pa.binary()),
            ([1, 2], pa.list_(pa.int64())),
            ({"a": 1}, pa.struct([("a", pa.int64())])),
            ([("a", 1)], pa.map_(pa.string(), pa.int64())),
            (2**60, pa.timestamp("ns")),
            (-(2**62), pa.timestamp("s")),
            (2**31 - 1, pa.date32()),
            (2**62, pa.duration("s")),
            (2**30, pa.time32("ms")),
        ]
    )
    storage = {pa.timestamp("ns"): pa.int64(), pa.timestamp("s"): pa.int64(), pa.duration("s"): pa.int64()}
    storage |= {pa.date32(): pa.int32(), pa.time32("ms"): pa.int32()}
    array = pa.array([value] * rows, storage.get(kind, kind))
    array = array.view(kind) if kind in storage else array
    return array.dictionary_encode() if kind == pa.string() and chance.random() < 0.3 else array


def of_toml(chance: Random, content: bytes) -> bytes:
    """A value of one line becomes another; or the bytes are damaged."""
    lines = content.decode().splitlines()
    if chance.random() < 0.4 or not lines:
        return of_bytes(chance, content)
    at = chance.randrange(len(lines))
    key = lines[at].partition("=")[0].strip()
    lines[at] = f"{key} = {chance.choice(HOSTILE)}"
    return "\n".join(lines).encode()
