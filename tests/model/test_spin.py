"""SPIN finds no error in the models of suppression and of the in-flight area, and one in every mutant of them (H01).

A model without its protection must fail: that is what shows that the others prove something.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from vqshm import core

HERE = Path(__file__).parent
SPIN = shutil.which("spin")
CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

pytestmark = [
    pytest.mark.fault("H01"),
    pytest.mark.skipif(not SPIN, reason="needs spin (Debian: apt-get install spin)"),
    pytest.mark.skipif(not CC, reason="needs a C compiler, which SPIN's verifier is built with"),
    pytest.mark.skipif(core.forced(), reason="a model is the same on both cores: checked where VQSHM_PURE is not set"),
]

LOST, WRONG = "invalid end state", "assertion violated"


class Verdict(NamedTuple):
    error: str  # the first one found, or ""
    states: int


def check(folder, model, *options):
    """Run SPIN's verifier on a model with these -D options. An incomplete search without an error is a failure."""
    shutil.copy(HERE / model, folder / "model.pml")
    defines = [f"-D{option}" for option in options]
    run(folder, SPIN, *defines, "-a", "model.pml")
    run(folder, CC, "-O1", "-w", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c")
    said = run(folder, "./pan", "-m1000000")
    errors, states = (int(re.search(what, said)[1]) for what in (r"errors: (\d+)", r"(\d+) states, stored"))
    found = re.search(r"^pan:1: (.*)$", said, re.MULTILINE)
    assert bool(errors) is bool(found), said
    if not found:
        assert "Search not completed" not in said, said
        assert "too small" not in said, said
        assert states > 1000, said
    return Verdict(found[1] if found else "", states)


def run(folder, *command):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("options", [(), ("FLAGS",), ("SPURIOUS",), ("FLAGS", "SPURIOUS")], ids="-".join)
def test_no_order_of_steps_and_stores_loses_a_wake_up(tmp_path, options):
    assert not check(tmp_path, "suppression.pml", *options).error


@pytest.mark.fault("C02", "C03")
@pytest.mark.long
@pytest.mark.parametrize(
    ("mutant", "error"),
    [
        ("NO_FENCE_KICK", LOST),
        ("NO_FENCE_CALL", LOST),
        ("NO_FENCE_ARM_KICK", LOST),
        ("NO_FENCE_ARM_CALL", LOST),
        ("NO_LOOK_KICK", LOST),
        ("NO_LOOK_CALL", LOST),
        ("LATE_ARM_KICK", LOST),
        ("LATE_ARM_CALL", LOST),
        ("FLAGS NO_FENCE_KICK", LOST),
        ("FLAGS NO_FENCE_CALL", LOST),
        ("FLAGS NO_FENCE_ARM_KICK", LOST),
        ("FLAGS NO_FENCE_ARM_CALL", LOST),
        ("EQUALITY", LOST),
        ("NO_WRAP", LOST),
        ("AVAIL_IDX_FIRST", WRONG),
        ("USED_IDX_FIRST", WRONG),
    ],
)
def test_without_its_protection_suppression_fails(tmp_path, mutant, error):
    assert check(tmp_path, "suppression.pml", *mutant.split()).error.startswith(error)


def test_a_device_that_is_killed_twice_anywhere_loses_and_doubles_nothing(tmp_path):
    assert not check(tmp_path, "inflight.pml").error


@pytest.mark.long
def test_nor_does_one_with_three_chains_in_flight(tmp_path):
    assert not check(tmp_path, "inflight.pml", "SIZE=3", "KILLS=1").error


@pytest.mark.long
@pytest.mark.parametrize(
    "mutant",
    [
        "CLEAR_FIRST",  # the mark goes before used.idx
        "MARK_LATE",  # the mark comes after the handling
        "NO_SETTLE",  # a successor does not finish the last batch
        "NO_SKIP",  # a successor takes again what is in flight
        "COUNTER_LATE",  # the mark comes before the counter
        "NO_COUNTER",
        "NO_NEXT",  # batches are not linked
        "LINK_LATE",  # … or after used.idx
        "SETTLE_FIRST",  # the area's used_idx comes before the ring's
        "IDX_EARLY",  # … or before the marks are off
    ],
)
def test_without_its_protection_the_in_flight_area_fails(tmp_path, mutant):
    assert check(tmp_path, "inflight.pml", mutant).error.startswith(WRONG)
