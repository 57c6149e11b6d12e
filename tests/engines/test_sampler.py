"""Sampling against plain NumPy definitions written per row, and against the distribution it claims to draw from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trtllm_engines.runtime.batch import SlotStart
from trtllm_engines.runtime.sampler import LOGPROBS, Sampler, collect_logprobs
from trtllm_engines.runtime.sampling_params import SamplingError, SamplingParams
from trtllm_kernels.references.philox import gumbel_noise

VOCAB = 23
EMPTY = np.empty(0, np.int32)


def start(slot: int, params: SamplingParams, prompt: list[int], output: list[int], seed: int = 5, stops: tuple[int, ...] = ()) -> SlotStart:
    return SlotStart(slot, np.array(prompt, np.int32), np.array(output, np.int32), params, seed, stops)


def sample(sampler: Sampler, logits: np.ndarray, slots: list[int], positions: list[int], num_logprobs: int = 0) -> list[int]:
    flags = sampler.flags(np.array(slots))
    result = sampler.sample(
        flags, torch.from_numpy(logits), torch.tensor(slots), torch.tensor(positions), longest=max(positions), num_logprobs=num_logprobs
    )
    return result.tokens.tolist()


def plain_choice(
    logits: np.ndarray, p: SamplingParams, prompt: list[int], output: list[int], seed: int, stops: tuple[int, ...] = ()
) -> tuple[int, np.ndarray]:
    """The chosen token and the distribution drawn from, for one row, the slow way."""
    z = logits.astype(np.float64).copy()
    for token, bias in dict(p.logit_bias).items():
        z[token] += bias
    known = prompt + output
    for word in p.bad_words:
        if list(word[:-1]) == known[len(known) - len(word) + 1 :] and len(known) >= len(word) - 1:
            z[word[-1]] = -np.inf
    if len(output) < p.min_tokens:
        z[list(stops)] = -np.inf
    for token in set(prompt) | set(output):
        z[token] = z[token] / p.repetition_penalty if z[token] > 0 else z[token] * p.repetition_penalty
    for token in set(output):
        z[token] -= p.presence_penalty + p.frequency_penalty * output.count(token)
    if p.temperature == 0:
        return int(z.argmax()), np.eye(len(z))[int(z.argmax())]
    z /= p.temperature
    order = sorted(range(len(z)), key=lambda i: (-z[i], i))
    kept = order[: p.top_k] if p.top_k else order
    weights = np.exp(z[kept] - z[kept].max())
    weights /= weights.sum()
    nucleus, total = [], 0.0
    for token, weight in zip(kept, weights, strict=True):
        if total >= p.top_p and p.top_p < 1:
            break
        nucleus.append(token)
        total += weight
    nucleus = [token for token in nucleus if z[token] >= z.max() + np.log(max(p.min_p, 1e-300))]
    final = np.full(len(z), -np.inf)
    final[nucleus] = z[nucleus]
    noise = gumbel_noise(torch.tensor([seed]), torch.tensor([len(prompt) + len(output)]), len(z))[0].numpy()
    probability = np.exp(final - final.max())
    return int((final + noise).argmax()), probability / probability.sum()


params_strategy = st.builds(
    SamplingParams,
    max_tokens=st.just(50),
    min_tokens=st.integers(0, 4),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 10, 100]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.5, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, -3.5, 0.0, 2.0, 8.0]), max_size=4),
    bad_words=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), max_size=3),
)
tokens_strategy = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(params_strategy, tokens_strategy, st.lists(st.integers(0, 4), max_size=8)), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_every_filter_in_any_mix_matches_the_plain_definition(rows: list[tuple[SamplingParams, list[int], list[int]]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    sampler = Sampler(len(rows) + 1, 40, "cpu")
    stops = (3, 7)
    sampler.start([start(slot, p, prompt, output, seed + slot, stops) for slot, (p, prompt, output) in enumerate(rows)])
    logits = rng.normal(0, 3, (len(rows), VOCAB)).astype(np.float32)
    positions = [len(prompt) + len(output) for _, prompt, output in rows]
    got = sample(sampler, logits, list(range(len(rows))), positions)
    for slot, (p, prompt, output) in enumerate(rows):
        assert got[slot] == plain_choice(logits[slot], p, prompt, output, seed + slot, stops)[0]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=1.3, top_k=5),
        SamplingParams(temperature=1.0, top_p=0.7),
        SamplingParams(temperature=1.0, min_p=0.1),
        SamplingParams(temperature=0.9, top_k=8, top_p=0.9, repetition_penalty=1.4, presence_penalty=0.3),
    ],
    ids=["plain", "cool", "top_k", "top_p", "min_p", "mixed"],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    """20,000 positions of one seed, chi-square against the probabilities, on tokens expected at least ten times."""
    sampling_words, prompt = 20_000, [1, 2]
    logits = np.random.default_rng(1).normal(0, 1.5, VOCAB).astype(np.float32)
    _, probability = plain_choice(logits, params, prompt, [], 11)
    sampler = Sampler(3, 2, "cpu")
    sampler.start([start(1, params, prompt, [], 11)])
    positions = list(range(2, sampling_words + 2))
    flags = sampler.flags(np.array([1]))
    tokens: list[int] = []
    for at in range(0, sampling_words, 2000):
        chunk = torch.tensor(positions[at : at + 2000])
        slots = torch.ones(len(chunk), dtype=torch.int64)
        rows = torch.from_numpy(np.tile(logits, (len(chunk), 1)))
        tokens += sampler._choose(flags, rows, slots, chunk, longest=2).tolist()
    counts = np.bincount(tokens, minlength=VOCAB)
    assert (counts[probability == 0] == 0).all()
    often = probability * sampling_words >= 10
    observed, expected = counts[often], probability[often] * sampling_words
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_a_row_is_drawn_alike_alone_and_in_any_batch() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (6, VOCAB)).astype(np.float32)
    kinds = [
        SamplingParams(temperature=1.0),
        SamplingParams(),
        SamplingParams(temperature=0.7, top_p=0.8),
        SamplingParams(repetition_penalty=1.5),
        SamplingParams(temperature=1.5, top_k=4, frequency_penalty=0.3),
        SamplingParams(temperature=1.0, min_p=0.2),
    ]
    sampler = Sampler(7, 40, "cpu")
    sampler.start([start(slot, p, [1, 2, 3], [4], slot) for slot, p in enumerate(kinds)])
    together = sample(sampler, logits, list(range(6)), [4] * 6)
    alone = [sample(sampler, logits[slot : slot + 1], [slot], [4])[0] for slot in range(6)]
    backwards = sample(sampler, logits[::-1].copy(), list(range(6))[::-1], [4] * 6)
    assert together == alone == backwards[::-1]


def test_large_batches_are_filtered_in_chunks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(3).normal(0, 2, (9, VOCAB)).astype(np.float32)
    sampler = Sampler(10, 40, "cpu")
    sampler.start([start(slot, SamplingParams(temperature=1.0, top_k=6), [1], [], slot) for slot in range(9)])
    whole = sample(sampler, logits, list(range(9)), [1] * 9)
    monkeypatch.setattr("trtllm_engines.runtime.sampler.CHUNK_ELEMENTS", 2 * VOCAB)
    assert sample(sampler, logits, list(range(9)), [1] * 9) == whole


def test_sampled_tokens_become_history_for_the_next_penalty() -> None:
    sampler = Sampler(2, 40, "cpu")
    sampler.start([start(0, SamplingParams(presence_penalty=2.0), [9], [])])
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, [4, 5, 6]] = [1.5, 1.0, 0.5]
    chosen = [sample(sampler, logits, [0], [1 + i])[0] for i in range(4)]
    assert chosen == [4, 5, 6, 0]


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = np.random.default_rng(4).normal(0, 2, (2, VOCAB)).astype(np.float32)
    sampler = Sampler(3, 40, "cpu")
    params = SamplingParams(temperature=2.0, top_k=2, repetition_penalty=1.7, logprobs=3, seed=1)
    sampler.start([start(0, params, [1], []), start(1, SamplingParams(), [1], [])])
    slots = np.array([0, 1])
    flags = sampler.flags(slots)
    assert flags & LOGPROBS
    wanted = sampler.num_logprobs(slots)
    assert wanted.tolist() == [3, -1]
    result = sampler.sample(flags, torch.from_numpy(logits), torch.tensor([0, 1]), torch.tensor([1, 1]), 1, 3)
    entries = collect_logprobs(wanted, *(tensor.numpy() for tensor in result.logprobs))
    assert entries[1] is None
    raw = logits[0] - np.log(np.exp(logits[0]).sum())
    assert entries[0] is not None
    assert entries[0].chosen == pytest.approx(raw[result.tokens[0]], abs=1e-5)
    best = np.argsort(-raw)[:3]
    assert list(entries[0].top) == best.tolist()
    assert list(entries[0].top.values()) == pytest.approx(raw[best].tolist(), abs=1e-5)


def test_default_requests_upload_nothing_and_cost_an_arg_max() -> None:
    sampler = Sampler(4, 40, "cpu")
    uploads: list[int] = []
    sampler._upload = lambda array: uploads.append(1) or torch.from_numpy(array)  # type: ignore[method-assign, assignment, func-returns-value]
    sampler.start([start(slot, SamplingParams(), [1], [], seed=slot) for slot in range(3)])
    assert not uploads
    assert sampler.flags(np.array([0, 1, 2])) == 0
    sampler.start([start(1, SamplingParams(temperature=1.0), [1], [])])
    assert uploads
    sampler.start([start(1, SamplingParams(), [1], [])])
    logits = np.random.default_rng(5).normal(0, 1, (1, VOCAB)).astype(np.float32)
    assert sample(sampler, logits, [1], [1]) == [int(logits.argmax())]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"min_tokens": 300}, "min_tokens must lie in 0..max_tokens"),
        ({"temperature": -0.1}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], not 0.0"),
        ({"top_p": 1.1}, "top_p must lie in"),
        ({"min_p": 1.5}, "min_p must lie in"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"presence_penalty": 3.0}, "presence_penalty must lie in"),
        ({"frequency_penalty": -3.0}, "frequency_penalty must lie in"),
        ({"seed": -1}, "seed must lie in"),
        ({"stop": ("",)}, "a stop string must not be empty"),
        ({"stop_token_ids": (-4,)}, "stop_token_ids must not be negative"),
        ({"logprobs": 21}, "logprobs must lie in 0..20"),
        ({"n": 0}, "n must lie in 1..128, not 0"),
        ({"n": 2}, "n is 2, and greedy answers would all be the same; give a temperature above 0"),
        ({"logit_bias": {3: 101.0}}, r"logit_bias must map up to 200 token ids to numbers in \[-100, 100\], not 3 to 101"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias must map"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias must map"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias must map"),
        ({"logit_bias": dict.fromkeys(range(201), 1.0)}, "logit_bias must map up to 200 token ids .* not 201"),
        ({"bad_words": [[]]}, r"bad_words must be texts, or lists of token ids, none of them empty, not \[\]"),
        ({"bad_words": [""]}, "bad_words must be texts"),
        ({"bad_words": [[-1]]}, "bad_words must be texts"),
        ({"bad_words": [5]}, "bad_words must be texts"),
        ({"bad_words": [[1] * 129]}, "at most 64 bad_words of 128 tokens together are taken, not 1 of 129"),
        ({"max_tokens": "5"}, "max_tokens must be a whole number, not '5'"),
        ({"max_tokens": 5.5}, "max_tokens must be a whole number, not 5.5"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"top_k": True}, "top_k must be a whole number, not True"),
        ({"ignore_eos": "yes"}, "ignore_eos must be True or False, not 'yes'"),
    ],
)
def test_a_parameter_out_of_range_is_one_sentence(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(SamplingError, match=sentence) as caught:
        replace(SamplingParams(), **change)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_single_stop_string_may_be_given_bare() -> None:
    assert SamplingParams(stop="END").stop == ("END",)  # type: ignore[arg-type]


def test_a_slots_draw_is_its_temperature_and_seed_and_is_forgotten_with_it() -> None:
    """What the plan's last op reads, bit by bit."""
    sampler = Sampler(4, 40, "cpu")
    seed = (5 << 32) | 0xFFFFFFF0
    sampler.start([start(2, SamplingParams(temperature=0.75, top_k=5), [1], [], seed=seed)])
    assert sampler.sampling_words[2].tolist() == [int(np.float32(0.75).view(np.int32)), -16, 5]
    assert not sampler.sampling_words[[0, 1, 3]].any()
    sampler.start([start(2, SamplingParams(), [1], [], seed=9)])
    assert not sampler.sampling_words.any()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("max_new_tokens", "max_new_tokens is another name: use max_tokens"),
        ("best_of", "best_of is not built; ask for n answers with logprobs"),
        ("use_beam_search", "use_beam_search is not built"),
        ("tempratur", "tempratur is unknown; known are max_tokens, min_tokens, temperature"),
    ],
)
def test_another_engines_parameter_says_what_to_use(name: str, sentence: str) -> None:
    with pytest.raises(SamplingError, match=sentence) as caught:
        SamplingParams(**{name: 1})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_bias_makes_a_token_sure_or_impossible_and_leaves_neighbours_alone() -> None:
    logits = np.zeros((3, VOCAB), np.float32)
    logits[:, 5] = 1.0
    sampler = Sampler(4, 40, "cpu")
    sampler.start(
        [start(0, SamplingParams(logit_bias={9: 3.0}), [1], []), start(1, SamplingParams(logit_bias={5: -100.0, 2: 0.5}), [1], [])]
    )
    sampler.start([start(2, SamplingParams(), [1], [])])
    assert sample(sampler, logits, [0, 1, 2], [1, 1, 1]) == [9, 2, 5]
    sampler.start([start(0, SamplingParams(), [1], [])])
    assert sample(sampler, logits, [0, 1, 2], [1, 1, 1]) == [5, 2, 5], "a slot's bias is forgotten with its request"


def test_a_bad_word_is_never_completed_as_tokens_come() -> None:
    """Bad are 7, and 5 6: after a 5 a 6 is forbidden, elsewhere it is not."""
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, [7, 6, 5, 4]] = [4.0, 3.0, 2.0, 1.0]
    sampler = Sampler(3, 40, "cpu")
    sampler.start([start(0, SamplingParams(bad_words=([7], [5, 6])), [1, 5], [])])
    assert sample(sampler, logits, [0], [2]) == [5], "the prompt ends with 5"
    assert sample(sampler, logits, [0], [3]) == [5]
    logits[0, 5] = 0.0
    assert sample(sampler, logits, [0], [4]) == [4]
    assert sample(sampler, logits, [0], [5]) == [6]
    sampler.start([start(0, SamplingParams(repetition_penalty=1.5), [1, 5], [])])
    sampler.start([start(1, SamplingParams(bad_words=([1],)), [2], [])])
    assert sample(sampler, np.repeat(logits, 2, axis=0), [0, 1], [2, 1])[0] == 7, "a slot's bad words are forgotten with its request"


def test_a_bad_word_longer_than_the_sequence_forbids_nothing() -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, 3] = 1.0
    sampler = Sampler(2, 40, "cpu")
    sampler.start([start(0, SamplingParams(bad_words=([0, 0, 3],)), [0], [])])
    assert sample(sampler, logits, [0], [1]) == [3]
