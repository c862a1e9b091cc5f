"""Source: the file that the demo streams: the one that is named, or real bytes that every machine has."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

ENOUGH: Final = 1 << 20  # bytes; a smaller file shows little


class UnfitFile(Exception):
    """A file that cannot be streamed; the message says why, in one line."""


def check_file(path: Path) -> int:
    """The size of a regular file that can be read and is not empty. Raises UnfitFile."""
    try:
        # Not blocking: opening a pipe that nobody writes to would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise UnfitFile(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if stat.S_ISDIR(status.st_mode):
        raise UnfitFile(f"cannot stream {path}: it is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise UnfitFile(f"cannot stream {path}: it is not a regular file")
    if status.st_size == 0:
        raise UnfitFile(f"cannot stream {path}: it is empty")
    return status.st_size


def default_file() -> Path:
    """The larger of this interpreter's own files, its program and its library; else the largest file it has mapped.

    Raises UnfitFile where none of them can be read.
    """
    sizes: dict[Path, int] = {}
    for path in {Path(sys.executable).resolve(), *_mapped()}:
        try:
            sizes[path] = check_file(path)
        except UnfitFile:
            continue
    own = {path: size for path, size in sizes.items() if path.name.startswith(("python", "libpython"))}
    if max(own.values(), default=0) >= ENOUGH:
        sizes = own
    if not sizes:
        raise UnfitFile("this interpreter's own files cannot be read: name a FILE")
    return max(sizes, key=lambda path: (sizes[path], str(path)))


def _mapped() -> list[Path]:
    """The files that this process has mapped: its program and all its libraries."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    return [Path(fields[5]) for line in lines if len(fields := line.split(None, 5)) == 6 and fields[5].startswith("/")]
