"""Messages: what is sent, so that the receiver can tell every single one from every other.

    stamp      8 bytes: place in the pool, producer
    message    stamp, random bytes, stamp
    end        stamp with place END, total that was sent (u64), padding

A producer sends its pool again and again. A receiver has the same pool and compares: all bytes of each message up to
4 KiB, both stamps of larger ones and now and then all bytes; in the end the total.
"""

from __future__ import annotations

import random
import struct
from typing import Any, Final

END: Final = 0xFFFFFFFF
SMALL: Final = 4096  # bytes; a message up to this size is compared in full
BATCH: Final = 32  # messages in a call, in mode batch
QUEUED_BYTES: Final = 16 << 20  # as much may wait in a transport, at most 1024 messages and at least 16

STAMP: Final = struct.Struct("<II")
TOTAL: Final = struct.Struct("<Q")
HEAD: Final = struct.Struct("<Q")  # a stamp as one number, for a look into a memoryview


class Corrupt(Exception):
    """What arrived is not what was sent."""


def depth_for(size: int) -> int:
    """How many messages of `size` bytes may wait in a transport that lets its user say so."""
    return max(16, min(1024, QUEUED_BYTES // size))


def pool(size: int, producer: int = 0) -> list[bytes]:
    """The messages of a producer, in the order in which they are sent."""
    dice = random.Random(31 * size + producer)  # noqa: S311 - a pattern
    stamps = [STAMP.pack(place, producer) for place in range(64 if size <= SMALL else 8 if size <= 1 << 16 else 4)]
    return [stamp + dice.randbytes(size - 16) + stamp for stamp in stamps]


def batches(messages: list[bytes]) -> list[list[bytes]]:
    """The same messages in the same order, in lists of BATCH; together they are a whole number of pools."""
    twice = messages * max(1, 2 * BATCH // len(messages))
    return [twice[start : start + BATCH] for start in range(0, len(twice), BATCH)]


def end(size: int, total: int, producer: int = 0) -> bytes:
    """The message behind the last one."""
    return (STAMP.pack(END, producer) + TOTAL.pack(total)).ljust(size, b"\0")


def announced(message: Any, number: int) -> int:
    """The total that an end message tells. Raises Corrupt for any other: it is not message `number`, then."""
    head = bytes(message[:16])
    if len(head) < 16 or STAMP.unpack_from(head)[0] != END:
        raise Corrupt(f"message {number} holds {head[:8].hex()} and {len(message)} bytes, which was not sent now")
    total: int = TOTAL.unpack_from(head, 8)[0]
    return total


def is_end(message: Any) -> bool:
    """Whether it is an end message."""
    return bytes(message[:4]) == b"\xff\xff\xff\xff"


def matches(message: Any, want: bytes, *, full: bool) -> bool:
    """Whether a large message is the one wanted: by length and both stamps, or by all bytes."""
    if full:
        return bytes(message) == want
    return len(message) == len(want) and bytes(message[:8]) == want[:8] and bytes(message[-8:]) == want[-8:]


def objects() -> list[dict[str, Any]]:
    """Small dicts, as programs send them."""
    return [
        {
            "id": number,
            "name": f"sensor-{number % 7}",
            "ts": 1700000000.25 + number,
            "vals": [1.5 * number, 2.5, 3.5],
            "ok": True,
        }
        for number in range(64)
    ]
