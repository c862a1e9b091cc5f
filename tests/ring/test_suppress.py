"""need_event says whether a position was passed on the circle of 65536, and nothing else (C08) [2.7.10]."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.ring import need_event

U16 = st.integers(0, 0xFFFF)
EDGES = (0, 1, 2, 3, 127, 128, 255, 256, 32766, 32767, 32768, 32769, 65533, 65534, 65535)


def passed(event, new, old):
    """Whether `event` is one of the positions old, old + 1, … that lie before `new`, going round at 65536."""
    count = new - old if new >= old else new + 65536 - old
    return old <= event < old + count or old <= event + 65536 < old + count


@given(U16, U16, U16)
def test_an_event_is_needed_if_it_was_passed(event, new, old):
    assert need_event(event, new, old) is passed(event, new, old)


@given(U16, st.integers(0, 40), st.integers(-45, 45))
def test_an_event_is_needed_if_it_was_passed_nearby(old, count, distance):
    event, new = (old + distance) & 0xFFFF, (old + count) & 0xFFFF
    assert need_event(event, new, old) is (0 <= distance < count)


def test_an_event_is_needed_if_it_was_passed_at_every_edge():
    wrong = [triple for triple in itertools.product(EDGES, repeat=3) if need_event(*triple) is not passed(*triple)]
    assert not wrong


@pytest.mark.parametrize("old", [0, 1, 32767, 65530, 65535])
def test_the_events_needed_are_exactly_the_positions_passed(old):
    for count in (0, 1, 2, 7, 300, 32768, 65535):
        new = (old + count) & 0xFFFF
        assert sum(need_event(event, new, old) for event in range(65536)) == count


@pytest.mark.parametrize("old", range(0, 65536, 4369))
def test_the_boundaries_are_old_inclusive_and_new_exclusive(old):
    new = (old + 10) & 0xFFFF
    assert need_event(old, new, old)
    assert need_event((new - 1) & 0xFFFF, new, old)
    assert not need_event(new, new, old)
    assert not need_event((old - 1) & 0xFFFF, new, old)
    assert not need_event(old, old, old)


@given(U16, U16, st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_however_a_lap_is_cut_into_batches_the_sleeper_is_woken_once(start, event, cuts):
    bounds = sorted({0, 65536, *itertools.accumulate(cuts)} & set(range(65537)))
    woken = [
        need_event(event, (start + new) & 0xFFFF, (start + old) & 0xFFFF)
        for old, new in itertools.pairwise(bounds)
        if new - old < 65536
    ]
    assert sum(woken) == (1 if len(bounds) > 2 else 0)


@pytest.mark.parametrize("wrong", [None, "1", 1.0, b"1"])
def test_wrong_types_are_refused(wrong):
    for arguments in ((wrong, 1, 0), (0, wrong, 0), (0, 1, wrong)):
        with pytest.raises(TypeError):
            need_event(*arguments)


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 2, 255, 32767, 32768, 65534, 65535])
def test_every_event_at_every_seventh_position(count):
    for old in range(0, 65536, 257):
        new = (old + count) & 0xFFFF
        for event in range(0, 65536, 7):
            assert need_event(event, new, old) is passed(event, new, old)
