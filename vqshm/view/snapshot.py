"""Snapshot: everything that can be seen of a region from outside: its owner, its devices, counters and rings.

The region is mapped read-only (PROT_READ) and never written, and nobody is asked anything: the processes in it do not
notice. What they wrote into their cells is shown as it stands; a busy side writes its counters every 64 chains, an idle
one before it sleeps.

    take("demo").devices[0].queues[0].driver["added"]
    json.dumps(take("demo").as_map())
"""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from vqshm import spec
from vqshm.errors import NegotiationError
from vqshm.host import Condition, ProcessId, open_plan
from vqshm.host.endpoint import CONTROL_TIMEOUT
from vqshm.memory import GuestMemory, Region
from vqshm.notify import Deadline
from vqshm.transport import GUEST_BASE, Header, Manifest, Plan, check_name, features, read_header, status
from vqshm.view.image import RingImage, read_ring

if TYPE_CHECKING:
    from vqshm.host import Coordinator
    from vqshm.transport import DevicePlan, QueuePlan

_LONGEST_COMMAND: Final = 60  # characters
_RING_FIELDS: Final = (
    *("size", "avail_flags", "avail_idx", "avail_event", "used_flags", "used_idx", "used_event"),
    *("claimed", "in_order", "steady", "chains", "problems"),
)

KINDS: Final = {
    value: name.removeprefix("VIRTIO_ID_").removeprefix("VQSHM_ID_").lower()
    for name, value in vars(spec).items()
    if name.startswith(("VIRTIO_ID_", "VQSHM_ID_"))
}


@dataclass(frozen=True, slots=True)
class Process:
    """A process that a cell names. `start_time`: clock ticks since boot; `age`: seconds since then, while it lives."""

    pid: int
    start_time: int
    alive: bool
    age: float | None = None
    command: str = ""

    @classmethod
    def look_up(cls, pid: int, start_time: int) -> Self | None:
        """The process of these two cells; None if the cell says nobody."""
        if not pid:
            return None
        known = ProcessId(pid, start_time)
        if not known.alive:
            return cls(pid, start_time, alive=False)
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - start_time / os.sysconf("SC_CLK_TCK")
        return cls(pid, start_time, alive=True, age=max(0.0, age), command=_command(pid))


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """A queue: `index` in the region, `number` in its device, `size` in descriptors, addresses in guest memory.

    `driver` and `device` are the counters of the two sides by name; see `vqshm.transport.cells` for their units.
    """

    index: int
    number: int
    size: int
    addresses: dict[str, int]  # of descriptor table, available ring, used ring, buffers
    buffer_bytes: int
    driver: dict[str, int]
    device: dict[str, int]
    event_idx: bool | None  # whether the events mean something, or else the flags; None before FEATURES_OK
    ring: RingImage


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """A device: `status` is its register [2.1], `state` what that stands for; features by name.

    `orphaned`: a session waits for a new device process; `resumed`: how often one has taken up a session.
    """

    index: int
    name: str
    device_id: int
    kind: str
    status: int
    status_bits: str
    state: str
    offered: tuple[str, ...]
    accepted: tuple[str, ...]
    config_bytes: int
    config_generation: int
    driver: Process | None
    device: Process | None
    restart: str
    max_attempts: int | None
    resumed: int
    orphaned: bool
    queues: tuple[QueueSnapshot, ...]


@dataclass(frozen=True, slots=True)
class RegionSnapshot:
    """A region at `taken_at` (seconds of time.monotonic()); `size` in bytes."""

    name: str
    condition: str
    size: int
    manifest_bytes: int
    notify: str
    coordinator: Process | None
    devices: tuple[DeviceSnapshot, ...]
    taken_at: float

    @property
    def made_by(self) -> ProcessId | None:
        """Who made this very region, which tells it from an earlier one of the same name."""
        owner = self.coordinator
        return None if owner is None else ProcessId(owner.pid, owner.start_time)

    @property
    def queues(self) -> tuple[QueueSnapshot, ...]:
        """All queues of the region, by index."""
        return tuple(queue for device in self.devices for queue in device.queues)

    def as_map(self) -> dict[str, Any]:
        """Return all of it as maps, lists, numbers and texts; of each ring its indices and what is in flight."""
        plain: dict[str, Any] = _plain(self)
        return plain


class Observer:
    """A region mapped read-only, for as long as this object lives.

    Raises NotFound (the message lists what exists), UntrustedPeer, InvalidState (half made), VersionMismatch.
    """

    def __init__(self, name: str) -> None:
        self._look(name, *_map(check_name(name)))

    @classmethod
    def of(cls, coordinator: Coordinator) -> Self:
        """The region of a coordinator in this process, which could not answer while it asked itself."""
        observer = cls.__new__(cls)
        memory = coordinator.memory
        observer._look(coordinator.name, read_header(Region(memory), len(memory)), coordinator.plan, memory)  # noqa: SLF001 - its own
        return observer

    def _look(self, name: str, header: Header, plan: Plan, mapping: mmap.mmap) -> None:
        self.name, self.header, self.plan = name, header, plan
        first = self.plan.manifest_bytes
        self.manifest = Manifest(Region(mapping, 0, first), self.plan)
        self._guest: GuestMemory | None = None
        if self.plan.guest_bytes:
            self._guest = GuestMemory([(GUEST_BASE, memoryview(mapping)[first:])])

    def snapshot(self) -> RegionSnapshot:
        """Everything, now."""
        owner = Process.look_up(self.header.pid, self.header.start_time)
        devices = tuple(self._device(device, device.queues) for device in self.plan.devices)
        condition = Condition.ALIVE
        if owner is None or not owner.alive:
            held = any(holder and holder.alive for device in devices for holder in (device.driver, device.device))
            condition = Condition.HELD if held else Condition.STALE
        return RegionSnapshot(
            name=self.name,
            condition=condition,
            size=self.plan.total_bytes,
            manifest_bytes=self.plan.manifest_bytes,
            notify=self.header.notify,
            coordinator=owner,
            devices=devices,
            taken_at=time.monotonic(),
        )

    def devices(self) -> tuple[DeviceSnapshot, ...]:
        """The devices without their queues: who, and in which state."""
        return tuple(self._device(device, ()) for device in self.plan.devices)

    def _device(self, plan: DevicePlan, queues: tuple[QueuePlan, ...]) -> DeviceSnapshot:
        cells = self.manifest.device(plan.index).snapshot()
        event_idx = None
        if cells["status"] & spec.STATUS_FEATURES_OK:
            event_idx = bool(cells["accepted"] >> spec.VIRTIO_F_EVENT_IDX & 1)
        return DeviceSnapshot(
            index=plan.index,
            name=plan.name,
            device_id=plan.device_id,
            kind=KINDS.get(plan.device_id, f"id {plan.device_id:#x}"),
            status=cells["status"],
            status_bits=status.describe(cells["status"]),
            state=_state(cells["status"]),
            offered=features.names(cells["offered"]),
            accepted=features.names(cells["accepted"]),
            config_bytes=plan.config_bytes,
            config_generation=cells["config_generation"],
            driver=Process.look_up(cells["driver_pid"], cells["driver_start_time"]),
            device=Process.look_up(cells["device_pid"], cells["device_start_time"]),
            restart=plan.restart,
            max_attempts=plan.max_attempts,
            resumed=cells["resumed"],
            orphaned=bool(cells["orphaned"]),
            queues=tuple(self._queue(queue, event_idx=event_idx) for queue in queues),
        )

    def _queue(self, plan: QueuePlan, *, event_idx: bool | None) -> QueueSnapshot:
        assert self._guest is not None  # noqa: S101 - where there is a queue there is memory for it
        cells = self.manifest.queue(plan.index)
        addresses = {name: address for name, address, _ in plan.layout.areas()}
        return QueueSnapshot(
            index=plan.index,
            number=plan.number,
            size=plan.size,
            addresses={**addresses, "buffers": plan.buffers.address},
            buffer_bytes=plan.buffers.length,
            driver=cells.driver.snapshot(),
            device=cells.device.snapshot(),
            event_idx=event_idx,
            ring=read_ring(self._guest, plan.layout),
        )


def take(name: str) -> RegionSnapshot:
    """Look at a region once. Raises NotFound, UntrustedPeer, InvalidState, VersionMismatch."""
    return Observer(name).snapshot()


def _map(name: str) -> tuple[Header, Plan, mmap.mmap]:
    """Header, plan and mapping of a region; every field is checked before anything of that size is mapped."""
    fd, header, plan = open_plan(name, writable=False, deadline=Deadline(CONTROL_TIMEOUT))
    with fd:
        # Not populated, unlike for those who work in it: of a large region only the rings are looked at.
        return header, plan, mmap.mmap(fd.fileno(), plan.total_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)


def _command(pid: int) -> str:
    """What runs there: "python -m workers.echo_device", without the rest of its arguments; or nothing."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return ""
    words = [Path(arguments[0]).name, *arguments[1 : 3 if arguments[1:2] == ["-m"] else 2]]
    text = " ".join(words).strip()[:_LONGEST_COMMAND]
    return "".join(sign if sign.isprintable() else "?" for sign in text)  # a process may call itself anything


def _state(value: int) -> str:
    try:
        return status.state_of(value)
    except NegotiationError:
        return "impossible"


def _plain(value: Any) -> Any:
    if isinstance(value, RingImage):
        return {name: _plain(getattr(value, name)) for name in _RING_FIELDS}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
