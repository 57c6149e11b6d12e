"""The expression language: agrees with Python on everything it accepts, and accepts nothing else."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtllm_kernels.dialect import expr
from trtllm_kernels.dialect.types import SYMBOLS
from trtllm_kernels.errors import KernelError

_LEAVES = st.one_of(st.integers(0, 10**6).map(str), st.sampled_from("TRDSC"))
_EXPRESSIONS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        st.tuples(inner, st.integers(1, 999)).map(lambda p: f"({p[0]} // {p[1]})"),
        st.tuples(inner, st.integers(1, 999)).map(lambda p: f"ceil_div({p[0]}, {p[1]})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda p: f"{p[0]}({p[1]}, {p[2]})"),
        inner.map(lambda e: f"-{e}"),
    ),
    max_leaves=12,
)
_SIZES = st.integers(0, 10**5)


@given(text=_EXPRESSIONS, sizes=st.tuples(*[_SIZES] * len(SYMBOLS)))
def test_value_is_pythons(text: str, sizes: tuple[int, ...]) -> None:
    symbols = dict(zip(SYMBOLS, sizes, strict=True))
    expected = eval(text, {**symbols, "ceil_div": lambda a, b: -(-a // b), "min": min, "max": max})
    assert expr.evaluate(text, symbols) == expected
    assert expr.compile_all([text, 7, text])(*sizes) == (expected, 7, expected)


@pytest.mark.parametrize(
    "text",
    ["", "T +", "X", "T / 2", "T ** 2", "1.5", "True", "'a'", "f(T)", "__import__('os')", "T.real", "[T]", "T if R else D", "min(T)",
     "min(*T)", "ceil_div(T, 1, 2)", "ceil_div(T)", "max(a=1, b=2)", "T < R",
     "(lambda: 1)()", "T; R", "T\nR", "(" * 300 + "T" + ")" * 300],
)  # fmt: skip
def test_anything_else_is_refused_by_one_sentence(text: str) -> None:
    with pytest.raises(KernelError, match="expression"):
        expr.compile_all([text])


@given(st.text(max_size=30))
def test_arbitrary_text_never_raises_anything_but_kernel_error(text: str) -> None:
    with contextlib.suppress(KernelError):
        assert isinstance(expr.compile_all([text])(*[1] * len(SYMBOLS))[0], int)


def test_missing_symbol_and_division_by_zero_are_named() -> None:
    with pytest.raises(KernelError, match="needs a value for R"):
        expr.evaluate("T + R", {"T": 1})
    with pytest.raises(KernelError, match="division by zero"):
        expr.evaluate("T // D", {"T": 1, "D": 0})


def test_product_folds_constants() -> None:
    assert expr.product(2, 3) == 6
    assert expr.product("T", 4) == "T * 4"
    assert expr.evaluate(expr.product("T - D", 2, "R"), {"T": 5, "D": 1, "R": 3}) == 24
    assert expr.product("T", 0) == 0
    assert expr.symbols_of("ceil_div(T - D, 64) + R") == {"T", "D", "R"}
