"""Looking at a word of the other side: it is seen, it ends, others run meanwhile, and vain looks grow short."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import GuestMemory
from vqshm.memory import Region, atomic
from vqshm.notify.spin import LEAST_SHARE, SPIN_NANOSECONDS, Pace, until_changed

LONG = 60 * 10**9  # nanoseconds: a test that needs them has failed


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.sampled_from([0, 2, 6]))
def test_a_word_that_differs_is_seen_and_one_that_does_not_is_not(old, now, offset):
    region = Region(bytearray(8))
    atomic.store_u16(region, offset, now)
    assert until_changed(region, offset, old, 0) == (now != old)
    assert Pace(0).look(region, offset, old) == (now != old)


@pytest.mark.parametrize("nanoseconds", [0, -1, -(2**62), 1, 1000])
def test_a_look_ends(nanoseconds):
    assert not until_changed(Region(bytearray(2)), 0, 0, nanoseconds)


@pytest.mark.parametrize("offset", [-2, -1, 7, 8, 2**31, 2**62])
def test_a_word_must_lie_in_the_window(offset):
    region = Region(bytearray(8))
    with pytest.raises(GuestMemory):
        until_changed(region, offset, 0, 0)
    with pytest.raises(GuestMemory):
        Pace(0).look(region, offset, 0)


@pytest.mark.parametrize("look", [lambda r: until_changed(r, 0, 0, LONG), lambda r: Pace(LONG).look(r, 0, 0)])
def test_another_thread_runs_and_is_seen(look):
    region = Region(bytearray(2))
    started = threading.Event()

    def change():
        started.wait()
        atomic.store_u16(region, 0, 1)

    thread = threading.Thread(target=change)
    thread.start()
    started.set()
    assert look(region)
    thread.join()


def test_another_process_is_seen(tmp_path):
    path = tmp_path / "word"
    path.write_bytes(bytes(4096))
    import mmap

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as memory:
        region = Region(memory)
        code = f"f=open({str(path)!r},'r+b',buffering=0); f.seek(2); f.write({struct.pack('<H', 7)!r})"
        process = subprocess.Popen([sys.executable, "-c", code])
        assert until_changed(region, 2, 0, LONG)
        assert atomic.load_u16(region, 2) == 7
        process.wait()
        del region


def test_a_pace_has_a_full_look_at_first():
    pace = Pace(1000)
    assert (pace.limit, pace.budget) == (1000, 1000)
    assert Pace().limit in {0, SPIN_NANOSECONDS}


@pytest.mark.fault("C12")
@given(st.integers(0, 10**6), st.lists(st.integers(0, 10**9), max_size=30))
def test_a_pace_learns_from_sleeps(limit, sleeps):
    pace = Pace(limit)
    for nanoseconds in sleeps:
        before = pace.budget
        pace.slept(nanoseconds)
        if nanoseconds < 2 * limit:
            assert pace.budget == limit
        else:
            assert pace.budget == max(before // 2, limit // LEAST_SHARE)
        assert limit // LEAST_SHARE <= pace.budget <= limit


@pytest.mark.fault("C12")
def test_long_sleeps_bring_a_look_down_to_its_least_share_and_a_short_one_brings_it_back():
    pace = Pace(1600)
    for _ in range(10):
        pace.slept(10**9)
    assert pace.budget == 100
    pace.slept(100)
    assert pace.budget == 1600


@pytest.mark.parametrize("limit", [-1, -(2**31)])
def test_a_negative_look_is_a_value_error(limit):
    with pytest.raises(ValueError, match="cannot look"):
        Pace(limit)


@pytest.mark.parametrize("wrong", [None, 3, b"ab", object()], ids=repr)
def test_a_look_needs_a_region(wrong):
    for look in (lambda: until_changed(wrong, 0, 0, 0), lambda: Pace(0).look(wrong, 0, 0)):
        with pytest.raises((TypeError, AttributeError)):
            look()


def test_a_look_that_shall_last_for_ever_does_not_end_at_once():
    """The largest number of nanoseconds, added to the clock, must not turn negative."""
    region = Region(bytearray(2))
    gate = threading.Event()

    def change():
        gate.wait()
        atomic.store_u16(region, 0, 1)

    thread = threading.Thread(target=change)
    thread.start()
    gate.set()
    seen = until_changed(region, 0, 0, 2**63 - 1)
    thread.join()
    assert seen
