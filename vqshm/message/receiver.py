"""Receiver: the process that receives messages over one lane; the device's side of a channel.

    with Receiver.attach("frames") as receiver:
        message = receiver.recv()                       # bytes
        messages = receiver.recv_many(100)              # 1 to 100 of them
        with receiver.recv_view() as view:              # in place: no copy at all
            print(view[:10].tobytes())
        for message in receiver:                        # until the sender leaves
            ...
        receiver.serve(answer)                          # answer(view) -> bytes, for each `call` of the sender

`recv` and its kin are methods of a compiled `Inlet`, bound to the receiver when it is made, so that no call costs more
than it must. What waits, and what knows of processes, is here.

When a sender has left and everything it sent was received, EndOfMessages is raised once; the next call waits for the
next sender.

On a channel that was opened with `restart="resume"` a receiver may be killed at any moment, and the next one goes on. A
message is *done* when whoever received it asks for the next one, or says `done`, or closes the receiver; a view, when
it is given back. What was received and was not done comes again, first of all and in its old order, and `replayed` says
so: its effects may be there already, wholly or in part. A `with` block that is left by an exception has not done the
last message.

A message that kills whoever receives it comes again and again, alone; `attempts` says for which time. Put it aside
yourself when that is too many (`done` says that you have it), or open the channel with `max_attempts`: then it is given
up, which is logged and counted (`counts["undone"]`, on both sides), and a `call` ends with RequestLost.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Self

from vqshm import spec
from vqshm.errors import (
    DeadlineExceeded,
    EndOfMessages,
    InvalidState,
    NoMessage,
    PeerViolation,
    QueueBroken,
    VqshmError,
)
from vqshm.host.device_role import DeviceRole, log
from vqshm.lane.inlet import Inlet
from vqshm.lane.resuming import ResumingInlet
from vqshm.message.channel import check_is_lane
from vqshm.message.ends import End
from vqshm.message.words import GetWords
from vqshm.transport.cells import count_on, plausible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vqshm.lane.loan import Loan
    from vqshm.notify import Deadline
    from vqshm.transport import DeviceCounters


class Receiver(GetWords, End):
    """The receiving end of a lane; see `attach`. For one thread at a time. A context manager."""

    @classmethod
    def attach(
        cls, region: str, device: str | None = None, *, timeout: float | None = 5.0, limit: int | None = None
    ) -> Self:
        """Take the receiving end of a lane. The sender may come later: `recv` waits for it.

        `device`: the lane's name; None if there is only one. `limit`: bytes that a message may have, if not as many as
        the lane has room for; with a larger one its sender breaks the rules. Raises NotFound, RoleTaken,
        CoordinatorGone, UntrustedPeer, DeadlineExceeded, ValueError; RuleError for a device that is no lane.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"a message may have at least 1 byte, not {limit}")
        device_role = LaneDevice.attach(region, device, timeout=timeout)
        try:
            if limit is not None:
                device_role.inlet.limit = limit
            return cls(device_role)
        except BaseException:
            device_role.close()
            raise

    def __init__(self, device: LaneDevice) -> None:
        super().__init__(device, device.kicks[0])
        self._device = device
        device.opened = self._begin
        self._inlet = device.inlet
        self._inlet.keeper = self
        self._ended = False  # everything was received, and the lane is not let go of yet
        self._end: EndOfMessages | None = None  # … and that is still to be said
        self._careful = device.plan.restart == "resume"
        self.recv = self._inlet.recv  # type: ignore[method-assign]
        self.recv_many = self._inlet.recv_many  # type: ignore[method-assign]
        self.recv_view = self._inlet.recv_view  # type: ignore[method-assign]
        self.serve = self._inlet.serve  # type: ignore[method-assign]

    # -- receiving (what `help` shows; each receiver has the inlet's own in its place) ---------------------------------

    def recv(self, timeout: float | None = None) -> bytes:
        """The next message. Waits for it at most `timeout` seconds (None: for ever).

        Where receivers resume, this says that the last message is done.

        Raises NoMessage (a QueueEmpty and a TimeoutError), EndOfMessages once the sender has left and everything was
        received, the PeerViolation of a sender that breaks a rule, QueueBroken if it has not reset the lane in time
        since then, InvalidState, ValueError.
        """
        return self._inlet.recv(timeout)

    def recv_many(self, limit: int, timeout: float | None = None) -> list[bytes]:
        """1 to `limit` messages: all that are there, after waiting for the first. Raises as `recv`.

        Where receivers resume, they are done all together, but what is `replayed` comes alone.
        """
        return self._inlet.recv_many(limit, timeout)

    def recv_view(self, timeout: float | None = None) -> Loan:
        """The next message in place, until it is given back: `with receiver.recv_view() as view: …`. Raises as `recv`.

        The room of younger messages waits for it, too: copy what you keep for long. Where receivers resume, the loan
        has a `replayed` of its own, and is done when it is given back.
        """
        return self._inlet.recv_view(timeout)

    def serve(self, answer: Callable[[memoryview], Any]) -> None:
        """Answer each call with what `answer` makes of its message, until the sender has left. Raises as `recv`.

        Where receivers resume, `answer` may look at `replayed`: a receiver that died may have dealt with this message.
        """
        self._inlet.serve(answer)

    def __iter__(self) -> Iterator[bytes]:
        """Messages as they come, until the sender has left."""
        return iter(self._inlet)

    @property
    def replayed(self) -> bool:
        """Whether what the last call returned was received before, by a receiver that did not come to be done with it.

        False for ever where receivers do not resume.
        """
        return self._inlet.replayed

    @property
    def attempts(self) -> int:
        """For which time the last message was received, by whatever receiver; 1 if it is not `replayed`."""
        return self._inlet.attempts

    def done(self) -> None:
        """What was received as bytes is done with: the sender has its room back now, and none of it comes again.

        There is no need for it, unless it is long until the next message is asked for.
        """
        self._check_usable()
        self._inlet.done()

    # -- figures -------------------------------------------------------------------------------------------------------

    def qsize(self) -> int:
        """Messages that are there now."""
        if not self._inlet.ready:
            self._device.check_usable()
            self._device.hear()  # perhaps of a sender
        return self._inlet.available() if self._inlet.ready else 0

    def empty(self) -> bool:
        """Whether no message is there now."""
        return not self.qsize()

    @property
    def counts(self) -> dict[str, int]:
        """What was received so far, and what it took: messages, bytes, calls, calls_suppressed, waits.

        And undone: messages of this session, its earlier receivers' too, that were given up after `max_attempts`.
        """
        inlet = self._inlet
        return {
            "messages": inlet.messages,
            "bytes": inlet.bytes_in,
            "calls": inlet.calls,
            "calls_suppressed": inlet.calls_suppressed,
            "waits": inlet.waits,
            "undone": inlet.undone,
        }

    # -- what the inlet asks for ---------------------------------------------------------------------------------------

    def sleep(self, deadline: Deadline) -> bool:
        """As `InletKeeper.sleep`."""
        if deadline.expired and not self._ears.may_glance():
            return False
        inlet, device = self._inlet, self._device
        if self._ears.given_out:
            self._ears.clear()
        if not inlet.ready or inlet.available() or inlet.enable_notification():
            return self._remember_work()
        left = deadline.remaining()
        if not device.leaving and not device.peer_gone:
            start = time.monotonic_ns()
            if left != 0:
                self.show_counts()
                inlet.waits += 1
            self._ears.listen(left)
            inlet.pace.slept(time.monotonic_ns() - start)
        return self._look_around(deadline)

    def lie_down(self, deadline: Deadline) -> bool:
        """As `InletKeeper.lie_down`."""
        inlet, device, bed = self._inlet, self._device, self._ears.bed
        left = deadline.remaining()
        if bed is None or left == 0 or device.leaving or device.peer_gone:
            return False
        bed.make(left)
        if not inlet.ready or inlet.available() or inlet.enable_notification():
            return False
        self.show_counts()
        inlet.waits += 1
        inlet.bed = bed
        return True

    def get_up(self, deadline: Deadline) -> bool:
        """As `InletKeeper.get_up`."""
        self._ears.listen(0)
        return self._look_around(deadline)

    def _look_around(self, deadline: Deadline) -> bool:
        """After a sleep: what `sleep` returns."""
        inlet, device = self._inlet, self._device
        if not self._ears.given_out:
            inlet.disable_notification()
        if inlet.available():  # asked first of all: what runs after a sleep is slow
            return self._remember_work()
        gone = device.leaving or device.peer_gone  # asked before the ring: what it sent last must not be missed
        if inlet.available():
            return self._remember_work()
        if gone:
            inlet.ready = False  # everything was received: `get_ready` says so
            return self._remember_work()
        return not deadline.expired

    def get_ready(self, deadline: Deadline) -> None:
        """As `InletKeeper.get_ready`."""
        inlet, device = self._inlet, self._device
        device.check_usable()
        if device.has_news:  # left by an interrupted call
            device.hear()
            if inlet.ready and self._end is None:
                return
        device.raise_spoilt()
        inlet.collect()
        if inlet.broken is not None and device.running:
            self._await_reset(deadline)
        elif device.running and not self._ended:
            self._end = self._end_of_messages()
            self._ended = True
            if not inlet.lent:
                self._let_go()
        if self._end is not None:
            end, self._end = self._end, None
            raise end
        if device.running:
            if inlet.lent:
                raise InvalidState(f"{inlet.lent} messages of the sender that left are still out: release them first")
            self._let_go()
        try:
            device.wait_driver(deadline.remaining())
        except DeadlineExceeded as error:
            raise NoMessage(str(error)) from None
        device.raise_spoilt()

    def _begin(self) -> None:
        """A sender has come."""
        self._ended = False
        self._follow_peer()

    def _await_reset(self, deadline: Deadline) -> None:
        """Return when the sender, which broke a rule, begins anew, or is gone. Raises QueueBroken."""
        inlet, device = self._inlet, self._device
        if self._ears.given_out:
            self._ears.clear()
        device.hear()
        while not (device.leaving or device.peer_gone):
            awaited = not device.coordinator_gone  # without one there are no resets
            if deadline.expired or not awaited:
                raise QueueBroken(f"{inlet.name} stopped at: {inlet.broken}; the sender must reset it", awaited=awaited)
            self._ears.listen(deadline.remaining())

    def _end_of_messages(self) -> EndOfMessages:
        peer, ended = self._device.peer, self._device.driver_ended
        pid = peer.pid if peer is not None else 0
        return EndOfMessages(
            f"the sender, process {pid}, {'ended' if ended else 'left'} and everything it sent was received",
            pid=pid,
            ended=ended,
        )

    def _let_go(self) -> None:
        self.show_counts()
        self._device.let_go()
        self._follow_peer()

    def broke(self, error: VqshmError) -> None:
        """As `InletKeeper.broke`."""
        with contextlib.suppress(VqshmError):  # the violation is raised next, and matters more
            self._device.needs_reset(str(error))

    def stalled(self) -> str:
        """As `InletKeeper.stalled`."""
        peer = self.peer
        if peer is None:
            return "there is no sender"
        alive = "has ended" if self.peer_gone else "is alive"
        return f"the sender, process {peer.pid}, {alive}; {self._inlet.messages} came so far"

    def show_counts(self) -> None:
        """As `InletKeeper.show_counts`."""
        self._device.show_counts()

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give this end back; what was received is done. May be called twice.

        Raises InvalidState while views are out; nothing is closed then.
        """
        inlet = self._inlet
        if os.getpid() == self._pid:
            inlet.collect()
            if inlet.lent:
                raise InvalidState(f"{inlet.lent} messages are still looked at in place: release them first")
            if inlet.ready:
                with contextlib.suppress(VqshmError):
                    (inlet.tell if self._left_by_error else inlet.done)()
        inlet.ready = False
        self._hang_up()

    def _refuse_work(self) -> None:
        self._inlet.ready = False

    def _check_usable(self) -> None:
        self._device.check_usable()


class LaneDevice(DeviceRole):
    """The device of a lane: one queue, whose ring half is an inlet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._inlet: Inlet | None = None
        self.opened: Callable[[], None] = lambda: None  # called when a sender has come
        self._runs = False
        self._spoilt: PeerViolation | None = None
        self._used = 0  # given back in this session
        self._before: dict[str, int] = {}  # the other counters when it began, or was resumed
        super().__init__(*args, **kwargs)
        try:
            check_is_lane(self.region, self.plan)
        except BaseException:
            self.close()
            raise

    @property
    def inlet(self) -> Inlet:
        """The ring half; not ready before a sender has come."""
        if self._inlet is None:
            (queue,) = self.plan.queues
            name = f"{self.region}/{self.plan.name}"
            room, place = queue.buffers.length, (self.memory, queue.layout, self.calls[0])
            if queue.inflight is None:
                self._inlet = Inlet(*place, area_bytes=room, limit=room, name=name)
            else:
                tries = queue.tries_in(self.memory)
                self._inlet = ResumingInlet(
                    *place, queue.inflight.address, tries=tries, area_bytes=room, limit=room, name=name
                )
            self._inlet.ready = False
        return self._inlet

    @property
    def running(self) -> bool:
        """Whether a sender has come, and is not let go of."""
        return self._runs

    def _start_queues(self) -> None:
        self._spoilt = None
        features, inlet = self.features, self.inlet
        ring = bool(features >> spec.VIRTIO_F_EVENT_IDX & 1), bool(features >> spec.VIRTIO_F_INDIRECT_DESC & 1)
        if self.resumed and isinstance(inlet, ResumingInlet):
            try:
                log.info("%s goes on: %d messages come again", inlet.name, inlet.take_over(*ring, ready=False))
                if inlet.given_up:
                    words = "%s: %d messages were given up: received %d times, and nobody lived to be done with them"
                    log.warning(words, inlet.name, inlet.given_up, self.plan.max_attempts)
            except PeerViolation as error:
                self._spoilt = error
            self.calls[0].signal()  # the other receiver may have died between showing what it gave back and calling
        else:
            inlet.restart(*ring, ready=False)
        self._begin_counts()
        if inlet.broken is None:
            inlet.disable_notification()

    def _open_queues(self) -> None:
        if not self._runs:
            self.opened()
            self.inlet.ready = self.inlet.broken is None
            self._runs = True

    def _stop_queues(self) -> None:
        self._runs = False
        self.inlet.ready = False

    def check_usable(self) -> None:
        """Raise InvalidState when closed, ForkedHandle in a forked child."""
        self._check_usable()

    def raise_spoilt(self) -> None:
        """Raise, once, what another receiver or the sender left that cannot be gone on from."""
        spoilt, self._spoilt = self._spoilt, None
        if spoilt is not None:
            raise spoilt

    def show_counts(self) -> None:
        """Write the counters where `vqshm stat` reads them."""
        cells, inlet = self._cells, self.inlet
        self._used = cells.used = count_on(self._used, inlet.next_used)
        cells.taken = self._used + ((inlet.next_avail - inlet.next_used) & 0xFFFF)
        for name, before in self._before.items():
            setattr(cells, name, before + getattr(inlet, name))
        cells.undone = inlet.undone

    def _begin_counts(self) -> None:
        """Count from 0, or from where another receiver of this session stopped."""
        inlet, names = self.inlet, ("calls", "calls_suppressed", "bytes_in", "waits")
        shown = self._cells.snapshot() if self.resumed else dict.fromkeys((*names, "used"), 0)
        self._used = plausible(shown["used"])
        self._before = {name: plausible(shown[name]) - getattr(inlet, name) for name in names}
        self.show_counts()

    @property
    def _cells(self) -> DeviceCounters:
        return self.manifest.queue(self.plan.queues[0].index).device

    def _leave(self) -> None:
        if self._runs:
            self.show_counts()
        super()._leave()
