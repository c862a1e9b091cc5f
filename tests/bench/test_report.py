"""What a run tells: everything measured, the bad as plainly as the good."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from vqshm.bench import report
from vqshm.bench.measures import MEASURES, Case, Settings
from vqshm.bench.peers import OTHERS, OURS
from vqshm.bench.rounds import Sample, summarise

ZMQ = next(peer for peer in OTHERS if peer.group == "pyzmq")
PIPE = next(peer for peer in OTHERS if peer.name == "mp.Pipe")


def case(peer: type, measure: str = "oneway", group: str = "64 B", mode: str = "single", size: int = 64) -> Case:
    return Case(measure, group, mode, size, peer)


def facts(value: float, **more) -> dict:
    return {"value": value, "probe": [110.0, 130.0], "strangers": 0.0, **more}


@pytest.fixture
def printed():
    def show(samples: list[Sample]) -> str:
        screen = Console(file=io.StringIO(), width=200)
        for piece in report.tables(MEASURES[samples[0].case.measure], summarise(samples)):
            screen.print(piece)
        return screen.file.getvalue()

    return show


def lines(text: str) -> list[str]:
    """The rows of a table that was printed: without the empty line, the title and the headings."""
    return text.splitlines()[3:]


def test_a_row_tells_cost_rate_probe_and_how_the_others_do(printed):
    text = printed([Sample(case(OURS[0]), 0, facts(100.0)), Sample(case(ZMQ), 0, facts(250.0))])
    ours, theirs = (line.split() for line in lines(text))
    assert ours == ["vqshm", "single", "100", "10.00M", "120", "2.5x", "pyzmq", "single"]
    assert theirs == ["pyzmq", "single", "250", "4.00M", "120"]


def test_a_row_where_we_lose_shows_as_plainly(printed):
    text = printed([Sample(case(OURS[0]), 0, facts(100.0)), Sample(case(ZMQ), 0, facts(80.0))])
    assert "0.8x pyzmq single" in text


def test_a_failure_is_a_row_and_says_why(printed):
    text = printed([Sample(case(OURS[0]), 0, facts(100.0)), Sample(case(ZMQ), 0, error="OSError: no luck")])
    assert "failed" in text
    assert "pyzmq, single: OSError: no luck" in text


def test_a_disturbed_row_is_marked(printed):
    assert "~" not in printed([Sample(case(OURS[0]), 0, facts(100.0))])
    assert "~" in printed([Sample(case(OURS[0]), 0, facts(100.0, strangers=1.5))])


def test_each_group_has_a_table(printed):
    text = printed([Sample(case(OURS[0], group=group), 0, facts(1.0)) for group in ("64 B", "1 KiB")])
    assert text.count("One way, two processes: ") == 2


def test_growth_is_told_by_the_smallest(printed):
    rows = [(8, 10.0), (64, 12.0), (32768, 31.0)]
    cases = [(case(OURS[0], "growth", "messages", "ring", size), cost) for size, cost in rows]
    found = [line.split() for line in lines(printed([Sample(one, 0, facts(cost)) for one, cost in cases]))]
    assert [words[-1] for words in found] == ["120", "1.2x", "3.1x"]
    assert [words[1] for words in found] == ["8", "64", "32,768"]


def test_round_trips_show_their_tail_and_their_shape(printed):
    trips = {"p50": 1.0, "p99": 5.0, "p999": 40.0, "histogram": [[0.9, 10], [1.0, 80], [50.0, 10]]}
    text = printed([Sample(case(OURS[0], "roundtrip", mode="ping-pong"), 0, facts(1.0, **trips))])
    (line,) = lines(text)
    assert line.split()[:5] == ["vqshm", "ping-pong", "1", "5", "40"]
    assert "█" in line


def test_kicks_are_told_per_thousand_messages(printed):
    counts = {"messages": 4000, "kicks": 8, "kicks_suppressed": 3992, "waits": 4}
    calls = {"messages": 4000, "calls": 2, "calls_suppressed": 0, "waits": 0}
    text = printed([Sample(case(OURS[0], "kicks"), 0, facts(2.0, sender=counts, receiver=calls))])
    assert lines(text)[0].split() == ["vqshm", "single", "2", "998", "1", "0.5", "0", "120"]


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, ""), (9.314, "9.31"), (48.23, "48.2"), (481.9, "482"), (48231, "48,231"), (5e7, "50.0M")],
)
def test_figures_have_three_digits(value, words):
    assert report.figure(value) == words


def test_the_document_is_json_with_everything_in_it():
    samples = [
        Sample(case(OURS[0]), 0, facts(100.0)),
        Sample(case(ZMQ), 0, facts(250.0)),
        Sample(case(PIPE), 0, error="OSError: no luck"),
    ]
    settings = Settings(others=(ZMQ, PIPE))
    told = json.loads(json.dumps(report.document(samples, settings, {"hyperq": "not installed"}, complete=True)))
    assert told["complete"] is True
    assert told["skipped"] == {"hyperq": "not installed"}
    assert [sample["ok"] for sample in told["samples"]] == [True, True, False]
    ours, theirs, failed = told["summary"]
    assert ours["ratios"] == {"pyzmq single": 2.5}
    assert (ours["median"], ours["probe"], theirs["median"]) == (100.0, 120.0, 250.0)
    assert failed["error"] == "OSError: no luck"
    assert told["machine"]["core"] in {"compiled", "interpreted"}
    assert set(told["machine"]["versions"]) == {"pyzmq"}


def test_the_notes_name_who_was_skipped():
    assert "skipped: hyperq (not installed)" in list(report.notes([], {"hyperq": "not installed"}))
