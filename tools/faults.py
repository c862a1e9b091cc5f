"""Which rows of the list of faults the tests cover, and how these tests end.

    python tools/faults.py [--list] [--runlong] [--id A01 …]

The rows stand in tests/faults.csv, and a test refers to one by its mark: `@pytest.mark.fault("A01")`. Without `--list`,
which only collects, the marked tests run, on the vqshm that this interpreter imports; `--runlong` runs the long ones,
too. A row that is treated otherwise than the list says has its reason in tests/faults.toml:

    A12 = "differs: …"      tested, but the behaviour is another one
    E11 = "not here: …"     without a test

It exits with 1 if a row of tier 1 has neither a test nor a reason why not, or if a marked test fails.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import re
import sys
import textwrap
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # PYTHONSAFEPATH leaves it out

from listing import entry, repeated, sums  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = HERE.parent
TESTS = ROOT / "tests"
ROWS = TESTS / "faults.csv"
REASONS = TESTS / "faults.toml"
WIDTH = 120  # of what a row says
STATES = ("pass", "fail", "skip", "not run", "not here", "NO TEST")


@dataclass(frozen=True)
class Row:
    """One fault, and what is expected to come of it."""

    id: str
    fault_or_input: str
    expected: str
    anchor: str
    tier: str

    @property
    def says(self) -> str:
        """Fault and behaviour in one line."""
        return f"tier {self.tier}  " + textwrap.shorten(
            f"{self.fault_or_input}: {self.expected}", WIDTH, placeholder=" …"
        )


@dataclass(eq=False)  # pytest wants its plugins to have a hash
class Results:
    """A plugin of pytest: the marked tests by row, and how each of them ended."""

    only: frozenset[str] = frozenset()  # the rows in question; all if empty
    tests: dict[str, list[str]] = field(default_factory=dict)  # per row, node ids
    outcomes: dict[str, str] = field(default_factory=dict)  # per node id: passed, failed, skipped
    reasons: dict[str, str] = field(default_factory=dict)  # per node id: why it was skipped
    broken: list[str] = field(default_factory=list)  # what could not be collected

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._rows_of(item)]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for id_ in self._rows_of(item):
                self.tests.setdefault(id_, []).append(item.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(f"{report.nodeid}: {report.longreprtext}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        before = self.outcomes.get(report.nodeid)
        if report.failed or (before != "failed" and (report.when == "call" or report.skipped)):
            self.outcomes[report.nodeid] = report.outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[report.nodeid] = str(report.longrepr[2]).removeprefix("Skipped: ")

    def _rows_of(self, item: pytest.Item) -> set[str]:
        named = {str(id_) for mark in item.iter_markers("fault") for id_ in mark.args}
        return named & self.only if self.only else named


def read_rows(path: Path = ROWS) -> list[Row]:
    """The rows in their order."""
    with path.open(encoding="utf-8", newline="") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def read_reasons(path: Path = REASONS) -> dict[str, str]:
    """Why a row is treated otherwise, by its id."""
    with path.open("rb") as file:
        return tomllib.load(file)


def collect(results: Results, *, run: bool, runlong: bool = False, root: Path = TESTS) -> None:
    """Note in `results` the marked tests under `root`, and how they end if they `run`."""
    options = [
        "-m",
        "fault",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(ROOT),
        str(root),
        "-q",
        "--no-header",
    ]
    options += ["--no-summary"] if run else ["--collect-only"]
    options += ["--runlong"] if runlong else []
    said = io.StringIO()
    with contextlib.nullcontext() if run else contextlib.redirect_stdout(said):
        code = pytest.main(options, plugins=[results])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        results.broken.append(f"pytest ended with {code!r}\n{said.getvalue()}")


def problems(rows: list[Row], reasons: dict[str, str], results: Results) -> list[str]:
    """What is wrong with the list, the reasons or the marks, one sentence each."""
    found = repeated(row.id for row in rows) + results.broken
    known = {row.id for row in rows}
    for id_ in (*results.tests, *reasons):
        if id_ not in known:
            found.append(f"there is no row {id_}")
    for id_, reason in reasons.items():
        if not re.match(r"(differs|not here): \S", reason):
            found.append(f'{id_}: a reason begins with "differs: " or "not here: "')
        elif reason.startswith("not here") is bool(results.tests.get(id_)):
            tests = "has tests" if id_ in results.tests else "has no test"
            found.append(f"{id_} {tests}, but is said to be {reason.partition(':')[0]}")
    return found


def state(row: Row, reasons: dict[str, str], results: Results) -> str:
    """One of STATES."""
    tests = results.tests.get(row.id)
    if not tests:
        return "not here" if row.id in reasons else "NO TEST"
    outcomes = {results.outcomes.get(test) for test in tests}
    for outcome, name in (("failed", "fail"), ("passed", "pass"), ("skipped", "skip")):
        if outcome in outcomes:
            return name
    return "not run"


def below(row: Row, reasons: dict[str, str], results: Results) -> Iterator[str]:
    """What is to be told of a row: why it is treated otherwise; its tests, and which of them fail or were skipped."""
    if row.id in reasons:
        yield reasons[row.id]
    tests = results.tests.get(row.id, [])
    for name, count in Counter(test.partition("[")[0] for test in tests).items():
        mine = [test for test in tests if test.partition("[")[0] == name]
        failed = sum(results.outcomes.get(test) == "failed" for test in mine)
        skipped = Counter(results.reasons[test] for test in mine if results.outcomes.get(test) == "skipped")
        yield " ".join(
            [
                name,
                *([f"x{count}"] if count > 1 else []),
                *([f"({failed} FAILED)"] if failed else []),
                *(f"({n} skipped: {reason})" for reason, n in skipped.items()),
            ]
        )


def report(rows: list[Row], reasons: dict[str, str], results: Results) -> Iterator[str]:
    """The lines of the table, and its sums by tier."""
    for row in rows:
        yield from entry(state(row, reasons, results), row.id, row.says, below(row, reasons, results))
    yield ""
    for tier in sorted({row.tier for row in rows}):
        mine = [row for row in rows if row.tier == tier]
        states = Counter(state(row, reasons, results) for row in mine)
        differs = sum(reasons.get(row.id, "").startswith("differs") for row in mine)
        counted = {name: states[name] for name in STATES if states[name]}
        yield f"tier {tier}: {len(mine)} rows: {sums(counted)}" + (f"; {differs} of them argued" if differs else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="collect the tests, but do not run them")
    parser.add_argument("--runlong", action="store_true", help="run the long ones, too")
    parser.add_argument("--id", nargs="+", default=[], metavar="ID", help="these rows only")
    options = parser.parse_args()

    rows, reasons = read_rows(), read_reasons()
    if options.id:
        rows = [row for row in rows if row.id in options.id]
        reasons = {row.id: reasons[row.id] for row in rows if row.id in reasons}
    results = Results(frozenset(options.id))
    collect(results, run=not options.list, runlong=options.runlong)
    for line in report(rows, reasons, results):
        print(line)
    wrong = problems(rows, reasons, results)
    for sentence in wrong:
        print(f"wrong: {sentence}", file=sys.stderr)
    states = {row.id: state(row, reasons, results) for row in rows}
    bare = [row.id for row in rows if row.tier == "1" and states[row.id] == "NO TEST"]
    if bare:
        print(f"without a test: {' '.join(bare)}", file=sys.stderr)
    return 1 if wrong or bare or "fail" in states.values() else 0


if __name__ == "__main__":
    sys.exit(main())
