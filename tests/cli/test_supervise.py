"""`vqshm supervise` keeps a process running, says what happens, and ends with it."""

from __future__ import annotations

import signal
import sys

QUICK = ("--max-restarts", "2", "--backoff", "0.01", "0.01", "--")


def test_what_ends_well_is_left_alone(vqshm):
    process = vqshm("supervise", *QUICK, sys.executable, "-c", "print('did it', flush=True)")
    assert process.end() == 0
    assert process.seen == "did it\n"
    assert "has ended" in process.errors


def test_what_dies_too_often_is_given_up(vqshm):
    process = vqshm("supervise", *QUICK, sys.executable, "-c", "import sys; print('again', flush=True); sys.exit(3)")
    assert process.end() == 1
    assert process.seen == "again\n" * 3
    assert "died 3 times in 60 s, with 3 at last; given up" in process.errors


def test_a_signal_ends_it_and_what_it_runs(vqshm):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        process = vqshm("supervise", *QUICK, sys.executable, "-c", code)
        process.until("\n")
        assert process.end(number) == status


def test_a_command_that_is_not_there_is_one_line(vqshm):
    process = vqshm("supervise", "--", "/no/such/program")
    assert process.end() == 1
    assert process.errors.strip() == "error: /no/such/program: No such file or directory"
