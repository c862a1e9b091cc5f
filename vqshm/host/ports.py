"""Ports: one queue of a running driver or device: its ring half, its two doorbells, its counters.

A port rings the other side's doorbell only when the ring says that it wants to be woken [2.7.7, 2.7.10]. Counters are
kept in private and shown in the region now and then, for `vqshm stat`; nobody decides anything by them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from vqshm import spec
from vqshm.host.request import Lease, Request
from vqshm.ring import DeviceQueue, DriverQueue

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
        super().__init__(plan.number, config.device(memory, inflight=inflight), kick, call, cells)
        # A handler copies what it reads: never more than there is, however often a driver names the same memory.
        self.queue.limit = sum(region.end - region.start for region in memory.regions)

    def begin(self) -> None:
        """Begin with a driver whose rings stand at 0."""
        self.queue.begin()

    def resume(self) -> int:
        """Go on where a dead device stopped: how many chains come again. Raises as `DeviceQueue.resume`."""
        self.counts.update(self._cells.snapshot())
        count = self.queue.resume()
        self.call_bell.signal()  # it may have died between showing a chain and calling for it
        return count

    def pop(self) -> DescriptorChain | None:
        """The next chain; None if there is none, or the queue is broken. Raises the PeerViolation that breaks it.

        Those that a dead device had in flight come first, and are marked `replayed`.
        """
        if self.queue.broken is not None:
            return None
        chain = self.queue.replay() or self.queue.pop()
        if chain is not None:
            self.counts["taken"] += 1
            self.counts["bytes_in"] += chain.readable_bytes
        return chain

    @property
    def has_work(self) -> bool:
        """Whether `pop` would find something: a chain, or a violation to report."""
        return self.queue.broken is None and (self.queue.replays > 0 or self.queue.avail_idx() != self.queue.next_avail)

    def complete(self, chain: DescriptorChain, written: int) -> None:
        """Return a chain, and call the driver if it wants that."""
        self.queue.add_used(chain.head_index, written)
        self.counts["used"] += 1
        self.counts["bytes_out"] += written
        if self.queue.needs_notification():
            self.call_bell.signal()
            self.counts["calls"] += 1
        else:
            self.counts["calls_suppressed"] += 1
        if not self.counts["used"] % SHOW_EVERY:
            self.show_counts()


class DriverPort(_Port[DriverQueue]):
    """One queue of a running driver, with its buffers and its requests in flight."""

    def __init__(
        self,
        memory: GuestMemory,
        plan: QueuePlan,
        config: QueueConfig,
        pool: BufferPool,
        kick: Notifier,
        call: Notifier,
        cells: DriverCounters,
    ) -> None:
        plan.zero(memory)
        self.pool = pool
        self._tables = self._reserve_tables(plan.size) if config.indirect else None
        super().__init__(plan.number, config.driver(memory, indirect_tables=self._tables), kick, call, cells)
        self.in_flight: dict[int, Request] = {}
        self._announced = 0  # chains offered when the device was last notified, or need not be
        self._strays: list[Lease] = []  # of requests that were offered and, by an interruption, not noted
        self._memory = memory

    def _reserve_tables(self, size: int) -> tuple[int, int] | None:
        """Room for the indirect tables, if it takes no more than half of the buffers."""
        wanted = TABLE_ENTRIES * spec.DESC_SIZE * size
        return (self.pool.allocate(wanted), TABLE_ENTRIES) if wanted <= self.pool.free // 2 else None

    def lease(self, count: int) -> Lease:
        """`count` bytes of shared memory. Raises OutOfBuffers."""
        return Lease(self._memory, self.pool, count)

    def submit(self, readable: Sequence[Any], writable: Sequence[int], tag: Any) -> Request:
        """Lease, copy, offer. Raises QueueFull, OutOfBuffers, ValueError, TypeError; nothing stays leased then."""
        pieces = [memoryview(piece).cast("B") for piece in readable]
        counts = [piece.nbytes for piece in pieces] + [index(count) for count in writable]
        if counts and min(counts) < 1:
            raise ValueError(f"each buffer of a chain has at least 1 byte: {counts}")
        self.queue.room_for(len(counts))  # before anything is copied
        leases: list[Lease] = []
        noted, offered = len(self.in_flight), self.queue.in_flight
        try:
            for count in counts:
                leases.append(self.lease(count))  # noqa: PERF401 - those before a failure are released
            for lease, piece in zip(leases, pieces, strict=False):
                lease.view[:] = piece
            split = len(pieces)
            request = Request(self.number, leases[:split], leases[split:], tag)
            self.offer(request)
        except BaseException:
            if self.queue.in_flight == offered:
                for lease in leases:
                    lease.release()
            elif len(self.in_flight) == noted:  # Ctrl-C between the two: the device has the buffers now
                self._strays += leases
            raise
        return request

    def offer(self, request: Request) -> None:
        """Make a request available to the device. Raises QueueFull."""
        readable = [lease.buffer for lease in request.readable]
        request.token = self.queue.add(readable, [lease.buffer for lease in request.writable])
        self.in_flight[request.token] = request
        request.offered_at = time.perf_counter()
        self.counts["added"] += 1
        self.counts["bytes_out"] += sum(count for _, count in readable)

    def kick(self) -> None:
        """Notify the device of what was offered since the last time, if it wants to be."""
        if self.counts["added"] == self._announced:
            return
        self._announced = self.counts["added"]
        if self.queue.needs_kick():
            self.kick_bell.signal()
            self.counts["kicks"] += 1
        else:
            self.counts["kicks_suppressed"] += 1

    def reap(self) -> Request | None:
        """The next request the device returned; None if there is none, or the queue is broken.

        Raises the PeerViolation that breaks it.
        """
        while self.queue.broken is None and (returned := self.queue.reap()) is not None:
            token, written = returned
            self.counts["reaped"] += 1
            self.counts["bytes_in"] += written
            if not self.counts["reaped"] % SHOW_EVERY:
                self.show_counts()
            request = self.in_flight.pop(token, None)
            if request is not None:  # no stray one
                request.written = written
                request.done = True
                return request
        return None

    @property
    def has_work(self) -> bool:
        """Whether `reap` would find something: a request, or a violation to report."""
        return self.queue.broken is None and self.queue.used_idx() != self.queue.last_used

    def take_back(self) -> list[Request]:
        """After a reset: every request that was in flight; its buffers are ours again, its answer never came."""
        if self._tables is not None:
            self.pool.release(self._tables[0])
        self.queue.detach_unused()
        lost = list(self.in_flight.values())
        self.in_flight.clear()
        for request in lost:
            request.done = True
        for lease in self._strays:
            lease.release()
        self._strays.clear()
        return lost
