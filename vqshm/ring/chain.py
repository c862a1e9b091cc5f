"""Descriptor chains as the device sees them, and byte streams over their buffers [2.7.4, 2.7.5].

How a chain is followed, and what is checked, stands in `walk`. Two policies for one that breaks a rule:

    strict  (default) the whole chain is fetched and checked before anybody sees it
    seed    descriptors are fetched one by one while the chain is walked
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vqshm.errors import ShortBuffer, SplitOutOfBounds

if TYPE_CHECKING:
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.ring.descriptor import Descriptor
    from vqshm.ring.split_device import DeviceQueue
    from vqshm.ring.walk import Walk


def new_chain(walk: Walk, head_index: int, queue: DeviceQueue) -> DescriptorChain:
    """The chain that a started cursor stands before. In strict policy the cursor is free again afterwards.

    Raises, in strict policy, the RuleError that the chain breaks.
    """
    chain = DescriptorChain.__new__(DescriptorChain)
    chain.memory = walk.memory
    chain.head_index = head_index
    chain.queue = queue
    chain.attempts = 1
    chain.readable_bytes = chain.writable_bytes = 0
    if walk._strict:
        chain._walk = None
        chain._descriptors = []
        while walk.step():
            chain._descriptors.append(walk.descriptor())
        chain.writable_bytes = walk.writable_bytes
        chain.readable_bytes = walk._total - walk.writable_bytes
    else:
        chain._walk = walk.copy()
        chain._descriptors = None
    return chain


class DescriptorChain:
    """A chain the driver offered: iterate it for its descriptors, or read and write its buffers as byte streams.

    In strict policy the descriptors were fetched and checked when the chain was popped, and every iteration yields that
    private copy. In seed policy every iteration walks the table anew.
    """

    __slots__ = (
        "_descriptors",
        "_walk",
        "attempts",
        "head_index",
        "memory",
        "queue",
        "readable_bytes",
        "writable_bytes",
    )

    memory: Memory
    attempts: int  # times it was handed out, this one among them
    head_index: int
    queue: DeviceQueue  # it came from, and must be returned to
    readable_bytes: int  # this and the next in strict policy; else 0
    writable_bytes: int
    _walk: Walk | None
    _descriptors: list[Descriptor] | None

    @property
    def replayed(self) -> bool:
        """Whether a device that died had taken it, and may have handled it."""
        return self.attempts > 1

    def walk(self) -> Walk:
        """Seed policy: a cursor that fetches the descriptors from the table step by step.

        Raises TypeError in strict.
        """
        if self._walk is None:
            raise TypeError("a chain in strict policy was fetched when it was popped: iterate it")
        return self._walk.copy()

    def __iter__(self) -> Iterator[Descriptor]:
        return self.walk() if self._descriptors is None else iter(self._descriptors)

    def readable(self) -> Iterator[Descriptor]:
        """The device-readable descriptors."""
        return (d for d in self if not d.is_write_only)

    def writable(self) -> Iterator[Descriptor]:
        """The device-writable descriptors."""
        return (d for d in self if d.is_write_only)

    def reader(self) -> Reader:
        """A byte stream over the device-readable buffers. Raises GuestMemory."""
        return Reader(self._views(self.readable()))

    def writer(self) -> Writer:
        """A byte stream over the device-writable buffers. Raises GuestMemory."""
        return Writer(self._views(self.writable()))

    def _views(self, descriptors: Iterator[Descriptor]) -> list[memoryview]:
        return [view for d in descriptors for view in self.memory.views(d.addr, d.len)]

    def __repr__(self) -> str:
        return f"DescriptorChain(head={self.head_index}, {list(self)})"


class _Stream:
    """Consumes buffers from the front; the position and the bytes are all its state."""

    __slots__ = ("_consumed", "_views")

    def __init__(self, views: list[memoryview]) -> None:
        self._views = views
        self._consumed = 0

    @property
    def available_bytes(self) -> int:
        """Bytes still to come."""
        return sum(view.nbytes for view in self._views)

    def _take(self, count: int) -> list[memoryview]:
        """Consume up to `count` bytes and return the views that hold them."""
        taken: list[memoryview] = []
        while count and self._views:
            front = self._views[0]
            if front.nbytes <= count:
                self._views.pop(0)
            else:
                self._views[0] = front[count:]
                front = front[:count]
            taken.append(front)
            count -= front.nbytes
            self._consumed += front.nbytes
        return taken

    def _split(self, offset: int) -> list[memoryview]:
        """Keep the first `offset` bytes still to come; the views of what follows."""
        available = self.available_bytes
        if not 0 <= offset <= available:
            raise SplitOutOfBounds(f"split at {offset} of {available} bytes", offset=offset, limit=available)
        consumed = self._consumed
        kept = self._take(offset)
        rest, self._views, self._consumed = self._views, kept, consumed
        return rest


class Reader(_Stream):
    """The device-readable bytes of a chain, in order."""

    __slots__ = ()

    @property
    def bytes_read(self) -> int:
        """Bytes consumed so far."""
        return self._consumed

    def read(self, count: int = -1) -> bytes:
        """A copy of up to `count` bytes; all that is left if negative."""
        return b"".join(self._take(self.available_bytes if count < 0 else count))

    def read_exact(self, count: int) -> bytes:
        """A copy of exactly `count` bytes. Raises ShortBuffer if there are fewer; those there were are consumed."""
        data = self.read(max(count, 0))
        if len(data) < count:
            raise ShortBuffer(f"{count} bytes wanted, the chain had {len(data)} left", wanted=count, got=len(data))
        return data

    def views(self, count: int = -1) -> list[memoryview]:
        """Up to `count` bytes in place, read-only. The driver can still change them: copy what you check."""
        return [view.toreadonly() for view in self._take(self.available_bytes if count < 0 else count)]

    def split_at(self, offset: int) -> Reader:
        """Cut here: this one keeps the next `offset` bytes, the returned one has the rest. Raises SplitOutOfBounds."""
        return Reader(self._split(offset))


class Writer(_Stream):
    """The device-writable bytes of a chain, in order."""

    __slots__ = ()

    @property
    def bytes_written(self) -> int:
        """Bytes consumed so far."""
        return self._consumed

    def write(self, data: Any) -> int:
        """Store as much of `data` (any contiguous buffer) as fits; the number of bytes stored."""
        source = memoryview(data).cast("B")
        done = 0
        for view in self._take(source.nbytes):
            view[:] = source[done : done + view.nbytes]
            done += view.nbytes
        return done

    def write_all(self, data: Any) -> None:
        """Store all of `data`. Raises ShortBuffer if it does not fit; what fits is stored."""
        size = memoryview(data).nbytes
        stored = self.write(data)
        if stored < size:
            raise ShortBuffer(f"{size} bytes to write, the chain had room for {stored}", wanted=size, got=stored)

    def views(self, count: int = -1) -> list[memoryview]:
        """Up to `count` bytes in place, to be written without a copy."""
        return self._take(self.available_bytes if count < 0 else count)

    def split_at(self, offset: int) -> Writer:
        """Cut here: this one keeps the next `offset` bytes, the returned one has the rest. Raises SplitOutOfBounds."""
        return Writer(self._split(offset))
