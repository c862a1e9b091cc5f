"""Sleeping on an epoll until a bell rings: the ring is looked at first, other news is left, signals are handled."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from vqshm.errors import GuestMemory
from vqshm.memory import Region, atomic
from vqshm.notify import kernel

PATIENCE = 30


@pytest.fixture
def region():
    return Region(bytearray(8))


@pytest.mark.parametrize("seconds", [0, 0.001, 0.02])
def test_a_sleep_ends_in_time_and_finds_nothing(epoll, bell, region, seconds):
    start = time.monotonic()
    assert kernel.doze(epoll, bell.fileno(), region, 2, 0, seconds) == 0
    assert time.monotonic() - start >= seconds


def test_what_was_found_is_told_and_not_read(epoll, bell, region):
    assert kernel.doze(epoll, bell.fileno(), region, 2, 7, 0) == kernel.WORK
    bell.signal()
    assert kernel.doze(epoll, bell.fileno(), region, 2, 0, PATIENCE) == kernel.RUNG
    assert kernel.doze(epoll, bell.fileno(), region, 2, 7, None) == kernel.WORK | kernel.RUNG
    bell.clear()
    assert kernel.doze(epoll, bell.fileno(), region, 2, 0, 0) == 0


def test_other_news_ends_the_sleep_and_is_left(epoll, bell, region):
    reader, writer = os.pipe()
    epoll.register(reader, select.EPOLLIN)
    os.close(writer)
    assert kernel.doze(epoll, bell.fileno(), region, 2, 0, None) == 0
    assert [fd for fd, _ in epoll.poll(0)] == [reader]
    os.close(reader)


def test_a_bell_among_much_news_is_found(epoll, bell, region):
    readers = []
    for _ in range(2):
        reader, writer = os.pipe()
        os.close(writer)
        epoll.register(reader, select.EPOLLIN)
        readers.append(reader)
    bell.signal()
    assert kernel.doze(epoll, bell.fileno(), region, 2, 0, None) == kernel.RUNG
    for reader in readers:
        os.close(reader)


@pytest.mark.parametrize("offset", [-2, -1, 7, 8, 2**31, 2**62])
def test_the_word_must_lie_in_the_window(epoll, bell, region, offset):
    with pytest.raises(GuestMemory):
        kernel.doze(epoll, bell.fileno(), region, offset, 0, 0)


def test_an_epoll_that_is_closed_is_an_error(bell, region):
    epoll = select.epoll()
    epoll.close()
    with pytest.raises(ValueError, match="closed"):
        kernel.doze(epoll, bell.fileno(), region, 2, 0, None)


@pytest.mark.parametrize("call", [kernel.ring, kernel.hush])
def test_a_descriptor_that_is_none_is_an_error(call):
    with pytest.raises(OSError, match="Bad file descriptor"):
        call(10**6)


def test_other_threads_run_meanwhile(epoll, bell, region):
    def wake():
        atomic.store_u16(region, 2, 1)
        bell.signal()

    thread = threading.Timer(0.02, wake)
    thread.start()
    assert kernel.doze(epoll, bell.fileno(), region, 2, 0, PATIENCE) == kernel.WORK | kernel.RUNG
    thread.join()


SLEEPER = """
import select, signal, sys
from vqshm.memory import Region
from vqshm.notify import EventFd, kernel

handled = []
signal.signal(signal.SIGUSR1, lambda *_: (handled.append(1), print("handled", flush=True)))
with EventFd.create() as bell:
    epoll = select.epoll()
    epoll.register(bell.fileno(), select.EPOLLIN)
    try:
        print("up", flush=True)
        kernel.doze(epoll, bell.fileno(), Region(bytearray(4)), 2, 0, None if sys.argv[1] == "None" else 60.0)
    except KeyboardInterrupt:
        print("interrupted", len(handled), flush=True)
"""


@pytest.mark.parametrize("seconds", [None, 60])
def test_a_handler_runs_during_a_sleep_which_goes_on_and_ctrl_c_ends_it(seconds):
    command = [sys.executable, "-c", SLEEPER, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        for _ in range(3):
            child.send_signal(signal.SIGUSR1)
            assert child.stdout.readline() == "handled\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted 3\n"
        assert child.wait(PATIENCE) == 0
