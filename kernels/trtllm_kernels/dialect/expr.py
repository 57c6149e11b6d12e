"""The expression language of launches: integers, the symbols T R D S C L, `+ - * //`, unary minus, parentheses, `ceil_div`, `min`, `max`.

An expression is parsed by Python's own parser, checked against a whitelist of nodes, and only then compiled: a plan is data read from a
file, so nothing in it may execute. All expressions of an engine become one function that is called once per step (`compile_all`). That is
why a launch with ten symbolic arguments costs no more from Python than one with none.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from trtllm_kernels.dialect.types import SYMBOLS, Dim
from trtllm_kernels.errors import KernelError

StepFunction = Callable[[int, int, int, int, int, int], tuple[int, ...]]
"""(T, R, D, S, C, L) -> value of each expression."""


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


_FUNCTIONS: Mapping[str, Callable[..., int]] = {"ceil_div": ceil_div, "min": min, "max": max}
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv)


_ALPHABET = f"use integers, {' '.join(SYMBOLS)}, + - * //, {', '.join(_FUNCTIONS)}"


def _check(node: ast.AST, text: str) -> None:
    children: list[ast.expr]
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            children = []
        case ast.Name(id=name) if name in SYMBOLS:
            children = []
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            children = [operand]
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            children = [left, right]
        case ast.Call(func=ast.Name(id=name), args=children, keywords=[]) if name in _FUNCTIONS:
            if len(children) < 2 or (name == "ceil_div" and len(children) > 2):
                raise KernelError(f"expression {text!r}: {name} cannot take {len(children)} argument(s)")
        case _:
            unparsed = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
            raise KernelError(f"expression {text!r}: {unparsed!r} is not allowed; {_ALPHABET}")
    for child in children:
        _check(child, text)


def _parse(expr: Dim) -> ast.expr:
    text = str(expr)
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise KernelError(f"expression {text!r} is malformed; {_ALPHABET}") from error
    _check(node, text)
    return node


def compile_all(exprs: Sequence[Dim]) -> StepFunction:
    """One function that evaluates every expression.

    Raises `KernelError` at once for a malformed expression, and when called for a division by zero.
    """
    arguments = ast.arguments(posonlyargs=[], args=[ast.arg(arg=s) for s in SYMBOLS], kwonlyargs=[], kw_defaults=[], defaults=[])
    body = ast.Tuple(elts=[_parse(e) for e in exprs], ctx=ast.Load())
    tree = ast.fix_missing_locations(ast.Expression(body=ast.Lambda(args=arguments, body=body)))
    function: StepFunction = eval(compile(tree, "<launch expressions>", "eval"), {"__builtins__": {}, **_FUNCTIONS})

    def checked(T: int, R: int, D: int, S: int, C: int, L: int) -> tuple[int, ...]:
        try:
            return function(T, R, D, S, C, L)
        except ZeroDivisionError as error:
            raise KernelError(f"division by zero in one of {[str(e) for e in exprs]} at T={T} R={R} D={D} S={S} C={C} L={L}") from error

    return checked


@lru_cache(maxsize=4096)
def _compile_one(expr: str) -> StepFunction:
    return compile_all((expr,))


def evaluate(expr: Dim, symbols: Mapping[str, int]) -> int:
    """Value of one expression; `symbols` must hold those it uses."""
    if isinstance(expr, int):
        return expr
    if isinstance(expr, str) and expr in SYMBOLS and expr in symbols:
        return symbols[expr]
    if missing := symbols_of(expr) - symbols.keys():
        raise KernelError(f"expression {expr!r} needs a value for {', '.join(sorted(missing))}")
    return _compile_one(expr)(*(symbols.get(s, 0) for s in SYMBOLS))[0]


def symbols_of(expr: Dim) -> frozenset[str]:
    return _symbols_in(str(expr))


@lru_cache(maxsize=4096)
def _symbols_in(text: str) -> frozenset[str]:
    return frozenset(n.id for n in ast.walk(_parse(text)) if isinstance(n, ast.Name) and n.id in SYMBOLS)


def product(*dims: Dim) -> Dim:
    """The product of dims, with the constants folded."""
    constant, symbolic = 1, []
    for dim in dims:
        if isinstance(dim, int):
            constant *= dim
        else:
            symbolic.append(f"({dim})" if not dim.isidentifier() else dim)
    if not symbolic or constant == 0:
        return constant
    return " * ".join([*symbolic, *([str(constant)] if constant != 1 else [])])
