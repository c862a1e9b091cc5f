"""The ordering seam's way of messages: all bytes of any buffer go in and out, and nothing beside them changes."""

from __future__ import annotations

import array
import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import GuestMemory
from vqshm.memory import Region, atomic

HUGE = (2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
TOO_BIG = (2**63, 2**64, 2**70, -(2**64))  # for the offset of compiled memory: it says OverflowError
OUTSIDE = (GuestMemory, OverflowError)


def window(size=64, offset=0):
    buffer = bytearray(range(256))
    return buffer, Region(buffer, offset, size)


def buffers():
    return {
        "bytes": b"abcdef",
        "bytes subclass": type("Text", (bytes,), {})(b"abcdef"),
        "bytearray": bytearray(b"abcdef"),
        "slice": memoryview(b"xabcdefx")[1:7],
        "two dimensions": memoryview(b"abcdef").cast("B", shape=[2, 3]),
        "doubles": array.array("d", [1.5, -2.5]),
        "view of doubles": memoryview(array.array("d", [1.5, -2.5])),
        "ctypes": (ctypes.c_int * 3)(1, 2, 3),
        "ctypes structure": type("Pair", (ctypes.Structure,), {"_fields_": [("a", ctypes.c_short)]})(7),
        "two dimensions of nothing": ((ctypes.c_int * 3) * 0)(),
        "empty": b"",
        "empty view": memoryview(b""),
    }


@pytest.mark.parametrize("kind", buffers())
def test_all_bytes_of_any_contiguous_buffer_are_stored_and_copied_out(kind):
    data = buffers()[kind]
    raw = memoryview(data).tobytes()
    memory, region = window(256)
    assert atomic.count_of(data) == len(raw)
    atomic.fill(region, 3, data, len(raw))
    assert memory[3 : 3 + len(raw)] == raw
    assert memory[3 + len(raw)] == 3 + len(raw)
    assert memory[2] == 2
    copied = atomic.copy(region, 3, len(raw))
    assert copied == raw
    assert type(copied) is bytes


@pytest.mark.parametrize("data", [None, 3, "text", 1.5, [b"a"], object()], ids=repr)
def test_what_is_no_buffer_has_no_bytes(data):
    with pytest.raises(TypeError):
        atomic.count_of(data)
    memory, region = window()
    with pytest.raises(TypeError):
        atomic.fill(region, 0, data, 1)
    assert memory == bytearray(range(256))


@pytest.mark.parametrize(
    "data",
    [
        memoryview(bytes(8))[::2],
        memoryview(bytes(8))[::-1],
        memoryview(bytes(12)).cast("B", shape=[3, 4])[::2],
    ],
    ids=["strided", "reversed", "strided rows"],
)
def test_a_buffer_with_gaps_has_no_count(data):
    with pytest.raises(ValueError, match="contiguous"):
        atomic.count_of(data)


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), array.array("B", [1, 2, 3])])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_buffer_that_changed_its_size_is_refused(data, count):
    memory, region = window()
    with pytest.raises(ValueError, match="it must not change while it is copied"):
        atomic.fill(region, 0, data, count)
    assert memory == bytearray(range(256))


@given(st.integers(-10, 80), st.integers(-10, 80))
def test_what_does_not_lie_in_the_window_is_neither_stored_nor_copied(offset, count):
    memory, region = window(64, 64)
    data = bytes(max(count, 0))
    if 0 <= offset <= 64 and 0 <= count <= 64 - offset:
        before = bytes(memory[64 + offset : 64 + offset + count])
        assert atomic.copy(region, offset, count) == before
        atomic.fill(region, offset, data, count)
        assert memory[64 + offset : 64 + offset + count] == data
    else:
        with pytest.raises(GuestMemory):
            atomic.copy(region, offset, count)
        for kind in (bytes, bytearray):
            with pytest.raises(GuestMemory):
                atomic.fill(region, offset, kind(data), count)
        assert memory == bytearray(range(256))


@pytest.mark.parametrize("number", [*HUGE, *TOO_BIG])
def test_huge_offsets_and_counts_are_refused(number):
    memory, region = window()
    for offset, count in ((number, 1), (number, 0), (0, number), (number, number), (1, number)):
        if (offset, count) == (0, 0):
            continue
        with pytest.raises(OUTSIDE):
            atomic.copy(region, offset, count)
        with pytest.raises(OUTSIDE):
            atomic.fill(region, offset, b"x", count)
    assert memory == bytearray(range(256))


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_nothing_is_stored_in_what_is_read_only(kind):
    region = Region(bytes(8))
    with pytest.raises(TypeError):
        atomic.fill(region, 0, kind(b"abc"), 3)
    assert atomic.copy(region, 0, 8) == bytes(8)


def test_a_buffer_is_let_go_of_once_it_is_stored():
    _, region = window()
    data = bytearray(b"abc")
    atomic.fill(region, 0, data, atomic.count_of(data))
    data.append(1)
    with pytest.raises(ValueError, match="must not change"):
        atomic.fill(region, 0, data, 3)
    data.append(1)
    with pytest.raises(GuestMemory):
        atomic.fill(region, 62, data, 5)
    data.append(1)
