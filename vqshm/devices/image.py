"""Disk image: a file or block device whose bytes are the sectors of a disk, moved to and from buffers in place.

All offsets and counts are bytes and must lie in the image: who calls has checked them. Nothing keeps a position, so
calls do not disturb each other. Every failure is an OSError; that an image became shorter than it was is one, too.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from vqshm import spec
from vqshm.errors import RuleError

_MAX_VIEWS: Final = max(os.sysconf("SC_IOV_MAX"), 16)  # buffers that one system call takes
_ZEROES: Final = bytes(256 << 10)
_ZERO_VIEWS: Final = 64  # so many of them at a time

_KEEP_SIZE: Final = 1  # FALLOC_FL_* of Linux
_PUNCH_HOLE: Final = 2

Views = Sequence[memoryview]


class Image:
    """An open disk image; `size` bytes.

    Raises RuleError if the size is 0 or not a multiple of 512, OSError if it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self.fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            status = os.fstat(self.fd)
            self.size = self._measure(status)
            self.block_size = max(status.st_blksize, spec.VIRTIO_BLK_SECTOR_SIZE)  # preferred bytes of one transfer
            self.can_punch = not read_only and self._probe()
        except BaseException:
            self.close()
            raise

    def _measure(self, status: os.stat_result) -> int:
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise OSError(errno.EINVAL, "a disk image is a regular file or a block device", str(self.path))
        size = os.lseek(self.fd, 0, os.SEEK_END)  # of a block device, too, whose st_size is 0
        if size == 0 or size % spec.VIRTIO_BLK_SECTOR_SIZE:
            raise RuleError(
                f"{self.path} has {size} bytes, a disk has a positive multiple of {spec.VIRTIO_BLK_SECTOR_SIZE}; "
                f"for example: truncate -s %{spec.VIRTIO_BLK_SECTOR_SIZE} {self.path}",
                size=size,
            )
        return size

    def _probe(self) -> bool:
        """Whether holes can be punched: tried behind the end, where there is nothing to lose."""
        try:
            self._punch(self.size, self.block_size)
        except OSError:
            return False
        return True

    def read(self, offset: int, views: Views) -> None:
        """Fill `views` from `offset` on."""
        self._transfer(os.preadv, offset, views)

    def write(self, offset: int, views: Views) -> None:
        """Store `views` from `offset` on. Volatile until `flush`."""
        self._transfer(os.pwritev, offset, views)

    def zero(self, offset: int, count: int, *, release: bool) -> None:
        """Make `count` bytes zero; give their space back if `release` and possible."""
        if release and self.can_punch:
            with suppress(OSError):  # here it cannot, whatever the probe said: write them
                return self._punch(offset, count)
        zeroes = memoryview(_ZEROES)
        while count:
            views = [zeroes] * min(count // zeroes.nbytes, _ZERO_VIEWS) or [zeroes[:count]]
            self.write(offset, views)
            done = sum(view.nbytes for view in views)
            offset, count = offset + done, count - done
        return None

    def discard(self, offset: int, count: int) -> None:
        """Give the space of `count` bytes back if possible; it is a hint, so a failure is none."""
        if self.can_punch:
            with suppress(OSError):
                self._punch(offset, count)

    def flush(self) -> None:
        """Return when everything written is on persistent storage."""
        if self.fd < 0:  # os.fsync has another error for it
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), str(self.path))
        os.fsync(self.fd)

    def close(self) -> None:
        """Close it; every later call fails with EBADF."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _transfer(self, move: Callable[[int, Sequence[Any], int], int], offset: int, views: Views) -> None:
        """Call `move` until all views are done: it takes only so many, and may stop anywhere."""
        rest = list(views)
        while rest:
            batch = rest[:_MAX_VIEWS]
            moved = move(self.fd, batch, offset)
            wanted = sum(view.nbytes for view in batch)
            if moved == 0 and wanted:
                raise OSError(errno.EIO, f"the image ends before byte {offset + wanted}", str(self.path))
            offset += moved
            rest = _behind(batch, moved) + rest[_MAX_VIEWS:]

    def _punch(self, offset: int, count: int) -> None:
        """Deallocate a range; it reads as zeroes then. Raises OSError where that cannot be done."""
        if count == 0:
            return
        while number := _fallocate()(self.fd, _PUNCH_HOLE | _KEEP_SIZE, offset, count):
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number), str(self.path))


def _behind(views: Views, count: int) -> list[memoryview]:
    """The views without their first `count` bytes."""
    for i, view in enumerate(views):
        if count < view.nbytes:
            return [view[count:], *views[i + 1 :]]
        count -= view.nbytes
    return []


@cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    """fallocate(2), which the standard library does not offer: (fd, mode, offset, count) -> errno, 0 if it worked."""
    import ctypes  # noqa: PLC0415 - only a disk that can be written pays for it

    library = ctypes.CDLL(None, use_errno=True)
    for name in ("fallocate64", "fallocate"):  # the first takes 64-bit offsets on 32-bit systems, too
        function = getattr(library, name, None)
        if function is not None:
            function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
            function.restype = ctypes.c_int
            return lambda *arguments: ctypes.get_errno() if function(*arguments) else 0
    return lambda *_: errno.EOPNOTSUPP
