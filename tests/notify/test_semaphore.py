"""A semaphore is a wake-up by name; names are ours alone, and whoever makes one removes it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import posix_ipc
import pytest

from vqshm.errors import InvalidState, NameInUse, NotFound, UntrustedPeer
from vqshm.notify import Semaphore, park_on, unlink_semaphore

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def name():
    name = f"/vqshm-test-{uuid.uuid4().hex}"
    yield name
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_semaphore(name)


@pytest.fixture
def semaphore(name):
    with Semaphore.create(name) as made:
        yield made


def value_of(name: str) -> int:
    handle = posix_ipc.Semaphore(name)
    value = handle.value
    handle.close()
    return value


def file_of(name: str) -> Path:
    return next(Path("/dev/shm").glob(f"*{name[1:]}"))


def test_nothing_is_pending_at_first(semaphore):
    assert semaphore.kind == "semaphore"
    assert semaphore.fileno() is None
    assert not semaphore.wait(0)


def test_a_signal_is_pending_until_it_is_waited_for(semaphore):
    semaphore.signal()
    assert semaphore.wait(None)
    assert not semaphore.wait(0)


def test_signals_do_not_push_the_value_up(semaphore, name):
    for _ in range(1000):
        semaphore.signal()
    assert value_of(name) == 1


def test_clear_consumes_and_never_blocks(semaphore, name):
    semaphore.signal()
    semaphore.clear()
    semaphore.clear()
    assert value_of(name) == 0


@pytest.mark.fault("C05")
def test_a_value_at_its_maximum_is_a_wake_up_and_costs_a_bounded_time(name):
    hostile = posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=posix_ipc.SEMAPHORE_VALUE_MAX)
    hostile.close()
    with Semaphore.open(name) as semaphore:
        semaphore.signal()
        semaphore.clear()
        assert semaphore.wait(0)


def test_a_wait_ends_at_its_deadline(semaphore):
    assert not semaphore.wait(0.001)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_senseless_timeout_is_refused(semaphore, timeout):
    with pytest.raises(ValueError, match="timeout"):
        semaphore.wait(timeout)


def test_both_sides_meet_under_the_name(semaphore, name):
    with Semaphore.open(name) as other:
        other.signal()
        assert semaphore.wait(0)


@pytest.mark.fault("F04")
def test_only_its_owner_may_open_it_whatever_the_umask(name):
    umask = os.umask(0)
    try:
        Semaphore.create(name).close()
    finally:
        os.umask(umask)
    assert file_of(name).stat().st_mode & 0o777 == 0o600


def test_a_name_is_made_once(semaphore, name):
    with pytest.raises(NameInUse):
        Semaphore.create(name)
    semaphore.signal()
    assert value_of(name) == 1


def test_a_name_that_is_not_there_is_not_found(name):
    with pytest.raises(NotFound):
        Semaphore.open(name)
    with pytest.raises(NotFound):
        unlink_semaphore(name)


@pytest.mark.fault("F04")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_semaphore_of_another_user_is_not_trusted(name):
    Semaphore.create(name).close()
    os.chown(file_of(name), 65534, 65534)
    with pytest.raises(UntrustedPeer):
        Semaphore.open(name)


@pytest.mark.parametrize("name", ["", "/", "noslash", "/a/b", "/../x", "/" + "a" * 201, "/a\0b", "/ä"])
def test_a_name_of_another_shape_is_refused(name):
    for call in (Semaphore.create, Semaphore.open, unlink_semaphore):
        with pytest.raises(ValueError, match="semaphore name"):
            call(name)


def test_close_is_idempotent_and_final_and_keeps_the_name(name):
    semaphore = Semaphore.create(name)
    semaphore.close()
    semaphore.close()
    for call in (semaphore.signal, semaphore.clear, semaphore.wait):
        with pytest.raises(InvalidState):
            call()
    Semaphore.open(name).close()


def test_unlink_removes_the_name_also_after_close(name):
    semaphore = Semaphore.create(name)
    semaphore.close()
    semaphore.unlink()
    with pytest.raises(NotFound):
        Semaphore.open(name)
    with pytest.raises(NotFound):
        semaphore.unlink()


def test_a_parked_side_sees_a_watched_descriptor_between_slices(semaphore):
    reader, writer = os.pipe()
    os.close(writer)
    try:
        assert park_on([semaphore], [reader], None) == [reader]
    finally:
        os.close(reader)


def test_a_parked_side_is_woken_by_any_of_several(semaphore, name):
    with Semaphore.create(f"{name}-2") as second:
        second.unlink()
        second.signal()
        assert park_on([semaphore, second], [], None) == []
        assert not second.wait(0)


class Alarm(BaseException):
    """What the handler of a signal raises."""


@pytest.mark.fault("D19")
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_what_a_signal_handler_raises_ends_the_wait(semaphore, timeout):
    """posix_ipc would swallow it; and the signals must be let in again."""

    def alarm(*_):
        raise Alarm

    before = signal.signal(signal.SIGALRM, alarm)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        for _ in range(50):
            signal.setitimer(signal.ITIMER_REAL, 0.005)
            with pytest.raises(Alarm):
                semaphore.wait(timeout)
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    semaphore.signal()
    assert semaphore.wait(0)


def test_it_wakes_another_process(semaphore, name):
    program = (
        "import sys; from vqshm.notify import Semaphore\n"
        "there, back = map(Semaphore.open, sys.argv[1:])\n"
        "for _ in range(100):\n"
        "    assert there.wait(60)\n"
        "    back.signal()\n"
    )
    with Semaphore.create(f"{name}-back") as back:
        try:
            child = subprocess.Popen([sys.executable, "-c", program, name, back.name], env=ENVIRONMENT)
            for _ in range(100):
                semaphore.signal()
                assert back.wait(60)
            assert child.wait(60) == 0
        finally:
            back.unlink()


def test_posix_ipc_is_not_imported_before_a_semaphore_is_used():
    program = "import sys, vqshm.notify; sys.exit('posix_ipc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=False).returncode == 0
