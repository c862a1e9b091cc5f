"""The block device over a ring: what it reads and writes, and the status of everything it must not do [5.2.6]."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqshm import spec
from vqshm.devices import Blk, blk
from vqshm.devices.blk_layout import Segment, pack_header, pack_segments

IN, OUT, FLUSH = spec.VIRTIO_BLK_T_IN, spec.VIRTIO_BLK_T_OUT, spec.VIRTIO_BLK_T_FLUSH
GET_ID, DISCARD, ZEROES = spec.VIRTIO_BLK_T_GET_ID, spec.VIRTIO_BLK_T_DISCARD, spec.VIRTIO_BLK_T_WRITE_ZEROES
OK, IOERR, UNSUPP = spec.VIRTIO_BLK_S_OK, spec.VIRTIO_BLK_S_IOERR, spec.VIRTIO_BLK_S_UNSUPP

SECTORS = 64
PATTERN = b"".join(bytes([sector + 1]) * 512 for sector in range(SECTORS))
NO_CUTS = ()
ODD_CUTS = (1, 3, 15, 17, 100, 527, 529, 1024)
FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(PATTERN)
    return path


@pytest.fixture
def disk(path):
    with Blk(path) as disk:
        yield disk


@pytest.fixture
def frozen(path):
    with Blk(path, read_only=True) as disk:
        yield disk


@pytest.fixture(params=[NO_CUTS, ODD_CUTS], ids=["whole", "odd"])
def cuts(request):
    return request.param


def ask(loop, kind, sector=0, data=b"", room=0, cuts=()):
    """(status, what stands in front of it) of one request; the answer always reaches to the status."""
    reply = loop.offer(pack_header(kind, sector) + data, room + 1, cuts, cuts)
    assert len(reply) == room + 1
    return reply[-1], reply[:-1]


def segments(*triples):
    return pack_segments(Segment(*triple) for triple in triples)


# -- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sector", "count"), [(0, 1), (0, SECTORS), (63, 1), (7, 30), (64, 0)])
def test_in_reads_sectors(loopback, disk, cuts, sector, count):
    status, data = ask(loopback(disk), IN, sector, room=512 * count, cuts=cuts)
    assert (status, data) == (OK, PATTERN[sector * 512 : (sector + count) * 512])


@pytest.mark.parametrize(("sector", "count"), [(0, 1), (0, SECTORS), (63, 1), (7, 30), (64, 0)])
def test_out_writes_sectors_and_no_others(loopback, disk, path, cuts, sector, count):
    data = os.urandom(512 * count)
    assert ask(loopback(disk), OUT, sector, data, cuts=cuts) == (OK, b"")
    expected = bytearray(PATTERN)
    expected[sector * 512 : (sector + count) * 512] = data
    assert path.read_bytes() == expected


def test_flush_syncs_the_file(loopback, disk, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    loop = loopback(disk)
    disk.features_ok(disk.features)
    assert ask(loop, OUT, 0, bytes(512)) == (OK, b"")
    assert synced == []
    assert ask(loop, FLUSH) == (OK, b"")
    assert synced == [disk.image.fd]


def test_writes_are_committed_as_long_as_nobody_said_what_was_negotiated(loopback, disk, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    assert ask(loopback(disk), OUT, 0, bytes(512)) == (OK, b"")
    assert synced == [disk.image.fd]


def test_data_in_a_flush_is_ignored(loopback, disk):
    assert ask(loopback(disk), FLUSH, 0, bytes(512), room=3) == (OK, bytes(3))


@pytest.mark.parametrize(("sector", "data"), [(1, bytes(512)), (2, segments((0, 1)))])
def test_a_driver_that_cannot_flush_gets_every_write_committed(loopback, disk, monkeypatch, sector, data):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    disk.features_ok(disk.features & ~(1 << spec.VIRTIO_BLK_F_FLUSH))
    assert ask(loopback(disk), OUT if sector == 1 else ZEROES, sector if sector == 1 else 0, data)[0] == OK
    assert synced == [disk.image.fd]
    assert ask(loopback(disk), FLUSH)[0] == UNSUPP


@pytest.mark.parametrize("serial", ["", "vqshm-0001", "exactly twenty bytes"])
def test_get_id(loopback, path, cuts, serial):
    with Blk(path, serial=serial) as disk:
        assert ask(loopback(disk), GET_ID, room=20, cuts=cuts) == (OK, serial.encode().ljust(20, b"\0"))


def test_the_serial_is_the_name_of_the_file_or_fails_early(path):
    with Blk(path) as disk:
        assert disk.serial == "disk.img"
    for wrong in ("x" * 21, "größe"):
        with pytest.raises(ValueError, match="20 ASCII"):
            Blk(path, serial=wrong)


@pytest.mark.parametrize("flags", [0, 1])
def test_write_zeroes(loopback, disk, path, cuts, flags):
    data = segments((1, 2, flags), (60, 4, flags), (9, 0, flags))
    assert ask(loopback(disk), ZEROES, 0, data, cuts=cuts) == (OK, b"")
    expected = bytearray(PATTERN)
    expected[512 : 3 * 512] = bytes(1024)
    expected[60 * 512 :] = bytes(2048)
    assert path.read_bytes() == expected


def test_discard_touches_the_segments_and_nothing_else(loopback, disk, path, cuts):
    assert ask(loopback(disk), DISCARD, 0, segments((8, 8, 0), (63, 1, 0)), cuts=cuts) == (OK, b"")
    after = path.read_bytes()
    assert len(after) == len(PATTERN)
    for sector in range(SECTORS):
        kept = PATTERN[sector * 512 : (sector + 1) * 512]
        discarded = 8 <= sector < 16 or sector == 63
        assert after[sector * 512 : (sector + 1) * 512] in ((kept, bytes(512)) if discarded else (kept,))


# -- what must not be done ---------------------------------------------------------------------------------------------

BEYOND = [
    (SECTORS, 1),
    (SECTORS - 1, 2),
    (0, SECTORS + 1),
    (SECTORS + 1, 0),
    (1 << 55, 1),
    (2**64 - 1, 1),
    (2**64 - 1, 2),
]


@pytest.mark.parametrize(("sector", "count"), BEYOND)
def test_sectors_out_of_range(loopback, disk, path, sector, count):
    loop = loopback(disk)
    assert ask(loop, IN, sector, room=count * 512) == (IOERR, bytes(count * 512))
    assert ask(loop, OUT, sector, bytes(count * 512))[0] == IOERR
    assert ask(loop, DISCARD, 0, segments((sector, count)))[0] == IOERR
    assert ask(loop, ZEROES, 0, segments((sector, count)))[0] == IOERR
    assert path.read_bytes() == PATTERN
    assert disk.failed == 4


@pytest.mark.parametrize("count", [1, 511, 513, 1000])
def test_lengths_that_are_no_whole_sectors(loopback, disk, path, cuts, count):
    loop = loopback(disk)
    assert ask(loop, IN, 0, room=count, cuts=cuts) == (IOERR, bytes(count))
    assert ask(loop, OUT, 0, bytes(count), cuts=cuts)[0] == IOERR
    assert path.read_bytes() == PATTERN


@pytest.mark.parametrize("count", range(16))
def test_a_short_header(loopback, disk, count):
    assert loopback(disk).offer(pack_header(IN, 0)[:count], 513) == bytes(512) + bytes([IOERR])


@pytest.mark.parametrize("kind", [2, 3, 5, 7, 10, 12, 14, 15, 16, 18, 20, 22, 24, 26, 0x80000000, 0xFFFFFFFF])
def test_unknown_types_are_unsupported(loopback, disk, kind):
    assert ask(loopback(disk), kind, 0, bytes(512), room=512) == (UNSUPP, bytes(512))


@pytest.mark.parametrize("count", [0, 19, 21, 512])
def test_an_id_has_20_bytes(loopback, disk, count):
    assert ask(loopback(disk), GET_ID, room=count) == (IOERR, bytes(count))


def test_flush_of_a_sector(loopback, disk):
    assert ask(loopback(disk), FLUSH, 1)[0] == IOERR


@pytest.mark.parametrize("kind", [DISCARD, ZEROES])
@pytest.mark.parametrize("count", [0, 1, 15, 17, 16 * 33])
def test_segments_that_are_none_or_too_many(loopback, disk, path, kind, count):
    assert ask(loopback(disk), kind, 0, bytes(count))[0] == IOERR
    assert path.read_bytes() == PATTERN


def test_as_many_segments_as_the_configuration_says(loopback, disk):
    loop = loopback(disk)
    assert ask(loop, ZEROES, 0, segments((0, 1)) * blk.MAX_WRITE_ZEROES_SEG)[0] == OK
    assert ask(loop, ZEROES, 0, segments((0, 1)) * (blk.MAX_WRITE_ZEROES_SEG + 1))[0] == IOERR
    assert ask(loop, DISCARD, 0, segments((0, 1)) * blk.MAX_DISCARD_SEG)[0] == OK
    assert ask(loop, DISCARD, 0, segments((0, 1)) * (blk.MAX_DISCARD_SEG + 1))[0] == IOERR


@pytest.mark.parametrize(
    ("kind", "limit"), [(DISCARD, blk.MAX_DISCARD_SECTORS), (ZEROES, blk.MAX_WRITE_ZEROES_SECTORS)]
)
def test_a_segment_longer_than_the_configuration_says(loopback, tmp_path, kind, limit):
    path = tmp_path / "large.img"
    with path.open("wb") as file:
        file.truncate((limit + 8) * 512)
    with Blk(path) as disk:
        assert ask(loopback(disk), kind, 0, segments((0, limit + 1, 0)))[0] == IOERR


def test_one_bad_segment_stops_all(loopback, disk, path):
    loop = loopback(disk)
    assert ask(loop, ZEROES, 0, segments((0, 1, 0), (SECTORS, 1, 0)))[0] == IOERR
    assert ask(loop, ZEROES, 0, segments((0, 1, 0), (1, 1, 2)))[0] == UNSUPP
    assert path.read_bytes() == PATTERN


@pytest.mark.parametrize(("kind", "flags"), [(DISCARD, 1), (DISCARD, 2), (ZEROES, 2), (ZEROES, 3), (ZEROES, 1 << 31)])
@pytest.mark.parametrize("sector", [0, SECTORS + 5])
def test_a_segment_flag_that_is_not_allowed_is_unsupported(loopback, disk, frozen, path, kind, flags, sector):
    for device in (disk, frozen):
        assert ask(loopback(device), kind, 0, segments((sector, 1, flags)))[0] == UNSUPP
    assert path.read_bytes() == PATTERN


@pytest.mark.parametrize(("kind", "feature"), [(DISCARD, 13), (ZEROES, 14)])
def test_a_request_whose_feature_was_not_accepted(loopback, disk, path, kind, feature):
    disk.features_ok(disk.features & ~(1 << feature))
    assert ask(loopback(disk), kind, 0, segments((0, 1)))[0] == UNSUPP
    assert path.read_bytes() == PATTERN


def test_a_read_only_disk_refuses_every_write(loopback, frozen, path):
    loop = loopback(frozen)
    assert ask(loop, OUT, 0, bytes(512))[0] == IOERR
    assert ask(loop, ZEROES, 0, segments((0, 1)))[0] == IOERR
    assert ask(loop, DISCARD, 0, segments((0, 1)))[0] == IOERR
    assert path.read_bytes() == PATTERN
    assert ask(loop, IN, 5, room=512) == (OK, PATTERN[5 * 512 : 6 * 512])
    assert ask(loop, FLUSH)[0] == OK


def test_a_read_only_disk_needs_no_right_to_write(path):
    path.chmod(0o400)
    with Blk(path, read_only=True) as disk:
        assert disk.capacity == SECTORS


@pytest.mark.parametrize("kind", [IN, OUT, FLUSH, GET_ID, 99])
def test_without_a_status_byte_nothing_happens_and_it_is_counted(loopback, disk, path, kind):
    assert loopback(disk).offer(pack_header(kind) + bytes(512), 0) == b""
    assert (disk.unanswered, disk.failed) == (1, 0)
    assert path.read_bytes() == PATTERN


def test_data_behind_the_header_of_a_read_is_ignored(loopback, disk):
    assert ask(loopback(disk), IN, 0, b"what is this", room=512) == (OK, PATTERN[:512])


def test_room_in_front_of_the_status_of_a_write_is_zeroed(loopback, disk, cuts):
    assert ask(loopback(disk), OUT, 0, bytes(512), room=2000, cuts=cuts) == (OK, bytes(2000))


# -- hostile chains, unchecked ---------------------------------------------------------------------------------------


def header_at(loop, address, kind=IN, sector=0):
    loop.memory.write(address, pack_header(kind, sector))
    return address, 16, 0


def test_a_status_byte_outside_guest_memory_is_counted(hostile, disk):
    loop = hostile(disk)
    assert loop.raw(header_at(loop, loop.buffers), (1 << 50, 513, 2)) == 0
    assert disk.unanswered == 1


def test_a_header_outside_guest_memory(hostile, disk):
    loop = hostile(disk)
    assert loop.raw((1 << 50, 16, 0), (loop.buffers, 513, 2)) == 513
    assert loop.memory.read(loop.buffers, 513) == bytes(512) + bytes([IOERR])


def test_empty_buffers_are_skipped(hostile, disk):
    loop = hostile(disk)
    header, status = loop.buffers, loop.buffers + 1000
    first = header_at(loop, header)
    chain = [(header, 0, 0), first, (header, 0, 0), (0, 0, 2), (header + 100, 512, 2), (status, 1, 2), (status, 0, 2)]
    assert loop.raw(*chain) == 513
    assert loop.memory.read(header + 100, 512) == PATTERN[:512]
    assert loop.memory.read(status, 1) == bytes([OK])


def test_readable_behind_writable_is_still_readable_first(hostile, disk):
    loop = hostile(disk)
    assert loop.raw((loop.buffers + 100, 513, 2), header_at(loop, loop.buffers, sector=3)) == 513
    assert loop.memory.read(loop.buffers + 100, 513) == PATTERN[3 * 512 : 4 * 512] + bytes([OK])


def test_overlapping_buffers_harm_only_their_driver(hostile, disk, path):
    loop = hostile(disk)
    place = loop.buffers
    assert loop.raw(header_at(loop, place), (place, 512, 2), (place, 1, 2)) == 513
    assert loop.memory.read(place, 512) == bytes([OK]) + PATTERN[1:512]
    assert path.read_bytes() == PATTERN


@given(
    chain=st.lists(
        st.tuples(
            st.integers(0x10000, 0x20000) | st.integers(0, 2**64 - 1), st.integers(0, 3000), st.sampled_from([0, 2])
        ),
        min_size=1,
        max_size=8,
    ),
    header=st.binary(min_size=16, max_size=64),
)
@FIXTURE
def test_whatever_the_chain_nothing_is_raised(hostile, disk, chain, header):
    loop = hostile(disk)
    loop.memory.write(0x18000, header)
    written = loop.raw(*chain)
    assert 0 <= written <= sum(count for _, count, flags in chain if flags)


@given(readable=st.binary(max_size=600), room=st.integers(0, 600), cuts=st.sets(st.integers(1, 600), max_size=9))
@FIXTURE
def test_whatever_the_request_the_last_byte_is_a_status(loopback, disk, readable, room, cuts):
    if readable or room:
        reply = loopback(disk).offer(readable, room, sorted(cuts), sorted(cuts))
        assert len(reply) == room
        assert not room or reply[-1] in (OK, IOERR, UNSUPP)


# -- the file fails --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind", "data", "room"),
    [
        ("preadv", IN, b"", 1024),
        ("pwritev", OUT, bytes(1024), 0),
        ("pwritev", ZEROES, segments((0, 2)), 0),
        ("fsync", FLUSH, b"", 0),
    ],
)
def test_a_failing_file_is_an_io_error(loopback, disk, monkeypatch, call, kind, data, room):
    def fail(*_):
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(os, call, fail)
    assert ask(loopback(disk), kind, 0, data, room) == (IOERR, bytes(room))
    assert disk.last_error is not None


def test_an_image_that_became_shorter_is_an_io_error(loopback, disk, path, cuts):
    os.truncate(path, 10 * 512 + 100)
    loop = loopback(disk)
    assert ask(loop, IN, 8, room=2048, cuts=cuts) == (IOERR, bytes(2048))
    assert ask(loop, IN, 8, room=1024, cuts=cuts) == (OK, PATTERN[8 * 512 : 10 * 512])


def test_a_closed_disk_answers_with_an_io_error(loopback, path):
    disk = Blk(path)
    disk.close()
    disk.close()
    assert ask(loopback(disk), IN, 0, room=512) == (IOERR, bytes(512))


# -- any sequence of requests, against a model -----------------------------------------------------------------------

places = st.integers(0, SECTORS - 1)
spans = st.tuples(places, st.integers(0, SECTORS)).map(lambda p: (p[0], min(p[1], SECTORS - p[0])))
requests = st.tuples(st.sampled_from([IN, OUT, ZEROES, DISCARD, FLUSH]), spans, st.integers(0, 255), st.booleans())


@given(
    steps=st.lists(requests, max_size=20),
    cuts=st.sets(st.integers(1, SECTORS * 512), max_size=20),
    punch=st.booleans(),
)
@FIXTURE
def test_the_disk_is_a_bytearray(loopback, tmp_path, steps, cuts, punch):
    path = tmp_path / "model.img"
    path.write_bytes(PATTERN)
    model = bytearray(PATTERN)
    with Blk(path) as disk:
        disk.image.can_punch &= punch
        loop = loopback(disk)
        for kind, (sector, count), fill, unmap in steps:
            span = slice(sector * 512, (sector + count) * 512)
            if kind == IN:
                assert ask(loop, IN, sector, room=count * 512, cuts=sorted(cuts)) == (OK, model[span])
            elif kind == OUT:
                model[span] = struct.pack("<I", fill) * (count * 128)
                assert ask(loop, OUT, sector, bytes(model[span]), cuts=sorted(cuts))[0] == OK
            elif kind == ZEROES:
                model[span] = bytes(count * 512)
                assert ask(loop, ZEROES, 0, segments((sector, count, int(unmap))))[0] == OK
            elif kind == DISCARD:
                assert ask(loop, DISCARD, 0, segments((sector, count, 0)))[0] == OK
                after = path.read_bytes()[span]
                assert after in (model[span], bytes(count * 512))
                model[span] = after
            else:
                assert ask(loop, FLUSH)[0] == OK
        assert path.read_bytes() == model
