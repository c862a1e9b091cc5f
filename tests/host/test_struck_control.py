"""Ctrl-C, or whatever a signal handler raises, at every bytecode of what a process says to its coordinator.

Attaching, waiting for a driver, resetting, leaving, making a region and removing it: nothing stays open or taken, no
word of the coordinator is lost, and what was interrupted can be done again.
"""

from __future__ import annotations

import contextlib
import os
import socket

import pytest
from vqshm_harness import ATTACHED, BOTH, PATIENCE, Interrupter, descriptors, echo_spec, new_name

from vqshm import Coordinator, Device, Driver, closing, core
from vqshm.host import connection, device, device_role, driver, driver_role, endpoint
from vqshm.host.coordination import coordinator, ground
from vqshm.host.system import liveness, memfd, names, pages, shm
from vqshm.notify import EventFd, eventfd, semaphore
from vqshm.transport import Channel, control

pytestmark = [
    pytest.mark.fault("D19"),
    # What is dropped where the exception strikes is closed by Python, which says so for sockets and files.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BELLS = [eventfd] if core.kind() == "interpreted" else []
CHANNEL = frozenset(module.__file__ for module in (control, closing, *BELLS))
ENDPOINT = CHANNEL | {module.__file__ for module in (connection, endpoint, names, shm, liveness, pages, memfd)}
DRIVER = ENDPOINT | {module.__file__ for module in (driver, driver_role)}
DEVICE = ENDPOINT | {module.__file__ for module in (device, device_role)}
REGION = ENDPOINT | {module.__file__ for module in (coordinator, ground, semaphore)}


# Every bytecode is some minutes of work; a prime number of them at a time meets each line now and then.
SOME = pytest.mark.parametrize("step", [307, pytest.param(67, marks=pytest.mark.long)])


def strikes(files, *, step=1):
    """An interrupter for every `step`-th bytecode of what is done in the loop, until one is too late to strike."""
    number = 1
    while True:
        interrupter = Interrupter(number, files)
        yield interrupter
        if not interrupter.struck:
            break
        number += step
    assert number > 30, "hardly anything was traced"


@pytest.fixture
def channels():
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Channel(theirs) as far, Channel(ours, max_fds=4) as near:
        yield far, near


def test_no_message_of_the_coordinator_is_lost_nor_a_descriptor(channels):
    far, near = channels
    with EventFd.create() as event:
        before = descriptors()
        for interrupter in strikes(CHANNEL, step=19):
            for value in range(2):
                far.send(ATTACHED | {"index": value}, [event.fileno()] * 2)
            noted = []
            for each in (interrupter, contextlib.nullcontext()):
                with each:
                    while (received := near.look()) is not None:
                        if not any(received is other for other in noted):
                            noted.append(received)
                        near.accept()
            assert [received.message["index"] for received in noted] == [0, 1], interrupter.where
            assert [len(received.fds) for received in noted] == [2, 2]
            assert all(os.path.samestat(os.fstat(fd.fileno()), os.fstat(event.fileno())) for r in noted for fd in r.fds)
            for each in noted:
                closing.close_all(each.fds)
            assert descriptors() == before, interrupter.where


def test_descriptors_that_arrived_are_closed_with_the_channel(channels):
    far, _ = channels
    with EventFd.create() as event:
        before = descriptors()
        for interrupter in strikes(CHANNEL, step=19):
            theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            far, near = Channel(theirs), Channel(ours, max_fds=4)
            for _ in range(2):
                far.send(ATTACHED, [event.fileno()] * 2)
            near.look()
            with interrupter:
                near.look()
                near.close()
            near.close()
            far.close()
            assert descriptors() == before, interrupter.where


@SOME
@BOTH
def test_an_interrupted_attach_leaves_nothing_open_and_no_role_taken(make_region, notify, step):
    region = make_region(echo_spec(), notify=notify)
    region.echo()
    Driver.attach(region.name, timeout=PATIENCE).close()
    before = descriptors()
    for interrupter in strikes(DRIVER, step=step):
        attached = []
        with interrupter:
            attached.append(Driver.attach(region.name, timeout=PATIENCE))
        while attached:
            attached.pop().close()
        assert descriptors() == before, interrupter.where
    with Driver.attach(region.name, timeout=PATIENCE) as last:
        assert last.request(b"x", 1, timeout=PATIENCE) == b"x"


@SOME
def test_an_interrupted_reset_can_be_done_again(served, step):
    with Driver.attach(served.name, timeout=PATIENCE) as driven:
        before = descriptors()
        for interrupter in strikes(DRIVER, step=step):
            request = driven.submit([b"abc"], [16])
            lost = []
            with interrupter:
                lost += driven.reset(PATIENCE)
            lost += driven.reset(PATIENCE)
            early = list(driven.completed(0)) if driven.ready() else []
            assert [*lost, *early] == [request], interrupter.where
            request.release()
            assert driven.request(b"x", 1, timeout=PATIENCE) == b"x", interrupter.where
            assert driven.ports[0].pool.free == driven.ports[0].pool.size - sum(t.count for _, t in driven._pools)
            assert descriptors() == before, interrupter.where


@pytest.mark.parametrize("who", [Driver, Device])
def test_who_was_interrupted_while_leaving_leaves_when_it_is_called_again(make_region, who):
    region = make_region()
    if who is Driver:
        region.echo()
    before = descriptors()
    for interrupter in strikes(DRIVER | DEVICE, step=19):
        end = who.attach(region.name, timeout=PATIENCE)
        with interrupter:
            end.close()
        end.close()
        del end
        assert descriptors() == before, interrupter.where


@SOME
@BOTH
@pytest.mark.parametrize("memory", ["named", "memfd"])
def test_an_interrupted_coordinator_leaves_nothing(notify, memory, step):
    if (notify, memory) == ("semaphore", "memfd"):
        pytest.skip("such a region cannot be")
    name = new_name()
    before = descriptors(), traces()
    for interrupter in strikes(REGION, step=step):
        made = []
        with interrupter:
            made.append(Coordinator(name, [echo_spec()], notify=notify, memory=memory))
            made[0].close()
        while made:
            made.pop().close()
        assert (descriptors(), traces()) == before, interrupter.where


def traces() -> set[str]:
    """The names that regions of this process have."""
    places = [shm.DIRECTORY, names.runtime_directory()]
    return {path.name for place in places for path in place.iterdir() if f"t{os.getpid()}-" in path.name}
