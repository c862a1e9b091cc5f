"""App: the group of commands. A command's module is imported when it is used, so `vqshm --help` stays quick."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from vqshm import __version__, core
from vqshm.errors import VqshmError

# name → where it lives, and its line in the help
COMMANDS = {
    "coordinator": ("vqshm.cli.coordinator:coordinator", "Make a region and serve it until Ctrl-C."),
    "supervise": ("vqshm.cli.supervise:supervise", "Keep a device process running."),
    "demo": ("vqshm.demo.command:demo", "See three processes exchange buffers, on one screen."),
    "bench": ("vqshm.cli.bench:bench", "Measure what moving messages costs here, and beside others."),
    "ls": ("vqshm.cli.regions:ls", "List the regions that exist."),
    "stat": ("vqshm.cli.stat:stat", "Look into a running region: who, in which state, how much."),
    "clean": ("vqshm.cli.regions:clean", "Remove what dead runs left behind."),
    "doctor": ("vqshm.cli.doctor:doctor", "Say what this machine offers, and what it lacks."),
}

EXIT_INTERRUPTED = 130


class Failure(click.ClickException):
    """An error that ends a command: one line on stderr, exit code 1."""

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo(f"error: {self.message}", file=file or sys.stderr)


class Commands(click.Group):
    """The commands of the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Their names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Load the command of that name; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without loading one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; whatever it fails with becomes one line and an exit code."""
        try:
            return super().invoke(ctx)
        except VqshmError as error:
            raise Failure(str(error)) from error
        except BrokenPipeError:
            raise  # whoever reads our output has left: click ends quietly
        except OSError as error:
            raise Failure(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                click.echo(file=sys.stderr)  # the prompt comes behind the ^C otherwise
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message=f"vqshm %(version)s, {core.kind()} core ({core.reason()})")
def commands() -> None:
    """Virtio virtqueues in POSIX shared memory, between processes.

    A coordinator makes a region; a driver and a device process attach to each device in it.
    Start with `vqshm demo`, or with `vqshm coordinator` and what it tells you to type.
    """
