"""Senders and receivers in processes that are killed, stopped, hostile or many: nothing is lost, wedged or left."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import struct
import zlib
from pathlib import Path

import pytest
from vqshm_harness import BOTH, PATIENCE, descriptors, new_name, wait_until

from vqshm import DeviceSpec, QueueSpec, Receiver, Sender, open_channel, spec
from vqshm.errors import (
    CoordinatorGone,
    EndOfMessages,
    InvalidState,
    NoMessage,
    NoRoom,
    PeerGone,
)
from vqshm.host import driver_role
from vqshm.host.system import shm

ARENA = 1 << 16


@pytest.fixture
def make_channel(make_region):
    """Make a channel in a coordinator process of its own; by default with one lane."""

    def make(*lanes: str, size: int = 64, buffers: int = ARENA, notify: str = "eventfd"):
        queue = QueueSpec(size, buffers)
        devices = [DeviceSpec(lane, spec.VQSHM_ID_LANE, (queue,), config_bytes=0) for lane in lanes or ("lane",)]
        return make_region(*devices, notify=notify)

    return make


def press(sender) -> None:
    """Send until something happens."""
    while True:
        sender.send(b"x", PATIENCE)


# -- traffic -----------------------------------------------------------------------------------------------------------


class Stream:
    """The messages of one seed: numbered, of random sizes, most of them small, told apart by their content."""

    def __init__(self, seed: int, arena: int = ARENA) -> None:
        self._random = random.Random(seed)
        self._noise = self._random.randbytes(arena)
        self._arena = arena
        self.number = 0

    def next(self) -> bytes:
        size = self._random.choices([self._random.randrange(200), self._random.randrange(5000), 0], [100, 5, 1])[0]
        if self.number % 5000 == 7:
            size = self._arena
        self.number += 1
        start = self._random.randrange(self._arena - size + 1)
        return (struct.pack("<I", self.number) + self._noise[start : start + size])[:size]


def talking(me, name, lane, seed, count, event_idx):
    """Sends a stream in every way there is."""
    stream = Stream(seed)
    rng = random.Random(seed + 1)
    with Sender.attach(name, lane, event_idx=event_idx, timeout=PATIENCE) as sender:
        me.send("up")
        while stream.number < count:
            match rng.randrange(6):
                case 0 | 1:
                    sender.send(stream.next())
                case 2:
                    sender.send_many([stream.next() for _ in range(min(rng.randrange(1, 100), count - stream.number))])
                case 3:
                    message = stream.next()
                    with sender.reserve(len(message)) as view:
                        view[:] = message
                case 4:
                    message = stream.next()
                    cut = rng.randrange(len(message) + 1)
                    sender.send([message[:cut], bytearray(message[cut:])])
                case 5:
                    message = stream.next()
                    if len(message) < ARENA - 64:
                        answer = sender.call(message, 4)
                        assert answer in {b"", struct.pack("<I", zlib.crc32(message))}
                    else:
                        sender.send(memoryview(message))
        sender.flush()
        me.send(sender.counts)


def listening(me, name, lane, seed):
    """Receives a stream in every way there is, checks it, and says how long it was."""
    stream = Stream(seed)
    rng = random.Random(seed + 2)
    with Receiver.attach(name, lane) as receiver:
        me.send("up")
        with contextlib.suppress(EndOfMessages):
            while True:
                match rng.randrange(4):
                    case 0:
                        assert receiver.recv() == stream.next()
                    case 1:
                        for message in receiver.recv_many(rng.randrange(1, 100)):
                            assert message == stream.next()
                    case 2:
                        with receiver.recv_view() as view:
                            assert view == stream.next()
                    case 3:
                        loan = receiver.recv_view()
                        with loan as view:
                            assert view == stream.next()
                            if loan.room >= 4:
                                loan.reply(struct.pack("<I", zlib.crc32(view)))
        me.send((stream.number, receiver.counts))


@pytest.mark.fault("C09")
@BOTH
@pytest.mark.parametrize("event_idx", [True, False], ids=["EVENT_IDX", "flags"])
@pytest.mark.parametrize("count", [10_000, pytest.param(120_000, marks=pytest.mark.long)])
def test_both_ways_at_once_every_message_arrives_once_whole_and_in_order(make_channel, notify, event_idx, count):
    channel = make_channel("there", "back", notify=notify)
    listeners = [channel.start(listening, lane, seed) for seed, lane in enumerate(("there", "back"))]
    talkers = [channel.start(talking, lane, seed, count, event_idx) for seed, lane in enumerate(("there", "back"))]
    sent = [actor.hear() for actor in talkers]
    for theirs, listener in zip(sent, listeners, strict=True):
        number, counts = listener.hear()
        assert number == count or number in range(count, count + 100)
        assert theirs["messages"] == counts["messages"] == number
        assert theirs["bytes"] == counts["bytes"]


def pouring(me, name, rounds, count):
    """Sends as fast as it can, round by round; says what notifications each round took."""
    with Sender.attach(name, timeout=PATIENCE) as sender:
        me.send("up")
        for _ in range(rounds):
            before = sender.counts
            for number in range(0, count, 64):
                sender.send_many([b"%064d" % number] * 64)
            sender.flush()
            after = sender.counts
            me.send(after["kicks"] - before["kicks"] + after["waits"] - before["waits"])


def drinking(me, name, rounds, count):
    """Receives as fast as it can, round by round; says what notifications each round took."""
    with Receiver.attach(name) as receiver:
        me.send("up")
        for _ in range(rounds):
            before, got = receiver.counts, 0
            while got < count:
                got += len(receiver.recv_many(min(512, count - got)))
            receiver._inlet.tell()  # as it does before it waits
            after = receiver.counts
            me.send(after["calls"] - before["calls"] + after["waits"] - before["waits"])


@pytest.mark.fault("C09")
def test_under_load_a_hundred_messages_cost_less_than_one_system_call(make_channel):
    """Kicks, calls and sleeps of both sides; on a machine that does other things, in the best of some rounds."""
    rounds, count = 12, 64 * 200
    channel = make_channel(size=4096, buffers=1 << 20)
    receiver = channel.start(drinking, rounds, count)
    sender = channel.start(pouring, rounds, count)
    shares = [(sender.hear() + receiver.hear()) / count for _ in range(rounds)]
    assert min(shares) < 0.01, shares


# -- sudden death ------------------------------------------------------------------------------------------------------


def receiving(me, name, limit):
    """Receives so many messages, says so, and waits for its end."""
    with Receiver.attach(name) as receiver:
        me.send("up")
        for _ in range(limit):
            receiver.recv()
        if limit:
            receiver._inlet.tell()  # as it does before it waits
        me.send("received")
        me.recv()


def sending(me, name, count):
    """Sends so many messages, says so, and never says goodbye."""
    with Sender.attach(name, timeout=PATIENCE) as sender:
        for number in range(count):
            sender.send(b"%d" % number)
        me.send("sent")
        signal.pause()


@BOTH
@pytest.mark.parametrize("way", ["killed", "closed"])
@pytest.mark.parametrize("what", ["send", "send_many", "reserve", "call", "flush"])
def test_a_sender_is_told_at_once_that_its_receiver_is_gone_and_how_much_was_out(
    make_channel, start, notify, way, what
):
    channel = make_channel(size=8, notify=notify)
    receiver = channel.start(receiving, 0)
    receiver.hear()
    actor = start(bereaved, channel.name, what)
    assert actor.hear() == "up"
    wait_until(lambda: actor.state() == "S", "the sender sleeps")
    if way == "killed":
        receiver.kill()
    else:
        receiver.finish()
    out = 1 if what == "call" else 8
    assert actor.hear() == ("PeerGone", {"pid": receiver.pid, "role": "device", "in_flight": out})
    channel.start(receiving, 1)
    actor.say("go on")
    assert actor.hear() == out
    actor.finish()


def bereaved(me, name, what):
    with Sender.attach(name) as sender:
        if what != "call":
            sender.send_many([b"x"] * 8)
        me.send("up")
        try:
            match what:
                case "send":
                    sender.send(b"y")
                case "send_many":
                    sender.send_many([b"y"])
                case "reserve":
                    sender.reserve(1)
                case "call":
                    sender.call(b"y", 8)
                case "flush":
                    sender.flush()
        except PeerGone as error:
            me.send((type(error).__name__, error.facts))
        with pytest.raises(PeerGone):
            sender.flush()
        me.recv()
        me.send(sender.reset(PATIENCE))
        sender.send(b"anew")
        sender.flush()


@BOTH
def test_of_a_killed_receiver_the_lost_messages_are_counted(make_channel, notify):
    channel = make_channel(size=8, notify=notify)
    receiver = channel.start(receiving, 5)
    with Sender.attach(channel.name) as sender:
        sender.send_many([b"x"] * 8)
        assert receiver.hear() == "received"
        receiver.kill()
        successor = channel.start(receiving, 3)
        assert sender.reset(PATIENCE) == 3
        sender.send_many([b"y"] * 3)
        assert successor.hear() == "received"
        successor.finish()


@BOTH
@pytest.mark.parametrize("waiting", [False, True], ids=["later", "asleep"])
def test_of_a_killed_sender_everything_it_published_is_received_then_its_end_is_told(
    make_channel, start, notify, waiting
):
    channel = make_channel(notify=notify)
    with Receiver.attach(channel.name) as receiver:
        for _ in range(3):
            sender = start(sending, channel.name, 50)
            assert sender.hear() == "sent"
            if waiting:
                assert [receiver.recv(PATIENCE) for _ in range(50)] == [b"%d" % number for number in range(50)]
                sender.signal(signal.SIGKILL)
            else:
                sender.kill()
                assert [receiver.recv(PATIENCE) for _ in range(50)] == [b"%d" % number for number in range(50)]
            with pytest.raises(EndOfMessages) as caught:
                receiver.recv(PATIENCE)
            assert caught.value.facts == {"pid": sender.pid, "ended": True}
            with pytest.raises(NoMessage):
                receiver.recv(0.001)


@BOTH
def test_messages_go_on_without_a_coordinator_and_only_newcomers_are_refused(make_channel, notify):
    channel = make_channel("there", "back", notify=notify)
    actor = channel.start(ponging)
    with Sender.attach(channel.name, "there") as sender, Receiver.attach(channel.name, "back") as receiver:
        sender.send(b"first")
        assert receiver.recv(PATIENCE) == b"first"
        channel.coordinator.kill()
        for number in range(1000):
            sender.send(b"%d" % number, PATIENCE)
            assert receiver.recv(PATIENCE) == b"%d" % number
        for attach in (Sender.attach, Receiver.attach):
            with pytest.raises(CoordinatorGone):
                attach(channel.name, "there")
        actor.kill()
        with pytest.raises(EndOfMessages):
            receiver.recv(PATIENCE)
        with pytest.raises(PeerGone):
            press(sender)
        with pytest.raises(CoordinatorGone):
            sender.reset(PATIENCE)
        with pytest.raises(InvalidState, match="no driver will come"):
            receiver.recv()


def ponging(me, name):
    with Receiver.attach(name, "there") as receiver:
        me.send("up")
        with Sender.attach(name, "back", timeout=PATIENCE) as sender:
            for message in receiver:
                sender.send(message)


@BOTH
def test_when_a_region_closes_what_was_sent_is_received_and_who_waits_for_room_is_told(
    make_channel, start, monkeypatch, notify
):
    monkeypatch.setattr(driver_role, "CONTROL_TIMEOUT", 0.05)  # seconds: how long a closing region is waited for
    channel = make_channel(size=8, notify=notify)
    with Receiver.attach(channel.name) as receiver, Sender.attach(channel.name) as sender:
        sender.send_many([b"%d" % number for number in range(8)])
        channel.coordinator.finish()
        with pytest.raises(CoordinatorGone, match="8 requests"):
            sender.send(b"more")
        assert list(receiver) == [b"%d" % number for number in range(8)]
        with pytest.raises(InvalidState, match="no driver will come"):
            receiver.recv()


# -- nothing stays -----------------------------------------------------------------------------------------------------


def held() -> tuple[int, int, set[str]]:
    """Descriptors, mappings and objects in /dev/shm that are ours."""
    open_ones = descriptors()
    maps = Path("/proc/self/maps").read_text().count("vqshm.")
    return open_ones, maps, {name for name in os.listdir("/dev/shm") if f"t{os.getpid()}-" in name}  # noqa: PTH208


@BOTH
@pytest.mark.parametrize("cycles", [300, pytest.param(2_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_coming_and_going_leaves_nothing_open_anywhere(make_channel, notify, cycles):
    channel = make_channel(notify=notify)
    before = theirs = None
    for number in range(cycles + 1):
        with Receiver.attach(channel.name, timeout=PATIENCE) as receiver:
            with Sender.attach(channel.name, timeout=PATIENCE) as sender:
                if notify == "eventfd" and number % 3 == 0:
                    sender.fileno()
                    receiver.fileno()
                sender.send(b"%d" % number)
                assert receiver.recv(PATIENCE) == b"%d" % number
            with pytest.raises(EndOfMessages):
                receiver.recv(PATIENCE)
        if number == 0:
            del sender, receiver
            gc.collect()
            before, theirs = held(), channel.coordinator.descriptors()
    del sender, receiver
    gc.collect()
    assert held() == before
    wait_until(lambda: channel.coordinator.descriptors() <= theirs, "the coordinator has closed what it had open")


def test_channels_one_after_the_other_leave_nothing(tmp_path):
    name = new_name()
    before = None
    for number in range(6):
        with open_channel(name), Receiver.attach(name) as receiver, Sender.attach(name) as sender:
            sender.send(b"x")
            assert receiver.recv(PATIENCE) == b"x"
        del sender, receiver
        if number == 0:
            before = held()
    assert held() == before
    assert name not in shm.existing()


def dying(me, name, role, seed):
    """Does its part until it is killed."""
    rng = random.Random(seed)
    if role == "sender":
        with Sender.attach(name, timeout=PATIENCE) as sender:
            me.send("up")
            number = 0
            while True:
                sender.send_many([b"%d" % (number + i) + bytes(rng.randrange(3000)) for i in range(7)])
                number += 7
    with Receiver.attach(name, timeout=PATIENCE) as receiver:
        me.send("up")
        while True:
            with contextlib.suppress(EndOfMessages), receiver.recv_view() as view:
                len(view)


@BOTH
@pytest.mark.parametrize("kills", [15, pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(400)])])
def test_random_kills_of_senders_lose_nothing_that_was_published_and_repeat_nothing(make_channel, start, notify, kills):
    channel = make_channel(size=32, notify=notify)
    rng = random.Random(kills)
    with Receiver.attach(channel.name) as receiver:
        for seed in range(kills):
            actor = start(dying, channel.name, "sender", seed)
            numbers = []
            limit = rng.randrange(400)
            for message in receiver:
                numbers.append(int(message.rstrip(b"\0")))
                if len(numbers) == limit + 1:
                    actor.signal(signal.SIGKILL)
            assert numbers == list(range(len(numbers)))
            assert len(numbers) > limit
            actor.end()


@BOTH
@pytest.mark.parametrize("kills", [15, pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(400)])])
def test_random_kills_of_receivers_wedge_no_sender(make_channel, start, notify, kills):
    channel = make_channel(size=32, notify=notify)
    rng = random.Random(kills)
    actor = start(dying, channel.name, "receiver", 0)
    with Sender.attach(channel.name, timeout=PATIENCE) as sender:
        assert sender._ears  # which are made when it first sleeps
        before = descriptors()
        for seed in range(kills):
            for _ in range(rng.randrange(300)):
                sender.send(bytes(rng.randrange(3000)), PATIENCE)
            actor.signal(signal.SIGKILL)
            with pytest.raises(PeerGone):
                press(sender)
            actor.close()
            actor = start(dying, channel.name, "receiver", seed)
            assert 0 < sender.reset(PATIENCE) <= 32
            sender.flush(PATIENCE)
            assert descriptors() == before
        with contextlib.suppress(NoRoom):
            sender.send(b"x", 0)
    actor.kill()
