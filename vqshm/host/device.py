"""Device: the process that serves a device's queues: takes chains, handles them, returns them.

    with Device.attach("demo", "echo0") as device:
        device.serve(Echo())                                # until the region closes

    with Device.attach("demo", "echo0", features=…, config=…) as device:
        device.wait_driver()
        for chain in device:                                # ends when this driver leaves
            written = chain.writer().write(chain.reader().read())
            device.complete(chain, written)

Queues are served in turn, one chain each, so that a busy one cannot starve the others. A chain that breaks a rule of
the specification breaks its queue only: the driver is told (DEVICE_NEEDS_RESET), the other queues go on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, Self

from vqshm import spec
from vqshm.errors import DeadlineExceeded, InvalidState, PeerViolation, RuleError
from vqshm.host.endpoint import Endpoint
from vqshm.host.liveness import ProcessId
from vqshm.host.ports import DevicePort
from vqshm.notify import Deadline, WaitStrategy
from vqshm.transport import clip
from vqshm.transport.features import MAX_BITS
from vqshm.transport.planning import MAX_CONFIG_BYTES

if TYPE_CHECKING:
    from vqshm.ring import DescriptorChain, DeviceQueue
    from vqshm.transport import Message

log = logging.getLogger("vqshm.device")

RING_FEATURES = spec.mask(spec.VIRTIO_F_VERSION_1, spec.VIRTIO_F_EVENT_IDX, spec.VIRTIO_F_INDIRECT_DESC)


class Handler(Protocol):
    """What a device type is: its id, its own feature bits, its configuration space, and what it does with a chain."""

    device_id: int
    features: int
    config: bytes

    def handle(self, chain: DescriptorChain) -> int:
        """Serve one chain; the number of bytes written to its device-writable part, from its start."""


class Device(Endpoint):
    """The device role. See `Endpoint` for what both roles share, `attach` for how to get one."""

    role = "device"

    @classmethod
    def attach(
        cls,
        region: str,
        device: str | None = None,
        *,
        features: int = 0,
        config: bytes = b"",
        timeout: float | None = 5.0,
        strategy: WaitStrategy | None = None,
    ) -> Self:
        """Take the device's role, offering the ring features and `features` (bits of the device type).

        `device`: its name in the region; None if there is only one. `config`: the configuration space from its start.

        Raises NotFound, RoleTaken, NegotiationError, CoordinatorGone, DeadlineExceeded, UntrustedPeer, VersionMismatch,
        RuleError (a ValueError) for what no device can offer.
        """
        offer: Message = {"features": features | RING_FEATURES, "config": bytes(memoryview(config))}
        if features < 0 or features >> MAX_BITS:
            raise RuleError(f"features are a mask of {MAX_BITS} bits, not {features:#x}")
        if len(offer["config"]) > MAX_CONFIG_BYTES:
            raise RuleError(f"a configuration space has at most {MAX_CONFIG_BYTES} bytes, not {len(offer['config'])}")
        return cls(region, device, offer=offer, timeout=timeout, strategy=strategy)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.ports: list[DevicePort] = []
        self._by_queue: dict[DeviceQueue, DevicePort] = {}
        self._turn = 0
        self.leaving = False  # the driver reset the device, left or died: serve what it had published, then let go
        super().__init__(*args, **kwargs)

    @property
    def running(self) -> bool:
        """Whether a driver has set DRIVER_OK and its queues are served."""
        return bool(self.ports)

    # -- life ----------------------------------------------------------------------------------------------------------

    def wait_driver(self, timeout: float | None = None) -> int:
        """Wait until a driver has set DRIVER_OK; the negotiated features.

        Raises DeadlineExceeded, InvalidState when the region is closing or the coordinator is gone.
        """
        self._check_usable()
        deadline = Deadline(timeout)
        self.hear()
        while not self.running:
            if self.closing or self.coordinator_gone:
                raise InvalidState(f"no driver will come: region {self.region!r} is closing")
            if deadline.expired:
                raise DeadlineExceeded(f"no driver attached to {self.region}/{self.plan.name} in time")
            self.park([], deadline.remaining())
        return self.features

    def serve(self, handler: Handler) -> None:
        """Serve driver after driver until the region closes.

        A handler that has `features_ok(features)` is told what each driver accepted. A chain on which the handler fails
        (an exception, more bytes reported than there is room for) is returned with 0 bytes, and the next one is served.

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
            for chain in self:
                try:
                    self.complete(chain, handler.handle(chain))
                except Exception:
                    log.exception("%r failed on %r; the chain is returned with 0 bytes", handler, chain)
                    self.complete(chain)

    def _on_event(self, event: Message) -> None:
        what = event["what"]
        if what == "start":
            self._start(ProcessId(event["pid"], event["start_time"]), event["features"])
        elif what in {"stop", "peer_gone", "closing"}:
            self.leaving = True

    def _start(self, driver: ProcessId, features: int) -> None:
        self._watch_peer(driver)
        self.features = features
        self.leaving = False
        ports = []
        for plan in self.plan.queues:
            config, cells = self._queue_config(plan), self.manifest.queue(plan.index).device
            kick, call = self.kicks[plan.number], self.calls[plan.number]
            ports.append(DevicePort(self.memory, plan, config, kick, call, cells))
        self.ports = ports
        self._by_queue = {port.queue: port for port in self.ports}

    def let_go(self) -> None:
        """Stop serving this driver, and tell the coordinator so."""
        self._show_counts()
        self.ports.clear()
        self._by_queue.clear()
        self._forget_peer()
        self.leaving = False
        self.features = 0
        if not self.closing:
            self._tell({"type": "stopped"})

    # -- chains --------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[DescriptorChain]:
        """Chains as they come, from all queues in turn; ends when the driver resets the device, leaves or dies.

        What a driver had published before it left is still yielded.
        """
        while (chain := self.next_chain()) is not None:
            yield chain

    def next_chain(self, timeout: float | None = None) -> DescriptorChain | None:
        """The next chain of any queue; None when the driver is gone (the device has let go then).

        Raises DeadlineExceeded, InvalidState if no driver is there.
        """
        self._check_usable()
        if not self.running:
            raise InvalidState("no driver has started this device: wait_driver() first")
        chain = self.pop()
        if chain is not None:
            return chain
        deadline = Deadline(timeout)
        while True:
            there = self.strategy.wait(self.ready, self.arm, self._park, deadline)
            chain = self.pop()
            if chain is not None:
                return chain
            if self.leaving or self.peer_gone:
                self.let_go()
                return None
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

    def needs_reset(self, reason: str, queue: int = 0) -> None:
        """Tell the driver that the device cannot go on until it is reset [2.1.2]."""
        log.error("%s/%s needs a reset: %s", self.region, self.plan.name, reason)
        self._tell({"type": "needs_reset", "reason": clip(reason), "queue": queue})

    def update_config(self, offset: int, data: bytes) -> None:
        """Change the configuration space; a running driver is told. Raises RuleError outside the space."""
        data = bytes(memoryview(data))
        if not 0 <= offset <= offset + len(data) <= self.config.size:
            raise RuleError(f"{len(data)} bytes at offset {offset} are not in a space of {self.config.size} bytes")
        self._ask({"type": "config", "offset": offset, "data": data})

    # -- for event loops: nothing here waits ---------------------------------------------------------------------------

    def pop(self) -> DescriptorChain | None:
        """The next chain, from the queues in turn, without waiting; None if there is none."""
        self._check_usable()
        for _ in self.ports:
            port = self.ports[self._turn % len(self.ports)]
            self._turn += 1
            try:
                chain = port.pop()
            except PeerViolation as error:
                self.needs_reset(str(error), port.number)
                continue
            if chain is not None:
                return chain
        return None

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

    def _peer_words(self) -> str:
        return f"driver: process {self.peer.pid}" if self.peer is not None else "no driver"

    def _leave(self) -> None:
        if self.running:
            self._show_counts()
        super()._leave()
