"""Waiting: how long to spin before one sleeps, and how to sleep without missing the wake-up.

A blocked wake-up across processors costs tens of microseconds, looking again costs a fraction of one; but looking
burns a processor. Each strategy is one answer.

    Spin        looks until there is something: lowest latency, one processor
    Yield       the same, and lets others run between two looks
    Block       sleeps at once: no processor, highest latency
    Adaptive    spins for as long as a wake-up would cost, yields a few times, then sleeps (the default)

The caller lends three functions and knows the rest:

    ready() -> bool         is there what I wait for? May take it, too
    arm() -> bool           ask the other side to notify, fence, and look once more: True if there is work after all
    park(seconds | None)    sleep at most so long; may return early, may raise (PeerGone)

Why no wake-up is lost: the sleeper stores "notify me", fences, then looks for work; the other side publishes work,
fences, then looks for "notify me". At least one of them sees what the other stored. Hence never park without arming
since the last look, which is the one rule of the loop below. Whoever is woken for nothing just goes round again.

A strategy that does not sleep still parks for no time now and then, because that is where a dead peer is noticed.
"""

from __future__ import annotations

import math
import os
import select
import time
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vqshm.notify.notifier import Notifier

SPIN_SECONDS: Final = 50e-6  # about what a blocked wake-up costs
GLANCE_SECONDS: Final = 1e-3  # how often those who never sleep look whether the peer is alive
SLICE_SECONDS: Final = 0.02  # how long a semaphore is waited for before the watched descriptors are looked at again
LONGEST_SLEEP: Final = 3600.0  # seconds; poll() and epoll count milliseconds in an int


class Deadline:
    """A moment after which nobody waits any longer."""

    __slots__ = ("end",)

    def __init__(self, timeout: float | None) -> None:
        """Lie `timeout` seconds ahead; None is never. Raises ValueError for a negative number or NaN."""
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"a timeout is None or at least 0 seconds, not {timeout}")
        self.end = math.inf if timeout is None else time.monotonic() + timeout  # of time.monotonic()

    def remaining(self) -> float | None:
        """Seconds left, at least 0; None is for ever."""
        return None if self.end == math.inf else max(0.0, self.end - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self.end

    def __repr__(self) -> str:
        left = self.remaining()
        return "<Deadline never>" if left is None else f"<Deadline in {left:.6f} s>"


class WaitStrategy(Protocol):
    """How to wait. One object serves one waiting side."""

    def wait(
        self,
        ready: Callable[[], bool],
        arm: Callable[[], bool],
        park: Callable[[float | None], None],
        deadline: Deadline,
    ) -> bool:
        """Return True when `ready()`, False at the deadline; raise what `park` raises."""


class Spin:
    """Look again and again, never sleep."""

    def wait(
        self,
        ready: Callable[[], bool],
        arm: Callable[[], bool],  # noqa: ARG002 - nobody needs to wake a side that does not sleep
        park: Callable[[float | None], None],
        deadline: Deadline,
    ) -> bool:
        """Return True when `ready()`, False at the deadline."""
        return _look(ready, park, deadline, _nothing)


class Yield:
    """Look again and again, and let another process run between two looks."""

    def wait(
        self,
        ready: Callable[[], bool],
        arm: Callable[[], bool],  # noqa: ARG002 - nobody needs to wake a side that does not sleep
        park: Callable[[float | None], None],
        deadline: Deadline,
    ) -> bool:
        """Return True when `ready()`, False at the deadline."""
        return _look(ready, park, deadline, os.sched_yield)


class Block:
    """Sleep as soon as there is nothing to do."""

    def wait(
        self,
        ready: Callable[[], bool],
        arm: Callable[[], bool],
        park: Callable[[float | None], None],
        deadline: Deadline,
    ) -> bool:
        """Return True when `ready()`, False at the deadline."""
        while not ready():
            if deadline.expired:
                return False
            if not arm():
                park(deadline.remaining())
        return True


class Adaptive:
    """Spin, then yield, then sleep; and spin less while that does not pay.

    A wait that took longer than a spin and a wake-up together would have been no slower asleep from the start, so the
    next one spins half as long, down to a sixteenth; a short wait brings the full time back. With a single processor
    it does not spin at all, since the other side cannot run meanwhile.
    """

    def __init__(self, spin: float | None = None, yields: int = 4) -> None:
        """`spin`: seconds (None: 50 us, or none on a single processor); `yields`: looks between spinning and sleeping.

        Raises: ValueError for a negative number or NaN.
        """
        if spin is None:
            spin = SPIN_SECONDS if len(os.sched_getaffinity(0)) > 1 else 0.0
        if not spin >= 0 or yields < 0:
            raise ValueError(f"cannot spin for {spin} seconds and yield {yields} times")
        self.spin = spin
        self.yields = yields
        self.budget = spin  # seconds of the next spin

    def wait(
        self,
        ready: Callable[[], bool],
        arm: Callable[[], bool],
        park: Callable[[float | None], None],
        deadline: Deadline,
    ) -> bool:
        """Return True when `ready()`, False at the deadline."""
        if ready():
            return True
        start = time.monotonic()
        there = self._spin(ready, min(start + self.budget, deadline.end)) or Block().wait(ready, arm, park, deadline)
        short = time.monotonic() - start < self.spin + SPIN_SECONDS
        self.budget = self.spin if short else max(self.budget / 2, self.spin / 16)
        return there

    def _spin(self, ready: Callable[[], bool], end: float) -> bool:
        while time.monotonic() < end:
            if ready():
                return True
        for _ in range(self.yields):
            os.sched_yield()
            if ready():
                return True
        return False


def park_on(notifiers: Sequence[Notifier], watch: Sequence[int], timeout: float | None) -> list[int]:
    """Sleep until a notifier is signalled, a watched descriptor is readable or hung up, or `timeout` seconds are over.

    Clears the notifiers that woke us. Returns the descriptors that are ready, of `watch` and of the notifiers; a
    semaphore has none, so an empty list is no proof that nobody signalled. May return early, with an empty list. Any
    number of descriptors, of any value. A signal's Python handler runs, and the sleep goes on unless it raises.

    A semaphore cannot be polled: with one among the notifiers the sleep is cut into slices of 20 ms, and descriptors
    are looked at between two of them. So the death of a peer is seen up to 20 ms late.
    """
    poller = select.poll()
    for fd in watch:
        poller.register(fd, select.POLLIN)
    pollable: dict[int, Notifier] = {}
    others: list[Notifier] = []
    for notifier in notifiers:
        number = notifier.fileno()
        if number is None:
            others.append(notifier)
        else:
            pollable[number] = notifier
            poller.register(number, select.POLLIN)
    if others:
        return _sleep_in_slices(poller, pollable, others, Deadline(timeout))
    return _sleep(poller, pollable, timeout)


def _sleep(poller: select.poll, pollable: dict[int, Notifier], timeout: float | None) -> list[int]:
    milliseconds = math.ceil(min(LONGEST_SLEEP, math.inf if timeout is None else timeout) * 1000)
    ready = [fd for fd, _ in poller.poll(milliseconds)]
    for fd in ready:
        if fd in pollable:
            pollable[fd].clear()
    return ready


def _sleep_in_slices(
    poller: select.poll, pollable: dict[int, Notifier], others: list[Notifier], deadline: Deadline
) -> list[int]:
    while True:
        ready = _sleep(poller, pollable, 0)
        if ready:
            return ready
        for notifier in others:
            left = deadline.remaining()
            share = SLICE_SECONDS / len(others)
            if notifier.wait(share if left is None else min(left, share)):
                return []
        if deadline.expired:
            return []


def _look(
    ready: Callable[[], bool], park: Callable[[float | None], None], deadline: Deadline, between: Callable[[], object]
) -> bool:
    glance = time.monotonic() + GLANCE_SECONDS
    while not ready():
        now = time.monotonic()
        if now >= deadline.end:
            return False
        if now >= glance:
            park(0)
            glance = now + GLANCE_SECONDS
        between()
    return True


def _nothing() -> None:
    pass
