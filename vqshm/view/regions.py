"""Regions: those that exist, for `vqshm ls`, and what `vqshm clean` removes or leaves, and why."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from vqshm.errors import NotFound, RuleError, UntrustedPeer
from vqshm.host import Condition, look_at, sweep
from vqshm.host.system.names import existing, naming_lock, runtime_directory
from vqshm.transport import check_name
from vqshm.view.snapshot import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

NOT_YOURS = "not yours"
NO_REGION = "socket only"

_WHY_LEFT = {
    Condition.ALIVE: "its coordinator runs",
    Condition.IN_THE_MAKING: "its coordinator is just making it",
    Condition.FOREIGN: "no region of this version, so not ours to judge",
    NOT_YOURS: "it belongs to another user",
}
_WHY_REMOVED = {
    Condition.STALE: "its coordinator has ended",
    Condition.HALF_MADE: "its coordinator ended while making it",
    NO_REGION: "a control socket without a region",
}


@dataclass(frozen=True, slots=True)
class Listed:
    """A region that exists: `condition` as `vqshm.host.Condition`, "not yours" or "socket only"; `size` in bytes."""

    name: str
    condition: str
    size: int = 0
    owner: Process | None = None
    devices: tuple[str, ...] = ()
    note: str = ""

    def as_map(self) -> dict[str, Any]:
        """Return it as maps, lists, numbers and texts."""
        whole = {field.name: getattr(self, field.name) for field in fields(self)}
        owner = self.owner
        whole["owner"] = owner and {field.name: getattr(owner, field.name) for field in fields(owner)}
        return {**whole, "condition": str(self.condition), "devices": list(self.devices)}


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did, or would do: names of regions, each with the reason."""

    removed: dict[str, str]
    left: dict[str, str]


def list_regions() -> list[Listed]:
    """All names of regions in /dev/shm, whoever made them, and those of sealed regions of this user."""
    return list(_regions())


def clean(*, dry_run: bool = False) -> Sweep:
    """Remove what dead runs left behind; with `dry_run` only say so. Raises UntrustedPeer (the runtime directory)."""
    with naming_lock() if dry_run else contextlib.nullcontext():
        before = [*_regions(), *_lone_sockets()]
        gone = {entry.name for entry in before if entry.condition in _WHY_REMOVED} if dry_run else set(sweep())
    removed = {entry.name: _WHY_REMOVED.get(entry.condition, "") for entry in before if entry.name in gone}
    removed |= dict.fromkeys(gone - removed.keys(), "its coordinator has ended")
    left = {entry.name: _WHY_LEFT.get(entry.condition, "") for entry in before if entry.name not in gone}
    return Sweep(dict(sorted(removed.items())), dict(sorted(left.items())))


def _regions() -> Iterator[Listed]:
    for name in existing():
        try:
            check_name(name)
            found = look_at(name)
        except NotFound:
            continue  # it was removed meanwhile
        except UntrustedPeer as error:
            yield Listed(name, NOT_YOURS, note=str(error))
            continue
        except RuleError as error:
            yield Listed(name, Condition.FOREIGN, note=str(error))
            continue
        owner = found.owner and Process.look_up(*found.owner)
        yield Listed(name, found.condition, found.size, owner, found.devices, found.problem)


def _lone_sockets() -> Iterator[Listed]:
    names = set(existing())
    for path in sorted(runtime_directory().glob("*.sock")):
        if path.stem not in names:
            yield Listed(path.stem, NO_REGION)
