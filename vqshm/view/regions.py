"""Regions: those that exist, for `vqshm ls`, and what `vqshm clean` removes or leaves, and why."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from vqshm.errors import NotFound, RuleError, UntrustedPeer
from vqshm.host import Condition, look_at, sweep
from vqshm.host.system.names import existing, naming_lock, sockets_alone
from vqshm.transport import check_name
from vqshm.view.snapshot import Process

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

NOT_YOURS = "not yours"
NO_REGION = "socket only"

_WHY_LEFT = {
    Condition.ALIVE: "its coordinator runs",
    Condition.UNNAMED: "its coordinator runs, and lets others in, although its file was removed",
    Condition.IN_THE_MAKING: "its coordinator is just making it",
    Condition.FOREIGN: "no region of this version, so not ours to judge",
    NOT_YOURS: "it belongs to another user",
}
_WHY_REMOVED = {
    Condition.STALE: "its coordinator has ended",
    Condition.HALF_MADE: "its coordinator ended while making it",
    NO_REGION: "a control socket without a region",
}
_FORCED: Final = "its coordinator has ended; those who work in it go on, but nobody can join them"


@dataclass(frozen=True, slots=True)
class Listed:
    """A region that exists: `condition` as `vqshm.host.Condition`, "not yours" or "socket only"; `size` in bytes."""

    name: str
    condition: str
    size: int = 0
    owner: Process | None = None
    devices: tuple[str, ...] = ()
    note: str = ""
    holders: tuple[str, ...] = ()  # who works in it without its coordinator

    def as_map(self) -> dict[str, Any]:
        """Return it as maps, lists, numbers and texts."""
        whole = {field.name: getattr(self, field.name) for field in fields(self)}
        owner = self.owner
        whole["owner"] = owner and {field.name: getattr(owner, field.name) for field in fields(owner)}
        lists = {"devices": list(self.devices), "holders": list(self.holders)}
        return {**whole, "condition": str(self.condition), **lists}


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did, or would do: names of regions, each with the reason."""

    removed: dict[str, str]
    left: dict[str, str]


def list_regions() -> list[Listed]:
    """All names of regions in /dev/shm, whoever made them, and those of sealed regions of this user."""
    return [entry for entry in _regions() if entry.condition != NO_REGION]


def clean(only: Collection[str] = (), *, force: bool = False, dry_run: bool = False) -> Sweep:
    """Remove what dead runs left behind, as `sweep` does; with `dry_run` only say so.

    Raises UntrustedPeer (the runtime directory), NotFound for a name of `only` that does not exist.
    """
    reasons = _WHY_REMOVED | ({Condition.HELD: _FORCED} if force else {})
    with naming_lock() if dry_run else contextlib.nullcontext():
        before = [entry for entry in _regions() if not only or entry.name in only]
        unknown = set(only) - {entry.name for entry in before}
        if unknown:
            raise NotFound(f"there is no region {', '.join(sorted(unknown))}; `vqshm ls` lists those that exist")
        if dry_run:
            gone = {entry.name for entry in before if entry.condition in reasons}
        else:
            gone = set(sweep(only, force=force))
    removed = {entry.name: reasons.get(entry.condition, "") for entry in before if entry.name in gone}
    removed |= dict.fromkeys(gone - removed.keys(), "its coordinator has ended")
    left = {entry.name: _why_left(entry) for entry in before if entry.name not in gone}
    return Sweep(dict(sorted(removed.items())), dict(sorted(left.items())))


def _why_left(entry: Listed) -> str:
    if entry.condition == Condition.HELD:
        who = ", ".join(entry.holders)
        return f"its coordinator has ended, but {who} work on in it; `vqshm clean --force {entry.name}` takes the name"
    return _WHY_LEFT.get(entry.condition, "")


def _regions() -> Iterator[Listed]:
    alone = set(sockets_alone())
    for name in sorted({*existing(), *alone}):
        try:
            check_name(name)
            found = look_at(name)
        except NotFound:
            if name in alone:  # else it was removed meanwhile
                yield Listed(name, NO_REGION)
            continue
        except UntrustedPeer as error:
            yield Listed(name, NOT_YOURS, note=str(error))
            continue
        except RuleError as error:
            if name not in alone:  # a socket of another program
                yield Listed(name, Condition.FOREIGN, note=str(error))
            continue
        owner = found.owner and Process.look_up(*found.owner)
        holders = tuple(map(str, found.holders))
        yield Listed(name, found.condition, found.size, owner, found.devices, found.problem, holders)
