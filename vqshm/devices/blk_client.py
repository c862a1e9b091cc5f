"""The driver's side of the block device, over anything that can pass one request [5.2].

    disk = BlkClient(driver)
    disk.write(0, b"boot" * 128)
    disk.flush()
    assert disk.read(0, 1)[:4] == b"boot"

What the driver must not ask for [5.2.6.1] raises RuleError here, before anything is sent; what the device refuses
raises `BlkError`, an OSError with the fitting errno.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from vqshm import spec
from vqshm.devices.blk_layout import (
    CAPACITY_OFFSET,
    DISCARD_OFFSET,
    SECTOR,
    WRITE_ZEROES_OFFSET,
    Segment,
    pack_header,
    pack_segments,
)
from vqshm.errors import LocalError, PeerViolation, RuleError

TRANSFER: Final = 128 << 10  # bytes of one request, unless told otherwise
TIMEOUT: Final = 30.0  # seconds: a flush may take a while
_NAMES: Final = {
    spec.VIRTIO_BLK_T_IN: "IN",
    spec.VIRTIO_BLK_T_OUT: "OUT",
    spec.VIRTIO_BLK_T_FLUSH: "FLUSH",
    spec.VIRTIO_BLK_T_GET_ID: "GET_ID",
    spec.VIRTIO_BLK_T_DISCARD: "DISCARD",
    spec.VIRTIO_BLK_T_WRITE_ZEROES: "WRITE_ZEROES",
}
_ERRNO: Final = {spec.VIRTIO_BLK_S_IOERR: errno.EIO, spec.VIRTIO_BLK_S_UNSUPP: errno.EOPNOTSUPP}


class BlkError(LocalError, OSError):
    """The disk refused a request. `errno`: EIO, EOPNOTSUPP (unsupported), EROFS (read-only)."""

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message, **facts)
        self.errno = facts.get("errno", errno.EIO)


class ConfigReader(Protocol):
    """The configuration space, as a driver reads it."""

    def read(self, offset: int, count: int, /) -> bytes:
        """`count` bytes at `offset`."""


class Requester(Protocol):
    """What is needed of a driver: `vqshm.Driver` fits."""

    @property
    def features(self) -> int:
        """The negotiated ones."""

    @property
    def config(self) -> ConfigReader:
        """The device's configuration space."""

    def request(self, readable: Any, /, writable: int, *, timeout: float | None) -> Any:
        """Pass one chain: readable pieces, one writable buffer of so many bytes; the bytes that the device wrote."""


class BlkClient:
    """A disk, seen through `driver`. Reads and writes of any length go out in requests of up to `transfer` bytes.

    `timeout`: seconds that one request may take, None for ever; then it raises what the driver raises.
    """

    def __init__(self, driver: Requester, *, transfer: int = TRANSFER, timeout: float | None = TIMEOUT) -> None:
        if transfer < SECTOR:
            raise ValueError(f"a request transfers at least {SECTOR} bytes")
        self.driver = driver
        self.timeout = timeout
        self.transfer = transfer // SECTOR * SECTOR
        self.read_only = self._has(spec.VIRTIO_BLK_F_RO)

    @property
    def capacity(self) -> int:
        """Sectors. The device may change it [5.2.6.2], so it is read each time."""
        return int.from_bytes(self.driver.config.read(CAPACITY_OFFSET, 8), "little")

    def read(self, sector: int, count: int) -> bytes:
        """`count` sectors from `sector` on. Raises RuleError beyond the capacity, BlkError."""
        self._check_range(sector, count)
        return b"".join(
            self._request(spec.VIRTIO_BLK_T_IN, start, writable=n) for start, n in self._steps(sector, count)
        )

    def write(self, sector: int, data: Any) -> None:
        """Store whole sectors; volatile until `flush`.

        Raises RuleError for any other length and beyond the capacity, BlkError.
        """
        source = memoryview(data).cast("B")
        if source.nbytes % SECTOR:
            raise RuleError(f"{source.nbytes} bytes are no whole number of {SECTOR}-byte sectors")
        self._check_range(sector, source.nbytes // SECTOR)
        self._check_writable("OUT")
        for start, n in self._steps(sector, source.nbytes // SECTOR):
            done = (start - sector) * SECTOR
            self._request(spec.VIRTIO_BLK_T_OUT, start, source[done : done + n])

    def flush(self) -> None:
        """Return when all completed writes are stable; without VIRTIO_BLK_F_FLUSH they are already. Raises BlkError."""
        if self._has(spec.VIRTIO_BLK_F_FLUSH):
            self._request(spec.VIRTIO_BLK_T_FLUSH)

    def id(self) -> str:
        """The disk's serial number. Raises BlkError."""
        identity = self._request(spec.VIRTIO_BLK_T_GET_ID, writable=spec.VIRTIO_BLK_ID_BYTES)
        return identity.partition(b"\0")[0].decode("ascii", "replace")

    def discard(self, sector: int, count: int) -> None:
        """The contents of these sectors are no longer needed, and undefined from now on. Raises RuleError, BlkError."""
        self._check_range(sector, count)
        self._ranges(spec.VIRTIO_BLK_T_DISCARD, spec.VIRTIO_BLK_F_DISCARD, DISCARD_OFFSET, Segment(sector, count))

    def write_zeroes(self, sector: int, count: int, *, unmap: bool = False) -> None:
        """Make these sectors zero; with `unmap` the device may give their space back. Raises RuleError, BlkError."""
        self._check_range(sector, count)
        flags = spec.VIRTIO_BLK_WRITE_ZEROES_F_UNMAP if unmap else 0
        whole = Segment(sector, count, flags)
        self._ranges(spec.VIRTIO_BLK_T_WRITE_ZEROES, spec.VIRTIO_BLK_F_WRITE_ZEROES, WRITE_ZEROES_OFFSET, whole)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _has(self, feature: int) -> bool:
        return bool(self.driver.features >> feature & 1)

    def _steps(self, sector: int, count: int) -> Iterator[tuple[int, int]]:
        """(first sector, bytes) of each request that the transfer takes."""
        step = self.transfer // SECTOR
        for start in range(sector, sector + count, step):
            yield start, min(step, sector + count - start) * SECTOR

    def _ranges(self, kind: int, feature: int, limits: int, whole: Segment) -> None:
        """Send a range in as many requests, of one segment each, as the limits in the configuration ask for."""
        self._check_writable(_NAMES[kind])
        if not self._has(feature):
            raise BlkError(f"{_NAMES[kind]}: the feature was not negotiated", errno=errno.EOPNOTSUPP)
        limit = int.from_bytes(self.driver.config.read(limits, 4), "little") or whole.num_sectors
        end = whole.sector + whole.num_sectors
        for start in range(whole.sector, end, max(limit, 1)):
            segment = Segment(start, min(limit, end - start), whole.flags)
            self._request(kind, 0, pack_segments([segment]))

    def _request(self, kind: int, sector: int = 0, data: Any = b"", *, writable: int = 0) -> bytes:
        """Pass one request and return the `writable` bytes that came in front of the status."""
        header = pack_header(kind, sector)
        pieces: Sequence[Any] = [header, data] if len(data) else [header]
        reply = bytes(self.driver.request(pieces, writable=writable + 1, timeout=self.timeout))
        if len(reply) != writable + 1:
            raise PeerViolation(f"{_NAMES[kind]}: {len(reply)} bytes came back instead of {writable + 1}: no status")
        status = reply[-1]
        if status != spec.VIRTIO_BLK_S_OK:
            number = _ERRNO.get(status, errno.EIO)
            name = {errno.EIO: "IOERR", errno.EOPNOTSUPP: "UNSUPP"}[number]
            raise BlkError(f"{_NAMES[kind]} at sector {sector}: {name} (status {status})", errno=number, status=status)
        return reply[:-1]

    def _check_range(self, sector: int, count: int) -> None:
        capacity = self.capacity
        if sector < 0 or count < 0 or sector + count > capacity:
            raise RuleError(
                f"{count} sectors from sector {sector} on do not lie on a disk of {capacity}",
                sector=sector,
                limit=capacity,
            )

    def _check_writable(self, what: str) -> None:
        if self.read_only:
            raise BlkError(f"{what}: the disk is read-only", errno=errno.EROFS)
