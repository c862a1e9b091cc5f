"""A driver that writes what it likes into the rings breaks its own queue and nothing else."""

from __future__ import annotations

import mmap
import random
import select
import struct

import pytest
from vqshm_harness import BOTH, PATIENCE, echo_spec, wait_until

from vqshm import Device, Driver, spec
from vqshm.errors import DeadlineExceeded, DeviceNeedsReset, InvalidState, VqshmError
from vqshm.host import open_plan
from vqshm.transport import GUEST_BASE

NEXT, WRITE, INDIRECT = spec.VIRTQ_DESC_F_NEXT, spec.VIRTQ_DESC_F_WRITE, spec.VIRTQ_DESC_F_INDIRECT
SIZE = 64


class Vandal:
    """The bytes of one queue, written without asking anybody."""

    def __init__(self, region: str, device: str, queue: int = 0) -> None:
        fd, _, plan = open_plan(region)
        self.memory = mmap.mmap(fd.fileno(), plan.total_bytes)
        fd.close()
        self._base = plan.manifest_bytes - GUEST_BASE
        self.plan = plan.device(device).queues[queue]
        self.layout = self.plan.layout

    def put(self, address: int, data: bytes) -> None:
        start = self._base + address
        self.memory[start : start + len(data)] = data

    def descriptor(
        self, index: int, addr: int, length: int, flags: int = 0, following: int = 0, table: int = 0
    ) -> None:
        data = struct.pack("<QIHH", addr, length, flags & 0xFFFF, following & 0xFFFF)
        self.put((table or self.layout.desc_table) + 16 * index, data)

    def offer(self, *heads: int, index: int | None = None, at: int = 0) -> None:
        """Put heads into the available ring from position `at`, and let idx be `index`, or what it should be."""
        for position, head in enumerate(heads, at):
            self.put(self.layout.avail_ring + 4 + 2 * (position % SIZE), struct.pack("<H", head))
        self.put(self.layout.avail_ring + 2, struct.pack("<H", at + len(heads) if index is None else index))

    @property
    def buffers(self) -> int:
        return self.plan.buffers.address


def head_out_of_range(vandal):
    vandal.offer(SIZE)


def head_far_out_of_range(vandal):
    vandal.offer(0xFFFF)


def idx_too_far_ahead(vandal):
    vandal.offer(0, index=SIZE + 1)


def the_same_buffer_often(vandal):
    """More bytes in all than there is memory, so that a handler that reads them would have to find some."""
    for i in range(SIZE):
        vandal.descriptor(i, vandal.buffers, 1 << 17, NEXT if i + 1 < SIZE else 0, i + 1)
    vandal.offer(0)


def idx_one_back(vandal):
    vandal.offer(index=0xFFFF)


def the_same_head_twice(vandal):
    vandal.descriptor(0, vandal.buffers, 8)
    vandal.descriptor(1, vandal.buffers, 8)
    vandal.offer(*[0] * SIZE, index=SIZE)


def a_chain_that_bites_its_tail(vandal):
    vandal.descriptor(0, vandal.buffers, 8, NEXT, 1)
    vandal.descriptor(1, vandal.buffers, 8, NEXT, 0)
    vandal.offer(0)


def a_descriptor_that_follows_itself(vandal):
    vandal.descriptor(3, vandal.buffers, 8, NEXT, 3)
    vandal.offer(3)


def next_out_of_range(vandal):
    vandal.descriptor(0, vandal.buffers, 8, NEXT, SIZE)
    vandal.offer(0)


def address_of_nothing(vandal):
    vandal.descriptor(0, 0xDEAD_BEEF_0000, 8)
    vandal.offer(0)


def address_zero(vandal):
    vandal.descriptor(0, 0, 8)
    vandal.offer(0)


def address_in_the_manifest(vandal):
    vandal.descriptor(0, GUEST_BASE - 4096, 4096, WRITE)
    vandal.offer(0)


def a_buffer_that_leaves_memory(vandal):
    vandal.descriptor(0, vandal.buffers, 0xFFFF_FFFF)
    vandal.offer(0)


def a_buffer_that_passes_the_end_of_addresses(vandal):
    vandal.descriptor(0, (1 << 64) - 4, 8)
    vandal.offer(0)


def readable_behind_writable(vandal):
    vandal.descriptor(0, vandal.buffers, 8, NEXT | WRITE, 1)
    vandal.descriptor(1, vandal.buffers, 8)
    vandal.offer(0)


def indirect_of_no_length(vandal):
    vandal.descriptor(0, vandal.buffers, 0, INDIRECT)
    vandal.offer(0)


def indirect_of_a_crooked_length(vandal):
    vandal.descriptor(0, vandal.buffers, 17, INDIRECT)
    vandal.offer(0)


def indirect_of_nothing(vandal):
    vandal.descriptor(0, 0xDEAD_0000_0000, 32, INDIRECT)
    vandal.offer(0)


def indirect_in_indirect(vandal):
    vandal.descriptor(0, vandal.buffers, 16, INDIRECT)
    vandal.descriptor(0, vandal.buffers, 16, INDIRECT, table=vandal.buffers)
    vandal.offer(0)


def indirect_and_next(vandal):
    vandal.descriptor(0, vandal.buffers, 16, INDIRECT | NEXT, 1)
    vandal.descriptor(1, vandal.buffers, 8)
    vandal.offer(0)


def indirect_that_bites_its_tail(vandal):
    vandal.descriptor(0, vandal.buffers, 32, INDIRECT)
    vandal.descriptor(0, vandal.buffers, 8, NEXT, 1, table=vandal.buffers)
    vandal.descriptor(1, vandal.buffers, 8, NEXT, 0, table=vandal.buffers)
    vandal.offer(0)


ATTACKS = {  # and their rows
    head_out_of_range: "A01",
    head_far_out_of_range: "A01",
    idx_too_far_ahead: "A17",
    idx_one_back: "A17",
    a_chain_that_bites_its_tail: "A03",
    a_descriptor_that_follows_itself: "A03",
    next_out_of_range: "A02",
    address_of_nothing: "A14",
    address_zero: "A14",
    address_in_the_manifest: "A14",
    a_buffer_that_leaves_memory: "A14",
    a_buffer_that_passes_the_end_of_addresses: "A13",
    readable_behind_writable: "A11",
    indirect_of_no_length: "A06",
    indirect_of_a_crooked_length: "A06",
    indirect_of_nothing: "A14",
    indirect_in_indirect: "A05",
    indirect_and_next: "A08",
    the_same_buffer_often: "A16",
    indirect_that_bites_its_tail: "A04",
}


def vandalise(me, name, attack):
    """A driver of two queues: the first is vandalised, the second used as it should be."""
    with Driver.attach(name, "left") as driver:
        globals()[attack](Vandal(name, "left"))
        driver.kicks[0].signal()
        me.send("done")
        while driver._reset_wanted == {}:
            driver.park(driver.calls, None)
        me.send(dict(driver._reset_wanted))
        try:
            driver.submit([b"x"])
        except DeviceNeedsReset as error:
            me.send(str(error))
        me.send([driver.request(b"%d" % number, 64, queue=1) for number in range(100)])
        driver.reset()
        me.send([driver.request(b"%d" % number, 64, queue=number % 2) for number in range(100)])
        me.recv()


@pytest.mark.parametrize(
    "attack", [pytest.param(attack.__name__, marks=pytest.mark.fault(row)) for attack, row in ATTACKS.items()]
)
def test_a_malformed_chain_breaks_its_queue_is_reported_and_nobody_else_notices(make_region, start, attack):
    region = make_region(echo_spec("left", 2), echo_spec("right"))
    device = region.echo("left")
    region.echo("right")
    numbers = [b"%d" % number for number in range(100)]
    with Driver.attach(region.name, "right") as neighbour:
        vandal = start(vandalise, region.name, attack)
        assert vandal.hear() == "done"
        reasons = vandal.hear()
        assert list(reasons) == [0]
        assert "left queue 0" in reasons[0]
        assert reasons[0] in vandal.hear()
        assert vandal.hear() == numbers
        assert [neighbour.request(number, 64, timeout=PATIENCE) for number in numbers] == numbers
        assert vandal.hear() == numbers  # a reset heals it
        vandal.finish()
    region.coordinator.finish()
    assert device.end() == 0


@pytest.mark.fault("A25")
def test_a_broken_queue_costs_no_time(make_region, start):
    region = make_region(echo_spec("left", 2))
    device = region.echo("left")
    vandal = start(vandalise, region.name, "idx_too_far_ahead")
    for _ in range(5):
        vandal.hear()
    vandal.freeze()
    wait_until(lambda: device.state() == "S", "the device sleeps")
    before = device.cpu_seconds()
    select.select([], [], [], 0.3)
    assert device.cpu_seconds() - before < 0.1


@pytest.mark.fault("B15")
@BOTH
def test_a_device_outlives_a_storm_of_kicks_without_work(make_region, start, notify):
    region = make_region(echo_spec("left", 2), notify=notify)
    region.echo("left")
    storm = start(storming, region.name)
    assert storm.hear() == [b"%d" % number for number in range(100)]


def storming(me, name):
    with Driver.attach(name, "left") as driver:
        answers = []
        for number in range(100):
            for _ in range(100):
                driver.kicks[number % 2].signal()
            answers.append(driver.request(b"%d" % number, 64))
        me.send(answers)


@pytest.mark.fault("A26")
@BOTH
def test_heads_offered_twice_are_a_violation_and_no_double_answer(make_region, notify):
    region = make_region(echo_spec("left", 2), notify=notify)
    with Device.attach(region.name) as device, Driver.attach(region.name) as driver:
        device.wait_driver(PATIENCE)
        the_same_head_twice(Vandal(region.name, "left"))
        chain = device.pop()
        assert chain.head_index == 0
        assert device.pop() is None  # the second was refused
        driver.submit([b"x"], queue=1)
        assert device.pop() is not None
        driver.park([], PATIENCE)
        with pytest.raises(DeviceNeedsReset, match="while in flight"):
            driver.submit([b"x"])


@pytest.mark.parametrize("seed", range(10))
def test_random_bytes_in_its_rings_never_end_a_device(make_region, start, seed):
    region = make_region(echo_spec("left", 2), echo_spec("right"))
    device = region.echo("left")
    vandal = start(scribble, region.name, seed, 20)
    assert vandal.hear() == 20
    with Driver.attach(region.name, "left", timeout=PATIENCE) as driver:
        assert driver.request(b"as if nothing had been", 64, timeout=PATIENCE) == b"as if nothing had been"
    region.coordinator.finish()
    assert device.end() == 0


@pytest.mark.long
def test_many_random_bytes_in_its_rings_never_end_a_device(make_region, start):
    region = make_region(echo_spec("left", 2))
    device = region.echo("left")
    assert start(scribble, region.name, 1234, 3000).hear() == 3000
    region.coordinator.finish()
    assert device.end() == 0


def scribble(me, name, seed, rounds):
    """Damages valid chains at random: the rings, the descriptors and the tables."""
    rng = random.Random(seed)
    with Driver.attach(name, "left") as driver:
        vandal = Vandal(name, "left", 0)
        for _ in range(rounds):
            try:
                for _ in range(rng.randrange(8)):
                    driver.submit([b"a" * rng.randrange(1, 200), b"b"], [64, 64])
                for _ in range(rng.randrange(1, 20)):
                    area = rng.choice([vandal.layout.desc_table, vandal.layout.avail_ring, vandal.buffers])
                    vandal.put(area + rng.randrange(200), rng.randbytes(rng.choice([1, 2, 4, 16])))
                driver.kicks[0].signal()
                driver.request(b"x", 8, timeout=0.002)
            except VqshmError:
                driver._early.clear()
            for request in driver.reset(PATIENCE):
                request.release()
            driver._pools.clear()
    me.send(rounds)


# -- against the manifest ----------------------------------------------------------------------------------------------


@pytest.mark.fault("B12")
def test_a_manifest_that_somebody_overwrites_harms_nobody_inside_and_lets_nobody_in(served):
    with Driver.attach(served.name) as driver:
        fd, _, plan = open_plan(served.name)
        with mmap.mmap(fd.fileno(), plan.manifest_bytes) as memory:
            fd.close()
            whole = memory[:]
            for seed in range(20):
                memory[:] = random.Random(seed).randbytes(plan.manifest_bytes)
                assert driver.request(b"%d" % seed, 8, timeout=PATIENCE) == b"%d" % seed
                with pytest.raises((VqshmError, ValueError)):
                    Driver.attach(served.name)
            memory[:] = bytes(plan.manifest_bytes)
            with pytest.raises(InvalidState, match="half made"):
                Driver.attach(served.name)
            memory[:] = whole
        driver.reset(PATIENCE)
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"


def test_a_configuration_that_never_holds_still_is_a_deadline(region):
    with Device.attach(region.name) as device, Driver.attach(region.name) as driver:
        device.cells.config_generation = 7  # odd: as if it had died while writing
        with pytest.raises(DeadlineExceeded, match="configuration"):
            driver.config.read(0, 4)
