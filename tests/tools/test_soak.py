"""The long run, short: it passes, it notices what is wrong, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vqshm import core

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "pressure"
COMPILED = core.kind() == "compiled"


def command(*arguments):
    return [sys.executable, str(TOOLS / "soak.py"), *map(str, arguments)]


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=110)


@pytest.fixture(scope="module")
def roles():
    """What runs in the processes."""
    return runpy.run_path(str(TOOLS / "soak_roles.py"))


@pytest.fixture(scope="module")
def soak():
    return runpy.run_path(str(TOOLS / "soak.py"))


@pytest.mark.fault("G04")
def test_a_short_soak_is_clean_and_says_so_in_json_too(tmp_path):
    count = 400_000 if COMPILED else 70_000
    done = run("--messages", count, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert count <= figures["messages"] < count + 512
    assert figures["counts"]["receive"]["messages"] == figures["counts"]["send"]["messages"] == figures["messages"]
    assert figures["core"] == core.kind()
    assert set(figures["processes"]) == {"coordinator", "send", "receive"}
    assert done.stdout.splitlines()[-1].startswith(f"{figures['messages']:,} messages in ")


@pytest.mark.long
@pytest.mark.fault("G05")
def test_messages_flow_on_beside_roles_that_are_killed(tmp_path):
    done = run("--mixed", 0.05, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["counts"]["receive"]["messages"] == figures["counts"]["send"]["messages"] == figures["messages"]
    assert figures["messages"] > (100_000 if COMPILED else 10_000)
    assert [sum(loop["kills"].values()) >= 200 for loop in figures["loops"]] == [True] * len(figures["loops"])
    assert figures["loops"]


def test_a_kill_loop_that_finds_something_ends_the_mixed_run(soak, monkeypatch):
    loop = Path("a_loop.py")
    monkeypatch.setitem(soak["Killer"].go_on.__globals__, "KILL_LOOP", loop)  # there is none, so it fails
    with soak["Killer"](60) as killer:
        killer.go_on(0)
        with pytest.raises(soak["Failed"], match=r"kill loop 1 ended with 2: .*a_loop\.py"):
            killer.finish()
        killer.go_on(61)
        killer.finish()
    assert killer.figures == []


def changed(block, how):
    message = bytearray(block[7])
    message[-5 if len(message) > 8 else 0] ^= 1
    return {
        "lost": block[:7] + block[8:] + [block[7]],
        "doubled": [*block[:7], block[6], *block[8:]],
        "out of order": [*block[:7], block[8], block[7], *block[9:]],
        "one bit": [*block[:7], bytes(message), *block[8:]],
        "short": [*block[:7], block[7][:-1], *block[8:]],
        "empty": [*block[:7], b"", *block[8:]],
    }[how]


@pytest.mark.fault("G04")
@pytest.mark.parametrize("how", ["lost", "doubled", "out of order", "one bit", "short", "empty"])
@pytest.mark.parametrize("number", [0, 3, 63], ids=["first", "small", "wide"])
def test_what_is_wrong_with_a_block_is_noticed(roles, how, number):
    pattern = roles["patterns"]()[number]
    first = number * roles["BLOCK"]
    block = pattern.make(first)
    pattern.check(block, first)
    with pytest.raises(roles["Wrong"], match=rf"message {first + 7}:"):
        pattern.check(changed(block, how), first)
    with pytest.raises(roles["Wrong"], match=f"of number {first}"):
        pattern.check(block, first + roles["BLOCK"])


def test_growth_is_told_from_coming_and_going(soak):
    growth = soak["growth"]
    flat = [{"rss": 10 << 20, "fds": 9}] * 40
    assert "complaint" not in growth(flat)
    assert "complaint" not in growth([{"rss": 1 << 20, "fds": 4}, *flat, {"rss": 9 << 20, "fds": 7}])
    grown = [{"rss": (10 << 20) + n * (50 << 10), "fds": 9} for n in range(40)]
    assert "it grew" in growth(grown)["complaint"]
    assert "descriptors" in growth([*flat, {"rss": 10 << 20, "fds": 10}])["complaint"]
    assert growth([])["complaint"]


def test_ctrl_c_ends_all_of_it():
    process = subprocess.Popen(
        command("--messages", "4e9"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(Path("/dev/shm").glob(f"vqshm*soak-{process.pid}*")):
        time.sleep(0.05)
    time.sleep(1.0)  # somewhere in the middle of the work
    os.kill(process.pid, signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaints == "interrupted\n"
    assert not list(Path("/dev/shm").glob(f"*soak-{process.pid}*"))


@pytest.mark.parametrize(
    "arguments",
    [[], ["--messages", "0"], ["--messages", "9e9"], ["--messages", 1, "--races", 1], ["--mixed", 1, "--races", 1]],
)
def test_what_makes_no_sense_is_refused(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage" in done.stderr


def struck(soak, what):
    """The figures of both doorbells, whose ends were struck often enough."""
    figures = soak["interrupt"](300, 60.0, [what])["modes"]
    mine = [figures[f"{what}, {notify}"] for notify in ("eventfd", "semaphore")]
    for each in mine:
        assert each["strikes"] == 300
        assert each["strikes_there"] > 50
    return mine


@pytest.mark.fault("D19")
def test_no_request_is_lost_or_answered_twice_while_signals_interrupt_both_ends(soak):
    for mine in struck(soak, "requests"):
        assert mine["requests"] - mine["counts"]["never_made"] > 50


@pytest.mark.fault("D19")
def test_no_message_is_lost_or_comes_twice_while_signals_interrupt_both_ends(soak):
    assert len(struck(soak, "messages")) == 2


@pytest.mark.fault("C01")
def test_some_races_lose_no_wakeup(tmp_path):
    count = 40_000 if COMPILED else 4_000
    done = run("--races", count, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    for mode in ("EVENT_IDX", "flags"):
        for side in ("driver", "device"):
            assert 0 < figures["modes"][mode][side]["slept"] <= count // 4
            assert 0 < figures["modes"][mode][side]["notified"] <= count // 4
    assert done.stdout.splitlines()[-1].endswith("no wake-up lost")
