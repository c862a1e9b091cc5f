"""Configuration space: a few bytes that the device writes and the driver reads whole, by a generation counter [2.5].

The counter is odd while the device writes and even otherwise; each update moves it on by two.

    device                                    driver
    generation = odd    then fence            before = generation        (acquire)
    write the bytes                           read the bytes, fence
    generation = even   (release)             after = generation; equal and even: the bytes are of one version

Multi-byte fields are little-endian. A driver that wants to change a field asks the device over the control channel.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from vqshm.errors import DeadlineExceeded, RuleError
from vqshm.memory import atomic

if TYPE_CHECKING:
    from vqshm.memory.atomic import Region

_TRIES: Final = 400  # about a quarter of a second before a device that died in the middle of an update is named
_PATIENT_AFTER: Final = 150  # tries; by then the device is not writing but waiting for a processor, or dead
_PAUSE: Final = 0.001  # seconds
_MAX_GENERATION: Final = 0xFFFF_FFFF


class ConfigSpace:
    """The configuration space of one device: `size` bytes from `start` of a region, its counter elsewhere in it."""

    def __init__(self, region: Region, start: int, size: int, generation_offset: int) -> None:
        """`generation_offset`: where in the region the 32-bit counter lies, aligned to 4."""
        self.size = size
        self._region = region
        self._start = start
        self._generation = generation_offset

    @property
    def generation(self) -> int:
        """The counter: it differs where two reads may have seen different versions; odd during an update."""
        return atomic.load_u32(self._region, self._generation)

    def update(self, offset: int, data: bytes) -> None:
        """Device side, one writer at a time: change bytes. Raises RuleError outside the space."""
        self._check(offset, len(data))
        # Odd already: a device died in the middle of an update, and this one is its successor.
        writing = self.generation | 1
        atomic.store_u32(self._region, self._generation, writing)
        atomic.fence()
        self._region.write(self._start + offset, data)
        atomic.store_u32(self._region, self._generation, (writing + 1) & _MAX_GENERATION)

    def read(self, offset: int, count: int) -> bytes:
        """Driver side: `count` bytes, all of one version.

        Raises: RuleError outside the space; DeadlineExceeded if the device keeps changing them, or died doing so.
        """
        self._check(offset, count)
        for attempt in range(_TRIES):
            before = self.generation
            if not before & 1:
                data = self._region.read(self._start + offset, count)
                atomic.fence()
                if self.generation == before:
                    return data
            if attempt < _PATIENT_AFTER:
                os.sched_yield()
            else:
                time.sleep(_PAUSE)
        raise DeadlineExceeded(
            f"the configuration space did not hold still for {_TRIES} reads, generation {self.generation}: "
            "the device does not finish its update",
            tries=_TRIES,
        )

    def u8(self, offset: int) -> int:
        """8 bits."""
        return self._integer(offset, 1)

    def u16(self, offset: int) -> int:
        """16 bits."""
        return self._integer(offset, 2)

    def u32(self, offset: int) -> int:
        """32 bits."""
        return self._integer(offset, 4)

    def u64(self, offset: int) -> int:
        """64 bits."""
        return self._integer(offset, 8)

    def _integer(self, offset: int, count: int) -> int:
        return int.from_bytes(self.read(offset, count), "little")

    def _check(self, offset: int, count: int) -> None:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise RuleError(
                f"{count} bytes at offset {offset} are not in a configuration space of {self.size} bytes",
                offset=offset,
                count=count,
                size=self.size,
            )
