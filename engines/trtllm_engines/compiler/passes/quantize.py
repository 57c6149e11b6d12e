"""Makes every product but the lm_head's fp8: weights with one scale a tensor, inputs with one static scale, and asks for an fp8 KV cache.
(Or, `graph.by_row`, weights with a scale a row and inputs with a scale a token, found by `quantize_rows`: nothing to calibrate.)

Inserted plainly, as a `quantize` before each product; `push_quantize` then moves each into the op that makes its input. Products that read
the same tensor share its scale, so it is quantized once. The lm_head stays wide: it is 6% of an 8B model's weights and errors there go
straight into the logits. Scales are weights of the engine, read from the checkpoint when calibrated there (ModelOpt's names).
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from trtllm_engines.compiler.graph import ModelGraph, call, item, scale_weight

LM_HEAD = "lm_head"


def stays_wide(label: str, weight: str) -> bool:
    """Whether the product called `label`, over `weight`, is left as it is (a tied head's weight has the embedding's name)."""
    return LM_HEAD in (label, weight.removesuffix(".weight"))


def cache_scale_sources(label: str) -> tuple[str, str]:
    """Checkpoint names of the scales of keys and values, of the attention whose `rope_kv_write` is called `label`."""
    attention = label.removesuffix(".rope_kv_write").removesuffix(".attn")
    return f"{attention}.k_proj.k_scale", f"{attention}.v_proj.v_scale"


def apply(graph: ModelGraph) -> None:
    if graph.quantized:
        _quantize_gemms(graph)
    if graph.kv_dtype == "fp8":
        _quantize_cache(graph)


def _quantize_gemms(graph: ModelGraph) -> None:
    quantized: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
    for node in graph.nodes("linear"):
        x, weight, bias = node.args[:3]
        assert isinstance(x, fx.Node)
        assert isinstance(weight, fx.Node)
        name = str(weight.target)
        if stays_wide(str(node.meta["label"]), name) or graph.weights[name].dtype == "fp8":
            continue
        with graph.fx.inserting_before(node):
            if x not in quantized:
                label = f"{node.meta['label']}.quantize"
                quantized[x] = _by_row(graph, x, label) if graph.by_row else _by_tensor(graph, x, label, name)
            codes, scale = quantized[x]
            if not graph.by_row:
                graph.sources[str(scale.target)] += tuple(part.removesuffix("weight") + "input_scale" for part, _ in graph.parts(name))
            graph.weights[name] = replace(graph.weights[name], dtype="fp8")
            graph.sources.setdefault(name, (name,))
            recipe, rows = ("weight_row_scale", int(graph.weights[name].shape[0])) if graph.by_row else ("weight_scale", 0)
            weight_scale = scale_weight(graph, f"{name}_scale", graph.sources[name], recipe, rows)
            product = call(graph.fx, "linear", codes, weight, bias, scale, weight_scale, label=str(node.meta["label"]))
        node.replace_all_uses_with(product)
        graph.fx.erase_node(node)


def _by_tensor(graph: ModelGraph, x: fx.Node, label: str, weight: str) -> tuple[fx.Node, fx.Node]:
    """(codes, scale): one static scale, named for the first product that reads x."""
    scale = scale_weight(graph, weight.removesuffix("weight") + "input_scale", (), "input_scale")
    return call(graph.fx, "quantize", x, scale, label=label), scale


def _by_row(graph: ModelGraph, x: fx.Node, label: str) -> tuple[fx.Node, fx.Node]:
    """(codes, scales [T, 1])"""
    both = call(graph.fx, "quantize_rows", x, label=label)
    return item(graph.fx, both, 0, f"{label}.codes"), item(graph.fx, both, 1, f"{label}.scales")


def _quantize_cache(graph: ModelGraph) -> None:
    graph.inputs["kv_cache"] = replace(graph.inputs["kv_cache"], dtype=graph.kv_dtype)
    for write, read in zip(graph.nodes("rope_kv_write"), graph.nodes("paged_attention"), strict=True):
        module = str(write.meta["label"]).removesuffix(".rope_kv_write")
        sources = cache_scale_sources(str(write.meta["label"]))
        with graph.fx.inserting_before(write):
            scales = [scale_weight(graph, f"{module}.{n}_scale", [s], "kv_scale") for n, s in zip(("k", "v"), sources, strict=True)]
        write.args = (*write.args[:-2], *scales)
        read.args = (*read.args[:-3], *scales, None)
