"""Stream: sends a file through a zblock device and checks all that comes back; many blocks are in flight at a time.

    with Driver.attach("demo", "zblock0") as driver, open("movie.mkv", "rb") as file:
        print(stream_file(driver, file).sha256)

Each block is a chain of four buffers, two for the device to read and two for it to write:

    header ── data ── status record ── result           (vqshm.devices.zblock has the layout)

Blocks go to the queues in turn. The ring is the back-pressure: blocks are submitted until a queue or its buffers are
full, then answers are awaited. A device may return them in any order [2.7.8]; here they are put back in the file's.
Of the file no more is held than is in flight.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final

from vqshm.devices import zblock
from vqshm.errors import DeadlineExceeded, OutOfBuffers, PeerViolation, QueueFull
from vqshm.ring.layout import desc_table_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqshm.host import Driver, Request

DESCRIPTORS: Final = 4  # of a chain: header, data, record, result
MAX_BLOCK: Final = zblock.MAX_LENGTH
PATIENCE: Final = 30  # seconds without an answer, after which the device counts as stalled

_CACHE_LINE: Final = 64  # the driver's buffers start on cache lines
_BUFFERS: Final = 16 << 20  # bytes for the buffers of a queue; more in flight gains nothing
_TABLE_BYTES: Final = 16 * 16  # of an indirect table; the driver keeps one for each descriptor


def buffer_bytes(block_size: int, queue_size: int, *, indirect: bool = False) -> int:
    """Bytes of shared memory that a queue needs to keep as many blocks in flight as make sense, two at least."""
    sizes = (zblock.HEADER.size, block_size, zblock.RECORD.size, _result_size(block_size))
    chain = sum(-(-size // _CACHE_LINE) * _CACHE_LINE for size in sizes)
    most = queue_size if indirect else queue_size // DESCRIPTORS
    chains = max(min(most, _BUFFERS // chain), 2)
    tables = _TABLE_BYTES * queue_size if indirect else 0
    return max(chains * chain + tables, 2 * tables) + desc_table_bytes(4)


class RoundTrips:
    """Durations, counted in classes 2 % wide: a long run needs no more memory than a short one."""

    _PER_OCTAVE: Final = 32

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one."""
        self._classes[round(math.log2(max(seconds, 1e-9)) * self._PER_OCTAVE)] += 1

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of them took at most; 0 if there are none."""
        left = self._classes.total() * percent / 100
        for number, count in sorted(self._classes.items()):
            left -= count
            if left <= 0:
                return float(2 ** (number / self._PER_OCTAVE))
        return 0.0


@dataclass(slots=True)
class Streamed:
    """What came back. `sha256` is that of the file's bytes and of the bytes that came back: they are the same."""

    bytes: int = 0
    chains: int = 0
    compressed: int = 0  # bytes of all results
    seconds: float = 0.0
    sha256: str = ""
    most_in_flight: int = 0  # chains
    overtaken: int = 0  # blocks that came back after a later one
    round_trips: RoundTrips = field(default_factory=RoundTrips)  # from submit to reap


def stream_file(
    driver: Driver,
    file: IO[bytes],
    block_size: int = 64 << 10,
    *,
    level: int = 0,
    progress: Callable[[int], None] | None = None,
    patience: int = PATIENCE,
) -> Streamed:
    """Send `file`, from where it stands to its end, through the zblock device of `driver`, and check what comes back.

    `block_size`: bytes, 1..MAX_BLOCK. `level`: of zlib, 0 for the device's own. `progress` is told, after each block,
    how many bytes have come back in order. `patience`: seconds without any answer before DeadlineExceeded.

    Raises PeerViolation where a block or the whole came back changed, and what `Driver.submit` and `completed` raise.
    """
    if not 1 <= block_size <= MAX_BLOCK:
        raise ValueError(f"a block has 1 to {MAX_BLOCK} bytes, not {block_size}")
    return _Stream(driver, file, block_size, level, progress, patience).run()


class _Stream:
    """One file on its way."""

    def __init__(
        self,
        driver: Driver,
        file: IO[bytes],
        block_size: int,
        level: int,
        progress: Callable[[int], None] | None,
        patience: int,
    ) -> None:
        self._driver = driver
        self._file = file
        self._block_size = block_size
        self._level = level
        self._progress = progress
        self._patience = patience
        self._next = b""  # read, not submitted yet
        self._sequence = 0  # of the block to submit next
        self._early: dict[int, bytes] = {}  # came back before one that precedes it: by sequence number
        self._read, self._back = hashlib.sha256(), hashlib.sha256()
        self._turned = 0  # blocks put in order
        self._latest = 0  # block that came back
        self._result = Streamed()

    def run(self) -> Streamed:
        start = time.perf_counter()
        self._read_block()
        while self._next or self._driver.in_flight:
            self._submit()
            for request in self._answers():
                with request:
                    self._take(request)
        self._result.seconds = time.perf_counter() - start
        self._result.sha256 = self._read.hexdigest()
        if self._back.digest() != self._read.digest():
            raise PeerViolation(
                f"what came back is not the file: SHA-256 {self._back.hexdigest()} instead of {self._result.sha256}"
            )
        return self._result

    def _read_block(self) -> None:
        self._next = self._file.read(self._block_size)
        self._read.update(self._next)

    def _submit(self) -> None:
        """Offer blocks until there are no more, or no room. Raises QueueFull, OutOfBuffers if not one fits."""
        queues = len(self._driver.ports)
        grown = set()  # queues that got something new: a kick for each is enough for all of it
        try:
            while self._next:
                length, queue = len(self._next), self._sequence % queues
                header = zblock.pack_header(self._sequence, length, self._level)
                room = [zblock.RECORD.size, _result_size(length)]
                self._driver.submit([header, self._next], room, queue=queue, tag=(self._sequence, length))
                grown.add(queue)
                self._sequence += 1
                self._read_block()
        except (QueueFull, OutOfBuffers):
            if not self._driver.in_flight:
                raise
        self._result.most_in_flight = max(self._result.most_in_flight, self._driver.in_flight)
        for queue in grown:
            self._driver.kick(queue)

    def _answers(self) -> Iterator[Request]:
        """The answers that are there, or the next. Raises DeadlineExceeded when patience ends."""
        for second in range(self._patience):
            try:
                # In slices: while a terminal has suspended us all (Ctrl-Z), the clock goes on, and that is nobody's
                # fault.
                yield from self._driver.completed(timeout=1.0)
            except DeadlineExceeded:
                if second + 1 == self._patience:
                    raise
            else:
                return

    def _take(self, request: Request) -> None:
        """Check one answer, and put it in order."""
        self._result.round_trips.add(time.perf_counter() - request.offered_at)
        sequence, length = request.tag
        answer = zblock.unpack_reply(request.output())
        if answer.status is not zblock.Status.OK:
            raise PeerViolation(f"block {sequence} of {length} bytes: the device says {answer.status.name}")
        self._result.chains += 1
        self._result.compressed += answer.compressed
        self._result.overtaken += sequence < self._latest
        self._latest = max(self._latest, sequence)
        self._early[sequence] = answer.plain(length)
        while self._turned in self._early:
            block = self._early.pop(self._turned)
            self._back.update(block)
            self._turned += 1
            self._result.bytes += len(block)
        if self._progress is not None:
            self._progress(self._result.bytes)


def _result_size(length: int) -> int:
    """Writable bytes that hold the result of any block of `length` bytes."""
    return zblock.reply_size(length) - zblock.RECORD.size
