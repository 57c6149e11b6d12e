"""The table of ops, from their specifications: `python -m trtllm_kernels.dialect.table > docs/ops.md`."""

from __future__ import annotations

import re

from trtllm_kernels.dialect.ops import OP_SPECS, OpSpec

_HEAD = """\
# Ops of the dialect

Written by `python -m trtllm_kernels.dialect.table > docs/ops.md` from the specifications in `kernels/trtllm_kernels/dialect/ops`; do not
edit. `?` marks an optional tensor, `!` one that the op writes to. *In place*: the argument whose memory the first result may take. *Kind*:
what bounds the op (`gemm`: a matrix of weights; `attention`: keys and values; `rows`: rows of activations;
`communication`: what ranks exchange).

| op | meaning | tensors | attributes | results | in place | kind | traits |
|---|---|---|---|---|---|---|---|
"""


def markdown() -> str:
    return _HEAD + "".join(_row(spec) for spec in sorted(OP_SPECS.values(), key=lambda spec: spec.name))


def _row(spec: OpSpec) -> str:
    marks = {name: "?" * (name in spec.optional_tensors) + "!" * (name in spec.mutates) for name in spec.tensors}
    types = {argument.name: argument.type for argument in spec.arguments}
    results = len(re.findall("Tensor", spec.results))
    cells = (
        f"`{spec.name}`",
        spec.summary,
        ", ".join(f"`{name}{mark}`" for name, mark in marks.items()),
        ", ".join(f"`{types[name]} {name}`" for name in spec.attrs),
        "list" if spec.results.endswith("[]") else str(results),
        f"`{spec.in_place}`" if spec.in_place else "",
        spec.kind,
        ", ".join(sorted(spec.traits)),
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    print(markdown(), end="")
