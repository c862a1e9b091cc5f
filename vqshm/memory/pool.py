"""Buffer pool: the driver's allocator for the buffers it offers, over one range of guest memory.

All bookkeeping is private to the driver; nothing of it lies in shared memory. Sizes are rounded up to cache lines, so
two buffers never share one. A buffer given back is kept by size and handed out again first, while it is still warm in
the cache; only when that fails are free neighbours merged and the range searched.

An exception may strike between any two steps: Ctrl-C, a signal handler. What is out is then still right, for it changes
in one store; what is free is worked out anew from it by the next call. Who takes a buffer may therefore name a holder:
it is told the address before the buffer is out, so a buffer that is out always has somebody who knows it.
"""

from __future__ import annotations

from bisect import insort
from typing import Final, NoReturn, Protocol

from vqshm.errors import InvalidState, OutOfBuffers
from vqshm.memory.address import MAX_ADDRESS, align_up

GRAIN: Final = 64  # bytes: a cache line


class Holder(Protocol):
    """Who has a buffer; one at a time."""

    address: int


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
        self._start = start
        self._holes: list[tuple[int, int]] = [(start, size)]  # (address, bytes), ascending, merged
        self._warm: dict[int, list[int]] = {}  # bytes -> addresses given back, not merged yet
        self._leased: dict[
            int, tuple[int, int]
        ] = {}  # address -> bytes, id of the holder; no reference, which were a cycle
        self._torn = False  # a call was interrupted: only `_leased` is right

    def allocate(self, count: int, holder: Holder | None = None) -> int:
        """The guest address of `count` contiguous bytes.

        Raises OutOfBuffers when they cannot be had now (or ever: the message says), ValueError for count < 1.
        """
        if count < 1:
            raise ValueError(f"cannot allocate {count} bytes")
        if self._torn:
            self._mend()
        size = align_up(count, GRAIN)
        self._torn = True
        warm = self._warm.get(size)
        address = warm.pop() if warm else self._carve(size)
        if address < 0:
            self._torn = False
            self._refuse(size)
        if holder is not None:
            holder.address = address
        self._leased[address] = size, id(holder)  # from now on it is out
        self.free -= size
        self._torn = False
        return address

    def release(self, address: int) -> None:
        """Give a buffer back. Raises InvalidState if it is not out."""
        if self._torn:
            self._mend()
        leased = self._leased.get(address)
        if leased is None:
            raise InvalidState(f"no buffer is out at {address:#x}", address=address)
        size = leased[0]
        self._torn = True
        del self._leased[address]  # from now on it is free
        self._warm.setdefault(size, []).append(address)
        self.free += size
        self._torn = False

    def has(self, holder: Holder) -> bool:
        """Whether a buffer is out for this holder."""
        return self._leased.get(holder.address, (0, 0))[1] == id(holder)

    def _mend(self) -> None:
        """Whatever is not out is free."""
        holes = []
        at = self._start
        for address in sorted(self._leased):
            if address > at:
                holes.append((at, address - at))
            at = address + self._leased[address][0]
        if at < self._start + self.size:
            holes.append((at, self._start + self.size - at))
        self._holes = holes
        self._warm = {}
        self.free = sum(size for _, size in holes)
        self._torn = False

    def _carve(self, size: int) -> int:
        """The address of so many bytes, no longer free; -1 if there is no such piece."""
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
        return -1

    def _refuse(self, size: int) -> NoReturn:
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
