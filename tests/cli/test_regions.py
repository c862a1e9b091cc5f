"""`vqshm ls`, `vqshm clean` and `vqshm doctor`: what is there, what is left over, what is missing."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from vqshm.cli import doctor
from vqshm.view.machine import Finding


def listed(run, name: str) -> dict | None:
    return next((entry for entry in json.loads(run("ls", "--json").stdout) if entry["name"] == name), None)


@pytest.mark.parametrize("notify", ["eventfd", "semaphore"])
def test_what_a_killed_coordinator_left_is_cleaned(serve, run, name, left, notify):
    running = serve("--device", "echo", "--notify", notify)
    assert listed(run, name)["condition"] == "alive"
    assert f"left {name}: its coordinator runs" in run("clean", name).stdout

    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    assert left()
    entry = listed(run, name)
    assert (entry["condition"], entry["devices"]) == ("stale", ["echo0"])
    assert f"process {running.process.pid}, which has ended" in run("stat", name).stdout
    assert f"would remove {name}: its coordinator has ended" in run("clean", "--dry-run").stdout
    assert left()
    assert f"removed {name}: its coordinator has ended" in run("clean", name).stdout
    assert left() == []
    assert name not in run("ls").stdout


HOLD = "import signal; from vqshm import Device; device = Device.attach({!r}); print('up', flush=True); signal.pause()"


@pytest.mark.fault("D08")
@pytest.mark.parametrize("memory", ["named", "memfd"])
def test_where_others_work_on_after_their_coordinator_ended_the_name_is_only_taken_by_force(
    serve, start, run, name, left, memory
):
    running = serve("--device", "echo", "--memory", memory)
    device = start("-c", HOLD.format(name))
    device.until("up")
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    who = f"process {device.process.pid} (device of 'echo0')"
    entry = listed(run, name)
    assert (entry["condition"], entry["holders"]) == ("held", [who])
    why = f"left {name}: its coordinator has ended, but {who} work on in it; `vqshm clean --force {name}` takes"
    assert why in " ".join(run("clean", name).stdout.split())
    assert why in " ".join(run("clean", "--dry-run", name).stdout.split())
    refused = run("coordinator", name)
    assert refused.exit_code == 1
    assert f"vqshm clean --force {name}" in " ".join(refused.stderr.split())
    assert left()
    assert f"would remove {name}: its coordinator has ended" in run("clean", "--force", "-n", name).stdout
    assert left()
    assert f"removed {name}: its coordinator has ended" in run("clean", "--force", name).stdout
    assert left() == []
    assert device.process.poll() is None
    assert serve("--device", "echo").end(signal.SIGTERM) == 0


@pytest.mark.fault("D08", "D10")
@pytest.mark.parametrize("notify", ["eventfd", "semaphore"])
def test_when_those_have_ended_of_whom_a_new_coordinator_told_it_gets_the_name_at_once(serve, start, run, name, notify):
    running = serve("--device", "echo", "--notify", notify)
    device = start("-c", HOLD.format(name))
    device.until("up")
    running.end(signal.SIGKILL)
    refused = run("coordinator", name)
    assert refused.exit_code == 1
    assert f"process {device.process.pid} (device of 'echo0') work on in its region; end them" in refused.stderr
    device.end(signal.SIGKILL)
    again = serve("--device", "echo", "--notify", notify)
    assert listed(run, name)["owner"]["pid"] == again.process.pid
    assert again.end(signal.SIGTERM) == 0


@pytest.mark.fault("E05")
def test_a_region_whose_file_was_removed_is_listed_and_left_alone(serve, run, name):
    running = serve("--device", "echo")
    Path(f"/dev/shm/vqshm.{name}").unlink()
    entry = listed(run, name)
    assert (entry["condition"], entry["owner"]["pid"]) == ("name removed", running.process.pid)
    assert f"left {name}: its coordinator runs, and lets others in" in run("clean", "--force", name).stdout
    assert run("stat", name).exit_code == 0
    assert running.end(signal.SIGTERM) == 0
    assert listed(run, name) is None


def test_to_clean_what_does_not_exist_is_an_error(run, name):
    result = run("clean", name)
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        1,
        f"error: there is no region {name}; `vqshm ls` lists those that exist",
    )


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
