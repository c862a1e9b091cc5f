"""The two records of a split virtqueue, and the packed ring's descriptor, as plain values [2.7.5, 2.7.8, 2.8.13]."""

from __future__ import annotations

import struct
from typing import NamedTuple

from vqshm import spec

_WIRE = struct.Struct("<QIHH")
_USED = struct.Struct("<II")


class Descriptor:
    """One buffer: guest address, bytes, flags, and the index of the next one if NEXT is set [2.7.5].

    A private copy: what the peer writes to the table later does not change it.
    """

    __slots__ = ("addr", "flags", "len", "next")

    def __init__(self, addr: int, len: int, flags: int = 0, next: int = 0) -> None:  # noqa: A002 - the spec's own names
        if addr >> 64 or len >> 32 or flags >> 16 or next >> 16:
            raise ValueError(f"addr {addr}, len {len}, flags {flags}, next {next}: 64, 32, 16 and 16 bits fit")
        self.addr = addr
        self.len = len
        self.flags = flags
        self.next = next

    @property
    def is_write_only(self) -> bool:
        """Device-writable; otherwise device-readable."""
        return bool(self.flags & spec.VIRTQ_DESC_F_WRITE)

    @property
    def has_next(self) -> bool:
        """The chain goes on at `next`."""
        return bool(self.flags & spec.VIRTQ_DESC_F_NEXT)

    @property
    def refers_to_indirect_table(self) -> bool:
        """The buffer is a table of descriptors [2.7.5.3]."""
        return bool(self.flags & spec.VIRTQ_DESC_F_INDIRECT)

    @classmethod
    def from_bytes(cls, data: bytes) -> Descriptor:
        """Decode the 16 bytes of a table entry. Raises ValueError for another length."""
        if len(data) != spec.DESC_SIZE:
            raise ValueError(f"a descriptor has {spec.DESC_SIZE} bytes, not {len(data)}")
        return cls(*_WIRE.unpack(data))

    def to_bytes(self) -> bytes:
        """The 16 bytes of a table entry."""
        return _WIRE.pack(self.addr, self.len, self.flags, self.next)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Descriptor):
            return NotImplemented
        return self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash((self.addr, self.len, self.flags, self.next))

    def __repr__(self) -> str:
        names = ((1, "NEXT"), (2, "WRITE"), (4, "INDIRECT"))
        flags = "|".join(name for bit, name in names if self.flags & bit) or "0"
        rest = f", next={self.next}" if self.flags & 1 else ""
        return f"Descriptor(addr={self.addr:#x}, len={self.len}, flags={flags}{rest})"


class PackedDescriptor(NamedTuple):
    """A descriptor of the packed ring: decoded here, used by a later ring format [2.8.13]."""

    addr: int
    len: int
    id: int
    flags: int

    @classmethod
    def from_bytes(cls, data: bytes) -> PackedDescriptor:
        """Decode 16 bytes. Raises ValueError for another length."""
        if len(data) != spec.DESC_SIZE:
            raise ValueError(f"a descriptor has {spec.DESC_SIZE} bytes, not {len(data)}")
        return cls(*_WIRE.unpack(data))

    @property
    def is_write_only(self) -> bool:
        """Device-writable; otherwise device-readable."""
        return bool(self.flags & spec.VIRTQ_DESC_F_WRITE)

    @property
    def has_next(self) -> bool:
        """The chain goes on in the next slot."""
        return bool(self.flags & spec.VIRTQ_DESC_F_NEXT)

    @property
    def refers_to_indirect_table(self) -> bool:
        """The buffer is a table of descriptors."""
        return bool(self.flags & spec.VIRTQ_DESC_F_INDIRECT)


class VirtqUsedElem(NamedTuple):
    """A used element: `id` of the chain's head and `len`, the bytes the device wrote [2.7.8]."""

    id: int
    len: int

    @classmethod
    def from_bytes(cls, data: bytes) -> VirtqUsedElem:
        """Decode 8 bytes. Raises ValueError for another length."""
        if len(data) != spec.USED_ELEMENT_SIZE:
            raise ValueError(f"a used element has {spec.USED_ELEMENT_SIZE} bytes, not {len(data)}")
        return cls(*_USED.unpack(data))

    def to_bytes(self) -> bytes:
        """The 8 bytes of a used ring entry."""
        return _USED.pack(*self)
