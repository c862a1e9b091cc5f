"""Ports: one queue of a running driver or device: its ring half, its two doorbells, its counters.

A port rings the other side's doorbell only when the ring says that it wants to be woken [2.7.7, 2.7.10]. Counters are
kept in private and shown in the region now and then, for `vqshm stat`; nobody decides anything by them.

An exception may strike between any two bytecodes: Ctrl-C, a signal handler. So each step is noted before it is done,
and the note is removed after; a call that finds one finishes what the interrupted one began. A chain is noted in flight
before the ring has it, and the ring forgets a chain only after its answer was put where it cannot be lost; a doorbell
about which there is doubt is rung. Only a counter may be one too low then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from vqshm.errors import RequestLost
from vqshm.host.request import Lease, Request
from vqshm.ring import DeviceQueue, DriverQueue
from vqshm.transport.cells import count_on, plausible

if TYPE_CHECKING:
    from vqshm.memory import BufferPool, GuestMemory
    from vqshm.notify import Notifier
    from vqshm.ring import DescriptorChain, QueueConfig
    from vqshm.transport import DeviceCounters, DriverCounters, QueuePlan

SHOW_EVERY: Final = 64  # chains; a busy side shows its counters so often, an idle one before it sleeps
TABLE_ENTRIES: Final = 16  # descriptors in an indirect table: longer chains use the descriptor table itself

Half = TypeVar("Half", DriverQueue, DeviceQueue)


class _Port(Generic[Half]):
    """What both sides count, and how they show it."""

    def __init__(
        self, number: int, queue: Half, kick: Notifier, call: Notifier, cells: DriverCounters | DeviceCounters
    ) -> None:
        self.number = number
        self.queue: Half = queue
        self.kick_bell = kick
        self.call_bell = call
        self.counts = dict.fromkeys(cells.snapshot(), 0)
        self._cells = cells

    def show_counts(self) -> None:
        """Write the counters where `vqshm stat` reads them."""
        for name, value in self.counts.items():
            setattr(self._cells, name, value)


class DevicePort(_Port[DeviceQueue]):
    """One queue of a running device."""

    def __init__(
        self,
        memory: GuestMemory,
        plan: QueuePlan,
        config: QueueConfig,
        kick: Notifier,
        call: Notifier,
        cells: DeviceCounters,
    ) -> None:
        inflight = None if plan.inflight is None else plan.inflight.address
        queue = config.device(memory, inflight=inflight, tries=plan.tries_in(memory))
        super().__init__(plan.number, queue, kick, call, cells)
        self.told = False  # the queue is broken, and the driver was told
        self.taking = False  # a chain is on its way from the ring to whoever called `pop`, who clears this
        self._before = self._left = 0  # next_avail and replays when that began
        self._asking = False  # a chain was returned, and whether the driver must be called is being asked
        # A handler copies what it reads: never more than there is, however often a driver names the same memory.
        self.queue.limit = sum(region.end - region.start for region in memory.regions)

    def begin(self) -> None:
        """Begin with a driver whose rings stand at 0."""
        self.queue.begin()

    def resume(self) -> int:
        """Go on where a dead device stopped: how many chains come again. Raises as `DeviceQueue.resume`."""
        shown = {name: plausible(count) for name, count in self._cells.snapshot().items()}
        count = self.queue.resume()
        used = count_on(shown["used"], self.queue.next_used)
        self.counts.update(shown, used=used, taken=used + count, undone=self.queue.undone)
        self.show_counts()
        self.call_bell.signal()  # it may have died between showing a chain and calling for it
        return count

    def pop(self) -> DescriptorChain | None:
        """The next chain; None if there is none, or the queue is broken. Raises the PeerViolation that breaks it.

        Those that a dead device had in flight come first, and are marked `replayed`. One whose taking was interrupted
        is taken again.
        """
        if self._asking:
            self._show()
        if self.queue.broken is not None:
            return None
        if self.taking and self.queue.next_avail != self._before:
            self.queue.go_to_previous_position()
        if self.taking and self.queue.replays != self._left:
            self.queue.undo_replay()
        self._before = self.queue.next_avail
        self._left = self.queue.replays
        self.taking = True
        chain = self.queue.replay() or self.queue.pop()
        if chain is not None:
            self.counts["taken"] += not chain.replayed
            self.counts["bytes_in"] += chain.readable_bytes
        return chain

    def again(self, head: int) -> DescriptorChain | None:
        """A chain that was taken, to be handled again; None if it was returned. Raises as `pop`."""
        if self._asking:
            self._show()
        return None if self.queue.broken is not None else self.queue.again(head)

    @property
    def has_work(self) -> bool:
        """Whether `pop` would find something: a chain, or a violation to report."""
        if self.queue.broken is not None:
            return not self.told
        return self.queue.replays > 0 or self.queue.avail_idx() != self.queue.next_avail

    def complete(self, chain: DescriptorChain, written: int) -> None:
        """Return a chain, and call the driver if it wants that."""
        if self._asking:
            self._show()
        self._asking = True
        try:
            self.queue.add_used(chain.head_index, written)
        except Exception:
            self._asking = False
            raise
        self.counts["used"] += 1
        self.counts["bytes_out"] += written
        if self.queue.needs_notification():
            self._call()
        else:
            self._asking = False
            self.counts["calls_suppressed"] += 1
        if not self.counts["used"] % SHOW_EVERY:
            self.show_counts()

    def _show(self) -> None:
        """An interrupted call may have returned a chain, and not have shown it."""
        self.queue.publish_used()
        self._call()

    def _call(self) -> None:
        """Call the driver, which wants to be or may want to be."""
        self.call_bell.signal()
        self._asking = False
        self.counts["calls"] += 1


class DriverPort(_Port[DriverQueue]):
    """One queue of a running driver, with its buffers and its requests in flight.

    `tables`: room for indirect tables, of which it takes no more than half of the buffers.
    `returned`, `private`: where requests go when the device has returned them, in order; see `Request.private`.
    """

    def __init__(
        self,
        memory: GuestMemory,
        plan: QueuePlan,
        config: QueueConfig,
        pool: BufferPool,
        tables: Lease,
        kick: Notifier,
        call: Notifier,
        cells: DriverCounters,
    ) -> None:
        plan.zero(memory)
        self.pool = pool
        tables.release()
        place: tuple[int, int] | None = None
        if config.indirect and tables.count <= pool.free // 2:
            tables.take(memory)
            place = tables.address, TABLE_ENTRIES
        self._tables = tables
        super().__init__(plan.number, config.driver(memory, indirect_tables=place), kick, call, cells)
        self.in_flight: dict[int, Request] = {}
        self._entering: Request | None = None  # is being offered; None again once that is noted everywhere
        self._leaving = False  # an answer is being moved out of the ring
        self._news = False  # chains were offered of which the device was not told
        self._asking = False  # the ring is being asked whether it wants to be told; it answers yes only once
        self._undone = plan.undone_in(memory)
        self._memory = memory

    def submit(
        self, readable: Sequence[Any], writable: Sequence[int], tag: Any = None, *, private: bool = False
    ) -> Request:
        """Lease, copy, offer. Raises QueueFull, OutOfBuffers, ValueError, TypeError; nothing stays leased then.

        Once interrupted it has done all of it or nothing. If all, then the request is returned by and by like others.
        """
        if self._entering is not None:
            self.settle()
        pieces = [memoryview(piece).cast("B") for piece in readable]
        counts = [piece.nbytes for piece in pieces] + [index(count) for count in writable]
        if counts and min(counts) < 1:
            raise ValueError(f"each buffer of a chain has at least 1 byte: {counts}")
        self.queue.room_for(len(counts))  # before anything is copied
        leases = [Lease(self.pool, count) for count in counts]
        split = len(pieces)
        request = Request(self.number, leases[:split], leases[split:], tag, private=private)
        self._entering = request
        try:
            for lease in leases:
                lease.take(self._memory)
            for lease, piece in zip(leases, pieces, strict=False):
                lease.view[:] = piece
            self._offer(request)
        except BaseException:
            self.settle()
            raise
        return request

    def _offer(self, request: Request) -> None:
        """Make a request available to the device, and note it. Raises QueueFull."""
        readable = [lease.buffer for lease in request.readable]
        writable = [lease.buffer for lease in request.writable]
        request.token = self.queue.next_head
        request.offered_at = time.perf_counter()
        self.in_flight[request.token] = request
        self._news = True
        if self._undone is not None:
            self._undone.clear(request.token)
        self.queue.add(readable, writable)
        self._entering = None
        self.counts["added"] += 1
        self.counts["bytes_out"] += sum(count for _, count in readable)

    def settle(self) -> None:
        """Finish a submission that was interrupted, or undo it if the ring has not seen it yet."""
        request = self._entering
        if request is None:
            return
        noted = request.token >= 0 and self.in_flight.get(request.token) is request
        if noted and self.queue.is_in_flight(request.token):
            self.queue.publish()
        else:
            if noted:
                del self.in_flight[request.token]
            request.token = -1
            for lease in (*request.readable, *request.writable):
                lease.release()
        self._entering = None

    def kick(self) -> None:
        """Notify the device of what was offered since the last time, if it wants to be."""
        if not self._news:
            return
        if self._entering is not None:
            self.settle()
        doubt = self._asking
        self._asking = True
        if self.queue.needs_kick() or doubt:
            self.kick_bell.signal()
            self.counts["kicks"] += 1
        else:
            self.counts["kicks_suppressed"] += 1
        self._news = self._asking = False

    def collect(self, returned: dict[Request, None], private: dict[Request, None]) -> bool:
        """Move the next request that the device returned to one of these two; False if there is none.

        Raises the PeerViolation that breaks the queue; a broken one returns nothing any more.
        """
        queue = self.queue
        if queue.broken is not None:
            return False
        if self._entering is not None:
            self.settle()
        self._leaving = True
        token = queue.peek_head()
        if token < 0:
            self._leaving = False
            return False
        request = self.in_flight.get(token)
        if request is not None:  # else an interrupted call has moved it already
            request.written = queue.written
            if self._undone is not None and self._undone.says(token):
                request.error = RequestLost(
                    f"{queue.name}: every device that took this request ended before it answered; it was given up",
                    queue=self.number,
                )
            request.done = True
            (private if request.private else returned)[request] = None
            del self.in_flight[token]
        queue.accept(token)
        self._leaving = False
        self.counts["reaped"] += 1
        self.counts["bytes_in"] += queue.written
        if not self.counts["reaped"] % SHOW_EVERY:
            self.show_counts()
        return True

    def finish(self, returned: dict[Request, None], private: dict[Request, None]) -> None:
        """If `collect` was interrupted, do it again. To be called before an answer is handed out."""
        if self._leaving:
            self.collect(returned, private)

    @property
    def has_work(self) -> bool:
        """Whether `collect` would find something: a request, or a violation to report."""
        return self.queue.broken is None and self.queue.used_idx() != self.queue.last_used

    def take_back(self, lost: dict[Request, None], private: dict[Request, None]) -> None:
        """After a reset: every request that was in flight; its buffers are ours again, its answer never came."""
        self.settle()
        self._tables.release()
        self.queue.detach_unused()
        for request in self.in_flight.values():
            request.done = True
            (private if request.private else lost)[request] = None
        self.in_flight.clear()
