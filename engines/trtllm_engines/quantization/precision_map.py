"""A file that says the precision of each product (`--precision-map`): a TOML table of module names and precisions.

    "model.layers.0.*" = "bf16"
    "*.down_proj" = "int8_wo"
    "*" = "int4"

Names may hold `*` and `?`. The first that fits decides; what none fits stays wide, and so does the head.
An entry that decides nothing is refused when the engine is built.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from trtllm_engines.documents import read_text, shown
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.module_names import expression
from trtllm_engines.quantization.precision import kv_scheme
from trtllm_engines.quantization.registry import HEAD, MIXED, definition
from trtllm_engines.quantization.scheme import ModuleRule, QuantPlan, QuantScheme

MOST_ENTRIES = 100_000


@dataclass(frozen=True)
class _Entry:
    pattern: str
    scheme: QuantScheme

    @property
    def expression(self) -> str:
        return re.escape(self.pattern).replace(r"\*", ".*").replace(r"\?", ".")

    def fits(self, module: str) -> bool:
        return expression(self.expression).matches(module)


def read_precision_map(path: Path | str, kv_dtype: str = "auto", arches: Sequence[str] = ()) -> QuantPlan:
    """The plan that the file states. Raises `EngineError` naming the file and the entry that does not fit."""
    mixed = definition(MIXED)
    rules = [ModuleRule(one.expression, one.scheme) for one in _entries(Path(path))]
    kv = kv_scheme(MIXED, kv_dtype, arches)
    return QuantPlan(MIXED, mixed.wide_dtype, kv, (ModuleRule(HEAD, _wide()), *rules), str(path), smaller_groups=True)


def check_entries_decide(path: Path | str, products: Collection[str]) -> None:
    """Raises `EngineError` for an entry of the file that decides nothing of a model with these `products`, by their modules' names: it is
    misspelt, or comes after others that take all. Not of a last "*", nor where it asks of the head what that has."""
    left = set(products) - {HEAD}
    example = min(left, default=HEAD)
    for one in _entries(Path(path)):
        taken = {module for module in left if one.fits(module)}
        if taken or one.pattern == "*" or (one.scheme == _wide() and one.fits(HEAD)):
            left -= taken
            continue
        why = "no GEMM of the model has such a name"
        if one.fits(HEAD):
            why = f"{HEAD} stays {_wide().name} in every precision"
        elif any(one.fits(module) for module in products):
            why = "entries above it decide all that it fits"
        raise EngineError(
            f"{path}: {shown(one.pattern)} has no effect: {why}; names are such as {example}, and the first that fits decides"
        )


def _wide() -> QuantScheme:
    return QuantScheme(definition(MIXED).wide_dtype)


def _entries(path: Path) -> list[_Entry]:
    if not path.is_file():
        raise EngineError(f"--precision-map {path} is not a file; give a TOML file of module names and precisions")
    try:
        content = tomllib.loads(read_text(path).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path} is not TOML ({' '.join(str(error).split())[:200]})") from None
    if not 1 <= len(content) <= MOST_ENTRIES:
        raise EngineError(f'{path} has {len(content)} entries; it must have 1 to {MOST_ENTRIES}, such as "*" = "int4"')
    entries = []
    for pattern, precision in content.items():
        if not isinstance(precision, str):
            raise EngineError(f'{path}: {shown(pattern)} is {shown(precision)}; it must be a precision, such as "int4"')
        try:
            scheme = definition(precision).scheme
        except EngineError as error:
            raise EngineError(f"{path}: {shown(pattern)}: {error}") from None
        if scheme.name == MIXED or (scheme.weights is None and scheme != _wide()):
            raise EngineError(f"{path}: {shown(pattern)} is {precision}; it must be {_wide().name} or a precision with codes")
        entries.append(_Entry(pattern, scheme))
    return entries
