"""`vqshm bench`: the command, its files, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from pathlib import Path

import pytest

from vqshm.bench import plot
from vqshm.bench.measures import MEASURES
from vqshm.bench.peers import OTHERS, groups

PATIENCE = 60.0  # seconds; a busy machine is no failure
QUICK = ("bench", "--quick", "--seconds", "0.02")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def pidfds(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            found.append(os.pidfd_open(pid))
    return found


def test_it_lists_what_it_can_measure_and_whom_beside(run):
    result = run("bench", "--list")
    assert result.exit_code == 0
    for word in (*MEASURES, *groups()):
        assert f"{word} " in result.stdout


def test_it_prints_tables_and_writes_the_figures(run, tmp_path):
    result = run(*QUICK, "--only", "core", "--json", "figures.json")
    assert result.exit_code == 0, result.output
    assert "Core loop, one process" in result.stdout
    told = json.loads((tmp_path / "figures.json").read_text())
    assert told["complete"]
    (row,) = told["summary"]
    assert (row["measure"], row["unit"], row["samples"], row["failed"]) == ("core", "ns/chain", 1, 0)
    assert row["median"] > 0


def test_without_matplotlib_it_measures_all_the_same(run, tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "available", lambda: False)
    result = run(*QUICK, "--only", "core")
    assert result.exit_code == 0, result.output
    assert "no plot: pip install 'vqshm[bench]'" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["vqshm-bench.json"]


def test_a_plot_that_cannot_be_drawn_is_an_error_before_anything_is_measured(run, monkeypatch, tmp_path):
    monkeypatch.setattr(plot, "available", lambda: False)
    result = run(*QUICK, "--plot", "figures.png")
    assert result.exit_code == 1
    assert result.stderr == "error: a plot needs matplotlib: pip install 'vqshm[bench]'\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--only", "core,speed"), "speed: not among core, oneway"),
        (("--vs", "nobody"), "nobody: not among multiprocessing"),
        (("--rounds", "0"), "0 is not in the range"),
        (("--seconds", "0"), "0.0 is not in the range"),
        (("--json", "no/such/folder.json"), "cannot be written"),
        (("--plot", "figures.txt"), "ends with .png"),
    ],
)
def test_what_it_does_not_understand_it_refuses_before_anything_is_measured(run, tmp_path, words, says):
    result = run("bench", *words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not list(tmp_path.iterdir())


def test_peers_that_are_not_installed_are_skipped_by_name(run, monkeypatch):
    for peer in OTHERS:
        monkeypatch.setattr(peer, "installed", classmethod(lambda cls: cls.group not in {"pyzmq", "tachyon"}))
    result = run(*QUICK, "--only", "core", "--vs", "pyzmq,tachyon", "--vs", "multiprocessing")
    assert result.exit_code == 0, result.output
    assert "skipped: pyzmq (not installed: pip install pyzmq)" in result.stdout
    assert "skipped: tachyon-ipc (not installed: pip install tachyon-ipc)" in result.stdout


def test_a_peer_is_measured_in_the_same_rounds_and_compared(run, tmp_path):
    result = run(*QUICK, "--only", "objects", "--rounds", "2", "--vs", "multiprocessing")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "vqshm-bench.json").read_text())
    assert {sample["round"] for sample in told["samples"]} == {0, 1}
    ours = next(row for row in told["summary"] if row["peer"] == "vqshm")
    assert set(ours["ratios"]) == {"mp.Queue single", "mp.SimpleQueue single", "mp.Pipe single"}
    assert "others, by ours" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_and_keeps_what_was_measured(vqshm, tmp_path, number):
    running = vqshm("bench", "--only", "core,idle", "--rounds", "1000", "--seconds", "0.01")
    while not children(running.process.pid):
        assert running.process.poll() is None
    started = pidfds(children(running.process.pid))
    assert running.end(number) == 130
    assert json.loads((tmp_path / "vqshm-bench.json").read_text())["complete"] is False
    for fd in started:
        ended = select.select([fd], [], [], PATIENCE)[0]
        os.close(fd)
        assert ended
