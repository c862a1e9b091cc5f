"""Sessions: who still works in a region whose coordinator has ended.

The cells of a region name the holders of each role. Whoever maps the region can write them, so a cell is only a hint:
it counts if the process it names runs (pid and start time) and has this very region open, which the kernel knows. Where
the kernel does not tell, because the process does not let itself be looked at, a process of this user counts.
An endpoint that closes takes its name out of its cell by itself, coordinator or not.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from vqshm.host.system.liveness import ProcessId
from vqshm.memory import Region
from vqshm.transport import Manifest, Plan


class Session(NamedTuple):
    """A process that holds a role."""

    device: str
    role: str
    process: ProcessId

    def __str__(self) -> str:
        return f"process {self.process.pid} ({self.role} of {self.device!r})"


def living(fd: int, plan: Plan) -> list[Session]:
    """Those who hold a role in the region behind `fd` and have not ended."""
    found = []
    manifest = Manifest(Region(os.pread(fd, plan.manifest_bytes, 0)), plan)  # a copy: it may change under our eyes
    for device in plan.devices:
        cells = manifest.device(device.index)
        for role, process in (
            ("driver", ProcessId(cells.driver_pid, cells.driver_start_time)),
            ("device", ProcessId(cells.device_pid, cells.device_start_time)),
        ):
            if process.alive and has_open(process.pid, fd):
                found.append(Session(device.name, role, process))
    return found


def has_open(pid: int, fd: int) -> bool:
    """Whether a process has the file behind `fd` open; a mapping of it counts, because Python keeps its descriptor."""
    wanted = os.fstat(fd)
    try:
        entries = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - names only
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:
        return _user(pid) == os.geteuid()  # another user could not have opened it
    return any(_same(f"/proc/{pid}/fd/{entry}", wanted) for entry in entries)


def _user(pid: int) -> int | None:
    """As whom a process runs. The owner of its folder says less: it is root where the process cannot be dumped."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[2])  # real, effective, saved, of the file system
    return None


def _same(path: str, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), wanted)  # noqa: PTH116 - half the cost
    except OSError:
        return False  # closed meanwhile
