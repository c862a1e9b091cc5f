"""Rounds: whoever is compared takes turns, and a ratio is of one round."""

from __future__ import annotations

import dataclasses
from math import inf

import pytest

from vqshm.bench import rounds
from vqshm.bench.measures import MEASURES, Case, Settings
from vqshm.bench.peers import OURS, Peer
from vqshm.bench.rounds import Sample, summarise


class Other(Peer):
    name = group = "other"


class Third(Peer):
    name = group = "third"


MINE = Case("oneway", "64 B", "single", 64, OURS[0])
THEIRS = Case("oneway", "64 B", "single", 64, Other)
BATCH = Case("oneway", "64 B", "batch", 64, Third)
LARGE = Case("oneway", "1 KiB", "single", 1024, Other)


@pytest.fixture
def figures(monkeypatch):
    """Replaces the taking of samples by these figures, in turn; an exception is raised."""

    def use(by_case: dict) -> list[Case]:
        order: list[Case] = []
        given = {case: iter(values) for case, values in by_case.items()}

        def take(case: Case, _settings: Settings) -> dict:
            order.append(case)
            value = next(given[case])
            if isinstance(value, Exception):
                raise value
            return {"value": value, "probe": [100.0, None], "strangers": 0.0}

        monkeypatch.setitem(MEASURES, "oneway", dataclasses.replace(MEASURES["oneway"], take=take))
        return order

    return use


def rows_of(cases: list[Case], count: int) -> dict:
    samples = list(rounds.run(cases, Settings(rounds=count)))
    return {row.case: row for row in summarise(samples)}


def test_a_ratio_is_the_median_of_the_ratios_within_each_round(figures):
    figures({MINE: [1.0, 10.0, 100.0], THEIRS: [3.0, 20.0, 500.0]})  # 3, 2, 5; the ratio of the medians would be 2
    rows = rows_of([MINE, THEIRS], 3)
    assert rows[MINE].ratios == {("other", "single"): 3.0}
    assert rows[MINE].median() == 10.0
    assert rows[MINE].span == (1.0, 100.0)
    assert not rows[THEIRS].ratios


def test_everybody_has_a_turn_in_each_round_before_the_next_one_begins(figures):
    cases = [MINE, THEIRS, BATCH]
    order = figures({case: [1.0] * 4 for case in cases})
    rows_of(cases, 4)
    assert [set(order[start : start + 3]) for start in range(0, 12, 3)] == [set(cases)] * 4


def test_a_case_that_fails_is_a_row_and_is_not_tried_for_ever(figures):
    order = figures({MINE: [1.0] * 5, THEIRS: [OSError("no luck")] * 5})
    rows = rows_of([MINE, THEIRS], 5)
    assert order.count(THEIRS) == rounds.GIVE_UP
    assert rows[THEIRS].error == "OSError: no luck"
    assert rows[THEIRS].plain()["error"] == "OSError: no luck"
    assert not rows[MINE].ratios


def test_a_round_in_which_one_of_the_two_failed_makes_no_ratio(figures):
    figures({MINE: [1.0, OSError(), 4.0], THEIRS: [2.0, 100.0, 12.0]})
    assert rows_of([MINE, THEIRS], 3)[MINE].ratios == {("other", "single"): 2.5}


def test_the_best_of_the_others_is_told_for_the_same_mode_and_for_any(figures):
    figures({MINE: [1.0], THEIRS: [4.0], BATCH: [2.0]})
    row = rows_of([MINE, THEIRS, BATCH], 1)[MINE]
    assert row.best_rival(row.rivals()) == ("other single", 4.0)
    assert row.best_rival() == ("third batch", 2.0)
    assert row.plain()["best_of_all"] == {"who": "third batch", "ratio": 2.0}


def test_only_those_of_one_group_are_compared(figures):
    figures({MINE: [1.0], LARGE: [4.0]})
    samples = [sample for case in (MINE, LARGE) for sample in rounds.run([case], Settings(rounds=1))]
    assert not any(row.ratios for row in summarise(samples))


def test_writing_in_place_is_compared_with_views_and_a_call_with_ping_pong():
    assert "view" in MEASURES["oneway"].rivals["reserve"]
    assert "ping-pong" in MEASURES["roundtrip"].rivals["call"]


def test_a_row_is_marked_where_strangers_were_busy():
    def sample(number: int, strangers: float) -> Sample:
        return Sample(MINE, number, {"value": 1.0, "strangers": strangers})

    (row,) = summarise([sample(0, 0.0), sample(1, 0.9), sample(2, 0.0)])
    assert not row.disturbed
    (row,) = summarise([sample(0, 0.9), sample(1, 0.9), sample(2, 0.0)])
    assert row.disturbed


def test_the_probe_is_the_median_and_tells_where_the_two_never_met():
    def row(*probes: float | None) -> rounds.Row:
        return summarise([Sample(MINE, 0, {"value": 1.0, "probe": list(probes)})])[0]

    assert row(100.0, 110.0, None).probe == 105.0
    assert row(None, 110.0, None).probe == inf
    assert row(None, 110.0, None).plain()["probe"] is None
    assert row().probe is None


@pytest.mark.parametrize("quick", [False, True])
def test_every_measure_has_cases_of_ours(quick):
    for group in rounds.plan(MEASURES, Settings(quick=quick)):
        assert any(case.ours for case in group)
