"""Layouts of the block device: request header, segments, configuration space [5.2.4, 5.2.6].

    readable   le32 type, le32 reserved, le64 sector      header; then the data to write, or segments
    writable   the data that is read; then u8 status      the status is always the last writable byte
    segment    le64 sector, le32 num_sectors, le32 flags  flags: bit 0 unmap

Sectors have 512 bytes, whatever `blk_size` says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from vqshm import spec

SECTOR: Final = spec.VIRTIO_BLK_SECTOR_SIZE
HEADER: Final = struct.Struct("<IIQ")
SEGMENT: Final = struct.Struct("<QII")

# capacity size_max seg_max | geometry | blk_size | topology | writeback unused0 num_queues | 3 of discard,
# 2 of write zeroes | write_zeroes_may_unmap unused1[3]
_CONFIG: Final = struct.Struct("<QII HBB I BBHI BxH IIIII B3x")
CONFIG_SIZE: Final = _CONFIG.size  # 60: what follows belongs to secure erase and zones, which are not offered

CAPACITY_OFFSET: Final = 0
DISCARD_OFFSET: Final = 36  # max_discard_sectors, max_discard_seg, discard_sector_alignment
WRITE_ZEROES_OFFSET: Final = 48  # max_write_zeroes_sectors, max_write_zeroes_seg


class BlkConfig(NamedTuple):
    """The configuration space, field by field; 0 where the feature that a field belongs to is not offered [5.2.4]."""

    capacity: int = 0  # sectors
    size_max: int = 0  # bytes of a segment
    seg_max: int = 0  # segments of a request
    cylinders: int = 0
    heads: int = 0
    sectors: int = 0
    blk_size: int = 0  # bytes
    physical_block_exp: int = 0  # log2 of logical blocks in a physical one
    alignment_offset: int = 0  # logical blocks
    min_io_size: int = 0  # logical blocks
    opt_io_size: int = 0  # logical blocks
    writeback: int = 0
    num_queues: int = 0
    max_discard_sectors: int = 0
    max_discard_seg: int = 0
    discard_sector_alignment: int = 0  # sectors
    max_write_zeroes_sectors: int = 0
    max_write_zeroes_seg: int = 0
    write_zeroes_may_unmap: int = 0

    def pack(self) -> bytes:
        """The bytes of the configuration space."""
        return _CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> BlkConfig:
        """The fields; those behind the end of a shorter space are 0."""
        return cls(*_CONFIG.unpack(data[:CONFIG_SIZE].ljust(CONFIG_SIZE, b"\0")))


class Segment(NamedTuple):
    """One range of a discard or write zeroes request [5.2.6]."""

    sector: int
    num_sectors: int
    flags: int = 0


def pack_header(kind: int, sector: int = 0) -> bytes:
    """The header of a request of type `kind`."""
    return HEADER.pack(kind, 0, sector)


def pack_segments(segments: Iterable[Segment]) -> bytes:
    """The data of a discard or write zeroes request."""
    return b"".join(SEGMENT.pack(*segment) for segment in segments)


def unpack_segments(data: bytes) -> list[Segment]:
    """The segments; `data` holds a whole number of them."""
    return [Segment(*fields) for fields in SEGMENT.iter_unpack(data)]
