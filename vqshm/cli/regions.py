"""`vqshm ls` and `vqshm clean`: which regions exist, and away with those that nobody owns any more."""

from __future__ import annotations

import json

import click
from rich.text import Text

from vqshm.cli.console import BAD, DIM, GOOD, STRONG, WARNING, console, grid, process
from vqshm.host import Condition
from vqshm.view import regions
from vqshm.view.machine import in_bytes

_STYLES = {
    Condition.ALIVE: GOOD,
    Condition.UNNAMED: WARNING,
    Condition.HELD: WARNING,
    Condition.STALE: BAD,
    Condition.HALF_MADE: BAD,
}


@click.command(short_help="List the regions that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of maps.")
def ls(*, as_json: bool) -> None:
    """List the regions that exist in /dev/shm: condition, coordinator, size, devices.

    A stale one was left behind by a coordinator that ended without notice; `vqshm clean` removes it. In one that is
    held others work on without their coordinator. Where the name was removed, the coordinator still lets others in.
    """
    found = regions.list_regions()
    if as_json:
        click.echo(json.dumps([entry.as_map() for entry in found], indent=2))
        return
    screen = console()
    if not found:
        screen.print("no regions; `vqshm coordinator NAME` makes one")
        return
    table = grid("region", "condition", "coordinator", "size", "devices", right=("size",), folding="coordinator")
    for entry in found:
        owner = process(entry.owner) if entry.owner else Text(entry.note or "unknown", DIM)
        if entry.holders:
            owner.append(f"; {', '.join(entry.holders)} work on", WARNING)
        condition = Text(entry.condition, _STYLES.get(Condition(entry.condition), DIM) if _known(entry) else DIM)
        table.add_row(Text(entry.name, STRONG), condition, owner, in_bytes(entry.size), ", ".join(entry.devices))
    screen.print(table)


@click.command(short_help="Remove what dead runs left behind.")
@click.argument("names", metavar="[REGION]...", nargs=-1)
@click.option("--force", "-f", is_flag=True, help="Also where others work on after their coordinator ended.")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would be removed.")
def clean(names: tuple[str, ...], *, force: bool, dry_run: bool) -> None:
    """Remove regions whose coordinator has ended, with their sockets and semaphores.

    Regions that somebody serves or works in, or that belong to somebody else, are left alone. --force takes the name
    from those who work in one, too: they go on, and see nothing of it.
    """
    done = regions.clean(names, force=force, dry_run=dry_run)
    screen = console()
    for name, why in done.removed.items():
        screen.print(
            Text("would remove " if dry_run else "removed ", GOOD).append(name, STRONG).append(f": {why}", DIM)
        )
    for name, why in done.left.items():
        screen.print(Text("left ").append(name, STRONG).append(f": {why}", DIM))
    if not done.removed:
        screen.print("nothing to remove")


def _known(entry: regions.Listed) -> bool:
    return entry.condition in set(Condition)
