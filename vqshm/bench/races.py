"""Races: each side of a queue goes to sleep at about the moment when the other side publishes, again and again.

A wake-up is lost when one side saw no work after it had armed, and the other side, having published, saw no wish to be
notified [2.7.7, 2.7.10]. The fences of the ring forbid that; `tools/pressure/soak.py --races` tries it.
Compiled where the core is, with races.pxd, so that a round costs about as much as the window is wide.

A round is one chain there and back, and a race each way:

    driver                                             device
    random pause; publish; kick? ───────────────────▶  random pause; arm and look; sleep if there is nothing
    random pause; arm and look; sleep if nothing  ◀──  random pause; return; call?

Each side notes in shared memory that it went to sleep in this round. When the round is over, the other side reads that,
and knows whether it had notified, or had seen the work taken already when it asked (a notification of an earlier round
wakes, too): a lost wake-up is named, even if such a one has hidden it. If none has, both sleep for ever, which is for
whoever watches the rounds to see.

Each side shifts its arming until it sleeps in every second round: then it arms just when the other one publishes.

Only one sleep in `_BLOCK_AT_ONCE` blocks at once. The others look for the work for a while first, so that a round does
not cost what it costs to wake a process; whether to notify was decided by then.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NoReturn

from vqshm.memory import atomic
from vqshm.memory.atomic import Region
from vqshm.notify import spin
from vqshm.ring import layout as ring_layout

if TYPE_CHECKING:
    from vqshm.ring.split_device import DeviceQueue
    from vqshm.ring.split_driver import DriverQueue

WORDS: Final = 256  # bytes of the shared words: a side's are 128 apart from those of the other
DRIVER: Final = 0
DEVICE: Final = 128

_IDX = ring_layout.IDX
_ROUND = 0  # the round a side is in
_SLEPT = 8  # the last even and the last odd round in which it went to sleep: 16 bytes
_TAKEN = 24  # the last round whose work it has seen
_BLOCK_AT_ONCE = 64
_LOOK = 20_000  # nanoseconds
_STEP = 8  # looks at a private word
_MOST_LEAD = 20_000  # likewise


class LostWakeup(Exception):
    """A side went to sleep, and the other one published without notifying it."""


class Racer:
    """One side: `words` are shared by both, `own` is DRIVER or DEVICE; `bell` and `ear` are eventfds.

    `spread`: the pauses are of 0 to so many looks at a private word, of about a nanosecond each.
    """

    __slots__ = (
        "_bell",
        "_ear",
        "_lead",
        "_other",
        "_own",
        "_private",
        "_spread",
        "_state",
        "_words",
        "both",
        "notified",
        "round",
        "slept",
    )

    def __init__(self, words: Region, own: int, bell: int, ear: int, seed: int = 1, spread: int = 400) -> None:
        self._words = words
        self._own = own
        self._other = DRIVER + DEVICE - own
        self._bell = bell
        self._ear = ear
        self._private = Region(bytearray(64))
        self._state = seed * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF | 1
        self._spread = spread
        self._lead = 0  # looks at a private word before the random pause, and the arming behind it
        self.round = 0  # rounds so far
        self.slept = 0  # rounds in which this side went to sleep
        self.notified = 0  # rounds in which it notified the other side
        self.both = 0  # rounds in which each saw the other: it notified, and the other one did not sleep

    def drive(self, queue: DriverQueue, address: int, rounds: int) -> None:
        """Race so many rounds as the driver, with a buffer of 8 bytes at `address`. Raises LostWakeup."""
        for _ in range(rounds):
            self._begin()
            queue.disable_notification()
            self._pause(self._random() % self._spread)
            queue.add_one(address, 8, 0)
            if self.round & 1:
                notify = queue.publish_and_ask()
                queue._published = queue._avail_idx  # noqa: SLF001 - what is to be done about it comes below
            else:
                queue.publish()
                notify = queue.needs_kick()
            excused = self._tell(notify)
            self._pause(self._lead + self._random() % self._spread)
            before = self.slept
            while not queue.enable_notification(1):
                self._sleep(atomic.region_of(queue._used), queue.last_used)  # noqa: SLF001 - the ring, for a look in C
            self._aim(self.slept != before)
            if queue.reap_head() < 0:
                self._complain("nothing came back")
            self._judge(self.round, notify, excused)

    def serve(self, queue: DeviceQueue, rounds: int) -> None:
        """Race so many rounds as the device. Raises LostWakeup."""
        notify = excused = True  # nobody can complain about the round before the first
        for _ in range(rounds):
            self._begin()
            queue.disable_notification()
            self._pause(self._lead + self._random() % self._spread)
            before = self.slept
            while not queue.enable_notification():
                self._sleep(atomic.region_of(queue._avail), queue.next_avail)  # noqa: SLF001 - likewise
            self._aim(self.slept != before)
            head = queue.pop_head()
            if head < 0:
                self._complain("nothing came")
            if self.round > 1:
                self._judge(self.round - 1, notify, excused)
            self._pause(self._random() % self._spread)
            queue.add_used(head, 0)
            notify = queue.needs_notification()
            excused = self._tell(notify)

    # -- the steps -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.round += 1
        atomic.store_u64(atomic.span_of(self._words), self._own + _ROUND, self.round)

    def _tell(self, notify: bool) -> bool:  # noqa: FBT001 - the arguments of a C function are positional
        """Notify the other side, if that was the answer; if not, whether it is in no need of it any more."""
        if not notify:
            return atomic.load_u64(atomic.span_of(self._words), self._other + _TAKEN) >= self.round
        self.notified += 1
        os.eventfd_write(self._bell, 1)
        return True

    def _sleep(self, ring: Region, old: int) -> None:
        """Sleep until the other side notifies; it may have done so in an earlier round."""
        place = self._own + _SLEPT + 8 * (self.round & 1)
        if atomic.load_u64(atomic.span_of(self._words), place) != self.round:
            atomic.store_u64(atomic.span_of(self._words), place, self.round)
            self.slept += 1
        if self._random() % _BLOCK_AT_ONCE == 0 or not spin.until_changed(ring, _IDX, old, _LOOK):
            os.eventfd_read(self._ear)

    def _aim(self, slept: bool) -> None:  # noqa: FBT001 - likewise
        """There is work. Arm later next time if this was too early to find it, else earlier: so both often meet."""
        atomic.store_u64(atomic.span_of(self._words), self._own + _TAKEN, self.round)
        if slept:
            self._lead = min(self._lead + _STEP, _MOST_LEAD)
        elif self._lead >= _STEP:
            self._lead -= _STEP

    def _judge(self, number: int, notify: bool, excused: bool) -> None:  # noqa: FBT001 - likewise
        """Judge a round that is over for the other side: whether it slept, and nobody notified it."""
        slept = atomic.load_u64(atomic.span_of(self._words), self._other + _SLEPT + 8 * (number & 1)) == number
        if slept and not excused:
            self._complain(f"the other side slept in round {number}, and was not notified")
        if notify and not slept:
            self.both += 1

    def _complain(self, what: str) -> NoReturn:
        raise LostWakeup(f"round {self.round}: {what}")

    def _random(self) -> int:
        """The next number of a xorshift generator."""
        state = self._state
        state ^= state << 13 & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 7
        state ^= state << 17 & 0xFFFFFFFFFFFFFFFF
        self._state = state
        return state

    def _pause(self, looks: int) -> None:
        while looks > 0:
            atomic.load_u64(atomic.span_of(self._private), 0)
            looks -= 1


def where(words: Region) -> str:
    """Where both sides stand, for whoever sees that they do not move."""
    parts = []
    for name, own in (("driver", DRIVER), ("device", DEVICE)):
        number = atomic.load_u64(atomic.span_of(words), own + _ROUND)
        slept = atomic.load_u64(atomic.span_of(words), own + _SLEPT + 8 * (number & 1)) == number
        parts.append(f"the {name} is in round {number} and {'sleeps' if slept else 'does not sleep'}")
    return ", ".join(parts)
