"""Shared memory objects: made with their pages reserved, opened with suspicion, removed only by their owner.

posix_ipc makes and opens the names; `multiprocessing.shared_memory` would unlink a region when any process that
attached to it exits. Pages are reserved when the object is made, so that a full /dev/shm is an error then, and not
SIGBUS later. Nobody else may read or write it (mode 0600), and an object that belongs to another user is never mapped.

What the kernel cannot promise here: a process of this very user may cut the object short at any time, and whoever then
touches what is gone dies of SIGBUS. Endpoints look at the size whenever they wake, but a look does not protect what is
done after it. Who must be safe from that takes sealed memory (memfd.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vqshm.closing import own
from vqshm.errors import NameInUse, NotFound, ShmFull, UntrustedPeer
from vqshm.host.system import pages
from vqshm.notify.semaphore import numbered

if TYPE_CHECKING:
    import mmap

    from vqshm.closing import Owned

DIRECTORY: Final = Path("/dev/shm")  # where POSIX shared memory lives on Linux
PREFIX: Final = "vqshm."


def object_name(region: str) -> str:
    """The POSIX name of a region's shared memory object."""
    return f"/{PREFIX}{region}"


def existing() -> list[str]:
    """The names of the regions that exist in /dev/shm, whoever made them."""
    return sorted(path.name.removeprefix(PREFIX) for path in DIRECTORY.glob(f"{PREFIX}*"))


def create(region: str, size: int, hints: pages.Hints = pages.NO_HINTS) -> mmap.mmap:
    """Make the object of `size` bytes, zero-filled, all pages reserved, and map it.

    Raises NameInUse, ShmFull; no name is left behind then.
    """
    posix_ipc = _posix_ipc()
    name = object_name(region)
    try:
        with numbered():
            owner = _opened(name, posix_ipc.O_CREX, 0o600)
    except posix_ipc.ExistentialError as error:
        raise NameInUse(f"shared memory {name} exists already", name=region) from error
    try:
        # Held for as long as the object is mapped: whoever sweeps sees that it has a maker (`in_the_making`).
        fd = owner.fileno()
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.fchmod(fd, 0o600)  # whatever the umask was
        return pages.reserve(fd, size, hints)
    except OSError as error:
        unlink(region)
        if error.errno in {errno.ENOSPC, errno.ENOMEM, errno.EFBIG}:
            free = free_bytes()
            raise ShmFull(
                f"region {region!r} needs {size:,} bytes of shared memory, {DIRECTORY} has {free:,} free; make the "
                "region smaller, remove stale ones with `vqshm clean`, or enlarge it (mount -o remount,size=…; docker "
                "--shm-size)",
                size=size,
                free=free,
            ) from error
        raise
    except BaseException:
        unlink(region)
        raise
    finally:
        owner.close()


def open_object(region: str, *, writable: bool = True) -> tuple[Owned, int]:
    """(descriptor, size in bytes) of an object of this user; the descriptor is the caller's to close.

    Raises NotFound, UntrustedPeer.
    """
    posix_ipc = _posix_ipc()
    try:
        # Looked at before it is opened, too: to open a FIFO would block.
        check_ours(region, (DIRECTORY / object_name(region)[1:]).lstat())
        with numbered():
            owner = _opened(object_name(region), 0, 0o600, 0, not writable)
    except (posix_ipc.ExistentialError, FileNotFoundError) as error:
        raise NotFound(f"there is no region {region!r}", name=region) from error
    except posix_ipc.PermissionsError as error:
        raise UntrustedPeer(f"region {region!r} belongs to another user", name=region) from error
    try:
        fd = owner.fileno()
        status = os.fstat(fd)
        check_ours(region, status)
        os.set_inheritable(fd, False)  # noqa: FBT003 - the argument has no name
    except BaseException:
        owner.close()
        raise
    return owner, status.st_size


def in_the_making(owner: Owned) -> bool:
    """Whether the process that made the object still has it mapped, by the lock it holds on it."""
    fd = owner.fileno()
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def unlink(region: str) -> None:
    """Remove the name; who has it mapped keeps it. Does nothing if it is gone."""
    posix_ipc = _posix_ipc()
    try:
        posix_ipc.unlink_shared_memory(object_name(region))
    except posix_ipc.ExistentialError:
        return


def free_bytes() -> int:
    """Bytes free in /dev/shm."""
    usage = os.statvfs(DIRECTORY)
    return usage.f_bavail * usage.f_frsize


def check_ours(region: str, status: os.stat_result) -> None:
    """Raise UntrustedPeer unless this is a file of this user's, for this user alone."""
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedPeer(f"region {region!r} is no shared memory object", name=region)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise UntrustedPeer(f"region {region!r} belongs to user {status.st_uid}, or others may write it", name=region)


def _opened(*args: Any) -> Owned:
    """The descriptor of a `posix_ipc.SharedMemory`; as `owned`."""
    return next(map(own, map(attrgetter("fd"), map(_posix_ipc().SharedMemory, *([arg] for arg in args)))))


def _posix_ipc() -> Any:
    # On a free-threaded Python importing it turns the GIL back on: only those who make or open regions pay for that.
    import posix_ipc  # noqa: PLC0415

    return posix_ipc
