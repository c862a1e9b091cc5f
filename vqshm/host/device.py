"""Device: the process that serves a device's queues: takes chains, handles them, returns them.

    with Device.attach("demo", "echo0") as device:
        device.serve(Echo())                                # until the region closes

    with Device.attach("demo", "echo0", features=…, config=…) as device:
        device.wait_driver()
        for chain in device:                                # ends when this driver leaves
            written = chain.writer().write(chain.reader().read())
            device.complete(chain, written)

Where the region says `restart="resume"`, a device goes on with what its dead predecessor had in flight: these chains
come first, in the order in which they were taken, and `chain.replayed` is true for each, as it may have been handled.
That holds for what a driver left that has ended meanwhile, too: the next driver has its turn after it.

Queues are served in turn, one chain each, so that a busy one cannot starve the others. A chain that breaks a rule of
the specification breaks its queue only: the driver is told (DEVICE_NEEDS_RESET), the other queues go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from vqshm.errors import DeadlineExceeded, InvalidState, PeerViolation, RuleError
from vqshm.host.device_role import DeviceRole, log
from vqshm.host.ports import DevicePort
from vqshm.notify import Deadline

if TYPE_CHECKING:
    from vqshm.ring import DescriptorChain, DeviceQueue


class Handler(Protocol):
    """What a device type is: its id, its own feature bits, its configuration space, and what it does with a chain."""

    device_id: int
    features: int
    config: bytes

    def handle(self, chain: DescriptorChain) -> int:
        """Serve one chain; the number of bytes written to its device-writable part, from its start."""


class Device(DeviceRole):
    """The device role with chains. See `DeviceRole.attach` for how to get one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.ports: list[DevicePort] = []
        self._by_queue: dict[DeviceQueue, DevicePort] = {}
        self._next: DescriptorChain | None = None  # taken, and not handed out yet
        self._served: DescriptorChain | None = None  # by `serve`, and not returned yet
        self._turn = 0
        super().__init__(*args, **kwargs)

    @property
    def running(self) -> bool:
        """Whether a driver has set DRIVER_OK and its queues are served."""
        return bool(self.ports)

    # -- life ----------------------------------------------------------------------------------------------------------

    def serve(self, handler: Handler) -> None:
        """Serve driver after driver until the region closes.

        A handler that has `features_ok(features)` is told what each driver accepted. A chain on which the handler fails
        (an exception, more bytes reported than there is room for) is returned with 0 bytes, and the next one is served.

        What is no `Exception` (Ctrl-C, or whatever else a signal handler raises) leaves this call, wherever it strikes.
        Call it again: the chain that was being served comes first, `replayed`, unless it was returned already.

        Raises RuleError for a handler of another device type than the region has here.
        """
        if handler.device_id != self.plan.device_id:
            raise RuleError(
                f"{handler!r} is for device type {handler.device_id:#x}, but {self.region}/{self.plan.name} is of type "
                f"{self.plan.device_id:#x}"
            )
        tell = getattr(handler, "features_ok", None)
        while True:
            try:
                features = self.wait_driver()
            except InvalidState:
                return
            if tell is not None:
                tell(features)
            self._take_up()
            while self._await_served():
                chain = self._served
                assert chain is not None  # noqa: S101 - it was awaited
                try:
                    self.complete(chain, handler.handle(chain))
                except Exception:  # noqa: BLE001 - the chain must go back, and the log tells
                    log.exception("%r failed on %r; the chain is returned with 0 bytes", handler, chain)
                    self.complete(chain)
                self._served = None

    def _take_up(self) -> None:
        """Have again in `_served` what an interrupted call had there, unless it was returned."""
        chain = self._served
        if chain is None:
            return
        if self._next is chain:
            self._next = None
        again, port = None, self._by_queue[chain.queue]
        with contextlib.suppress(PeerViolation):  # `_fetch` tells
            again = port.again(chain.head_index)
        self._served = again

    def _await_served(self) -> bool:
        """Have the next chain to serve in `_served`; False when the driver is gone."""
        if self._served is None:
            if not self._await_chain(None):
                return False
            self._served = self._next
            self._next = None
        return True

    def _start_queues(self) -> None:
        ports = []
        for plan in self.plan.queues:
            config, cells = self._queue_config(plan), self.manifest.queue(plan.index).device
            kick, call = self.kicks[plan.number], self.calls[plan.number]
            ports.append(DevicePort(self.memory, plan, config, kick, call, cells))
        self._next = self._served = None
        self.ports = ports
        self._by_queue = {port.queue: port for port in self.ports}
        for port in ports:
            if self.resumed:
                self._resume(port)
            else:
                port.begin()

    def _resume(self, port: DevicePort) -> None:
        """Go on where the device before this one stopped."""
        try:
            count = port.resume()
        except PeerViolation:
            self._tell_broken(port)
        else:
            log.info("%s goes on: %d chains were in flight", port.queue.name, count)
            if port.queue.given_up:
                log.warning(
                    "%s: %d chains were given up: handed out %d times, and nobody lived to return them",
                    port.queue.name,
                    port.queue.given_up,
                    self.plan.max_attempts,
                )

    def _stop_queues(self) -> None:
        self._show_counts()
        self._next = self._served = None
        self.ports.clear()
        self._by_queue.clear()

    # -- chains --------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[DescriptorChain]:
        """Chains as they come, from all queues in turn; ends when the driver resets the device, leaves or dies.

        What a driver had published before it left is still yielded.
        """
        while self._await_chain(None):
            chain = self._next
            assert chain is not None  # noqa: S101 - it was awaited
            self._next = None  # from here to the yield nothing can be interrupted
            yield chain

    def next_chain(self, timeout: float | None = None) -> DescriptorChain | None:
        """The next chain of any queue; None when the driver is gone (the device has let go then).

        Raises DeadlineExceeded, InvalidState if no driver is there.
        """
        self._await_chain(timeout)
        chain = self._next
        self._next = None  # from here on nothing can be interrupted
        return chain

    def _await_chain(self, timeout: float | None) -> bool:
        """Have the next chain to hand out in `_next`; False when the driver is gone. Raises as `next_chain`."""
        self._check_usable()
        if not self.running:
            raise InvalidState("no driver has started this device: wait_driver() first")
        if self._fetch():
            return True
        deadline = Deadline(timeout)
        while True:
            there = self.strategy.wait(self.ready, self.arm, self._park, deadline)
            if self._fetch():
                return True
            if self.leaving or self.peer_gone:
                self.let_go()
                return False
            if not there:
                raise DeadlineExceeded(f"no chain came in time; {self._peer_words()}")

    def complete(self, chain: DescriptorChain, written: int = 0) -> None:
        """Return a chain with the number of bytes written to its device-writable part; calls the driver if needed.

        Raises InvalidState for a chain of a session that is over, InvalidUsedLength, UsedIdNotInFlight, QueueBroken.
        """
        self._check_usable()
        port = self._by_queue.get(chain.queue)
        if port is None:
            raise InvalidState("this chain belongs to a driver that has left")
        port.complete(chain, written)

    # -- for event loops: nothing here waits ---------------------------------------------------------------------------

    def pop(self) -> DescriptorChain | None:
        """The next chain, from the queues in turn, without waiting; None if there is none."""
        self._check_usable()
        self._fetch()
        chain = self._next
        self._next = None  # from here on nothing can be interrupted
        return chain

    def _fetch(self) -> bool:
        """Have the next chain to hand out in `_next`; False if there is none."""
        for _ in self.ports:
            if self._next is not None:
                break
            port = self.ports[self._turn % len(self.ports)]
            self._turn += 1
            with contextlib.suppress(PeerViolation):  # which is told next
                self._next = port.pop()
            if port.queue.broken is not None and not port.told:
                self._tell_broken(port)
        if self._next is None:
            return False
        self._by_queue[self._next.queue].taking = False
        return True

    def _tell_broken(self, port: DevicePort) -> None:
        self.needs_reset(str(port.queue.broken), port.number)
        port.told = True

    def ready(self) -> bool:
        """Whether there is a chain to take, a violation to report, or a driver to say goodbye to."""
        return self.leaving or any(port.has_work for port in self.ports)

    def arm(self) -> bool:
        """Ask to be kicked for the next chain of any queue; True if some are there already."""
        waiting = [port.queue.enable_notification() for port in self.ports if port.queue.broken is None]
        return any(waiting)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _park(self, timeout: float | None) -> None:
        if timeout != 0:
            self.ports[0].counts["waits"] += 1
            self._show_counts()
        self.park(self.kicks, timeout)
        if self.peer_gone:
            self.leaving = True

    def _show_counts(self) -> None:
        for port in self.ports:
            port.show_counts()

    def _leave(self) -> None:
        if self.running:
            self._show_counts()
        super()._leave()
