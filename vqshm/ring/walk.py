"""The walk: a cursor that follows a descriptor chain through the table, and judges each step [2.7.5].

The table belongs to the driver, who may rewrite it at any moment. So each field is fetched once, into a private copy,
and only the copy is checked and used. Two policies for a chain that breaks a rule:

    strict  a broken rule is a named error
    seed    the walk just ends, exactly as in `virtio-queue`, the Rust crate

Strict checks: indices, loops, indirect tables (length, nesting, NEXT beside INDIRECT), total length, readable before
writable, no address that wraps, every buffer in guest memory, no more descriptors than the queue has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqshm import spec
from vqshm.errors import (
    ChainTooLong,
    DescriptorLoop,
    InvalidChain,
    InvalidDescriptorIndex,
    InvalidIndirectDescriptor,
    InvalidIndirectDescriptorTable,
    RuleError,
)
from vqshm.memory import atomic
from vqshm.ring.descriptor import Descriptor

if TYPE_CHECKING:
    from vqshm.memory.atomic import Region
    from vqshm.memory.guest import GuestMemory as Memory

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
