"""Names: what a region leaves in the file system, and how leftovers of dead runs are told from the living.

    /dev/shm/vqshm.NAME                the region; its header names the coordinator by pid and start time
    /dev/shm/sem.vqshm.NAME.K0 …       its semaphores, where it uses them: a kick and a call for each device
    RUNTIME/NAME.sock                  its control socket, mode 0600
    RUNTIME/lock                       held (flock) only while a name is taken or swept

RUNTIME is $VQSHM_RUNTIME_DIR, else $XDG_RUNTIME_DIR/vqshm, else a private directory in /tmp; mode 0700 and ours.

A name is stale if its coordinator has ended. A region whose header has no magic yet was left half made: whoever makes
one holds the lock until the header is complete, so under the lock such an object has no maker any more. What carries
another magic or version is not ours to judge, and is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vqshm.errors import InvalidState, NotFound, UntrustedPeer, VersionMismatch
from vqshm.host import shm
from vqshm.host.liveness import ProcessId
from vqshm.notify import unlink_semaphore
from vqshm.transport import Header, Plan, check_name, read_header, read_manifest

_FIRST_BYTES = 1 << 16  # more than the records of the largest region


def runtime_directory() -> Path:
    """The directory of sockets and lock, made if need be. Raises UntrustedPeer if it is not this user's alone."""
    explicit = os.environ.get("VQSHM_RUNTIME_DIR")
    session = os.environ.get("XDG_RUNTIME_DIR")
    if explicit:
        path = Path(explicit)
    elif session and Path(session).is_dir():
        path = Path(session, "vqshm")
    else:
        path = Path(tempfile.gettempdir(), f"vqshm-{os.geteuid()}")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UntrustedPeer(f"{path} must be a directory of this user alone (mode 0700)", path=str(path))
    return path


def socket_path(region: str) -> Path:
    """Where the control socket of a region lies."""
    return runtime_directory() / f"{check_name(region)}.sock"


@contextlib.contextmanager
def naming_lock() -> Iterator[None]:
    """Hold the lock under which names are taken and swept; the kernel lets go of it when the holder ends."""
    fd = os.open(runtime_directory() / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class Condition(StrEnum):
    """What a region's header tells about it."""

    ALIVE = "alive"  # its coordinator runs
    STALE = "stale"  # its coordinator has ended
    HALF_MADE = "half made"  # no magic yet
    FOREIGN = "foreign"  # no region, or of another version


@dataclass(frozen=True, slots=True)
class Found:
    """A region that exists: whose it is, and in what condition."""

    name: str
    condition: Condition
    size: int  # bytes
    owner: ProcessId | None = None
    problem: str = ""  # why the header could not be read

    @property
    def abandoned(self) -> bool:
        """Whether nobody owns it any more. For HALF_MADE that is only true under the naming lock."""
        return self.condition in {Condition.STALE, Condition.HALF_MADE}


def look_at(region: str) -> Found:
    """What is known about a region, from its header alone. Raises NotFound, UntrustedPeer."""
    size, first = _first_bytes(region)
    try:
        header = read_header(first, size)
    except InvalidState as error:
        return Found(region, Condition.HALF_MADE, size, problem=str(error))
    except VersionMismatch as error:
        return Found(region, Condition.FOREIGN, size, problem=str(error))
    owner = ProcessId(header.pid, header.start_time)
    return Found(region, Condition.ALIVE if owner.alive else Condition.STALE, size, owner)


def look_at_all() -> list[Found]:
    """All regions of this user."""
    found = []
    for name in shm.existing():
        with contextlib.suppress(NotFound, UntrustedPeer):
            found.append(look_at(name))
    return found


def open_plan(region: str) -> tuple[int, Header, Plan]:
    """(descriptor, header, plan) of a region, every field of it checked before anything of that size is mapped.

    The descriptor is the caller's. Raises NotFound, UntrustedPeer, InvalidState (half made), VersionMismatch.
    """
    fd, size = shm.open_object(check_name(region))
    try:
        first = os.pread(fd, _FIRST_BYTES, 0)
        return fd, read_header(first, size), read_manifest(first, size)
    except BaseException:
        os.close(fd)
        raise


def semaphore_name(region: str, purpose: str, device: int) -> str:
    """The POSIX name of a device's semaphore; `purpose` is K for kicks, C for calls.

    Region names have no capitals, so no region's semaphores look like those of another.
    """
    return f"{shm.object_name(region)}.{purpose}{device}"


def remove(region: str) -> None:
    """Remove everything a region left behind.

    The caller holds the lock and knows that its owner has ended, or is itself it.
    """
    with contextlib.suppress(FileNotFoundError):
        socket_path(region).unlink()
    for path in shm.DIRECTORY.glob(f"sem.{shm.PREFIX}{region}.[KC]*"):
        if path.lstat().st_uid == os.geteuid():
            with contextlib.suppress(NotFound):
                unlink_semaphore("/" + path.name.removeprefix("sem."))
    shm.unlink(region)


def sweep() -> list[str]:
    """Remove every region whose owner has ended, and sockets without a region; their names."""
    with naming_lock():
        stale = [found.name for found in look_at_all() if found.abandoned]
        names = set(shm.existing())
        stale += [path.stem for path in runtime_directory().glob("*.sock") if path.stem not in names]
        for name in stale:
            remove(name)
    return sorted(stale)


def _first_bytes(region: str) -> tuple[int, bytes]:
    fd, size = shm.open_object(check_name(region), writable=False)
    try:
        return size, os.pread(fd, _FIRST_BYTES, 0)
    finally:
        os.close(fd)
