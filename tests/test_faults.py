"""The list of faults is sound, and a fault mark names rows of it."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def rows():
    with (HERE / "faults.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_has_an_id_of_its_own_a_behaviour_and_a_tier():
    ids = [row["id"] for row in rows()]
    assert len(set(ids)) == len(ids) > 90
    assert all(re.fullmatch(r"[A-H]\d\d", id_) for id_ in ids)
    assert all(row["fault_or_input"] and row["expected"] and row["tier"] in {"1", "2", "3"} for row in rows())


@pytest.mark.parametrize(
    ("mark", "complaint"),
    [("'A01', 'B03'", ""), ("'A01', 'A99'", "A99: no such row"), ("", "nothing: no such row"), ("7", "7: no such row")],
    ids=["known", "unknown", "empty", "a number"],
)
def test_a_mark_that_names_no_row_ends_the_run(tmp_path, mark, complaint):
    """A run of its own, under the settings and the conftest of this one."""
    for name in ("conftest.py", "faults.csv", "host/harness.py", "ring/mortal.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((HERE / name).read_bytes())
    (tmp_path / "test_it.py").write_text(f"import pytest\n\n@pytest.mark.fault({mark})\ndef test_it():\n    pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", HERE.parent / "pyproject.toml", "--rootdir", tmp_path, tmp_path],
        env={key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert (done.returncode != 0) is bool(complaint), said
    assert complaint in said
