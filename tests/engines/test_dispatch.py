"""Requests are shared out evenly over replicas, whatever they are and in whichever order they end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trtllm_engines.runtime.dispatch import Dispatcher


@given(st.integers(1, 5), st.integers(1, 40), st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 10**6)), max_size=200))
def test_no_replica_ever_holds_more_than_its_share_of_those_in_flight(replicas: int, most: int, arriving: list[tuple[int, int]]) -> None:
    """`most` in flight: the next is sent when one, drawn at random, has ended."""
    dispatcher, held = Dispatcher(replicas), list[tuple[int, int]]()
    for tokens, drawn in arriving:
        if len(held) == most:
            dispatcher.done(*held.pop(drawn % most))
        held.append((dispatcher.take(tokens), tokens))
        assert max(dispatcher.requests) <= -(-most // replicas)
        assert dispatcher.requests == [sum(replica == one for replica, _ in held) for one in range(replicas)]
        assert dispatcher.tokens == [sum(tokens for replica, tokens in held if replica == one) for one in range(replicas)]


@given(st.integers(1, 5), st.lists(st.integers(1, 4000), min_size=1, max_size=200))
def test_requests_that_come_together_are_shared_out_evenly(replicas: int, lengths: list[int]) -> None:
    dispatcher = Dispatcher(replicas)
    for tokens in lengths:
        dispatcher.take(tokens)
    assert max(dispatcher.requests) - min(dispatcher.requests) <= 1
    assert sum(dispatcher.tokens) == sum(lengths)


def test_ties_go_to_fewer_tokens_and_then_to_the_first() -> None:
    dispatcher = Dispatcher(3)
    assert [dispatcher.take(tokens) for tokens in (100, 5, 50)] == [0, 1, 2]
    assert [dispatcher.take(1) for _ in range(3)] == [1, 2, 0]
    dispatcher.done(2, 1)
    assert dispatcher.take(9) == 2
