"""The page pool: no page handed out twice, none lost, sharing counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trtllm_engines.runtime.pages import PagePool


class PoolMachine(RuleBasedStateMachine):
    """Holders keep pages, share them and drop them; a dictionary of counts is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(17)
        self.held: list[np.ndarray] = []

    @precondition(lambda self: self.pool.free > 0)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.pool.free))
        pages = self.pool.take(count)
        assert len(set(pages.tolist())) == count
        in_use = {page for held in self.held for page in held.tolist()}
        assert not in_use & set(pages.tolist())
        assert 0 not in pages
        self.held.append(pages)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        pages = data.draw(st.sampled_from(self.held))
        part = pages[: data.draw(st.integers(1, len(pages)))]
        self.pool.share(part)
        self.held.append(part.copy())

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.pool.drop(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def counts_agree(self) -> None:
        counts = np.zeros(17, np.int32)
        for held in self.held:
            counts[held] += 1
        assert np.array_equal(counts, self.pool.refs)
        assert self.pool.free == 16 - np.count_nonzero(counts)
        assert self.pool.used == np.count_nonzero(counts)


TestPool = PoolMachine.TestCase


def test_more_pages_than_free_are_refused() -> None:
    pool = PagePool(4)
    with pytest.raises(RuntimeError, match="exhausted: 4 wanted, 3 free"):
        pool.take(4)


def test_a_page_released_twice_is_an_error() -> None:
    pool = PagePool(4)
    pages = pool.take(2)
    pool.drop(pages)
    with pytest.raises(RuntimeError, match="released twice"):
        pool.drop(pages)
    with pytest.raises(RuntimeError, match="cannot be shared"):
        pool.share(pages)


def test_a_pool_without_a_usable_page_is_refused() -> None:
    with pytest.raises(ValueError, match="holds nothing"):
        PagePool(1)
