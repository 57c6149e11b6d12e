"""Attention of prompts multiplies fp8 where the plan says so: `rope_kv_write` becomes the op that also returns queries, keys and
values as codes, and `paged_attention` takes them. Decoding reads the cache's codes as before.
"""

from __future__ import annotations

from trtllm_engines.compiler.graph import ModelGraph, call, item, set_arguments
from trtllm_engines.quantization.scheme import WIDE
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import value_columns

_OP = "rope_kv_write_quantize"
_CODES = ("queries", "keys", "values")


def apply(graph: ModelGraph) -> None:
    if graph.context_attention == WIDE:
        return
    columns = value_columns(graph.profile.max_num_tokens, graph.profile.max_batch_size)
    for write, read in zip(graph.nodes("rope_kv_write"), graph.nodes("paged_attention"), strict=True):
        given = dict(zip((argument.name for argument in OP_SPECS["rope_kv_write"].arguments), write.args, strict=True))
        attended = dict(zip((argument.name for argument in OP_SPECS["paged_attention"].arguments), read.args, strict=True))
        arguments = {**given, "query_start": attended["query_start"], "columns": columns}
        label = str(write.meta["label"])
        with graph.fx.inserting_before(write):
            quantized = call(graph.fx, _OP, *(arguments[argument.name] for argument in OP_SPECS[_OP].arguments), label=label)
            rotated = item(graph.fx, quantized, 0, label)
            codes = {name: item(graph.fx, quantized, index, f"{label}.{name}") for index, name in enumerate(_CODES, 1)}
        write.replace_all_uses_with(rotated)
        graph.fx.erase_node(write)
        set_arguments(read, **codes)
