"""Device role: how a process becomes a device, driver after driver; not what it does with their queues.

Who takes the role fills in two steps: `_start_queues`, when a driver has set DRIVER_OK, and `_stop_queues`, when the
device lets go of them: because the driver reset the device, left or died.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

from vqshm import spec
from vqshm.errors import DeadlineExceeded, InvalidState, RuleError
from vqshm.host.coordination.slot import DETACHED
from vqshm.host.endpoint import Endpoint
from vqshm.host.system.liveness import ProcessId
from vqshm.notify import Deadline, WaitStrategy
from vqshm.transport import clip
from vqshm.transport.features import MAX_BITS
from vqshm.transport.planning import MAX_CONFIG_BYTES

if TYPE_CHECKING:
    from vqshm.transport import Message

log = logging.getLogger("vqshm.device")

RING_FEATURES = spec.mask(spec.VIRTIO_F_VERSION_1, spec.VIRTIO_F_EVENT_IDX, spec.VIRTIO_F_INDIRECT_DESC)


class DeviceRole(Endpoint):
    """What every device does, whatever its type. See `Endpoint` for what both roles share."""

    role = "device"
    peer_role = "driver"

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
        self.peer_lost = False  # the driver that leaves did not say goodbye: its process ends
        self.leaving = False  # the driver reset the device, left or died: serve what it had published, then let go
        self.resetting = False  # it leaves because it reset the device
        self.resumed = False  # the driver's session was begun by another device process
        self._begun: Message | None = None  # by which event a driver's queues were started last
        self._goodbye: Message | None = None  # the device is letting go of its driver, and says so by this
        super().__init__(*args, **kwargs)

    # -- what a device fills in ----------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a driver has set DRIVER_OK and its queues are served."""
        raise NotImplementedError

    def _start_queues(self) -> None:
        """A driver has set DRIVER_OK, with `features`: serve its queues, from where they stand if `resumed`."""
        raise NotImplementedError

    def _open_queues(self) -> None:
        """The queues were started. May be called twice for a driver."""

    def _stop_queues(self) -> None:
        """Serve them no more."""
        raise NotImplementedError

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def driver_ended(self) -> bool:
        """Whether the driver's process has ended, or is about to: its connection closed without a goodbye."""
        return self.peer_ended or self.peer_lost

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

    def _on_event(self, event: Message) -> None:
        what = event["what"]
        if what == "start":
            if event is not self._begun:
                self._watch_peer(ProcessId(event["pid"], event["start_time"]))
                self.features = event["features"]
                self.leaving = self.peer_lost = self.resetting = False
                self.resumed = event.get("resume", False)
                self._start_queues()
                self._begun = event  # who is interrupted behind this does not begin it again
            self._open_queues()
        elif what in {"stop", "peer_gone", "closing"}:
            self.leaving = True
            self.resetting = what == "stop"
            self.peer_lost = what == "peer_gone" and event.get("reason") != DETACHED

    def let_go(self) -> None:
        """Stop serving this driver, and tell the coordinator so. Once interrupted, `hear` does the rest."""
        if self._goodbye is None:
            self.peer_lost = self.driver_ended
            self._goodbye = self._numbered({"type": "stopped"})
        self._stop_queues()
        self._forget_peer()
        self.leaving = False
        self.features = 0
        if not self.closing and not self._channel.has_sent(self._goodbye):
            self._tell(self._goodbye)
        self._goodbye = None

    def hear(self) -> None:
        """As `Endpoint.hear`."""
        if self._goodbye is not None and not self._closed:
            self.let_go()
        super().hear()

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

    def _peer_words(self) -> str:
        return f"driver: process {self.peer.pid}" if self.peer is not None else "no driver"
