"""`vqshm bench`: measures this machine's vqshm, and what else is installed beside it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from vqshm.bench import plot as picture
from vqshm.bench import report
from vqshm.bench.measures import MEASURES, Settings
from vqshm.bench.peers import OTHERS, groups
from vqshm.bench.rounds import plan, run, summarise
from vqshm.cli.console import DIM, console

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from vqshm.bench.peers import Peer
    from vqshm.bench.rounds import Sample

NAME = "vqshm-bench"


@click.command(short_help="Measure vqshm here, alone or beside its peers.")
@click.option("--vs", "against", multiple=True, metavar="NAME,…|all", help="Measure these, too, in the same rounds.")
@click.option("--only", multiple=True, metavar="MEASURE,…", help="Only these measures.")
@click.option("--rounds", type=click.IntRange(1), help="How often everything is measured.  [default: 5]")
@click.option("--seconds", type=click.FloatRange(0.001), help="Of one sample.  [default: 0.5]")
@click.option("--quick", is_flag=True, help="Fewer sizes, 1 round of 0.1 s: a look, not a result.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help=f"Where the figures go.  [{NAME}.json]")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help=f"PNG, SVG or PDF.  [{NAME}.png]")
@click.option("--list", "listing", is_flag=True, help="Show measures and peers, and measure nothing.")
def bench(
    *,
    against: tuple[str, ...],
    only: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    quick: bool,
    json_path: Path | None,
    plot_path: Path | None,
    listing: bool,
) -> None:
    """Measure what moving messages costs here: tables, a JSON file, and a plot where matplotlib is installed.

    Every sample runs in fresh processes, every message is checked. Ctrl-C ends it; what was measured is kept.
    """
    screen = console()
    if listing:
        _list(screen)
        return
    names = _chosen(only, list(MEASURES), "--only") or list(MEASURES)
    others, skipped = _others(against)
    if plot_path is not None:
        _check_folder(plot_path, "--plot")
        try:
            picture.check(plot_path)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--plot") from error
    settings = Settings(
        seconds=seconds or (0.1 if quick else 0.5), rounds=rounds or (1 if quick else 5), quick=quick, others=others
    )
    figures = json_path or Path(f"{NAME}.json")
    _check_folder(figures, "--json")
    for line in report.headline(report.machine(others)):
        screen.print(Text(line, DIM))
    samples: list[Sample] = []
    complete = False
    with _ended_by_signals():
        try:
            _measure(screen, names, settings, samples)
            complete = True
        finally:
            facts = report.document(samples, settings, skipped, complete=complete)
            _replace(figures, json.dumps(facts, indent=1))
    rows = summarise(samples)
    screen.print()
    for line in report.notes(rows, skipped):
        screen.print(Text(line, DIM))
    screen.print(Text(f"figures: {figures}", DIM))
    if plot_path is None and not picture.available():
        screen.print(Text("no plot: pip install 'vqshm[bench]'", DIM))
        return
    target = plot_path or Path(f"{NAME}.png")
    picture.draw(rows, target)
    screen.print(Text(f"plot: {target}", DIM))


def _measure(screen: Console, names: Sequence[str], settings: Settings, samples: list[Sample]) -> None:
    """Take all samples; print each table when its last figure is there."""
    groups_of_cases = plan(names, settings)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=screen if screen.is_terminal else Console(stderr=True),
        transient=True,
        disable=not (screen.is_terminal or sys.stderr.isatty()),
    )
    with bar:
        task = bar.add_task("", total=sum(map(len, groups_of_cases)) * settings.rounds)
        for name in names:
            mine = [group for group in groups_of_cases if group[0].measure == name]
            before = len(samples)
            for group in mine:
                bar.update(task, description=f"{name}, {group[0].group}")
                for sample in run(group, settings):
                    samples.append(sample)
                    bar.advance(task)
            for piece in report.tables(MEASURES[name], summarise(samples[before:])):
                screen.print(piece)


def _others(against: Sequence[str]) -> tuple[tuple[type[Peer], ...], dict[str, str]]:
    """The adapters that --vs names, and who of them is skipped, and why."""
    wanted = _chosen(against, [*groups(), "all"], "--vs")
    if "all" in wanted:
        wanted = groups()
    skipped = {
        peer.package: f"not installed: pip install {peer.package}"
        for peer in OTHERS
        if peer.group in wanted and not peer.installed()
    }
    return tuple(peer for peer in OTHERS if peer.group in wanted and peer.package not in skipped), skipped


def _chosen(given: Sequence[str], known: list[str], option: str) -> list[str]:
    """What was named, in the order of `known`."""
    words = [word for entry in given for word in entry.split(",") if word]
    if strange := [word for word in words if word not in known]:
        raise click.BadParameter(f"{', '.join(strange)}: not among {', '.join(known)}", param_hint=option)
    return [name for name in known if name in words]


def _list(screen: Console) -> None:
    for name, title in report.titles().items():
        screen.print(f"{name:<12} {title}")
    screen.print()
    for group in groups():
        peer = next(peer for peer in OTHERS if peer.group == group)
        version = peer.version() if peer.installed() else f"not installed: pip install {peer.package}"
        screen.print(f"{group:<16} {version or 'part of Python'}")


def _check_folder(path: Path, option: str) -> None:
    """Complain now about a place that cannot be written, rather than after half an hour."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise click.BadParameter(f"{path} cannot be written", param_hint=option)


def _replace(path: Path, text: str) -> None:
    """Write a file in one piece: whoever reads it finds the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def _ended_by_signals() -> Any:
    """Let SIGTERM and a hang-up end the run as Ctrl-C does: nothing stays behind."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, leave)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
