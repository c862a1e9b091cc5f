"""need_event says whether a position was passed on the circle of 65536, and nothing else (C08) [2.7.10]."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vqshm.ring
from vqshm.ring import need_event

U16 = st.integers(0, 0xFFFF)
EDGES = (0, 1, 2, 3, 127, 128, 255, 256, 32766, 32767, 32768, 32769, 65533, 65534, 65535)


def passed(event, new, old):
    """Whether `event` is one of the positions old, old + 1, … that lie before `new`, going round at 65536."""
    count = new - old if new >= old else new + 65536 - old
    return old <= event < old + count or old <= event + 65536 < old + count


def source_of_need_event():
    """need_event as it is written, also where the compiled one is installed."""
    path = Path(vqshm.ring.__file__).with_name("suppress.py")
    spec = importlib.util.spec_from_file_location("vqshm_suppress_source", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert inspect.isfunction(module.need_event)
    return module.need_event


class Position:
    """A position of which nothing can be asked but how far it is from another one."""

    def __init__(self, at):
        self._at = at

    def __sub__(self, other):
        return self._at - other._at


@pytest.mark.fault("C08")
@given(U16, U16, U16, st.integers(-(1 << 40), 1 << 40))
def test_only_the_distances_between_the_positions_count(event, new, old, turn):
    """So the 2^48 triples are 2^32 pairs of distances, each 65536 times: see the next test."""
    turned = [Position(position + turn) for position in (event, new, old)]
    assert source_of_need_event()(*turned) is need_event(event, new, old)
    assert need_event(*((position + turn) & 0xFFFF for position in (event, new, old))) is need_event(event, new, old)


@pytest.mark.fault("C08")
@pytest.mark.long
def test_an_event_is_needed_if_it_was_passed_at_all_distances():
    """All of them: 65536 events for each of 65536 new positions, with old at 0."""
    numpy = pytest.importorskip("numpy")
    asked = source_of_need_event()
    events = numpy.arange(65536, dtype=numpy.uint16)
    expected = numpy.zeros(65536, dtype=bool)  # of the events 0 .. new - 1
    for new in range(65536):
        assert numpy.array_equal(asked(events, numpy.uint16(new), numpy.uint16(0)), expected), new
        expected[new] = True


@given(U16, U16, U16)
def test_an_event_is_needed_if_it_was_passed(event, new, old):
    assert need_event(event, new, old) is passed(event, new, old)


@given(U16, st.integers(0, 40), st.integers(-45, 45))
def test_an_event_is_needed_if_it_was_passed_nearby(old, count, distance):
    event, new = (old + distance) & 0xFFFF, (old + count) & 0xFFFF
    assert need_event(event, new, old) is (0 <= distance < count)


@pytest.mark.fault("C08")
def test_an_event_is_needed_if_it_was_passed_at_every_edge():
    wrong = [triple for triple in itertools.product(EDGES, repeat=3) if need_event(*triple) is not passed(*triple)]
    assert not wrong


@pytest.mark.parametrize("old", [0, 1, 32767, 65530, 65535])
def test_the_events_needed_are_exactly_the_positions_passed(old):
    for count in (0, 1, 2, 7, 300, 32768, 65535):
        new = (old + count) & 0xFFFF
        assert sum(need_event(event, new, old) for event in range(65536)) == count


@pytest.mark.fault("C08")
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
