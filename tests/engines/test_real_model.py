"""The compiler's work on real weights: SmolLM2-135M against transformers, and its perplexity on a fixed text."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from compiler_models import int32
from torch import Tensor
from torch.nn import functional

from trtllm_engines.checkpoints import open_weights
from trtllm_engines.checkpoints.tokenizer import Tokenizer
from trtllm_engines.compiler.graph import ModelGraph, evaluate, trace
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.models.presets import resolve_model

pytestmark = pytest.mark.model

TEXT = Path(__file__).parent / "data" / "pydoc_topics.txt"
WINDOW = 1024
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea,",
    "1 + 1 = 2, 2 + 2 = 4, 4 + 4 =",
    "Übermäßig viele Umlaute — und 漢字 🙂",
    "The quick brown fox jumps over the lazy dog. " * 12,
    "a",
    "<|im_start|>user\nWhat is a GPU?<|im_end|>\n<|im_start|>assistant\n",
)


@pytest.fixture(scope="module")
def dense(smollm2: Path) -> tuple[ModelGraph, dict[str, Tensor]]:
    graph = trace(resolve_model(smollm2).config, "fp32", Profile(1, WINDOW, WINDOW))
    source = open_weights(smollm2)
    cpu = torch.device("cpu")
    return graph, {name: source.read(name, shape, torch.float32, cpu) for name, shape in graph.checkpoint_shapes.items()}


def inputs(prompts: list[list[int]], logit_rows: Tensor) -> dict[str, Tensor]:
    return {
        "token_ids": int32([token for prompt in prompts for token in prompt]),
        "positions": torch.cat([torch.arange(len(prompt), dtype=torch.int32) for prompt in prompts]),
        "query_start": int32([0, *torch.tensor([len(prompt) for prompt in prompts]).cumsum(0).tolist()]),
        "logit_rows": logit_rows,
    }


def test_logits_are_transformers(smollm2: Path, dense: tuple[ModelGraph, dict[str, Tensor]]) -> None:
    """Eight prompts as one ragged batch, every position, largest difference under 1e-3; the tokenizers agree as well."""
    import transformers

    tokenizer = Tokenizer(smollm2)
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2)
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    assert prompts == [theirs(text)["input_ids"] for text in PROMPTS]
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    rows = torch.arange(sum(map(len, prompts)), dtype=torch.int32)
    ours = evaluate(*dense, inputs(prompts, rows))[0]
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([prompt])).logits[0] for prompt in prompts])
    assert (ours - expected).abs().max() < 1e-3


def test_chat_template_is_transformers(smollm2: Path) -> None:
    import transformers

    messages = [{"role": "user", "content": "What is a GPU?"}]
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert Tokenizer(smollm2).render_chat(messages) == theirs


@pytest.mark.parametrize(("window", "known"), [(0, 12.742), (1, 14.042)])
def test_perplexity_is_the_known_one(smollm2: Path, dense: tuple[ModelGraph, dict[str, Tensor]], window: int, known: float) -> None:
    """Windows of 1,024 tokens, each scored on its last 1,023: what transformers gives in fp32."""
    ids = Tokenizer(smollm2).encode(TEXT.read_text(encoding="utf-8"))[window * WINDOW : (window + 1) * WINDOW]
    logits = evaluate(*dense, inputs([ids], torch.arange(WINDOW - 1, dtype=torch.int32)))[0]
    assert math.exp(float(functional.cross_entropy(logits, torch.tensor(ids[1:])))) == pytest.approx(known, abs=1e-3)
