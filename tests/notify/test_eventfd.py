"""An eventfd is a wake-up that is pending or not; a foreign descriptor is proved before it is used."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from vqshm_harness import descriptors

from vqshm.closing import own, owned
from vqshm.errors import InvalidState, ProtocolError
from vqshm.notify import EventFd


def polls_readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


@pytest.fixture
def event():
    with EventFd.create() as notifier:
        yield notifier


def test_nothing_is_pending_at_first(event):
    assert event.kind == "eventfd"
    assert not polls_readable(event.fileno())
    assert not event.wait(0)


def test_a_signal_is_pending_until_it_is_waited_for(event):
    event.signal()
    assert polls_readable(event.fileno())
    assert event.wait(None)
    assert not event.wait(0)


def test_many_signals_become_one(event):
    for _ in range(1000):
        event.signal()
    assert event.wait(0)
    assert not event.wait(0)


def test_clear_consumes_and_never_blocks(event):
    event.signal()
    event.clear()
    event.clear()
    assert not polls_readable(event.fileno())


@pytest.mark.fault("C05")
def test_a_full_counter_means_signalled_already(event):
    os.eventfd_write(event.fileno(), 2**64 - 2)
    event.signal()
    event.signal()
    assert event.wait(0)
    assert not event.wait(0)


def test_it_is_not_inherited_and_never_blocks(event):
    assert not os.get_inheritable(event.fileno())
    assert not os.get_blocking(event.fileno())


def test_a_foreign_one_is_made_non_blocking_and_not_inherited():
    with EventFd.adopt(owned(os.eventfd, 0, 0)) as adopted:
        assert not os.get_inheritable(adopted.fileno())
        assert not os.get_blocking(adopted.fileno())
        adopted.clear()


def foreign_pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def foreign_file() -> int:
    fd, path = tempfile.mkstemp()
    Path(path).unlink()
    return fd


def foreign_epoll() -> int:
    with select.epoll() as epoll:
        return os.dup(epoll.fileno())


def foreign_socket() -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


def foreign_memory() -> int:
    return os.memfd_create("[eventfd]")


def counting_eventfd() -> int:
    return os.eventfd(0, os.EFD_SEMAPHORE)


@pytest.mark.parametrize(
    "foreign", [foreign_pipe, foreign_file, foreign_epoll, foreign_socket, foreign_memory, counting_eventfd]
)
def test_anything_else_is_refused_and_closed(foreign):
    if foreign is counting_eventfd and not reports_counting_eventfds():
        pytest.skip("this kernel does not tell a counting eventfd from a plain one")
    before = descriptors()
    owner = own(foreign())
    with pytest.raises(ProtocolError):
        EventFd.adopt(owner)
    assert descriptors() == before


def reports_counting_eventfds() -> bool:
    with EventFd.create() as probe:
        return "eventfd-semaphore" in Path(f"/proc/self/fdinfo/{probe.fileno()}").read_text()


def test_a_number_that_is_no_descriptor_is_refused():
    with pytest.raises(ProtocolError):
        EventFd.adopt(own(10**6))


def test_close_is_idempotent_and_final():
    before = descriptors()
    event = EventFd.create()
    event.close()
    event.close()
    assert descriptors() == before
    for call in (event.signal, event.clear, event.wait, event.fileno):
        with pytest.raises(InvalidState):
            call()


def test_it_wakes_another_process():
    program = (
        "import sys; from vqshm.closing import own; from vqshm.notify import EventFd\n"
        "there, back = (EventFd.adopt(own(int(n))) for n in sys.argv[1:])\n"
        "for _ in range(100):\n"
        "    assert there.wait(60)\n"
        "    back.signal()\n"
    )
    with EventFd.create() as there, EventFd.create() as back:
        numbers = (there.fileno(), back.fileno())
        child = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, numbers)],
            pass_fds=numbers,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _ in range(100):
            there.signal()
            assert back.wait(60)
        assert child.wait(60) == 0
