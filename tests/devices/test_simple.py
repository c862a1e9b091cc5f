"""Echo and checksum."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqshm.devices import Checksum, Echo

CUTS = [(), (1,), (1, 2, 7, 511), tuple(range(3, 90, 3))]
FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("room_cuts", CUTS)
def test_echo_gives_back_what_it_reads_wherever_descriptors_end(loopback, cuts, room_cuts):
    data = bytes(range(256)) * 4
    assert loopback(Echo()).offer(data, len(data), cuts, room_cuts) == data


def test_echo_across_two_regions_of_guest_memory(loopback):
    data = bytes(range(256)) * 1500
    assert loopback(Echo()).offer(data, len(data)) == data


@given(data=st.binary(max_size=300), room=st.integers(0, 300), cuts=st.sets(st.integers(1, 299), max_size=12))
@FIXTURE
def test_echo_writes_as_much_as_fits(loopback, data, room, cuts):
    if data or room:
        assert loopback(Echo()).offer(data, room, sorted(cuts), sorted(cuts)) == data[:room]


@pytest.mark.parametrize("cuts", CUTS)
def test_checksum_is_the_sha256_of_all_it_reads(loopback, cuts):
    data = bytes(range(256)) * 4
    assert loopback(Checksum()).offer(data, 100, cuts, (1, 13)) == hashlib.sha256(data).digest()


def test_checksum_of_nothing(loopback):
    assert loopback(Checksum()).offer(b"", 32) == hashlib.sha256().digest()


def test_checksum_without_room_writes_nothing_and_counts(loopback):
    checksum = Checksum()
    assert loopback(checksum).offer(b"data", 31) == b""
    assert checksum.unanswered == 1


@pytest.mark.parametrize("handler", [Echo, Checksum])
@pytest.mark.parametrize("flags", [0, 2])
def test_buffers_outside_guest_memory_are_counted(hostile, handler, flags):
    device = handler()
    assert hostile(device).raw((1 << 40, 64, flags)) == 0
    assert device.unanswered == 1


@pytest.mark.parametrize("handler", [Echo, Checksum])
def test_they_offer_nothing(handler):
    assert (handler.features, handler.config) == (0, b"")
