"""The ordering seam: windows that cannot be left, and words that are never seen half-written."""

from __future__ import annotations

import array
import gc
import mmap
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import core
from vqshm.errors import GuestMemory, ReadOnlyMemory
from vqshm.memory import Region, atomic

WIDTHS = (2, 4, 8)
GETS = {(w, kind): getattr(atomic, f"{kind}_u{8 * w}") for w in WIDTHS for kind in ("get", "load")}
PUTS = {(w, kind): getattr(atomic, f"{kind}_u{8 * w}") for w in WIDTHS for kind in ("put", "store")}
HUGE = (2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
TOO_BIG = (2**63, 2**64, 2**70, -(2**64))  # for the offset of compiled memory: it says OverflowError
OUTSIDE = (GuestMemory, OverflowError)


def window(size=64, offset=0, beyond=None):
    buffer = bytearray(range(256))
    return buffer, Region(buffer, offset, size, beyond)


def ids(table):
    return {"argvalues": list(table.items()), "ids": [f"{kind}_u{8 * w}" for w, kind in table]}


# -- the window --------------------------------------------------------------------------------------------------------


@given(st.integers(-300, 300), st.one_of(st.none(), st.integers(-300, 300)))
def test_a_window_lies_in_its_buffer_or_is_refused(offset, size):
    length = 256 - offset if size is None else size
    if 0 <= offset <= 256 and 0 <= length <= 256 - offset:
        region = Region(bytes(range(256)), offset, size)
        assert region.size == length
        assert region.read(0, length) == bytes(range(256))[offset : offset + length]
    else:
        with pytest.raises(ValueError, match="does not lie in a buffer of 256 bytes"):
            Region(bytes(256), offset, size)


@pytest.mark.parametrize("number", [*HUGE, *TOO_BIG])
def test_a_huge_window_is_refused(number):
    for offset, size in ((number, None), (0, number), (number, 8), (8, number)):
        with pytest.raises((ValueError, OverflowError)):
            Region(bytes(64), offset, size)


@pytest.mark.parametrize("wrong", [None, 3, "text", 1.5, object(), [1, 2]])
def test_a_window_needs_a_buffer(wrong):
    with pytest.raises(TypeError):
        Region(wrong)


def test_a_buffer_with_gaps_is_refused():
    with pytest.raises((TypeError, BufferError)):
        Region(memoryview(bytearray(64))[::2])


def test_a_window_keeps_its_buffer_alive_and_in_place():
    buffer, region = window()
    with pytest.raises(BufferError):
        buffer.append(1)
    del region
    buffer.append(1)


@pytest.mark.parametrize("inner", [False, True], ids=["window", "window in a window"])
def test_a_window_that_the_cycle_collector_frees_gives_its_buffer_back(inner):
    """Or the memory of a broken queue, whose error holds the frames that hold the queue, could never be unmapped."""

    class Owner:
        pass

    gc.collect()
    memory = mmap.mmap(-1, 4096)
    region = Region(memory, 0, 64)
    if inner:
        region = region.window(0, 32)
    owner = Owner()  # younger than the window, so that the collector clears the window first
    owner.region, owner.itself = region, owner
    with pytest.raises(BufferError):
        memory.close()
    del region, owner
    gc.collect()
    memory.close()
    assert memory.closed


def test_a_window_in_a_window_sees_only_its_part():
    buffer, region = window(64, 64)
    inner = region.window(8, 16)
    assert inner.size == 16
    assert inner.read(0, 16) == bytes(range(72, 88))
    atomic.put_u16(inner, 0, 0xAAAA)
    assert buffer[72:74] == b"\xaa\xaa"
    with pytest.raises(GuestMemory):
        inner.read(0, 17)
    with pytest.raises(GuestMemory):
        region.window(60, 8)


def test_an_empty_window_holds_nothing():
    region = Region(bytearray())
    assert region.size == 0
    assert region.read(0, 0) == b""
    for get in GETS.values():
        with pytest.raises(GuestMemory):
            get(region, 0)


def test_alignment_is_a_power_of_two():
    _, region = window()
    assert region.alignment >= 8
    assert region.alignment & (region.alignment - 1) == 0


# -- words -------------------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(PUTS)), st.integers(0, 62), st.data())
def test_a_word_is_stored_little_endian_and_touches_nothing_else(put, offset, data):
    width, kind = put
    offset = min(offset, 64 - width)
    if kind == "store":
        offset -= offset % width
    value = data.draw(st.integers(0, (1 << 8 * width) - 1))
    buffer, region = window(64, 64)
    expected = bytearray(buffer)
    expected[64 + offset : 64 + offset + width] = value.to_bytes(width, "little")
    PUTS[put](region, offset, value)
    assert buffer == expected
    for got, get in GETS.items():
        if got[0] == width and (got[1] == "get" or offset % width == 0):
            assert get(region, offset) == value


@pytest.mark.parametrize(("key", "get"), **ids(GETS))
def test_a_word_outside_of_the_window_cannot_be_read(key, get):
    _, region = window(64, 64)
    assert get(region, 64 - key[0]) == int.from_bytes(bytes(range(128 - key[0], 128)), "little")
    for offset in (-1, -key[0], 64 - key[0] + 1, 64, 65, *HUGE, *TOO_BIG):
        with pytest.raises(OUTSIDE):
            get(region, offset)


@pytest.mark.parametrize(("key", "put"), **ids(PUTS))
def test_a_word_outside_of_the_window_cannot_be_written(key, put):
    buffer, region = window(64, 64)
    before = bytes(buffer)
    for offset in (-1, -key[0], 64 - key[0] + 1, 64, 65, *HUGE, *TOO_BIG):
        with pytest.raises(OUTSIDE):
            put(region, offset, 0)
    assert buffer == before


@pytest.mark.parametrize(("key", "put"), **ids(PUTS))
@pytest.mark.parametrize("offset", [0, 1])
def test_a_value_that_does_not_fit_is_refused_and_nothing_stored(key, put, offset):
    if offset and key[1] == "store":
        offset = key[0]
    buffer, region = window()
    before = bytes(buffer)
    for value in (-1, 1 << 8 * key[0], 2**64, 2**70, -(2**70)):
        with pytest.raises((ValueError, OverflowError)):
            put(region, offset, value)
    for value in (None, "1", b"\x01"):
        with pytest.raises((TypeError, AttributeError)):
            put(region, offset, value)
    assert buffer == before


@pytest.mark.fault("E11")
@pytest.mark.parametrize(("key", "put"), **ids(PUTS))
def test_a_read_only_window_can_be_read_and_not_written(key, put):
    region = Region(bytes(range(64)))
    assert region.readonly
    assert atomic.get_u16(region, 2) == 0x0302
    for offset in (0, 8, 1000):
        with pytest.raises(ReadOnlyMemory) as caught:
            put(region, offset, 1)
        assert isinstance(caught.value, PermissionError)
    with pytest.raises(ReadOnlyMemory):
        region.write(0, b"x")
    assert region.read(0, 64) == bytes(range(64))


class Ledger:
    """A slow road that writes down who passes."""

    def __init__(self):
        self.seen = []

    def load(self, offset, width):
        self.seen.append(("load", offset, width))
        return 0x11

    def get(self, offset, width):
        self.seen.append(("get", offset, width))
        return 0x22

    def store(self, offset, width, value):
        self.seen.append(("store", offset, width, value))

    def put(self, offset, width, value):
        self.seen.append(("put", offset, width, value))


def test_what_does_not_lie_in_the_window_takes_the_slow_road():
    ledger = Ledger()
    buffer, region = window(64, 0, ledger)
    before = bytes(buffer)
    expected = []
    for (width, kind), get in GETS.items():
        assert get(region, 64) == (0x11 if kind == "load" else 0x22)
        expected.append((kind, 64, width))
    for (width, kind), put in PUTS.items():
        put(region, -width, 7)
        expected.append((kind, -width, width, 7))
    assert ledger.seen == expected
    assert buffer == before


def test_an_error_on_the_slow_road_comes_through():
    class Broken(Ledger):
        def load(self, offset, width):
            raise GuestMemory("nothing there")

        store = load

    _, region = window(0, 0, Broken())
    with pytest.raises(GuestMemory, match="nothing there"):
        atomic.load_u16(region, 0)
    with pytest.raises(TypeError):
        atomic.store_u16(region, 0, 1)  # called with a value too many for this road


# -- bytes -------------------------------------------------------------------------------------------------------------


@given(st.integers(-5, 70), st.integers(-5, 70))
def test_bytes_are_read_in_the_window_or_not_at_all(offset, count):
    _, region = window(64, 64)
    if min(offset, count) >= 0 and offset + count <= 64:
        assert region.read(offset, count) == bytes(range(64 + offset, 64 + offset + count))
        assert bytes(region.view(offset, count)) == region.read(offset, count)
    else:
        for reach in (region.read, region.view, region.window):
            with pytest.raises(GuestMemory):
                reach(offset, count)


@given(st.integers(-5, 70), st.binary(max_size=70))
def test_bytes_are_written_in_the_window_or_not_at_all(offset, data):
    buffer, region = window(64, 64)
    expected = bytearray(buffer)
    if 0 <= offset <= 64 - len(data):
        expected[64 + offset : 64 + offset + len(data)] = data
        region.write(offset, data)
    else:
        with pytest.raises(GuestMemory):
            region.write(offset, data)
    assert buffer == expected


@pytest.mark.parametrize("number", [*HUGE, *TOO_BIG])
def test_huge_offsets_and_counts_do_not_wrap(number):
    buffer, region = window()
    before = bytes(buffer)
    for reach in (region.read, region.view, region.window):
        for offset, count in ((number, 1), (1, number), (number, number), (8, 2**63 - 1)):
            with pytest.raises(OUTSIDE):
                reach(offset, count)
    with pytest.raises(OUTSIDE):
        region.write(number, b"data")
    assert buffer == before


@pytest.mark.parametrize(
    "data",
    [b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), array.array("H", [0x6261, 0x6463]), memoryview(b"xabcd")[1:]],
    ids=lambda data: type(data).__name__,
)
def test_any_contiguous_buffer_can_be_written(data):
    buffer, region = window()
    region.write(4, data)
    assert buffer[4:8] == b"abcd"


def test_a_view_is_the_memory_itself():
    buffer, region = window(64, 64)
    view = region.view(8, 4)
    view[:] = b"seen"
    assert buffer[72:76] == b"seen"
    buffer[72] = 0
    assert view[0] == 0


@pytest.mark.parametrize("wrong", [None, "1", 1.0, b"1"])
def test_wrong_types_are_refused(wrong):
    buffer, region = window()
    before = bytes(buffer)
    for call in (
        lambda: region.read(wrong, 1),
        lambda: region.read(0, wrong),
        lambda: region.view(wrong, 1),
        lambda: region.write(wrong, b"1"),
        lambda: atomic.load_u16(region, wrong),
        lambda: atomic.put_u16(region, wrong, 1),
    ):
        with pytest.raises(TypeError):
            call()
    assert buffer == before


def test_what_is_no_region_is_refused():
    for wrong in (None, 3, bytearray(64)):
        with pytest.raises((TypeError, AttributeError)):
            atomic.load_u16(wrong, 0)
        with pytest.raises((TypeError, AttributeError)):
            atomic.put_u64(wrong, 0, 0)


# -- order -------------------------------------------------------------------------------------------------------------


def test_the_seam_says_what_its_fence_is():
    atomic.fence()
    assert atomic.FENCE
    assert atomic.ORDERED is True or core.kind() == "interpreted"


WRITER = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 4096)
words = {2: memoryview(memory).cast("H"), 4: memoryview(memory).cast("I"), 8: memoryview(memory).cast("Q")}
while not memory[4095]:
    for width, at in ((2, 0), (4, 64), (8, 128)):
        words[width][at // width] = 0
        words[width][at // width] = (1 << 8 * width) - 1
"""


@contextmanager
def process(code, *arguments):
    """A process that runs `code` and is gone at the end of the block."""
    child = subprocess.Popen([sys.executable, "-c", code, *arguments])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def test_a_word_is_never_seen_half_written(tmp_path):
    path = tmp_path / "shared"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 4096)
    region = Region(memory)
    with process(WRITER, str(path)) as child:
        for width, at in ((2, 0), (4, 64), (8, 128)):
            for kind in ("load", "get"):
                seen, reads = set(), 0
                while len(seen) < 2 or reads < 3000:
                    seen.add(GETS[width, kind](region, at))
                    reads += 1
                    assert child.poll() is None
                assert seen == {0, (1 << 8 * width) - 1}
