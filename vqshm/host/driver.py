"""Driver: the process that offers buffers to a device and gets them back used.

    with Driver.attach("demo", "echo0") as driver:
        answer = driver.request(b"hello", writable=64)          # one chain, there and back

        request = driver.submit([header, data], [16, 4096])     # or many in flight: leases, copies, offers
        for request in driver.completed(timeout=1.0):           # in the order the device returns them
            with request:
                use(request.written, request.views())

Attaching walks through the device's initialisation [3.1.1]: reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK, queues,
DRIVER_OK.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self

from vqshm import spec
from vqshm.errors import (
    DeadlineExceeded,
    DeviceNeedsReset,
    InvalidState,
    NegotiationError,
    OutOfBuffers,
    PeerGone,
    QueueFull,
)
from vqshm.host.endpoint import Endpoint
from vqshm.host.liveness import ProcessId
from vqshm.host.request import Lease, Request
from vqshm.memory import BufferPool
from vqshm.notify import Deadline, Notifier, WaitStrategy
from vqshm.transport import features as feature_bits

if TYPE_CHECKING:
    from vqshm.memory import GuestMemory
    from vqshm.ring import DriverQueue, QueueConfig, SplitLayout
    from vqshm.transport import DriverCounters, Message, QueuePlan

SHOW_EVERY = 64  # chains; a busy side shows its counters so often, an idle one before it sleeps
TABLE_ENTRIES = 16  # descriptors in an indirect table: longer chains use the descriptor table itself
RING_FEATURES = spec.mask(spec.VIRTIO_F_VERSION_1, spec.VIRTIO_F_EVENT_IDX, spec.VIRTIO_F_INDIRECT_DESC)
EVERY_DEVICE_FEATURE = spec.mask(*(bit for bit in spec.DEVICE_FEATURE_BITS if bit < 64))


class DriverPort:
    """One queue of a running driver: the ring half, its buffers, its requests in flight."""

    def __init__(
        self,
        memory: GuestMemory,
        plan: QueuePlan,
        config: QueueConfig,
        kick: Notifier,
        call: Notifier,
        cells: DriverCounters,
    ) -> None:
        _clear(memory, plan.layout)
        self.number = plan.number
        self.kick_bell = kick
        self.call_bell = call
        self.pool = BufferPool(*plan.buffers)
        tables = None
        if config.indirect:
            tables = self._reserve_tables(plan.size)
        self.queue: DriverQueue = config.driver(memory, indirect_tables=tables)
        self.in_flight: dict[int, Request] = {}
        self._memory = memory
        self._cells = cells
        self.counts = dict.fromkeys(cells.snapshot(), 0)

    def _reserve_tables(self, size: int) -> tuple[int, int] | None:
        """Room for the indirect tables, if it takes no more than half of the buffers."""
        wanted = TABLE_ENTRIES * spec.DESC_SIZE * size
        return (self.pool.allocate(wanted), TABLE_ENTRIES) if wanted <= self.pool.size // 2 else None

    def lease(self, count: int) -> Lease:
        """`count` bytes of shared memory. Raises OutOfBuffers."""
        return Lease(self._memory, self.pool, count)

    def submit(self, readable: Sequence[Any], writable: Sequence[int], tag: Any) -> Request:
        """Lease, copy, offer. Raises QueueFull, OutOfBuffers; nothing stays leased then."""
        leases: list[Lease] = []
        try:
            for piece in readable:
                data = memoryview(piece).cast("B")
                lease = self.lease(data.nbytes)
                leases.append(lease)
                lease.view[:] = data
            leases.extend(self.lease(count) for count in writable)
            split = len(readable)
            request = Request(self.number, leases[:split], leases[split:], tag)
            self.offer(request)
        except BaseException:
            for lease in leases:
                lease.release()
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
        """Notify the device of what was offered, if it wants to be."""
        if self.queue.needs_kick():
            self.kick_bell.signal()
            self.counts["kicks"] += 1
        else:
            self.counts["kicks_suppressed"] += 1

    def reap(self) -> Request | None:
        """The next request the device returned. Raises the PeerViolation of a device that breaks a rule."""
        returned = self.queue.reap()
        if returned is None:
            return None
        token, written = returned
        request = self.in_flight.pop(token)
        request.written = written
        request.done = True
        self.counts["reaped"] += 1
        self.counts["bytes_in"] += written
        if not self.counts["reaped"] % SHOW_EVERY:
            self.show_counts()
        return request

    def show_counts(self) -> None:
        """Write the counters where `vqshm stat` reads them."""
        for name, value in self.counts.items():
            setattr(self._cells, name, value)

    def take_back(self) -> list[Request]:
        """After a reset: every request that was in flight.

        Its buffers are the driver's again, its answer never came.
        """
        lost = [self.in_flight.pop(token) for token in self.queue.detach_unused()]
        for request in lost:
            request.done = True
        return lost


class Driver(Endpoint):
    """The driver role. See `Endpoint` for what both roles share, `attach` for how to get one."""

    role = "driver"

    @classmethod
    def attach(
        cls,
        region: str,
        device: str | None = None,
        *,
        features: int = EVERY_DEVICE_FEATURE,
        required: int = 0,
        event_idx: bool = True,
        indirect: bool = True,
        timeout: float | None = 5.0,
        strategy: WaitStrategy | None = None,
    ) -> Self:
        """Take the driver's role, wait for the device, and initialise it.

        `device`: its name in the region; None if there is only one. `features`, `required`: masks of device-type bits
        that are wanted if offered, or insisted on. `event_idx`, `indirect`: use these ring features if offered.

        Raises NotFound, RoleTaken, NegotiationError, CoordinatorGone, PeerGone, UntrustedPeer, VersionMismatch, and
        DeadlineExceeded if no device attaches in `timeout` seconds.
        """
        deadline = Deadline(timeout)
        driver = cls(region, device, offer={}, timeout=timeout, strategy=strategy)
        try:
            ring = spec.mask(spec.VIRTIO_F_VERSION_1)
            ring |= spec.mask(spec.VIRTIO_F_EVENT_IDX) if event_idx else 0
            ring |= spec.mask(spec.VIRTIO_F_INDIRECT_DESC) if indirect else 0
            driver._wanted, driver._required = features | ring, required
            driver._wait_device(deadline)
            driver._initialise(deadline)
        except BaseException:
            driver.close()
            raise
        return driver

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.ports: list[DriverPort] = []
        self._offered = 0
        self._wanted = self._required = 0
        self._reset_wanted = ""  # why the device needs a reset, once it said so
        self._early: list[Request] = []  # reaped by `request()` while it waited for its own
        super().__init__(*args, **kwargs)

    # -- life ----------------------------------------------------------------------------------------------------------

    def _wait_device(self, deadline: Deadline) -> None:
        self._hear()
        while self.peer is None:
            if self.coordinator_gone or self.closing:
                self._no_coordinator()
            if deadline.expired:
                raise DeadlineExceeded(f"no device process attached to {self.region}/{self.plan.name} in time")
            self.park([], deadline.remaining())

    def _initialise(self, deadline: Deadline) -> None:
        """The sequence of [3.1.1]; FAILED is set where it cannot be finished."""
        self._status(spec.STATUS_RESET, deadline)
        status = self._status(spec.STATUS_ACKNOWLEDGE, deadline)
        status = self._status(status | spec.STATUS_DRIVER, deadline)
        try:
            accepted = feature_bits.negotiate(self._offered, self._wanted, self._required)
            self._ask({"type": "features", "bits": accepted}, deadline)
            status = self._status(status | spec.STATUS_FEATURES_OK, deadline)
        except NegotiationError:
            self._status(status | spec.STATUS_FAILED, deadline)
            raise
        self.features = accepted
        self._set_up_queues()
        self._status(status | spec.STATUS_DRIVER_OK, deadline)

    def _set_up_queues(self) -> None:
        self.ports = []
        for plan in self.plan.queues:
            config = self._queue_config(plan)
            kick, call = self.kicks[plan.number], self.calls[plan.number]
            self.ports.append(DriverPort(self.memory, plan, config, kick, call, self.manifest.queue(plan.index).driver))

    def reset(self, timeout: float | None = 5.0) -> list[Request]:
        """Reset the device and initialise it anew; the requests whose answer never came, their buffers ours again.

        Waits for a new device process if the old one ended. Raises DeadlineExceeded, CoordinatorGone, NegotiationError.
        """
        self._check_usable()
        deadline = Deadline(timeout)
        self._status(spec.STATUS_RESET, deadline)
        lost = [request for port in self.ports for request in port.take_back()]
        self._reset_wanted = ""
        self._hear()
        if self.peer_gone:
            self._forget_peer()
        self._wait_device(deadline)
        self._initialise(deadline)
        return lost

    def _on_event(self, event: Message) -> None:
        if event["what"] == "peer_attached":
            self._offered = event["features"]
            if self.peer is None or self.peer_gone:
                self._watch_peer(ProcessId(event["pid"], event["start_time"]))
        elif event["what"] == "needs_reset":
            self._reset_wanted = event.get("reason", "no reason given")

    # -- requests ------------------------------------------------------------------------------------------------------

    def submit(
        self, readable: Sequence[Any] = (), writable: Sequence[int] = (), *, queue: int = 0, tag: Any = None
    ) -> Request:
        """Offer a chain: copies of the `readable` pieces, and empty buffers of `writable` bytes each. Does not kick.

        Raises QueueFull (too few descriptors), OutOfBuffers, InvalidChain, PeerGone, DeviceNeedsReset,
        ValueError/TypeError for a piece that is no contiguous buffer.
        """
        self._check_running()
        return self._port(queue).submit(readable, writable, tag)

    def kick(self, queue: int | None = None) -> None:
        """Notify the device of what was submitted to `queue` (None: to all), if it wants to be."""
        self._check_running()
        for port in self.ports if queue is None else [self._port(queue)]:
            port.kick()

    def completed(self, timeout: float | None = None) -> Iterator[Request]:
        """The requests the device returned: all that are there, after waiting for the first at most `timeout` seconds.

        Yields nothing if nothing is in flight. Kicks what was submitted before. The caller releases each request.
        Raises DeadlineExceeded, PeerGone (with what is in flight), DeviceNeedsReset, and the PeerViolation of a device
        that breaks a rule.
        """
        request = self._reap_any()
        if request is None and self.in_flight:
            self.kick()
            self._wait(self._ready, Deadline(timeout))
            request = self._reap_any()
        while request is not None:
            yield request
            request = self._reap_any()

    def request(
        self, readable: Any, writable: int | Sequence[int] = 0, *, queue: int = 0, timeout: float | None = None
    ) -> bytes:
        """Offer one chain, kick, wait for it, and return the bytes the device wrote.

        `readable`: a buffer, or a list of pieces. `writable`: bytes for the answer, or a list of buffer sizes. Waits
        for room in the queue, too. Raises as `submit` and `completed`.
        """
        pieces = readable if isinstance(readable, list | tuple) else [readable]
        sizes = [writable] if isinstance(writable, int) else writable
        deadline = Deadline(timeout)
        mine = self._submit_when_room(
            [piece for piece in pieces if memoryview(piece).nbytes], [size for size in sizes if size], queue, deadline
        )
        self.kick(queue)
        while not mine.done:
            self._wait(self._ready, deadline)
            self._collect_early()
        self._early.remove(mine)
        with mine:
            return mine.output()

    @property
    def in_flight(self) -> int:
        """Requests the device has not returned yet, over all queues."""
        return sum(len(port.in_flight) for port in self.ports)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _port(self, queue: int) -> DriverPort:
        if not 0 <= queue < len(self.ports):
            raise ValueError(f"{self.region}/{self.plan.name} has queues 0..{len(self.ports) - 1}, not {queue}")
        return self.ports[queue]

    def _submit_when_room(self, pieces: list[Any], sizes: Sequence[int], queue: int, deadline: Deadline) -> Request:
        while True:
            try:
                return self.submit(pieces, sizes, queue=queue)
            except (QueueFull, OutOfBuffers):
                if not self._port(queue).in_flight:
                    raise  # nothing will ever come back to make room
                self.kick(queue)
                self._wait(self._ready, deadline)
                self._collect_early()

    def _collect_early(self) -> None:
        """Reap what is there and keep it, in order, for `request` and `completed`."""
        for port in self.ports:
            while (request := port.reap()) is not None:
                self._early.append(request)

    def _reap_any(self) -> Request | None:
        if self._early:
            return self._early.pop(0)
        for port in self.ports:
            request = port.reap()
            if request is not None:
                return request
        return None

    def _ready(self) -> bool:
        return any(port.queue.used() for port in self.ports)

    def _arm(self) -> bool:
        waiting = [port.queue.enable_notification() for port in self.ports]
        return any(waiting)

    def _wait(self, ready: Any, deadline: Deadline) -> None:
        """Wait until `ready()`. Raises DeadlineExceeded, PeerGone, DeviceNeedsReset."""
        self._check_running()
        if not self.strategy.wait(ready, self._arm, self._park, deadline):
            raise DeadlineExceeded(self._stalled(), in_flight=self.in_flight)

    def _park(self, timeout: float | None) -> None:
        if timeout != 0:
            for port in self.ports:
                port.counts["waits"] += 1
            self._show_counts()
        self.park([port.call_bell for port in self.ports], timeout)
        if not self._ready():
            self._check_running()

    def _check_running(self) -> None:
        """Raise unless the device can be expected to answer."""
        self._check_usable()
        if not self.ports:
            raise InvalidState("the device is not initialised")
        if self._reset_wanted:
            raise DeviceNeedsReset(
                f"device {self.plan.name!r} needs a reset: {self._reset_wanted}; call reset()", in_flight=self.in_flight
            )
        if self.peer_gone:
            self._raise_gone()

    def _raise_gone(self) -> NoReturn:
        assert self.peer is not None  # noqa: S101 - peer_gone looked
        raise PeerGone(
            f"the device of {self.region}/{self.plan.name}, process {self.peer.pid}, ended; {self.in_flight} requests "
            "were in flight; reset() waits for a new one",
            pid=self.peer.pid,
            role="device",
            in_flight=self.in_flight,
        )

    def _stalled(self) -> str:
        alive = "has ended" if self.peer_gone else "is alive"
        pid = self.peer.pid if self.peer is not None else 0
        used = sum(port.counts["reaped"] for port in self.ports)
        return (
            f"the device of {self.region}/{self.plan.name}, process {pid}, {alive} but returned nothing in time: "
            f"{self.in_flight} requests in flight, {used} returned so far"
        )

    def _show_counts(self) -> None:
        for port in self.ports:
            port.show_counts()

    def _leave(self) -> None:
        self._show_counts()
        super()._leave()


def _clear(memory: GuestMemory, layout: SplitLayout) -> None:
    """Zero the three areas, as the driver must before the device may look at them."""
    for _, address, count in layout.areas():
        memory.write(address, bytes(count))
