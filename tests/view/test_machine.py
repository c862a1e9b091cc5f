"""The findings about this machine: each check alone, and none that breaks the others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vqshm.view import machine
from vqshm.view.machine import Finding, examine, in_bytes


def by_name() -> dict[str, Finding]:
    return {finding.check: finding for finding in examine()}


def test_this_machine_can_run_the_tests_so_nothing_fails():
    assert [finding for finding in examine() if finding.level == "fail"] == []
    assert set(by_name()) == set(machine.CHECKS)


def test_nothing_is_left_behind():
    places = [Path("/dev/shm"), Path("/proc/self/fd")]
    before = {path for place in places for path in place.iterdir()}
    examine()
    left = {path for place in places for path in place.iterdir()} - before
    assert not {path for path in left if "doctor" in path.name}
    assert len([path for path in left if path.is_relative_to("/proc")]) <= 1  # the descriptor of iterdir itself


@pytest.mark.parametrize(
    ("library", "checks"), [("posix_ipc", {"shared memory", "semaphores"}), ("msgpack", {"msgpack"})]
)
def test_a_missing_library_is_a_finding(library, checks, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    assert {name for name, finding in by_name().items() if finding.level == "fail"} >= checks


def test_an_unsafe_runtime_directory_fails(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.setenv("VQSHM_RUNTIME_DIR", str(tmp_path))
    finding = by_name()["runtime directory"]
    assert finding.level == "fail"
    assert "VQSHM_RUNTIME_DIR" in finding.advice


def test_a_small_dev_shm_is_worth_a_thought(monkeypatch):
    monkeypatch.setattr(machine, "SMALL_SHM", 1 << 60)
    finding = by_name()["shared memory"]
    assert finding.level == "warn"
    assert "--shm-size" in finding.advice


def test_few_descriptors_and_one_processor_are_worth_a_thought(monkeypatch):
    monkeypatch.setattr(machine, "FEW_FILES", 1 << 62)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert by_name()["open files"].level in {"warn", "ok"}  # ok: unlimited
    assert by_name()["processors"].level == "warn"


def test_no_pidfd_fails(monkeypatch):
    def refuse(_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert by_name()["pidfd"].level == "fail"


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (4 << 20, "4 MiB"), (1 << 50, "1024 TiB")],
)
def test_bytes_in_words(count, words):
    assert in_bytes(count) == words
