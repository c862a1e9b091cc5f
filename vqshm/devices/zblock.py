"""zblock: compresses one block of data with zlib; both sides of its little protocol.

    readable   le64 sequence, le32 length, le32 flags        the header
               u8 data[length]
    writable   le32 status, le32 crc32, le32 compressed      the record; crc32 is that of the plain data
               u8 result[compressed]                         a zlib stream

    flags      bits 0-3   compression level 1..9, or 0 for the device's own; every other bit is 0
    config     le32 max_length, le32 level                   longest block it takes, its own level

A status other than OK comes with the record alone; with NO_ROOM, `compressed` says how many bytes the result would have
had. The device keeps nothing from one block to the next: `sequence` is the driver's, for traces.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vqshm import spec
from vqshm.errors import PeerViolation, RuleError, ShortBuffer

if TYPE_CHECKING:
    from vqshm.ring.chain import DescriptorChain, Reader, Writer

HEADER: Final = struct.Struct("<QII")  # sequence, length, flags
RECORD: Final = struct.Struct("<III")  # status, crc32, compressed
CONFIG: Final = struct.Struct("<II")  # max_length, level

LEVEL_MASK: Final = 0xF
MAX_LEVEL: Final = 9
MAX_LENGTH: Final = 16 << 20


class Status(IntEnum):
    """What the device says about one block."""

    OK = 0
    BAD_HEADER = 1  # fewer bytes than a header has
    BAD_LENGTH = 2  # length is not the number of data bytes, or above max_length
    UNKNOWN_FLAGS = 3  # a reserved bit is set, or the level is above 9
    NO_ROOM = 4  # the result does not fit behind the record


# -- driver side -------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """What the device answered for one block; `data` is the zlib stream, a view of the reply."""

    status: Status
    crc32: int
    compressed: int
    data: memoryview

    def plain(self, length: int) -> bytes:
        """The block again, which had `length` bytes. Raises PeerViolation unless the stream holds exactly that."""
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(self.data, length + 1)  # never more, whatever the stream claims
        except zlib.error as error:
            raise PeerViolation(f"zblock: the result is not a zlib stream: {error}") from None
        if len(data) != length or not unpacker.eof or unpacker.unused_data or zlib.crc32(data) != self.crc32:
            raise PeerViolation(f"zblock: the result is not the block of {length} bytes with CRC {self.crc32:#010x}")
        return data


def pack_header(sequence: int, length: int, level: int = 0) -> bytes:
    """The header to put in front of a block of `length` bytes. Raises ValueError for a level above 9."""
    if not 0 <= level <= MAX_LEVEL:
        raise ValueError(f"compression level {level} is not 0 (the device's own) or 1..{MAX_LEVEL}")
    return HEADER.pack(sequence, length, level)


def reply_size(length: int) -> int:
    """Writable bytes that hold the record and the result of any block of `length` bytes: zlib's worst case."""
    return RECORD.size + length + (length >> 12) + (length >> 14) + (length >> 25) + 13


def unpack_reply(reply: Any) -> Result:
    """The answer, from the bytes the device wrote. Raises PeerViolation if they are no answer."""
    view = memoryview(reply).cast("B")
    if view.nbytes < RECORD.size:
        raise PeerViolation(f"zblock: an answer of {view.nbytes} bytes; its record alone has {RECORD.size}")
    number, crc32, compressed = RECORD.unpack_from(view)
    try:
        status = Status(number)
    except ValueError:
        raise PeerViolation(f"zblock: status {number} is not one of {[int(s) for s in Status]}") from None
    data = view[RECORD.size :]
    if status is Status.OK and data.nbytes != compressed:
        raise PeerViolation(f"zblock: a result of {data.nbytes} bytes, the record says {compressed}")
    return Result(status, crc32, compressed, data)


# -- device side -------------------------------------------------------------------------------------------------------


class ZBlock:
    """A handler that compresses one block per chain.

    `level`: 1 (fast) .. 9 (small), for blocks that ask for no level. `max_length`: longest block, bytes.
    """

    device_id = spec.VQSHM_ID_ZBLOCK
    features = 0

    def __init__(self, level: int = 1, max_length: int = MAX_LENGTH) -> None:
        if not 1 <= level <= MAX_LEVEL:
            raise ValueError(f"compression level {level} is not in 1..{MAX_LEVEL}")
        self.level = level
        self.max_length = max_length
        self.config = CONFIG.pack(max_length, level)
        self.unanswered = 0  # chains without room for a record, or with buffers that are not in guest memory

    def handle(self, chain: DescriptorChain) -> int:
        """Bytes written: the record and, if the status is OK, the result."""
        try:
            source, record = chain.reader(), chain.writer()
        except RuleError:
            self.unanswered += 1
            return 0
        if record.available_bytes < RECORD.size:
            self.unanswered += 1
            return 0
        result = record.split_at(RECORD.size)
        status, crc32, compressed = self._compress(source, result)
        record.write(RECORD.pack(status, crc32, compressed))
        return RECORD.size + (compressed if status is Status.OK else 0)

    def _compress(self, source: Reader, result: Writer) -> tuple[Status, int, int]:
        """Status, CRC-32 of the plain data and bytes of the result, which is written as far as it fits."""
        try:
            _, length, flags = HEADER.unpack(source.read_exact(HEADER.size))
        except ShortBuffer:
            return Status.BAD_HEADER, 0, 0
        if flags > MAX_LEVEL:
            return Status.UNKNOWN_FLAGS, 0, 0
        if length > self.max_length or length != source.available_bytes:
            return Status.BAD_LENGTH, 0, 0
        packer = zlib.compressobj(flags & LEVEL_MASK or self.level)
        crc32 = compressed = 0
        for view in source.views():
            crc32 = zlib.crc32(view, crc32)
            compressed += _store(result, packer.compress(view))
        compressed += _store(result, packer.flush())
        return (Status.OK if compressed == result.bytes_written else Status.NO_ROOM), crc32, compressed


def _store(result: Writer, piece: bytes) -> int:
    """Write what fits; the bytes there were."""
    result.write(piece)
    return len(piece)
