"""Chat templates: as transformers renders them, in a process that may be ended."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers

from trtllm_engines.checkpoints import chat_template
from trtllm_engines.checkpoints.tokenizer import Tokenizer
from trtllm_engines.errors import EngineError

EACH = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be <b>brief</b> & 'kind'."},
    {"role": "user", "content": 'Is \u00e9 \u4f60\u597d "fine"?'},
    {"role": "assistant", "content": "yes", "tool_calls": None, "reasoning": "because"},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "image"}, {"type": "text", "text": "two"}]}]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "a < b", "parameters": {"type": "object", "properties": {}}}}]


def folder(path: Path, template: Any, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    tokenizer = HfTokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(path / "tokenizer.json"))
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}}
    (path / "tokenizer_config.json").write_text(json.dumps({**stated, "chat_template": template, **config}))
    return path


@pytest.mark.parametrize(
    ("template", "arguments"),
    [
        (EACH, {}),
        ("{{ bos_token }}" + EACH + "{% if add_generation_prompt %}assistant:{% endif %}{{ eos_token }}", {}),
        ("{% if unk_token is defined %}U{% endif %}{% if pad_token %}P{% endif %}" + EACH, {}),
        ("{% set day = strftime_now('%Y-%m') %}{{ day }} " + EACH, {}),
        ("{% for m in messages %}{{ m['content'] }}{% break %}{% endfor %}", {}),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}", {}),
        ("{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}", {}),
        ("{% if tools is not none %}{{ tools | tojson }}{% endif %}{% if documents is none %}no{% endif %}" + EACH, {}),
        ("{{ tools | tojson(indent=2) }}", {"tools": TOOLS}),
        ("{{ documents | tojson }}", {"documents": [{"title": "t", "text": "x"}]}),
        ("{% for m in messages %}{{ m['content'] | tojson }}{{ m | tojson(sort_keys=true) }}{% endfor %}", {}),
        ("{% for m in messages %}{% if m.tool_calls is defined %}T{% endif %}{{ m.reasoning_content or '-' }}{% endfor %}", {}),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", {}),
        ("a\n  {% if messages %}\n  b\n{% endif %}\n", {}),
        ("{% if enable_thinking is defined and not enable_thinking %}off{% endif %}", {"enable_thinking": False}),
        ("{% macro say(m) %}{{ m.role | upper | trim }}{% endmacro %}{{ say(messages[0]) }}{{ messages[-1:] | length }}", {}),
        ("{{ messages | map(attribute='role') | list }}{{ 'a-b'.split('-')[1] }}{{ dict(a=1).items() | list }}", {}),
    ],
)
def test_templates_render_as_in_transformers(template: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    model = folder(tmp_path / "m", template)
    theirs = transformers.AutoTokenizer.from_pretrained(model).apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True, **arguments
    )
    ours = dict(arguments)
    known = {name: ours.pop(name) for name in ("tools", "documents") if name in ours}
    assert Tokenizer(model).render_chat(MESSAGES, **known, variables=ours) == theirs


def test_content_in_parts_and_named_templates(tmp_path: Path) -> None:
    parts = (
        "{% for m in messages %}{% for p in m.content %}{{ p.text if p.type == 'text' else '<' ~ p.type ~ '>' }}{% endfor %}{% endfor %}"
    )
    assert Tokenizer(folder(tmp_path / "m", parts)).render_chat(PARTS) == "one<image>two"
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t{{ tools | length }}"}]
    model = folder(tmp_path / "n", named)
    assert (Tokenizer(model).render_chat([]), Tokenizer(model).render_chat([], tools=TOOLS)) == ("d", "t1")
    other = Tokenizer(folder(tmp_path / "o", [{"name": "rag", "template": "r"}]))
    with pytest.raises(EngineError, match="has only templates named rag; give a plain prompt"):
        other.render_chat([])
    (model / "chat_template.jinja").write_text("file {{ strftime_now('%Y') }}")
    assert Tokenizer(model).render_chat([]) == f"file {datetime.now().year}"


def test_a_template_is_compiled_once(tmp_path: Path) -> None:
    tokenizer = Tokenizer(folder(tmp_path / "m", "{{ messages | length }}"))
    assert tokenizer.render_chat([]) == "0"
    process = tokenizer._compiled["default"]._process
    assert tokenizer.render_chat(PARTS) == "1"
    assert tokenizer._compiled["default"]._process is process


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('only system') }}", "refuses these messages (only system)"),
        ("{{ messages[5].content.x }}", "refuses these messages ("),
        ("{{ ().__class__.__mro__[1].__subclasses__() }}", "refuses these messages ("),
        ("{{ 1 // 0 }}", "refuses these messages ("),
        ("{{ messages + 1 }}", "refuses these messages ("),
        ("{{ missing | tojson }}", "refuses these messages ("),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses these messages ("),
        ("{{ 'a' * 100000000 }}", "more than 2097152 characters"),
        ("{{ 'a' * 10000000000 }}", "it takes more than 1 GiB"),
        ("{% for m in messages %}{{ m.append }}{{ messages.append(1) }}{% endfor %}", "refuses these messages ("),
        ("{% for", "cannot be compiled ("),
        ("{% nonsense %}", "cannot be compiled ("),
    ],
)
def test_a_template_that_fails_is_one_sentence(template: str, said: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer(folder(tmp_path / "m", template))
    for _ in range(2):
        with pytest.raises(EngineError) as caught:
            tokenizer.render_chat(PARTS)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_template_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.5)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer = Tokenizer(folder(tmp_path / "m", "{% if messages %}" + loop + "{% endif %}ok"))
    assert tokenizer.render_chat([]) == "ok"
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"refuses these messages \(it takes more than 0.5 s\)"):
        tokenizer.render_chat(PARTS)
    assert time.monotonic() - began < 30
    assert tokenizer.render_chat([]) == "ok"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"chat_template": 5}, "tokenizer_config.json: chat_template is 5; it must be a list"),
        ({"chat_template": ["a"]}, "chat_template.0 is 'a'; it must be an object"),
        ({"chat_template": [{"x": 1}]}, "chat_template.0.name is missing"),
        ({"bos_token": 7}, "bos_token is 7; it must be an object"),
        ({"eos_token": {"content": None}}, "eos_token.content is None; it must be text"),
    ],
)
def test_tokenizer_config_is_typed(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer(folder(tmp_path / "m", EACH, **config))
    with pytest.raises(EngineError) as caught:
        tokenizer.render_chat(PARTS)
    assert said in str(caught.value)


def test_messages_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="must be what JSON can hold"):
        Tokenizer(folder(tmp_path / "m", EACH)).render_chat([{"role": "user", "content": object()}])


def test_text_that_is_no_unicode_and_a_template_that_says_nothing(tmp_path: Path) -> None:
    tokenizer = Tokenizer(folder(tmp_path / "m", " "))
    with pytest.raises(EngineError, match="character 3 is half of a surrogate pair"):
        tokenizer.encode("caf\udce9")
    with pytest.raises(EngineError, match="gives no text for these messages"):
        tokenizer.encode_chat(PARTS)
