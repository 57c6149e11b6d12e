"""Damaged files of every kind are read or refused in one sentence: no traceback, no hang, no run on memory."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from fuzz import try_case
from guard import Hang, fault_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kinds import KINDS

CASES = 300 // len(KINDS) + 1


@pytest.mark.parametrize("name", KINDS)
def test_the_valid_file_is_read(name: str, tmp_path: Path) -> None:
    _, read = KINDS[name].prepare(tmp_path)
    assert fault_of(read, ()) == ""


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=CASES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(chance=st.randoms(use_true_random=False))
def test_a_damaged_file_is_refused_in_one_sentence(name: str, chance: Random) -> None:
    fault, content = try_case(name, chance)
    assert not fault, f"{fault} for {content[:2000]!r}"


def test_the_guard_sees_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import guard

    def hang() -> None:
        while True:
            pass

    def refuse() -> None:
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr(guard, "SECONDS", 0.2)
    assert fault_of(hang, ()) == "hung for 0.2 s"
    assert fault_of(lambda: bytearray(3 * 2**30), ()).startswith("MemoryError")
    assert fault_of(refuse, (ValueError,)).startswith("refused in 2 lines")
    assert fault_of(refuse, ()).startswith("ValueError")
    assert not issubclass(Hang, Exception)
