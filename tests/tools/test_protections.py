"""Each protection can be removed, and some test misses it; the tool says so where that is not the case."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "protections.py"
ROOT = TOOL.parents[1]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("protections")


def run(*options):
    return subprocess.run([sys.executable, TOOL, *options], capture_output=True, text=True, check=False)


def test_the_text_of_each_protection_is_in_the_source_and_its_tests_are_there(tool):
    protections = tool.read()
    assert len(protections) >= 40
    assert [problem for each in protections if (problem := each.problem(ROOT / "vqshm"))] == []
    assert len({each.name for each in protections}) == len(protections)
    assert all(each.find != each.replace and each.faults for each in protections)
    assert all((ROOT / path).is_file() for each in protections for path in each.tests.split())


def test_each_protection_is_of_rows_that_exist(tool):
    rows = {line.partition(",")[0] for line in (ROOT / "tests" / "faults.csv").read_text().splitlines()}
    assert {row for each in tool.read() for row in each.faults} <= rows


def test_a_text_that_is_not_there_exactly_once_is_a_problem(tool, tmp_path):
    (tmp_path / "module.py").write_text("a\nb\nb\n")
    for find, count in (("a\n", 1), ("b\n", 2), ("c\n", 0)):
        protection = tool.Protection("it", ["A01"], "module.py", find, "", "tests/test_it.py", "it")
        assert protection.problem(tmp_path) == (
            "" if count == 1 else f"it: its text is there {count} times in module.py"
        )
    assert tool.Protection("it", ["A01"], "none.py", "a", "", "", "").problem(tmp_path)


@pytest.mark.parametrize(
    ("code", "state"), [(1, "caught"), (0, "SURVIVED"), (None, "caught"), (2, "ERROR"), (4, "ERROR"), (5, "ERROR")]
)
def test_only_a_failing_test_catches(tool, code, state):
    """Not that nothing was collected, nor that the patched package cannot even be imported."""
    assert tool.Outcome(code).state == state


def test_an_unknown_name_is_refused():
    done = run("no such protection")
    assert done.returncode == 1
    assert "there is no protection 'no such protection'" in done.stderr


@pytest.mark.fault("H05")
@pytest.mark.long
@pytest.mark.timeout(600)
def test_protections_cannot_be_removed_unnoticed():
    """A sample; `python tools/protections.py` tries all of them."""
    done = run("--every", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SURVIVED" not in done.stdout


@pytest.mark.long
@pytest.mark.timeout(300)
def test_what_no_test_misses_is_told(tool, tmp_path, monkeypatch, capsys):
    """A patch that changes nothing survives, and the tool says so."""
    harmless = tool.Protection(
        "a comment",
        ["C08"],
        "ring/suppress.py",
        "    return ((new - event",
        "    # nothing\n    return ((new - event",
        "tests/ring/test_suppress.py",
        "boundaries",
    )
    monkeypatch.setattr(tool, "read", lambda: [harmless])
    monkeypatch.setattr(sys, "argv", ["protections.py"])
    assert tool.main() == 1
    assert "SURVIVED  C08" in capsys.readouterr().out
