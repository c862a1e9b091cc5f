"""A drawn change is made in one place of a copy, what the tests make of it is told, and what hangs is told apart."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "gates" / "mutation.py"
SOURCE = '''
LIMIT = 3

def function(count: int = 7) -> bool:
    """Text."""
    if not count < LIMIT and count:
        raise ValueError(f"{count + 1} is too many", count=count + 1)
    count += 2
    return True
'''


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("gates/mutation")


def sources():
    return {
        path: (ROOT / "vqshm" / f"{path}.py").read_text() for path in ("ring/walk", "ring/inflight", "memory/arena")
    }


def test_a_condition_a_comparison_a_number_and_a_statement_are_changed_and_no_text_or_annotation(tool):
    raising = "raise ValueError(f'{count + 1} is too many', count=count + 1)"
    assert [(change.line, change.what) for change in tool.changes("it", SOURCE)] == [
        (6, "function: not count < LIMIT and count -> not count < LIMIT or count in if not count < LIMIT and count:"),
        (6, "function: not count < LIMIT -> count < LIMIT in if not count < LIMIT and count:"),
        (6, "function: count < LIMIT -> count <= LIMIT in if not count < LIMIT and count:"),
        (7, f"function: {raising} -> pass"),
        (8, "function: count += 2 -> pass"),
        (8, "function: 2 -> 3 in count += 2"),
        (8, "function: 2 -> 1 in count += 2"),
        (9, "function: True -> False in return True"),
    ]


def test_each_change_is_another_program_that_differs_in_one_statement(tool):
    for file, source in sources().items():
        before = ast.unparse(ast.parse(source)).splitlines()
        seen = set()
        for change in tool.changes(file, source):
            after = change.make(source)
            compile(after, file, "exec")
            assert after not in seen, change.name
            seen.add(after)
            lines = after.splitlines()
            assert len(lines) <= len(before)
            assert sum(line not in before for line in lines) <= 1, change.name
        assert len(seen) > 50


def test_what_is_listed_as_equal_can_be_made_and_has_a_reason(tool):
    possible = {
        change.name for file in tool.TESTS for change in tool.changes(file, (ROOT / "vqshm" / f"{file}.py").read_text())
    }
    equal = tomllib.loads(TOOL.with_suffix(".toml").read_text())
    assert [name for name in equal if name not in possible] == []
    assert all(len(reason) > 20 for reason in equal.values())


def test_the_tests_of_each_file_are_there(tool):
    assert [
        name for names in tool.TESTS.values() for name in names.split() if not (ROOT / f"tests/{name}.py").is_file()
    ] == []


@pytest.mark.parametrize(
    ("code", "failed", "state"),
    [
        (1, "tests/it", "caught"),
        (2, "", "caught"),
        (0, "", "SURVIVED"),
        (None, "not in time", "hung"),
        (1, "++ Timeout ++", "hung"),
    ],
)
def test_what_hangs_is_told_from_what_fails(tool, tmp_path, monkeypatch, code, failed, state):
    (change, *_) = tool.changes("ring/suppress", SOURCE)
    (tmp_path / "vqshm" / "ring").mkdir(parents=True)
    tested = []

    def run(folder, *_):
        tested.append((folder / "vqshm" / "ring" / "suppress.py").read_text())
        return tool.Outcome(code, failed) if len(tested) > 1 else tool.Outcome(0)

    monkeypatch.setattr(tool, "run", run)
    (tmp_path / "vqshm" / "ring" / "suppress.py").write_text(SOURCE)
    assert tool.Bench(tmp_path, {"ring/suppress": SOURCE}).judge(change)[0] == state
    assert tested == [SOURCE, change.make(SOURCE)]
    assert (tmp_path / "vqshm" / "ring" / "suppress.py").read_text() == SOURCE


def test_nothing_is_judged_where_the_tests_fail_without_a_change(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "run", lambda *_: tool.Outcome(1, "tests/it"))
    (change, *_) = tool.changes("ring/suppress", SOURCE)
    with pytest.raises(SystemExit, match="fail as it is"):
        tool.Bench(tmp_path, {"ring/suppress": SOURCE}).judge(change)


@pytest.mark.fault("H05")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_changes_of_the_rule_of_suppression_are_noticed():
    done = subprocess.run(
        [sys.executable, TOOL, "--sample", "4", "ring/suppress"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 changes were noticed, 100.0%" in done.stdout
