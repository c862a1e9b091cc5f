"""Names: what a region leaves in the file system, and how leftovers of dead runs are told from the living.

    /dev/shm/vqshm.NAME                the region; its header names the coordinator by pid and start time
    RUNTIME/NAME.memfd                 instead of it, where the memory itself has no name: its paper (memfd.py)
    /dev/shm/sem.vqshm.NAME.K0 …       its semaphores, where it uses them: a kick and a call for each device
    RUNTIME/NAME.sock                  its control socket, mode 0600
    RUNTIME/lock                       held (flock) only while a name is taken or swept

RUNTIME is $VQSHM_RUNTIME_DIR, else $XDG_RUNTIME_DIR/vqshm, else a directory in /tmp; mode 0700 and ours.

A name is stale if its coordinator has ended, and nobody who holds a role in its region is left; it is held while
somebody is. A region whose header has no magic yet is in the making while its maker has it locked (flock, which the
kernel lets go of when the maker ends), else it was left half made. What carries another magic or version is not ours to
judge, and is left alone.

The socket is a second name: a region whose file somebody removed can still be attached to, as its coordinator hands
over the memory, and nobody else gets its name while somebody listens there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vqshm.closing import Owned, owned
from vqshm.errors import DeadlineExceeded, InvalidState, NotFound, RuleError, UntrustedPeer, VersionMismatch
from vqshm.host.connection import fetch_memory
from vqshm.host.system import memfd, sessions, shm
from vqshm.host.system.liveness import ProcessId
from vqshm.notify import Deadline, unlink_semaphore
from vqshm.transport import Header, Plan, check_name, check_peer, read_header, read_manifest

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
    deadline = Deadline(LOCK_TIMEOUT)
    with owned(os.open, path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600) as lock:
        while not _locked(lock.fileno()):
            if deadline.expired:
                raise DeadlineExceeded(f"another process, stopped perhaps, holds {path}; see /proc/locks")
            time.sleep(_LOCK_PAUSE)
        yield


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Condition(StrEnum):
    """What a region's header tells about it."""

    ALIVE = "alive"  # its coordinator runs
    UNNAMED = "name removed"  # likewise, but its file is not there any more
    HELD = "held"  # its coordinator has ended, but others work in it
    STALE = "stale"  # its coordinator has ended, and nobody works in it
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
    holders: tuple[sessions.Session, ...] = ()  # who works in it without its coordinator

    @property
    def abandoned(self) -> bool:
        """Whether nobody owns it any more."""
        return self.condition in {Condition.STALE, Condition.HALF_MADE}


def look_at(region: str) -> Found:
    """What is known about a region, without asking anybody. Raises NotFound, UntrustedPeer."""
    try:
        size, first, locked = _first_bytes(region)
    except NotFound:
        pid = listener(region)
        if pid is None:
            raise
        return Found(region, Condition.UNNAMED, 0, ProcessId.of(pid), problem="its name was removed")
    try:
        header, plan = read_header(first, size), read_manifest(first, size)
    except InvalidState as error:
        condition = Condition.IN_THE_MAKING if locked else Condition.HALF_MADE
        return Found(region, condition, size, problem=str(error))
    except VersionMismatch as error:
        return Found(region, Condition.FOREIGN, size, problem=str(error))
    owner = ProcessId(header.pid, header.start_time)
    holders: tuple[sessions.Session, ...] = ()
    condition = Condition.ALIVE
    if not owner.alive:
        holders = _holders(region)
        condition = Condition.HELD if holders else Condition.STALE
    return Found(region, condition, size, owner, devices=tuple(device.name for device in plan.devices), holders=holders)


def listener(region: str) -> int | None:
    """The pid of who listens at the control socket of a region, 0 if that cannot be told; None if nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(str(socket_path(region)))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EPROTOTYPE, errno.EACCES}:
                raise
            return 0  # it accepts nobody at the moment, or is something else
        try:
            return check_peer(sock).pid
        except UntrustedPeer:
            return 0


def sockets_alone() -> list[str]:
    """The names of which only a control socket is there."""
    try:
        sockets = [path.stem for path in runtime_directory().glob("*.sock")]
    except UntrustedPeer:
        sockets = []  # as for `existing`
    return sorted(set(sockets) - set(existing()))


def _holders(region: str) -> tuple[sessions.Session, ...]:
    """Who works in a region whose coordinator has ended."""
    left = open_deserted(region)
    if left is None:
        return ()
    fd, _, plan = left
    with fd:
        return tuple(sessions.living(fd.fileno(), plan))


def look_at_all() -> list[Found]:
    """All regions of this user."""
    found = []
    for name in [*existing(), *sockets_alone()]:
        with contextlib.suppress(NotFound, UntrustedPeer, RuleError):  # RuleError: no region has such a name
            found.append(look_at(name))
    return found


def open_plan(region: str, *, writable: bool = True, deadline: Deadline = _FOREVER) -> tuple[Owned, Header, Plan]:
    """(descriptor, header, plan) of a region, every field of it checked before anything of that size is mapped.

    The descriptor is the caller's. Raises NotFound (the message lists what exists), UntrustedPeer, InvalidState (half
    made), VersionMismatch; and, where the coordinator is asked for the memory, CoordinatorGone, DeadlineExceeded.
    """
    try:
        fd, size = shm.open_object(check_name(region), writable=writable)
    except NotFound:
        fd, size = _fetch(region, writable=writable, deadline=deadline)
    try:
        return fd, *_read(fd, size)
    except BaseException:
        fd.close()
        raise


def open_deserted(region: str) -> tuple[Owned, Header, Plan] | None:
    """As `open_plan`, without the coordinator, which has ended; None if its memory is gone with it."""
    if not paper_path(region).exists():
        return open_plan(region)
    paper, size = memfd.open_paper(paper_path(region), region)
    with paper:
        header, plan = _read(paper, size)
        fd = memfd.find(region, os.pread(paper.fileno(), plan.cells_at, 0))
    return None if fd is None else (fd, header, plan)


def _fetch(region: str, *, writable: bool, deadline: Deadline) -> tuple[Owned, int]:
    """(descriptor, size) of the memory of a region that has no name, or none any more, from its coordinator."""
    sealed = True
    try:
        paper, size = memfd.open_paper(paper_path(region), region)
    except NotFound:
        pid = listener(region)
        if pid is None:
            raise NotFound(f"there is no region {region!r}; {_listing()}", name=region) from None
        sealed = False  # or it is, and its paper was removed: who it belongs to is checked all the same
    else:
        with paper:
            pid = _read(paper, size)[0].pid
    fd = fetch_memory(socket_path(region), region, writable=writable, coordinator=pid, deadline=deadline)
    try:
        if sealed:
            return fd, memfd.check(fd, region)
        status = os.fstat(fd.fileno())
        shm.check_ours(region, status)
    except BaseException:
        fd.close()
        raise
    return fd, status.st_size


def _read(fd: Owned, size: int) -> tuple[Header, Plan]:
    first = os.pread(fd.fileno(), _FIRST_BYTES, 0)
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


def sweep(only: Collection[str] = (), *, force: bool = False) -> list[str]:
    """Remove every region that nobody owns or works in, and sockets without a region, or `only` some; their names.

    `force`: also those whose owner has ended while others work on in them. They go on, and nobody can join them.
    """
    with naming_lock():
        found = look_at_all()
        stale = [each.name for each in found if each.abandoned or (force and each.condition is Condition.HELD)]
        stale += set(sockets_alone()) - {each.name for each in found}
        removed = []
        for name in stale:
            if only and name not in only:
                continue
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
    with fd:
        locked = shm.in_the_making(fd)  # asked first: a maker that is done by now has written the magic
        return size, os.pread(fd.fileno(), _FIRST_BYTES, 0), locked
