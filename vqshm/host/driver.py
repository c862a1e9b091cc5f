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

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self

from vqshm import spec
from vqshm.errors import (
    CoordinatorGone,
    DeadlineExceeded,
    DeviceNeedsReset,
    InvalidState,
    NegotiationError,
    OutOfBuffers,
    PeerGone,
    QueueBroken,
    QueueFull,
)
from vqshm.host.endpoint import CONTROL_TIMEOUT, Endpoint
from vqshm.host.liveness import ProcessId
from vqshm.host.ports import DriverPort
from vqshm.memory import BufferPool
from vqshm.notify import Deadline, WaitStrategy
from vqshm.transport import features as feature_bits

if TYPE_CHECKING:
    from vqshm.host.request import Request
    from vqshm.transport import Message

EVERY_DEVICE_FEATURE = spec.mask(*(bit for bit in spec.DEVICE_FEATURE_BITS if bit < 64))


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
        self._arrived: tuple[ProcessId, int] | None = None  # the device that attached last, and what it offers
        self._offered = 0
        self._wanted = self._required = 0
        self._turn = 0
        self._end: Deadline | None = None  # of the last answers, once the region is closing
        self._reset_wanted: dict[int, str] = {}  # queue -> why the device needs a reset, once it said so
        self._pools: list[BufferPool] = []  # one for each queue; they outlive a reset, as buffers may be out over it
        self._retired: list[DriverPort] = []  # queues of before a reset that is not confirmed yet
        self._lost: list[Request] = []  # what was in flight at a reset that is not finished yet
        self._early: list[Request] = []  # reaped by `request()` while it waited for its own
        self._abandoned: set[Request] = set()  # of `request()` calls that did not wait until the end
        super().__init__(*args, **kwargs)

    # -- life ----------------------------------------------------------------------------------------------------------

    def _wait_device(self, deadline: Deadline) -> None:
        self.hear()
        while not self._meet_device():
            if self.coordinator_gone or self.closing:
                self._no_coordinator()
            if deadline.expired:
                raise DeadlineExceeded(f"no device process attached to {self.region}/{self.plan.name} in time")
            self.park([], deadline.remaining())

    def _meet_device(self) -> bool:
        """Make the device that attached last the peer. A later one is not looked at before the next reset."""
        self._forget_peer()
        if self._arrived is None:
            return False
        process, self._offered = self._arrived
        self._watch_peer(process)
        if self.peer_gone:
            self._forget_peer()  # the coordinator will say so, too, and that is waited for
        return self.peer is not None

    def _initialise(self, deadline: Deadline) -> None:
        """The sequence of [3.1.1]; FAILED is set where it cannot be finished."""
        self._status(spec.STATUS_RESET, deadline)
        status = self._status(spec.STATUS_ACKNOWLEDGE, deadline)
        status = self._status(status | spec.STATUS_DRIVER, deadline)
        try:
            status = self._negotiate(status, deadline)
        except NegotiationError:
            self._status(status | spec.STATUS_FAILED, deadline)
            raise
        self._retired = self._set_up_queues()
        self._status(status | spec.STATUS_DRIVER_OK, deadline)
        self.ports, self._retired = self._retired, []  # only now may buffers be offered

    def _negotiate(self, status: int, deadline: Deadline) -> int:
        """Agree on features; the status, read back with FEATURES_OK in it. Raises NegotiationError."""
        self.features = feature_bits.negotiate(self._offered, self._wanted, self._required)
        self._ask({"type": "features", "bits": self.features}, deadline)
        status = self._status(status | spec.STATUS_FEATURES_OK, deadline)
        if not status & spec.STATUS_FEATURES_OK:
            raise NegotiationError(f"the device does not accept {', '.join(feature_bits.names(self.features))}")
        return status

    def _set_up_queues(self) -> list[DriverPort]:
        if not self._pools:
            self._pools = [BufferPool(*plan.buffers) for plan in self.plan.queues]
        ports = []
        for plan, pool in zip(self.plan.queues, self._pools, strict=True):
            config, cells = self._queue_config(plan), self.manifest.queue(plan.index).driver
            kick, call = self.kicks[plan.number], self.calls[plan.number]
            ports.append(DriverPort(self.memory, plan, config, pool, kick, call, cells))
        return ports

    def reset(self, timeout: float | None = 5.0) -> list[Request]:
        """Reset the device and initialise it anew; the requests whose answer never came, their buffers ours again.

        Waits for a new device process if the old one ended or left. Release the requests: until then their buffers stay
        out. Those of `request` calls that gave up are released, and not returned.

        Raises DeadlineExceeded, CoordinatorGone, NegotiationError; nothing can be submitted then, and the next `reset`
        goes on from there.
        """
        self._check_usable()
        deadline = Deadline(timeout)
        self._retired += self.ports
        self.ports = []
        self._status(spec.STATUS_RESET, deadline)
        # The device has let go: what was in flight is ours again [2.4].
        for port in self._retired:
            self._lost += port.take_back()
        self._retired.clear()
        for request in self._abandoned.intersection(self._lost):
            self._lost.remove(request)
            request.release()
        self._abandoned.clear()
        self._reset_wanted.clear()
        self._wait_device(deadline)
        self._initialise(deadline)
        lost, self._lost = self._lost, []
        return lost

    def _on_event(self, event: Message) -> None:
        what = event["what"]
        if what == "peer_attached":
            self._arrived = ProcessId(event["pid"], event["start_time"]), event["features"]
        elif what == "peer_gone":
            self._arrived = None
            if self._watch is not None:
                self._watch.close()  # it need not have ended: it counts as gone until the next reset
        elif what == "needs_reset":
            self._reset_wanted[event.get("queue", 0)] = event.get("reason", "no reason given")
        elif what == "closing":
            self._end = Deadline(CONTROL_TIMEOUT)

    def _unanswered(self, request: Message) -> str:
        words = super()._unanswered(request)
        if request == {"type": "status", "value": spec.STATUS_RESET} and self.peer is not None:
            words += f", perhaps because the device (process {self.peer.pid}) has not let go of its queues"
        return words

    # -- requests ------------------------------------------------------------------------------------------------------

    def submit(
        self, readable: Sequence[Any] = (), writable: Sequence[int] = (), *, queue: int = 0, tag: Any = None
    ) -> Request:
        """Offer a chain: copies of the `readable` pieces, and empty buffers of `writable` bytes each. Does not kick.

        Raises QueueFull (too few descriptors), OutOfBuffers, InvalidChain, PeerGone, DeviceNeedsReset,
        ValueError/TypeError for a piece that is no contiguous buffer.
        """
        return self._port(queue).submit(readable, writable, tag)

    def kick(self, queue: int | None = None) -> None:
        """Notify the device of what was submitted to `queue` (None: to all), if it wants to be."""
        self._check_initialised()
        for port in self.ports if queue is None else [self._port(queue)]:
            if not self._is_broken(port):
                port.kick()

    def completed(self, timeout: float | None = None) -> Iterator[Request]:
        """The requests the device returned: all that are there, after waiting for the first at most `timeout` seconds.

        Yields nothing if nothing is in flight. Kicks what was submitted before. The caller releases each request.
        Raises DeadlineExceeded, PeerGone (with what is in flight), DeviceNeedsReset, and the PeerViolation of a device
        that breaks a rule.
        """
        request = self.reap()
        if request is None and self.in_flight:
            self.kick()
            self._wait(self.ready, Deadline(timeout))
            request = self.reap()
        while request is not None:
            yield request
            request = self.reap()

    def request(
        self, readable: Any, writable: int | Sequence[int] = 0, *, queue: int = 0, timeout: float | None = None
    ) -> bytes:
        """Offer one chain, kick, wait for it, and return the bytes the device wrote.

        `readable`: a buffer, or a list of pieces. `writable`: bytes for the answer, or a list of buffer sizes. Waits
        for room in the queue, too. Raises as `submit` and `completed`.
        """
        deadline = Deadline(timeout)
        mine = self._submit_when_room(*self.chain_of(readable, writable), queue, deadline)
        try:
            while not mine.done:
                self._collect(deadline)
        except BaseException:
            self._abandon(mine)
            raise
        self._early.remove(mine)
        with mine:
            return mine.output()

    @staticmethod
    def chain_of(readable: Any, writable: int | Sequence[int]) -> tuple[list[Any], list[int]]:
        """What `request` was given, as lists of non-empty pieces and sizes. Raises TypeError for what is no buffer."""
        pieces = readable if isinstance(readable, list | tuple) else [readable]
        sizes = [writable] if isinstance(writable, int) else writable
        return [piece for piece in pieces if memoryview(piece).nbytes], [size for size in sizes if size]

    @property
    def in_flight(self) -> int:
        """Requests the device has not returned yet, over all queues."""
        return sum(len(port.in_flight) for port in (*self.ports, *self._retired))

    # -- for event loops: nothing here waits ---------------------------------------------------------------------------

    def reap(self) -> Request | None:
        """The next request the device returned, of any queue; None if there is none.

        Raises the PeerViolation of a device that breaks a rule, once; that queue is left out from then on.
        """
        self._check_usable()
        if self._early:
            return self._early.pop(0)
        idle = 0
        while idle < len(self.ports):
            request = self._reap_from(self.ports[self._turn % len(self.ports)])
            self._turn += 1
            if request is not None:
                return request
            idle += 1
        return None

    def _reap_from(self, port: DriverPort) -> Request | None:
        while (request := port.reap()) in self._abandoned:
            self._abandoned.discard(request)
            request.release()
        return request

    def ready(self) -> bool:
        """Whether `reap` would find something: a request, or a violation to report."""
        return bool(self._early) or any(port.has_work for port in self.ports)

    def arm(self) -> bool:
        """Ask to be called for the next chain of any queue; True if some are there already."""
        waiting = [port.queue.enable_notification() for port in self.ports if port.queue.broken is None]
        return any(waiting)

    def check(self, queue: int | None = None) -> None:
        """Raise unless what is in flight can be expected to come back: PeerGone, DeviceNeedsReset, QueueBroken.

        A queue that broke does not stop the others: unless one `queue` is asked for, their requests are waited for
        first.
        """
        self._check_initialised()
        if self.peer_gone:
            self._raise_gone()
        if self._end is not None and self._end.expired:
            raise CoordinatorGone(
                f"region {self.region!r} was closed; {self.in_flight} requests will not be answered",
                pid=self.header.pid,
                in_flight=self.in_flight,
            )
        busy = [port for port in (self.ports if queue is None else [self.ports[queue]]) if port.in_flight]
        if busy and all(self._is_broken(port) for port in busy):
            self._check_port(busy[0])

    def stalled(self) -> str:
        """Who is waited for, and for what: the message of a deadline."""
        alive = "has left" if self.peer_gone else "is alive"
        pid = self.peer.pid if self.peer is not None else 0
        used = sum(port.counts["reaped"] for port in self.ports)
        return (
            f"the device of {self.region}/{self.plan.name}, process {pid}, {alive} but returned nothing in time: "
            f"{self.in_flight} requests in flight, {used} returned so far"
        )

    # -- inside --------------------------------------------------------------------------------------------------------

    def _port(self, queue: int) -> DriverPort:
        """A queue that can be used. Raises ValueError, DeviceNeedsReset, QueueBroken, InvalidState."""
        self._check_initialised()
        if not 0 <= queue < len(self.ports):
            raise ValueError(f"{self.region}/{self.plan.name} has queues 0..{len(self.ports) - 1}, not {queue}")
        port = self.ports[queue]
        if self._reset_wanted or port.queue.broken is not None:
            self._check_port(port)
        return port

    def _check_initialised(self) -> None:
        self._check_usable()
        if not self.ports:
            raise InvalidState(f"{self.region}/{self.plan.name} is not initialised: call reset()")

    def _is_broken(self, port: DriverPort) -> bool:
        return port.queue.broken is not None or port.number in self._reset_wanted

    def _check_port(self, port: DriverPort) -> None:
        """Raise if the device gave this queue up, or we did."""
        reason = self._reset_wanted.get(port.number)
        if reason is not None:
            raise DeviceNeedsReset(
                f"device {self.plan.name!r} needs a reset: {reason}; call reset()",
                queue=port.number,
                in_flight=self.in_flight,
            )
        if port.queue.broken is not None:
            raise QueueBroken(f"queue stopped at: {port.queue.broken}; call reset()", queue=port.number)

    def _raise_gone(self) -> NoReturn:
        assert self.peer is not None  # noqa: S101 - peer_gone looked
        raise PeerGone(
            f"the device of {self.region}/{self.plan.name}, process {self.peer.pid}, ended or left; {self.in_flight} "
            "requests were in flight; reset() waits for a new one",
            pid=self.peer.pid,
            role="device",
            in_flight=self.in_flight,
        )

    def _abandon(self, request: Request) -> None:
        """Nobody waits for it any more: release it, once it has come back."""
        if request.done:
            self._early.remove(request)
            request.release()
        else:
            self._abandoned.add(request)

    def _submit_when_room(self, pieces: list[Any], sizes: Sequence[int], queue: int, deadline: Deadline) -> Request:
        while True:
            try:
                return self.submit(pieces, sizes, queue=queue)
            except (QueueFull, OutOfBuffers):
                if not self._port(queue).in_flight:
                    raise  # nothing will ever come back to make room
            self._collect(deadline)

    def _collect(self, deadline: Deadline) -> None:
        """Wait for the device to return something, and keep it, in order, for `request` and `completed`."""
        self.kick()
        self._wait(lambda: any(port.has_work for port in self.ports), deadline)
        for port in self.ports:
            while (request := self._reap_from(port)) is not None:
                self._early.append(request)

    def _wait(self, ready: Callable[[], bool], deadline: Deadline) -> None:
        """Wait until `ready()`. Raises DeadlineExceeded, and as `check`."""
        if ready():
            return
        self.hear()
        self.check()
        if not self.strategy.wait(ready, self.arm, self._park, deadline):
            raise DeadlineExceeded(self.stalled(), in_flight=self.in_flight)

    def _park(self, timeout: float | None) -> None:
        if timeout != 0:
            for port in self.ports:
                port.counts["waits"] += 1
                port.show_counts()
        left = None if self._end is None else self._end.remaining()
        self.park(self.calls, timeout if left is None else min(left, timeout if timeout is not None else left))
        if not self.ready():
            self.check()

    def _leave(self) -> None:
        for port in self.ports:
            port.show_counts()
        super()._leave()
