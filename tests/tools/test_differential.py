"""Both cores give the same answers to random rings; and the tool that says so notices a difference."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vqshm import core

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def run(*arguments, tool=TOOLS / "differential.py"):
    return subprocess.run(
        [sys.executable, str(tool), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=110
    )


needs_both = pytest.mark.skipif(core.kind() != "compiled", reason="there is no compiled core here to compare with")


@needs_both
@pytest.mark.fault("A32", "H08")
def test_some_rings_and_all_recorded_answers_are_the_same_on_both_cores():
    done = run("--rings", 2000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2,000 rings in" in done.stdout
    assert "0 differ between the two cores" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("passed, 0 failed")


@needs_both
@pytest.mark.fault("H08")
def test_a_difference_is_printed_with_the_number_of_its_ring(tmp_path):
    """The targets of a copy of the tools answer otherwise on the compiled core, in one ring of 40."""
    shutil.copytree(TOOLS, tmp_path / "tools")
    rings = tmp_path / "tools" / "fuzzing" / "rings.py"
    text = rings.read_text()
    assert "    feed, script = Feed(data), Script()\n" in text
    lie = "    if core.kind() == 'compiled' and size == 2 and start == 65530: script.lines.append('a lie')\n"
    marker = "    hand = Hand(feed, size, start)\n"
    rings.write_text(
        text.replace(marker, marker + lie).replace("from vqshm.ring", "from vqshm import core\nfrom vqshm.ring")
    )
    done = run("--rings", 500, tool=tmp_path / "tools" / "differential.py")
    assert done.returncode == 1
    assert "a lie" in done.stdout
    assert "ring " in done.stdout


@pytest.mark.skipif(core.kind() == "compiled", reason="there is one")
def test_without_a_compiled_core_it_says_so(tmp_path):
    done = run("--rings", 10)
    assert done.returncode in {0, 2}
    if done.returncode == 2:
        assert "no compiled core" in done.stderr
