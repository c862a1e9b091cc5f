"""Fan: what fan-in and fan-out have in common: a place of a channel is taken, all of its lanes are waited for at once.

A place is one sender's lanes to every receiver, or one receiver's lanes from every sender. `Fanin` and `Fanout` take
the first free one. All roles of a place are taken first lane first and given back last lane first, so whoever gets the
first lane gets the others, and two processes that race for a place end with two different ones.

Waiting: look at all lanes for a while, ask each of them to ring, look once more, then sleep on the doorbells, control
connections and peers of all lanes at once (`Ears`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

from vqshm.errors import InvalidState, RoleTaken, VqshmError
from vqshm.message.channel import lanes_of
from vqshm.message.ears import Ears
from vqshm.message.ends import End, Lends
from vqshm.notify.spin import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqshm.notify import Deadline

ENDLESS: Final = 3  # looks behind a deadline, while somebody rings again and again

Lane = TypeVar("Lane", bound=End)


class Fan(Lends, Generic[Lane]):
    """Some lanes of a channel, as one. A context manager."""

    _ours: str  # "sender" or "receiver"

    def __init__(self, lanes: Sequence[Lane], place: int = 0) -> None:
        self._every = tuple(lanes)
        self.region = lanes[0].region
        self.place = place  # which of the channel's senders, or receivers, this is
        self._pace = Pace()
        self._ears = Ears(lanes)
        self._waits = 0
        self._armed = False  # the lanes are asked to ring
        self._closed = False
        self._gone = False  # and everything was given back

    @classmethod
    def _take_place(
        cls, region: str, take: Callable[[str, Deadline], Lane], deadline: Deadline
    ) -> tuple[int, list[Lane]]:
        """The number of the first free place, and its lanes. Raises RoleTaken if there is none, and as `take`."""
        table = lanes_of(region)
        places = table if cls._ours == "sender" else [list(column) for column in zip(*table, strict=True)]
        for place, names in enumerate(places):
            lanes: list[Lane] = []
            try:
                for name in names:
                    lanes.append(take(name, deadline))  # noqa: PERF401 - what was taken is given back
            except RoleTaken:
                close_all(lanes)
            except BaseException:
                close_all(lanes)
                raise
            else:
                return place, lanes
        raise RoleTaken(f"every place for a {cls._ours} in {region!r} is taken: {len(places)}", places=len(places))

    @property
    def lanes(self) -> tuple[str, ...]:
        """The names of the lanes."""
        return tuple(lane.lane for lane in self._every)

    @property
    def notify(self) -> Any:
        """How the two sides wake each other: "eventfd" or "semaphore"."""
        return self._every[0].notify

    def fileno(self) -> int:
        """A descriptor for event loops: readable when a lane may have work, or news of its other side.

        Level-triggered, as long as the fan is asked (with `timeout=0`) whenever it is readable, until it has nothing
        more. Raises InvalidState for a channel of semaphores, which have nothing to watch.
        """
        self._check_usable()
        return self._ears.fileno()

    def _check_usable(self) -> None:
        if self._closed:
            raise InvalidState(f"this {type(self).__name__} is closed")
        self._every[0]._endpoint._check_usable()  # noqa: SLF001 - an end is half an endpoint

    def _look(self, found: Callable[[], bool]) -> bool:
        """Look for as long as it is worth, and let others run meanwhile: senders and receivers among them."""
        end = time.monotonic_ns() + self._pace.budget
        while time.monotonic_ns() < end:
            if found():
                return True
            os.sched_yield()
        return False

    def _sleep(self, seconds: float | None) -> bool:
        """Sleep until a lane rings or has news, at most so long: whether one did."""
        if seconds == 0:
            return self._ears.listen(0)
        self._waits += 1
        start = time.monotonic_ns()
        news = self._ears.listen(seconds)
        self._pace.slept(time.monotonic_ns() - start)
        return news

    def _hang_up(self) -> None:
        self._closed = True
        self._ears.close()
        close_all(self._every)
        self._gone = True

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} belongs to its process: attach another one there")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.region} place {self.place}, {len(self._every)} lanes>"


def close_all(lanes: Sequence[End]) -> None:
    """Give lanes back, the first one last."""
    for lane in reversed(lanes):
        with contextlib.suppress(VqshmError):
            lane.close()
