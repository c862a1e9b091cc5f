"""Streaming a file through a zblock device, and what happens when the device does something else."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import random
import threading
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import Device, DeviceSpec, Driver, QueueSpec, spec
from vqshm.demo.stream import DESCRIPTORS, MAX_BLOCK, RoundTrips, buffer_bytes, stream_file
from vqshm.devices import ZBlock
from vqshm.devices.zblock import HEADER, RECORD, Status, reply_size
from vqshm.errors import CoordinatorGone, DeadlineExceeded, OutOfBuffers, PeerViolation
from vqshm.host import launch
from vqshm.memory import BufferPool

_numbers = itertools.count()


@contextlib.contextmanager
def served(work, *, queues=1, queue_size=16, buffers=1 << 20, notify="eventfd", **attach):
    """A driver whose device is served by `work(device)`, in a thread of its own."""
    name = f"test-stream-{os.getpid()}-{next(_numbers)}"
    queue = QueueSpec(queue_size, buffers)
    failures = []

    def serve():
        with Device.attach(name) as device:
            try:
                work(device)
            except CoordinatorGone:
                pass  # the region was closed faster
            except Exception as error:  # noqa: BLE001 - told by the test's thread
                failures.append(error)

    with launch(name, [DeviceSpec("zblock0", spec.VQSHM_ID_ZBLOCK, (queue,) * queues)], notify=notify):
        thread = threading.Thread(target=serve)
        thread.start()
        with Driver.attach(name, **attach) as driver:
            try:
                yield driver
            finally:
                serving = thread.is_alive()
    thread.join(30)
    assert serving
    assert not thread.is_alive()
    assert not failures


def good(device):
    device.serve(ZBlock())


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 123_456])
@pytest.mark.parametrize("indirect", [False, True], ids=["chained", "indirect"])
def test_every_byte_comes_back(size, indirect):
    data = noise(size)
    seen = []
    with served(good, indirect=indirect) as driver:
        done = stream_file(driver, io.BytesIO(data), 1000, progress=seen.append)
        assert driver.in_flight == 0
        assert driver.ports[0].pool.free >= driver.ports[0].pool.size - 16 * 16 * 16  # all but the indirect tables
    assert done.bytes == size
    assert done.chains == -(-size // 1000)
    assert done.sha256 == hashlib.sha256(data).hexdigest()
    assert done.compressed > 0
    assert done.seconds > 0
    assert done.overtaken == 0
    assert 1 <= done.most_in_flight <= (16 if indirect else 16 // DESCRIPTORS)
    assert seen == sorted(seen)
    assert len(seen) == done.chains
    assert seen[-1] == size
    assert 0 < done.round_trips.percentile(50) <= done.round_trips.percentile(99)


@pytest.mark.parametrize("notify", ["eventfd", "semaphore"])
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_over_several_queues(notify, event_idx):
    data = noise(300_000)
    with served(good, queues=3, notify=notify, event_idx=event_idx) as driver:
        done = stream_file(driver, io.BytesIO(data), 4096, level=9)
        assert done.sha256 == hashlib.sha256(data).hexdigest()
        shares = [port.counts["reaped"] for port in driver.ports]
    assert sum(shares) == done.chains == 74
    assert max(shares) - min(shares) <= 1


def test_an_empty_file_is_no_work():
    with served(good) as driver:
        done = stream_file(driver, io.BytesIO(), 4096)
    assert (done.bytes, done.chains, done.most_in_flight) == (0, 0, 0)
    assert done.sha256 == hashlib.sha256().hexdigest()
    assert done.round_trips.percentile(50) == 0


def test_streaming_goes_on_from_where_the_file_stands():
    file = io.BytesIO(b"header" + noise(5000))
    file.seek(6)
    with served(good) as driver:
        assert stream_file(driver, file, 1000).bytes == 5000
        file.seek(0)
        assert stream_file(driver, file, 1000).bytes == 5006  # and the driver can be used again


def backwards(device):
    """Returns what is there in the opposite order, as a device may."""
    handler = ZBlock()
    device.wait_driver()
    for chain in device:
        chains = [chain]
        while len(chains) < 4:
            try:
                chain = device.next_chain(timeout=0.2)  # noqa: PLW2901 - the next one
            except DeadlineExceeded:
                break
            if chain is None:
                return
            chains.append(chain)
        for taken in reversed(chains):
            device.complete(taken, handler.handle(taken))


def test_blocks_that_come_back_out_of_order_are_put_in_order():
    data = noise(10_000)
    with served(backwards) as driver:
        done = stream_file(driver, io.BytesIO(data), 1000)
    assert done.sha256 == hashlib.sha256(data).hexdigest()
    assert done.overtaken > 0


class Swapper(ZBlock):
    """Answers a block with the one before it, CRC and all."""

    before = b""

    def handle(self, chain):
        block = chain.reader().read()[HEADER.size :]
        answer, self.before = self.before or block, block
        result = zlib.compress(answer)
        return chain.writer().write(RECORD.pack(Status.OK, zlib.crc32(answer), len(result)) + result)


class Liar(ZBlock):
    """Answers something else."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.answer = answer

    def handle(self, chain):
        return chain.writer().write(self.answer)


def liar(answer: bytes):
    return lambda device: device.serve(Liar(answer))


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (lambda device: device.serve(Swapper()), "what came back is not the file"),
        (lambda device: device.serve(ZBlock(max_length=10)), "block 0 of 1000 bytes: the device says BAD_LENGTH"),
        (liar(b""), "an answer of 0 bytes"),
        (liar(RECORD.pack(77, 0, 0)), "status 77"),
        (liar(RECORD.pack(Status.OK, 0, 3) + b"abc"), "not a zlib stream"),
        (liar(RECORD.pack(Status.OK, 0, 8) + zlib.compress(b"")), "not the block of 1000 bytes"),
    ],
    ids=["swapped", "refused", "nothing", "unknown status", "no zlib", "too short"],
)
def test_a_device_that_answers_wrong(device, words):
    with served(device) as driver, pytest.raises(PeerViolation, match=words):
        stream_file(driver, io.BytesIO(noise(3000)), 1000)


def test_a_device_that_does_not_answer():
    def silent(device):
        device.wait_driver()
        for _chain in device:
            pass

    with served(silent) as driver, pytest.raises(DeadlineExceeded, match="3 requests in flight"):
        stream_file(driver, io.BytesIO(noise(3000)), 1000, patience=1)


def test_a_block_that_can_never_fit():
    with served(good, buffers=4096) as driver, pytest.raises(OutOfBuffers):
        stream_file(driver, io.BytesIO(noise(30_000)), 30_000)


@pytest.mark.parametrize("block_size", [0, -1, MAX_BLOCK + 1])
def test_a_block_size_that_cannot_be(block_size):
    with pytest.raises(ValueError, match=f"1 to {MAX_BLOCK} bytes"):
        stream_file(None, io.BytesIO(), block_size)


@given(
    block_size=st.integers(1, MAX_BLOCK),
    queue_size=st.sampled_from([1 << bits for bits in range(2, 16)]),
    indirect=st.booleans(),
)
def test_the_buffers_of_a_queue_hold_two_blocks_at_least(block_size, queue_size, indirect):
    count = buffer_bytes(block_size, queue_size, indirect=indirect)
    pool = BufferPool(0, count)
    if indirect:
        assert 256 * queue_size <= pool.size // 2, "the driver would do without its tables"
        pool.allocate(256 * queue_size)
    for _ in range(2):
        for piece in (HEADER.size, block_size, RECORD.size, reply_size(block_size) - RECORD.size):
            pool.allocate(piece)
    assert count <= max(2 * (2 * block_size + (1 << 16)), 16 << 20) + 1024 * queue_size


@given(st.lists(st.floats(1e-7, 100), min_size=1, max_size=50))
def test_percentiles_are_right_within_two_percent(seconds):
    trips = RoundTrips()
    for duration in seconds:
        trips.add(duration)
    ordered = sorted(seconds)
    for percent in (1, 50, 99, 100):
        exact = ordered[max(-(-len(ordered) * percent // 100), 1) - 1]
        assert trips.percentile(percent) == pytest.approx(exact, rel=0.02)


def test_a_duration_of_nothing_counts():
    trips = RoundTrips()
    trips.add(0.0)
    assert 0 < trips.percentile(99) < 1e-8
