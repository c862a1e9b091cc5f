"""The records of a queue: sixteen and eight bytes, little-endian, and values that fit [2.7.5, 2.7.8, 2.8.13]."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.ring import Descriptor, PackedDescriptor, VirtqUsedElem

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
LIMITS = {"addr": 64, "len": 32, "flags": 16, "next": 16}


@given(U64, U32, U16, U16)
def test_a_descriptor_is_sixteen_little_endian_bytes(addr, length, flags, following):
    raw = struct.pack("<QIHH", addr, length, flags, following)
    d = Descriptor.from_bytes(raw)
    assert (d.addr, d.len, d.flags, d.next) == (addr, length, flags, following)
    assert d.to_bytes() == raw
    assert d == Descriptor(addr, length, flags, following)
    assert hash(d) == hash(Descriptor(addr, length, flags, following))
    assert (d.has_next, d.is_write_only, d.refers_to_indirect_table) == tuple(bool(flags & bit) for bit in (1, 2, 4))


@given(U64, U32, U16, U16)
def test_a_packed_descriptor_is_decoded(addr, length, number, flags):
    d = PackedDescriptor.from_bytes(struct.pack("<QIHH", addr, length, number, flags))
    assert d == (addr, length, number, flags)
    assert (d.has_next, d.is_write_only, d.refers_to_indirect_table) == tuple(bool(flags & bit) for bit in (1, 2, 4))


@given(U32, U32)
def test_a_used_element_is_eight_little_endian_bytes(head, written):
    raw = struct.pack("<II", head, written)
    assert VirtqUsedElem.from_bytes(raw) == (head, written)
    assert VirtqUsedElem(head, written).to_bytes() == raw


@pytest.mark.parametrize("record", [Descriptor, PackedDescriptor, VirtqUsedElem])
@pytest.mark.parametrize("count", [0, 1, 7, 9, 15, 17, 32])
def test_another_number_of_bytes_is_refused(record, count):
    with pytest.raises(ValueError, match="bytes, not"):
        record.from_bytes(bytes(count))


@pytest.mark.parametrize("field", LIMITS)
def test_a_field_holds_its_bits_and_no_more(field):
    good = {"addr": 0, "len": 0, "flags": 0, "next": 0}
    most = (1 << LIMITS[field]) - 1
    assert getattr(Descriptor(**{**good, field: most}), field) == most
    for value in (most + 1, -1, 2**70, -(2**70)):
        with pytest.raises(ValueError, match="64, 32, 16 and 16 bits fit"):
            Descriptor(**{**good, field: value})
    for wrong in (None, "1", 1.0, b"1"):
        with pytest.raises(TypeError):
            Descriptor(**{**good, field: wrong})


@pytest.mark.parametrize("field", LIMITS)
def test_two_descriptors_that_differ_are_not_equal(field):
    one = Descriptor(1, 2, 3, 4)
    other = Descriptor(1, 2, 3, 4)
    assert one == other
    setattr(other, field, 9)
    assert one != other
    assert one != (1, 2, 3, 4)
    assert one != object()


def test_a_descriptor_says_what_it_is():
    assert repr(Descriptor(0x1000, 16, 3, 5)) == "Descriptor(addr=0x1000, len=16, flags=NEXT|WRITE, next=5)"
    assert repr(Descriptor(0x1000, 16, 4, 5)) == "Descriptor(addr=0x1000, len=16, flags=INDIRECT)"
    assert repr(Descriptor(0, 0)) == "Descriptor(addr=0x0, len=0, flags=0)"
