"""Receivers that are killed, at any store and at any moment, on lanes that resume: their senders notice only a delay.

What a receiver says over its pipe, it says before it does the next thing; what it said before it was killed is there.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time

import pytest
from vqshm_harness import BOTH, PATIENCE, become_mortal, heard, wait_until

from vqshm import DeviceSpec, QueueSpec, Receiver, Sender, spec
from vqshm.errors import CoordinatorGone, EndOfMessages, NoMessage, NoRoom, PeerGone
from vqshm.lane import serving
from vqshm.view.snapshot import take as take_snapshot

MESSAGES = 8
POINTS = 400  # more than there are


@pytest.fixture
def make_channel(make_region):
    """Make a channel that resumes, in a coordinator process of its own."""

    def make(size: int = 8, notify: str = "eventfd"):
        queue = QueueSpec(size, 1 << 16)
        return make_region(
            DeviceSpec("lane", spec.VQSHM_ID_LANE, (queue,), config_bytes=0, restart="resume"), notify=notify
        )

    return make


def orphaned(name) -> bool:
    return bool(take_snapshot(name).devices[0].orphaned)


def driver_of(name) -> int:
    driver = take_snapshot(name).devices[0].driver
    return 0 if driver is None else driver.pid


# -- in front of every store -------------------------------------------------------------------------------------------


def by_recv(me, receiver):
    me.send(([int(receiver.recv())], receiver.replayed))


def by_recv_many(me, receiver):
    me.send((list(map(int, receiver.recv_many(3))), receiver.replayed))


def by_recv_view(me, receiver):
    with receiver.recv_view() as view:
        me.send(([int(bytes(view))], receiver.replayed))


def by_several_views(me, receiver):
    """The youngest is given back first."""
    held = []
    while not held or (len(held) < 3 and receiver.qsize()):
        held.append(receiver.recv_view())
        me.send(([int(bytes(held[-1].view))], held[-1].replayed))
    for loan in reversed(held):
        loan.release()


def by_serve(me, receiver):
    receiver.serve(lambda view: me.send(([int(bytes(view))], receiver.replayed)))
    raise EndOfMessages("the sender has left")


WAYS = {
    "recv": by_recv,
    "recv_many": by_recv_many,
    "recv_view": by_recv_view,
    "several views": by_several_views,
    "serve": by_serve,
}


def receive(me, receiver, way):
    """Say (numbers, replayed) for each call, until the sender has left."""
    with contextlib.suppress(EndOfMessages):
        while True:
            WAYS[way](me, receiver)


def mortal_receiver(me, name, left, way):
    """Receive in some way, and say what came; die in front of store number `left`."""
    mortality = become_mortal()
    with Receiver.attach(name) as receiver:
        use_poll(receiver)
        me.send("up")
        mortality.left = left
        receive(me, receiver, way)


def use_poll(receiver):
    """Wait as an event loop does: what looks into the ring in C, or sleeps there, needs windows that are memory."""
    poller = select.poll()
    poller.register(receiver.fileno(), select.POLLIN)

    def waiting(take):
        def take_when_there(*args):
            while True:
                with contextlib.suppress(NoMessage):
                    return take(*args, 0)
                poller.poll()

        return take_when_there

    for name in ("recv", "recv_many", "recv_view"):
        setattr(receiver, name, waiting(getattr(receiver, name)))
    receiver.serve = lambda answer: serving.serve(receiver, answer)


def check(lives, sent):
    """Each message came; again only flagged; what is flagged came first in a life, in order; the rest in order."""
    seen: set[int] = set()
    for life in lives:
        said = [(number, again) for numbers, again in life for number in numbers]
        flags = [again for _, again in said]
        assert flags == sorted(flags, reverse=True)
        replayed = [number for number, again in said if again]
        assert replayed == sorted(set(replayed))
        for number, again in said:
            assert again or number not in seen, f"{number} came twice, and was not flagged"
            seen.add(number)
    assert seen == set(range(sent))
    news = [number for life in lives for numbers, again in life for number in numbers if not again]
    assert news == sorted(news)


@pytest.mark.long
@pytest.mark.fault("D01", "D02")
@pytest.mark.parametrize("way", WAYS)
def test_a_receiver_may_be_killed_in_front_of_any_of_its_stores(make_channel, way):
    channel = make_channel()
    for point in range(POINTS):
        first = channel.start(mortal_receiver, point, way)
        second = None
        with Sender.attach(channel.name, timeout=PATIENCE) as sender:
            for number in range(MESSAGES):
                sender.send(b"%d" % number, PATIENCE)
            deadline = time.monotonic() + PATIENCE
            while sender.qsize() and not sender._driver.orphaned and time.monotonic() < deadline:
                try:
                    sender.flush(0.05)
                except NoRoom:
                    continue
            if sender._driver.orphaned or orphaned(channel.name):
                second = channel.start(mortal_receiver, 1 << 60, way)
                sender.flush(PATIENCE)
        if second is None:
            if first.end() == 0:
                check([heard(first)], MESSAGES)
                assert point > 30  # stores that a life without death takes: all points were tried
                return
            second = channel.start(mortal_receiver, 1 << 60, way)  # it died when everything was done
        assert second.end() == 0
        check([heard(first), heard(second)], MESSAGES)
        channel.actors.clear()
    pytest.fail(f"a receiver makes more than {POINTS} stores")


# -- at any moment -----------------------------------------------------------------------------------------------------


def patient(me, name, way="recv"):
    """A receiver that does not die by itself."""
    with Receiver.attach(name, timeout=PATIENCE) as receiver:
        me.send("up")
        receive(me, receiver, way)


def dying_after(me, name, count):
    """Receives so many messages, says so, and is no more."""
    with Receiver.attach(name, timeout=PATIENCE) as receiver:
        me.send("up")
        for _ in range(count):
            me.send(([int(receiver.recv())], receiver.replayed))
        os.kill(os.getpid(), signal.SIGKILL)


def pressing(me, name, count):
    """Sends numbers, with little room; says how long it took."""
    with Sender.attach(name, timeout=PATIENCE) as sender:
        me.send("up")
        start = time.monotonic()
        for number in range(count):
            sender.send(b"%d" % number, PATIENCE)
        sender.flush(PATIENCE)
        me.send(time.monotonic() - start)


@pytest.mark.fault("D01", "D02")
@BOTH
def test_a_sender_waits_for_the_next_receiver_and_burns_nothing_meanwhile(make_channel, start, notify):
    channel = make_channel(notify=notify)
    first = channel.start(dying_after, 3)
    sender = start(pressing, channel.name, 20)
    assert sender.hear() == "up"
    assert first.end() == -signal.SIGKILL
    wait_until(lambda: orphaned(channel.name) and sender.state() == "S", "the sender sleeps")
    spent = sender.cpu_seconds()
    time.sleep(0.3)
    assert sender.cpu_seconds() - spent < 0.1
    second = channel.start(patient)
    assert sender.hear() < PATIENCE
    assert sender.end() == 0
    assert second.end() == 0
    check([heard(first), heard(second)], 20)


@pytest.mark.fault("D01", "D02")
@BOTH
def test_several_receivers_in_a_row_die_of_the_same_message_and_it_is_not_lost(make_channel, start, notify):
    channel = make_channel(notify=notify)
    sender = start(pressing, channel.name, 20)
    lives = []
    for count in (4, 1, 1, 1, 3):
        actor = channel.start(dying_after, count)
        assert actor.end() == -signal.SIGKILL
        lives.append(heard(actor))
    last = channel.start(patient)
    assert sender.hear() == "up"
    assert sender.hear() < PATIENCE
    assert sender.end() == 0
    assert last.end() == 0
    check([*lives, heard(last)], 20)
    assert [life[0] for life in lives[1:4]] == [([3], True)] * 3


@BOTH
def test_a_wait_for_the_next_receiver_ends_at_its_deadline_and_says_so(make_channel, notify):
    channel = make_channel(notify=notify)
    first = channel.start(dying_after, 1)
    with Sender.attach(channel.name) as sender:
        sender.send_many([b"%d" % number for number in range(8)])
        assert first.end() == -signal.SIGKILL
        for wait in (lambda: sender.send(b"8", 0.2), lambda: sender.flush(0.2), lambda: sender.call(b"8", 8, 0.2)):
            with pytest.raises(NoRoom, match="has ended and got no successor"):
                wait()
        with pytest.raises(NoRoom):
            sender.reserve(5, 0)
        second = channel.start(patient)
        sender.flush(PATIENCE)
    assert second.end() == 0
    check([heard(first), heard(second)], 8)


def test_a_call_and_a_reservation_live_through_the_death_of_a_receiver(make_channel, start):
    channel = make_channel()
    first = channel.start(killed_while_it_answers)
    with Sender.attach(channel.name) as sender:
        with sender.reserve(6) as view:
            call = sender.start_call(b"question", 16)
            assert first.end() == -signal.SIGKILL
            with pytest.raises(NoMessage):
                call.answer(0.2)
            second = channel.start(answering)
            assert call.answer(PATIENCE) == b"again: question"
            view[:] = b"in all"
        sender.flush(PATIENCE)
    assert second.hear() == [(b"question", True), (b"in all", False)]


def killed_while_it_answers(me, name):
    with Receiver.attach(name) as receiver:
        me.send("up")
        loan = receiver.recv_view()
        loan.reply(b"half an answer")
        os.kill(os.getpid(), signal.SIGKILL)


def answering(me, name):
    with Receiver.attach(name) as receiver:
        me.send("up")
        said = []

        def answer(view):
            said.append((bytes(view), receiver.replayed))
            return b"again: " + view if said[-1][1] else None

        receiver.serve(answer)
        me.send(said)
        me.recv()


def test_without_a_coordinator_no_receiver_can_come_and_the_sender_is_told(make_channel):
    channel = make_channel()
    first = channel.start(dying_after, 1)
    with Sender.attach(channel.name) as sender:
        channel.coordinator.kill()
        with pytest.raises((PeerGone, CoordinatorGone)):
            sender.send_many([b"%d" % number for number in range(100)], PATIENCE)
    assert first.end() == -signal.SIGKILL


# -- senders that die --------------------------------------------------------------------------------------------------


def dying_sender(me, name, count):
    with Sender.attach(name, timeout=PATIENCE) as sender:
        me.send("up")
        sender.send_many([b"%d" % number for number in range(count)])
        me.send("sent")
        signal.pause()


@pytest.mark.fault("D06")
@BOTH
def test_what_a_dead_sender_had_published_is_received_however_many_receivers_it_takes(make_channel, start, notify):
    """And only then the next sender has its turn, whose messages are new."""
    channel = make_channel(notify=notify)
    first = channel.start(dying_after, 2)
    sender = start(dying_sender, channel.name, 8)
    assert [sender.hear(), sender.hear()] == ["up", "sent"]
    assert first.end() == -signal.SIGKILL
    sender.kill()
    lives = [heard(first)]
    for count in (3, 1):
        actor = channel.start(dying_after, count)
        assert actor.end() == -signal.SIGKILL
        lives.append(heard(actor))
    successor = start(pressing, channel.name, 3)
    with Receiver.attach(channel.name, timeout=PATIENCE) as receiver:
        life = [([int(receiver.recv(PATIENCE))], receiver.replayed) for _ in range(5)]
        with pytest.raises(EndOfMessages) as caught:
            receiver.recv(PATIENCE)
        assert caught.value.facts == {"pid": sender.pid, "ended": True}
        check([*lives, life], 8)
        assert [(receiver.recv(PATIENCE), receiver.replayed) for _ in range(3)] == [
            (b"%d" % number, False) for number in range(3)
        ]
        receiver.done()
        assert successor.hear() == "up"
        assert successor.hear() < PATIENCE
        with pytest.raises(EndOfMessages):
            receiver.recv(PATIENCE)


@pytest.mark.fault("D06")
def test_a_sender_that_waits_behind_the_messages_of_a_dead_one_outlives_the_receiver_too(make_channel, start):
    channel = make_channel()
    first = channel.start(holding)
    sender = start(dying_sender, channel.name, 8)
    assert [sender.hear(), sender.hear()] == ["up", "sent"]
    assert first.hear() == "holds"
    sender.kill()
    successor = start(pressing, channel.name, 3)
    wait_until(lambda: driver_of(channel.name) == successor.pid, "the next sender has its role")
    time.sleep(0.1)
    first.kill()
    second = channel.start(patient)
    assert second.end() == 0
    assert heard(second) == [([0], True), *[([number], False) for number in range(1, 8)]]
    third = channel.start(patient)
    assert successor.hear() == "up"
    assert successor.hear() < PATIENCE
    assert third.end() == 0
    assert heard(third) == [([number], False) for number in range(3)]


def holding(me, name):
    """Receives a message, and does nothing with it."""
    with Receiver.attach(name) as receiver:
        me.send("up")
        receiver.recv()
        me.send("holds")
        signal.pause()


# -- again and again ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("D01", "D02", "D23")
@BOTH
@pytest.mark.parametrize("kills", [10, pytest.param(40, marks=[pytest.mark.long, pytest.mark.timeout(400)])])
def test_receivers_killed_at_any_moment_lose_nothing(make_channel, start, notify, kills):
    channel = make_channel(size=16, notify=notify)
    rng = random.Random(kills)
    lives = []
    actor = channel.start(patient)
    sender = start(busy, channel.name)
    assert sender.hear() == "up"
    for number in range(kills):
        time.sleep(rng.random() * 0.03)
        actor.kill()
        lives.append(heard(actor))
        actor = channel.start(patient, list(WAYS)[number % len(WAYS)])
    sender.say("enough")
    said = []
    with contextlib.suppress(EOFError):
        while True:  # it could not go on if nobody listened
            said.append(actor.connection.recv())
    assert actor.end() == 0
    sent = sender.hear()
    assert sender.end() == 0
    assert sent > kills
    check([*lives, said], sent)


def busy(me, name):
    """Sends numbers until told that it is enough, then says how many."""
    with Sender.attach(name, timeout=PATIENCE) as sender:
        me.send("up")
        sent = 0
        while not me.poll():
            sender.send(b"%d" % sent, PATIENCE)
            sent += 1
        sender.flush(PATIENCE)
        me.send(sent)
