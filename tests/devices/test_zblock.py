"""zblock: both sides of its protocol, and what it answers to a driver that does not keep to it."""

from __future__ import annotations

import os
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqshm.devices import ZBlock, zblock
from vqshm.devices.zblock import HEADER, RECORD, Status
from vqshm.errors import PeerViolation

FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
CUTS = [(), (1, 15, 16, 17), (7, 20, 33, 100)]


def ask(loop, data, *, level=0, room=None, cuts=(), room_cuts=()):
    request = zblock.pack_header(7, len(data), level) + data
    size = zblock.reply_size(len(data)) if room is None else room
    return zblock.unpack_reply(loop.offer(request, size, cuts, room_cuts))


def refusal(loop, readable, room=1000):
    result = zblock.unpack_reply(loop.offer(readable, room))
    assert loop.written == RECORD.size
    return result.status


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("room_cuts", CUTS)
def test_a_block_goes_there_and_back(loopback, cuts, room_cuts):
    data = b"the same again, " * 500
    result = ask(loopback(ZBlock()), data, cuts=cuts, room_cuts=room_cuts)
    assert result.status is Status.OK
    assert result.crc32 == zlib.crc32(data)
    assert result.compressed == len(result.data) < len(data) / 10
    assert result.plain(len(data)) == data


@given(data=st.binary(max_size=600), level=st.integers(0, 9), cuts=st.sets(st.integers(1, 700), max_size=10))
@FIXTURE
def test_any_block_at_any_level(loopback, data, level, cuts):
    result = ask(loopback(ZBlock()), data, level=level, cuts=sorted(cuts), room_cuts=sorted(cuts))
    assert result.plain(len(data)) == data


def test_a_block_that_cannot_be_compressed_fits_the_promised_room(loopback):
    data = os.urandom(300_000)
    for level in (1, 9):
        assert ask(loopback(ZBlock()), data, level=level).plain(len(data)) == data


def test_the_level_is_the_drivers_or_else_the_devices(loopback):
    data = (b"abcdefgh" * 40 + os.urandom(40)) * 200
    assert bytes(ask(loopback(ZBlock(level=9)), data).data) == zlib.compress(data, 9)
    assert bytes(ask(loopback(ZBlock(level=9)), data, level=1).data) == zlib.compress(data, 1)


def test_config_tells_limit_and_level():
    assert zblock.CONFIG.unpack(ZBlock(level=3, max_length=4096).config) == (4096, 3)


@pytest.mark.parametrize("count", [0, 1, 15])
def test_a_short_header(loopback, count):
    assert refusal(loopback(ZBlock()), HEADER.pack(1, 0, 0)[:count]) is Status.BAD_HEADER


@pytest.mark.parametrize("length", [3, 5, 0, 0xFFFFFFFF])
def test_a_length_that_is_not_that_of_the_data(loopback, length):
    assert refusal(loopback(ZBlock()), HEADER.pack(1, length, 0) + b"data") is Status.BAD_LENGTH


def test_a_block_above_the_limit(loopback):
    device = ZBlock(max_length=100)
    assert refusal(loopback(device), HEADER.pack(1, 101, 0) + bytes(101)) is Status.BAD_LENGTH
    assert ask(loopback(device), bytes(100)).status is Status.OK


@pytest.mark.parametrize("flags", [10, 15, 16, 1 << 31])
def test_unknown_flags(loopback, flags):
    assert refusal(loopback(ZBlock()), HEADER.pack(1, 4, flags) + b"data") is Status.UNKNOWN_FLAGS


def test_too_little_room_says_how_much_there_should_be(loopback):
    data = os.urandom(500)
    loop = loopback(ZBlock())
    short = ask(loop, data, room=RECORD.size + 100)
    assert (short.status, loop.written) == (Status.NO_ROOM, RECORD.size)
    assert ask(loop, data, room=RECORD.size + short.compressed).plain(500) == data


@pytest.mark.parametrize("room", [0, 1, 11])
def test_no_room_for_a_record_is_counted(loopback, room):
    device = ZBlock()
    assert loopback(device).offer(zblock.pack_header(0, 4) + b"data", room) == b""
    assert device.unanswered == 1


def test_buffers_outside_guest_memory_are_counted(hostile):
    device = ZBlock()
    assert hostile(device).raw((1 << 40, 64, 0), (1 << 41, 64, 2)) == 0
    assert device.unanswered == 1


# -- the driver's side does not believe the device -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"", "its record alone has 12"),
        (bytes(11), "its record alone has 12"),
        (RECORD.pack(9, 0, 0), "status 9"),
        (RECORD.pack(0, 0, 5) + b"1234", "a result of 4 bytes"),
        (RECORD.pack(0, 0, 3) + b"1234", "a result of 4 bytes"),
    ],
)
def test_a_reply_that_is_none(reply, says):
    with pytest.raises(PeerViolation, match=says):
        zblock.unpack_reply(reply)


@pytest.mark.parametrize(
    "stream",
    [b"nonsense", zlib.compress(b"other"), zlib.compress(b"block")[:-1], zlib.compress(b"block") + b"!", b""],
)
def test_a_result_that_is_not_the_block(stream):
    reply = RECORD.pack(0, zlib.crc32(b"block"), len(stream)) + stream
    with pytest.raises(PeerViolation):
        zblock.unpack_reply(reply).plain(5)


def test_a_stream_that_would_inflate_without_end_stops():
    stream = zlib.compress(bytes(50_000_000), 9)
    reply = RECORD.pack(0, 0, len(stream)) + stream
    with pytest.raises(PeerViolation):
        zblock.unpack_reply(reply).plain(100)


@pytest.mark.parametrize("level", [-1, 10])
def test_a_level_that_does_not_exist(level):
    with pytest.raises(ValueError, match="level"):
        zblock.pack_header(0, 0, level)
    with pytest.raises(ValueError, match="level"):
        ZBlock(level=level)


def test_the_header_is_laid_out_as_documented():
    assert zblock.pack_header(1, 2, 3) == struct.pack("<Q", 1) + struct.pack("<I", 2) + struct.pack("<I", 3)
