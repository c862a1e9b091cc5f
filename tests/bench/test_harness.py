"""Samples end: with figures, or with an error that says why; and no child outlives them."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from vqshm.bench import harness
from vqshm.bench import messages as content
from vqshm.bench.harness import Job, SampleFailed, Stage

ONE = {"seconds": 0.01}
DIE = "lambda m: __import__('os').kill(__import__('os').getpid(), 9)"
RAISE = "lambda m: (_ for _ in ()).throw(OSError('no such transport'))"
SLEEP = "__import__('time').sleep"
BLOCK = f"lambda: {SLEEP}(600)"


@pytest.fixture(autouse=True)
def _no_child_is_left():
    yield
    assert not multiprocessing.active_children()


def pair(stub, **functions: str) -> list[Job]:
    peer = stub(**functions)
    return [Job("send_one", (peer,), 0, ONE), Job("receive_one", (peer,), 0, ONE)]


def test_the_steps_of_all_yield_what_they_measured(stub):
    jobs = pair(stub, sender="lambda m: None", receiver=f"lambda: {content.pool(64)[0]!r}")
    with Stage(jobs, 0.1) as stage:
        assert stage.run() == [{}, {}]
        assert stage.run() == [{}, {}]


@pytest.mark.parametrize(
    ("sender", "says"),
    [
        (DIE, "send_one: the process was killed by SIGKILL"),
        (RAISE, "send_one: OSError: no such transport"),
        ("lambda m: __import__('os')._exit(3)", "send_one: the process ended with status 3"),
        ("None", "send_one: TypeError"),
    ],
    ids=["killed", "raising", "leaving", "unusable"],
)
def test_a_child_that_fails_says_why(stub, monkeypatch, sender, says):
    monkeypatch.setattr(harness, "LAST_WORDS", 0.01)
    with pytest.raises(SampleFailed, match=says), Stage(pair(stub, sender=sender, receiver=BLOCK), 0.1) as stage:
        stage.run()


def test_a_child_that_cannot_open_its_transport_says_so_at_the_start(stub):
    jobs = pair(stub, sender="1 / 0", receiver=BLOCK)
    with pytest.raises(SampleFailed, match="send_one: ZeroDivisionError: division by zero"), Stage(jobs, 0.1):
        pytest.fail("it started")


def test_a_child_that_is_silent_is_named_at_the_deadline(stub, monkeypatch):
    monkeypatch.setattr(harness, "SLACK", 0.05)
    jobs = pair(stub, sender="lambda m: None", receiver=BLOCK)
    with pytest.raises(SampleFailed, match="no answer in time from receive_one"), Stage(jobs, 0.0) as stage:
        stage.run()


def test_who_first_said_why_is_not_drowned_by_the_others(stub):
    jobs = pair(stub, sender=RAISE, receiver=f"lambda: ({SLEEP}(0.05), 1 / 0)")
    says = "no such transport; receive_one: ZeroDivisionError"
    with pytest.raises(SampleFailed, match=says), Stage(jobs, 0.1) as stage:
        stage.run()


def test_an_adapter_may_change_the_environment_of_its_children_only(stub, monkeypatch):
    monkeypatch.delenv("VQSHM_BENCH_TEST", raising=False)
    show = "lambda m: (_ for _ in ()).throw(OSError(__import__('os').environ['VQSHM_BENCH_TEST']))"
    jobs = pair(stub, sender=show, receiver=BLOCK, VQSHM_BENCH_TEST="there")
    with pytest.raises(SampleFailed, match="OSError: there"), Stage(jobs, 0.1) as stage:
        stage.run()
    assert "VQSHM_BENCH_TEST" not in os.environ


def test_the_first_and_the_last_process_take_the_probe(stub):
    """It may find no time in which both run, on a busy machine; then it says None, and the sample goes on."""
    with Stage(pair(stub, sender="lambda m: None", receiver=BLOCK), 0.1) as stage:
        took = stage.probe()
        stage.step(0)
        assert stage.results(0) == [{}]
    assert took is None or 10 < took < 1e7


def test_cpu_time_of_children_is_seen(stub):
    burn = "lambda m: [None for _ in range(3_000_000)]"
    with Stage(pair(stub, sender=burn, receiver=BLOCK), 5) as stage:
        before = stage.cpu(0)
        stage.step(0)
        stage.results(0)
        assert stage.cpu(0) > before


def test_an_error_in_the_parent_ends_the_children_at_once(stub):
    jobs = pair(stub, sender="lambda m: None", receiver=BLOCK)

    def interrupted() -> None:
        with Stage(jobs, 60) as stage:
            stage.step(0, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_no_file_descriptor_is_left_open(stub):
    def once() -> None:
        with Stage(pair(stub, sender="lambda m: None", receiver=BLOCK), 1):
            pass

    once()  # the resource tracker of multiprocessing starts with the first child, and stays
    before = open_files()
    once()
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
