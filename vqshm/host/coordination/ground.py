"""Ground: the memory a coordinator makes its region in, and how it takes the name for it.

All of it happens under the naming lock. Whatever fails before the name is taken has touched nothing of anybody's; after
it, nothing of the region is left. A region can be found when its magic is stored, which is last.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Literal, get_args

from vqshm.closing import close_all
from vqshm.errors import InvalidState, NameInUse, NotFound, RegionShrunk, StaleSession
from vqshm.host.system import memfd, names, shm
from vqshm.host.system.liveness import ProcessId
from vqshm.memory import Region
from vqshm.transport import Plan, write_manifest

if TYPE_CHECKING:
    import mmap

    from vqshm.closing import Owned
    from vqshm.host.system.pages import Hints
    from vqshm.notify.notifier import Kind

MemoryKind = Literal["named", "memfd"]
MEMORY_KINDS: Final[tuple[MemoryKind, ...]] = get_args(MemoryKind)


class Ground:
    """The memory of a region: "named" in /dev/shm, or a sealed "memfd". The naming lock is held while it is made."""

    def __init__(self, name: str, size: int, kind: MemoryKind, hints: Hints) -> None:
        """Make it. Raises NameInUse, ShmFull; nothing is left behind then."""
        self.name = name
        self._object: Owned | None = None  # to be handed over
        self._paper: Owned | None = None
        self.memory: mmap.mmap
        self._face = names.paper_path(name) if kind == "memfd" else shm.DIRECTORY / shm.object_name(name)[1:]
        if kind == "named":
            self.memory = shm.create(name, size, hints)
        else:
            self._paper = memfd.start_paper(self._face, name, size)
        try:
            self._identity = self._face.lstat()
            if kind == "named":
                self._object, _ = shm.open_object(name)
            else:
                self._object, self.memory = memfd.create(name, size, hints)
        except BaseException:
            self.close()
            names.remove(name)
            raise

    def publish(self, plan: Plan, notify: Kind) -> None:
        """Write the manifest: from now on the region can be found."""
        region, me = Region(self.memory), ProcessId.own()
        write_manifest(region, plan, name=self.name, pid=me.pid, start_time=me.start_time, notify=notify)
        if self._paper is not None:
            memfd.write_paper(self._paper, region.read(0, plan.cells_at))
            self._paper.close()

    @property
    def fd(self) -> int:
        """The descriptor of the memory, to be handed over. Raises InvalidState when closed."""
        if self._object is None or self._object.closed:
            raise InvalidState(f"the memory of region {self.name!r} is not open here")
        return self._object.fileno()

    def has_name(self) -> bool:
        """Whether the name still leads here, or to nothing: somebody may have removed it and made another."""
        try:
            return os.path.samestat(self._face.lstat(), self._identity)
        except FileNotFoundError:
            return self.name not in names.existing()

    def check_whole(self) -> None:
        """Raise RegionShrunk if somebody cut the memory; from then on it must not be touched."""
        if self.memory.size() < len(self.memory):
            raise RegionShrunk(
                f"somebody cut region {self.name!r} from {len(self.memory)} to {self.memory.size()} bytes; "
                "sealed memory (memory='memfd') cannot be cut",
                region=self.name,
            )

    def close(self) -> None:
        """Close the descriptors; who has the memory mapped keeps it. May be called twice."""
        close_all(each for each in (self._object, self._paper) if each is not None)


def take_name(name: str) -> None:
    """Remove what a dead run left under a name. Raises NameInUse, StaleSession."""
    try:
        found = names.look_at(name)
    except NotFound:
        names.remove_companions(name)
        return
    if found.holders:
        assert found.owner is not None  # noqa: S101 - by whom it is known that the region is held
        raise StaleSession(
            f"the coordinator of {name!r} (process {found.owner.pid}) has ended, but "
            f"{', '.join(map(str, found.holders))} work on in its region; end them, or choose another name, or take "
            f"the name from them with `vqshm clean --force {name}`",
            name=name,
            pids=[session.process.pid for session in found.holders],
        )
    if not found.abandoned:
        owner = f"process {found.owner.pid} owns it" if found.owner else f"it is not ours ({found.problem})"
        raise NameInUse(f"region {name!r} exists and {owner}; choose another name", name=name)
    names.remove(name)
