"""The list of normative statements is sound, and every spec mark names one of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "spec_index.py"


@pytest.fixture(scope="module")
def index(load_tool):
    return load_tool("spec_index")


def test_every_mark_names_a_statement_and_every_statement_is_there_once(index):
    sections, statements = index.read_statements()
    marks = index.read_marks()
    assert len(statements) > 80
    assert len(marks) > 40
    assert index.problems(sections, statements, marks) == []
    assert list(sections) == list(dict.fromkeys(statement.section for statement in statements))


def test_the_numbers_of_a_section_and_side_run_from_one(index):
    numbers: dict[str, list[int]] = {}
    for statement in index.read_statements()[1]:
        stem, _, number = statement.id.rpartition("-")
        numbers.setdefault(stem, []).append(int(number))
    assert all(found == list(range(1, len(found) + 1)) for found in numbers.values()), numbers


def test_a_wrong_mark_is_found(index):
    sections, statements = index.read_statements()
    absent = next(statement.id for statement in statements if statement.not_applicable)
    marks = [index.Mark("9.9-driver-1", "t", 1), index.Mark(None, "t", 2), index.Mark(absent, "t", 3)]
    assert len(index.problems(sections, statements, marks)) == 3
    assert index.problems(sections, [*statements, statements[0]], [])


def test_the_tool_counts_every_statement_once(index):
    done = subprocess.run([sys.executable, TOOL, "--section", "2.7"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, covered, absent, uncovered = (int(w) for w in done.stdout.splitlines()[-1].split() if w.isdigit())
    assert total == covered + absent + uncovered == len(index.select(index.read_statements()[1], "2.7"))
    assert not index.select(index.read_statements()[1], "2.70")
