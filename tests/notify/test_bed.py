"""A bed: who wakes on it looks first of all; a bell that rang is silenced before the next sleep, and not missed."""

from __future__ import annotations

import os
import select

import pytest

from vqshm.errors import InvalidState
from vqshm.memory import Region, atomic
from vqshm.notify.bed import Bed


@pytest.fixture
def bed(epoll, bell):
    return Bed(epoll, bell)


@pytest.fixture
def region():
    return Region(bytearray(4))


def is_rung(bell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_work_ends_a_sleep_and_its_bell_is_silenced_before_the_next_one(bed, bell, region):
    atomic.store_u16(region, 2, 1)
    bell.signal()
    bed.make(None)
    assert bed.doze(region, 2, 0)
    assert is_rung(bell)
    bed.make(0)
    assert not is_rung(bell)
    assert not bed.doze(region, 2, 1)


def test_a_bell_without_work_is_silenced_at_once(bed, bell, region):
    bell.signal()
    bed.make(None)
    assert not bed.doze(region, 2, 0)
    assert not is_rung(bell)


def test_a_bell_that_rings_behind_make_is_heard(bed, bell, region):
    bell.signal()
    bed.make(None)
    atomic.store_u16(region, 2, 1)
    assert bed.doze(region, 2, 0)
    bed.make(None)
    bell.signal()
    assert not bed.doze(region, 2, 1)


def test_other_news_is_left_for_whoever_owns_the_epoll(bed, epoll, region):
    reader, writer = os.pipe()
    os.close(writer)
    epoll.register(reader, select.EPOLLIN)
    bed.make(None)
    assert not bed.doze(region, 2, 0)
    assert [fd for fd, _ in epoll.poll(0)] == [reader]
    os.close(reader)


def test_a_bell_that_was_closed_is_an_error(bed, bell, region):
    bell.close()
    with pytest.raises(InvalidState):
        bed.doze(region, 2, 0)
