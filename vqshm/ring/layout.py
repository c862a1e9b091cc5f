"""Where the three areas of a split virtqueue lie: computed here and nowhere else [2.7].

    descriptor table   16 bytes x size                         aligned to 16
    available ring     flags, idx, ring[size], used_event      aligned to 2       6 + 2 x size bytes
    used ring          flags, idx, ring[size], avail_event     aligned to 4       6 + 8 x size bytes

Offsets inside a ring:  flags 0, idx 2, ring[i] 4 + i x element, event behind the last element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vqshm import spec
from vqshm.errors import InvalidAvailRingAlign, InvalidDescTableAlign, InvalidSize, InvalidUsedRingAlign, RingOverlap
from vqshm.memory.address import align_up, checked_add

FLAGS: Final = 0
IDX: Final = 2
RING: Final = 4

if TYPE_CHECKING:
    from vqshm.memory.guest import GuestMemory

CACHE_LINE: Final = 64


def is_queue_size(size: int, limit: int = spec.MAX_QUEUE_SIZE) -> bool:
    """Whether `size` is a power of two in 1..limit [2.7]."""
    return 0 < size <= limit and size & (size - 1) == 0


def desc_table_bytes(size: int) -> int:
    """Bytes of a descriptor table of `size` descriptors."""
    return spec.DESC_SIZE * size


def avail_ring_bytes(size: int) -> int:
    """Bytes of an available ring with its `used_event`."""
    return spec.AVAIL_HEADER_SIZE + spec.AVAIL_ELEMENT_SIZE * size + spec.EVENT_SIZE


def used_ring_bytes(size: int) -> int:
    """Bytes of a used ring with its `avail_event`."""
    return spec.USED_HEADER_SIZE + spec.USED_ELEMENT_SIZE * size + spec.EVENT_SIZE


def used_event_offset(size: int) -> int:
    """Offset of `used_event` in the available ring."""
    return spec.AVAIL_HEADER_SIZE + spec.AVAIL_ELEMENT_SIZE * size


def avail_event_offset(size: int) -> int:
    """Offset of `avail_event` in the used ring."""
    return spec.USED_HEADER_SIZE + spec.USED_ELEMENT_SIZE * size


class SplitLayout(NamedTuple):
    """Queue size and the guest addresses of the three areas, as a driver writes them to the device."""

    size: int
    desc_table: int
    avail_ring: int
    used_ring: int

    @classmethod
    def at(cls, base: int, size: int) -> SplitLayout:
        """Lay a queue out behind `base`, each area on cache lines of its own.

        The driver writes the table and the available ring, the device the used ring: they must not share a line.

        Raises: InvalidSize.
        """
        if not is_queue_size(size):
            raise InvalidSize(f"queue size {size} is not a power of two in 1..{spec.MAX_QUEUE_SIZE}", size=size)
        desc = align_up(base, CACHE_LINE)
        avail = align_up(desc + desc_table_bytes(size), CACHE_LINE)
        used = align_up(avail + avail_ring_bytes(size), CACHE_LINE)
        return cls(size, desc, avail, used)

    @property
    def end(self) -> int:
        """First address behind the used ring, on a cache line."""
        return align_up(self.used_ring + used_ring_bytes(self.size), CACHE_LINE)

    def areas(self) -> tuple[tuple[str, int, int], ...]:
        """(name, first address, bytes) of the three areas."""
        return (
            ("descriptor table", self.desc_table, desc_table_bytes(self.size)),
            ("available ring", self.avail_ring, avail_ring_bytes(self.size)),
            ("used ring", self.used_ring, used_ring_bytes(self.size)),
        )

    def zero(self, memory: GuestMemory) -> None:
        """Zero the three areas, as a driver must before the device may look at them [2.7.13]."""
        for _, address, count in self.areas():
            memory.write(address, bytes(count))

    def check(self) -> None:
        """Raise the named error of the first rule that size, alignment or overlap breaks [2.7]."""
        if not is_queue_size(self.size):
            raise InvalidSize(f"queue size {self.size} is not a power of two in 1..{spec.MAX_QUEUE_SIZE}")
        if self.desc_table % spec.DESC_TABLE_ALIGN:
            raise InvalidDescTableAlign(f"descriptor table {self.desc_table:#x} is not aligned to 16")
        if self.avail_ring % spec.AVAIL_RING_ALIGN:
            raise InvalidAvailRingAlign(f"available ring {self.avail_ring:#x} is not aligned to 2")
        if self.used_ring % spec.USED_RING_ALIGN:
            raise InvalidUsedRingAlign(f"used ring {self.used_ring:#x} is not aligned to 4")
        last_name, last_end = "", 0
        for name, start, size in sorted(self.areas(), key=lambda area: area[1]):
            if last_name and start < last_end:
                raise RingOverlap(f"{name} at {start:#x} starts inside the {last_name}, which ends at {last_end:#x}")
            last_name, last_end = name, checked_add(start, size)
