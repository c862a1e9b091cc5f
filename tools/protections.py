"""Removes the protections of vqshm one by one, and requires that the tests notice each time.

    python tools/protections.py [--list] [--every N] [NAME …]

tools/protections.toml names each protection: the rows of tests/faults.csv it is for, the text in the package that is
replaced to remove it, and the tests that must fail then. The package that this interpreter imports is copied, patched
in one place, and tested there, by its interpreted core; the unpatched copy must pass the same tests. `--every N` takes
each N-th protection: a sample.

It exits with 1 if a protection can be removed unnoticed, if a text is not found exactly once, or if tests fail without
any patch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # PYTHONSAFEPATH leaves it out

from listing import entry, repeated, sums  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = HERE.parent
LIST = HERE / "protections.toml"
PATIENCE = 120  # seconds for the tests of one protection; without it some would never end
MEMORY = 3 << 30  # bytes of address space: nor would they stop taking memory
RUN = f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
runpy.run_module("pytest", run_name="__main__")
"""


@dataclass(frozen=True)
class Protection:
    """A few lines of the package without which the tests fail."""

    name: str
    faults: list[str]
    file: str  # in the package
    find: str
    replace: str
    tests: str  # files
    select: str  # which of its tests, as for `pytest -k`

    def problem(self, package: Path) -> str:
        """What keeps it from being removed; empty if nothing does."""
        path = package / self.file
        count = path.read_text(encoding="utf-8").count(self.find) if path.exists() else 0
        return "" if count == 1 else f"{self.name}: its text is there {count} times in {self.file}"

    def remove(self, package: Path) -> None:
        """Patch a copy of the package."""
        path = package / self.file
        path.write_text(path.read_text(encoding="utf-8").replace(self.find, self.replace), encoding="utf-8")


@dataclass(frozen=True)
class Outcome:
    """How the tests ended: pytest's exit code (None: not in time) and the first that failed."""

    code: int | None
    failed: str = ""
    said: str = ""

    @property
    def state(self) -> str:
        """Of a protection that was removed. Where nothing could be tested, nothing was caught."""
        return {1: "caught", 0: "SURVIVED", None: "caught"}.get(self.code, "ERROR")


def read(path: Path = LIST) -> list[Protection]:
    """The protections in their order."""
    with path.open("rb") as file:
        return [Protection(**protection) for protection in tomllib.load(file)["protection"]]


def installed() -> Path:
    """The package that this interpreter imports."""
    spec = importlib.util.find_spec("vqshm")
    if spec is None or spec.origin is None:
        sys.exit("vqshm is not installed here")
    return Path(spec.origin).parent


@contextlib.contextmanager
def copy_of(package: Path) -> Iterator[Path]:
    """A folder that holds a copy of the package, without its compiled libraries."""
    with tempfile.TemporaryDirectory(prefix="vqshm-protections-") as folder:
        shutil.copytree(package, Path(folder) / "vqshm", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        yield Path(folder)


def run(folder: Path, tests: str, select: str, patience: float = PATIENCE) -> Outcome:
    """Test the package in `folder`, on the interpreted core, until the first failure."""
    kept = {name: value for name, value in os.environ.items() if name not in {"CI", "PYTEST_ADDOPTS"}}
    options = ["-x", "-q", "--no-header", "--tb=no", "--timeout=40", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", RUN, *options, "-k", select, *tests.split()],
        env={**kept, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "VQSHM_PURE": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Outcome(None, "not in time")
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", said, re.MULTILINE)
    return Outcome(process.returncode, failed[1] if failed else said.strip().rpartition("\n")[2], said)


def sound(package: Path, chosen: list[Protection]) -> list[str]:
    """What fails without any patch, or tests nothing."""
    groups: dict[str, list[str]] = {}
    for protection in chosen:
        groups.setdefault(protection.tests, []).append(f"({protection.select})")
    found = []
    with copy_of(package) as folder:
        for tests, selects in groups.items():
            outcome = run(folder, tests, " or ".join(dict.fromkeys(selects)))
            if outcome.code != 0:
                found.append(f"{tests} fails as it is: {outcome.failed}\n{outcome.said}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="look whether each can be removed, but test nothing")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="a sample: each N-th of them")
    parser.add_argument("names", nargs="*", metavar="NAME", help="these only")
    options = parser.parse_args()

    protections, package = read(), installed()
    unknown = set(options.names) - {protection.name for protection in protections}
    chosen = [protection for protection in protections if not options.names or protection.name in options.names]
    chosen = chosen[:: options.every]
    wrong = [f"there is no protection {name!r}" for name in sorted(unknown)]
    wrong += repeated(protection.name for protection in protections)
    wrong += [problem for protection in protections if (problem := protection.problem(package))]
    states: Counter[str] = Counter()
    if not wrong and not options.list:
        wrong += sound(package, chosen)
    for protection in chosen if not wrong else []:
        outcome = Outcome(None)
        if not options.list:
            with copy_of(package) as folder:
                protection.remove(folder / "vqshm")
                outcome = run(folder, protection.tests, protection.select)
        state = "there" if options.list else outcome.state
        states[state] += 1
        for line in entry(state, " ".join(protection.faults), protection.name, [outcome.failed or protection.tests]):
            print(line, flush=True)
    print(f"\n{len(chosen)} protections: {sums(states)}" if not wrong else "")
    for sentence in wrong:
        print(f"wrong: {sentence}", file=sys.stderr)
    return 1 if wrong or set(states) - {"caught", "there"} else 0


if __name__ == "__main__":
    sys.exit(main())
