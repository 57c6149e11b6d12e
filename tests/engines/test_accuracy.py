"""A loaded engine scored as it serves: its figures are the definition's, whatever the batch, and the task knows right from wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compiler_models import PROFILE
from safetensors.torch import load_file
from test_quantize import dense_inputs, model_folder
from torch import Tensor

from trtllm_engines.accuracy import likelihood as likelihoods
from trtllm_engines.accuracy.likelihood import likelihood
from trtllm_engines.accuracy.task import Question, exact_matches, questions
from trtllm_engines.compiler.graph import evaluate, trace
from trtllm_engines.errors import EngineError
from trtllm_engines.llm import LLM
from trtllm_engines.models.config import read_config

LENGTHS = (40, 9, 33, 2, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("accuracy") / "model", "llama")


@pytest.fixture(scope="module")
def windows(folder: Path) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    generator = np.random.default_rng(3)
    vocabulary = read_config(folder).vocab_size
    return [generator.integers(0, vocabulary, length).astype(np.int32) for length in LENGTHS]


@pytest.fixture(scope="module")
def engines(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LLM]]:
    """fp32 with room for two sequences and 16 tokens a step, and fp8_rowwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        sizes = {"max_batch_size": 2, "max_num_tokens": 16, "max_seq_len": 48, "num_pages": 6, "device": "cpu"}
        made = {precision: LLM(folder, precision=precision, **sizes) for precision in ("fp32", "fp8_rowwise")}
    yield made
    for llm in made.values():
        llm.close()


@pytest.fixture(scope="module")
def logits(folder: Path, windows: list[Any]) -> list[Tensor]:
    """Of the scored places of each window, by the model as written."""
    graph, tensors = trace(read_config(folder), "fp32", PROFILE), load_file(folder / "model.safetensors")
    whole = [evaluate(graph, tensors, dense_inputs(torch.from_numpy(ids)))[0] for ids in windows]
    return [each[max(1, len(each) // 2) - 1 : -1].log_softmax(1) for each in whole]


def test_the_loss_is_that_of_the_model_as_written(engines: dict[str, LLM], windows: list[Any], logits: list[Tensor]) -> None:
    """Second halves of windows of several lengths, more than fit at once, prompts longer than a step."""
    free = engines["fp32"].loop.scheduler.pool.free
    seen: list[int] = []
    ours, kept = likelihood(engines["fp32"], windows, progress=lambda stage, done, total: seen.append(done))
    assert kept is None
    assert ours.divergence is ours.agreed is None
    assert ours.tokens.tolist() == [20, 5, 17, 1, 20] == [len(each) for each in logits]
    targets = [torch.from_numpy(ids[len(ids) - len(each) :]).long() for ids, each in zip(windows, logits, strict=True)]
    expected = [-float(each.gather(1, target[:, None]).sum()) for each, target in zip(logits, targets, strict=True)]
    np.testing.assert_allclose(ours.loss, expected, rtol=1e-4)
    assert seen[-1] == sum(ours.tokens)
    assert engines["fp32"].loop.scheduler.pool.free == free
    again, _ = likelihood(engines["fp32"], windows)
    np.testing.assert_array_equal(again.loss, ours.loss)


def test_a_model_agrees_with_itself_and_codes_nearly_do(engines: dict[str, LLM], windows: list[Any], logits: list[Tensor]) -> None:
    _, reference = likelihood(engines["fp32"], windows, keep=True)
    assert reference is not None
    same, _ = likelihood(engines["fp32"], windows, reference)
    assert same.divergence is not None
    assert same.agreed is not None
    np.testing.assert_allclose(same.divergence, 0, atol=1e-6)
    assert same.agreed.sum() == same.tokens.sum()
    codes, mine = likelihood(engines["fp8_rowwise"], windows, reference, keep=True)
    assert codes.divergence is not None
    assert mine is not None
    whole = 0.0
    for number, each in enumerate(logits):
        for place, p in enumerate(each):
            row = mine.rows[number, len(windows[number]) - len(each) + place]
            q = torch.empty_like(p).scatter_(0, torch.from_numpy(mine.ids[row]).long(), torch.from_numpy(mine.logprobs[row]))
            whole += float((p.exp() * (p - q)).sum())
    assert codes.divergence.sum() == pytest.approx(whole, rel=1e-3)
    assert whole > 1e-3


def test_what_is_beyond_the_kept_tokens_counts_as_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), torch.tensor([[0.4, 0.2, 0.1, 0.3]]).log()
    coarse = likelihoods._divergence(p[:, :2], q[:, :2])
    expected = 0.5 * np.log(0.5 / 0.4) + 0.3 * np.log(0.3 / 0.2) + 0.2 * np.log(0.2 / 0.4)
    assert float(coarse) == pytest.approx(expected)
    assert float(coarse) < float((p.exp() * (p - q)).sum())


def test_what_cannot_be_scored_is_one_sentence(engines: dict[str, LLM]) -> None:
    with pytest.raises(EngineError, match="a window has 49 tokens and the engine takes 48"):
        likelihood(engines["fp32"], [np.zeros(49, np.int32)])
    with pytest.raises(EngineError, match=r"has no tokenizer, which the task needs"):
        exact_matches(engines["fp32"], questions(2))


def test_questions_have_one_answer_each() -> None:
    asked = questions(50, lines=9, seed=1)
    assert asked == questions(50, lines=9, seed=1) != questions(50, lines=9, seed=2)
    for question in asked:
        *listed, last = question.prompt.splitlines()
        assert len(set(listed[:9])) == 9
        assert len(set(listed[9:])) == 6
        assert set(listed[9:]) < set(listed[:9])
        (line,) = [line for line in listed if line.startswith(last)]
        assert line == f"{last} {question.answer}"


class Copier:
    """A "model" that gives the line it is asked for, or the one before it, one letter a token."""

    def __init__(self, wrong_every: int) -> None:
        self.wrong_every = wrong_every
        self.tokenizer = SimpleNamespace(
            encode=lambda text, add_special_tokens=True: [ord(letter) for letter in text], decode=lambda ids: "".join(map(chr, ids))
        )
        self.scheduler = SimpleNamespace(config=SimpleNamespace(max_seq_len=4096))
        self.requests: list[Any] = []
        self.loop, self.engine = self, SimpleNamespace(path="e")

    def add_request(self, prompt: list[int], sampling: Any, on_finish: Callable[[Any], None]) -> Any:
        text = "".join(map(chr, prompt))
        self.requests.append(SimpleNamespace(prompt=text, error="", output=np.empty(0), most=sampling.max_tokens, on_finish=on_finish))
        return self.requests[-1]

    def run(self) -> None:
        for number, request in enumerate(self.requests, 1):
            *listed, last = request.prompt.splitlines()
            place = next(place for place, line in enumerate(listed) if line.startswith(last))
            text = listed[place - (number % self.wrong_every == 0)].split("=")[1] + "\n"
            request.output = np.array([ord(letter) for letter in text[: request.most]])
            request.on_finish(request)


@pytest.mark.parametrize(("wrong_every", "right"), [(1000, 40), (4, 30)])
def test_exact_matches_are_counted(wrong_every: int, right: int) -> None:
    copier: Any = Copier(wrong_every)
    told: list[tuple[str, int, int]] = []
    assert sum(exact_matches(copier, questions(40), lambda *progress: told.append(progress))) == right
    assert told == [("task", count, 40) for count in range(1, 41)]
    assert exact_matches(Copier(1000), [Question("a = 12\na =", "1")]) == [False]  # type: ignore[arg-type]
