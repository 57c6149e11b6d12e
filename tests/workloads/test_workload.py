"""Prompts, structure, and the content hash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_workloads import Workload, WorkloadError
from trtllm_workloads.arrivals import Poisson
from trtllm_workloads.lengths import Correlated, Fixed, Uniform, parse
from trtllm_workloads.structure import Conversations, PrefixTree, pick, with_adapters, with_priorities, with_slo
from trtllm_workloads.synthetic import fixed, generator, synthetic
from trtllm_workloads.tokens import TokenPrompts, Vocabulary, mix, stream_keys

LENGTHS = Correlated(Uniform(20, 80), Uniform(1, 30))


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    m = min(len(a), len(b))
    differ = np.flatnonzero(a[:m] != b[:m])
    return int(differ[0]) if len(differ) else m


def test_mixer_is_splitmix64() -> None:
    # First outputs of SplitMix64 seeded with 1234567, the published test vector.
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + golden * np.arange(1, 4, dtype=np.uint64)
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_tokens_are_pinned_so_that_datasets_stay_byte_identical_between_versions() -> None:
    assert fixed(2, 6, 3, seed=7).requests()[1].prompt.tolist() == PINNED


PINNED = [23476, 4668, 7285, 20643, 24563, 29826]


@given(size=st.integers(2, 200_000), seed=st.integers(0, 2**40), n=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_tokens_lie_in_the_vocabulary_and_rows_agree_with_bulk(size: int, seed: int, n: int) -> None:
    workload = synthetic(n, LENGTHS, vocabulary=Vocabulary(size), seed=seed)
    bulk = workload.requests()
    for row, request in enumerate(bulk):
        assert request.prompt is not None
        assert len(request.prompt) == request.input_tokens == workload.input_tokens[row]
        assert request.prompt.min() >= 0
        assert request.prompt.max() < size
        np.testing.assert_array_equal(workload[row].prompt, request.prompt)


def test_token_ids_are_uniform() -> None:
    tokens = fixed(1, 200_000, 1, vocab_size=164).requests()[0].prompt
    counts = np.bincount(tokens - 20, minlength=144)
    assert ((counts - 200_000 / 144) ** 2 / (200_000 / 144)).sum() < 220  # chi-square, 143 degrees of freedom, p about 4e-5


def test_streams_of_different_meaning_do_not_collide() -> None:
    keys = [stream_keys(3, domain, np.arange(1000)) for domain in ("request", "prefix0", "session")]
    assert len(np.unique(np.concatenate(keys))) == 3000


def test_prefix_tree_shares_exactly_its_paths() -> None:
    tree = PrefixTree(((3, 10), (4, 6)))
    requests = synthetic(300, Correlated(Uniform(17, 60), Fixed(4)), prefixes=tree).requests()
    shared = {common_prefix(requests[0].prompt, other.prompt) for other in requests[1:]}
    assert shared == {0, 10, 16}
    assert len({tuple(r.prompt[:10]) for r in requests}) == 3
    assert len({tuple(r.prompt[:16]) for r in requests}) == 12
    assert len({tuple(r.prompt) for r in requests}) == 300


def test_a_prefix_never_takes_the_whole_prompt() -> None:
    requests = synthetic(50, Correlated(Fixed(5), Fixed(1)), prefixes=PrefixTree(((1, 100),))).requests()
    assert all(len(r.prompt) == 5 for r in requests)
    assert len({tuple(r.prompt[:4]) for r in requests}) == 1
    assert len({int(r.prompt[4]) for r in requests}) > 40


@given(seed=st.integers(0, 1000), system=st.integers(0, 30), limit=st.sampled_from([0, 150, 400]))
@settings(max_examples=30, deadline=None)
def test_conversation_turns_extend_each_other(seed: int, system: int, limit: int) -> None:
    talk = Conversations(Uniform(1, 5), think_mean_s=2.0, system_tokens=system, max_tokens=limit)
    workload = synthetic(60, LENGTHS, conversations=talk, arrivals=Poisson(2.0), seed=seed)
    requests = workload.requests()
    for request in requests:
        assert len(request.prompt) == request.input_tokens
        if request.turn == 0:
            assert request.after == -1
            assert not np.isnan(request.arrival_s)
            assert request.think_s == 0
            continue
        before = requests[request.after]
        assert (before.session, before.turn) == (request.session, request.turn - 1)
        assert np.isnan(request.arrival_s)
        assert request.think_s > 0
        assert request.input_tokens > before.input_tokens + before.output_tokens
        np.testing.assert_array_equal(request.prompt[: before.input_tokens], before.prompt)
        if limit:
            assert request.input_tokens + request.output_tokens <= limit
    starts = [r for r in requests if r.turn == 0]
    assert all(common_prefix(starts[0].prompt, r.prompt) == system for r in starts[1:])


@pytest.mark.parametrize("how", ["uniform", "round-robin", "zipf"])
def test_picks_follow_their_rule(how: str) -> None:
    chosen = pick(30_000, 4, how, np.random.default_rng(0))  # type: ignore[arg-type]
    share = np.bincount(chosen, minlength=4) / 30_000
    expected = np.array([12, 6, 4, 3]) / 25 if how == "zipf" else np.full(4, 0.25)
    np.testing.assert_allclose(share, expected, atol=0.015)
    if how == "round-robin":
        assert chosen[:5].tolist() == [0, 1, 2, 3, 0]


def test_sessions_keep_their_adapter_and_share_is_respected() -> None:
    talk = synthetic(400, LENGTHS, conversations=Conversations(Fixed(4)))
    adapted = with_adapters(talk, 8, "uniform", generator(0, "lora"))
    for session in range(100):
        assert len(set(adapted.lora_id[talk.session == session].tolist())) == 1
    half = with_adapters(fixed(4000, 8, 8), 3, "uniform", generator(0, "lora"), share=0.5)
    assert (half.lora_id >= 0).mean() == pytest.approx(0.5, abs=0.04)


def test_priorities_and_limits_reach_the_request() -> None:
    workload = with_slo(with_priorities(fixed(2000, 8, 8), (1.0, 3.0), generator(1, "priority")), 200, None, 5000)
    assert (workload.priority == 0).mean() == pytest.approx(0.25, abs=0.04)
    ttft, tpot, e2e = workload[5].slo_ms
    assert (ttft, e2e) == (200, 5000)
    assert np.isnan(tpot)


def test_hash_is_of_the_content_not_of_how_it_was_made() -> None:
    drawn = fixed(20, 16, 4)
    stored = replace(drawn, name="other", prompts=TokenPrompts.of([r.prompt for r in drawn.requests()]))
    assert stored.content_hash == drawn.content_hash == fixed(20, 16, 4).content_hash


@pytest.mark.parametrize(
    "change",
    [
        lambda w: replace(w, output_tokens=w.output_tokens + 1),
        lambda w: replace(w, priority=np.ones(len(w), np.int32)),
        lambda w: with_slo(w, 100, None, None),
        lambda w: w.with_arrivals(np.arange(len(w), dtype=float)),
        lambda w: with_adapters(w, 2, "round-robin", np.random.default_rng(0)),
        lambda w: w.head(len(w) - 1),
        lambda w: w.take(np.arange(len(w))[::-1]),
        lambda w: fixed(20, 16, 4, seed=1),
        lambda w: fixed(20, 16, 4, vocab_size=31_999),
    ],
)
def test_hash_changes_with_anything_a_target_could_notice(change) -> None:  # type: ignore[no-untyped-def]
    workload = fixed(20, 16, 4)
    assert change(workload).content_hash != workload.content_hash


def test_changing_arrivals_leaves_prompts_alone() -> None:
    calm, hasty = (synthetic(30, LENGTHS, arrivals=Poisson(rate), seed=5) for rate in (1.0, 50.0))
    assert [r.prompt.tolist() for r in calm.requests()] == [r.prompt.tolist() for r in hasty.requests()]
    np.testing.assert_allclose(calm.arrival_s, hasty.arrival_s * 50)


def test_taking_requests_keeps_followers_pointing_at_their_predecessors() -> None:
    talk = synthetic(9, LENGTHS, conversations=Conversations(Fixed(3)), arrivals=Poisson(1.0))
    part = talk.take([1, 2, 3, 4])
    assert part.after.tolist() == [-1, 0, -1, 2]
    assert np.isnan(part.arrival_s).tolist() == [False, True, False, True]
    assert part.requests()[1].prompt.tolist() == talk[2].prompt.tolist()


def test_a_workload_that_makes_no_sense_is_refused() -> None:
    prompts = fixed(3, 4, 4).prompts
    with pytest.raises(WorkloadError, match="no output token"):
        Workload("w", prompts, np.full(3, 4, np.int32), np.array([1, 0, 1], np.int32))
    with pytest.raises(WorkloadError, match="does not come before"):
        Workload("w", prompts, np.full(3, 4, np.int32), np.full(3, 4, np.int32), after=np.array([-1, 2, -1]))
    with pytest.raises(WorkloadError, match="has 2 rows for 3"):
        Workload("w", prompts, np.full(2, 4, np.int32), np.full(3, 4, np.int32))
    with pytest.raises(WorkloadError, match="at least 1"):
        fixed(0, 4, 4)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            lambda: synthetic(10**12, Correlated(Fixed(8), Fixed(8))),
            "1000000000000 requests asked for; ask for .* at most 10,000,000",
        ),
        (lambda: parse("9" * 5000), r"'9{40}\.\.\.' is not a length"),
        (lambda: parse(f"uniform:1,{'9' * 4000}"), "largest length a number of more than 40 digits is beyond"),
        (lambda: Vocabulary(10**20), "vocabulary size 1000000000000.*2,147,483,647 token ids"),
        (lambda: pick(5, 10**20, "uniform", np.random.default_rng(0)), "at most 10,000,000"),
    ],
)
def test_numbers_beyond_what_is_kept_are_refused(asked: Callable[[], object], says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        asked()
