"""The demo as a program, and what it must not leave behind."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vqshm.host.system.liveness import ProcessId
from vqshm.host.system.names import runtime_directory

DEMO = [sys.executable, "-m", "vqshm", "demo"]
PATIENCE = 100  # seconds
ROLES = ("coordinator", "device", "driver")


@pytest.fixture(scope="session")
def run_demo():
    """Run the demo to its end."""

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*DEMO, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, **environment},
        )

    return run


class Running:
    """A demo in the middle of its work: it has introduced its three processes, and there is much left to do."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [*DEMO, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group, as a terminal makes one
            # A test run in the background of a shell ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        self.said = ""
        self.pids: dict[str, int] = {}
        while len(self.pids) < len(ROLES):
            line = self.process.stdout.readline()
            assert line, f"it ended too early: {self.said}{self.process.communicate()}"
            self.said += line
            if found := re.match(r" *(\w+) +process (\d+) ", line):
                self.pids[found[1]] = int(found[2])
        self.pidfds = [os.pidfd_open(pid) for pid in self.pids.values()]

    def end(self) -> tuple[int, str]:
        """Wait for the end of the demo: (status, what it said on standard error). Its processes must end with it."""
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            out, err = self.process.communicate()
            pytest.fail(f"the demo hangs: {self.said}{out}{err}")
        self.said += out
        for pidfd in self.pidfds:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            assert poller.poll(PATIENCE * 1000), f"one of {self.pids} outlives the demo"
            os.close(pidfd)
        assert not any(ProcessId.of(pid) for pid in self.pids.values())
        return self.process.returncode, err

    def left(self) -> list[str]:
        """What the demo left behind."""
        places = [*Path("/dev/shm").iterdir(), *runtime_directory().iterdir()]
        return [str(path) for path in places if re.search(rf"\bdemo-{self.process.pid}\b", path.name)]


@pytest.fixture(scope="session")
def endless(tmp_path_factory):
    """A file that takes no room on the disk, and minutes to stream."""
    path = tmp_path_factory.mktemp("demo") / "endless"
    with path.open("wb") as file:
        file.truncate(64 << 30)
    return path


@pytest.fixture
def running(endless, request):
    """A demo in the middle of its work; to be parametrized with its arguments."""
    demo = Running(endless, *getattr(request, "param", ()))
    yield demo
    with contextlib.suppress(ProcessLookupError):
        os.killpg(demo.process.pid, signal.SIGKILL)
    demo.process.communicate()
