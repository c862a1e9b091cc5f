"""Planning: where everything lies in a region, computed from what the user asked for here and nowhere else.

    region offset 0           manifest, read and written through its own small windows; not guest memory
    region manifest_bytes     guest address GUEST_BASE: queue 0, its buffers, queue 1, its buffers, …

Behind the rings of a queue whose device is to be resumed lie its in-flight area and its area of tries.

A descriptor holds a guest address. None reaches the manifest, whatever a peer writes into it, because guest memory
starts behind it.

Inside the manifest (manifest.py describes the fields):

    0                       header                                HEADER_BYTES
    DEVICES_AT              one record per device                 DEVICE_RECORD_BYTES each
    then                    one record per queue                  QUEUE_RECORD_BYTES each
    cells_at, on a line     live cells per device                 DEVICE_CELLS_BYTES each
    then                    live cells per queue                  QUEUE_CELLS_BYTES each
    then, each on a line    configuration spaces
    manifest_bytes          whole pages
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, get_args

from vqshm import spec
from vqshm.errors import InvalidSize, NotFound, RuleError
from vqshm.memory.address import align_up
from vqshm.ring.inflight import inflight_bytes
from vqshm.ring.layout import CACHE_LINE, SplitLayout, is_queue_size
from vqshm.ring.tries import MOST, Tries, Undone, tries_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vqshm.memory.guest import GuestMemory

PAGE: Final = 4096
GUEST_BASE: Final = 0x4000_0000  # guest address of the first byte behind the manifest

MAX_DEVICES: Final = 64
MAX_QUEUES: Final = 256  # of all devices together
MAX_CONFIG_BYTES: Final = 4096
MAX_TOTAL_BYTES: Final = 1 << 40

HEADER_BYTES: Final = 128
DEVICES_AT: Final = HEADER_BYTES
DEVICE_RECORD_BYTES: Final = 64
QUEUE_RECORD_BYTES: Final = 16
DEVICE_CELLS_BYTES: Final = 3 * CACHE_LINE  # coordinator, driver and device write a line each
QUEUE_CELLS_BYTES: Final = 2 * CACHE_LINE  # driver and device write a line each

# What becomes of a driver's session when its device process ends:
#   reset    it is over: the driver hears PeerGone and resets; what was in flight is its own again
#   resume   a new device process takes it up and handles again what the old one had in flight; the driver waits
#   fail     what was in flight fails, each request with RequestLost; the driver starts anew with the next device
Restart: TypeAlias = Literal["reset", "resume", "fail"]
RESTARTS: Final[tuple[Restart, ...]] = get_args(Restart)

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,30}")
_MAX_U32: Final = 0xFFFF_FFFF


def check_name(name: str) -> str:
    """Return the name of a region or a device. Raises RuleError for one of another shape."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RuleError(f"{name!r} is no name: 1 to 31 of a-z 0-9 _ . -, the first a letter or a digit", name=name)
    return name


def _check_range(what: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RuleError(f"{what} must be {least} to {most}, not {value!r}", value=value, least=least, most=most)


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue as asked for: `size` descriptors (a power of two), and at least `buffer_bytes` for buffers."""

    size: int = 256
    buffer_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if not is_queue_size(self.size):
            raise InvalidSize(f"queue size {self.size} is no power of two in 1..{spec.MAX_QUEUE_SIZE}", size=self.size)
        _check_range("buffer_bytes", self.buffer_bytes, 1, MAX_TOTAL_BYTES)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device as asked for: `device_id` as in [5], and its queues in the order of the device type.

    `restart`: what becomes of a session when the device process ends, "reset", "resume" or "fail". `max_attempts`: how
    often a chain is handed out at most where devices resume, before it is returned undone; None: until it is done.
    """

    name: str
    device_id: int
    queues: tuple[QueueSpec, ...] = (QueueSpec(),)
    config_bytes: int = 256
    restart: Restart = "reset"
    max_attempts: int | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_range("device_id", self.device_id, 0, _MAX_U32)
        _check_range("number of queues", len(self.queues), 0, MAX_QUEUES)
        _check_range("config_bytes", self.config_bytes, 0, MAX_CONFIG_BYTES)
        if self.restart not in RESTARTS:
            raise RuleError(f"restart is one of {', '.join(RESTARTS)}, not {self.restart!r}", value=self.restart)
        if self.max_attempts is not None:
            _check_range("max_attempts", self.max_attempts, 1, MOST)
            if self.restart != "resume":
                raise RuleError(f"nothing is attempted twice where devices {self.restart}: max_attempts is for resume")


class Area(NamedTuple):
    """A range of guest memory."""

    address: int
    length: int  # bytes


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """Where a queue lies. `index` counts through all queues of the region, `number` through those of the device."""

    index: int
    number: int
    spec: QueueSpec
    layout: SplitLayout
    buffers: Area
    inflight: Area | None = None  # where the device writes down what it has, if a successor shall go on from there
    tries: Area | None = None  # behind it: how often it was handed out
    max_attempts: int | None = None

    @property
    def size(self) -> int:
        """Descriptors."""
        return self.spec.size

    def zero(self, memory: GuestMemory) -> None:
        """Zero what the two sides share but for the buffers, as a driver must before the device may look at it."""
        self.layout.zero(memory)
        for area in (self.inflight, self.tries):
            if area is not None:
                memory.write(area.address, bytes(area.length))

    def tries_in(self, memory: GuestMemory) -> Tries | None:
        """Where the device counts how often chains were handed out, if it does."""
        return None if self.tries is None else Tries(memory, self.tries.address, self.size, self.max_attempts or 0)

    def undone_in(self, memory: GuestMemory) -> Undone | None:
        """Where the driver sees what was given up, if anything can be."""
        return None if self.tries is None else Undone(memory, self.tries.address, self.size)


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Where a device's parts lie; `config_at` is an offset in the region."""

    index: int
    spec: DeviceSpec
    queues: tuple[QueuePlan, ...]
    config_at: int

    @property
    def name(self) -> str:
        """The device's name."""
        return self.spec.name

    @property
    def device_id(self) -> int:
        """The device type [5]."""
        return self.spec.device_id

    @property
    def restart(self) -> Restart:
        """What becomes of a session when the device process ends."""
        return self.spec.restart

    @property
    def max_attempts(self) -> int | None:
        """How often a chain is handed out at most; None: until it is done."""
        return self.spec.max_attempts

    @property
    def config_bytes(self) -> int:
        """Size of the configuration space."""
        return self.spec.config_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything lies. Offsets and sizes in bytes."""

    devices: tuple[DevicePlan, ...]
    cells_at: int
    manifest_bytes: int
    total_bytes: int

    @property
    def guest_bytes(self) -> int:
        """Size of guest memory, which starts at GUEST_BASE and at region offset `manifest_bytes`."""
        return self.total_bytes - self.manifest_bytes

    @property
    def queues(self) -> tuple[QueuePlan, ...]:
        """All queues of the region, by index."""
        return tuple(queue for device in self.devices for queue in device.queues)

    def device(self, name: str) -> DevicePlan:
        """Return the device of that name. Raises NotFound, listing those there are."""
        for device in self.devices:
            if device.name == name:
                return device
        known = ", ".join(device.name for device in self.devices)
        raise NotFound(f"there is no device {name!r}, only: {known}", name=name)

    def device_cells_at(self, index: int) -> int:
        """Region offset of the live cells of a device."""
        return self.cells_at + index * DEVICE_CELLS_BYTES

    def queue_cells_at(self, index: int) -> int:
        """Region offset of the live cells of a queue, by its index in the region."""
        return self.cells_at + len(self.devices) * DEVICE_CELLS_BYTES + index * QUEUE_CELLS_BYTES


def plan(devices: Sequence[DeviceSpec]) -> Plan:
    """Lay a region out. Raises RuleError for too many devices, queues or bytes, or for a name that comes twice."""
    queue_count = sum(len(device.queues) for device in devices)
    _check_range("number of devices", len(devices), 1, MAX_DEVICES)
    _check_range("number of queues", queue_count, 0, MAX_QUEUES)
    names = [device.name for device in devices]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RuleError(f"each device needs a name of its own: {', '.join(twice)}", names=twice)

    records_end = DEVICES_AT + len(devices) * DEVICE_RECORD_BYTES + queue_count * QUEUE_RECORD_BYTES
    cells_at = align_up(records_end, CACHE_LINE)
    config_at = cells_at + len(devices) * DEVICE_CELLS_BYTES + queue_count * QUEUE_CELLS_BYTES
    address = GUEST_BASE
    planned: list[DevicePlan] = []
    for device in devices:
        first = sum(len(earlier.queues) for earlier in planned)
        queues = tuple(_lay_out_queues(device, first, address))
        address = sum(queues[-1].buffers) if queues else address
        planned.append(DevicePlan(len(planned), device, queues, config_at))
        config_at = align_up(config_at + device.config_bytes, CACHE_LINE)
    manifest_bytes = align_up(config_at, PAGE)
    total_bytes = manifest_bytes + address - GUEST_BASE
    _check_range("total size", total_bytes, 1, MAX_TOTAL_BYTES)
    return Plan(tuple(planned), cells_at, manifest_bytes, total_bytes)


def _lay_out_queues(device: DeviceSpec, first: int, address: int) -> Iterator[QueuePlan]:
    for number, wanted in enumerate(device.queues):
        layout = SplitLayout.at(address, wanted.size)
        inflight = tries = None
        end = layout.end
        if device.restart == "resume":
            inflight = Area(end, inflight_bytes(wanted.size))
            tries = Area(sum(inflight), tries_bytes(wanted.size))
            end = sum(tries)
        buffers = Area(align_up(end, PAGE), align_up(wanted.buffer_bytes, PAGE))
        yield QueuePlan(first + number, number, wanted, layout, buffers, inflight, tries, device.max_attempts)
        address = sum(buffers)
