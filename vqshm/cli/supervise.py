"""`vqshm supervise`: keep a device process running."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

import click

from vqshm.cli.app import EXIT_INTERRUPTED
from vqshm.cli.coordinator import noted_signals
from vqshm.host import Handle, Supervise, Supervisor, Worker
from vqshm.host.coordination.supervisor import What

if TYPE_CHECKING:
    from collections.abc import Sequence

_DEFAULT = Supervise()


@click.command(short_help="Keep a device process running.", context_settings={"ignore_unknown_options": True})
@click.option("--region", help="Tell this region when the process is given up, so that no driver waits for it.")
@click.option("--device", help="The device it serves there, if there are several.")
@click.option("--max-restarts", type=click.IntRange(0), default=_DEFAULT.max_restarts, show_default=True)
@click.option("--within", type=float, default=_DEFAULT.within, show_default=True, help="Seconds in which they count.")
@click.option(
    "--backoff", type=(float, float), default=_DEFAULT.backoff, show_default=True, help="First and longest pause, s."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def supervise(
    ctx: click.Context,
    *,
    region: str | None,
    device: str | None,
    max_restarts: int,
    within: float,
    backoff: tuple[float, float],
    command: Sequence[str],
) -> None:
    """Run COMMAND, and run it again when it dies: later each time, and no more after too many deaths.

    It has done its work when it ends with status 0. Ctrl-C and SIGTERM end it. Where the region was made with
    `--restart resume`, its drivers notice nothing of a death but a delay.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rules = Supervise(max_restarts, within, backoff)
    worker = Worker(command[0], command, rules, Handle(region, device) if region else None)
    with noted_signals() as (noted, stop):
        with Supervisor([worker]) as supervisor:
            states = supervisor.run(stop)
        if signal.SIGINT in noted:
            ctx.exit(EXIT_INTERRUPTED)
    if What.GAVE_UP in states.values():
        ctx.exit(1)
