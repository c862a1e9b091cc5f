"""What the README tells people to type works as it stands there."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vqshm import errors, host

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROGRAMS = [text for kind, text in BLOCKS if kind == "python"]
WALKS = [text for kind, text in BLOCKS if kind == "sh" and "# terminal 1" in text]
PATIENCE = 100  # seconds
_numbers = itertools.count()


def block_after(words: str, kind: str) -> str:
    """The first block of that kind behind these words."""
    rest = README[README.index(words) :]
    return re.search(rf"^```{kind}\n(.*?)^```$", rest, re.MULTILINE | re.DOTALL)[1]


def run_program(text: str, folder: Path) -> str:
    path = folder / "example.py"
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_the_two_commands_stand_there_to_the_letter():
    lines = README.splitlines()
    install = "python3 -m venv .venv && .venv/bin/pip install -q "
    assert lines.count(f"{install}'.[cli]' && .venv/bin/vqshm demo") == 1
    assert lines.count(f"{install}'.[test]' && .venv/bin/pytest && VQSHM_PURE=1 .venv/bin/pytest") == 1


def test_the_walk_of_one_buffer(tmp_path):
    said = run_program(PROGRAMS[0], tmp_path)
    assert "1 chain in flight" in said
    assert said.endswith("b'HELLO'\n")


def test_two_processes_in_fifteen_lines(tmp_path):
    program = PROGRAMS[1]
    assert sum(bool(line) for line in program.splitlines()) <= 15
    name = f"hello-{os.getpid()}-{next(_numbers)}"  # others may run the README, too
    said = run_program(program.replace('"hello"', f'"{name}"'), tmp_path)
    assert said == block_after("It prints", "text") == "b'HELLO, RING'\n"


def test_messages_between_processes(tmp_path):
    name = f"frames-{os.getpid()}-{next(_numbers)}"
    said = run_program(PROGRAMS[2].replace('"frames"', f'"{name}"'), tmp_path)
    assert said.split() == [repr(word) for word in (b"one", b"two", b"three", b"four")]


@contextlib.contextmanager
def started(command: str, folder: Path):
    """A command of a terminal, until it is told to end."""
    process = subprocess.Popen(
        command_line(command),
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run in the background of a shell ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def command_line(command: str) -> list[str]:
    scripts = {"vqshm": [sys.executable, "-m", "vqshm"], "python": [sys.executable]}
    line, program = [], True  # a program comes first, and behind `--`
    for word in shlex.split(command):
        line += scripts.get(word, [word]) if program else [word]
        program = word == "--"
    return line


def environment() -> dict[str, str]:
    # `python -m workers.…` looks into the working directory, and the tests switch that off for everybody else.
    return {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return
    pytest.fail(f"it never said {words!r}: {said}")


@pytest.mark.parametrize("walk", WALKS, ids=["eventfd", "semaphore", "blk", "resume"])
def test_three_terminals(walk, tmp_path):
    name = f"walk-{os.getpid()}-{next(_numbers)}"  # others may run the README, too
    walk = re.sub(r"\bwalk\b", name, walk).replace("disk.img", str(tmp_path / "disk.img"))
    steps = dict(re.findall(r"^# (.+)\n(.+)$", walk, re.MULTILINE))
    if "before" in steps:
        subprocess.run(command_line(steps["before"]), check=True)
    with started(steps["terminal 1"], tmp_path) as coordinator:
        wait_for(coordinator, "Ctrl-C ends it")
        with started(steps["terminal 2"], ROOT) as device:
            wait_for(device, "is waiting for drivers")
            with started(steps["terminal 3"], ROOT) as driver:
                said, _ = driver.communicate(timeout=PATIENCE)
                assert driver.returncode == 0, said
                assert "verified" in said
            coordinator.send_signal(signal.SIGINT)
            said, _ = coordinator.communicate(timeout=PATIENCE)
            assert coordinator.returncode == 130, said
            said, _ = device.communicate(timeout=PATIENCE)
            assert device.returncode == 0, said
    assert not any(name in path.name for path in Path("/dev/shm").iterdir())


def test_there_are_four_walks():
    assert len(WALKS) == 4
    assert len(PROGRAMS) == 3


def test_the_commands_in_the_tables_exist():
    names = set(re.findall(r"`vqshm (\w+)", README))
    assert {"demo", "stat", "ls", "clean", "doctor"} <= names
    for name in names:
        done = subprocess.run(
            [sys.executable, "-m", "vqshm", name, "--help"], capture_output=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, name


def test_the_errors_it_names_exist():
    named = set(
        re.findall(r"`([A-Z][A-Za-z]+)`", README.partition("## When something fails")[2].partition("## What works")[0])
    )
    built_in = {"TimeoutError", "ConnectionError", "EOFError"}
    assert len(named) > 10
    assert not {name for name in named - built_in if not hasattr(errors, name)}


def test_the_files_and_names_it_mentions_exist():
    for path in re.findall(r"`((?:vqshm|workers|tests|tools)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path
    for name in ("launch", "Device", "Driver"):
        assert hasattr(host, name)


def test_it_shows_no_path_of_the_machine_it_was_written_on():
    assert not re.search(r"/(?:root|home|tmp|work)/", README)


@pytest.mark.long
@pytest.mark.parametrize("script", ["tools/conformance.py", "tools/spec_index.py"])
def test_the_tools(script):
    (command,) = re.findall(rf"^python {re.escape(script)}.*$", README, re.MULTILINE)
    done = subprocess.run(
        command_line(command),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ (passed|statements)", done.stdout)
