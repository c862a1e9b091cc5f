"""Buffer pool: the driver's allocator for the buffers it offers, over one range of guest memory.

All bookkeeping is private to the driver; nothing of it lies in shared memory. Sizes are rounded up to cache lines, so
two buffers never share one. A buffer given back is kept by size and handed out again first, while it is still warm in
the cache; only when that fails are free neighbours merged and the range searched.
"""

from __future__ import annotations

from bisect import insort
from typing import Final

from vqshm.errors import InvalidState, OutOfBuffers
from vqshm.memory.address import MAX_ADDRESS, align_up

GRAIN: Final = 64  # bytes: a cache line


class BufferPool:
    """Hands out pieces of guest memory [base, base + size)."""

    def __init__(self, base: int, size: int) -> None:
        start = align_up(base, GRAIN)
        size = (base + size - start) // GRAIN * GRAIN
        if size <= 0:
            raise ValueError(f"a buffer pool needs at least {GRAIN} bytes")
        if base < 0 or start + size > MAX_ADDRESS:
            raise ValueError(f"a buffer pool of {size} bytes at {base:#x} does not lie below 2^64-1")
        self.size = size
        self.free = size  # bytes
        self._holes: list[tuple[int, int]] = [(start, size)]  # (address, bytes), ascending, merged
        self._warm: dict[int, list[int]] = {}  # bytes -> addresses given back, not merged yet
        self._leased: dict[int, int] = {}  # address -> bytes

    def allocate(self, count: int) -> int:
        """The guest address of `count` contiguous bytes.

        Raises OutOfBuffers when they cannot be had now (or ever: the message says), ValueError for count < 1.
        """
        if count < 1:
            raise ValueError(f"cannot allocate {count} bytes")
        size = align_up(count, GRAIN)
        warm = self._warm.get(size)
        address = warm.pop() if warm else self._carve(size)
        self._leased[address] = size
        self.free -= size
        return address

    def release(self, address: int) -> None:
        """Give a buffer back. Raises InvalidState if it is not out."""
        size = self._leased.pop(address, 0)
        if not size:
            raise InvalidState(f"no buffer is out at {address:#x}", address=address)
        self._warm.setdefault(size, []).append(address)
        self.free += size

    def _carve(self, size: int) -> int:
        for attempt in range(2):
            for i, (address, hole) in enumerate(self._holes):
                if hole >= size:
                    if hole == size:
                        del self._holes[i]
                    else:
                        self._holes[i] = (address + size, hole - size)
                    return address
            if attempt == 0:
                self._merge()
        largest = max((hole for _, hole in self._holes), default=0)
        raise OutOfBuffers(
            f"no {size} contiguous bytes: {self.free} of {self.size} are free, the largest piece has {largest}; "
            + ("give buffers back" if size <= self.size else "make the buffer area larger"),
            wanted=size,
            free=self.free,
            size=self.size,
        )

    def _merge(self) -> None:
        for size, addresses in self._warm.items():
            for address in addresses:
                insort(self._holes, (address, size))
        self._warm.clear()
        merged: list[tuple[int, int]] = []
        for address, size in self._holes:
            if merged and sum(merged[-1]) == address:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((address, size))
        self._holes = merged
