"""However the demo ends, it says how, its processes end, and nothing stays in /dev/shm."""

from __future__ import annotations

import os
import signal

import pytest

ROLES = ("coordinator", "device", "driver")
BOTH = pytest.mark.parametrize(
    "running", [["--notify", "eventfd"], ["--notify", "semaphore", "--queues", "2"]], indirect=True, ids=lambda p: p[1]
)


@BOTH
@pytest.mark.parametrize("role", ROLES)
def test_one_of_them_is_killed(running, role):
    os.kill(running.pids[role], signal.SIGKILL)
    status, words = running.end()
    assert status == 1
    assert words.startswith(f"error: the {role} (process {running.pids[role]}) was killed by SIGKILL; ")
    assert words.endswith(" bytes had come back\n")
    assert words.count("\n") == 1
    assert "Every byte arrived" not in running.said
    assert not running.left()


@BOTH
def test_ctrl_c_ends_them_all(running):
    os.killpg(running.process.pid, signal.SIGINT)
    status, words = running.end()
    assert status == 130
    assert words.strip() == "vqshm demo: ended by SIGINT; its processes are gone, nothing is left"
    assert not running.left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_the_parent_ends_them_all(running, number):
    os.kill(running.process.pid, number)
    status, words = running.end()
    assert status == 128 + number
    assert f"ended by {number.name}" in words
    assert not running.left()


def test_a_hang_up_of_the_terminal_ends_them_all(running):
    os.killpg(running.process.pid, signal.SIGHUP)
    assert running.end()[0] == 128 + signal.SIGHUP
    assert not running.left()


@BOTH
def test_they_do_not_outlive_a_killed_parent(running):
    os.kill(running.process.pid, signal.SIGKILL)
    assert running.end()[0] == -signal.SIGKILL
    assert not running.left()


@pytest.mark.parametrize("role", ROLES)
def test_an_impatient_ctrl_c_ends_them_all_too(running, role):
    os.kill(running.pids[role], signal.SIGSTOP)  # the one that does not react
    for _ in range(3):
        os.killpg(running.process.pid, signal.SIGINT)
    status, _ = running.end()
    assert status == 130
    assert not running.left()


def test_all_three_killed_at_once(running):
    for pid in running.pids.values():
        os.kill(pid, signal.SIGKILL)
    status, words = running.end()
    assert status == 1
    assert "was killed by SIGKILL" in words
    assert not running.left()


def test_killed_with_json(running):
    """The person's words go to standard error, whatever standard output is for."""
    os.kill(running.pids["device"], signal.SIGSEGV)
    status, words = running.end()
    assert status == 1
    assert "the device" in words
    assert "SIGSEGV" in words
    assert not running.left()
