"""The Python API, over real (if tiny) engines."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from trtllm_engines import LLM, SamplingParams
from trtllm_engines.accuracy.teacher import Teacher
from trtllm_engines.errors import EngineError

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTLLM_BENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def llm(cache: Path) -> Iterator[LLM]:
    with LLM("tiny-llama", device="cpu", max_batch_size=4, max_num_tokens=64, max_seq_len=128) as llm:
        yield llm


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys; from trtllm_engines import SamplingParams; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(p for p in sys.path if p)})


def test_one_prompt_or_many_in_any_form(llm: LLM) -> None:
    alone = llm.generate([5, 6, 7], GREEDY)
    as_array = llm.generate(np.array([5, 6, 7]), GREEDY)
    many = llm.generate([[1, 2], [5, 6, 7], [9]], [GREEDY, GREEDY, SamplingParams(max_tokens=3, ignore_eos=True)])
    assert len(alone) == len(as_array) == 1
    assert alone[0].token_ids.tolist() == as_array[0].token_ids.tolist() == many[1].token_ids.tolist()
    assert [len(output.token_ids) for output in many] == [12, 12, 3]
    assert [output.finish_reason for output in many] == ["length"] * 3


def test_scales_of_an_int8_cache_follow_the_pages_of_their_sequence(cache: Path) -> None:
    """Sequences that wait for each other's pages, and are computed in chunks, choose what each would choose alone: the best token, or one
    as good but for rounding. Equal tokens are not demanded: where chunks end decides which keys a chunk reads as codes, and a product of
    one row may be rounded otherwise than one of four."""
    prompts = [[5, 6, 7], list(range(40, 75)), [9], list(range(100, 150))]
    sizes = {"max_batch_size": 4, "max_num_tokens": 16, "max_seq_len": 64}
    with LLM("tiny-llama", device="cpu", precision="fp16", kv_dtype="int8", num_pages=6, **sizes) as llm:
        requests = [llm.loop.add_request(prompt, GREEDY) for prompt in prompts]
        llm.loop.run()
        behind = [behind_the_best(llm, prompt, request.output.tolist()) for prompt, request in zip(prompts, requests, strict=True)]
    assert [len(request.output) for request in requests] == [12] * 4
    assert all(len(one) >= 7 for one in behind)
    assert max(map(max, behind)) < 0.05


def behind_the_best(llm: LLM, prompt: list[int], output: list[int]) -> list[float]:
    """By how much the logit of each token of `output`, among those of the sequence's second half, is below the best, the sequence alone
    in the engine. Logits of tiny-llama's random weights have a standard deviation of 1."""
    gaps = list[float]()
    for scored in Teacher(llm).run([np.array(prompt + output, np.int32)]):
        logits = scored.logits.float()
        chosen = logits[range(len(scored.targets)), scored.targets]
        gaps += (logits.amax(-1) - chosen)[scored.positions >= len(prompt)].tolist()
    return gaps


def test_a_bad_prompt_fails_alone(llm: LLM) -> None:
    good, empty, long, unknown = llm.generate([[1, 2], [], [1] * 200, [9999]], GREEDY)
    assert good.error is None
    assert len(good.token_ids) == 12
    assert empty.error == "the prompt is empty; at least one token is needed"
    assert long.error is not None
    assert "200 tokens" in long.error
    assert unknown.error == "token id 9999 of the prompt is outside the vocabulary (0..511)"
    assert [o.finish_reason for o in (empty, long, unknown)] == ["error"] * 3


def test_a_seed_gives_the_same_tokens_in_any_company(llm: LLM) -> None:
    seeded = SamplingParams(max_tokens=12, temperature=1.0, seed=42, ignore_eos=True)
    alone = llm.generate([3, 4], seeded)[0].token_ids.tolist()
    company = llm.generate([[1], [3, 4], [2] * 50], [GREEDY, seeded, SamplingParams(temperature=2.0, max_tokens=9)])
    assert company[1].token_ids.tolist() == alone
    unseeded = SamplingParams(max_tokens=12, temperature=1.0, ignore_eos=True)
    assert llm.generate([3, 4], unseeded)[0].token_ids.tolist() != llm.generate([3, 4], unseeded)[0].token_ids.tolist()


def test_a_stream_gives_each_token_then_the_whole(llm: LLM) -> None:
    chunks = list(llm.stream([5, 6, 7], GREEDY))
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    assert chunks[-1].output is not None
    assert tokens == chunks[-1].output.token_ids.tolist() == llm.generate([5, 6, 7], GREEDY)[0].token_ids.tolist()
    assert all(chunk.output is None for chunk in chunks[:-1])


def test_closing_a_stream_cancels_its_request(llm: LLM) -> None:
    before = len(llm.loop.log)
    stream = llm.stream([5, 6, 7], SamplingParams(max_tokens=120, ignore_eos=True))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while not llm.loop.idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(llm.loop.log) - before < 120
    assert llm.loop.scheduler.num_running == 0
    assert llm.loop.scheduler.pool.used == 0


def test_async_streams_share_the_batch(llm: LLM) -> None:
    async def collect(prompt: list[int]) -> list[int]:
        return [token async for chunk in llm.generate_async(prompt, GREEDY) for token in chunk.token_ids]

    async def both() -> list[list[int]]:
        return await asyncio.gather(collect([5, 6, 7]), collect([8, 9]))

    streamed = asyncio.run(both())
    assert streamed == [output.token_ids.tolist() for output in llm.generate([[5, 6, 7], [8, 9]], GREEDY)]


def test_the_second_start_finds_the_engine_in_the_cache(llm: LLM, cache: Path) -> None:
    folders = sorted((cache / "engines").iterdir())
    stages: list[str] = []
    again = LLM(
        "tiny-llama", device="cpu", max_batch_size=4, max_num_tokens=64, max_seq_len=128, progress=lambda stage, *_: stages.append(stage)
    )
    assert stages == []
    assert again.engine.path == llm.engine.path
    LLM("tiny-llama", device="cpu", max_batch_size=4, max_num_tokens=64, max_seq_len=128, seed=1)
    assert len(list((cache / "engines").iterdir())) == len(folders) + 1


def test_an_engine_folder_runs_with_smaller_sizes_but_not_larger(llm: LLM) -> None:
    with LLM(llm.engine.path, device="cpu", max_batch_size=2, max_seq_len=32) as small:
        assert small.loop.scheduler.config.max_batch_size == 2
        assert small.generate([5, 6, 7], GREEDY)[0].token_ids.tolist() == llm.generate([5, 6, 7], GREEDY)[0].token_ids.tolist()
    with pytest.raises(EngineError, match=r"max_batch_size 99 is more than the 4 engine .* was built for"):
        LLM(llm.engine.path, device="cpu", max_batch_size=99)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'; choose auto, cuda or cpu"),
        ({"kv_cache_fraction": 0.0}, "kv_cache_fraction must lie in"),
        ({"policy": "lifo"}, "unknown batching policy 'lifo'"),
        ({"precision": "fp7"}, "fp7"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"tensor_parallel_size": 2}, "LLM has no option tensor_parallel_size; use tp"),
        ({"max_model_len": 99}, "LLM has no option max_model_len; use max_seq_len"),
        ({"colour": "red"}, "LLM has no option colour; see docs/python-api.md"),
    ],
)
def test_bad_options_are_one_sentence(cache: Path, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence) as caught:
        LLM("tiny-llama", **{"device": "cpu", "max_batch_size": 4, "max_num_tokens": 64, "max_seq_len": 128, **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_text_without_a_tokenizer_and_mismatched_parameters_raise(llm: LLM) -> None:
    with pytest.raises(EngineError, match="has no tokenizer; give prompts as token ids"):
        llm.generate("hello", GREEDY)
    with pytest.raises(EngineError, match="2 prompts came with 1 sampling parameters"):
        llm.generate([[1], [2]], [GREEDY])


def test_n_answers_are_those_of_n_seeds(llm: LLM) -> None:
    drawn = SamplingParams(max_tokens=8, temperature=1.5, seed=7, ignore_eos=True, n=3)
    outputs = llm.generate([[1, 2], [5, 6, 7]], [drawn, GREEDY])
    assert [(output.index, output.prompt_token_ids.tolist()) for output in outputs] == [
        (0, [1, 2]),
        (1, [1, 2]),
        (2, [1, 2]),
        (0, [5, 6, 7]),
    ]
    for index, output in enumerate(outputs[:3]):
        alone = llm.generate([1, 2], SamplingParams(max_tokens=8, temperature=1.5, seed=7 + index, ignore_eos=True))
        assert output.token_ids.tolist() == alone[0].token_ids.tolist()
    assert len({tuple(output.token_ids.tolist()) for output in outputs[:3]}) == 3
    free = llm.generate([1, 2], SamplingParams(max_tokens=8, temperature=1.5, ignore_eos=True, n=4))
    assert len({tuple(output.token_ids.tolist()) for output in free}) == 4


def test_a_stream_and_a_chat_have_one_answer(llm: LLM) -> None:
    several = SamplingParams(temperature=1.0, n=2)
    with pytest.raises(EngineError, match=r"n is 2, and a stream or a chat has one answer; LLM.generate gives several"):
        next(iter(llm.stream([1], several)))
    with pytest.raises(EngineError, match="n is 2"):
        llm.chat([{"role": "user", "content": "x"}], several)


def test_a_bias_of_100_makes_a_token_sure_and_a_bad_word_is_never_made(llm: LLM) -> None:
    sure = llm.generate([5, 6, 7], SamplingParams(max_tokens=6, logit_bias={42: 100}, ignore_eos=True))[0]
    assert sure.token_ids.tolist() == [42] * 6
    free = llm.generate([5, 6, 7], GREEDY)[0].token_ids.tolist()
    first, pair = free[0], tuple(free[1:3])
    bounded = llm.generate([5, 6, 7], SamplingParams(max_tokens=12, ignore_eos=True, bad_words=([first], pair)))[0].token_ids.tolist()
    assert first not in bounded
    without_pair = llm.generate([5, 6, 7], SamplingParams(max_tokens=12, ignore_eos=True, bad_words=(pair,)))[0].token_ids.tolist()
    assert without_pair[:2] == free[:2], "its first token is allowed"
    assert without_pair[2] != free[2]
    assert pair not in list(pairwise(without_pair))


def test_what_a_request_asks_of_unknown_tokens_fails_alone(llm: LLM) -> None:
    asked = [SamplingParams(logit_bias={9999: 1}), SamplingParams(bad_words=([5, 9999],)), GREEDY]
    bias, word, good = llm.generate([[1], [1], [1]], asked)
    assert bias.error == "token id 9999 of logit_bias is outside the vocabulary (0..511)"
    assert word.error == "token id 9999 of bad_words is outside the vocabulary (0..511)"
    assert good.error is None
    with pytest.raises(EngineError, match="has no tokenizer; give bad_words as lists of token ids"):
        llm.generate([1], SamplingParams(bad_words=("word",)))


def test_a_cache_that_holds_no_page_is_refused(llm: LLM) -> None:
    from trtllm_engines.runtime.device_state import pages_within

    with pytest.raises(EngineError, match="no room for the KV cache"):
        pages_within(llm.plan, 1000)


@pytest.mark.model
def test_smollm2_answers_in_text(smollm2: Path, cache: Path) -> None:
    with LLM(smollm2, device="cpu", max_batch_size=4, max_num_tokens=128, max_seq_len=256) as llm:
        answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}], SamplingParams(max_tokens=24))
        assert "Paris" in answer.text
        assert answer.finish_reason == "stop"
        params = SamplingParams(max_tokens=24, stop=("Pa",))
        stopped = llm.generate("The capital of France is the city of", params)[0]
        chunks = list(llm.stream("The capital of France is the city of", params))
        assert stopped.finish_reason == "stop"
        assert "Pa" not in stopped.text
        assert "".join(chunk.text for chunk in chunks) == stopped.text
        question = [{"role": "user", "content": "What is the capital of France?"}]
        assert "Paris" not in llm.chat(question, SamplingParams(max_tokens=24, bad_words=("Paris",))).text


@pytest.mark.usefixtures("cache")
def test_the_pages_examples_run_as_they_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "python-api.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        compiled = compile(block, "docs/python-api.md", "exec")
        if '"smollm2"' not in block:
            exec(compiled, names)
    said = capsys.readouterr().out
    assert len(blocks) >= 9
    assert "invalid sampling parameters: max_new_tokens is another name: use max_tokens" in said
    assert said.count("[") > 5
