"""Pages: how the memory of a region is reserved, placed and mapped, whatever kind of object it is.

Reserving makes a lack of memory an error at creation, and not SIGBUS later. Mapping faults everything in at once, so
that the first use of a page costs no more than the second.

`Hints` are wishes. One that the machine does not grant is a warning that says why, and the region is made without it.
Placing comes before reserving, because a page that exists stays where it is. What the maker of a region places or locks
is so for all who map it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import platform
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vqshm.errors import RegionShrunk, RuleError

if TYPE_CHECKING:
    from collections.abc import Callable

MADV_POPULATE_READ: Final = 22  # Linux 5.14
MADV_POPULATE_WRITE: Final = 23

_MPOL_PREFERRED: Final = 1
_MAX_NODES: Final = 1024  # of the kernel's configuration, at most
_SYS_MBIND: Final = {"x86_64": 237, "aarch64": 235, "riscv64": 235}
_HUGE_SHARED: Final = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@dataclass(frozen=True, slots=True)
class Hints:
    """What would be good for the memory of a region.

    `huge_pages`: back it with large pages. `lock`: never swap it out. `numa_node`: take it from this node first.
    """

    huge_pages: bool = False
    lock: bool = False
    numa_node: int | None = None

    def __post_init__(self) -> None:
        node = self.numa_node
        if node is not None and (not isinstance(node, int) or isinstance(node, bool) or not 0 <= node < _MAX_NODES):
            raise RuleError(f"a NUMA node is a number in 0..{_MAX_NODES - 1}, not {node!r}", numa_node=node)


NO_HINTS: Final = Hints()


def reserve(fd: int, size: int, hints: Hints = NO_HINTS) -> mmap.mmap:
    """Give the new object behind `fd` its size and its pages, and map it. Raises OSError (ENOSPC, ENOMEM, EFBIG)."""
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED)
    if hints.numa_node is not None:
        _wish(f"memory of NUMA node {hints.numa_node}", _prefer_node, memory, hints.numa_node)
    if hints.huge_pages:
        _wish("huge pages", _ask_for_huge_pages, memory)
        with contextlib.suppress(OSError):  # only a fault makes them; what cannot be had is reserved or refused next
            memory.madvise(MADV_POPULATE_WRITE)
    os.posix_fallocate(fd, 0, size)
    _populate(memory, MADV_POPULATE_WRITE)
    if hints.lock:
        _wish("locked memory", _lock, memory)
    return memory


def map_object(fd: int, size: int, *, writable: bool = True) -> mmap.mmap:
    """Map `size` bytes, all pages present from the start. Raises RegionShrunk if the object has fewer by now."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=protection)
    except ValueError as error:  # Python asks for the size once more
        raise RegionShrunk(f"the region was cut while it was mapped: {error}", size=size) from error
    _populate(memory, MADV_POPULATE_WRITE if writable else MADV_POPULATE_READ)
    return memory


def _populate(memory: mmap.mmap, advice: int) -> None:
    try:
        memory.madvise(advice)
    except OSError as error:
        if error.errno == errno.EFAULT:
            raise RegionShrunk("the region was cut while it was mapped", size=len(memory)) from error
        if error.errno != errno.EINVAL:  # an older kernel: the pages come one by one
            raise


def _wish(what: str, grant: Callable[..., None], *args: Any) -> None:
    try:
        grant(*args)
    except OSError as error:
        warnings.warn(f"the region has no {what}: {error.strerror or error}", RuntimeWarning, stacklevel=4)


def _ask_for_huge_pages(memory: mmap.mmap) -> None:
    """As in the kernel's documentation on transparent huge pages: shared memory has a switch of its own."""
    policy = _HUGE_SHARED.read_text(encoding="ascii")
    for word in ("[never]", "[deny]"):
        if word in policy:
            raise OSError(errno.EOPNOTSUPP, f"{_HUGE_SHARED} says {word}; `advise` would let regions have them")
    memory.madvise(mmap.MADV_HUGEPAGE)


def _prefer_node(memory: mmap.mmap, node: int) -> None:
    number = _SYS_MBIND.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"mbind is not known on {platform.machine()}")
    mask = (1 << node).to_bytes(_MAX_NODES // 8, "little")
    _call("syscall", number, *_range(memory), _MPOL_PREFERRED, mask, _MAX_NODES + 1, 0)


def _lock(memory: mmap.mmap) -> None:
    try:
        _call("mlock", *_range(memory))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (see `ulimit -l`)") from error


def _range(memory: mmap.mmap) -> tuple[Any, Any]:
    """Address and length of a mapping, for C."""
    import ctypes  # noqa: PLC0415 - only those with wishes pay for it

    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return ctypes.c_void_p(address), ctypes.c_size_t(len(memory))


def _call(function: str, *args: Any) -> None:
    import ctypes  # noqa: PLC0415 - as above

    arguments = [ctypes.c_long(value) if isinstance(value, int) else value for value in args]
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
