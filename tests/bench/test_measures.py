"""Every measure takes real samples: of ours, and of a peer that every Python has."""

from __future__ import annotations

import multiprocessing

import pytest

from vqshm.bench import rounds
from vqshm.bench.measures import MEASURES, Case, Settings
from vqshm.bench.peers import OTHERS, groups
from vqshm.bench.peers.base import Peer

STANDARD = tuple(peer for peer in OTHERS if peer.group == "multiprocessing")
SHORT = Settings(seconds=0.02, rounds=1, quick=True, others=STANDARD)
CASES = [case for group in rounds.plan(MEASURES, SHORT) for case in group]


def words(case: Case) -> str:
    return f"{case.measure}-{case.name}-{case.mode}-{case.size}".replace(" ", "_")


@pytest.fixture(autouse=True)
def _no_child_is_left():
    yield
    assert not multiprocessing.active_children()


def samples() -> list:
    """One of ours for each measure and mode, and one of a peer; all others are long, in sum."""
    seen: set[tuple[str, str]] = set()
    chosen = []
    for case in CASES:
        first = (case.measure, case.mode) not in seen
        seen.add((case.measure, case.mode))
        quick = first or (case.measure, case.name, case.size) == ("oneway", "mp.Pipe", 64)
        chosen.append(pytest.param(case, id=words(case), marks=[] if quick else pytest.mark.long))
    return chosen


@pytest.mark.parametrize("case", samples())
def test_a_sample_has_a_figure(case):
    sample = rounds.take(case, 0, SHORT)
    assert sample.error == ""
    assert sample.value > 0 or case.measure in {"idle", "kicks"}
    assert sample.facts["strangers"] >= 0
    if case.measure != "interpreted" and case.peer:
        assert len(sample.facts["probe"]) == 2


def test_each_peer_is_installed_or_can_be_named():
    assert groups() == ["multiprocessing", "pyzmq", "faster-fifo", "hyperq", "tachyon", "iceoryx2"]
    for peer in OTHERS:
        assert peer.installed() or peer.package


class Sick(Peer):
    name = group = "sick"

    def set_up(self) -> None:
        raise RuntimeError("no such thing")


def test_a_peer_that_cannot_be_set_up_is_a_failed_sample():
    sample = rounds.take(Case("oneway", "64 B", "single", 64, Sick), 0, SHORT)
    assert sample.error == "RuntimeError: no such thing"
