"""The history of a kill loop: what its processes did, each step written down where no death can take it back.

A record is 16 bytes, written by one `write` to a file opened for appending: whole or not at all, in one order for all
processes, and safe in the kernel when the writer is killed right after. `History` reads records and complains about the
first that must not be; that of lanes is in `kill_lanes`. Requests are numbered for the whole run; whoever offers one
again counts its attempts.

    OFFER     a driver is about to offer a request         REFUSED   it was not offered after all
    HANDLE    a device is about to answer it               REPLAY    the same, flagged by the library: "maybe again"
    RETURN    a device has returned it                     DELIVER   a driver has read the answer, and it was right
    LOST      `reset()` told that it got no answer         BEGIN     the driver goes on after a reset
    KILL      a role was killed (the number says which)    UP        a coordinator can be attached to

Rules: each request is delivered once. No attempt is handled twice but under the flag, none returned twice, none
delivered that was reported lost, none handled that was not offered. What was in flight at a reset is reported lost,
all of it. A request is offered again only after that, or after the death of the driver that knew it. Requests of one
driver are handled and delivered in the order in which they were offered. In the end none is missing.
"""

from __future__ import annotations

import os
import struct
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

OFFER, REFUSED, HANDLE, REPLAY, RETURN, DELIVER, LOST, BEGIN, KILL, UP = range(10)
SEND, SENT, RECEIVE, AGAIN = range(10, 14)  # see `kill_lanes`
NAMES: Final = (
    *("OFFER", "REFUSED", "HANDLE", "REPLAY", "RETURN", "DELIVER", "LOST", "BEGIN", "KILL", "UP"),
    *("SEND", "SENT", "RECEIVE", "AGAIN"),
)
RECORD: Final = struct.Struct("<BxHIQ")  # kind, attempt, life of the writer, number of the request


class Broken(Exception):
    """The history breaks a rule."""


class Pen:
    """Writes records; one for each process."""

    def __init__(self, fd: int, life: int) -> None:
        self.fd = fd
        self.life = life

    def note(self, kind: int, number: int = 0, attempt: int = 0) -> None:
        """Write one record down."""
        os.write(self.fd, RECORD.pack(kind, attempt, self.life, number))


class Book:
    """Reads records in their order; who judges them says by what rules. `kills`: by role."""

    roles: tuple[str, str, str]  # the coordinator, who serves, who asks

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0  # bytes read
        self.counts: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()

    def read(self) -> None:
        """Judge what was written since the last time. Raises Broken."""
        while data := os.pread(self._fd, RECORD.size * 4096, self._at):
            whole = len(data) // RECORD.size * RECORD.size
            for place, record in enumerate(RECORD.iter_unpack(data[:whole])):
                self.counts[NAMES[record[0]]] += 1
                if record[0] == KILL:
                    self.kills[self.roles[record[3]]] += 1
                try:
                    self._judge(*record)
                except Broken as error:
                    number = self._at // RECORD.size + place
                    raise Broken(f"record {number}, {self._words(record)}: {error}") from None
            self._at += whole

    def finish(self) -> None:
        """The end of the run. Raises Broken."""
        raise NotImplementedError

    def last(self, count: int) -> Iterator[str]:
        """The last records read, in words."""
        first = max(0, self._at - count * RECORD.size)
        for record in RECORD.iter_unpack(os.pread(self._fd, self._at - first, first)):
            yield self._words(record)

    @staticmethod
    def _words(record: tuple[int, int, int, int]) -> str:
        kind, attempt, life, number = record
        return f"{NAMES[kind]} {number}.{attempt} by {life}"

    def _judge(self, kind: int, attempt: int, life: int, number: int) -> None:
        """One record. Raises Broken."""
        raise NotImplementedError


class History(Book):
    """Judges the records of requests. `resume`: a device goes on with what its predecessor had."""

    roles = ("coordinator", "device", "driver")

    def __init__(self, fd: int, *, resume: bool = False) -> None:
        super().__init__(fd)
        self._resume = resume
        self._driver = 0  # life of the driver
        self._orphans = False  # the driver that knew the outstanding requests was killed
        self._outstanding: dict[int, int] = {}  # offered and neither delivered nor lost: number -> attempt, in order
        self._attempts: list[int] = []  # per number, the last attempt offered
        self._places: dict[tuple[int, int], int] = {}  # (number, attempt) -> its place in the order of offers
        self._handled: dict[tuple[int, int], int] = {}  # -> life of the device that did last
        self._returned: set[tuple[int, int]] = set()
        self._delivered: set[int] = set()
        self._last_handled: dict[int, int] = {}  # life of a device, replays apart -> the place it was at
        self._last_replayed: dict[int, int] = {}
        self._last_delivered = -1
        self._again: deque[int] = deque()  # lost: to be offered again

    def outstanding(self) -> list[tuple[int, int]]:
        """(number, attempt) of what the next driver has to offer first, in order."""
        open_ = sorted({*self._outstanding, *self._again})
        return [(number, self._attempts[number] + 1) for number in open_]

    @property
    def next_number(self) -> int:
        """Of the first request that nobody has offered yet."""
        return len(self._attempts)

    def finish(self) -> None:
        """The end of the run. Raises Broken."""
        self.read()
        missing = sorted(set(range(self.next_number)) - self._delivered)
        if missing:
            raise Broken(f"{len(missing)} of {self.next_number} requests were never answered: {missing[:10]} …")

    def _judge(self, kind: int, attempt: int, life: int, number: int) -> None:
        if kind == UP:
            return
        if kind == KILL:
            self._orphans |= self.roles[number] == "driver"
        elif kind == OFFER:
            self._offer(number, attempt, life)
        elif kind in {HANDLE, REPLAY}:
            self._handle(number, attempt, life, replay=kind == REPLAY)
        elif kind == RETURN:
            demand(self._handled.get((number, attempt)) == life, "returned by a device that did not handle it")
            demand((number, attempt) not in self._returned, "returned twice")
            self._returned.add((number, attempt))
        elif kind == DELIVER:
            self._deliver(number, attempt)
        elif kind == BEGIN:
            demand(not self._outstanding, f"not reported as lost: {list(self._outstanding)}")
        else:
            demand(self._outstanding.pop(number, None) == attempt, "it was not in flight")
            self._again.append(number)

    def _offer(self, number: int, attempt: int, life: int) -> None:
        if life != self._driver:
            demand(self._orphans or not self._driver, "a second driver without the death of the first")
            self._again.extend(self._outstanding)
            self._outstanding.clear()
            self._driver, self._orphans = life, False
            self._last_delivered = -1
        if number == self.next_number:
            demand(attempt == 0, "a new request that is not")
            self._attempts.append(0)
        else:
            demand(number in self._again, "offered again though nobody lost it")
            demand(attempt == self._attempts[number] + 1, f"attempt {self._attempts[number]} came before")
            self._again.remove(number)
            self._attempts[number] = attempt
        self._outstanding[number] = attempt
        self._places[number, attempt] = len(self._places)

    def _handle(self, number: int, attempt: int, life: int, *, replay: bool) -> None:
        key = number, attempt
        demand(key in self._places, "handled though nobody offered it: a torn chain")
        demand(replay or key not in self._handled, "handled again without the flag")
        demand(self._resume or not replay, "a replay without in-flight tracking")
        demand(key not in self._returned, "handled after it was returned")
        last = self._last_replayed if replay else self._last_handled
        demand(last.get(life, -1) < self._places[key], "handled before one that was offered earlier")
        last[life] = self._places[key]
        self._handled[key] = life

    def _deliver(self, number: int, attempt: int) -> None:
        demand(self._outstanding.pop(number, None) == attempt, "delivered though it was not in flight")
        demand((number, attempt) in self._handled, "delivered though nobody handled it")
        demand(number not in self._delivered, "delivered twice")
        place = self._places[number, attempt]
        demand(place > self._last_delivered, "delivered after one that was offered later")
        self._last_delivered = place
        self._delivered.add(number)


def demand(holds: bool, complaint: str) -> None:  # noqa: FBT001 - reads like an assert, and runs under -O, too
    """Raise Broken with this complaint unless it holds."""
    if not holds:
        raise Broken(complaint)
