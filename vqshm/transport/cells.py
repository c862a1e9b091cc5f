"""Live cells: the words of a manifest that change while the region is in use: status, owners, counters.

Rules
- Every line of 64 bytes has one writer, so no side slows the other down by counting.
- Cells are for looking at. Whoever maps the region can write them, so nobody decides anything by a peer's cell; but
  whether the peer has left, where the coordinator that would say so has ended.
- Of an owner, `start_time` is written before `pid`, and `pid` 0 is nobody.

    device   line 0  coordinator   0 status u32       8 offered u64       16 accepted u64
                                   24 resumed u32    28 orphaned u32
             line 1  driver        0 pid u64          8 start_time u64
             line 2  device        0 pid u64          8 start_time u64    16 config_generation u32
    queue    line 0  driver        added, reaped, kicks, kicks_suppressed, bytes_out, bytes_in, waits     u64 each
             line 1  device        taken, used, calls, calls_suppressed, bytes_in, bytes_out, waits, undone
                                                                                                   u64 each

`bytes_out` is what this side sent, `bytes_in` what it was given. Counters are those of a session; where devices resume
one, each goes on where the last one stopped: `taken` and `used` exactly, the others where they were last shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self, overload

from vqshm.memory import atomic
from vqshm.ring.layout import CACHE_LINE
from vqshm.transport.config import ConfigSpace

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqshm.memory.atomic import Region
    from vqshm.transport.planning import Plan

_GENERATION_AT: Final = 2 * CACHE_LINE + 16
_PLAUSIBLE: Final = (1 << 63) - 1  # more is not counted in a life, and would not fit into the word some time later


class Cell:
    """One word: reading the attribute loads it (acquire), assigning stores it (release)."""

    def __init__(
        self, offset: int, load: Callable[[Region, int], int], store: Callable[[Region, int, int], None]
    ) -> None:
        self.offset = offset
        self._load = load
        self._store = store

    @overload
    def __get__(self, cells: None, owner: type[Cells]) -> Self: ...
    @overload
    def __get__(self, cells: Cells, owner: type[Cells]) -> int: ...
    def __get__(self, cells: Cells | None, owner: type[Cells]) -> int | Self:
        return self if cells is None else self._load(cells.region, cells.base + self.offset)

    def __set__(self, cells: Cells, value: int) -> None:
        self._store(cells.region, cells.base + self.offset, value)


def _u32(offset: int) -> Cell:
    return Cell(offset, atomic.load_u32, atomic.store_u32)


def _u64(offset: int) -> Cell:
    return Cell(offset, atomic.load_u64, atomic.store_u64)


class Cells:
    """Some words of a region, by name. On a read-only mapping they can be read."""

    def __init__(self, region: Region, base: int) -> None:
        self.region = region
        self.base = base

    def snapshot(self) -> dict[str, int]:
        """Return all of them by name, each loaded once."""
        return {name: getattr(self, name) for name, cell in vars(type(self)).items() if isinstance(cell, Cell)}


class DeviceCells(Cells):
    """Of one device: its status and features as the coordinator knows them, and who holds the two roles."""

    status = _u32(0)
    offered = _u64(8)
    accepted = _u64(16)
    resumed = _u32(24)  # times a new device took up a session, since the region was made
    orphaned = _u32(28)  # 1 while a session waits for a new device
    driver_pid = _u64(CACHE_LINE)
    driver_start_time = _u64(CACHE_LINE + 8)
    device_pid = _u64(2 * CACHE_LINE)
    device_start_time = _u64(2 * CACHE_LINE + 8)
    config_generation = _u32(_GENERATION_AT)


class DriverCounters(Cells):
    """What the driver of one queue counts."""

    added = _u64(0)  # chains made available
    reaped = _u64(8)  # chains got back
    kicks = _u64(16)  # notifications sent
    kicks_suppressed = _u64(24)  # notifications the device did not ask for
    bytes_out = _u64(32)
    bytes_in = _u64(40)
    waits = _u64(48)  # times it went to sleep


def count_on(shown: int, position: int) -> int:
    """What a counter stands at that was last shown as `shown`, by whomever; its low 16 bits are `position`."""
    return plausible(shown) + ((position - shown) & 0xFFFF)


def plausible(shown: int) -> int:
    """What somebody else showed, as a number to count on from."""
    return shown & _PLAUSIBLE


class DeviceCounters(Cells):
    """What the device of one queue counts."""

    taken = _u64(0)  # chains popped
    used = _u64(8)  # chains given back
    calls = _u64(16)  # notifications sent
    calls_suppressed = _u64(24)  # notifications the driver did not ask for
    bytes_in = _u64(32)
    bytes_out = _u64(40)
    waits = _u64(48)  # times it went to sleep
    undone = _u64(56)  # chains given up: returned undone, because those who handled them died


class QueueCells:
    """Of one queue: the counters of its two sides."""

    def __init__(self, region: Region, base: int) -> None:
        self.driver = DriverCounters(region, base)
        self.device = DeviceCounters(region, base + CACHE_LINE)


class Manifest:
    """The live part of a region's manifest. `plan` is what `read_manifest` returned, or what was written."""

    def __init__(self, region: Region, plan: Plan) -> None:
        """`region` may be read-only; then the cells can be read."""
        self.region = region
        self.plan = plan

    def device(self, index: int) -> DeviceCells:
        """Return the cells of a device. Raises IndexError."""
        return DeviceCells(self.region, self.plan.device_cells_at(self.plan.devices[index].index))

    def queue(self, index: int) -> QueueCells:
        """Return the cells of a queue, by its index in the region. Raises IndexError."""
        return QueueCells(self.region, self.plan.queue_cells_at(self.plan.queues[index].index))

    def config(self, index: int) -> ConfigSpace:
        """Return the configuration space of a device. Raises IndexError."""
        device = self.plan.devices[index]
        generation_at = self.plan.device_cells_at(device.index) + _GENERATION_AT
        return ConfigSpace(self.region, device.config_at, device.config_bytes, generation_at)
