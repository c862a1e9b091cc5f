"""The table of faults tells which rows have tests and how these end; what is wrong with it does not go unnoticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "faults.py"

SUITE = """
import pytest

@pytest.mark.fault("A01", "A02")
def test_passes():
    pass

@pytest.mark.parametrize("name", [pytest.param("x", marks=pytest.mark.fault("A03")), "y"])
def test_some(name):
    assert name != "x"

@pytest.mark.fault("A04")
def test_skips():
    pytest.skip("no such machine")

@pytest.mark.fault("A05")
def test_ends_badly(request):
    request.addfinalizer(lambda: 1 / 0)

def test_is_not_asked():
    assert False
"""
COLLECT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import faults
results = faults.Results(frozenset(sys.argv[4:]))
faults.collect(results, run=sys.argv[3] == "run", root=Path(sys.argv[2]))
print("\\n" + json.dumps([results.tests, results.outcomes, results.reasons, results.broken]))
"""


@pytest.fixture(scope="module")
def faults(load_tool):
    return load_tool("faults")


@pytest.fixture
def collect(tmp_path):
    """Collect a suite of its own in a process of its own: tests by row, outcomes, reasons, what is broken."""

    def collect(suite, how, *only):
        (tmp_path / "test_suite.py").write_text(suite)
        done = subprocess.run(
            [sys.executable, "-c", COLLECT, TOOL.parent, tmp_path, how, *only],
            env={key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"},
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        return json.loads(json.dumps(found).replace("test_suite.py::", ""))

    return collect


def test_marked_tests_are_found_and_their_ends_noted(collect):
    tests, outcomes, reasons, broken = collect(SUITE, "run")
    passes = ["test_passes"]
    assert tests == {
        "A01": passes,
        "A02": passes,
        "A03": ["test_some[x]"],
        "A04": ["test_skips"],
        "A05": ["test_ends_badly"],
    }
    assert outcomes == {
        "test_passes": "passed",
        "test_some[x]": "failed",
        "test_skips": "skipped",
        "test_ends_badly": "failed",
    }
    assert reasons == {"test_skips": "no such machine"}
    assert broken == []


def test_a_list_runs_nothing(collect):
    tests, outcomes, _, broken = collect(SUITE, "list")
    assert (len(tests), outcomes, broken) == (5, {}, [])


def test_rows_can_be_chosen(collect):
    tests, outcomes, _, _ = collect(SUITE, "run", "A02", "A04")
    assert tests == {"A02": ["test_passes"], "A04": ["test_skips"]}
    assert set(outcomes) == {"test_passes", "test_skips"}


def test_what_cannot_be_collected_is_told(collect):
    assert "no_such_module" in str(collect("import no_such_module\n", "list")[3])


def row(faults, id_, tier="1"):
    return faults.Row(id_, "a fault", "an end", "", tier)


def test_a_row_is_as_bad_as_its_worst_test(faults):
    tests = {f"B0{i}": ["x", "y"] for i in range(1, 6)}
    for outcomes, expected in (
        ({}, "not run"),
        ({"x": "passed", "y": "skipped"}, "pass"),
        ({"x": "passed", "y": "failed"}, "fail"),
        ({"x": "skipped", "y": "skipped"}, "skip"),
    ):
        results = faults.Results(tests=tests, outcomes=outcomes, reasons=dict.fromkeys("xy", "why"))
        assert faults.state(row(faults, "B01"), {}, results) == expected
    assert faults.state(row(faults, "B09"), {}, results) == "NO TEST"
    assert faults.state(row(faults, "B09"), {"B09": "not here: why"}, results) == "not here"
    text = "\n".join(faults.report([row(faults, "B01")], {"B01": "differs: better"}, results))
    assert "differs: better" in text
    assert "x (1 skipped: why)" in text
    assert text.endswith("tier 1: 1 rows: 1 skip; 1 of them argued")


@pytest.mark.parametrize(
    ("rows", "reasons", "tests", "said"),
    [
        (["A01"], {}, {"A01": ["t"]}, []),
        (["A01"], {"A01": "differs: it is better"}, {"A01": ["t"]}, []),
        (["A01"], {"A01": "not here: no kernel"}, {}, []),
        (["A01", "A01"], {}, {}, ["2 times"]),
        (["A01"], {}, {"A02": ["t"]}, ["no row A02"]),
        (["A01"], {"A02": "not here: why"}, {}, ["no row A02"]),
        (["A01"], {"A01": "later"}, {}, ["begins with"]),
        (["A01"], {"A01": "differs: "}, {"A01": ["t"]}, ["begins with"]),
        (["A01"], {"A01": "differs: why"}, {}, ["has no test"]),
        (["A01"], {"A01": "not here: why"}, {"A01": ["t"]}, ["has tests"]),
    ],
)
def test_what_is_wrong_with_the_list_is_said(faults, rows, reasons, tests, said):
    found = faults.problems([row(faults, id_) for id_ in rows], reasons, faults.Results(tests=tests))
    assert len(found) == len(said)
    assert all(word in sentence for word, sentence in zip(said, found, strict=True))


def test_the_list_and_its_reasons_can_be_read(faults):
    rows, reasons = faults.read_rows(), faults.read_reasons()
    assert len(rows) > 90
    assert set(reasons) <= {row.id for row in rows}
    assert all(len(row.says) < 140 for row in rows)


@pytest.mark.long
def test_every_row_of_the_first_tier_has_tests_or_says_why_not():
    done = subprocess.run([sys.executable, TOOL, "--list"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "NO TEST" not in done.stdout
