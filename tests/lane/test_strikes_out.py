"""Ctrl-C, or whatever a signal handler raises, at every bytecode of the sending end: sent or not sent, and it goes on.

A run is repeated with the exception at the first bytecode, at the second, and so on until a run ends undisturbed. What
must hold is judged by the receiving end, which nobody disturbs: each message whole, in order, never twice; woken if it
sleeps; and when everything has come back, all room is free.

Compiled, nothing strikes inside; but Python code runs there, too, and what it raises is struck into both cores.
"""

from __future__ import annotations

import contextlib

import pytest
from vqshm_harness import Interrupter

from vqshm import core
from vqshm.errors import InvalidState
from vqshm.lane import call, holdings, outlet, reservation, turn
from vqshm.memory import arena, lent
from vqshm.notify import eventfd
from vqshm.ring import split_driver

pytestmark = pytest.mark.fault("D19")
INTERPRETED = pytest.mark.skipif(core.kind() == "compiled", reason="nothing strikes inside a compiled outlet")
FILES = frozenset(
    module.__file__ for module in (arena, call, eventfd, holdings, lent, outlet, reservation, split_driver, turn)
)
SIZE, AREA = 4, 320
FIRST = [b"first " * 10, b"second " * 12, b"", b"fourth"]  # there is no descriptor left behind them


class World:
    """A lane whose receiver sleeps, and gets its turn when the sender would; `busy`: the lane is full of `FIRST`."""

    def __init__(self, lane, *, busy: bool, event_idx: bool, start: int) -> None:
        self.r = lane(SIZE, AREA, event_idx=event_idx, start=start)
        self.outlet, self.inlet, self.bell = self.r.outlet, self.r.inlet, self.r.outlet.bell
        self.outlet.pace.budget = 0
        self.got: list[bytes] = []
        self.answers = 0
        self.r.out.meanwhile = self.serve_undisturbed
        self.sleep()
        if busy:
            self.outlet.send_many(FIRST)
        self.expected = list(FIRST) if busy else []

    def serve_undisturbed(self) -> None:
        with self.interrupter.not_now():
            self.serve()

    def serve(self) -> None:
        """The receiver does all there is to do, and lies down again."""
        while self.inlet.available():
            with contextlib.closing(Answering(self.inlet.recv_view(0))) as loan:
                self.got.append(loan.message)
        self.inlet.tell()
        self.sleep()

    def sleep(self) -> None:
        assert not self.inlet.enable_notification()
        self.asleep = self.r.avail, self.bell.rung

    def assert_awake(self) -> None:
        """Whoever sleeps while there is something to do was woken."""
        position, rung = self.asleep
        assert self.r.avail == position or self.bell.rung > rung, "nobody woke the receiver"

    def finish(self, sent, where) -> None:
        """Nothing strikes any more: the next call makes up for everything. `sent`: what may have been received."""
        self.outlet.reclaim()
        assert self.outlet.in_flight + self.outlet.reserved + self.outlet.num_free <= SIZE, where
        self.assert_awake()
        self.serve()
        assert self.got[: len(self.expected)] == self.expected, where
        assert self.got[len(self.expected) :] in sent, where
        assert self.outlet.messages == len(self.got), where
        assert self.outlet.bytes_out == sum(map(len, self.got)), where
        self.r.assert_at_rest()
        last = [b"", b"x" * AREA, b"y" * (AREA // 2), b"z"]
        self.outlet.send_many(last)
        self.serve()
        assert self.got[-4:] == last, where
        self.r.assert_at_rest()


class Answering:
    """A message that is lent; who asks is answered when it is given back."""

    def __init__(self, loan) -> None:
        self.loan = loan
        self.message = bytes(loan.view)

    def close(self) -> None:
        if self.message.startswith(b"?"):
            self.loan.reply(b"!" + self.message)
        self.loan.release()


MESSAGE = b"message " * 11
OTHER = [b"0" * 70, b"", b"2" * 320]
QUESTION = b"?" * 65


def prefixes(messages):
    return [messages[:count] for count in range(len(messages) + 1)]


class Work:
    """Something to do at the sending end; again, if it was interrupted. `sent` is what may have come of it."""

    sent = ([], [MESSAGE], [MESSAGE, MESSAGE])

    def __init__(self, world) -> None:
        self.outlet = world.outlet

    def go(self) -> None:
        """Once, and again."""
        self.outlet.send(MESSAGE)


class Send(Work):
    pass


class Gather(Work):
    def go(self):
        self.outlet.send([MESSAGE[:10], bytearray(MESSAGE[10:20]), memoryview(MESSAGE)[20:]])


class SendBuffer(Work):
    def go(self):
        self.outlet.send(bytearray(MESSAGE))


class SendNothing(Work):
    sent = ([], [b""], [b"", b""])

    def go(self):
        self.outlet.send(b"")


class SendMany(Work):
    sent = tuple(a + b for a in prefixes(OTHER) for b in prefixes(OTHER))

    def go(self):
        self.outlet.send_many(iter(OTHER))


class Reserve(Work):
    """The same reservation again, if there is one: it is sent once, or not at all."""

    sent = ([], [MESSAGE])
    reservation = None

    def go(self):
        if self.reservation is None:
            reservation = self.outlet.reserve(len(MESSAGE) + 5)
            reservation.view[:-5] = MESSAGE
            self.reservation = reservation
        with contextlib.suppress(InvalidState):  # it is over
            self.end()

    def end(self):
        self.reservation.commit(len(MESSAGE))


class Block(Reserve):
    sent = ([], [MESSAGE], [MESSAGE, MESSAGE])

    def go(self):
        with self.outlet.reserve(len(MESSAGE)) as view:
            view[:] = MESSAGE


class Cancel(Reserve):
    sent = ([],)

    def end(self):
        self.reservation.cancel()


class Drop(Reserve):
    sent = ([],)

    def go(self):
        self.outlet.reserve(len(MESSAGE))
        reservation = self.outlet.reserve(3)
        reservation.view[:] = b"abc"
        del reservation
        self.outlet.reclaim()


class Ask(Work):
    sent = ([], [QUESTION], [QUESTION, QUESTION])

    def go(self):
        assert self.outlet.call(QUESTION, 100) == b"!" + QUESTION


class AskLater(Ask):
    """The answer of the same call again, if there is one: it is not lost."""

    started = None

    def go(self):
        if self.started is None:
            self.started = self.outlet.start_call([QUESTION[:60], QUESTION[60:]], 66)
            self.outlet.send(b"between")
        if self.started is not True:
            answer = self.started.answer()
            self.started = True
            assert answer == b"!" + QUESTION

    sent = ([], [QUESTION], [QUESTION, b"between"], [QUESTION, QUESTION, b"between"])


class Forget(Ask):
    def go(self):
        self.outlet.start_call(QUESTION, 80).forget()


class ForgetAnswer(Ask):
    """Forget one that is there, and one by losing it."""

    sent = prefixes([b"?"] * 6)

    def go(self):
        first = self.outlet.start_call(b"?", 2)
        second = self.outlet.start_call(b"?", 2)
        assert second.answer() == b"!?"
        first.forget()
        self.outlet.start_call(b"?", 2)


WORKS = [
    *(Send, Gather, SendBuffer, SendNothing, SendMany, Reserve, Block, Cancel, Drop),
    *(Ask, AskLater, Forget, ForgetAnswer),
]


def strike(lane, work, busy, event_idx, second):
    """Every bytecode of the first attempt; with `second` every other one, and one of the next attempt."""
    number = second % 2
    while True:
        number += 2 if second else 1
        first = Interrupter(number, FILES)
        again = Interrupter(1 + number * second % 151 if second else 1 << 30, FILES)
        world = World(lane, busy=busy, event_idx=event_idx, start=65532)
        world.interrupter = first
        task = work(world)
        with first:
            task.go()
        if second and first.struck:
            with again:
                task.go()
        if first.struck and not (second and not again.struck):
            task.go()
        del task
        world.finish(work.sent, f"{first.where} {again.where}")
        if not first.struck:
            break
    assert number > 100, "hardly anything was traced"


@INTERPRETED
@pytest.mark.parametrize("busy", [False, pytest.param(True, marks=pytest.mark.long)], ids=["idle", "busy"])
@pytest.mark.parametrize("work", WORKS)
def test_an_interrupted_sender_sends_each_message_once_or_not_at_all(lane, work, busy):
    strike(lane, work, busy, event_idx=True, second=0)


@INTERPRETED
@pytest.mark.long
@pytest.mark.parametrize("busy", [False, True], ids=["idle, flags", "busy"])
@pytest.mark.parametrize("work", WORKS)
def test_and_so_does_one_that_is_interrupted_again_while_it_makes_up_for_it(lane, work, busy):
    strike(lane, work, busy, event_idx=busy, second=7 if busy else 62)


@INTERPRETED
@pytest.mark.parametrize("work", [Gather, Cancel])
def test_who_comes_in_the_middle_of_a_call_is_told_so_and_harms_nothing(lane, work):
    """A signal's handler, say: what it finds torn is not mended, as somebody is still at work there."""
    refused = number = 0
    while True:
        number += 1
        world = World(lane, busy=False, event_idx=True, start=0)

        def handle(outlet=world.outlet):
            nonlocal refused
            if outlet._torn:
                for attempt in (outlet.reclaim, lambda: outlet.send(b"x", 0)):
                    with pytest.raises(InvalidState, match="at work already"):
                        attempt()
                refused += 1

        world.interrupter = Interrupter(number, FILES, handle)
        task = work(world)
        with world.interrupter:
            task.go()
        del task
        world.finish(work.sent[1:] or work.sent, world.interrupter.where)
        if not world.interrupter.struck:
            break
    assert refused > 20


# -- on both cores: what Python code raises ----------------------------------------------------------------------------


def leave(reservation):
    reservation.view[:] = MESSAGE
    reservation.commit()


PUBLISHERS = {
    "send": lambda outlet: outlet.send(MESSAGE),
    "send_many": lambda outlet: outlet.send_many([MESSAGE]),
    "commit": lambda outlet: leave(outlet.reserve(len(MESSAGE))),
    "call": lambda outlet: outlet.call(MESSAGE, 1),
    "start_call": lambda outlet: outlet.start_call(MESSAGE, 1),
}


@pytest.mark.parametrize("event_idx", [True, False], ids=["event_idx", "flags"])
@pytest.mark.parametrize("following", ["reclaim", "send", "wait"])
@pytest.mark.parametrize("publish", PUBLISHERS.values(), ids=PUBLISHERS)
def test_a_kick_that_failed_is_made_up_for_by_the_next_call(lane, publish, following, event_idx):
    world = World(lane, busy=False, event_idx=event_idx, start=65535)
    world.r.out.meanwhile = world.serve
    rung = []

    def fail():
        raise KeyboardInterrupt

    world.bell.ring = fail
    with pytest.raises(KeyboardInterrupt):
        publish(world.outlet)
    with pytest.raises(KeyboardInterrupt):
        world.outlet.reclaim()  # a kick that fails once more is still owed
    world.bell.ring = lambda: rung.append(world.r.avail)
    sent = [MESSAGE]
    if following == "reclaim":
        world.outlet.reclaim()
    else:
        more = [b"1", b"2", b"3"] if following == "wait" else [b"1"]
        for message in more:
            world.outlet.send(message)
        sent += more
    assert rung, "the receiver sleeps on"
    if following == "wait":
        world.outlet.send(b"4")
        sent.append(b"4")
    world.finish((sent,), following)


@pytest.mark.parametrize("count", range(5))
def test_messages_that_stop_coming_were_sent_as_far_as_they_came(lane, count):
    def messages():
        yield from OTHER[:count]
        raise KeyboardInterrupt

    world = World(lane, busy=False, event_idx=True, start=0)
    world.r.out.meanwhile = world.serve
    with pytest.raises(KeyboardInterrupt):
        world.outlet.send_many(messages())
    world.assert_awake()
    world.finish((OTHER[:count],), count)


@pytest.mark.parametrize("publish", [*PUBLISHERS.values(), lambda outlet: outlet.reserve(5)])
def test_a_wait_that_is_interrupted_leaves_no_trace(lane, publish):
    world = World(lane, busy=True, event_idx=True, start=0)

    def fail():
        raise KeyboardInterrupt

    world.r.out.meanwhile = fail
    with pytest.raises(KeyboardInterrupt):
        publish(world.outlet)
    world.r.out.meanwhile = world.serve
    world.finish(([],), "")


@pytest.mark.parametrize("start_call", [False, True], ids=["send", "start_call"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_buffer_that_shrinks_while_its_message_waits_leaves_no_trace(lane, start_call, pieces):
    world = World(lane, busy=True, event_idx=True, start=0)
    data = bytearray(MESSAGE)

    def shrink():
        world.serve()
        data.pop()

    world.r.out.meanwhile = shrink
    message = [MESSAGE[:20]] * (pieces - 1) + [data]
    with pytest.raises(ValueError, match="must not change"):
        world.outlet.start_call(message, 1) if start_call else world.outlet.send(message)
    world.r.out.meanwhile = world.serve
    world.finish(([],), "")
