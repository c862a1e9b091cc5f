"""Commands as real processes, and in this one."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from vqshm.cli.app import commands

PATIENCE = 60.0  # seconds; a busy machine is no failure


class Running:
    """A process whose output is read as it comes."""

    def __init__(self, *words: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **variables},
        )
        self.seen = ""

    def until(self, words: str) -> str:
        """Everything printed so far, once `words` are in it."""
        deadline = time.monotonic() + PATIENCE
        poller = select.poll()
        poller.register(self.process.stdout)
        while words not in self.seen:
            if not poller.poll(max(0, deadline - time.monotonic()) * 1000):
                pytest.fail(f"{words!r} did not come; what came:\n{self.seen}")
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                self.end()
                pytest.fail(f"{words!r} did not come before the end; what came:\n{self.seen}\n{self.errors}")
            self.seen += chunk.decode()
        return self.seen

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = 0) -> int:
        """The exit code, after a signal if one is given."""
        if number:
            self.send(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        self.seen += out.decode()
        self.errors = err.decode()
        return self.process.returncode


@pytest.fixture
def start():
    """Start Python with these words; whatever still runs in the end is killed."""
    started: list[Running] = []

    def run(*words: str, **variables: str) -> Running:
        started.append(Running(*words, **variables))
        return started[-1]

    yield run
    for running in reversed(started):
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()


@pytest.fixture
def vqshm(start):
    """Start a command as a process."""
    return lambda *words, **variables: start("-m", "vqshm", *words, **variables)


@pytest.fixture
def name():
    """A region's name that nobody else uses; whatever a killed coordinator left under it goes in the end."""
    from vqshm.host.system import names

    chosen = f"cli{os.getpid()}"
    yield chosen
    if chosen in names.shm.existing() and not names.look_at(chosen).abandoned:
        pytest.fail(f"{chosen} is still served")
    with names.naming_lock():
        names.remove(chosen)


@pytest.fixture
def serve(name, vqshm):
    """A coordinator process that serves already."""

    def run(*words: str) -> Running:
        running = vqshm("coordinator", name, *words)
        running.until("Serving.")
        return running

    return run


@pytest.fixture
def run():
    """Run a command in this process: its result has exit_code, stdout, stderr."""
    runner = CliRunner()
    return lambda *words, **rest: runner.invoke(commands, words, **rest)


def traces(name: str) -> list[str]:
    """What a region leaves in the file system while it lives."""
    from vqshm.host.system.names import runtime_directory

    places = [Path("/dev/shm").glob(f"*vqshm.{name}*"), runtime_directory().glob(f"{name}.*")]
    return sorted(path.name for place in places for path in place)


@pytest.fixture
def left(name):
    return lambda: traces(name)
