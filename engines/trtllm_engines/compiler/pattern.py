"""Patterns over the dialect's graph, and their application.

A pattern is a tree: `OpPattern("silu_mul", Item("split", x, 0), ...)`. `Var` matches anything and binds it; the same `Var` twice must bind
the same thing, which is how "three products of one input" is said. Arguments are matched by position; those a pattern leaves out match
anything. Matching is local and ordered, so that a pass gives the same graph every time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from trtllm_engines.compiler.graph import ModelGraph, op_name, prune

Bindings = dict[str, Any]


@dataclass(frozen=True)
class Var:
    """Anything, bound to `name`."""

    name: str


@dataclass(frozen=True)
class OpPattern:
    """A dialect op; `bind` names the node; `users` (if given) is how many uses it must have."""

    op: str
    args: tuple[Any, ...]
    bind: str = ""
    users: int | None = None


@dataclass(frozen=True)
class Item:
    """Result `index` of `source`, a pattern for an op with several results; `bind` names the getitem node."""

    source: Any
    index: int
    bind: str = ""


@dataclass(frozen=True)
class Rule:
    """Where `pattern` matches, run `rewrite`, which inserts new nodes and redirects uses; leftovers are pruned."""

    name: str
    pattern: OpPattern
    rewrite: Callable[[ModelGraph, Bindings], None]


def match(pattern: Any, value: Any, bound: Mapping[str, Any]) -> Bindings | None:
    """Bindings extending `bound` under which `pattern` is `value`, or None."""
    if isinstance(pattern, Var):
        if pattern.name in bound:
            return dict(bound) if bound[pattern.name] is value or bound[pattern.name] == value else None
        return {**bound, pattern.name: value}
    if isinstance(pattern, Item):
        if not isinstance(value, fx.Node) or value.op != "call_function" or getattr(value.target, "__name__", "") != "getitem":
            return None
        if value.args[1] != pattern.index:
            return None
        inner = match(pattern.source, value.args[0], bound)
        return _bind(inner, pattern.bind, value)
    if isinstance(pattern, OpPattern):
        if op_name(value) != pattern.op or (pattern.users is not None and len(value.users) != pattern.users):
            return None
        bindings: Bindings | None = dict(bound)
        for subpattern, argument in zip(pattern.args, value.args, strict=False):
            bindings = match(subpattern, argument, bindings) if bindings is not None else None
        return _bind(bindings, pattern.bind, value)
    return dict(bound) if pattern == value else None


def _bind(bindings: Bindings | None, name: str, value: Any) -> Bindings | None:
    if bindings is None or not name:
        return bindings
    return {**bindings, name: value}


def rewrite(graph: ModelGraph, rules: Sequence[Rule]) -> int:
    """Applies the rules at every node in order, first match wins; returns how many times one applied."""
    applied = 0
    for node in list(graph.fx.nodes):
        if getattr(node, "_erased", False) or (node.op == "call_function" and not node.users):
            continue
        for rule in rules:
            bindings = match(rule.pattern, node, {})
            if bindings is not None:
                with graph.fx.inserting_before(node):
                    rule.rewrite(graph, {**bindings, "root": node})
                applied += 1
                break
    prune(graph)
    return applied
