"""Every spelling of a configuration, the presets' true sizes, and the sentence each unusable model gets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trtllm_engines.compiler.graph import trace
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.engine.build import _copy_tokenizer
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig, check_sizes, config_from_hf, read_config
from trtllm_engines.models.presets import PRESETS, preset_config, resolve_model
from trtllm_engines.models.rope import cos_sin_table, inverse_frequencies

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def parse(**fields: object) -> ModelConfig:
    return config_from_hf({**BASE, **fields}, "m")


def test_old_and_new_spelling_of_rope_are_one() -> None:
    old = parse(rope_theta=5e5, rope_scaling={"type": "llama3", **LLAMA3})
    new = parse(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3})
    assert old.rope == new.rope
    assert old.rope.theta == 5e5


def test_explicit_head_dim_and_rope_default() -> None:
    assert parse(head_dim=32).q_size == 128
    assert parse(head_dim=None).head_dim == 16
    assert parse().rope.theta == 10000.0


def test_json_round_trip() -> None:
    for name in PRESETS:
        config = preset_config(name)
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("name", "billions"),
    [  # as published on the model cards
        ("llama-2-7b", 6.738),
        ("llama-3.1-8b", 8.030),
        ("llama-3.1-70b", 70.554),
        ("qwen2.5-7b", 7.616),
        ("qwen3-8b", 8.191),
        ("mistral-7b", 7.248),
        ("gptj-6b", 6.051),
        ("smollm2-135m", 0.1345),
    ],
)
def test_presets_have_their_models_parameter_counts(name: str, billions: float) -> None:
    graph = trace(preset_config(name), "bf16", Profile(1, 16, 16))
    count = sum(torch.Size(shape).numel() for shape in graph.checkpoint_shapes.values())
    assert count / 1e9 == pytest.approx(billions, rel=2e-4)


@pytest.mark.parametrize("scaling", ["default", "linear", "llama3"])
def test_rope_frequencies_are_transformers(scaling: str) -> None:
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "rope_type": scaling,
        "rope_theta": 5e5,
        **(LLAMA3 if scaling == "llama3" else {"factor": 4.0} if scaling == "linear" else {}),
    }
    ours = inverse_frequencies(parse(hidden_size=512, rope_parameters=parameters).rope)
    theirs_config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, rope_parameters=parameters, max_position_embeddings=131072
    )
    if scaling == "default":
        theirs = 1.0 / (5e5 ** (torch.arange(0, 128, 2).float() / 128))
    else:
        theirs, _ = ROPE_INIT_FUNCTIONS[scaling](theirs_config, torch.device("cpu"))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0.0)


def test_rope_table_rows_are_cosines_then_sines() -> None:
    rope = parse().rope
    table = cos_sin_table(rope, 5)
    assert table.shape == (5, 16)
    torch.testing.assert_close(table[3, :8], torch.cos(3 * inverse_frequencies(rope)))
    torch.testing.assert_close(table[3, 8:], torch.sin(3 * inverse_frequencies(rope)))


def test_generation_config_adds_end_of_sequence_ids(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BASE, "eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    assert read_config(tmp_path).eos_token_ids == (7, 9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["BertModel"]}, "m: architecture BertModel is not supported; supported are LlamaForCausalLM, Mistral.*GPTJ"),
        ({"architectures": None}, r"architecture \(none\) is not supported"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
            "rope scaling 'yarn' is not supported; supported are default, linear and llama3",
        ),
        ({"rope_scaling": {"type": "linear"}}, "config.json lacks 'factor'"),
        ({"num_hidden_layers": 0}, r"m: config\.json: num_layers is 0 but must be at least 1"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot be shared evenly among 3"),
        ({"hidden_size": "wide"}, r"m: config\.json: hidden_size is .wide.; it must be a whole number"),
    ],
)
def test_unusable_configurations_are_refused_in_one_sentence(fields: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        parse(**fields)
    assert "\n" not in str(caught.value)


def test_missing_field_is_named() -> None:
    with pytest.raises(EngineError, match=r"config\.json lacks 'vocab_size'"):
        config_from_hf({k: v for k, v in BASE.items() if k != "vocab_size"}, "m")


def test_sliding_window_is_fine_only_while_it_covers_the_sequence() -> None:
    mistral = parse(architectures=["MistralForCausalLM"], sliding_window=128)
    mistral.check_sequence_length(128)
    with pytest.raises(EngineError, match="sliding window of 128 tokens"):
        mistral.check_sequence_length(129)
    assert parse(architectures=["Qwen2ForCausalLM"], sliding_window=64, use_sliding_window=False).sliding_window is None


def test_sequences_beyond_the_models_positions_are_refused() -> None:
    with pytest.raises(EngineError, match="max_seq_len 257 is beyond the 256 positions"):
        parse().check_sequence_length(257)


def test_resolving_models(tmp_path: Path) -> None:
    assert resolve_model("tiny-llama").path is None
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    assert resolve_model(tmp_path).config.hidden_size == 64
    with pytest.raises(EngineError, match=r"unknown model 'lama-3.1-8b' \(did you mean llama-3.1-8b\?\)"):
        resolve_model("lama-3.1-8b")
    other = tmp_path / "model.bin"
    other.touch()
    with pytest.raises(EngineError, match=r"is a file but not a \.gguf one"):
        resolve_model(other)


@pytest.mark.parametrize("beside", [True, False], ids=["beside weights", "alone"])
def test_an_adapter_is_not_left_out_in_silence(tmp_path: Path, beside: bool) -> None:
    """transformers would add it to the weights of the folder, or to those of the base model that it names."""
    if beside:
        (tmp_path / "config.json").write_text(json.dumps(BASE))
        assert read_config(tmp_path).num_layers == 2
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    with pytest.raises(
        EngineError, match=r"holds an adapter \(adapter_config\.json\), which no engine here adds to its model's weights; merge the two"
    ):
        read_config(tmp_path)


def test_folder_without_config_and_broken_config(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"has no config\.json; point at a Hugging Face model folder"):
        resolve_model(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": [')
    with pytest.raises(EngineError, match=r"config\.json cannot be read as JSON"):
        resolve_model(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(EngineError, match="should hold a JSON object but holds a list"):
        resolve_model(tmp_path)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ((0, 16, 16, 32), "max_batch_size is 0 but must be at least 1"),
        ((1, -1, 16, 32), "max_num_tokens is -1"),
        ((1, 16, 0, 32), "max_seq_len is 0"),
        ((1, 16, 16, 33), "page_size is 33 but must be a power of two"),
        ((32, 16, 16, 32), "max_num_tokens 16 cannot hold one token of each of max_batch_size 32"),
    ],
)
def test_impossible_profiles_are_refused(ranges: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Profile(*ranges)


def test_every_frequency_has_a_divisor() -> None:
    config = preset_config("tiny-llama")
    check_sizes(replace(config, rope=replace(config.rope, scaling="factors", freq_factors=(1.0,) * 16)), "x.gguf")
    with pytest.raises(EngineError, match=r"x\.gguf: rope_freqs has 3 values; it must have 16, one a frequency"):
        check_sizes(replace(config, rope=replace(config.rope, scaling="factors", freq_factors=(1.0,) * 3)), "x.gguf")


def test_a_tokenizer_that_is_a_broken_link_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("gone.json")
    with pytest.raises(EngineError, match=r"tokenizer\.json is a link to a file that does not exist"):
        _copy_tokenizer(tmp_path, tmp_path / "engine")


def test_rotations_as_transformers_saves_them_of_a_model_that_states_none() -> None:
    """GPT-J has no parameters of its rotations; what transformers adds when it saves one is the default."""
    parameters = {"architectures": ["GPTJForCausalLM"], "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 64}
    parameters["rotary_dim"] = 8
    saved = config_from_hf({**parameters, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}, "m")
    assert saved.rope == config_from_hf(parameters, "m").rope
    for changed in ({"rope_theta": 5e5, "rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}):
        with pytest.raises(EngineError, match=r"rope_parameters is .* changes the model's results"):
            config_from_hf({**parameters, "rope_parameters": changed}, "m")
