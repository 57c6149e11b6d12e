"""Text and tokens: whole characters while streaming, chat templates, and unreadable files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf_files import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from trtllm_engines.checkpoints.model_tokenizer import model_tokenizer
from trtllm_engines.checkpoints.tokenizer import Tokenizer
from trtllm_engines.errors import EngineError

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "{{ bos_token }}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE without merges: every byte is a token, the hardest case for streaming."""
    path = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken("<s>", special=True)])
    raw.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}, "chat_template": TEMPLATE}))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


def test_round_trip_and_special_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<s>héllo")
    assert len(ids) == 7
    assert tokenizer.decode(ids) == "héllo"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>héllo"
    assert tokenizer.token_id("<s>") == tokenizer.vocab_size - 1 == 256
    assert tokenizer.token_id("absent") is None


@settings(deadline=None)
@given(text=st.text(max_size=30), cuts=st.lists(st.integers(1, 4), max_size=40))
def test_streamed_pieces_add_up_and_never_split_a_character(tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    ids = tokenizer.encode(text)
    stream = tokenizer.detokenizer()
    pieces, at = [], 0
    for cut in [*cuts, len(ids)]:
        pieces.append(stream.add(ids[at : at + cut]))
        at += cut
    assert all("�" not in piece for piece in pieces) or "�" in text
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


def test_half_a_character_is_held_back_then_flushed(tokenizer: Tokenizer) -> None:
    stream = tokenizer.detokenizer()
    first, second = tokenizer.encode("é")
    assert stream.add([first]) == ""
    assert stream.add([second]) == "é"
    assert stream.add([first]) == ""
    assert stream.flush() == "�"


def test_chat_template(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.render_chat(messages) == "<s>user: hi\nassistant:"
    assert tokenizer.render_chat(messages, add_generation_prompt=False) == "<s>user: hi\n"
    assert tokenizer.encode_chat(messages)[0] == tokenizer.token_id("<s>")
    with pytest.raises(EngineError, match=r"chat template of .* refuses these messages \(no robots\)"):
        tokenizer.render_chat([{"role": "robot", "content": "x"}])


def test_chat_templates_cannot_reach_python(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")
    with pytest.raises(EngineError, match="refuses these messages"):
        Tokenizer(tmp_path).render_chat([])


def test_named_templates_and_none(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    with pytest.raises(EngineError, match="has no chat template; give a plain prompt"):
        Tokenizer(tmp_path).render_chat([])
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert Tokenizer(tmp_path).render_chat([]) == "d"


def test_a_models_tokenizer_is_beside_its_weights_or_in_its_gguf_file(folder: Path, tmp_path: Path) -> None:
    beside, inside, none = model_tokenizer(folder), tmp_path / "with.gguf", tmp_path / "without.gguf"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = {"model": "gpt2", "pre": "qwen2", "tokens": [*alphabet, "ab"], "merges": ["a b"]}
    write_gguf(inside, {}, quantized=False, metadata={f"tokenizer.ggml.{name}": value for name, value in pairs.items()})
    write_gguf(none, {}, quantized=False)
    assert beside is not None
    assert beside.encode("ab") == [alphabet.index("a"), alphabet.index("b")]
    of_file = model_tokenizer(inside)
    assert of_file is not None
    assert of_file.encode("abb") == [256, alphabet.index("b")]
    assert model_tokenizer(none) is model_tokenizer(tmp_path) is model_tokenizer(None) is None


def test_unreadable_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(EngineError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(tmp_path)


def test_a_tokenizer_that_makes_its_library_panic_is_one_sentence(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = "x" * 9
    content["model"]["merges"] = [["a", "b"]]
    content["model"]["vocab"] = {"a": 0, "b": 1, "ab": 2}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(EngineError, match=r"tokenizer\.json cannot be read \("):
        Tokenizer(tmp_path)
    assert capfd.readouterr().err == ""
