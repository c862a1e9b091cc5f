"""The kill loop over a lane: its sender, its receiver, and the history that must hold.

Messages are numbered for the whole run, over all senders and regions. Records (see `kill_history`):

    SEND      a sender is about to send a message           SENT      it has sent it
    RECEIVE   a receiver has received it, in its call number `part`
    AGAIN     the same, flagged by the library: "perhaps received before"
    LOST      a sender's `reset()` told how many it lost    KILL, UP  as of the other history

Rules: what is received was sent. What is not flagged is received once, in order, and nothing is left out but what a
sender died sending, or what was in flight when a receiver died that has no successor. Where receivers resume nothing is
reset; what is flagged was received last by the receiver before, or never seen to be, and comes before the rest, in
order. In the end nothing that was sent is missing.

A region takes with it what was in it, when its coordinator is killed and a new one begins.
"""

from __future__ import annotations

import contextlib
import random
import select
import time
from typing import TYPE_CHECKING, Final

from kill_history import AGAIN, KILL, LOST, RECEIVE, SEND, SENT, UP, Book, Broken, Pen, demand

from vqshm import DeviceSpec, QueueSpec, Receiver, Sender, spec
from vqshm.errors import (
    CoordinatorGone,
    DeviceNeedsReset,
    EndOfMessages,
    InvalidState,
    PeerGone,
    QueueBroken,
)

if TYPE_CHECKING:
    from vqshm.transport.planning import Restart

PATIENCE: Final = 30.0  # seconds until what must happen counts as not happening
LONGEST: Final = 3000  # bytes of a message
PAUSE: Final = 0.002  # seconds between two batches of a sender, at most: so both sides sleep now and then
WORKS: Final = 0.3  # how often a receiver has something to do with what it received, for as long
CALLS: Final = 1 << 16  # as many as a record can tell apart


def device(restart: Restart) -> DeviceSpec:
    """The lane."""
    return DeviceSpec("lane", spec.VQSHM_ID_LANE, (QueueSpec(16, 1 << 16),), config_bytes=0, restart=restart)


def message(number: int) -> bytes:
    """What a message says; its length and its bytes follow from its number."""
    return number.to_bytes(8, "little") + bytes([number & 0xFF]) * (number * 7919 % LONGEST)


# -- the roles ---------------------------------------------------------------------------------------------------------


def send(stop: int, pen: Pen, name: str, number: int) -> None:
    """A sender, until the loop lets go of the pipe; without a coordinator it goes on until it needs one."""
    poller = select.poll()
    poller.register(stop, select.POLLHUP)
    rolls = random.Random(number)
    with Sender.attach(name, timeout=PATIENCE) as sender, contextlib.suppress(CoordinatorGone):
        while not poller.poll(0):
            numbers = range(number, number + rolls.randrange(1, 20))
            number = numbers.stop
            for each in numbers:
                pen.note(SEND, each)
            try:
                _send_some(sender, numbers, rolls.randrange(3))
            except (PeerGone, DeviceNeedsReset, QueueBroken):
                pen.note(LOST, sender.reset(PATIENCE))
            else:
                for each in numbers:
                    pen.note(SENT, each)
            time.sleep(rolls.random() * PAUSE)
        with contextlib.suppress(PeerGone):
            sender.flush(PATIENCE)


def _send_some(sender: Sender, numbers: range, way: int) -> None:
    if way == 0:
        sender.send_many(map(message, numbers), PATIENCE)
        return
    for each in numbers:
        if way == 1:
            sender.send([message(each)[:8], message(each)[8:]], PATIENCE)
        else:
            with sender.reserve(len(message(each)), PATIENCE) as view:
                view[:] = message(each)


def receive(_stop: int, pen: Pen, name: str) -> None:
    """A receiver, until its region closes."""
    rolls = random.Random(pen.life)
    calls = 0
    with (
        Receiver.attach(name, timeout=PATIENCE) as receiver,
        contextlib.suppress(InvalidState),  # at the end
    ):
        while True:
            calls = (calls + 1) % CALLS
            with contextlib.suppress(EndOfMessages):
                _receive_some(receiver, pen, calls, rolls)
            if rolls.random() < WORKS:
                time.sleep(rolls.random() * PAUSE)


def _receive_some(receiver: Receiver, pen: Pen, part: int, rolls: random.Random) -> None:
    way = rolls.randrange(3)
    if way == 0:
        _note(pen, receiver.recv(PATIENCE), part, again=receiver.replayed)
    elif way == 1:
        for each in receiver.recv_many(rolls.randrange(1, 20), PATIENCE):
            _note(pen, each, part, again=receiver.replayed)
    else:
        loans = [receiver.recv_view(PATIENCE)]
        _note(pen, bytes(loans[0].view), part, again=loans[0].replayed)
        while len(loans) < 3 and not receiver.empty():
            loans.append(receiver.recv_view(PATIENCE))
            _note(pen, bytes(loans[-1].view), part, again=loans[-1].replayed)
        if rolls.random() < WORKS:
            time.sleep(rolls.random() * PAUSE)
        rolls.shuffle(loans)
        for loan in loans:
            loan.release()


def _note(pen: Pen, data: bytes, part: int, *, again: bool) -> None:
    number = int.from_bytes(data[:8], "little")
    if data != message(number):
        raise Broken(f"message {number} is torn")
    pen.note(AGAIN if again else RECEIVE, number, part)


# -- the history -------------------------------------------------------------------------------------------------------


class LaneHistory(Book):
    """Judges the records of messages. `resume`: a receiver goes on with what its predecessor had."""

    roles = ("coordinator", "receiver", "sender")

    def __init__(self, fd: int, *, resume: bool = False) -> None:
        super().__init__(fd)
        self._resume = resume
        self.next_number = 0  # of the next message
        self._open: dict[int, bool] = {}  # number → surely sent; those that nobody has received yet
        self._sender = 0  # life of the sender
        self._adrift = False  # its receiver was killed, which does not resume: what is in flight is lost
        self._last = -1  # the number received last, but for what came again
        self._receiver = 0  # life of the receiver
        self._news = False  # it has received something that was not flagged
        self._replayed = -1  # the number that came again last in its life
        self._call: tuple[int, list[int]] = -1, []  # its last call, and what that received
        self._may: set[int] = set()  # received before this life, and perhaps not done with: what may come again in it

    def finish(self) -> None:
        """The end of the run. Raises Broken."""
        self.read()
        missing = [number for number, sure in self._open.items() if sure]
        if missing:
            raise Broken(f"{len(missing)} of {self.next_number} messages were never received: {missing[:10]} …")

    def _judge(self, kind: int, attempt: int, life: int, number: int) -> None:
        if kind == SEND:
            demand(number == self.next_number, "not the next message")
            self.next_number += 1
            self._open[number] = False
            self._adrift &= life == self._sender
            self._sender = life
        elif kind == SENT:
            if number in self._open:
                self._open[number] = not self._adrift
        elif kind in {RECEIVE, AGAIN}:
            self._receive(number, attempt, life, again=kind == AGAIN)
        elif kind == LOST:
            demand(not self._resume, "a reset, though receivers resume")
            self._open.clear()
            self._adrift = False
        elif kind == KILL and self.roles[number] == "receiver" and not self._resume:
            self._adrift = True
            self._open = dict.fromkeys(self._open, False)
        elif kind == UP:
            self._open.clear()
            self._adrift = False
            self._may.clear()
            self._call = -1, []

    def _receive(self, number: int, call: int, life: int, *, again: bool) -> None:
        if life != self._receiver:
            self._may |= set(self._call[1])
            self._receiver, self._news, self._replayed = life, False, -1
            self._call = -1, []
        if again:
            demand(self._resume, "it comes again, though receivers do not resume")
            demand(not self._news, "it comes again behind one that does not")
            demand(number in self._may or number in self._open, "it comes again though it was done with")
            demand(number > self._replayed, "it comes again before one that was sent earlier")
            self._replayed = number
            self._may.discard(number)
        else:
            self._news = True
            self._may.clear()
        if number in self._open:
            left_out = [each for each, sure in self._open.items() if each < number and sure]
            demand(not left_out, f"left out: {left_out[:10]}")
            for each in [each for each in self._open if each <= number]:
                del self._open[each]
            demand(number > self._last, "received after one that was sent later")
            self._last = number
        else:
            demand(again, "received, though nobody sent it or it was received before")
        if self._call[0] != call:
            self._call = call, []
        self._call[1].append(number)
