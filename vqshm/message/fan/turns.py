# cython: nonecheck=False, initializedcheck=False
"""Turns: which receiver of a fan-out gets the next message, and the send into its lane.

The rule
- To wake a receiver costs about 50 microseconds (`WORTH`). So whoever has the turn keeps it as long as it can be
  expected to have done all that it holds within that time: nobody else would begin earlier.
- Else the turn goes to one of whom that can be expected: who got the fewest messages lately, in the last tenths of a
  second; if there is nobody, to who holds the fewest.
- Nobody keeps the turn for more than 2 milliseconds (`TENURE`) while others have room. So over some seconds, those who
  could do equally much get roughly equally much; over tenths of a second, whoever was awake gets most.

What can be expected is learned from what each one gave back, and how soon: slow to trust (the expected cost of a
message falls by half at most, at a time), quick to doubt (it rises at once). Whoever has shown nothing yet, or takes
longer than 50 microseconds for a message, gets the next one only after all the others: then messages go round one by
one, and whoever is idle comes first.

Who has the turn is judged anew after at most 32 messages, and whenever the coarse clock of the kernel has moved on: so
what was learned in a quick phase does not outlive it. Between two judgements a message costs a few comparisons more
than `Outlet.send` does.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Protocol

from vqshm.memory import atomic
from vqshm.memory.pool import GRAIN
from vqshm.notify import spin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqshm.lane.outlet import Outlet

WORTH = 50_000  # nanoseconds of work that a receiver holds, and still gets more of it
TENURE = 2_000_000  # nanoseconds
_WORTH = WORTH  # as C numbers
_TENURE = TENURE
_RUN = 32  # messages between two judgements, at most
_FADE = 5  # at each tick what everybody has got lately fades by so many binary digits
_GRAIN = GRAIN


class TurnsKeeper(Protocol):
    """Who knows the processes on the other side."""

    def glance(self) -> None:
        """Find out whether everybody lives, and say so by `follow`. Raises as `share`."""

    def share(self, data: Any, timeout: float | None) -> None:
        """Send a message to whoever has room for it first. Raises as `Fanout.send`."""

    def broadcast(self, data: Any, timeout: float | None) -> None:
        """Send a message to everybody once all have room for it. Raises as `Fanout.send`."""


class Turns:
    """Whose turn it is, of some outlets. For one thread at a time."""

    __slots__ = (
        "_began",
        "_cost",
        "_got",
        "_keeper",
        "_outlet",
        "_outlets",
        "_seen",
        "_since",
        "_tick",
        "left",
        "turn",
    )

    def __init__(self, keeper: TurnsKeeper, outlets: Sequence[Outlet]) -> None:
        self._keeper = keeper
        self.follow(outlets)

    def follow(self, outlets: Sequence[Outlet]) -> None:
        """From now on these are all. Nothing is expected of anybody."""
        self._outlets = list(outlets)
        self._cost = array("q", [WORTH] * len(outlets))  # nanoseconds that a message is expected to take
        self._since = array("q", bytes(8 * len(outlets)))  # when something came back last, or nothing was out
        self._got = array("q", bytes(8 * len(outlets)))  # messages lately
        self._seen = array("q", [outlet.messages for outlet in outlets])  # messages when they were last counted
        self.turn = -1  # whose it is
        self._outlet: Outlet | None = None  # likewise
        self._began = 0  # when it began
        self.left = 0  # messages until the next judgement
        self._tick = 0  # the coarse clock at the last one

    def send(self, data: Any, timeout: float | None = None) -> None:
        """As `Fanout.send`."""
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"a timeout is None or at least 0 seconds, not {timeout}")
        if type(data) is bytes:
            count = atomic.count_of(data)
            if self.left <= 0 or spin.tick() != self._tick or not self._has_room(self._outlet, count):
                self.pick(count)
            if self.left > 0:
                self.left -= 1
                self._outlet.send(data, None)  # type: ignore[union-attr]  # nothing is left where there is none
                return
        self._keeper.share(data, timeout)

    def send_all(self, data: Any, timeout: float | None = None) -> None:
        """As `Fanout.send` in a broadcast."""
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"a timeout is None or at least 0 seconds, not {timeout}")
        if spin.tick() != self._tick:
            self._glance()
        if type(data) is bytes:
            count = atomic.count_of(data)
            everybody = len(self._outlets)
            fit = 0
            for number in range(everybody):
                outlet = self._outlets[number]
                if not self._has_room(outlet, count):
                    break
                fit += 1
            if everybody > 0 and fit == everybody:
                for number in range(everybody):
                    outlet = self._outlets[number]
                    outlet.send(data, None)  # nobody else takes room
                return
        self._keeper.broadcast(data, timeout)

    def pick(self, count: int) -> int:
        """Whose turn it is, for a message of `count` bytes; -1 if nobody has room for it at first sight.

        Raises as `Fanout.send`.
        """
        self.left = 0
        if spin.tick() != self._tick:
            self._glance()
        number = self._judge(count, spin.now())
        if number < 0:
            return number
        if number != self.turn:
            self._began = spin.now()
            self.turn = number
        self._outlet = self._outlets[number]
        self.left = min(_RUN, _WORTH // self._cost[number])
        return number

    def _glance(self) -> None:
        self._tick = spin.tick()
        for number in range(len(self._got)):
            self._got[number] -= self._got[number] >> _FADE
        self._keeper.glance()

    def _judge(self, count: int, now: int) -> int:
        """Whose turn it is to be now; -1 if nobody has room."""
        everybody = len(self._outlets)
        kept = self.turn if 0 <= self.turn < everybody else everybody - 1
        if self.turn >= 0:
            wait = self._expect(kept, now)
            if wait < _WORTH and now - self._began < _TENURE and self._has_room(self._outlets[kept], count):
                return kept
        idle = busy = -1
        got = out = 0
        for step in range(1, everybody + 1):
            number = kept + step
            if number >= everybody:
                number -= everybody
            wait = self._expect(number, now)
            outlet = self._outlets[number]
            if self._has_room(outlet, count):
                if wait < _WORTH and (idle < 0 or self._got[number] < got):
                    idle = number
                    got = self._got[number]
                if busy < 0 or outlet.in_flight < out:
                    busy = number
                    out = outlet.in_flight
        return idle if idle >= 0 else busy

    def _expect(self, number: int, now: int) -> int:
        """In how many nanoseconds a receiver will have done what it holds; what it gave back is taken in."""
        outlet = self._outlets[number]
        given = outlet.reclaim() if outlet.ready else 0
        out = outlet.in_flight
        cost = self._cost[number]
        took = now - self._since[number]
        if given > 0:
            took //= given
            if out == 0 and took > cost:
                took = 2 * cost  # it was done at some time since then: that says little
            cost = max(took, cost >> 1)
        elif out > 0:
            cost = max(took // out, cost)
        if given > 0 or out == 0:
            self._since[number] = now
        self._cost[number] = max(1, min(cost, _WORTH))
        self._got[number] += outlet.messages - self._seen[number]
        self._seen[number] = outlet.messages
        return (out + outlet.reserved) * self._cost[number]

    def _has_room(self, outlet: Outlet | None, count: int) -> bool:
        """Whether a message of `count` bytes surely finds room; there may be some although not."""
        if outlet is None or not outlet.ready or outlet.num_free < 1:
            return False
        arena = outlet.arena
        return arena.space() >= 2 * count + _GRAIN and arena.count() < outlet.size
