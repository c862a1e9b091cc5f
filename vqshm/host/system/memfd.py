"""Sealed regions: anonymous memory that has no name, and that nobody can make smaller.

A region under a name in /dev/shm can be cut short by every process of its user, and whoever touches what is gone dies
of SIGBUS. A memfd can be sealed: its size is final, the kernel keeps it, and so no peer has that power. It has no name;
the coordinator hands its descriptor to whoever asks at the control socket, and who gets one believes nothing of it but
what the kernel says: the seals, the owner, the size.

    RUNTIME/NAME.memfd     its paper, from which it is found, listed and judged: a file without blocks that has the size
                           of the region and begins as the region does, magic last; locked while it is in the making
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vqshm.closing import owned
from vqshm.errors import NameInUse, NotFound, ShmFull, UntrustedPeer
from vqshm.host.system import pages
from vqshm.host.system.shm import check_ours

if TYPE_CHECKING:
    import mmap

    from vqshm.closing import Owned

SUFFIX: Final = ".memfd"
SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_MAGIC_BYTES: Final = 8


def create(region: str, size: int, hints: pages.Hints = pages.NO_HINTS) -> tuple[Owned, mmap.mmap]:
    """Make a sealed object of `size` bytes, zero-filled, all pages reserved: descriptor and mapping. Raises ShmFull."""
    owner = owned(os.memfd_create, _label(region), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fd = owner.fileno()
        os.fchmod(fd, 0o600)
        memory = pages.reserve(fd, size, hints)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except OSError as error:
        owner.close()
        if error.errno in {errno.ENOSPC, errno.ENOMEM, errno.EFBIG}:
            raise ShmFull(
                f"region {region!r} needs {size:,} bytes of memory, which cannot be reserved: {error.strerror}; make "
                "the region smaller or raise the limit",
                size=size,
            ) from error
        raise
    except BaseException:
        owner.close()
        raise
    return owner, memory


def check(owner: Owned, region: str) -> int:
    """The size of the object that somebody handed over. Raises UntrustedPeer unless it is sealed and this user's."""
    fd = owner.fileno()
    status = os.fstat(fd)
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0  # no memfd at all
    if not stat.S_ISREG(status.st_mode) or seals & SEALS != SEALS:
        raise UntrustedPeer(f"the memory that was handed over as region {region!r} is not sealed", name=region)
    if status.st_uid != os.geteuid():
        raise UntrustedPeer(f"region {region!r} belongs to user {status.st_uid}", name=region)
    return status.st_size


def find(region: str, first: bytes) -> Owned | None:
    """A descriptor of the object that begins with `first`, from a process that still has it open; None if none has."""
    label = f"/memfd:{_label(region)} (deleted)"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            entries = os.listdir(process / "fd")  # noqa: PTH208 - names only
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise  # it says nothing about that process
            continue  # it ended, or is another user's
        for entry in entries:
            fd = _open_if(process / "fd" / entry, label)
            if fd is None:
                continue
            try:
                check(fd, region)
                if os.pread(fd.fileno(), len(first), 0) == first:
                    return fd
            except UntrustedPeer:
                pass
            fd.close()
    return None


def _open_if(path: Path, label: str) -> Owned | None:
    try:
        return owned(os.open, path, os.O_RDWR | os.O_CLOEXEC) if str(path.readlink()) == label else None
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise
        return None  # closed meanwhile


def _label(region: str) -> str:
    return f"vqshm.{region}"


# -- the paper ---------------------------------------------------------------------------------------------------------


def existing(directory: Path) -> list[str]:
    """The names of the regions that have a paper."""
    return sorted(path.name.removesuffix(SUFFIX) for path in directory.glob(f"*{SUFFIX}"))


def start_paper(path: Path, region: str, size: int) -> Owned:
    """Make an empty paper, locked as long as the descriptor is open. Raises NameInUse."""
    try:
        paper = owned(os.open, path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise NameInUse(f"{path} exists already", name=region) from error
    try:
        fd = paper.fileno()
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, size)
    except BaseException:
        paper.close()
        path.unlink()
        raise
    return paper


def write_paper(paper: Owned, first: bytes) -> None:
    """Write what the region begins with; from the last store on the region can be found."""
    fd = paper.fileno()
    os.pwrite(fd, first[_MAGIC_BYTES:], _MAGIC_BYTES)
    os.pwrite(fd, first[:_MAGIC_BYTES], 0)


def open_paper(path: Path, region: str) -> tuple[Owned, int]:
    """(descriptor, size) of a paper; the descriptor is the caller's. Raises NotFound, UntrustedPeer."""
    try:
        paper = owned(os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"there is no region {region!r}", name=region) from error
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.EACCES, errno.ENXIO}:
            raise
        raise UntrustedPeer(f"{path} is no paper of a region: {error.strerror}", name=region) from error
    try:
        status = os.fstat(paper.fileno())
        check_ours(region, status)
    except BaseException:
        paper.close()
        raise
    return paper, status.st_size
