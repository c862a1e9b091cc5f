"""Guest memory: what exists can be reached, what does not exist cannot, whatever the address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import core, errors
from vqshm.memory import MAX_ADDRESS, GuestMemory, GuestRegion, atomic

TOP = MAX_ADDRESS  # a region ends at it, never behind it


@st.composite
def maps(draw):
    """(start, size) of a few regions, some of them touching, low or at the very top."""
    at = draw(st.sampled_from([0, 8, 0x1000, 0xFFFF_FFF0, TOP - 0x400]))
    regions = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.sampled_from([1, 2, 7, 8, 16, 33, 64]))
        regions.append((at, size))
        at += size + draw(st.sampled_from([0, 0, 1, 8, 16]))
    return regions


class Model:
    """Guest memory as a dictionary: address → byte."""

    def __init__(self, regions):
        self.buffers = [(start, bytearray(size)) for start, size in regions]
        self.memory = GuestMemory(self.buffers)
        self.cells = {start + i: 0 for start, size in regions for i in range(size)}

    def holds(self, address, count):
        return address + count <= TOP and all(address + i in self.cells for i in range(count))

    def read(self, address, count):
        return bytes(self.cells[address + i] for i in range(count))


def ranges(model):
    """Addresses around every edge of the regions, and counts."""
    edges = {edge for start, buffer in model.buffers for edge in (start, start + len(buffer))}
    near = {edge + distance for edge in edges for distance in range(-9, 10)}
    return st.tuples(st.sampled_from(sorted(address for address in near if 0 <= address <= TOP)), st.integers(0, 80))


@given(maps(), st.data())
def test_memory_behaves_as_a_dictionary_of_bytes(regions, data):
    model = Model(regions)
    memory = model.memory
    for _ in range(data.draw(st.integers(1, 8))):
        address, count = data.draw(ranges(model))
        assert memory.check_range(address, count) is (count == 0 or model.holds(address, count))
        if count == 0 or model.holds(address, count):
            payload = data.draw(st.binary(min_size=count, max_size=count))
            memory.write(address, payload)
            model.cells.update({address + i: byte for i, byte in enumerate(payload)})
            assert memory.read(address, count) == payload
            assert b"".join(memory.views(address, count)) == payload
        else:
            for reach in (memory.read, memory.views, memory.view, memory.check, memory.bounds):
                with pytest.raises((errors.GuestMemory, errors.AddressOverflow)):
                    reach(address, count)
    for start, buffer in model.buffers:
        assert buffer == model.read(start, len(buffer))


@given(maps(), st.data())
def test_find_region_finds_the_region_that_holds_the_address(regions, data):
    model = Model(regions)
    address, _ = data.draw(ranges(model))
    region = model.memory.find_region(address)
    if address in model.cells:
        assert region.start <= address < region.end
        assert model.memory.bounds(address, 1) == (region.start, region.end)
    else:
        assert region is None


def test_regions_may_come_in_any_order_and_touch():
    memory = GuestMemory([(0x2000, bytearray(16)), (0x1000, bytearray(16)), (0x1010, bytearray(16))])
    assert [region.start for region in memory.regions] == [0x1000, 0x1010, 0x2000]
    memory.write(0x100C, b"12345678")
    assert memory.read(0x100C, 8) == b"12345678"
    assert [bytes(view) for view in memory.views(0x100C, 8)] == [b"1234", b"5678"]


@pytest.mark.parametrize(
    "regions",
    [
        [],
        [(0, b"")],
        [(-8, bytearray(8))],
        [(TOP - 7, bytearray(8))],
        [(2**64, bytearray(8))],
        [(2**70, bytearray(8))],
        [(0, bytearray(16)), (15, bytearray(8))],
        [(8, bytearray(8)), (8, bytearray(8))],
    ],
    ids=["none", "empty", "negative", "over the top", "2^64", "2^70", "overlap", "same"],
)
def test_a_memory_map_that_cannot_be_is_refused(regions):
    with pytest.raises(ValueError, match=r"guest|overlap"):
        GuestMemory(regions)


@pytest.mark.parametrize("region", [(1.5, bytearray(8)), ("0", bytearray(8)), (None, bytearray(8)), (0, 8), 0])
def test_a_memory_map_of_wrong_types_is_refused(region):
    with pytest.raises(TypeError):
        GuestMemory([region])


def test_a_region_may_end_just_below_the_top():
    memory = GuestMemory([(TOP - 8, bytearray(8))])
    memory.write(TOP - 8, b"12345678")
    assert memory.read(TOP - 1, 1) == b"8"
    with pytest.raises(errors.AddressOverflow):
        memory.check(TOP - 8, 9)
    assert not memory.check_range(TOP - 8, 2**64)


def test_an_unaligned_buffer_is_refused_by_whoever_needs_alignment():
    unaligned = memoryview(bytearray(65))[1:]
    if core.kind() == "compiled":
        with pytest.raises(ValueError, match="8-byte boundary"):
            GuestRegion(0, unaligned)
    else:
        region = GuestRegion(0, unaligned)
        atomic.store_u64(region.window, 8, 0x0102030405060708)
        assert bytes(unaligned[8:16]) == bytes(range(8, 0, -1))


def test_a_write_into_a_gap_stores_what_stands_before_it():
    buffer = bytearray(8)
    memory = GuestMemory([(0, buffer), (16, bytearray(8))])
    with pytest.raises(errors.GuestMemory) as caught:
        memory.write(4, b"abcdefgh")
    assert buffer == b"\0\0\0\0abcd"
    assert caught.value.facts["address"] == 8


def test_an_empty_range_always_exists():
    memory = GuestMemory([(0x1000, bytearray(8))])
    for address in (0, 0x1000, 0x2000, TOP):
        assert memory.check_range(address, 0)
        assert memory.read(address, 0) == b""
        assert memory.views(address, 0) == []


@pytest.mark.parametrize("count", [-1, -(2**40)])
def test_a_negative_count_is_refused(count):
    memory = GuestMemory([(0x1000, bytearray(64))])
    for reach in (memory.read, memory.views, memory.check, memory.view):
        with pytest.raises(ValueError, match=r"negative|not in guest memory|passes"):
            reach(0x1000, count)


@pytest.mark.parametrize("address", [-1, -(2**64), 2**64, 2**70])
def test_an_address_that_cannot_be_is_refused(address):
    buffer = bytearray(64)
    memory = GuestMemory([(0, buffer)])
    for call in (
        lambda: memory.read(address, 1),
        lambda: memory.write(address, b"x"),
        lambda: memory.view(address, 1),
        lambda: memory.check(address, 1),
        lambda: memory.word(address),
    ):
        with pytest.raises((errors.GuestMemory, errors.AddressOverflow)):
            call()
    assert not any(buffer)


@pytest.mark.parametrize("wrong", [None, "0", 1.5, b"0"])
def test_wrong_types_are_refused(wrong):
    buffer = bytearray(64)
    memory = GuestMemory([(0, buffer)])
    for call in (
        lambda: memory.read(wrong, 4),
        lambda: memory.read(0, wrong),
        lambda: memory.view(wrong, 4),
        lambda: memory.write(wrong, b"data"),
        lambda: memory.write(0, 7),
    ):
        with pytest.raises(TypeError):
            call()
    assert not any(buffer)


def test_a_view_is_the_memory_itself_and_lies_in_one_region():
    buffer = bytearray(16)
    memory = GuestMemory([(0x1000, buffer), (0x1010, bytearray(16))])
    memory.view(0x1004, 4)[:] = b"here"
    assert buffer[4:8] == b"here"
    with pytest.raises(errors.GuestMemory):
        memory.view(0x100C, 8)


def test_memory_that_is_read_only_cannot_be_written():
    memory = GuestMemory([(0, bytes(16))])
    with pytest.raises(TypeError):
        memory.write(0, b"x")
    assert memory.read(0, 16) == bytes(16)


# -- ring fields -------------------------------------------------------------------------------------------------------


@given(maps(), st.data())
def test_a_word_lies_two_aligned_in_one_region_or_is_refused(regions, data):
    model = Model(regions)
    address, _ = data.draw(ranges(model))
    home = next(((s, n) for s, n in regions if s <= address < s + n), None)
    if home is not None and address + 2 <= sum(home) and (address - home[0]) % 2 == 0:
        atomic.store_u16(*model.memory.word(address), 0xBEEF)
        assert model.memory.read(address, 2) == b"\xef\xbe"
    else:
        with pytest.raises(errors.GuestMemory):
            model.memory.word(address)


@given(maps(), st.sampled_from([2, 4, 8, 16]), st.data())
def test_a_window_reads_and_writes_what_memory_holds_there(regions, alignment, data):
    """Whether it is one aligned piece, which is fast, or scattered over regions, which is not."""
    model = Model(regions)
    address, count = data.draw(ranges(model))
    window = model.memory.window(address, count, alignment)
    offset = data.draw(st.integers(0, 80))
    width = data.draw(st.sampled_from([2, 4, 8]))
    value = data.draw(st.integers(1, (1 << 8 * width) - 1))
    get, put = getattr(atomic, f"get_u{8 * width}"), getattr(atomic, f"put_u{8 * width}")
    if model.holds(address + offset, width):
        put(window, offset, value)
        assert model.memory.read(address + offset, width) == value.to_bytes(width, "little")
        assert get(window, offset) == value
    else:
        with pytest.raises((errors.GuestMemory, errors.AddressOverflow)):
            get(window, offset)


def test_a_ring_field_is_one_unit_also_in_a_scattered_window():
    memory = GuestMemory([(0x1000, bytearray(16)), (0x1010, bytearray(16))])
    window = memory.window(0x1008, 16, 8)
    atomic.store_u16(window, 8, 0x1234)
    assert memory.read(0x1010, 2) == b"\x34\x12"
    assert atomic.load_u16(window, 8) == 0x1234
    odd = memory.window(0x1009, 16, 2)
    for access in (lambda: atomic.load_u16(odd, 0), lambda: atomic.store_u16(odd, 0, 1)):
        with pytest.raises(errors.GuestMemory):
            access()
    atomic.store_u32(odd, 4, 0xAABBCCDD)  # wider fields are written where they lie, across regions, too
    assert memory.read(0x100D, 4) == bytes.fromhex("ddccbbaa")
    assert atomic.load_u32(odd, 4) == 0xAABBCCDD
