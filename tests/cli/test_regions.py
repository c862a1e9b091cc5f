"""`vqshm ls`, `vqshm clean` and `vqshm doctor`: what is there, what is left over, what is missing."""

from __future__ import annotations

import json
import signal

import pytest

from vqshm.cli import doctor
from vqshm.view.machine import Finding


def listed(run, name: str) -> dict | None:
    return next((entry for entry in json.loads(run("ls", "--json").stdout) if entry["name"] == name), None)


@pytest.mark.parametrize("notify", ["eventfd", "semaphore"])
def test_what_a_killed_coordinator_left_is_cleaned(serve, run, name, left, notify):
    running = serve("--device", "echo", "--notify", notify)
    assert listed(run, name)["condition"] == "alive"
    assert f"left {name}: its coordinator runs" in run("clean").stdout

    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    assert left()
    entry = listed(run, name)
    assert (entry["condition"], entry["devices"]) == ("stale", ["echo0"])
    assert f"process {running.process.pid}, which has ended" in run("stat", name).stdout
    assert f"would remove {name}: its coordinator has ended" in run("clean", "--dry-run").stdout
    assert left()
    assert f"removed {name}: its coordinator has ended" in run("clean").stdout
    assert left() == []
    assert name not in run("ls").stdout


def test_a_name_left_behind_can_be_taken_again(serve, name):
    first = serve("--device", "echo")
    first.end(signal.SIGKILL)
    second = serve("--device", "echo")
    assert second.end(signal.SIGTERM) == 0


def test_nothing_there(run, monkeypatch):
    monkeypatch.setattr("vqshm.view.regions.existing", list)
    assert run("ls").stdout == "no regions; `vqshm coordinator NAME` makes one\n"


def test_doctor(run):
    result = run("doctor")
    assert result.exit_code == 0
    assert "✓  Python" in result.stdout
    assert "vqshm works here" in result.stdout.splitlines()[-1]


def test_doctor_says_what_is_missing_and_fails(run, monkeypatch):
    findings = [Finding("pidfd", "fail", "it is not there", "get a newer kernel"), Finding("core", "warn", "slow", "x")]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    result = run("doctor")
    assert result.exit_code == 1
    assert "→ get a newer kernel" in result.stdout
    assert result.stdout.splitlines()[-1] == "vqshm cannot work here yet: pidfd"
    assert json.loads(run("doctor", "--json").stdout)[0]["advice"] == "get a newer kernel"
