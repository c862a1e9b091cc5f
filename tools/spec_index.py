"""Which normative statements of the virtio specification the tests cover, and which they do not.

    python tools/spec_index.py [--uncovered] [--section 2.7.5]

The statements stand in tests/spec/statements.toml, and a test refers to one by its mark:
`@pytest.mark.spec("2.7.1-driver-1")`. The tests are read, not imported, so this runs without pytest and without vqshm.
It exits with 1 if a mark names a statement that is not there.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # PYTHONSAFEPATH leaves it out

from listing import entry, repeated, sums  # noqa: E402

ROOT = HERE.parent
TESTS = ROOT / "tests"
STATEMENTS = TESTS / "spec" / "statements.toml"
MARK = "pytest.mark.spec"


@dataclass(frozen=True)
class Statement:
    """One MUST or MUST NOT."""

    id: str
    section: str
    side: str
    kind: str
    says: str
    not_applicable: str = ""


@dataclass(frozen=True)
class Mark:
    """A test that refers to a statement; `statement` is None where the mark is not a plain string."""

    statement: str | None
    test: str
    line: int


def read_statements(path: Path = STATEMENTS) -> tuple[dict[str, str], list[Statement]]:
    """The titles of the sections, and the statements in their order."""
    with path.open("rb") as file:
        content = tomllib.load(file)
    return content["sections"], [Statement(**entry) for entry in content["statement"]]


def read_marks(root: Path = TESTS) -> list[Mark]:
    """The spec marks of all tests under `root`."""
    return [mark for path in sorted(root.rglob("test_*.py")) for mark in _marks_of(path)]


def _marks_of(path: Path) -> Iterator[Mark]:
    name = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for call in (call for decorator in node.decorator_list for call in ast.walk(decorator)):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == MARK:
                for argument in call.args or [ast.Constant(None)]:
                    value = argument.value if isinstance(argument, ast.Constant) else None
                    statement = value if isinstance(value, str) else None
                    yield Mark(statement, f"{name}::{node.name}", call.lineno)


def problems(sections: dict[str, str], statements: list[Statement], marks: list[Mark]) -> list[str]:
    """What is wrong with the list or with the marks, one sentence each."""
    known = {statement.id: statement for statement in statements}
    found = repeated(statement.id for statement in statements)
    for statement in statements:
        if statement.section not in sections:
            found.append(f"{statement.id}: section {statement.section} has no title")
        if statement.id.rpartition("-")[0] != f"{statement.section}-{statement.side}":
            found.append(f"{statement.id} is of section {statement.section}, {statement.side}")
        if statement.side not in {"driver", "device"} or statement.kind not in {"MUST", "MUST NOT"}:
            found.append(f"{statement.id}: {statement.kind} of the {statement.side}")
    for mark in marks:
        if mark.statement is None:
            found.append(f"{mark.test} (line {mark.line}): the mark must name a statement by a plain string")
        elif mark.statement not in known:
            found.append(f"{mark.test} (line {mark.line}): there is no statement {mark.statement}")
        elif known[mark.statement].not_applicable:
            found.append(f"{mark.test} (line {mark.line}): {mark.statement} is not applicable, so what does it test?")
    return found


def select(statements: list[Statement], prefix: str) -> list[Statement]:
    """Those in section `prefix` and below it; all if empty."""
    return [s for s in statements if not prefix or f"{s.section}.".startswith(f"{prefix.rstrip('.')}.")]


def report(
    sections: dict[str, str], statements: list[Statement], marks: list[Mark], *, uncovered_only: bool
) -> Iterator[str]:
    """The lines of the table: section by section, and the sum."""
    tests: dict[str | None, list[str]] = {}
    for mark in marks:
        tests.setdefault(mark.statement, []).append(mark.test)
    for section in dict.fromkeys(s.section for s in statements):
        mine = [s for s in statements if s.section == section]
        states = _count(mine, tests)
        if uncovered_only and not states["uncovered"]:
            continue
        yield f"{section + '  ' + sections.get(section, ''):<56}{sums(states)}"
        for statement in mine:
            yield from _entry(statement, tests.get(statement.id, []), uncovered_only=uncovered_only)
        yield ""
    yield f"{len(statements)} statements: {sums(_count(statements, tests))}"


def _entry(statement: Statement, tests: list[str], *, uncovered_only: bool) -> Iterator[str]:
    if uncovered_only and (tests or statement.not_applicable):
        return
    state = "covered" if tests else "-" if statement.not_applicable else "UNCOVERED"
    reason = [statement.not_applicable] if statement.not_applicable else []
    yield from entry(state, statement.id, f"{statement.kind} {statement.says}", tests or reason)


def _count(statements: Iterable[Statement], tests: dict[str | None, list[str]]) -> Counter[str]:
    states = Counter({"covered": 0, "not applicable": 0, "uncovered": 0})
    states.update(
        "covered" if s.id in tests else "not applicable" if s.not_applicable else "uncovered" for s in statements
    )
    return states


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--uncovered", action="store_true", help="only what has no test and should have one")
    parser.add_argument("--section", default="", metavar="PREFIX", help="only this section and those below it")
    options = parser.parse_args()

    sections, statements = read_statements()
    marks = read_marks()
    chosen = select(statements, options.section)
    for line in report(sections, chosen, marks, uncovered_only=options.uncovered):
        print(line)
    wrong = problems(sections, statements, marks)
    for sentence in wrong:
        print(f"wrong: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
