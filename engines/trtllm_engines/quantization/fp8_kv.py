"""A KV cache in fp8 (E4M3): per layer one static scale for keys and one for values, the checkpoint's or 1."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from trtllm_engines.checkpoints import WeightSource
from trtllm_engines.compiler.graph import ModelGraph, derived_weight, set_arguments
from trtllm_engines.quantization.registry import KvDefinition, RecipeKind, register_kv
from trtllm_engines.quantization.scheme import KvScheme, WeightRecipe

SCALE = "kv_scale"


def cache_scale_sources(label: str) -> tuple[str, str]:
    """Checkpoint names of the scales of keys and values, of the attention that the op called `label` is of."""
    attention = label.removesuffix(".rope_kv_write").removesuffix(".attention").removesuffix(".attn")
    return f"{attention}.k_proj.k_scale", f"{attention}.v_proj.v_scale"


def _scale(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    scales = [source.kv_scale(name) for name, _ in recipe.inputs]
    return torch.tensor([max(scales)], dtype=dtype, device=device)


def _quantize_cache(graph: ModelGraph, scheme: KvScheme) -> None:
    graph.inputs["kv_cache"] = replace(graph.inputs["kv_cache"], dtype=scheme.dtype)
    for write, read in zip(graph.nodes("rope_kv_write"), graph.nodes("paged_attention"), strict=True):
        module = str(write.meta["label"]).removesuffix(".rope_kv_write")
        sources = cache_scale_sources(str(write.meta["label"]))
        with graph.fx.inserting_before(write):
            scales = [
                derived_weight(graph, f"{module}.{leaf}_scale", (1,), "fp32", WeightRecipe(SCALE, ((name, (1,)),)))
                for leaf, name in zip(("k", "v"), sources, strict=True)
            ]
        for node in (write, read):
            set_arguments(node, k_scale=scales[0], v_scale=scales[1])


FP8_KV = register_kv(
    KvDefinition(
        scheme=KvScheme("fp8", "tensor"),
        quantize_cache=_quantize_cache,
        recipes={SCALE: RecipeKind(_scale, is_scale=True)},
    )
)
