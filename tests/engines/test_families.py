"""Model families register themselves, and what a model states is computed as transformers computes it or refused, never ignored."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from compiler_models import LLAMA
from gguf_files import write_gguf

from trtllm_engines.compiler.graph import trace
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.errors import EngineError
from trtllm_engines.llm import LLM
from trtllm_engines.models import families
from trtllm_engines.models.config import ModelConfig, config_from_hf
from trtllm_engines.models.presets import preset_config, resolve_model
from trtllm_engines.runtime.sampling_params import SamplingParams

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}


def parse(**fields: object) -> ModelConfig:
    return config_from_hf({**BASE, **fields}, "m")


@pytest.fixture
def stablelm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The family of the folder beside this file, registered for one test."""
    families.discover()
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    presets = dict(families.PRESETS)
    for name in [name for name in sys.modules if name.startswith("stablelm_family")]:
        del sys.modules[name]
    import stablelm_family

    yield stablelm_family
    for name in families.PRESETS.keys() - presets.keys():
        del families.PRESETS[name]


def reference(fields: dict[str, Any], architecture: str, config: str) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(getattr(transformers, config)(**fields)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_a_family_in_another_package_builds_and_generates_what_transformers_does(stablelm: Any, tmp_path: Path) -> None:
    assert len(list(Path(stablelm.__file__).parent.glob("*.py"))) <= 4
    model = reference({**stablelm.PRESET, "use_qkv_bias": True}, stablelm.ARCHITECTURE, "StableLmConfig")
    model.save_pretrained(tmp_path / "model")
    prompts = [[5, 17, 80, 3], [9], list(range(1, 30))]
    with LLM(tmp_path / "model", precision="fp32", device="cpu", max_batch_size=4, max_num_tokens=16, max_seq_len=64, num_pages=20) as llm:
        assert llm.plan.config.rope.rotary_dim == 4
        outputs = llm.generate(prompts, SamplingParams(max_tokens=8, ignore_eos=True))
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert output.token_ids.tolist() == expected[0, len(prompt) :].tolist()


def test_a_registered_family_has_its_presets_and_its_refusals(stablelm: Any) -> None:
    assert preset_config("tiny-stablelm").rope.rotary_dim == 4
    assert config_from_hf({**stablelm.PRESET, "architectures": None, "model_type": "stablelm"}, "m").architecture == stablelm.ARCHITECTURE
    with pytest.raises(EngineError, match=r"m: config\.json: use_parallel_residual is true, which changes the model's results"):
        config_from_hf({**stablelm.PRESET, "use_parallel_residual": True}, "m")
    with pytest.raises(EngineError, match=r"supported are LlamaForCausalLM, .*StableLmForCausalLM"):
        parse(architectures=["BertModel"])
    with pytest.raises(ValueError, match="StableLmForCausalLM, tiny-stablelm is registered already"):
        families.register(stablelm.FAMILY)


def test_engines_are_refused_to_families_that_are_no_decoders(stablelm: Any) -> None:
    families.FAMILIES[stablelm.ARCHITECTURE] = replace(stablelm.FAMILY, decoder=False)
    with pytest.raises(EngineError, match="StableLmForCausalLM is not a decoder, and engines are built for decoders only"):
        trace(preset_config("tiny-stablelm"), "fp32", Profile(1, 16, 16))


def test_registering_and_parsing_load_no_torch() -> None:
    code = (
        "import sys; from trtllm_engines.models.presets import PRESETS, preset_config\n"
        "assert len([preset_config(name) for name in PRESETS]) == 9; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("where", ["rope_parameters", "top level"])
@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_a_partial_rotary_factor_is_treated_as_transformers_does(architecture: str, where: str, tmp_path: Path) -> None:
    factor = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}}
    given = factor if where == "rope_parameters" else {"partial_rotary_factor": 0.5, "rope_theta": 1e4}
    fields = {key: value for key, value in BASE.items() if key != "architectures"} | {"head_dim": 16, **given}
    model = reference(fields, f"{architecture}ForCausalLM", f"{architecture}Config")
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**fields, "architectures": [f"{architecture}ForCausalLM"]}))
    with LLM(tmp_path, precision="fp32", device="cpu", max_batch_size=1, max_num_tokens=32, max_seq_len=48, num_pages=5) as llm:
        (output,) = llm.generate([list(range(40, 60))], SamplingParams(max_tokens=12, ignore_eos=True))
    expected = model.generate(torch.tensor([list(range(40, 60))]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert output.token_ids.tolist() == expected[0, 20:].tolist()


@pytest.mark.parametrize(
    ("architecture", "missing", "field", "value"),
    [
        ("MistralForCausalLM", "sliding_window", "sliding_window", 4096),
        ("MistralForCausalLM", "num_key_value_heads", "num_kv_heads", 8),
        ("Qwen3ForCausalLM", "head_dim", "head_dim", 128),
        ("Qwen2ForCausalLM", "head_dim", "head_dim", 2),
        ("LlamaForCausalLM", "num_key_value_heads", "num_kv_heads", 32),
    ],
)
def test_an_absent_field_means_what_it_means_in_transformers(architecture: str, missing: str, field: str, value: int) -> None:
    given = {
        **BASE,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "architectures": [architecture],
        "sliding_window": 1,
        "head_dim": 16,
    }
    del given[missing]
    theirs = getattr(transformers, architecture.replace("ForCausalLM", "Config"))(**given)
    config = config_from_hf(given, "m")
    assert getattr(config, field) == value
    if field != "head_dim" or architecture != "Qwen2ForCausalLM":
        assert getattr(theirs, missing) == value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, which changes the model's results and is not supported"),
        ({"final_logit_softcap": 30}, "final_logit_softcap is 30"),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, "num_local_experts is 8"),
        ({"n_routed_experts": 64}, "n_routed_experts is 64"),
        ({"moe_intermediate_size": 1408}, "moe_intermediate_size is 1408"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0"),
        ({"attention_multiplier": 0.0078125}, "attention_multiplier is 0.0078125"),
        ({"logits_scaling": 8.0}, "logits_scaling is 8.0"),
        ({"residual_multiplier": 0.22}, "residual_multiplier is 0.22"),
        ({"logit_scale": 0.0625}, "logit_scale is 0.0625"),
        ({"scale_emb": 12}, "scale_emb is 12"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar is 256"),
        ({"clip_qkv": 8.0}, "clip_qkv is 8.0"),
        ({"is_causal": False}, "is_causal is false"),
        ({"alibi": True}, "alibi is true"),
        ({"no_rope_layers": [1, 1, 0]}, r"no_rope_layers is \[1, 1, 0\]"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size is 8192"),
        ({"sliding_window_pattern": 6}, "sliding_window_pattern is 6"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "only full_attention and sliding_attention are supported"),
        ({"architectures": ["MistralForCausalLM"], "attention_bias": True}, "attention_bias is true"),
        ({"model_type": "granite"}, "model_type is 'granite', but architecture LlamaForCausalLM goes with 'llama'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
            r"rope_parameters differ by layer \(full_attention has its own\)",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5 with rope scaling 'linear'; LlamaForCausalLM rotates whole heads",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"type": "linear", "factor": 4}}, "both given and differ"),
        ({"num_hidden_layers": 2.5}, r"num_hidden_layers is 2.5; it must be a whole number"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'; it must be a list of names"),
    ],
)
def test_what_would_change_results_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        parse(**fields)
    assert "\n" not in str(caught.value)


def test_fields_that_change_nothing_are_passed_over() -> None:
    harmless = {
        "attn_logit_softcapping": None,
        "num_experts": 0,
        "embedding_multiplier": 1.0,
        "logit_scale": 1,
        "is_causal": True,
        "alibi": False,
        "pretraining_tp": 2,
        "ffn_dim_multiplier": 1.3,
        "initializer_range": 0.02,
        "attention_dropout": 0.1,
        "max_window_layers": 28,
        "layer_types": ["full_attention", "full_attention"],
        "router_aux_loss_coef": 0.001,
        "model_type": "llama",
        "torch_dtype": "bfloat16",
    }
    assert parse(**harmless) == parse()
    both = {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert parse(**both).rope.theta == 5e5


def test_gptj_reads_its_rotary_dimensions_as_transformers_does() -> None:
    raw = {"architectures": ["GPTJForCausalLM"], "n_embd": 512, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 97}
    assert config_from_hf(raw, "m").rope.rotary_dim == transformers.GPTJConfig(n_embd=512, n_head=4).rotary_dim == 64
    with pytest.raises(EngineError, match="rotary_dim is None; it must be the number of dimensions"):
        config_from_hf({**raw, "rotary_dim": None}, "m")
    with pytest.raises(EngineError, match=r"rope_scaling is \{.*\}, which changes the model's results"):
        config_from_hf({**raw, "rope_scaling": {"type": "linear", "factor": 2}}, "m")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.expert_count", 8, "GGUF metadata of llama: expert_count is 8, which changes the model's results and is not supported"),
        ("llama.attn_logit_softcapping", 50.0, "attn_logit_softcapping is 50.0"),
        ("llama.embedding_scale", 12.0, "embedding_scale is 12.0"),
        ("llama.attention.causal", False, "attention.causal is false"),
        ("llama.some_new_scale", 2.0, "some_new_scale is 2.0"),
        ("llama.rope.dimension_count", 8, "rope.dimension_count is 8 and heads have 16 dimensions"),
        ("llama.attention.value_length", 32, "attention.value_length is 32 and keys have 16 dimensions"),
        ("llama.feed_forward_length", [96, 96, 64], r"feed_forward_length is \[96, 96, 64\]; it must be a whole number"),
    ],
)
def test_gguf_metadata_that_would_change_results_is_refused(key: str, value: Any, message: str, tmp_path: Path) -> None:
    write_with(tmp_path / "x.gguf", {key: value})
    with pytest.raises(EngineError, match=message) as caught:
        resolve_model(tmp_path / "x.gguf")
    assert "\n" not in str(caught.value)


def test_harmless_gguf_metadata_is_passed_over_and_a_window_is_kept(tmp_path: Path) -> None:
    write_with(
        tmp_path / "x.gguf", {"llama.vocab_size": 97, "llama.expert_count": 0, "llama.logit_scale": 1.0, "llama.attention.causal": True}
    )
    assert resolve_model(tmp_path / "x.gguf").config.sliding_window is None
    write_with(tmp_path / "y.gguf", {"llama.attention.sliding_window": 32})
    config = resolve_model(tmp_path / "y.gguf").config
    with pytest.raises(EngineError, match="sliding window of 32 tokens"):
        config.check_sequence_length(33)


def write_with(path: Path, metadata: dict[str, Any]) -> None:
    """A GGUF file of the test's Llama with more metadata."""
    write_gguf(path, {"model.embed_tokens.weight": torch.zeros(LLAMA.vocab_size, LLAMA.hidden_size)}, False, metadata=metadata)
    assert np.array_equal(gguf.GGUFReader(path).tensors[0].shape, [LLAMA.hidden_size, LLAMA.vocab_size])
