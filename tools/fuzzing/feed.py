"""Feed: bytes from anywhere as a row of decisions; and a small guest memory that a hostile hand writes into.

A decision costs one byte where it can, so that whoever changes a byte changes a decision. Behind the end all are 0.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Any, TypeVar

from vqshm.errors import PeerViolation, VqshmError
from vqshm.memory import GuestMemory
from vqshm.ring import SplitLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

NEXT, WRITE, INDIRECT = 1, 2, 4
BASE = 0x1_0000  # the rings, 16 descriptors at most
TABLES = BASE + 0x400  # for indirect tables
BUFFERS = BASE + 0x800
BYTES = 0x1000  # of the first region; a second one touches it, a third one lies apart
TOP = 2**64 - 1
REGIONS = ((BASE, BYTES), (BASE + BYTES, 0x100), (BASE + 0x4000, 0x100))
EDGES = tuple(start + side for start, size in REGIONS for side in (0, size))


class Feed:
    """Takes decisions from the front of `data`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether there is anything left."""
        return self._at < len(self._data)

    def number(self, size: int) -> int:
        """Any number of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def upto(self, most: int) -> int:
        """A number of 0 to `most` (255 at most)."""
        return self.number(1) % (most + 1)

    def pick(self, choices: Sequence[T]) -> T:
        """One of at most 256."""
        return choices[self.upto(len(choices) - 1)]

    def take(self, count: int) -> bytes:
        """The next bytes."""
        found = self._data[self._at : self._at + count]
        self._at += count
        return found.ljust(count, b"\0")

    def rest(self) -> bytes:
        """All that is left."""
        found = self._data[self._at :]
        self._at = len(self._data)
        return found


class Hand:
    """Guest memory with a queue of `size` in it, and a hand that writes what the feed says."""

    def __init__(self, feed: Feed, size: int, start: int = 0) -> None:
        self.feed = feed
        self.size = size
        self.layout = SplitLayout.at(BASE, size)
        self.buffers = [(at, bytearray(count)) for at, count in REGIONS]
        self.memory = GuestMemory(self.buffers)
        self.poke_idx("avail_ring", start)
        self.poke_idx("used_ring", start)

    def poke(self, address: int, data: bytes) -> None:
        """Write into the first region, as far as it goes."""
        buffer = self.buffers[0][1]
        at = address - BASE
        data = data[: max(0, len(buffer) - at)]
        buffer[at : at + len(data)] = data

    def peek(self, address: int, count: int) -> bytes:
        return bytes(self.buffers[0][1][address - BASE : address - BASE + count])

    def poke_idx(self, ring: str, value: int) -> None:
        self.poke(getattr(self.layout, ring) + 2, struct.pack("<H", value & 0xFFFF))

    def idx(self, ring: str) -> int:
        return int.from_bytes(self.peek(getattr(self.layout, ring) + 2, 2), "little")

    def poke_anywhere(self) -> None:
        """Any bytes at any place of the rings and tables."""
        at = BASE + self.feed.number(2) % 0x800
        self.poke(at, self.feed.take(self.feed.pick((1, 2, 4, 8, 16))))

    def describe(self) -> None:
        """Write a descriptor, nearly right, into the table or the room of indirect ones."""
        feed = self.feed
        in_table = feed.upto(3) > 0
        limit = self.size if in_table else 16
        at = (self.layout.desc_table if in_table else TABLES) + 16 * feed.upto(limit - 1)
        addr = BUFFERS + 8 * feed.upto(127)
        length = feed.pick((8, 1, 64, 0, 16, 256))
        flags = feed.pick((0, NEXT, WRITE, NEXT | WRITE))
        following = feed.upto(limit - 1)
        odd = feed.number(1)
        if odd & 0xC0 == 0xC0:
            flags, addr, length = INDIRECT, TABLES + 16 * feed.upto(8), 16 * feed.upto(17)
        if odd & 0x03 == 0x03:
            addr = (feed.pick((*EDGES, TOP, TOP - 7, 0, feed.number(8))) - feed.pick((0, 1, 8, 15))) & TOP
        if odd & 0x0C == 0x0C:
            length = feed.pick((0xFFFF_FFFF, 15, 17, 0x10_0000, 0xFFFF0, 0x100, feed.number(4)))
        if odd & 0x30 == 0x30:
            flags = feed.pick((flags | 0x8000, flags ^ INDIRECT, flags ^ NEXT, flags ^ WRITE, feed.number(2)))
            following = feed.pick((limit, 0xFFFF, feed.number(2)))
        self.poke(at, struct.pack("<QIHH", addr, length, flags, following))

    def offer(self) -> None:
        """Put a head into the available ring, and publish it."""
        head = self.feed.pick((*range(self.size), self.size, 0xFFFF))
        idx = self.idx("avail_ring")
        self.poke(self.layout.avail_ring + 4 + 2 * (idx % self.size), struct.pack("<H", head))
        self.poke_idx("avail_ring", idx + 1)

    def give_back(self, heads: Sequence[int]) -> None:
        """Put an element into the used ring, and publish it."""
        feed = self.feed
        head = feed.pick((*heads, *heads, 0, self.size - 1, self.size, 0xFFFF_FFFF))
        written = feed.pick((0, 0, 1, 8, 64, 65, 0xFFFF_FFFF))
        idx = self.idx("used_ring")
        self.poke(self.layout.used_ring + 4 + 8 * (idx % self.size), struct.pack("<II", head, written))
        self.poke_idx("used_ring", idx + 1)

    def jump(self, ring: str) -> None:
        """Write some idx."""
        idx = self.idx(ring)
        self.poke_idx(ring, self.feed.pick((idx + 1, idx - 1, idx + self.size, idx + self.size + 1, idx + 0x8000)))

    def wish(self) -> None:
        """Write flags or an event field of either ring."""
        offset = self.feed.pick((0, 4 + 2 * self.size))
        ring = self.layout.avail_ring
        if self.feed.upto(1):
            offset, ring = self.feed.pick((0, 4 + 8 * self.size)), self.layout.used_ring
        self.poke(ring + offset, self.feed.take(2))

    def meddle(self, ring: str) -> None:
        """Write something that is rarely right: into a ring, its idx, its wishes or the table."""
        what = self.feed.upto(3)
        if what == 0:
            self.poke_anywhere()
        elif what == 1:
            self.wish()
        elif what == 2:
            self.jump(ring)
        else:
            self.describe()

    def digest(self) -> str:
        """Of all memory."""
        found = hashlib.blake2b(digest_size=8)
        for _, buffer in self.buffers:
            found.update(buffer)
        return found.hexdigest()


class Script:
    """The lines of what happened."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def attempt(self, name: str, step: Callable[[], Any]) -> Any:
        """Do a step: its result, or the error it ended with, which must have a name of ours."""
        try:
            result = step()
        except VqshmError as error:
            self.lines.append(f"{name}: {type(error).__name__}: {error}")
            return error
        except (ValueError, TypeError) as error:  # what we asked for ourselves was nonsense
            self.lines.append(f"{name}: {type(error).__name__}")
            return error
        self.lines.append(f"{name}: {_shown(result)}")
        return result


def _shown(result: Any) -> str:
    if isinstance(result, str | int | bool | tuple | None):
        return str(result)
    if isinstance(result, bytes):
        return result.hex() if len(result) <= 64 else hashlib.blake2b(result, digest_size=8).hexdigest()
    if isinstance(result, list):
        return str([_shown(item) for item in result])
    return type(result).__name__


def check_broken(queue: Any, outcome: Any) -> None:
    """Whoever saw the other side break a rule has stopped, and for that reason."""
    if isinstance(outcome, PeerViolation):
        assert str(queue.broken) == str(outcome), "a violation that breaks nothing"
