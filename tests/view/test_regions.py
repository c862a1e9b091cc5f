"""What exists, what is left over, and what is not ours to touch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vqshm import Coordinator, DeviceSpec, spec
from vqshm.host.system.names import naming_lock
from vqshm.view.regions import clean, list_regions

SHM = Path("/dev/shm")


def find(name: str):
    return next((entry for entry in list_regions() if entry.name == name), None)


@pytest.fixture
def stray():
    """Make an object that looks like a region's, of this content."""
    made: list[Path] = []

    def make(name: str, content: bytes) -> str:
        path = SHM / f"vqshm.{name}"
        made.append(path)
        path.touch(mode=0o600)
        path.write_bytes(content)
        return name

    yield make
    for path in made:
        path.unlink(missing_ok=True)


def test_a_served_region_is_listed_and_left():
    name = f"list{os.getpid()}"
    with Coordinator(name, [DeviceSpec("echo0", spec.VQSHM_ID_ECHO), DeviceSpec("b", 2)]):
        entry = find(name)
        assert (entry.condition, entry.owner.pid, entry.devices) == ("alive", os.getpid(), ("echo0", "b"))
        assert json.loads(json.dumps(entry.as_map()))["owner"]["alive"]
        assert clean(dry_run=True).left[name] == "its coordinator runs"
        clean([name])
        assert find(name) is not None
    assert find(name) is None


def test_what_is_no_region_is_left_alone(stray):
    name = stray(f"foreign{os.getpid()}", b"something else".ljust(4096, b"."))
    assert find(name).condition == "foreign"
    assert name in clean(dry_run=True).left
    assert name in clean([name]).left
    assert find(name) is not None


def test_a_name_that_no_region_has_is_listed(stray):
    name = stray(f"BAD NAME {os.getpid()}", b"")
    assert find(name).condition == "foreign"
    assert "is no name" in find(name).note


def test_a_half_made_one_is_removed(stray):
    with naming_lock():  # nobody else sweeps it away before it was seen
        name = stray(f"half{os.getpid()}", bytes(4096))
        assert find(name).condition == "half made"
    done = clean([name])
    assert name not in done.left
    assert find(name) is None


def test_somebody_elses_is_not_opened(stray, monkeypatch):
    name = stray(f"theirs{os.getpid()}", bytes(4096))
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    entry = find(name)
    assert entry.condition == "not yours"


def test_a_lone_socket_counts(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("VQSHM_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "lonely.sock").touch()
    assert clean(dry_run=True).removed["lonely"] == "a control socket without a region"
