"""What no driver and no device may write is named by the end on the other side, told, and over after a reset."""

from __future__ import annotations

import signal
import struct

import pytest
from vqshm_harness import BOTH, PATIENCE, wait_until

from vqshm import DeviceSpec, QueueSpec, Receiver, Sender, spec
from vqshm.errors import (
    DeviceNeedsReset,
    EndOfMessages,
    InvalidUsedId,
    InvalidUsedLength,
    InvalidUsedRingIndex,
    PeerViolation,
    QueueBroken,
    UsedIdNotInFlight,
)

SIZE = 64


@pytest.fixture
def make_lane(make_region):
    """Make a channel of one lane in a coordinator process of its own."""

    def make(notify: str = "eventfd"):
        queue = QueueSpec(SIZE, 1 << 16)
        return make_region(DeviceSpec("lane", spec.VQSHM_ID_LANE, (queue,), config_bytes=0), notify=notify)

    return make


# -- hostile drivers ---------------------------------------------------------------------------------------------------

NEXT, WRITE, INDIRECT = spec.VIRTQ_DESC_F_NEXT, spec.VIRTQ_DESC_F_WRITE, spec.VIRTQ_DESC_F_INDIRECT


class Vandal:
    """The driver's rings of a lane, written without asking the outlet."""

    def __init__(self, sender: Sender) -> None:
        self.memory = sender._driver.memory
        (queue,) = sender._driver.plan.queues
        self.layout = queue.layout
        self.buffers = queue.buffers.address

    def descriptor(self, index: int, addr: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.memory.write(self.layout.desc_table + 16 * index, struct.pack("<QIHH", addr, length, flags, following))

    def offer(self, *heads: int, index: int | None = None) -> None:
        for position, head in enumerate(heads):
            self.memory.write(self.layout.avail_ring + 4 + 2 * position, struct.pack("<H", head))
        self.memory.write(self.layout.avail_ring + 2, struct.pack("<H", len(heads) if index is None else index))


def head_out_of_range(vandal):
    vandal.offer(SIZE)


def idx_too_far_ahead(vandal):
    vandal.offer(index=SIZE + 1)


def the_same_memory_often(vandal):
    for i in range(SIZE):
        vandal.descriptor(i, vandal.buffers, 1 << 15, NEXT if i + 1 < SIZE else 0, i + 1)
    vandal.offer(0)


def idx_one_back(vandal):
    vandal.offer(index=0xFFFF)


def the_same_head_twice(vandal):
    vandal.descriptor(0, vandal.buffers, 8, NEXT, 0)
    vandal.offer(0, 0)


def address_of_nothing(vandal):
    vandal.descriptor(0, 0xDEAD_BEEF_0000, 8)
    vandal.offer(0)


def address_zero(vandal):
    vandal.descriptor(0, 0, 1)
    vandal.offer(0)


def a_message_that_leaves_memory(vandal):
    vandal.descriptor(0, vandal.buffers, 0xFFFF_FFFF)
    vandal.offer(0)


def a_message_that_passes_the_end_of_addresses(vandal):
    vandal.descriptor(0, (1 << 64) - 4, 8)
    vandal.offer(0)


def a_chain_that_bites_its_tail(vandal):
    vandal.descriptor(0, vandal.buffers, 8, NEXT, 1)
    vandal.descriptor(1, vandal.buffers, 8, NEXT, 0)
    vandal.offer(0)


def next_out_of_range(vandal):
    vandal.descriptor(0, vandal.buffers, 8, NEXT, SIZE)
    vandal.offer(0)


def readable_behind_writable(vandal):
    vandal.descriptor(0, vandal.buffers, 8, NEXT | WRITE, 1)
    vandal.descriptor(1, vandal.buffers, 8)
    vandal.offer(0)


def indirect_that_was_not_negotiated(vandal):
    vandal.descriptor(0, vandal.buffers, 16, INDIRECT)
    vandal.offer(0)


VANDALISM = {  # and their rows
    head_out_of_range: "A01",
    idx_too_far_ahead: "A17",
    idx_one_back: "A17",
    the_same_head_twice: "A26",
    address_of_nothing: "A14",
    address_zero: "A14",
    a_message_that_leaves_memory: "A14",
    a_message_that_passes_the_end_of_addresses: "A13",
    a_chain_that_bites_its_tail: "A03",
    next_out_of_range: "A02",
    the_same_memory_often: "A16",
    readable_behind_writable: "A11",
    indirect_that_was_not_negotiated: "A05",
}


def take_for_ever(receiver, take):
    while True:
        match take:
            case "recv":
                receiver.recv()
            case "recv_many":
                receiver.recv_many(9)
            case "recv_view":
                receiver.recv_view()


def vandalise(me, name, attack):
    """Attacks, hears that the receiver needs a reset, resets it, and behaves."""
    with Sender.attach(name) as sender:
        globals()[attack](Vandal(sender))
        sender._driver.kicks[0].signal()
        while not sender._driver._reset_wanted:
            sender._driver.park([], None)
        try:
            sender.flush()
            for _ in range(2 * SIZE):
                sender.send(b"x")
        except DeviceNeedsReset as error:
            me.send(str(error))
        me.recv()
        sender.reset(PATIENCE)
        for number in range(100):
            sender.send(b"%d" % number)


@BOTH
@pytest.mark.parametrize("take", ["recv", "recv_many", "recv_view"])
@pytest.mark.parametrize(
    "attack", [pytest.param(attack.__name__, marks=pytest.mark.fault(row)) for attack, row in VANDALISM.items()]
)
def test_what_no_driver_may_write_is_named_told_and_over_after_a_reset(make_lane, start, notify, take, attack):
    channel = make_lane(notify)
    with Receiver.attach(channel.name) as receiver:
        vandal = start(vandalise, channel.name, attack)
        with pytest.raises(PeerViolation, match=f"{channel.name}/lane") as caught:
            take_for_ever(receiver, take)
        assert isinstance(caught.value, ValueError)
        status = receiver._device.cells
        wait_until(lambda: status.status & spec.STATUS_DEVICE_NEEDS_RESET or not status.status & 8, "it is told")
        with pytest.raises(QueueBroken, match="the sender must reset it"):
            receiver.recv(0)
        vandal.say("go on")
        while not receiver._device.leaving:
            receiver._device.park([], None)
        assert list(receiver) == [b"%d" % number for number in range(100)]
        assert vandal.hear().startswith("device 'lane' needs a reset")
        vandal.finish()


# -- hostile devices ---------------------------------------------------------------------------------------------------


def element(memory, layout, position: int, number: int, written: int) -> None:
    memory.write(layout.used_ring + 4 + 8 * position, struct.pack("<II", number, written))


def idx(memory, layout, value: int) -> None:
    memory.write(layout.used_ring + 2, struct.pack("<H", value))


def id_out_of_range(memory, layout):
    element(memory, layout, 0, SIZE, 0)
    idx(memory, layout, 1)


def id_that_is_huge(memory, layout):
    element(memory, layout, 0, 0xFFFF_FFFF, 0)
    idx(memory, layout, 1)


def id_that_was_not_offered(memory, layout):
    element(memory, layout, 0, SIZE - 1, 0)
    idx(memory, layout, 1)


def the_same_id_twice(memory, layout):
    element(memory, layout, 0, 0, 0)
    element(memory, layout, 1, 0, 0)
    idx(memory, layout, 2)


def bytes_written_to_a_message(memory, layout):
    element(memory, layout, 0, 0, 1)
    idx(memory, layout, 1)


def idx_beyond_what_is_in_flight(memory, layout):
    idx(memory, layout, 4)


def idx_far_beyond(memory, layout):
    idx(memory, layout, 0x8000)


FORGERIES = {
    id_out_of_range: (InvalidUsedId, "B01"),
    id_that_is_huge: (InvalidUsedId, "B01"),
    id_that_was_not_offered: (UsedIdNotInFlight, "B02"),
    the_same_id_twice: (UsedIdNotInFlight, "B04"),
    bytes_written_to_a_message: (InvalidUsedLength, "A30"),
    idx_beyond_what_is_in_flight: (InvalidUsedRingIndex, "B08"),
    idx_far_beyond: (InvalidUsedRingIndex, "B08"),
}


def forge(me, name, forgery):
    """Takes three messages, forges the used ring, and behaves after a reset."""
    with Receiver.attach(name) as receiver:
        me.send("up")
        loans = [receiver.recv_view(PATIENCE) for _ in range(3)]
        (queue,) = receiver._device.plan.queues
        globals()[forgery](receiver._device.memory, queue.layout)
        receiver._device.calls[0].signal()
        while not receiver._device.leaving:
            receiver._device.park([], None)
        for loan in loans:
            loan.release()
        with pytest.raises(EndOfMessages):
            receiver.recv()
        for message in receiver:
            me.send(message)


@BOTH
@pytest.mark.parametrize(
    ("forgery", "violation"),
    [
        pytest.param(f.__name__, error, marks=pytest.mark.fault(row), id=f.__name__)
        for f, (error, row) in FORGERIES.items()
    ],
)
def test_what_no_device_may_write_is_named_and_over_after_a_reset(make_lane, notify, forgery, violation):
    channel = make_lane(notify)
    actor = channel.start(forge, forgery)
    with Sender.attach(channel.name) as sender:
        sender.send_many([b"x"] * 3)
        with pytest.raises(violation, match=f"{channel.name}/lane") as caught:
            sender.flush(PATIENCE)
        assert isinstance(caught.value, PeerViolation)
        for send in (lambda: sender.send(b"y"), lambda: sender.call(b"y", 1), sender.flush):
            with pytest.raises(QueueBroken, match="reset"):
                send()
        sender.reset(PATIENCE)
        for number in range(100):
            sender.send(b"%d" % number, PATIENCE)
            assert actor.hear() == b"%d" % number


@pytest.mark.fault("A30")
def test_an_answer_longer_than_its_room_is_named(make_lane):
    channel = make_lane()
    channel.start(overlong)
    with Sender.attach(channel.name) as sender, pytest.raises(InvalidUsedLength, match="9 bytes written to 8"):
        sender.call(b"question", 8, PATIENCE)


def overlong(me, name):
    with Receiver.attach(name) as receiver:
        me.send("up")
        _loan = receiver.recv_view(PATIENCE)
        (queue,) = receiver._device.plan.queues
        element(receiver._device.memory, queue.layout, 0, 0, 9)
        idx(receiver._device.memory, queue.layout, 1)
        receiver._device.calls[0].signal()
        signal.pause()
