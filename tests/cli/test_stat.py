"""`vqshm stat`: a look from outside, once and again."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys

import pytest

from vqshm import Coordinator, DeviceSpec, QueueSpec, spec


@pytest.fixture
def region(name):
    devices = [DeviceSpec("echo0", spec.VQSHM_ID_ECHO, (QueueSpec(8, 4096), QueueSpec(64, 4096)))]
    with Coordinator(name, devices) as coordinator:
        yield coordinator


def test_once(run, region, name):
    result = run("stat", name)
    assert result.exit_code == 0
    text = result.stdout
    assert f"region {name}  " in text
    assert f"process {os.getpid()}" in text
    assert "echo0  echo (0x7601)  reset" in text
    assert "queue 0  8 descriptors" in text
    assert "available ring         used ring" in text
    assert "queue 1  64 descriptors" in text
    assert "available    ···" in text


def test_one_queue(run, region, name):
    text = run("stat", name, "--queue", "1").stdout
    assert "queue 1  64 descriptors" in text
    assert "queue 0" not in text
    result = run("stat", name, "--queue", "2")
    assert (result.exit_code, result.stderr) == (1, f"error: region {name!r} has queues 0 to 1, not 2\n")


def test_json(run, region, name):
    whole = json.loads(run("stat", name, "--json").stdout)
    assert whole["name"] == name
    assert [queue["size"] for queue in whole["devices"][0]["queues"]] == [8, 64]
    one = json.loads(run("stat", name, "--json", "--queue", "1").stdout)
    assert [queue["size"] for queue in one["devices"][0]["queues"]] == [64]


def test_an_unknown_region_lists_those_that_exist(run, region, name):
    result = run("stat", "no-such")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is no region 'no-such'; these exist: ")
    assert name in result.stderr


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "error: there is no region; start one with `vqshm coordinator NAME`\n"),
        (["a", "b"], "error: which region? These exist: a, b\n"),
    ],
)
def test_without_a_name_there_must_be_one_region(run, monkeypatch, names, words):
    monkeypatch.setattr("vqshm.cli.stat.existing", lambda: names)
    result = run("stat")
    assert (result.exit_code, result.stderr) == (1, words)


def test_the_only_region_needs_no_name(run, region, name, monkeypatch):
    monkeypatch.setattr("vqshm.cli.stat.existing", lambda: [name])
    assert f"region {name}" in run("stat").stdout


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_it_fits_the_screen(run, region, name, width):
    text = run("stat", name, env={"COLUMNS": str(width)}).stdout
    assert max(map(len, text.splitlines())) <= width


def test_watching_through_a_pipe_prints_one_map_to_a_line(vqshm, region, name):
    running = vqshm("stat", name, "--watch", "--json", "--interval", "0.05")
    running.until("}\n{")  # a whole line, and the next one begins
    assert running.end(signal.SIGINT) == 130
    assert json.loads(running.seen.splitlines()[0])["name"] == name
    assert running.errors == ""


def test_watching_ends_with_the_region(vqshm, region, name):
    running = vqshm("stat", name, "--watch", "--interval", "0.05")
    running.until("per s")
    region.close()
    assert running.end() == 0
    assert running.errors == ""


def test_watching_on_a_terminal_ends_with_ctrl_c(region, name):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vqshm", "stat", name, "--watch", "--interval", "0.05"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "60"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    screen = b""
    while screen.count(b"Ctrl-C ends the watching") < 2:
        screen += os.read(ours, 1 << 16)
    process.send_signal(signal.SIGINT)
    try:
        while chunk := os.read(ours, 1 << 16):
            screen += chunk
    except OSError:  # EIO: the other side is closed
        pass
    assert process.wait(60) == 130
    os.close(ours)
    assert screen.startswith(b"\x1b[?1049h")
    assert b"\x1b[?1049l" in screen  # the screen of before is back
    assert b"Traceback" not in screen


ECHO = "from vqshm import Device; from vqshm.devices import Echo; Device.attach('{}').serve(Echo())"
TALK = (
    "from vqshm import Driver; driver = Driver.attach('{}', timeout=60)\n"
    "for _ in range(200): driver.request(b'hello', 64)\n"
    "driver.submit([b'x' * 10], [64]); print('there', flush=True); driver.park([], 60)"
)


def test_a_running_pair_is_seen(serve, start, run, name):
    coordinator = serve("--device", "echo", "--queue-size", "8", "--buffer-bytes", "64K")
    device, driver = start("-c", ECHO.format(name)), start("-c", TALK.format(name))
    driver.until("there")
    seen = json.loads(run("stat", name, "--json").stdout)["devices"][0]
    assert seen["state"] == "live"
    assert (seen["driver"]["pid"], seen["device"]["pid"]) == (driver.process.pid, device.process.pid)
    assert seen["queues"][0]["driver"]["reaped"] >= 128
    text = run("stat", name).stdout
    assert f"process {driver.process.pid} python" in text
    assert "features  INDIRECT_DESC, EVENT_IDX, VERSION_1" in text
    assert "in flight" in text
    driver.end(signal.SIGKILL)
    device.end(signal.SIGTERM)
    assert coordinator.end(signal.SIGTERM) == 0
