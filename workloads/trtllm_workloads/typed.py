"""One sentence about the first thing that is wrong with a pydantic model's input: field, value, and what it must be."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

_KINDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "path_type"), "text"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("model_type", "dict_type", "model_attributes_type"), "a table"),
    "finite_number": "a finite number",
    "recursion_loop": "nested less deeply",
}
_LIMITS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}


def sentence(error: ValidationError) -> str:
    """What is wrong, without the file's name; `extra_forbidden` and `ValueError`s are the caller's to word, by `first`."""
    problem = first(error)
    where = location(problem)
    if problem["type"] == "missing":
        return f"{where} is missing"
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{where}: {message}" if where else message
    return f"{where or 'the content'} is {shorten(problem['input'])}; it must {_expected(problem)}"


def first(error: ValidationError) -> Any:
    return error.errors(include_url=False)[0]


def location(problem: Any) -> str:
    return ".".join(str(part) for part in problem["loc"])


def _expected(problem: Any) -> str:
    """What the value must be or have, as a verb phrase."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"be {words} {context[name]:g}"
    if kind == "string_too_short":
        return "not be empty"
    if kind == "too_short":
        least = context.get("min_length", 1)
        return f"have at least {least} {'entry' if least == 1 else 'entries'}"
    if kind == "too_long":
        return f"have at most {context['max_length']} entries"
    if kind == "literal_error":
        return f"be one of {context['expected'].replace(chr(39), '').replace(' or ', ', ')}"
    return f"be {_KINDS.get(kind, 'of another type')}"


def shorten(value: Any) -> str:
    """A value as an error shows it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return "a value too large to show"
    return text if len(text) <= 60 else text[:57] + "..."
