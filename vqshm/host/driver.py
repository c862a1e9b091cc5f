"""Driver: the process that offers buffers to a device and gets them back used.

with Driver.attach("demo", "echo0") as driver:
    answer = driver.request(b"hello", writable=64)          # one chain, there and back

    request = driver.submit([header, data], [16, 4096])     # or many in flight: leases, copies, offers
    for request in driver.completed(timeout=1.0):           # in the order the device returns them
        with request:
            use(request.written, request.views())

What happens when the device process dies, the region says (`DeviceSpec.restart`). "reset": PeerGone, and `reset()`
returns what got no answer. "resume": nothing but a delay; the next device process goes on with it. "fail": what was in
flight comes back failed (`request.error` is a RequestLost, which `output()` raises), and the next request begins anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vqshm import spec
from vqshm.errors import (
    DeadlineExceeded,
    InvalidState,
    OutOfBuffers,
    PeerGone,
    PeerViolation,
    QueueBroken,
    QueueFull,
    RequestLost,
)
from vqshm.host.driver_role import DriverRole
from vqshm.host.endpoint import CONTROL_TIMEOUT
from vqshm.host.ports import TABLE_ENTRIES, DriverPort
from vqshm.host.request import Lease
from vqshm.memory import BufferPool
from vqshm.notify import Deadline

if TYPE_CHECKING:
    from vqshm.host.request import Request


class Driver(DriverRole):
    """The driver role with requests. See `DriverRole.attach` for how to get one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.ports: list[DriverPort] = []
        self._turn = 0
        # For each queue its buffers, and those of them where its tables lie: kept over resets, when buffers may be out.
        self._pools: list[tuple[BufferPool, Lease]] = []
        self._retired: list[DriverPort] = []  # queues of before a reset that is not confirmed yet
        # Requests the device has returned, in order; dictionaries, because to put one in twice is to put it in once.
        self._early: dict[Request, None] = {}  # not handed out yet
        self._private: dict[Request, None] = {}  # those of `request()`, which releases them
        self._lost: dict[Request, None] = {}  # what was in flight at a reset that is not finished yet
        self._failed_over = False  # restart "fail": the device is gone, and its successor is not met yet
        super().__init__(*args, **kwargs)

    # -- life ----------------------------------------------------------------------------------------------------------

    def _set_up_queues(self) -> list[DriverPort]:
        if not self._pools:
            pools = [(BufferPool(*plan.buffers), plan.size) for plan in self.plan.queues]
            self._pools = [(pool, Lease(pool, TABLE_ENTRIES * spec.DESC_SIZE * size)) for pool, size in pools]
        ports = []
        for plan, (pool, tables) in zip(self.plan.queues, self._pools, strict=True):
            config, cells = self._queue_config(plan), self.manifest.queue(plan.index).driver
            kick, call = self.kicks[plan.number], self.calls[plan.number]
            ports.append(DriverPort(self.memory, plan, config, pool, tables, kick, call, cells))
        return ports

    def _prepare_queues(self) -> None:
        self._retired = self._set_up_queues()

    def _go(self) -> None:
        self.ports, self._retired = self._retired, []
        self._failed_over = False

    def _halt(self) -> None:
        self._retired += self.ports
        self.ports = []

    def _take_back(self) -> None:
        for port in self._retired:
            with contextlib.suppress(PeerViolation):
                port.finish(self._early, self._private)
            port.take_back(self._lost, self._private)
        self._retired = []

    def reset(self, timeout: float | None = 5.0) -> list[Request]:
        """Reset the device and initialise it anew; the requests whose answer never came, their buffers ours again.

        Waits for a new device process if the old one ended or left. Release the requests: until then their buffers stay
        out. Those of `request` calls that gave up are released, and not returned.

        Raises DeadlineExceeded, CoordinatorGone, NegotiationError; nothing can be submitted then, and the next `reset`
        goes on from there.
        """
        self._restart(Deadline(timeout))
        self._release_private()
        lost = list(self._lost)
        self._lost = {}
        return lost

    def _device_gone(self) -> None:
        if self.plan.restart != "fail" or self.coordinator_gone or self.closing:
            self._raise_gone()
        self._fail_in_flight()

    def _fail_in_flight(self) -> None:
        """The device is gone: what it had comes back failed, and the next request begins anew."""
        pid = self.peer.pid if self.peer is not None else 0
        self._halt()
        self._reset_device(Deadline(CONTROL_TIMEOUT))
        self._failed_over = True
        for request in (*self._lost, *self._private):
            request.error = RequestLost(
                f"the device of {self.region}/{self.plan.name}, process {pid}, ended before it answered this request; "
                "whether it did what was asked nobody can know",
                pid=pid,
                queue=request.queue,
            )
        self._early.update(self._lost)
        self._lost = {}

    def _fail_over(self, deadline: Deadline) -> None:
        """Begin with the device that came after the one that ended. Raises PeerGone if there is none in time."""
        try:
            self._start(deadline, Deadline(CONTROL_TIMEOUT))
        except DeadlineExceeded as error:
            raise PeerGone(f"the device is gone: {error}", role="device", in_flight=0) from None

    # -- requests ------------------------------------------------------------------------------------------------------

    def submit(
        self, readable: Sequence[Any] = (), writable: Sequence[int] = (), *, queue: int = 0, tag: Any = None
    ) -> Request:
        """Offer a chain: copies of the `readable` pieces, and empty buffers of `writable` bytes each. Does not kick.

        Raises QueueFull (too few descriptors), OutOfBuffers, InvalidChain, PeerGone, DeviceNeedsReset,
        ValueError/TypeError for a piece that is no contiguous buffer. Whoever interrupts it (Ctrl-C) may get the
        request from `completed` all the same, with this `tag`: if the device was offered it already.
        """
        return self._submit(readable, writable, queue, tag)

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
        self._check_usable()
        if not self._gather() and self.in_flight:
            self.kick()
            self._wait(self.ready, Deadline(timeout))
        while self._gather():
            request = next(iter(self._early))
            del self._early[request]  # from here to the yield nothing can be interrupted
            yield request

    def request(
        self, readable: Any, writable: int | Sequence[int] = 0, *, queue: int = 0, timeout: float | None = None
    ) -> bytes:
        """Offer one chain, kick, wait for it, and return the bytes the device wrote.

        `readable`: a buffer, or a list of pieces. `writable`: bytes for the answer, or a list of buffer sizes. Waits
        for room in the queue, too. Raises as `submit` and `completed`.
        """
        deadline = Deadline(timeout)
        if self._failed_over:
            self._fail_over(deadline)
        mine = self._submit_when_room(*self.chain_of(readable, writable), queue, deadline)
        while not mine.done:
            self._collect(deadline)
        try:
            return mine.output()
        finally:
            self._release_private()

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
        if not self._gather():
            return None
        request = next(iter(self._early))
        del self._early[request]  # from here on nothing can be interrupted
        return request

    def _gather(self) -> bool:
        """Have the next request to hand out in `_early`; False if there is none. Raises as `reap`."""
        for port in self.ports:
            port.finish(self._early, self._private)
        idle = 0
        while not self._early and idle < len(self.ports):
            port = self.ports[self._turn % len(self.ports)]
            self._turn += 1
            idle = 0 if port.collect(self._early, self._private) else idle + 1
        if self._private:
            self._release_private()
        return bool(self._early)

    def _release_private(self) -> None:
        """Give back the buffers of `request` calls whose answer came, and was read or is not wanted any more."""
        for request in list(self._private):
            request.release()
            del self._private[request]

    def ready(self) -> bool:
        """Whether `reap` would find something: a request, or a violation to report."""
        return bool(self._early) or any(port.has_work for port in self.ports)

    def arm(self) -> bool:
        """Ask to be called for the next chain of any queue; True if some are there already."""
        waiting = [port.queue.enable_notification() for port in self.ports if port.queue.broken is None]
        return any(waiting)

    def check(self, queue: int | None = None) -> None:
        """Raise unless what is in flight can be expected to come back: PeerGone, DeviceNeedsReset, QueueBroken.

        Where requests fail with their device, they are there to be reaped after this call.
        A queue that broke does not stop the others: unless one `queue` is asked for, their requests are waited for
        first.
        """
        self._check_initialised()
        self._check_device()
        if self._failed_over:
            return
        busy = [port for port in (self.ports if queue is None else [self.ports[queue]]) if port.in_flight]
        if busy and all(self._is_broken(port) for port in busy):
            self._check_port(busy[0])

    def stalled(self) -> str:
        """Who is waited for, and for what: the message of a deadline."""
        alive = "has left" if self.peer_gone else "has ended and got no successor" if self._orphaned else "is alive"
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
        if self._failed_over:
            self._fail_over(Deadline(0))
        if not self.ports:
            raise InvalidState(f"{self.region}/{self.plan.name} is not initialised: call reset()")

    def _is_broken(self, port: DriverPort) -> bool:
        return port.queue.broken is not None or port.number in self._reset_wanted

    def _check_port(self, port: DriverPort) -> None:
        """Raise if the device gave this queue up, or we did."""
        self._check_reset(port.number)
        if port.queue.broken is not None:
            raise QueueBroken(f"queue stopped at: {port.queue.broken}; call reset()", queue=port.number)

    def _submit(
        self, readable: Sequence[Any], writable: Sequence[int], queue: int, tag: Any = None, *, private: bool = False
    ) -> Request:
        port = self._port(queue)
        if self._private:
            self._release_private()
        return port.submit(readable, writable, tag, private=private)

    def _submit_when_room(self, pieces: list[Any], sizes: Sequence[int], queue: int, deadline: Deadline) -> Request:
        while True:
            try:
                return self._submit(pieces, sizes, queue, private=True)
            except (QueueFull, OutOfBuffers):
                if not self._port(queue).in_flight:
                    raise  # nothing will ever come back to make room
            self._collect(deadline)

    def _collect(self, deadline: Deadline) -> None:
        """Wait for the device to return something, and keep it, in order, for `request` and `completed`."""
        self.kick()
        self._wait(lambda: self._failed_over or any(port.has_work for port in self.ports), deadline)
        for port in self.ports:
            while port.collect(self._early, self._private):
                pass

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
        self.park(self.calls, self._sleep_limit(timeout))
        if not self.ready():
            self.check()

    def _leave(self) -> None:
        for port in self.ports:
            port.show_counts()
        super()._leave()
