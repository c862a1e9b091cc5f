"""Driver role: how a process becomes the driver of a device, and again after a reset; not what it then offers.

Attaching walks through the device's initialisation [3.1.1]: reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK, queues,
DRIVER_OK. Who takes the role fills in four steps, called in this order at a reset, the first two at the beginning, too:

    _prepare_queues   the rings are zeroed and ready; the device does not look at them yet
    _go               DRIVER_OK: from now on buffers may be offered
    _halt             a reset begins: nothing is offered any more
    _take_back        the device has let go: what was in flight is ours again [2.4]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Self

from vqshm import spec
from vqshm.errors import CoordinatorGone, DeadlineExceeded, DeviceNeedsReset, InvalidState, NegotiationError, PeerGone
from vqshm.host.endpoint import CONTROL_TIMEOUT, Endpoint
from vqshm.host.system.liveness import ProcessId
from vqshm.notify import Deadline, WaitStrategy
from vqshm.transport import features as feature_bits

if TYPE_CHECKING:
    from vqshm.transport import Message

EVERY_DEVICE_FEATURE = spec.mask(*(bit for bit in spec.DEVICE_FEATURE_BITS if bit < 64))


class DriverRole(Endpoint):
    """What every driver does, whatever it offers. See `Endpoint` for what both roles share."""

    role = "driver"
    peer_role = "device"

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
            driver._start(deadline)
        except BaseException:
            driver.close()
            raise
        return driver

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._arrived: tuple[ProcessId, int] | None = None  # the device that attached last, and what it offers
        self._offered = 0
        self._wanted = self._required = 0
        self._end: Deadline | None = None  # of the last answers, once the region is closing
        self._orphaned = False  # our device has ended, and a new one will go on with what is in flight
        self._over = False  # this session is: the coordinator says so
        self._reset_wanted: dict[int, str] = {}  # queue -> why the device needs a reset, once it said so
        super().__init__(*args, **kwargs)

    # -- what a driver fills in ----------------------------------------------------------------------------------------

    def _prepare_queues(self) -> None:
        """Zero the rings and make ready to offer."""
        raise NotImplementedError

    def _go(self) -> None:
        """Buffers may be offered from now on."""
        raise NotImplementedError

    def _halt(self) -> None:
        """Nothing may be offered any more."""
        raise NotImplementedError

    def _take_back(self) -> None:
        """The device has let go of everything."""
        raise NotImplementedError

    @property
    def in_flight(self) -> int:
        """What the device has not returned yet, over all queues."""
        raise NotImplementedError

    # -- life ----------------------------------------------------------------------------------------------------------

    def _start(self, deadline: Deadline, control: Deadline | None = None) -> None:
        """Wait for the device and initialise it, until `control`; wait for the next one, if it ends meanwhile."""
        while True:
            self._wait_device(deadline)
            try:
                self._initialise(control or deadline)
            except InvalidState:
                if self._closed or not self.peer_gone:
                    raise
            else:
                return

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
        self._over = self._orphaned = False
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
        self._prepare_queues()
        self._status(status | spec.STATUS_DRIVER_OK, deadline)
        if self._over:  # and another one has come meanwhile, or DRIVER_OK would have been refused
            raise InvalidState(f"the device of {self.region}/{self.plan.name} ended while it was initialised")
        self._go()

    def _negotiate(self, status: int, deadline: Deadline) -> int:
        """Agree on features; the status, read back with FEATURES_OK in it. Raises NegotiationError."""
        self.features = feature_bits.negotiate(self._offered, self._wanted, self._required)
        self._ask({"type": "features", "bits": self.features}, deadline)
        status = self._status(status | spec.STATUS_FEATURES_OK, deadline)
        if not status & spec.STATUS_FEATURES_OK:
            raise NegotiationError(f"the device does not accept {', '.join(feature_bits.names(self.features))}")
        return status

    def _restart(self, deadline: Deadline) -> None:
        """Reset the device and initialise it anew; waits for a new device process if the old one ended or left.

        Raises DeadlineExceeded, CoordinatorGone, NegotiationError; the next `_restart` goes on from there.
        """
        self._check_usable()
        self._halt()
        self._reset_device(deadline)
        self._start(deadline)

    def _reset_device(self, deadline: Deadline) -> None:
        """Reset the device, and take everything back."""
        self._status(spec.STATUS_RESET, deadline)
        self._take_back()
        self._reset_wanted.clear()

    def _on_event(self, event: Message) -> None:
        what = event["what"]
        if what == "peer_attached":
            self._arrived = ProcessId(event["pid"], event["start_time"]), event["features"]
            if event.get("resume", False):
                self._orphaned = False
                self._watch_peer(self._arrived[0])
        elif what == "peer_gone":
            self._arrived = None
            if event.get("resume", False):
                self._await_successor()
            elif self.peer is not None:
                self._over = True  # it need not have ended: it counts as gone until the next reset
                self._orphaned = False
                self._unwatch_peer()
        elif what == "needs_reset":
            self._reset_wanted[event.get("queue", 0)] = event.get("reason", "no reason given")
        elif what == "closing":
            self._end = Deadline(CONTROL_TIMEOUT)

    def _unanswered(self, request: Message) -> str:
        words = super()._unanswered(request)
        if request == {"type": "status", "value": spec.STATUS_RESET} and self.peer is not None:
            words += f", perhaps because the device (process {self.peer.pid}) has not let go of its queues"
        return words

    # -- whether to wait on --------------------------------------------------------------------------------------------

    def _check_device(self) -> None:
        """Raise PeerGone if nothing will come back any more, because the device or the region is gone."""
        hopeless = self._over or self._reset_wanted or self.coordinator_gone or self.closing
        gone = self.peer_gone  # asked once: it may end at any moment
        if gone and self.plan.restart == "resume" and not hopeless:
            self._await_successor()  # the coordinator will say so, or otherwise
        elif gone or (self._orphaned and hopeless):
            self._device_gone()
        if self._end is not None and self._end.expired:
            raise CoordinatorGone(
                f"region {self.region!r} was closed; {self.in_flight} requests will not be answered",
                pid=self.header.pid,
                in_flight=self.in_flight,
            )

    def _device_gone(self) -> None:
        """The device has ended, and nobody takes the session up."""
        self._raise_gone()

    def _await_successor(self) -> None:
        """Our device has ended; another one will go on with what is in flight."""
        self._orphaned = True
        self._unwatch_peer()

    @property
    def peer_gone(self) -> bool:
        """Whether our device has left or ended, and nobody has taken the session up."""
        return self._over or super().peer_gone

    def _check_reset(self, queue: int) -> None:
        """Raise DeviceNeedsReset if the device gave this queue up."""
        reason = self._reset_wanted.get(queue)
        if reason is not None:
            raise DeviceNeedsReset(
                f"device {self.plan.name!r} needs a reset: {reason}; call reset()",
                queue=queue,
                in_flight=self.in_flight,
            )

    def _sleep_limit(self, timeout: float | None) -> float | None:
        """How long to park at most: not behind the moment after which a closing region answers no more."""
        left = None if self._end is None else self._end.remaining()
        return timeout if left is None else min(left, timeout if timeout is not None else left)

    def _raise_gone(self) -> NoReturn:
        assert self.peer is not None  # noqa: S101 - peer_gone looked
        raise PeerGone(
            f"the device of {self.region}/{self.plan.name}, process {self.peer.pid}, ended or left; {self.in_flight} "
            "requests were in flight; reset() waits for a new one",
            pid=self.peer.pid,
            role="device",
            in_flight=self.in_flight,
        )
