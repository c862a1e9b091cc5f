"""tools/explore.py explores the interpreted source, whatever core is installed, and shows how a mutant of it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "explore.py"


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.fault("H04")
def test_it_tries_all_orders_under_each_model_it_is_given():
    done = run("exchange", "--count", "1", "--model", "sc", "tso", "c11")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == ["sc", "tso", "c11"]
    assert done.stdout.count(" states, ") == 3


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param("device: no fence after arming", marks=pytest.mark.fault("C02")),
        pytest.param("driver: no look after arming", marks=pytest.mark.fault("C03")),
    ],
)
def test_it_shows_the_steps_by_which_a_mutant_fails(mutant):
    done = run("exchange", "--mutant", mutant)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "sleeps for ever" in done.stdout
    assert "becomes visible" in done.stdout


def test_it_names_the_mutants():
    assert "device: no fence after arming" in run("--mutants").stdout.splitlines()


def test_too_many_states_end_it_with_an_error():
    done = run("exchange", "--limit", "100")
    assert done.returncode == 2
    assert "more than 100 states" in done.stderr
    assert "Traceback" not in done.stderr
