"""Who may import whom: from your own row or a lower one; and memory and ring know no operating system."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vqshm

ROOT = Path(vqshm.__file__).parent

# The rows of the house, lowest first.
ROWS = (
    ("errors", "spec", "core", "closing", "_build_info"),
    ("memory",),
    ("ring",),
    ("notify", "transport", "lane"),
    ("host",),
    ("devices", "message", "pipeline", "bridge"),
    ("trace", "view", "demo", "bench", "testing"),
    ("cli",),
)
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}
FRONT_DOOR = "testing"  # `import vqshm` reaches everything up to the devices, so it is for those who stand above them

# What no module of `memory` and `ring` may name in an import, and who may, and why.
SYSTEM = {
    *("asyncio", "concurrent", "fcntl", "logging", "mmap", "msgpack", "multiprocessing", "os", "posix", "posix_ipc"),
    *("resource", "sched", "select", "selectors", "shutil", "signal", "socket", "subprocess", "tempfile", "threading"),
    "time",
}
ALLOWED = {
    ("ring/sync.py", "threading"),  # QueueSync is a lock around a queue
}

# What must not even be loaded by them, through whatever detour. `queue`, for the errors that are also queue.Full and
# queue.Empty, brings `threading` and `time`; these two are left to the static test above.
UNLOADED = SYSTEM - {"threading", "time", "os", "posix"}


def sources() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path, *, also_for_types: bool = False) -> set[str]:
    """The full names that a file imports, in function bodies, too; those under `if TYPE_CHECKING:` where asked for."""
    package = ("vqshm", *path.relative_to(ROOT).parts[:-1])
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"), str(path))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module) if part)
            found |= {f"{stem}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not also_for_types:
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)
    return found


def room(name: str) -> str | None:
    """`vqshm.ring.split` → `ring`; `vqshm` and `vqshm.Driver` → the front door; None for whatever is not ours."""
    package, _, rest = name.partition(".")
    if package != "vqshm":
        return None
    inner = rest.partition(".")[0]
    return inner if inner in ROW_OF else FRONT_DOOR


def home(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def test_every_room_has_its_row():
    rooms = {home(path) for path in sources()} - {"__init__", "__main__"}
    assert rooms <= set(ROW_OF)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_imports_from_its_own_row_or_a_lower_one(path):
    row = ROW_OF.get(home(path), len(ROWS))  # vqshm/__init__.py is the front door and sees all
    named = imports(path, also_for_types=True)
    above = sorted(name for name in named if (other := room(name)) and ROW_OF[other] > row)
    assert not above


@pytest.mark.parametrize(
    "path",
    [path for path in sources() if home(path) in {"memory", "ring"}],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_memory_and_ring_name_no_operating_system(path):
    relative = path.relative_to(ROOT).as_posix()
    named = {name.partition(".")[0] for name in imports(path)} & SYSTEM
    assert not {name for name in named if (relative, name) not in ALLOWED}


@pytest.mark.parametrize("pure", ["", "1"], ids=["installed core", "interpreted core"])
def test_memory_and_ring_load_no_operating_system(pure):
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); bare = set(sys.modules);"
        "import vqshm.memory, vqshm.ring; print(*(set(sys.modules) - bare))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONSAFEPATH": "1", "VQSHM_PURE": pure},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    loaded = {name.partition(".")[0] for name in said.stdout.split()}
    assert "vqshm" in loaded
    assert not loaded & UNLOADED
    inner = set(said.stdout.split()) - {"vqshm"}
    assert not {name for name in inner if (other := room(name)) and ROW_OF[other] > ROW_OF["ring"]}
