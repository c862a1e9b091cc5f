"""Sender: the process that sends messages over one lane; the driver's side of a channel.

    with Sender.attach("frames") as sender:
        sender.send(b"a message")                       # any bytes-like object; a list of them is gathered
        sender.send_many(messages)                      # many, with few notifications
        with sender.reserve(1 << 20) as view:           # written in place: no copy at all
            camera.readinto(view)
        answer = sender.call(b"a question", 64)         # and its answer, of at most 64 bytes

`send` and its kin are methods of a compiled `Outlet`, bound to the sender when it is made, so that no call costs more
than it must. What waits, and what knows of processes, is here.

When its receiver leaves or dies, a sender that waits gets PeerGone. On a channel that was opened with
`restart="resume"` it waits for the next receiver instead, up to its deadline, and all that is out stays out: messages,
reservations, calls. A message that kills one receiver after the other may be given up there, see `open_channel`: if it
was a call, that ends with RequestLost; else only `counts["undone"]` tells.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Final, Self

from vqshm import spec
from vqshm.errors import InvalidState, NoRoom, PeerViolation, QueueBroken
from vqshm.host.driver_role import DriverRole
from vqshm.lane.outlet import Outlet
from vqshm.message.channel import check_is_lane
from vqshm.message.ends import End
from vqshm.message.words import PutWords
from vqshm.notify import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vqshm.lane.call import Call
    from vqshm.lane.reservation import Reservation
    from vqshm.ring.tries import Undone

_SHORT_SLEEP: Final = 0.002  # seconds: how long half of the messages are waited for, before one is enough


class Sender(PutWords, End):
    """The sending end of a lane; see `attach`. For one thread at a time. A context manager."""

    @classmethod
    def attach(
        cls, region: str, device: str | None = None, *, timeout: float | None = 5.0, event_idx: bool = True
    ) -> Self:
        """Take the sending end of a lane, and wait for its receiver.

        `device`: the lane's name; None if there is only one. Raises NotFound, RoleTaken, NegotiationError,
        CoordinatorGone, PeerGone, UntrustedPeer, and DeadlineExceeded if no receiver attaches in `timeout` seconds.
        """
        driver = LaneDriver.attach(region, device, features=0, event_idx=event_idx, indirect=False, timeout=timeout)
        try:
            return cls(driver)
        except BaseException:
            driver.close()
            raise

    def __init__(self, driver: LaneDriver) -> None:
        super().__init__(driver, driver.calls[0])
        self._driver = driver
        self._outlet = driver.outlet
        self._outlet.keeper = self
        self.send = self._outlet.send  # type: ignore[method-assign]
        self.send_many = self._outlet.send_many  # type: ignore[method-assign]
        self.reserve = self._outlet.reserve  # type: ignore[method-assign]
        self.call = self._outlet.call  # type: ignore[method-assign]

    # -- sending (what `help` shows; each sender has the outlet's own in its place) ------------------------------------

    def send(self, data: Any, timeout: float | None = None) -> None:
        """Send one message: any contiguous buffer, or a list or tuple of them, which are gathered in place.

        Waits for room at most `timeout` seconds (None: for ever). Raises NoRoom (a QueueFull and a TimeoutError),
        MessageTooLarge, ValueError, TypeError, PeerGone, PeerViolation, QueueBroken, InvalidState.
        """
        self._outlet.send(data, timeout)

    def send_many(self, messages: Iterable[Any], timeout: float | None = None) -> None:
        """Send each of the messages as `send` would, `timeout` for each, but show them to the receiver some at a time.

        Raises as `send`; `facts["sent"]` of a NoRoom tells how many were sent before.
        """
        self._outlet.send_many(messages, timeout)

    def reserve(self, count: int, timeout: float | None = None) -> Reservation:
        """Room for a message of `count` bytes, to be written in place; it is sent on leaving its `with` block.

        Raises as `send`, ValueError for a negative count.
        """
        return self._outlet.reserve(count, timeout)

    def call(self, data: Any, answer_bytes: int, timeout: float | None = None) -> bytes:
        """Send a message and return the answer to it, of at most `answer_bytes` bytes (1 or more).

        Raises as `send`; NoMessage if there is no answer in `timeout` seconds, RequestLost if it was given up.
        """
        return self._outlet.call(data, answer_bytes, timeout)

    def start_call(self, data: Any, answer_bytes: int, timeout: float | None = None) -> Call:
        """The first half of `call`: send. Ask the returned `Call` for its `answer`, or `forget` it.

        Raises as `send`.
        """
        return self._outlet.start_call(data, answer_bytes, timeout)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the receiver has given back everything that was sent. Raises NoRoom, and as `send`.

        A receiver that is awake gives back some at a time, so this may wait until it asks for its next message.
        """
        outlet, deadline = self._outlet, Deadline(timeout)
        while True:
            if not outlet.ready:
                self.get_ready()
            outlet.reclaim()
            if not outlet.in_flight:
                return
            if not self.sleep(deadline, outlet.in_flight):
                raise NoRoom(f"{outlet.name}: not everything was received in time; {self.stalled()}")

    def reset(self, timeout: float | None = 5.0) -> int:
        """Begin anew, after the receiver ended or broke a rule: wait for one, and return how many messages are lost.

        Lost are those that the old receiver had not given back. Raises DeadlineExceeded, CoordinatorGone, InvalidState
        while reservations are open.
        """
        self._check_idle()
        self._driver.reset(Deadline(timeout))
        self._follow_peer()
        lost, self._driver.lost = self._driver.lost, 0
        return lost

    def _check_idle(self) -> None:
        """Raise InvalidState while reservations are open."""
        if os.getpid() == self._pid:
            self._outlet.collect()
            if self._outlet.reserved:
                raise InvalidState(f"{self._outlet.reserved} reservations are open: send or cancel them first")

    # -- figures -------------------------------------------------------------------------------------------------------

    def qsize(self) -> int:
        """Messages that were sent and not given back yet."""
        if self._outlet.ready:
            self._outlet.reclaim()
        return self._outlet.in_flight

    @property
    def capacity(self) -> int:
        """Bytes that fit into the lane at a time; no message can be larger."""
        return self._outlet.arena.size

    @property
    def counts(self) -> dict[str, int]:
        """What was sent so far, and what it took: messages, bytes, kicks, kicks_suppressed, waits.

        And undone: those of them that receivers gave up after `max_attempts`.
        """
        outlet = self._outlet
        return {
            "messages": outlet.messages,
            "bytes": outlet.bytes_out,
            "kicks": outlet.kicks,
            "kicks_suppressed": outlet.kicks_suppressed,
            "waits": outlet.waits,
            "undone": self._driver.undone,
        }

    # -- what the outlet asks for --------------------------------------------------------------------------------------

    def sleep(self, deadline: Deadline, after: int) -> bool:
        """As `OutletKeeper.sleep`."""
        if deadline.expired and not self._ears.may_glance():
            return False
        outlet, driver = self._outlet, self._driver
        driver.hear()
        driver.check()
        if self._ears.given_out:
            self._ears.clear()
        if outlet.used() or outlet.enable_notification(1 if self._ears.given_out else after):
            return self._remember_work()
        start = time.monotonic_ns()
        left = deadline.remaining()
        if left != 0:
            self.show_counts()
            outlet.waits += 1
            self._ears.listen(driver.sleep_limit(left if after < 2 else min(left or 1, _SHORT_SLEEP)))
            if after > 1 and not outlet.used() and not deadline.expired:
                driver.check()  # what was heard in the first sleep would not end the second one
                if outlet.enable_notification():
                    return self._remember_work()
                self._ears.listen(driver.sleep_limit(deadline.remaining()))
            outlet.pace.slept(time.monotonic_ns() - start)
        if not self._ears.given_out:
            outlet.disable_notification()
        if outlet.used():
            return self._remember_work()
        driver.check()
        return not deadline.expired

    def get_ready(self) -> None:
        """As `OutletKeeper.get_ready`."""
        self._driver.raise_unready()

    def stalled(self) -> str:
        """As `OutletKeeper.stalled`."""
        peer = self.peer
        if peer is None:
            return "there is no receiver"
        outlet = self._outlet
        gone = "has ended and got no successor" if self._driver.orphaned else "has ended"
        alive = gone if self._driver.orphaned or self.peer_gone else "is alive"
        return (
            f"the receiver, process {peer.pid}, {alive} and has given {outlet.messages - outlet.in_flight} messages "
            f"back; {outlet.holds()}"
        )

    def show_counts(self) -> None:
        """As `OutletKeeper.show_counts`."""
        self._driver.show_counts()

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give this end back; what was sent stays to be received. May be called twice.

        Raises InvalidState while reservations are open; nothing is closed then.
        """
        self._check_idle()
        self._outlet.ready = False
        self._hang_up()

    def _refuse_work(self) -> None:
        self._outlet.ready = False


class LaneDriver(DriverRole):
    """The driver of a lane: one queue, whose ring half is an outlet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._outlet: Outlet | None = None
        self.lost = 0  # messages in flight when the device had let go, over resets
        self._given_up: Undone | None = None
        self._undone = 0  # given up in earlier sessions
        self._before: dict[str, int] = {}  # the outlet's counters when this session began
        super().__init__(*args, **kwargs)
        try:
            check_is_lane(self.region, self.plan)
        except BaseException:
            self.close()
            raise

    @property
    def outlet(self) -> Outlet:
        """The ring half."""
        assert self._outlet is not None  # noqa: S101 - attaching makes it
        return self._outlet

    @property
    def in_flight(self) -> int:
        """Messages that did not come back yet."""
        return 0 if self._outlet is None else self._outlet.in_flight

    def _prepare_queues(self) -> None:
        (queue,) = self.plan.queues
        self._undone = self.undone
        queue.zero(self.memory)
        if self._outlet is None:
            self._given_up = queue.undone_in(self.memory)
            event_idx = bool(self.features >> spec.VIRTIO_F_EVENT_IDX & 1)
            name = f"{self.region}/{self.plan.name}"
            place = self.memory, queue.layout, queue.buffers, self.kicks[0]
            self._outlet = Outlet(*place, event_idx=event_idx, undone=self._given_up, name=name)
        else:
            self._outlet.restart()
        self._before = self._counted()
        self._outlet.ready = False  # until DRIVER_OK
        self._outlet.disable_notification()

    def _go(self) -> None:
        self.outlet.ready = True

    def _halt(self) -> None:
        if self._outlet is not None:
            self._outlet.ready = False

    def _take_back(self) -> None:
        if self._outlet is not None:
            with contextlib.suppress(PeerViolation, QueueBroken):  # then what is in flight is lost
                self._outlet.reclaim()
            self.lost += self._outlet.in_flight
            self._outlet.detach_unused()

    @property
    def undone(self) -> int:
        """Messages that receivers gave up."""
        return self._undone + (0 if self._given_up is None else self._given_up.count)

    @property
    def orphaned(self) -> bool:
        """Whether the receiver has ended, and another one is expected to go on."""
        return self._orphaned

    def reset(self, deadline: Deadline) -> None:
        """Begin anew with the receiver there is, or the next one."""
        self._restart(deadline)

    def check(self) -> None:
        """Raise unless what was sent can be expected to come back."""
        self._check_usable()
        self._check_device()
        self._check_reset(0)
        if self.outlet.broken is not None:
            raise QueueBroken(f"{self.outlet.name} stopped at: {self.outlet.broken}; call reset()")

    def raise_unready(self) -> None:
        """Say why nothing can be sent."""
        self.check()
        raise InvalidState(f"{self.outlet.name} is not initialised: call reset()")

    def sleep_limit(self, timeout: float | None) -> float | None:
        """How long to park at most."""
        return self._sleep_limit(timeout)

    def show_counts(self) -> None:
        """Write the counters where `vqshm stat` reads them."""
        cells, outlet = self.manifest.queue(self.plan.queues[0].index).driver, self.outlet
        for name, count in self._counted().items():
            setattr(cells, name, count - self._before[name])
        cells.reaped = outlet.messages - self._before["added"] - outlet.in_flight

    def _counted(self) -> dict[str, int]:
        outlet = self.outlet
        return {
            "added": outlet.messages,
            "kicks": outlet.kicks,
            "kicks_suppressed": outlet.kicks_suppressed,
            "bytes_out": outlet.bytes_out,
            "waits": outlet.waits,
        }

    def _leave(self) -> None:
        if self._outlet is not None:
            self.show_counts()
        self._undone, self._given_up = self.undone, None  # from now on the area is another sender's
        super()._leave()
