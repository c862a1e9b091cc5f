"""A process is its pid and its start time; its end is an event."""

from __future__ import annotations

import errno
import os
import select
import signal
from pathlib import Path

import pytest
from vqshm_harness import PATIENCE, descriptors, wait_until

from vqshm.host import ProcessId, Watch


def sleeper(me):
    me.send(ProcessId.own())
    me.recv()


def with_a_hostile_name(me, name):
    with open("/proc/self/comm", "w") as comm:  # noqa: PTH123
        comm.write(name)
    me.send(ProcessId.own())
    me.recv()


def readable(fd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


@pytest.fixture
def zombie():
    """A process of ours that has ended and was not waited for."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT), "it ended")
    yield pid
    os.waitpid(pid, 0)


def test_both_sides_agree_on_who_a_process_is(start):
    actor = start(sleeper)
    assert ProcessId.of(actor.pid) == actor.hear()


def test_a_process_is_alive_until_it_is_killed(start):
    actor = start(sleeper)
    process = actor.hear()
    assert process.alive
    actor.kill()
    assert not process.alive
    assert ProcessId.of(actor.pid) is None


def test_another_process_under_the_same_pid_is_not_it(start):
    process = start(sleeper).hear()
    assert not process._replace(start_time=process.start_time - 1).alive


def test_a_zombie_has_ended(zombie):
    assert ProcessId.of(zombie) is None


def without_first_thread(me):
    """A process whose main thread has ended, while another one runs on until it is told."""
    import ctypes
    import platform
    import threading

    def run_on():
        me.send("running on")
        me.recv()
        os._exit(0)

    threading.Thread(target=run_on).start()
    ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # exit, of this thread alone


def test_a_process_whose_first_thread_has_ended_is_alive_as_long_as_another_runs(start):
    actor = start(without_first_thread)
    assert actor.hear() == "running on"
    wait_until(lambda: actor.state() == "Z", "its first thread has ended")
    process = ProcessId.of(actor.pid)
    assert process is not None
    assert process.alive
    watch = Watch(process)
    assert not watch.ended
    actor.say("end")
    assert actor.end() == 0
    assert watch.ended
    assert not process.alive
    watch.close()


def test_a_stopped_process_is_alive(start):
    actor = start(sleeper)
    process = actor.hear()
    actor.freeze()
    assert process.alive
    with Watching(process) as watch:
        assert not watch.ended


@pytest.mark.parametrize("name", ["a) R 1 1", "((", "Z) Z", "x y\tz", "\xff)"])
def test_no_name_of_a_command_confuses_the_reader(start, name):
    actor = start(with_a_hostile_name, name)
    process = actor.hear()
    assert process == ProcessId.of(actor.pid)
    assert process.alive


@pytest.mark.parametrize("pid", [0, -1, -(1 << 31), 1 << 22, 1 << 40])
def test_a_pid_that_cannot_be_is_nobody(pid):
    assert not ProcessId(pid, 0).alive
    assert ProcessId.of(pid) is None


def test_the_process_itself_is_alive():
    assert ProcessId.own().pid == os.getpid()
    assert ProcessId.own().alive


def test_who_cannot_look_does_not_call_a_living_process_dead(monkeypatch):
    def no_descriptors(*_args, **_kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", no_descriptors)
    with pytest.raises(OSError, match="Too many"):
        ProcessId.of(os.getpid())


# -- watching ----------------------------------------------------------------------------------------------------------


class Watching(Watch):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def test_the_end_of_a_watched_process_is_an_event(start):
    actor = start(sleeper)
    with Watching(actor.hear()) as watch:
        assert not watch.ended
        assert not readable(watch.fileno(), 0)
        actor.signal(signal.SIGKILL)
        assert readable(watch.fileno(), PATIENCE)
        assert watch.ended


def test_watching_who_has_ended_already_says_so(start):
    actor = start(sleeper)
    process = actor.hear()
    actor.kill()
    before = descriptors()
    watch = Watch(process)
    assert (watch.ended, watch.fileno(), descriptors()) == (True, -1, before)


def test_watching_a_pid_that_is_another_process_by_now_says_it_has_ended(start):
    process = start(sleeper).hear()
    before = descriptors()
    watch = Watch(process._replace(start_time=1))
    assert (watch.ended, watch.fileno(), descriptors()) == (True, -1, before)


def test_watching_a_zombie_says_it_has_ended(zombie):
    assert Watch(ProcessId(zombie, 0)).ended


def test_a_watch_that_is_closed_twice_counts_as_ended_and_leaks_nothing(start):
    before = descriptors()
    actor = start(sleeper)
    watch = Watch(actor.hear())
    watch.close()
    watch.close()
    assert watch.ended
    actor.close()
    assert descriptors() == before


@pytest.mark.parametrize("pid", [0, -1, 1 << 22])
def test_watching_a_pid_that_cannot_be_says_it_has_ended(pid):
    assert Watch(ProcessId(pid, 0)).ended
