"""Colour and symbol of a series, the same in every figure and on every page.

A precision keeps its look wherever it is drawn; other series take looks in turn. Colours were found by search: at least 3:1 against their
background (WCAG 1.4.11), and apart by 28 or more in CIELAB as seen by everyone and under protanopia, deuteranopia and tritanopia (Machado
et al. 2009). Okabe and Ito's, used before, fall below 3:1 on white for three of eight. Colour is never the only cue: the symbol differs
too.
"""

from __future__ import annotations

PRECISIONS = ("fp8", "bf16", "fp8_rowwise", "fp16", "int8", "int4", "fp32")
"""Index into the colours and symbols."""
LIGHT = ("#3736EC", "#266F4E", "#861AA3", "#2294FF", "#551E00", "#A584A9", "#4B3A61", "#E72200")
"""On white."""
DARK = ("#609BFE", "#2AF987", "#B170A6", "#C4FF2F", "#DB581B", "#F1D0E4", "#7D3EFA", "#889B78")
"""On the dark page's cards, #161b22."""
SYMBOLS = ("circle", "square", "triangle", "diamond", "down", "plus", "cross", "star")


def place(label: str, index: int) -> int:
    """Of the series called `label`, number `index` of its figure, among the looks: a precision's own, else in turn from behind."""
    return PRECISIONS.index(label) if label in PRECISIONS else index
