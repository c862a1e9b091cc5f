"""The kill loop finds nothing, and its judge finds everything: each rule of a history, broken once."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "pressure"
spec = importlib.util.spec_from_file_location("kill_history", TOOLS / "kill_history.py")
kill_history = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kill_history)
KINDS = {name: number for number, name in enumerate(kill_history.NAMES)}

# Lives: 2 and 3 are devices, 5 and 6 drivers. A record is "KIND number.attempt life".
ONE = "OFFER 0.0 5, HANDLE 0.0 2, RETURN 0.0 2, DELIVER 0.0 5"
CRASH = "OFFER 0.0 5, OFFER 1.0 5, HANDLE 0.0 2, RETURN 0.0 2, DELIVER 0.0 5, HANDLE 1.0 2, KILL 1 7"
RESET = f"{CRASH}, LOST 1.0 5, BEGIN 0 5, OFFER 1.1 5, HANDLE 1.1 3, RETURN 1.1 3, DELIVER 1.1 5"
RESUME = f"{CRASH}, REPLAY 1.0 3, RETURN 1.0 3, DELIVER 1.0 5"
ORPHANS = "OFFER 0.0 5, OFFER 1.0 5, KILL 2 7, OFFER 0.1 6, HANDLE 0.0 2, HANDLE 1.0 2, HANDLE 0.1 2, DELIVER 0.1 6"


def judge(text, *, resume=False, end=True):
    """What the judge says of a history; None if it is content."""
    with tempfile.TemporaryFile() as file:
        for record in text.split(", "):
            kind, number, life = record.split()
            number, _, attempt = number.partition(".")
            os.write(file.fileno(), kill_history.RECORD.pack(KINDS[kind], int(attempt or 0), int(life), int(number)))
        history = kill_history.History(file.fileno(), resume=resume)
        try:
            history.read()
            if end:
                history.finish()
        except kill_history.Broken as error:
            return str(error)
        return None


@pytest.mark.parametrize("text", [ONE, RESET, f"{ORPHANS}, OFFER 1.1 6, HANDLE 1.1 2, DELIVER 1.1 6"])
def test_a_history_that_holds(text):
    assert judge(text) is None


def test_a_history_that_holds_where_devices_resume():
    assert judge(RESUME, resume=True) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("OFFER 0.0 5, HANDLE 0.0 2", "never answered"),
        (f"{ONE}, DELIVER 0.0 5", "not in flight"),
        ("OFFER 0.0 5, DELIVER 0.0 5", "nobody handled"),
        ("HANDLE 0.0 2", "nobody offered"),
        ("OFFER 0.0 5, HANDLE 0.0 2, HANDLE 0.0 2", "without the flag"),
        ("OFFER 0.0 5, HANDLE 0.0 2, RETURN 0.0 2, RETURN 0.0 2", "returned twice"),
        ("OFFER 0.0 5, HANDLE 0.0 2, RETURN 0.0 3", "did not handle"),
        ("OFFER 0.0 5, OFFER 1.0 5, HANDLE 1.0 2, HANDLE 0.0 2", "offered earlier"),
        ("OFFER 0.0 5, OFFER 1.0 5, HANDLE 0.0 2, HANDLE 1.0 2, DELIVER 1.0 5, DELIVER 0.0 5", "offered later"),
        (f"{CRASH}, BEGIN 0 5", "not reported as lost"),
        (f"{CRASH}, OFFER 1.1 5", "nobody lost it"),
        (f"{CRASH}, LOST 1.0 5, DELIVER 1.0 5", "not in flight"),
        (f"{CRASH}, LOST 1.0 5, OFFER 1.2 5", "came before"),
        (f"{ONE}, LOST 0.0 5", "not in flight"),
        (RESUME, "without in-flight tracking"),
        ("OFFER 0.0 5, OFFER 1.0 6", "without the death"),
        (ORPHANS, "never answered"),
        (f"{ORPHANS}, DELIVER 0.0 6", "not in flight"),
    ],
)
def test_a_history_that_does_not_hold(text, complaint):
    assert complaint in judge(text)


def test_what_was_returned_is_not_handled_again_however_flagged():
    assert "after it was returned" in judge("OFFER 0.0 5, HANDLE 0.0 2, RETURN 0.0 2, REPLAY 0.0 3", resume=True)


@pytest.mark.long
@pytest.mark.fault("D23", "D06", "D08", "G05", "C10")
@pytest.mark.parametrize("notify", ["eventfd", "semaphore"])
def test_random_kills_under_traffic_break_no_rule(notify):
    command = [sys.executable, TOOLS / "kill_loop.py", "--kills", "200", "--seed", "20260101", "--json"]
    done = subprocess.run([*command, "--notify", notify], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert sum(figures["kills"].values()) >= 200
    assert min(figures["kills"].values()) > 10
    assert figures["records"]["DELIVER"] == figures["requests"] > 2000
    assert figures["records"]["LOST"] > 50
    assert max(figures["most_descriptors"].values()) < 30
