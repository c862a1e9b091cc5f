"""Guest memory: a sparse 64-bit address space made of regions, with holes where nothing exists.

    address  0          start            start+size     start'
             |   hole   |#### region ####|     hole     |#### region' ####|  …

Reads and writes may cross from one region into an adjoining one. A 16-bit ring field is accessed as one unit: it must
lie in one region, at an even offset. Addresses come from whoever shares the memory and are checked at every use; what
passes the check cannot leave the regions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

from vqshm.errors import AddressOverflow
from vqshm.errors import GuestMemory as GuestMemoryError
from vqshm.memory import atomic
from vqshm.memory.address import MAX_ADDRESS, checked_add
from vqshm.memory.atomic import Region


class GuestRegion:
    """One contiguous piece of guest memory: `start` (guest address), `size` (bytes), and the window over its bytes."""

    __slots__ = ("end", "size", "start", "window")

    def __init__(self, start: int, buffer: Any) -> None:
        self.window = Region(buffer)
        if self.window.alignment < 8:
            raise ValueError("the buffer of a guest region must start on an 8-byte boundary")
        self.start = start
        self.size = self.window.size
        self.end = start + self.size
        if not self.size or start >> 64 or self.end > MAX_ADDRESS:
            raise ValueError(f"a guest region of {self.size} bytes at {start:#x} does not lie below 2^64-1")

    def __repr__(self) -> str:
        return f"GuestRegion({self.start:#x}, {self.size:#x} bytes)"


class GuestMemory:
    """Regions in ascending order, not overlapping; two may touch.

    `regions`: (start address, writable buffer) pairs. Raises ValueError where they overlap or there are none.
    """

    def __init__(self, regions: Iterable[tuple[int, Any]]) -> None:
        self.regions = tuple(sorted((GuestRegion(start, buffer) for start, buffer in regions), key=lambda r: r.start))
        if not self.regions:
            raise ValueError("guest memory needs at least one region")
        for before, after in zip(self.regions, self.regions[1:], strict=False):
            if before.end > after.start:
                raise ValueError(f"{before} and {after} overlap")
        self._starts = [region.start for region in self.regions]

    def find_region(self, address: int) -> GuestRegion | None:
        """The region that holds `address`, or None."""
        region = self.regions[max(bisect_right(self._starts, address) - 1, 0)]
        return region if region.start <= address < region.end else None

    def check_range(self, address: int, count: int) -> bool:
        """Whether all of `count` bytes at `address` exist. An empty range always does."""
        try:
            self.check(address, count)
        except (GuestMemoryError, AddressOverflow):
            return False
        return True

    def check(self, address: int, count: int) -> None:
        """Raise AddressOverflow or GuestMemory unless all of `count` bytes at `address` exist."""
        checked_add(address, count)
        for _ in self._pieces(address, count):
            pass

    def bounds(self, address: int, count: int) -> tuple[int, int]:
        """(first address, first address behind) of the region in which the range starts. Raises as `check`."""
        self.check(address, count)
        region = self.find_region(address)
        return (region.start, region.end) if region is not None else (address, address)

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def read(self, address: int, count: int) -> bytes:
        """A copy of `count` bytes. Raises GuestMemory."""
        return b"".join([window.read(offset, n) for window, offset, n in self._pieces(address, count)])

    def write(self, address: int, data: Any) -> None:
        """Store all of `data`. Raises GuestMemory; what stood in front of the gap is stored by then."""
        source = memoryview(data).cast("B")
        done = 0
        for window, offset, n in self._pieces(address, source.nbytes):
            window.write(offset, source[done : done + n])
            done += n

    def view(self, address: int, count: int) -> memoryview:
        """`count` bytes in place, without a copy; they must lie in one region. Raises GuestMemory."""
        region = self.find_region(address)
        if region is None or count < 0 or count > region.end - address:
            raise self._missing(address, count)
        return region.window.view(address - region.start, count)

    def views(self, address: int, count: int) -> list[memoryview]:
        """`count` bytes in place, one view for each region they lie in; none if `count` is 0. Raises GuestMemory."""
        return [window.view(offset, n) for window, offset, n in self._pieces(address, count)]

    def _pieces(self, address: int, count: int) -> Iterator[tuple[Region, int, int]]:
        """(window, offset, bytes) of each region that the range crosses, in order."""
        if count < 0:
            raise ValueError(f"a byte count cannot be negative: {count}")
        while count:
            region = self.find_region(address)
            if region is None:
                raise self._missing(address, count)
            n = min(count, region.end - address)
            yield region.window, address - region.start, n
            address += n
            count -= n

    # -- ring fields ---------------------------------------------------------------------------------------------------

    def window(self, address: int, count: int, alignment: int) -> Region:
        """A window over an area that is used as words of up to `alignment` bytes.

        Where the area lies in one region, aligned there too, the window is exact and fast. Elsewhere it is empty and
        every access takes the slow road, word by word through the regions, with the error of the word that does not
        exist.
        """
        region = self.find_region(address)
        if region is not None and count <= region.end - address and not (address - region.start) % alignment:
            return Region(region.window.view(address - region.start, count), 0, count, _Scattered(self, address))
        return Region(bytearray(), 0, 0, _Scattered(self, address))

    def word(self, address: int) -> tuple[Region, int]:
        """(window, offset) of a 16-bit ring field. Raises GuestMemory unless it lies, 2-aligned, in one region."""
        region = self.find_region(address)
        if region is None or address + 2 > region.end or (address - region.start) & 1:
            raise self._missing(address, 2)
        return region.window, address - region.start

    def _missing(self, address: int, count: int) -> GuestMemoryError:
        have = ", ".join(f"{r.start:#x}-{r.end:#x}" for r in self.regions[:4]) + (" …" if len(self.regions) > 4 else "")
        return GuestMemoryError(
            f"{count} bytes at {address:#x} are not in guest memory ({have})", address=address, count=count
        )

    def __repr__(self) -> str:
        return f"GuestMemory({list(self.regions)})"


class _Scattered:
    """The slow road of a window whose area is not one aligned piece of one region."""

    __slots__ = ("address", "memory")

    def __init__(self, memory: GuestMemory, address: int) -> None:
        self.memory = memory
        self.address = address

    def load(self, offset: int, width: int) -> int:
        if width != 2:
            return self.get(offset, width)
        return atomic.load_u16(*self.memory.word(checked_add(self.address, offset)))

    def store(self, offset: int, width: int, value: int) -> None:
        if width != 2:
            self.put(offset, width, value)
        else:
            atomic.store_u16(*self.memory.word(checked_add(self.address, offset)), value)

    def get(self, offset: int, width: int) -> int:
        return int.from_bytes(self.memory.read(checked_add(self.address, offset), width), "little")

    def put(self, offset: int, width: int, value: int) -> None:
        self.memory.write(checked_add(self.address, offset), value.to_bytes(width, "little"))
