"""The kill loop over a lane finds nothing, and its judge finds everything: each rule of a history, broken once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "pressure"

# Lives: 2, 3 and 4 are receivers, 5 and 6 senders. A record is "KIND number.call life"; SENDS is SEND and SENT.
TWO = "SENDS 0 5, SENDS 1 5, RECEIVE 0.1 2, RECEIVE 1.2 2"
DEATH = "SENDS 0 5, SENDS 1 5, SENDS 2 5, SENDS 3 5, RECEIVE 0.1 2, RECEIVE 1.2 2, RECEIVE 2.2 2, KILL 1 7"
AGAIN = f"{DEATH}, AGAIN 1.1 3, KILL 1 7, AGAIN 1.1 4, AGAIN 2.2 4, RECEIVE 3.3 4"
TORN = "SENDS 0 5, SEND 1 5, SEND 2 5, KILL 2 7, SENDS 3 6, RECEIVE 0.1 2"


@pytest.fixture(scope="module")
def judge(load_tool):
    """What the judge says of a history; None if it is content."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        lanes = load_tool("pressure/kill_lanes")
        records = sys.modules.pop("kill_history")

    def judge(text, *, resume=True):
        with tempfile.TemporaryFile() as file:
            for record in text.replace("SENDS", "SEND+SENT").split(", "):
                kinds, number, life = record.split()
                number, _, call = number.partition(".")
                for kind in kinds.split("+"):
                    packed = records.RECORD.pack(records.NAMES.index(kind), int(call or 0), int(life), int(number))
                    os.write(file.fileno(), packed)
            history = lanes.LaneHistory(file.fileno(), resume=resume)
            try:
                history.finish()
            except records.Broken as error:
                return str(error)
            return None

    return judge


@pytest.mark.parametrize(
    "text",
    [
        TWO,
        AGAIN,
        f"{DEATH}, RECEIVE 3.1 3",  # it died behind the last one
        f"{DEATH}, AGAIN 1.1 3, AGAIN 2.2 3, AGAIN 3.3 3",  # and here before it could say that it had the last one
        f"{TORN}, RECEIVE 3.2 2",  # the sender died sending
        f"{TORN}, RECEIVE 1.2 2, RECEIVE 3.3 2",
        "SENDS 0 5, KILL 0 7, KILL 2 7, KILL 1 7, UP 0 8, SENDS 1 6, RECEIVE 1.1 3",  # a region that is gone
    ],
)
def test_a_history_that_holds(judge, text):
    assert judge(text) is None


def test_a_history_that_holds_where_receivers_do_not_resume(judge):
    assert judge(f"{DEATH}, LOST 3 5, SENDS 4 5, RECEIVE 4.1 3", resume=False) is None
    assert judge(f"{DEATH}, SENDS 4 5, KILL 2 7, SENDS 5 6, RECEIVE 5.1 3", resume=False) is None  # nobody counted
    assert "never received" in judge(f"{DEATH}, KILL 2 7, SENDS 4 6", resume=False)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("SENDS 0 5", "never received"),
        (f"{DEATH}, AGAIN 1.1 3, AGAIN 2.2 3", "never received"),
        (f"{TWO}, RECEIVE 1.3 2", "received before"),
        ("RECEIVE 0.1 2", "nobody sent it"),
        ("SENDS 1 5", "not the next"),
        ("SENDS 0 5, SENDS 1 5, RECEIVE 1.1 2", "left out: [0]"),
        (f"{DEATH}, RECEIVE 1.1 3", "received before"),
        (f"{DEATH}, AGAIN 0.1 3", "done with"),
        (f"{DEATH}, RECEIVE 3.1 3, AGAIN 1.2 3", "behind one that does not"),
        (f"{DEATH}, AGAIN 2.1 3, AGAIN 1.2 3", "sent earlier"),
        (f"{DEATH}, AGAIN 1.1 3, AGAIN 1.2 3", "done with"),
        (f"{DEATH}, LOST 3 5", "though receivers resume"),
    ],
)
def test_a_history_that_does_not_hold(judge, text, complaint):
    assert complaint in judge(text)


def test_without_a_successor_nothing_comes_again(judge):
    assert "do not resume" in judge(f"{DEATH}, AGAIN 1.1 3", resume=False)


@pytest.mark.long
@pytest.mark.fault("D23", "D01", "D02", "D06", "D08")
@pytest.mark.parametrize(("restart", "notify"), [("resume", "eventfd"), ("resume", "semaphore"), ("reset", "eventfd")])
def test_random_kills_of_both_ends_break_no_rule(restart, notify):
    command = [sys.executable, TOOLS / "kill_loop.py", "--lane", "--kills", "100", "--seed", "20261128", "--json"]
    command += ["--restart", restart, "--notify", notify]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert sum(figures["kills"].values()) >= 100
    assert min(figures["kills"].values()) > 5
    assert figures["records"]["RECEIVE"] > 1000
    assert ("AGAIN" in figures["records"]) == (restart == "resume")
    assert ("LOST" in figures["records"]) == (restart == "reset")
    assert max(figures["most_descriptors"].values()) < 30
