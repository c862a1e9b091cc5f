"""The core that runs is the one that was asked for; two cores never mix; `import vqshm` stays cheap."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import pytest

from vqshm import core

if TYPE_CHECKING:
    from types import ModuleType

HEAVY = {
    *("asyncio", "ctypes", "mmap", "msgpack", "multiprocessing", "posix_ipc", "select", "socket", "subprocess"),
    *("vqshm.host", "vqshm.memory", "vqshm.ring", "vqshm.transport"),
}
QUIET = "import warnings; warnings.simplefilter('ignore');"


def run(code: str, **environment: str) -> str:
    """What a fresh interpreter prints; it sees the installed package and this environment."""
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return said.stdout


def hot_modules() -> list[ModuleType]:
    return [importlib.import_module(name) for name in core._compiled_on_disk()]


def test_the_core_is_the_one_that_was_asked_for():
    built = core._build_info()
    if core.forced():
        assert core.kind() == "interpreted"
        assert core.FORCE in core.reason()
    elif built is None:
        assert core.kind() == "interpreted"
        assert "checkout" in core.reason()
    else:
        assert core.kind() == built.core, core.reason()
        assert built.reason in core.reason()


def test_every_hot_module_is_of_the_core_that_runs():
    modules = hot_modules()
    assert modules
    suffixes = {str(module.__file__).endswith(".py") for module in modules}
    assert suffixes == {core.kind() == "interpreted"}
    core.check()


def test_no_hot_module_is_named_like_one_of_the_standard_library():
    """The interpreter looks for the lines of a traceback by file name alone, and would show those of the other file."""
    stems = {name.rpartition(".")[2] for name in core._compiled_on_disk()}
    assert not stems & sys.stdlib_module_names


def test_what_was_compiled_is_what_is_hot():
    built = core._build_info()
    if built is None or built.core != "compiled":
        pytest.skip("nothing was compiled in this installation")
    assert sorted(built.modules) == sorted(core._compiled_on_disk())


@pytest.mark.parametrize("value", ["1", "yes"])
def test_the_environment_forces_the_interpreted_core(value):
    code = "import vqshm.memory.atomic as a; from vqshm import core; print(a.__file__, core.kind(), core.reason())"
    path, kind, *reason = run(code, VQSHM_PURE=value).split()
    assert path.endswith("atomic.py")
    assert kind == "interpreted"
    assert "VQSHM_PURE" in reason


@pytest.mark.parametrize("value", ["", "0"])
def test_an_empty_or_zero_variable_forces_nothing(value):
    code = "from vqshm import core; print(core.forced(), core.reason())"
    assert run(code, VQSHM_PURE=value).startswith("False")
    assert "VQSHM_PURE" not in run(code, VQSHM_PURE=value)


def test_changing_the_environment_later_changes_nothing():
    code = (
        "import os, vqshm; from vqshm import core; was = core.kind();"
        "os.environ['VQSHM_PURE'] = '1' if was == 'compiled' else '';"
        "import vqshm.memory; core.check(); print(was == core.kind())"
    )
    assert run(QUIET + code).strip() == "True"


def test_a_mixture_on_disk_is_refused(monkeypatch):
    monkeypatch.setattr(core, "_pinned", lambda: False)
    monkeypatch.setattr(core, "_disk", {"vqshm.memory.atomic": True, "vqshm.ring.split": False})
    with pytest.raises(ImportError, match=r"1 of 2 hot modules have no library .*\(vqshm\.ring\.split\)"):
        core.kind()


def test_a_mixture_in_memory_is_refused(monkeypatch):
    other = "interpreted" if core.kind() == "compiled" else "compiled"
    assert hot_modules()
    monkeypatch.setattr(core, "kind", lambda: other)
    with pytest.raises(ImportError, match="two cores must not mix"):
        core.check()


@pytest.mark.parametrize(
    ("pinned", "built", "says"),
    [
        (False, {"core": "interpreted", "reason": "there was no compiler"}, True),
        (False, {"core": "compiled", "reason": ""}, True),  # built for another Python
        (False, None, False),  # a source checkout
        (True, {"core": "compiled", "reason": ""}, False),  # asked for
    ],
)
def test_a_slow_core_is_announced_once_to_those_who_did_not_ask_for_it(monkeypatch, pinned, built, says):
    info = None if built is None else type("Info", (), built)
    monkeypatch.setattr(core, "_pinned", lambda: pinned)
    monkeypatch.setattr(core, "_build_info", lambda: info)
    monkeypatch.setattr(core, "_disk", {"vqshm.no_such_module": False})
    monkeypatch.setattr(core, "_said", [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        core.announce()
        core.announce()
    assert len(caught) == says
    for warning in caught:
        assert issubclass(warning.category, core.InterpretedCoreWarning)
        assert core.reason() in str(warning.message)


def test_importing_vqshm_loads_nothing_heavy():
    code = "import sys; bare = set(sys.modules); import vqshm; print(*sorted(set(sys.modules) - bare))"
    loaded = set(run(code).split())
    assert "vqshm" in loaded
    assert not loaded & HEAVY


def test_a_process_tells_which_core_it_runs():
    code = "import vqshm.memory; from vqshm import core; print(core.kind())"
    assert run(QUIET + code).strip() == core.kind()
