"""A file that says the precision of each product (`--precision-map`): a TOML table of module names and precisions.

    "model.layers.0.*" = "bf16"
    "*.down_proj" = "int8_wo"
    "*" = "int4"

Names may hold `*` and `?`. The first that fits decides; what none fits stays wide, and so does the head.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from trtllm_engines.documents import read_text, shown
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.precision import kv_scheme
from trtllm_engines.quantization.registry import HEAD, MIXED, definition
from trtllm_engines.quantization.scheme import ModuleRule, QuantPlan, QuantScheme

MOST_ENTRIES = 100_000


def read_precision_map(path: Path | str, kv_dtype: str = "auto", arches: Sequence[str] = ()) -> QuantPlan:
    """The plan that the file states. Raises `EngineError` naming the file and the entry that does not fit."""
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"--precision-map {path} is not a file; give a TOML file of module names and precisions")
    try:
        content = tomllib.loads(read_text(path).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path} is not TOML ({' '.join(str(error).split())[:200]})") from None
    if not 1 <= len(content) <= MOST_ENTRIES:
        raise EngineError(f'{path} has {len(content)} entries; it must have 1 to {MOST_ENTRIES}, such as "*" = "int4"')
    mixed = definition(MIXED)
    wide = QuantScheme(mixed.wide_dtype)
    rules = [ModuleRule(HEAD, wide)]
    for pattern, precision in content.items():
        if not isinstance(precision, str):
            raise EngineError(f'{path}: {shown(pattern)} is {shown(precision)}; it must be a precision, such as "int4"')
        try:
            scheme = definition(precision).scheme
        except EngineError as error:
            raise EngineError(f"{path}: {shown(pattern)}: {error}") from None
        if scheme.name == MIXED or (scheme.weights is None and scheme != wide):
            raise EngineError(f"{path}: {shown(pattern)} is {precision}; it must be {wide.name} or a precision with codes")
        rules.append(ModuleRule(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), scheme))
    return QuantPlan(MIXED, mixed.wide_dtype, kv_scheme(MIXED, kv_dtype, arches), tuple(rules), str(path), smaller_groups=True)
