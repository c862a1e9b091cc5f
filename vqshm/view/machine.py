"""Machine: what this computer offers to vqshm, as a list of findings with advice (`vqshm doctor`).

Each check stands alone and imports what it needs itself, so that a missing library is a finding and not a traceback.
What a check makes (a semaphore, an eventfd) it removes again.
"""

from __future__ import annotations

import importlib
import os
import platform
import resource
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from vqshm import core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Level = Literal["ok", "warn", "fail"]

SMALL_SHM: Final = 64 << 20  # bytes: what a container gets by default
FEW_FILES: Final = 1024  # descriptors
EXTRAS: Final = {"cli": ("click", "rich"), "test": ("pytest", "pytest-timeout", "hypothesis")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do if it should be otherwise. "fail": vqshm needs it."""

    check: str
    level: Level
    value: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look at everything, in the order in which people want to read it."""
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            findings += [Finding(name, *finding) for finding in check()]
        except Exception as error:  # noqa: BLE001 - whatever is broken here is what we are asked for
            findings.append(Finding(name, "fail", _words(error), "vqshm does not work without it"))
    return findings


_Line = tuple[Level, str] | tuple[Level, str, str]


def _python() -> Iterator[_Line]:
    gil = "" if getattr(sys, "_is_gil_enabled", lambda: True)() else ", without the GIL"
    yield "ok", f"{platform.python_implementation()} {platform.python_version()}{gil}, {sys.executable}"


def _system() -> Iterator[_Line]:
    value = f"{platform.system()} {platform.release()}, {platform.machine()}, {sys.byteorder}-endian"
    if sys.platform == "linux" and sys.byteorder == "little":
        yield "ok", value
    else:
        yield "fail", value, "vqshm runs on little-endian Linux"


def _core() -> Iterator[_Line]:
    value = f"{core.kind()}: {core.reason()}"
    if core.kind() == "compiled" or core.forced():
        yield "ok", value
    else:
        yield "warn", value, "the interpreted core is much slower: install a C compiler, then vqshm anew"


def _ordering() -> Iterator[_Line]:
    from vqshm.memory import atomic  # noqa: PLC0415 - see the head of this file

    if atomic.ORDERED:
        yield "ok", atomic.FENCE
    else:
        yield (
            "fail",
            f"the interpreted core cannot order memory on {platform.machine()}",
            "processes must not share rings here: install the compiled core",
        )


def _processors() -> Iterator[_Line]:
    usable, total = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    value = f"{usable} of {total} usable"
    if usable > 1:
        yield "ok", value
    else:
        yield "warn", value, "driver and device take turns on one processor: expect a context switch for every wake-up"


def _shared_memory() -> Iterator[_Line]:
    from vqshm.host.system import shm  # noqa: PLC0415

    usage = os.statvfs(shm.DIRECTORY)
    size, free = usage.f_blocks * usage.f_frsize, usage.f_bavail * usage.f_frsize
    value = f"{shm.DIRECTORY}: {in_bytes(free)} free of {in_bytes(size)}"
    enlarge = f"enlarge it: mount -o remount,size=1G {shm.DIRECTORY}; docker run --shm-size 1g"
    if not os.access(shm.DIRECTORY, os.W_OK | os.X_OK):
        yield "fail", value + ", not writable", "it must be writable for everybody: chmod 1777"
    elif free < SMALL_SHM:
        yield "warn", value, f"regions need room: `vqshm clean`, or {enlarge}"
    elif _file_system(shm.DIRECTORY) not in {"tmpfs", ""}:
        yield (
            "warn",
            f"{value}, on {_file_system(shm.DIRECTORY)}",
            "shared memory on a disk is slow: mount a tmpfs there",
        )
    else:
        yield "ok", value
    yield from _made_and_removed(shm.DIRECTORY)


def _made_and_removed(directory: Path) -> Iterator[_Line]:
    import posix_ipc  # noqa: PLC0415

    name = f"/vqshm-doctor-{os.getpid()}"
    memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    try:
        os.posix_fallocate(memory.fd, 0, 4096)
    finally:
        memory.close_fd()
        posix_ipc.unlink_shared_memory(name)
    if Path(directory, name[1:]).exists():
        yield "warn", f"{name} is still there after its removal"


def _limit(kind: int) -> tuple[int, str]:
    """The soft limit (endless: the largest there is), and both limits in words."""
    soft, hard = resource.getrlimit(kind)
    endless = resource.RLIM_INFINITY
    words = ["unlimited" if limit == endless else f"{limit:,}" for limit in (soft, hard)]
    return (sys.maxsize if soft == endless else soft), words[0] if soft == hard else f"{words[0]} (at most {words[1]})"


def _files() -> Iterator[_Line]:
    soft, value = _limit(resource.RLIMIT_NOFILE)
    if soft >= FEW_FILES:
        yield "ok", f"{value} descriptors for a process"
    else:
        yield "warn", f"{value} descriptors for a process", f"each queue takes two: ulimit -n {FEW_FILES}"


def _locked_memory() -> Iterator[_Line]:
    _, value = _limit(resource.RLIMIT_MEMLOCK)
    yield "ok", f"{value} bytes (vqshm reserves its pages, and locks none)"


def _eventfd() -> Iterator[_Line]:
    from vqshm.notify import EventFd  # noqa: PLC0415

    with EventFd.create() as bell:
        bell.signal()
        rang = bell.wait(1.0)
    yield ("ok", "works") if rang else ("fail", "was signalled, and nobody woke up", "use --notify semaphore")


def _semaphores() -> Iterator[_Line]:
    import posix_ipc  # noqa: PLC0415

    from vqshm.notify import Semaphore  # noqa: PLC0415

    with Semaphore.create(f"/vqshm-doctor-{os.getpid()}") as bell:
        try:
            bell.signal()
            rang = bell.wait(1.0)
        finally:
            bell.unlink()
    value = f"posix_ipc {posix_ipc.VERSION}"
    yield ("ok", f"{value}, works") if rang else ("fail", f"{value}: signalled, and nobody woke up", "use eventfds")


def _pidfd() -> Iterator[_Line]:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        yield (
            "fail",
            _words(error),
            "the death of a peer is seen by a pidfd: Linux 5.3 or newer, and no seccomp against it",
        )
    else:
        yield "ok", "works"


def _msgpack() -> Iterator[_Line]:
    msgpack = importlib.import_module("msgpack")
    pure = importlib.import_module("msgpack.fallback").Packer is msgpack.Packer
    yield "ok", f"{metadata.version('msgpack')}{', its Python version' if pure else ''}"


def _runtime_directory() -> Iterator[_Line]:
    from vqshm.errors import VqshmError  # noqa: PLC0415
    from vqshm.host.system.names import runtime_directory  # noqa: PLC0415

    try:
        yield "ok", f"{runtime_directory()}, of this user alone"
    except (VqshmError, OSError) as error:
        yield "fail", _words(error), "make it so, or name another one: VQSHM_RUNTIME_DIR"


def _extras() -> Iterator[_Line]:
    for extra, packages in EXTRAS.items():
        versions = {package: _version(package) for package in packages}
        missing = [package for package, version in versions.items() if not version]
        have = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
        if missing:
            yield "ok", f"{extra}: not installed ({', '.join(missing)})", f"pip install 'vqshm[{extra}]'"
        else:
            yield "ok", f"{extra}: {have}"


def _regions() -> Iterator[_Line]:
    from vqshm.host import Condition  # noqa: PLC0415
    from vqshm.view.regions import list_regions  # noqa: PLC0415

    found = list_regions()
    if not found:
        yield "ok", "none"
    for condition in dict.fromkeys(entry.condition for entry in found):
        names = [entry.name for entry in found if entry.condition == condition]
        value = f"{len(names)} {condition}: {', '.join(names)}"
        if condition in {Condition.STALE, Condition.HALF_MADE}:
            yield "warn", value, "vqshm clean"
        else:
            yield "ok", value


CHECKS: Final[dict[str, Callable[[], Iterator[_Line]]]] = {
    "Python": _python,
    "system": _system,
    "core": _core,
    "ordering": _ordering,
    "processors": _processors,
    "shared memory": _shared_memory,
    "open files": _files,
    "locked memory": _locked_memory,
    "eventfd": _eventfd,
    "semaphores": _semaphores,
    "pidfd": _pidfd,
    "msgpack": _msgpack,
    "runtime directory": _runtime_directory,
    "extras": _extras,
    "regions": _regions,
}


def in_bytes(count: int) -> str:
    """A number of bytes in words: "64 B", "4 MiB", "1.5 GiB"."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    text = f"{size:.0f}" if unit == "B" or size >= 100 else f"{size:.1f}".removesuffix(".0")
    return f"{text} {unit}"


def _file_system(path: Path) -> str:
    """The type of file system mounted at `path`, or nothing if that is no mount point."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        _, where, kind, *_ = line.split(" ")
        if where == str(path):
            return kind
    return ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
