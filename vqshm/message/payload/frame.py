"""Frame: how an object that is no msgpack lies in a message: a header, what describes the body, and the body.

     0  u8    0xC1, with which no msgpack begins
     1  u8    kind: 1 bytes, 2 array, 3 table, 4 batch of a table
     2  u16   where the body starts: a multiple of 64, so that it can be used where it lies
     4  u32   bytes of the description
     8  u64   bytes of the body, which goes on to the end of the message
    16        the description (of an array: its dtype and shape), then zeros up to the body           little-endian

Who reads a message distrusts it: what the header says must add up, and is read once.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vqshm.errors import ProtocolError

MARK: Final = 0xC1
ALIGN: Final = 64  # bytes: a cache line, and what vector instructions and Arrow like best
BYTES: Final = 1
ARRAY: Final = 2
TABLE: Final = 3
BATCH: Final = 4
_HEADER: Final = struct.Struct("<BBHIQ")
_KINDS: Final = (BYTES, ARRAY, TABLE, BATCH)
_LAST_START: Final = 0xFFFF // ALIGN * ALIGN


@dataclass(frozen=True, slots=True)
class Body:
    """A message that is written where it will lie: `count` bytes, by `write`, which keeps nothing of the view."""

    count: int
    write: Callable[[memoryview], None]


@functools.lru_cache(maxsize=256)  # messages have few sizes
def header(kind: int, count: int, description: bytes = b"") -> bytes:
    """What stands before a body of `count` bytes. Raises ValueError for a description of more than 64 KiB."""
    start = -(-(_HEADER.size + len(description)) // ALIGN) * ALIGN
    if start > _LAST_START:
        raise ValueError(f"{len(description)} bytes only to describe it: at most {_LAST_START - _HEADER.size}")
    return (_HEADER.pack(MARK, kind, start, len(description), count) + description).ljust(start, b"\0")


def parse(message: memoryview) -> tuple[int, int, bytes]:
    """(kind, where the body starts, description) of a message that begins with MARK. Raises ProtocolError."""
    size = len(message)
    if size < ALIGN:
        raise ProtocolError(f"a message of {size} bytes says it is a frame, whose header alone has {ALIGN}")
    _, kind, start, described, count = _HEADER.unpack(message[: _HEADER.size].tobytes())
    if kind not in _KINDS:
        raise ProtocolError(f"a message of the unknown kind {kind}")
    if start % ALIGN or not _HEADER.size + described <= start <= size:
        raise ProtocolError(
            f"a message of {size} bytes whose body starts at {start}, behind a description of {described} bytes"
        )
    if count != size - start:
        raise ProtocolError(f"a message with a body of {size - start} bytes says it has {count}")
    return kind, start, message[_HEADER.size : _HEADER.size + described].tobytes()
