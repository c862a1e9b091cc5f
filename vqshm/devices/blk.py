"""The virtio block device on a file: a disk of 512-byte sectors [5.2].

    type           data                                   does
    IN             writable, a multiple of 512            reads sectors
    OUT            readable, a multiple of 512            writes sectors
    FLUSH          none                                   fsync
    GET_ID         writable, 20 bytes                     the serial number, NUL-padded
    DISCARD        readable, segments                     punches holes where the file system can; else nothing
    WRITE_ZEROES   readable, segments                     writes zeroes, or punches holes if the segment allows it

Every request ends with one status byte, the last writable one of its chain [5.2.6]:

    OK        done
    IOERR     the request breaks a rule (length, range, header, segments), the disk is read-only, or the file failed
    UNSUPP    unknown type, a feature that was not accepted, or a segment flag that is not allowed there [5.2.6.2]

Theory of operation. Sectors move between the file and the driver's buffers without a copy in between. The number of
bytes written that a chain is returned with always reaches to the status byte: where a request produced no data, the
writable bytes in front of the status are zeroed; so the driver may believe all of it and sees nothing stale [2.7.8]. A
write is volatile until FLUSH; a driver that did not accept VIRTIO_BLK_F_FLUSH gets every write committed before it
completes [5.2.6.2].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from vqshm import spec
from vqshm.closing import Closing
from vqshm.devices.blk_layout import HEADER, SECTOR, SEGMENT, BlkConfig, Segment, unpack_segments
from vqshm.devices.image import Image
from vqshm.errors import RuleError
from vqshm.ring.chain import Writer

if TYPE_CHECKING:
    import os

    from vqshm.ring.chain import DescriptorChain, Reader

MAX_DISCARD_SECTORS: Final = 1 << 21  # of one segment: 1 GiB
MAX_DISCARD_SEG: Final = 32
MAX_WRITE_ZEROES_SECTORS: Final = 1 << 17  # 64 MiB: a request should not hold the queue up for seconds
MAX_WRITE_ZEROES_SEG: Final = 8
OPTIMAL_IO: Final = 1 << 20  # bytes

_OK: Final = spec.VIRTIO_BLK_S_OK
_UNMAP: Final = spec.VIRTIO_BLK_WRITE_ZEROES_F_UNMAP
_FLUSH: Final = 1 << spec.VIRTIO_BLK_F_FLUSH
_DISCARD: Final = 1 << spec.VIRTIO_BLK_F_DISCARD
_WRITE_ZEROES: Final = 1 << spec.VIRTIO_BLK_F_WRITE_ZEROES


class _Refused(Exception):
    """The request ends with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Blk(Closing):
    """A handler that is a disk, whose sectors are those of the image at `path`.

    `queues`, `queue_size`: as the device was laid out; with more than one queue VIRTIO_BLK_F_MQ is offered. `serial`:
    up to 20 ASCII characters; the file's name if None. Close it, or use it with `with`.

    Raises RuleError for an image that is no whole number of sectors, OSError if it cannot be opened, ValueError for a
    serial that is none.
    """

    device_id = spec.VIRTIO_ID_BLOCK

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        queues: int = 1,
        queue_size: int = 256,
        serial: str | None = None,
    ) -> None:
        if serial is None:
            serial = Path(path).name.encode("ascii", "replace")[: spec.VIRTIO_BLK_ID_BYTES].decode()
        if not serial.isascii() or len(serial) > spec.VIRTIO_BLK_ID_BYTES:
            raise ValueError(f"serial {serial!r} is not up to {spec.VIRTIO_BLK_ID_BYTES} ASCII characters")
        self.serial = serial
        self.image = Image(path, read_only=read_only)
        self.capacity = self.image.size // SECTOR
        self.features = self._offer(queues)
        self.config = self._configuration(queues, queue_size).pack()
        self.accepted = self.features
        self._write_through = True  # until a driver is known to flush
        self.unanswered = 0  # requests without a status byte, or with one that is not in guest memory
        self.failed = 0  # requests that ended with IOERR or UNSUPP
        self.last_error: OSError | None = None  # what the file said last, when it failed

    def close(self) -> None:
        """Close the image."""
        self.image.close()

    def features_ok(self, features: int) -> None:
        """The driver accepted these features: what needs another one is refused from now on.

        Before this is called all features count as accepted, but every write is committed at once.
        """
        self.accepted = features
        self._write_through = not features & _FLUSH

    def handle(self, chain: DescriptorChain) -> int:
        """Bytes written: all that are writable, the status last; 0 where not even that can be written."""
        answer = _answer(chain)
        room = answer.available_bytes
        if room == 0:
            self.unanswered += 1
            return 0
        status_byte = answer.split_at(room - 1)
        data = answer.views()
        filled = False
        try:
            filled = self._serve(chain.reader(), data)
            status = _OK
        except _Refused as refusal:
            status = refusal.status
        except RuleError:  # a short header, or buffers that are not in guest memory
            status = spec.VIRTIO_BLK_S_IOERR
        except OSError as error:
            self.last_error = error
            status = spec.VIRTIO_BLK_S_IOERR
        if not filled:
            _clear(data)
        if status != _OK:
            self.failed += 1
        status_byte.write(bytes([status]))
        return room

    # -- requests ------------------------------------------------------------------------------------------------------

    def _serve(self, source: Reader, data: list[memoryview]) -> bool:
        """Do what the header says; whether `data` was filled. Raises _Refused, RuleError, OSError."""
        kind, _, sector = HEADER.unpack(source.read_exact(HEADER.size))
        if kind == spec.VIRTIO_BLK_T_IN:
            self.image.read(self._range(sector, sum(view.nbytes for view in data)), data)
            return True
        if kind == spec.VIRTIO_BLK_T_GET_ID:
            return self._get_id(data)
        if kind == spec.VIRTIO_BLK_T_OUT:
            self._writable()
            self.image.write(self._range(sector, source.available_bytes), source.views())
            self._commit()
        elif kind == spec.VIRTIO_BLK_T_FLUSH:
            self._flush(sector)
        elif kind == spec.VIRTIO_BLK_T_DISCARD:
            self._discard(source)
        elif kind == spec.VIRTIO_BLK_T_WRITE_ZEROES:
            self._write_zeroes(source)
        else:
            raise _Refused(spec.VIRTIO_BLK_S_UNSUPP)
        return False

    def _get_id(self, data: list[memoryview]) -> bool:
        identity = self.serial.encode("ascii").ljust(spec.VIRTIO_BLK_ID_BYTES, b"\0")
        if sum(view.nbytes for view in data) != len(identity):
            raise _Refused(spec.VIRTIO_BLK_S_IOERR)
        for view in data:
            view[:], identity = identity[: view.nbytes], identity[view.nbytes :]
        return True

    def _flush(self, sector: int) -> None:
        self._accepted(_FLUSH)
        if sector:  # [5.2.6.1] wants 0
            raise _Refused(spec.VIRTIO_BLK_S_IOERR)
        self.image.flush()

    def _discard(self, source: Reader) -> None:
        segments = self._segments(source, _DISCARD, MAX_DISCARD_SEG, MAX_DISCARD_SECTORS, flags=0)
        for segment in segments:
            self.image.discard(segment.sector * SECTOR, segment.num_sectors * SECTOR)

    def _write_zeroes(self, source: Reader) -> None:
        segments = self._segments(source, _WRITE_ZEROES, MAX_WRITE_ZEROES_SEG, MAX_WRITE_ZEROES_SECTORS, flags=_UNMAP)
        for segment in segments:
            release = bool(segment.flags & _UNMAP)
            self.image.zero(segment.sector * SECTOR, segment.num_sectors * SECTOR, release=release)
        self._commit()

    # -- rules ---------------------------------------------------------------------------------------------------------

    def _range(self, sector: int, count: int) -> int:
        """The offset in the image of `count` bytes from `sector` on, all of which must be on the disk."""
        if count % SECTOR or sector > self.capacity or count // SECTOR > self.capacity - sector:
            raise _Refused(spec.VIRTIO_BLK_S_IOERR)
        return sector * SECTOR

    def _segments(self, source: Reader, feature: int, max_seg: int, max_sectors: int, *, flags: int) -> list[Segment]:
        """A private copy of the segments, all of them checked before the first is served. `flags`: those allowed."""
        size = source.available_bytes
        if size == 0 or size % SEGMENT.size or size > max_seg * SEGMENT.size:
            raise _Refused(spec.VIRTIO_BLK_S_IOERR)
        segments = unpack_segments(source.read())
        if any(segment.flags & ~flags for segment in segments):  # UNSUPP whatever else is wrong [5.2.6.2]
            raise _Refused(spec.VIRTIO_BLK_S_UNSUPP)
        self._writable()
        self._accepted(feature)
        for segment in segments:
            if segment.num_sectors > max_sectors:
                raise _Refused(spec.VIRTIO_BLK_S_IOERR)
            self._range(segment.sector, segment.num_sectors * SECTOR)
        return segments

    def _writable(self) -> None:
        if self.image.read_only:
            raise _Refused(spec.VIRTIO_BLK_S_IOERR)  # [5.2.6.2]

    def _accepted(self, feature: int) -> None:
        if not self.accepted & feature:
            raise _Refused(spec.VIRTIO_BLK_S_UNSUPP)

    def _commit(self) -> None:
        """A driver that cannot flush needs each write stable when it completes [5.2.6.2]."""
        if self._write_through:
            self.image.flush()

    # -- what is offered -----------------------------------------------------------------------------------------------

    def _offer(self, queues: int) -> int:
        bits = [spec.VIRTIO_BLK_F_SEG_MAX, spec.VIRTIO_BLK_F_BLK_SIZE, spec.VIRTIO_BLK_F_TOPOLOGY]
        bits += [spec.VIRTIO_BLK_F_FLUSH]
        if self.image.read_only:
            bits += [spec.VIRTIO_BLK_F_RO]
        else:
            bits += [spec.VIRTIO_BLK_F_DISCARD, spec.VIRTIO_BLK_F_WRITE_ZEROES]
        if queues > 1:
            bits += [spec.VIRTIO_BLK_F_MQ]
        return spec.mask(*bits)

    def _configuration(self, queues: int, queue_size: int) -> BlkConfig:
        blocks = max(self.image.block_size // SECTOR, 1)
        config = BlkConfig(
            capacity=self.capacity,
            seg_max=max(queue_size - 2, 1),  # one descriptor for the header, one for the status
            blk_size=SECTOR,
            physical_block_exp=min(blocks.bit_length() - 1, 0xFF),
            min_io_size=min(blocks, 0xFFFF),
            opt_io_size=OPTIMAL_IO // SECTOR,
            num_queues=queues if queues > 1 else 0,
        )
        if self.image.read_only:
            return config
        return config._replace(
            max_discard_sectors=MAX_DISCARD_SECTORS,
            max_discard_seg=MAX_DISCARD_SEG,
            discard_sector_alignment=blocks,
            max_write_zeroes_sectors=MAX_WRITE_ZEROES_SECTORS,
            max_write_zeroes_seg=MAX_WRITE_ZEROES_SEG,
            write_zeroes_may_unmap=int(self.image.can_punch),
        )


def _answer(chain: DescriptorChain) -> Writer:
    """The writable part of a chain; an empty one if its buffers are not in guest memory."""
    try:
        return chain.writer()
    except RuleError:
        return Writer([])


def _clear(views: list[memoryview]) -> None:
    """Fill with zeroes."""
    zeroes = bytes(min(max((view.nbytes for view in views), default=0), OPTIMAL_IO))
    for view in views:
        for start in range(0, view.nbytes, OPTIMAL_IO):
            piece = view[start : start + OPTIMAL_IO]
            piece[:] = zeroes[: piece.nbytes]
