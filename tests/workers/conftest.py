"""A region with one device of each kind, and worker programs as the processes they are."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vqshm import spec

ROOT = Path(__file__).parents[2]
PATIENCE = 60  # seconds for a program to do what it is for
COORDINATOR = """
import json, signal, sys
from vqshm import Coordinator, DeviceSpec, QueueSpec
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
name, devices = json.loads(sys.argv[1])
queues = (QueueSpec(64, 2 << 20),)
with Coordinator(name, [DeviceSpec(device, number, queues) for device, number in devices]) as coordinator:
    print("ready", flush=True)
    coordinator.serve()
"""
DEVICES = {
    "echo0": spec.VQSHM_ID_ECHO,
    "checksum0": spec.VQSHM_ID_CHECKSUM,
    "zblock0": spec.VQSHM_ID_ZBLOCK,
    "blk0": spec.VIRTIO_ID_BLOCK,
}
_numbers = itertools.count()


class Program:
    """A worker that runs; `first` is the line it said when it was ready."""

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test run in the background of a shell ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        self.first = ""

    def ready(self) -> Program:
        self.first = self.process.stdout.readline().strip()
        if not self.first:
            pytest.fail(f"it ended before it was ready: {self.end()}")
        return self

    def end(self, number: signal.Signals | None = None) -> tuple[int, str, str]:
        """Exit code, and what it said since it was ready, on stdout and stderr."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out.strip(), err.strip()


class Region:
    """A region and its coordinator, and who was started on it."""

    def __init__(self) -> None:
        self.name = f"wk-{os.getpid()}-{next(_numbers)}"
        self.programs: list[Program] = []
        arguments = ["-c", COORDINATOR, json.dumps([self.name, list(DEVICES.items())])]
        self.coordinator = Program(arguments).ready()

    def start(self, worker: str, device: str | None, *arguments: str) -> Program:
        """A worker on `device` of this region."""
        where = ["--region", self.name, *(["--device", device] if device else [])]
        program = Program([str(ROOT / "workers" / f"{worker}.py"), *where, *map(str, arguments)])
        self.programs.append(program)
        return program

    def run(self, worker: str, device: str | None, *arguments: str) -> str:
        """What a worker says that runs to its end and has nothing to complain about."""
        code, out, err = self.start(worker, device, *arguments).end()
        assert (code, err) == (0, "")
        return out

    def close(self) -> None:
        """The coordinator ends, and with it the region."""
        self.coordinator.end(signal.SIGTERM)


@pytest.fixture
def region():
    region = Region()
    try:
        yield region
    finally:
        for program in [*region.programs, region.coordinator]:
            if program.process.poll() is None:
                program.process.terminate()
        for program in [*region.programs, region.coordinator]:
            with contextlib.suppress(ValueError):  # its pipes were read to their end already
                program.process.communicate(timeout=PATIENCE)


@pytest.fixture
def program():
    """Run a worker to its end, without a region."""

    def run(worker: str, *arguments: object) -> tuple[int, str, str]:
        return Program([str(ROOT / "workers" / f"{worker}.py"), *map(str, arguments)]).end()

    return run
