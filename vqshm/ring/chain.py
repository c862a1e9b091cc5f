"""Descriptor chains as the device sees them: the walk, the chain, and byte streams over its buffers [2.7.4, 2.7.5].

The table belongs to the driver, who may rewrite it at any moment. So each field is fetched once, into a private copy,
and only the copy is checked and used. Two policies for a chain that breaks a rule:

    strict  (default) the whole chain is fetched and checked before anybody sees it; a broken rule is a named error
    seed    descriptors are fetched one by one while the chain is walked; at a broken rule the walk just ends, exactly
            as in `virtio-queue`, the Rust crate

Strict checks: indices, loops, indirect tables (length, nesting, NEXT beside INDIRECT), total length, readable before
writable, no address that wraps, every buffer in guest memory, no more descriptors than the queue has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vqshm import spec
from vqshm.errors import (
    ChainTooLong,
    DescriptorLoop,
    InvalidChain,
    InvalidDescriptorIndex,
    InvalidIndirectDescriptor,
    InvalidIndirectDescriptorTable,
    RuleError,
    ShortBuffer,
    SplitOutOfBounds,
)
from vqshm.memory import atomic
from vqshm.ring.descriptor import Descriptor

if TYPE_CHECKING:
    from vqshm.memory.atomic import Region
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.ring.split_device import DeviceQueue

_NEXT = spec.VIRTQ_DESC_F_NEXT
_WRITE = spec.VIRTQ_DESC_F_WRITE
_INDIRECT = spec.VIRTQ_DESC_F_INDIRECT
_LENGTH = 0xFFFFFFFF  # the length in the second half of a descriptor; compiled, a name is faster than the number


class Walk:
    """A cursor on one chain: `step()` fetches the next descriptor into `addr`, `len`, `flags` and `next`.

    Made by `new_walk`. As an iterator it yields `Descriptor` objects. A rule that is broken raises from `step()`; in
    seed policy the iterator ends there instead.
    """

    __slots__ = (
        "_budget",
        "_high",
        "_index",
        "_indirect",
        "_indirect_allowed",
        "_low",
        "_more",
        "_owner",
        "_size",
        "_strict",
        "_table",
        "_total",
        "_ttl",
        "addr",
        "flags",
        "len",
        "memory",
        "next",
        "writable_bytes",
    )

    memory: Memory
    _strict: bool
    _indirect_allowed: bool

    def start(self, table: Region, size: int, head: int) -> None:
        """Stand before descriptor `head` of a table of `size`."""
        self._owner = table
        self._table = atomic.span_of(table)
        self._size = size
        self._index = head
        self._ttl = size  # a chain without a loop has at most so many descriptors
        self._budget = size  # and so many in all, indirect ones included [2.7.5.3.1]
        self._more = True
        self._indirect = False
        self._total = 0
        self.writable_bytes = 0
        self.flags = 0

    def step(self) -> bool:
        """Fetch the next descriptor; False at the end of the chain. Raises RuleError."""
        while True:
            if self._ttl == 0:
                if self._more and self._strict:
                    raise DescriptorLoop(f"the chain has more descriptors than its table of {self._size}")
                return False
            index = self._index
            if index >= self._size:
                raise InvalidDescriptorIndex(
                    f"descriptor index {index} in a table of {self._size}", index=index, limit=self._size
                )
            addr = atomic.get_u64(self._table, index * 16)
            rest = atomic.get_u64(self._table, index * 16 + 8)
            length = rest & _LENGTH
            flags = (rest >> 32) & 0xFFFF
            if flags & _INDIRECT:
                self._enter(addr, length, flags)
                continue
            if (self._total + length) >> 32:
                raise ChainTooLong(f"the chain describes more than {spec.MAX_CHAIN_BYTES} bytes")
            if self._strict:
                self._check(addr, length, flags)
            self._total += length
            self.addr = addr
            self.len = length
            self.flags = flags
            self.next = rest >> 48
            if flags & _NEXT:
                self._index = rest >> 48
                self._ttl -= 1
            else:
                self._ttl = 0
                self._more = False
            return True

    def _enter(self, addr: int, length: int, flags: int) -> None:
        """Go on in the indirect table that a descriptor refers to [2.7.5.3]."""
        if self._indirect:
            raise InvalidIndirectDescriptor("an indirect table refers to another one")
        if length & 15 or length >> 20:
            raise InvalidIndirectDescriptorTable(
                f"an indirect table of {length} bytes: it must be a multiple of 16 and at most 65535 entries"
            )
        if self._strict:
            if not self._indirect_allowed:
                raise InvalidIndirectDescriptor("an indirect table, but VIRTIO_F_INDIRECT_DESC was not negotiated")
            if flags & _NEXT:
                raise InvalidIndirectDescriptor("INDIRECT and NEXT are set together")
            if length == 0:
                raise InvalidIndirectDescriptorTable("an indirect table of 0 bytes")
            self.memory.check(addr, length)
        self._owner = self.memory.window(addr, length, 8)
        self._table = atomic.span_of(self._owner)
        self._size = length >> 4
        self._index = 0
        self._ttl = self._size
        self._indirect = True

    def _check(self, addr: int, length: int, flags: int) -> None:
        """The strict rules for one descriptor that was fetched."""
        if self._budget == 0:
            raise DescriptorLoop("the chain has more descriptors than the queue")
        self._budget -= 1
        if flags & _WRITE:
            self.writable_bytes += length
        elif self.flags & _WRITE:
            raise InvalidChain("a device-readable descriptor stands behind a device-writable one")
        if length and not (self._low <= addr < self._high and length <= self._high - addr):
            self._look_up(addr, length)

    def _look_up(self, addr: int, length: int) -> None:
        self._low, self._high = self.memory.bounds(addr, length)

    def descriptor(self) -> Descriptor:
        """The descriptor last fetched."""
        descriptor = Descriptor.__new__(Descriptor)
        descriptor.addr = self.addr
        descriptor.len = self.len
        descriptor.flags = self.flags
        descriptor.next = self.next
        return descriptor

    def copy(self) -> Walk:
        """A second cursor at the same place."""
        twin = new_walk(self.memory, self._strict, self._indirect_allowed)
        twin.start(self._owner, self._size, self._index)
        twin._ttl = self._ttl
        twin._budget = self._budget
        twin._more = self._more
        twin._indirect = self._indirect
        twin._total = self._total
        twin.writable_bytes = self.writable_bytes
        twin.flags = self.flags
        return twin

    def __iter__(self) -> Walk:
        return self

    def __next__(self) -> Descriptor:
        try:
            more = self.step()
        except RuleError:
            if self._strict:
                raise
            more = False
        if not more:
            raise StopIteration
        return self.descriptor()


def new_walk(memory: Memory, strict: bool, indirect_allowed: bool) -> Walk:
    """A cursor in one policy, to be started. By `__new__`: compiled, a constructor call costs ten times as much."""
    walk = Walk.__new__(Walk)
    walk.memory = memory
    walk._strict = strict
    walk._indirect_allowed = indirect_allowed
    walk._low = walk._high = 0  # bounds of the guest region last seen: most chains stay in one
    return walk


def new_chain(walk: Walk, head_index: int, queue: DeviceQueue) -> DescriptorChain:
    """The chain that a started cursor stands before. In strict policy the cursor is free again afterwards.

    Raises, in strict policy, the RuleError that the chain breaks.
    """
    chain = DescriptorChain.__new__(DescriptorChain)
    chain.memory = walk.memory
    chain.head_index = head_index
    chain.queue = queue
    chain.replayed = False
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
        "head_index",
        "memory",
        "queue",
        "readable_bytes",
        "replayed",
        "writable_bytes",
    )

    memory: Memory
    head_index: int
    queue: DeviceQueue  # it came from, and must be returned to
    readable_bytes: int  # this and the next in strict policy; else 0
    writable_bytes: int
    replayed: bool  # a device that died had taken it, and may have handled it
    _walk: Walk | None
    _descriptors: list[Descriptor] | None

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
