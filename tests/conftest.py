"""What every test run shares: which core runs, the long tests, and a look around for what was left behind."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

from vqshm import core

# Interpreters that tests start must not find the checkout in their working directory, but the installed package.
os.environ["PYTHONSAFEPATH"] = "1"

# A lock and sockets of our own: whoever runs tests beside us may hold theirs for long, and kills and freezes processes.
_runtime = tempfile.TemporaryDirectory(prefix="vqshm-tests-", dir="/tmp")  # a socket has a short path
os.environ["VQSHM_RUNTIME_DIR"] = _runtime.name

# A shell starts background jobs with Ctrl-C ignored, nohup ignores hang-ups, and children inherit both; but not what is
# handled. The tests send these signals and want them heard.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# importlib mode puts no folder of tests on sys.path: what several folders share is imported here.
for _shared in ("host/harness.py", "ring/mortal.py"):
    _path = Path(__file__).parent / _shared
    _spec = importlib.util.spec_from_file_location(f"vqshm_{_path.stem}", _path)
    sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_spec.name])

with Path(__file__).with_name("faults.csv").open(encoding="utf-8", newline="") as _file:
    FAULTS = frozenset(row["id"] for row in csv.DictReader(_file))

CI = os.environ.get("CI", "") not in ("", "0", "false")
EXPECTED_CORE = os.environ.get("VQSHM_EXPECT_CORE") or ("interpreted" if core.forced() else "compiled" if CI else None)
OBJECTS = ("vqshm*", "sem.vqshm*")
# Helpers that multiprocessing keeps on purpose until this process ends.
RESIDENTS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
GRACE = 5.0  # seconds for what is just going away

hypothesis.settings.register_profile(
    "vqshm",
    hypothesis.settings(),
    deadline=None,  # a shared machine says nothing about a single example
    derandomize=CI,  # there a failure is the change's, not the dice's; everybody else's runs go on searching
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("vqshm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runlong", action="store_true", help="run the tests marked long, too")


def pytest_report_header() -> list[str]:
    return [f"vqshm: {core.kind()} core ({core.reason()})", f"       {Path(core.__file__).parent}"]


def pytest_sessionstart() -> None:
    if EXPECTED_CORE not in (None, core.kind()):
        pytest.exit(f"the {EXPECTED_CORE} core was expected, but it is the {core.kind()} one: {core.reason()}", 3)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if unknown := unknown_faults(item):
            raise pytest.UsageError(f"{item.nodeid}: {', '.join(unknown)}: no such row in tests/faults.csv")
    if CI or config.getoption("--runlong"):
        return
    for item in items:
        if "long" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long: needs --runlong"))


def unknown_faults(item: pytest.Item) -> list[str]:
    """What the fault marks of a test name beside the rows of the list; a mark without a name counts as `nothing`."""
    named = [id_ for mark in item.iter_markers("fault") for id_ in mark.args or ("nothing",)]
    return [str(id_) for id_ in named if id_ not in FAULTS]


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind(_first_seen: dict[str, str]):
    """No shared-memory object and no child process outlives the tests."""
    before = shared_objects()
    yield
    deadline = time.monotonic() + GRACE
    while (left := leftovers(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        seen = [f"  {name}, first seen after {_first_seen.get(name, 'the last test')}" for name in left]
        pytest.fail("\n".join(["left behind:", *seen]), pytrace=False)


@pytest.fixture(scope="session")
def _first_seen() -> dict[str, str]:
    return {}


@pytest.fixture(autouse=True)
def _remember_who_made_it(request: pytest.FixtureRequest, _first_seen: dict[str, str]):
    """Note after which test an object or a child first shows, so that the failure at the end can name it."""
    yield
    for name in (*shared_objects(), *children()):
        _first_seen.setdefault(name, request.node.nodeid)


def leftovers(before: set[str]) -> list[str]:
    """What appeared since `before` and is ours: what a living process of somebody else holds open, is not."""
    names = shared_objects() - before
    return sorted(names - in_foreign_hands(names) if names else names) + children()


def shared_objects() -> set[str]:
    return {str(path) for pattern in OBJECTS for path in Path("/dev/shm").glob(pattern)}


def children() -> list[str]:
    """The processes whose parent is this one, zombies too, each by pid and name."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # the quick answer after most tests: there is none
        return []
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (folder / "stat").read_text().rpartition(")")
            if int(rest.split()[1]) != os.getpid():
                continue
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if not any(resident in command for resident in RESIDENTS):
            found.append(f"process {name})")
    return found


def in_foreign_hands(names: set[str]) -> set[str]:
    """Those of `names` of the test run next door: it bears that one's pid, or another living process maps it."""
    pids = {name: re.search(r"\d+", Path(name).name) for name in names}
    held = {name for name, pid in pids.items() if pid and pid[0] != str(os.getpid()) and Path("/proc", pid[0]).exists()}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if maps.parent.name != str(os.getpid()):
            try:
                text = maps.read_text()
            except OSError:
                continue
            held |= {name for name in names if name in text}
    return held


@pytest.fixture(scope="module")
def load_tool() -> Iterator[Callable[[str], ModuleType]]:
    """Load a program of tools/ as a module, by the path of its file: no folder of tools is on sys.path."""
    loaded = []

    def load(name: str) -> ModuleType:
        path = Path(__file__).parents[1] / "tools" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"vqshm_{path.stem}", path)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
        loaded.append(spec.name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in loaded:
        sys.modules.pop(name, None)  # a program may be loaded more than once
