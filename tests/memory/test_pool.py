"""The buffer pool: no two leases share a byte, and what was given back can be had again, in one piece."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import InvalidState, OutOfBuffers
from vqshm.memory import MAX_ADDRESS, BufferPool
from vqshm.memory.pool import GRAIN


def grains(count):
    return -(-count // GRAIN) * GRAIN


def largest_gap(base, size, leases):
    """The largest piece of [base, base + size) that no lease touches."""
    edges = sorted((address, address + grains(count)) for address, count in leases)
    gaps, at = [], base
    for start, end in edges:
        gaps.append(start - at)
        at = end
    return max([*gaps, base + size - at])


# A step is a size to allocate, or the number of a lease to release.
STEPS = st.lists(
    st.one_of(st.tuples(st.just("take"), st.integers(1, 700)), st.tuples(st.just("give"), st.integers(0, 1000))),
    max_size=80,
)


@given(st.integers(0, 200), st.integers(GRAIN * 2, 4096), STEPS)
def test_leases_never_overlap_and_are_refused_only_when_nothing_fits(base, size, steps):
    pool = BufferPool(base, size)
    start = grains(base)
    leases = []
    for step, number in steps:
        if step == "give" and leases:
            pool.release(leases.pop(number % len(leases))[0])
        elif step == "take":
            room = largest_gap(start, pool.size, leases)
            if room < grains(number):
                with pytest.raises(OutOfBuffers) as refused:
                    pool.allocate(number)
                assert refused.value.facts == {"wanted": grains(number), "free": pool.free, "size": pool.size}
                continue
            address = pool.allocate(number)
            assert address % GRAIN == 0
            assert start <= address
            assert address + number <= base + size
            assert all(a + grains(n) <= address or address + grains(number) <= a for a, n in leases)
            leases.append((address, number))
        assert pool.free == pool.size - sum(grains(count) for _, count in leases)
    for address, _ in leases:
        pool.release(address)
    assert pool.free == pool.size
    assert pool.allocate(pool.size) == start  # all of it, in one piece


def test_a_buffer_given_back_is_handed_out_first_while_it_is_warm():
    pool = BufferPool(0x1000, 0x1000)
    addresses = [pool.allocate(100) for _ in range(4)]
    for address in addresses:
        pool.release(address)
    assert pool.allocate(120) == addresses[-1]
    assert pool.allocate(128) == addresses[-2]


def test_a_refusal_says_whether_waiting_helps():
    pool = BufferPool(0, 256)
    address = pool.allocate(200)
    with pytest.raises(OutOfBuffers, match="give buffers back"):
        pool.allocate(64)
    with pytest.raises(OutOfBuffers, match="make the buffer area larger"):
        pool.allocate(257)
    with pytest.raises(BlockingIOError):
        pool.allocate(64)
    pool.release(address)
    assert pool.allocate(256) == 0


def test_what_is_not_out_cannot_be_given_back():
    pool = BufferPool(0, 1024)
    address = pool.allocate(64)
    for wrong in (address + 1, address + GRAIN, -1, 2**70):
        with pytest.raises(InvalidState):
            pool.release(wrong)
    pool.release(address)
    with pytest.raises(InvalidState):
        pool.release(address)
    assert pool.free == pool.size


@pytest.mark.parametrize("count", [0, -1, -(2**70)])
def test_nothing_cannot_be_allocated(count):
    with pytest.raises(ValueError, match="cannot allocate"):
        BufferPool(0, 1024).allocate(count)


@pytest.mark.parametrize("wrong", [None, "64", 64.0, b"64"])
def test_wrong_types_are_refused(wrong):
    pool = BufferPool(0, 1024)
    for call in (lambda: pool.allocate(wrong), lambda: pool.release(wrong), lambda: BufferPool(wrong, 1024)):
        with pytest.raises((TypeError, ValueError)):
            call()
    assert pool.free == pool.size


@pytest.mark.parametrize(
    ("base", "size"),
    [(0, 0), (0, GRAIN - 1), (1, GRAIN), (0, -1), (-GRAIN, 1024), (MAX_ADDRESS - 63, 128), (2**64, 1024), (0, 2**65)],
)
def test_a_range_that_cannot_be_is_refused(base, size):
    with pytest.raises(ValueError, match="a buffer pool"):
        BufferPool(base, size)
