"""The driver's side of the block device: over the real one in a loopback, and over devices that misbehave."""

from __future__ import annotations

import errno
import os

import pytest

from vqshm import spec
from vqshm.devices import Blk, BlkClient
from vqshm.devices.blk_client import BlkError
from vqshm.devices.blk_layout import BlkConfig
from vqshm.errors import PeerViolation, RuleError

SECTORS = 64


class Config:
    def __init__(self, data):
        self.data = data

    def read(self, offset, count):
        assert offset + count <= len(self.data)
        return self.data[offset : offset + count]


class Loop:
    """A driver whose device is a handler in a loopback; notes what was asked."""

    def __init__(self, loop, features=None):
        self.loop = loop
        self.features = loop.handler.features if features is None else features
        self.config = Config(loop.handler.config)
        self.asked = []

    def request(self, readable, writable, *, timeout):
        self.asked.append((b"".join(bytes(piece) for piece in readable), writable))
        return self.loop.offer(self.asked[-1][0], writable)


class Canned:
    """A driver whose device always gives the same answer."""

    def __init__(self, reply, features=0, **config):
        self.reply = reply
        self.features = features
        self.config = Config(BlkConfig(capacity=SECTORS, **config).pack())

    def request(self, readable, writable, *, timeout):
        return self.reply


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTORS * 512))
    return path


@pytest.fixture
def driver(loopback, path):
    with Blk(path) as disk:
        yield Loop(loopback(disk))


def test_a_disk(driver, path):
    disk = BlkClient(driver)
    data = os.urandom(SECTORS * 512)
    assert disk.capacity == SECTORS
    assert disk.id() == "disk.img"
    disk.write(0, data)
    disk.flush()
    assert disk.read(0, SECTORS) == data == path.read_bytes()
    disk.write_zeroes(1, 2)
    disk.write_zeroes(3, 1, unmap=True)
    assert disk.read(0, 5) == data[:512] + bytes(3 * 512) + data[4 * 512 : 5 * 512]
    disk.discard(0, SECTORS)
    assert len(disk.read(0, SECTORS)) == SECTORS * 512
    assert disk.read(SECTORS, 0) == b""
    disk.write(SECTORS, b"")


@pytest.mark.parametrize("transfer", [512, 1000, 1536, 1 << 20])
def test_long_transfers_go_out_in_pieces(driver, transfer):
    disk = BlkClient(driver, transfer=transfer)
    data = os.urandom(10 * 512)
    disk.write(5, memoryview(data))
    assert disk.read(5, 10) == data
    step = transfer // 512
    assert len(driver.asked) == 2 * -(-10 // step)
    assert max(room for _, room in driver.asked) == min(step, 10) * 512 + 1


def test_ranges_keep_to_the_limits(loopback, path):
    with Blk(path) as handler:
        handler.config = BlkConfig(capacity=SECTORS, max_discard_sectors=10, max_write_zeroes_sectors=30).pack()
        driver = Loop(loopback(handler))
        disk = BlkClient(driver)
        disk.discard(1, 25)
        assert len(driver.asked) == 3
        disk.write_zeroes(0, 60)
        assert len(driver.asked) == 5


@pytest.mark.parametrize(("sector", "count"), [(SECTORS, 1), (0, SECTORS + 1), (-1, 1), (1, -1), (2**64, 1)])
def test_nothing_is_sent_for_sectors_that_do_not_exist(driver, sector, count):
    disk = BlkClient(driver)
    for ask in (disk.read, disk.discard, disk.write_zeroes):
        with pytest.raises(RuleError, match="disk of 64"):
            ask(sector, count)
    if count > 0:
        with pytest.raises(RuleError, match="disk of 64"):
            disk.write(sector, bytes(count * 512))
    with pytest.raises(RuleError, match="whole number"):
        disk.write(0, b"123")
    assert driver.asked == []


def test_a_read_only_disk(loopback, path):
    with Blk(path, read_only=True) as handler:
        driver = Loop(loopback(handler))
        disk = BlkClient(driver)
        for ask in (lambda: disk.write(0, bytes(512)), lambda: disk.discard(0, 1), lambda: disk.write_zeroes(0, 1)):
            with pytest.raises(OSError, match="read-only") as caught:
                ask()
            assert caught.value.errno == errno.EROFS
        assert driver.asked == []
        assert disk.read(0, 1) == bytes(512)


def test_features_that_were_not_negotiated(loopback, path):
    with Blk(path) as handler:
        driver = Loop(loopback(handler), features=0)
        disk = BlkClient(driver)
        disk.flush()
        with pytest.raises(BlkError, match="DISCARD: the feature was not negotiated"):
            disk.discard(0, 1)
        with pytest.raises(BlkError) as caught:
            disk.write_zeroes(0, 1)
        assert caught.value.errno == errno.EOPNOTSUPP
        assert driver.asked == []


@pytest.mark.parametrize(
    ("status", "number", "name"),
    [(1, errno.EIO, "IOERR"), (2, errno.EOPNOTSUPP, "UNSUPP"), (77, errno.EIO, "status 77")],
)
def test_a_refusal_is_an_oserror(status, number, name):
    disk = BlkClient(Canned(bytes(512) + bytes([status])))
    with pytest.raises(OSError, match=rf"IN at sector 5.*{name}") as caught:
        disk.read(5, 1)
    assert caught.value.errno == number
    assert caught.value.facts["status"] == status


@pytest.mark.parametrize("reply", [b"", bytes(512), bytes(514)])
def test_an_answer_without_a_status_is_the_devices_fault(reply):
    with pytest.raises(PeerViolation, match="instead of 513"):
        BlkClient(Canned(reply)).read(0, 1)


def test_limits_of_zero_mean_none():
    disk = BlkClient(Canned(b"\0", features=1 << spec.VIRTIO_BLK_F_DISCARD))
    disk.discard(0, SECTORS)
    disk.discard(0, 0)


def test_a_transfer_holds_a_sector():
    with pytest.raises(ValueError, match="at least 512"):
        BlkClient(Canned(b"\0"), transfer=511)
