"""Slot: one device's place in a region, as the coordinator keeps it: its two roles, its status register, its doorbells.

    driver                       coordinator (this slot)                       device
    attach ────────────────────▶ role free? ── peer_attached ────────────────▶
    status 0 ──────────────────▶ running? then ── stop ───────────────────────▶ lets go of the queues
           ◀──────────── ok ──── register is 0 ◀──────────────────── stopped ──
    features ──────────────────▶ checked against the offer
    status …|FEATURES_OK ──────▶ checked by the tables [2.1]
    status …|DRIVER_OK ────────▶ ── start(features) ──────────────────────────▶ serves the queues
           ◀──── needs_reset ─── DEVICE_NEEDS_RESET ◀──────────── needs_reset ──

    A session outlives its device where the plan says so (restart "resume"):

                     ◀── peer_gone, resume ──   the device ends: LIVE stays, the session is an orphan
                     ◀── peer_attached, resume   the next device attaches ── start(features), resume ─▶ goes on

    It outlives both: what a driver that ended had published is served by the next device, before the next driver has
    its turn.

The slot believes neither side: each message is judged by the state of the register. A reset is answered only after the
device has let go (or has ended), because from then on the driver takes its buffers back [2.4].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vqshm import spec
from vqshm.errors import InvalidState, RoleTaken
from vqshm.host.system.liveness import ProcessId
from vqshm.transport.features import check_accepted, check_offer
from vqshm.transport.status import DeviceStatus, State

if TYPE_CHECKING:
    from vqshm.host.coordination.client import Client
    from vqshm.notify import Notifier
    from vqshm.transport import ConfigSpace, DeviceCells, DevicePlan


DETACHED: Final = "detached"  # the reason of an event: the peer said goodbye


class Slot:
    """State of one device."""

    def __init__(
        self, plan: DevicePlan, cells: DeviceCells, config: ConfigSpace, kicks: list[Notifier], calls: list[Notifier]
    ) -> None:
        self.plan = plan
        self.kicks = kicks  # one for each queue; the same one where the kind allows only one for a device
        self.calls = calls
        self._cells = cells
        self._config = config
        self._status = DeviceStatus()
        self._offered = 0
        self._accepted = 0
        self._driver: Client | None = None
        self._device: Client | None = None
        self._served: Client | None = None  # the driver for whom a device was started and has not said "stopped"
        self._resetting: tuple[Client, int] | None = None  # the driver that waits for its reset, and that request
        self._orphaned = False  # the served driver's device has ended, and a new one shall go on

    # -- roles ---------------------------------------------------------------------------------------------------------

    def attach_driver(self, client: Client) -> None:
        """Take the driver's role. Raises RoleTaken."""
        self._check_free("driver", self._driver)
        self._driver = client
        self._cells.driver_start_time = client.process.start_time
        self._cells.driver_pid = client.process.pid

    def attach_device(self, client: Client, offered: int, config: bytes) -> None:
        """Take the device's role, with the features it offers and the first bytes of its configuration space.

        Raises RoleTaken, NegotiationError (also if it does not offer what a session that waits for it was agreed on),
        RuleError for a configuration that does not fit.
        """
        self._check_free("device", self._device)
        check_offer(offered)
        if self._orphaned:
            check_accepted(offered, self._accepted)
        self._config.update(0, config)
        self._device = client
        self._offered = self._cells.offered = offered
        self._cells.device_start_time = client.process.start_time
        self._cells.device_pid = client.process.pid

    def attached(self) -> dict[str, int]:
        """What an attacher is told about the device and its register."""
        device = self._device.process if self._device is not None else ProcessId(0, 0)
        return {
            "index": self.plan.index,
            "status": self._status.value,
            "features": self._offered,
            "peer_pid": device.pid,
            "peer_start_time": device.start_time,
        }

    def introduce(self) -> None:
        """Once both are there: tell the driver about its device. To be called when the reply to an attach is sent."""
        if self._device is None:
            return
        resumed: dict[str, Any] = {}
        if self._orphaned and self._served is not None:
            self._orphaned = False
            self._cells.orphaned = 0
            self._cells.resumed += 1
            served = self._served.process._asdict()
            self._device.event("start", **served, features=self._accepted, resume=True)
            if self._served is self._driver:
                resumed["resume"] = True
            else:
                self._device.event("peer_gone", **served)
        if self._driver is not None:
            self._driver.event("peer_attached", **self._device.process._asdict(), features=self._offered, **resumed)

    def _check_free(self, role: str, holder: Client | None) -> None:
        if holder is not None:
            raise RoleTaken(
                f"the {role} role of {self.plan.name!r} is held by process {holder.process.pid}", pid=holder.process.pid
            )

    def lost(self, client: Client, *, detached: bool = False) -> None:
        """A client detached, or its process ended; the other side is told which of the two."""
        news: dict[str, Any] = {**client.process._asdict(), **({"reason": DETACHED} if detached else {})}
        if client is self._driver:
            self._driver = None
            self._cells.driver_pid = 0
            if self._served is None:
                self._back_to_reset()
            elif client is self._served and self._device is not None:
                self._device.event("peer_gone", **news)
        elif client is self._device:
            self._device = None
            self._cells.device_pid = 0
            self._offered = self._cells.offered = 0
            if self._resumable():
                self._leave_orphan(news)
                return
            served, self._served = self._served, None
            if self._status.value & spec.STATUS_DRIVER_OK:
                self._status.needs_reset()
                self._show_status()
            if self._driver is not None:
                self._driver.event("peer_gone", **news)
            if served is not None:
                self._settled(served)

    def _resumable(self) -> bool:
        """Whether the session goes on without its device, until there is a new one."""
        return (
            self.plan.restart == "resume"
            and self._served is not None
            and (self._resetting is None or self._resetting[0] is not self._served)
            and self._status.state is State.LIVE
        )

    def _leave_orphan(self, news: dict[str, Any]) -> None:
        """The device has ended and the session goes on: tell its driver, or the next one, that it has to wait."""
        self._orphaned = True
        self._cells.orphaned = 1
        waiting, self._resetting = self._resetting, None
        if self._driver is None:
            return
        if self._driver is self._served:
            self._driver.event("peer_gone", **news, resume=True)
            return
        self._driver.event("peer_gone", **news)
        if waiting is not None and waiting[0] is self._driver:
            words = f"the device of {self.plan.name!r} ended before it had served what another driver had left"
            self._driver.reply({"type": "error", "kind": "InvalidState", "message": words}, serial=waiting[1])

    def give_up(self, reason: str) -> None:
        """No new device will take up a session that waits for one: its driver is told that it is over."""
        if not self._orphaned:
            return
        if self._driver is not None and self._driver is self._served:
            self._end_orphan()
            self._status.needs_reset()
            self._show_status()
            self._driver.event("peer_gone", reason=reason)
        else:
            self._back_to_reset()

    def _end_orphan(self) -> None:
        self._orphaned = False
        self._cells.orphaned = 0
        self._served = None

    # -- the driver's messages -----------------------------------------------------------------------------------------

    def write_features(self, client: Client, bits: int) -> None:
        """The features the driver accepts, before FEATURES_OK. Raises InvalidState."""
        if self._status.state is not State.DRIVER:
            raise InvalidState(f"features are written in state {State.DRIVER}, not {self._status.state}")
        self._accepted = bits
        self._ok(client)

    def write_status(self, client: Client, value: int) -> None:
        """The status register; 0 resets, and is answered when the device has let go.

        Raises NegotiationError, InvalidState.
        """
        if value == spec.STATUS_RESET:
            self._reset(client)
            return
        fresh = value & ~self._status.value
        if fresh & spec.STATUS_FEATURES_OK:
            if self._device is None:
                raise InvalidState(f"there is no device behind {self.plan.name!r} yet")
            check_accepted(self._offered, self._accepted)
        if fresh & spec.STATUS_DRIVER_OK:
            if self._device is None:
                raise InvalidState(f"the device behind {self.plan.name!r} is gone")
            check_accepted(self._offered, self._accepted)  # again: it may be another device by now
        self._status.write(value)
        self._show_status()
        if self._orphaned and self._status.state is not State.LIVE:  # FAILED: the driver waits no longer
            self._end_orphan()
        if fresh & spec.STATUS_DRIVER_OK and self._device is not None:
            self._served = client
            self._device.event("start", **client.process._asdict(), features=self._accepted)
        self._ok(client)

    def _reset(self, client: Client) -> None:
        if self._served is not None and self._device is not None:
            if self._resetting is None:
                self._device.event("stop")
            self._resetting = client, client.serial
        elif self._orphaned and client is not self._served:
            raise InvalidState(f"the next device of {self.plan.name!r} first serves what another driver had left")
        else:
            self._back_to_reset()
            self._ok(client)

    # -- the device's messages -----------------------------------------------------------------------------------------

    def stopped(self, client: Client) -> None:
        """The device has let go of its queues. Raises InvalidState if it was not running."""
        served, self._served = self._served, None
        if served is None:
            raise InvalidState("the device was not running")
        self._ok(client)
        asked = self._resetting is not None
        self._settled(served)
        if served is self._driver and not asked:
            # It stopped by itself: this driver's session is over, and the next may begin.
            self._status.needs_reset()
            self._show_status()
            served.event("peer_gone", **client.process._asdict())
            self.introduce()

    def needs_reset(self, client: Client, reason: str, queue: int) -> None:
        """The device cannot go on [2.1.2]."""
        notify = self._status.needs_reset()
        self._show_status()
        if notify and self._driver is not None:
            self._driver.event("needs_reset", reason=reason, queue=queue)
        self._ok(client)

    def write_config(self, client: Client, offset: int, data: bytes) -> None:
        """The device changes its configuration space. Raises RuleError outside the space."""
        self._config.update(offset, data)
        if self._driver is not None and self._status.value & spec.STATUS_DRIVER_OK and not self._driver.lagging:
            self._driver.event("config_changed")
        self._ok(client)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _settled(self, served: Client) -> None:
        """Nobody serves the queues any more: finish the reset that waited for it, or that a lost driver left."""
        waiting, self._resetting = self._resetting, None
        if waiting is not None and waiting[0] is self._driver:
            self._back_to_reset()
            self._ok(*waiting)
        elif self._driver is not served:
            self._back_to_reset()

    def _ok(self, client: Client, serial: int | None = None) -> None:
        client.reply({"type": "ok", "value": self._status.value}, serial=serial)

    def _back_to_reset(self) -> None:
        if self._orphaned:
            self._end_orphan()
        self._status.reset()
        self._accepted = self._cells.accepted = 0
        self._show_status()

    def _show_status(self) -> None:
        self._cells.status = self._status.value
        if self._status.value & spec.STATUS_FEATURES_OK:
            self._cells.accepted = self._accepted
