"""The compiled core, built with AddressSanitizer, works on memory that somebody else rewrites, and steps nowhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vqshm import core

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "sanitize.py"
HOSTILE = (
    "tests/ring/test_mutation.py",
    "tests/ring/test_hostile_driver.py",
    "tests/ring/test_hostile_device.py",
    "tests/lane/test_hostile.py",
    "tests/memory/test_atomic.py",
    "tests/fuzz",
)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], cwd=ROOT, capture_output=True, text=True, check=False, **environment
    )


@pytest.mark.long
@pytest.mark.fault("A20", "H06")
@pytest.mark.timeout(900)  # it compiles everything
@pytest.mark.skipif(core.kind() != "compiled", reason="the other core has nothing to sanitize")
def test_hostile_memory_makes_a_sanitized_core_step_nowhere():
    done = run("address", *HOSTILE)
    if done.returncode == 2 and "gcc" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "failed" not in done.stdout


def test_without_a_compiler_it_says_so(tmp_path):
    done = run("address", env={"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert "there is no gcc" in done.stderr
