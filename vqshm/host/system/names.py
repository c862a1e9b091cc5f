"""Names: what a region leaves in the file system, and how leftovers of dead runs are told from the living.

    /dev/shm/vqshm.NAME                the region; its header names the coordinator by pid and start time
    RUNTIME/NAME.memfd                 instead of it, where the memory itself has no name: its paper (memfd.py)
    /dev/shm/sem.vqshm.NAME.K0 …       its semaphores, where it uses them: a kick and a call for each device
    RUNTIME/NAME.sock                  its control socket, mode 0600
    RUNTIME/lock                       held (flock) only while a name is taken or swept

RUNTIME is $VQSHM_RUNTIME_DIR, else $XDG_RUNTIME_DIR/vqshm, else a directory in /tmp; mode 0700 and ours.

A name is stale if its coordinator has ended. A region whose header has no magic yet is in the making while its maker
has it locked (flock, which the kernel lets go of when the maker ends), else it was left half made. What carries another
magic or version is not ours to judge, and is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vqshm.errors import DeadlineExceeded, InvalidState, NotFound, RuleError, UntrustedPeer, VersionMismatch
from vqshm.host.connection import fetch_memory
from vqshm.host.system import memfd, shm
from vqshm.host.system.liveness import ProcessId
from vqshm.notify import Deadline, unlink_semaphore
from vqshm.transport import Header, Plan, check_name, read_header, read_manifest

LOCK_TIMEOUT = 30.0  # seconds; whoever holds the lock reserves pages at most
_LOCK_PAUSE = 0.005  # seconds
_FIRST_BYTES = 1 << 16  # more than the records of the largest region
_FOREVER = Deadline(None)


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
    with contextlib.suppress(FileExistsError):  # what it is then is looked at next
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UntrustedPeer(f"{path} must be a directory of this user alone (mode 0700)", path=str(path))
    return path


def socket_path(region: str) -> Path:
    """Where the control socket of a region lies."""
    return runtime_directory() / f"{check_name(region)}.sock"


def paper_path(region: str) -> Path:
    """Where the paper of a region lies whose memory has no name."""
    return runtime_directory() / f"{check_name(region)}{memfd.SUFFIX}"


def existing() -> list[str]:
    """The names of the regions that exist, whoever made them."""
    try:
        sealed = memfd.existing(runtime_directory())
    except UntrustedPeer:
        sealed = []  # in a directory that is not ours nothing is
    return sorted({*shm.existing(), *sealed})


@contextlib.contextmanager
def naming_lock() -> Iterator[None]:
    """Hold the lock under which names are taken and swept; the kernel lets go of it when the holder ends.

    Raises DeadlineExceeded if somebody holds it for `LOCK_TIMEOUT` seconds.
    """
    path = runtime_directory() / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = Deadline(LOCK_TIMEOUT)
    try:
        while not _locked(fd):
            if deadline.expired:
                raise DeadlineExceeded(f"another process, stopped perhaps, holds {path}; see /proc/locks")
            time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Condition(StrEnum):
    """What a region's header tells about it."""

    ALIVE = "alive"  # its coordinator runs
    STALE = "stale"  # its coordinator has ended
    IN_THE_MAKING = "in the making"  # no magic yet
    HALF_MADE = "half made"  # no magic, and no maker any more
    FOREIGN = "foreign"  # no region, or of another version


@dataclass(frozen=True, slots=True)
class Found:
    """A region that exists: whose it is, and in what condition."""

    name: str
    condition: Condition
    size: int  # bytes
    owner: ProcessId | None = None
    problem: str = ""  # why the header could not be read
    devices: tuple[str, ...] = ()

    @property
    def abandoned(self) -> bool:
        """Whether nobody owns it any more."""
        return self.condition in {Condition.STALE, Condition.HALF_MADE}


def look_at(region: str) -> Found:
    """What is known about a region, from its header alone. Raises NotFound, UntrustedPeer."""
    size, first, locked = _first_bytes(region)
    try:
        header, plan = read_header(first, size), read_manifest(first, size)
    except InvalidState as error:
        condition = Condition.IN_THE_MAKING if locked else Condition.HALF_MADE
        return Found(region, condition, size, problem=str(error))
    except VersionMismatch as error:
        return Found(region, Condition.FOREIGN, size, problem=str(error))
    owner = ProcessId(header.pid, header.start_time)
    condition = Condition.ALIVE if owner.alive else Condition.STALE
    return Found(region, condition, size, owner, devices=tuple(device.name for device in plan.devices))


def look_at_all() -> list[Found]:
    """All regions of this user."""
    found = []
    for name in existing():
        with contextlib.suppress(NotFound, UntrustedPeer, RuleError):  # RuleError: no region has such a name
            found.append(look_at(name))
    return found


def open_plan(region: str, *, writable: bool = True, deadline: Deadline = _FOREVER) -> tuple[int, Header, Plan]:
    """(descriptor, header, plan) of a region, every field of it checked before anything of that size is mapped.

    The descriptor is the caller's. Raises NotFound (the message lists what exists), UntrustedPeer, InvalidState (half
    made), VersionMismatch; and, where the coordinator is asked for the memory, CoordinatorGone, DeadlineExceeded.
    """
    try:
        fd, size = shm.open_object(check_name(region), writable=writable)
    except NotFound:
        fd, size = _open_sealed(region, writable=writable, deadline=deadline)
    try:
        return fd, *_read(fd, size)
    except BaseException:
        os.close(fd)
        raise


def open_deserted(region: str) -> tuple[int, Header, Plan] | None:
    """As `open_plan`, without the coordinator, which has ended; None if its memory is gone with it."""
    if not paper_path(region).exists():
        return open_plan(region)
    paper, size = memfd.open_paper(paper_path(region), region)
    try:
        header, plan = _read(paper, size)
        fd = memfd.find(region, os.pread(paper, plan.cells_at, 0))
    finally:
        os.close(paper)
    return None if fd is None else (fd, header, plan)


def _open_sealed(region: str, *, writable: bool, deadline: Deadline) -> tuple[int, int]:
    """(descriptor, size) of the memory of a region that has no name, but a paper."""
    try:
        paper, size = memfd.open_paper(paper_path(region), region)
    except NotFound:
        raise NotFound(f"there is no region {region!r}; {_listing()}", name=region) from None
    try:
        header, _ = _read(paper, size)
    finally:
        os.close(paper)
    path = socket_path(region)
    fd = fetch_memory(path, region, writable=writable, coordinator=header.pid, deadline=deadline)
    try:
        return fd, memfd.check(fd, region)
    except BaseException:
        os.close(fd)
        raise


def _read(fd: int, size: int) -> tuple[Header, Plan]:
    first = os.pread(fd, _FIRST_BYTES, 0)
    return read_header(first, size), read_manifest(first, size)


def _listing() -> str:
    names = existing()
    return f"these exist: {', '.join(names)}" if names else "none exists; start one with `vqshm coordinator NAME`"


def semaphore_name(region: str, purpose: str, device: int) -> str:
    """The POSIX name of a device's semaphore; `purpose` is K for kicks, C for calls.

    Region names have no capitals, so no region's semaphores look like those of another.
    """
    return f"{shm.object_name(region)}.{purpose}{device}"


def remove(region: str) -> None:
    """Remove everything a region left behind.

    The caller holds the lock and knows that its owner has ended, or is itself it.
    """
    remove_companions(region)
    paper_path(region).unlink(missing_ok=True)
    shm.unlink(region)


def remove_companions(region: str) -> None:
    """Remove the socket and the semaphores of a region that is not there any more. The caller holds the lock."""
    with contextlib.suppress(FileNotFoundError):
        socket_path(region).unlink()
    for path in shm.DIRECTORY.glob(f"sem.{shm.PREFIX}{region}.[KC]*"):
        with contextlib.suppress(NotFound, FileNotFoundError):
            if path.lstat().st_uid == os.geteuid():
                unlink_semaphore("/" + path.name.removeprefix("sem."))


def sweep() -> list[str]:
    """Remove every region whose owner has ended, and sockets without a region; their names."""
    with naming_lock():
        stale = [found.name for found in look_at_all() if found.abandoned]
        names = set(existing())
        stale += [path.stem for path in runtime_directory().glob("*.sock") if path.stem not in names]
        removed = []
        for name in stale:
            with contextlib.suppress(RuleError):  # a socket of another program, by its name
                remove(name)
                removed.append(name)
    return sorted(removed)


def _first_bytes(region: str) -> tuple[int, bytes, bool]:
    """Size, first bytes, and whether its maker holds it locked."""
    try:
        fd, size = shm.open_object(check_name(region), writable=False)
    except NotFound:
        fd, size = memfd.open_paper(paper_path(region), region)
    try:
        locked = shm.in_the_making(fd)  # asked first: a maker that is done by now has written the magic
        return size, os.pread(fd, _FIRST_BYTES, 0), locked
    finally:
        os.close(fd)
