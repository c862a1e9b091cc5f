"""What a dead run left is told from the living and removed; nothing else is touched.

Tests sweep what they made themselves, but for one: whoever runs tests beside them wants to see what it left there.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import stat
import struct
from multiprocessing import connection

import pytest
from vqshm_harness import BOTH, PATIENCE, clear_away, coordinate, descriptors, echo_spec, new_name

from vqshm.errors import DeadlineExceeded, InvalidState, NotFound, RuleError, UntrustedPeer, VersionMismatch
from vqshm.host import Condition, Coordinator, ProcessId, look_at, look_at_all, open_plan, sweep
from vqshm.host.system import names, shm

OTHER_USER = 4242
PAGE = 4096
VERSION_AT = 8
PID_AT = 48
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def name():
    name = new_name()
    yield name
    clear_away(name)


def path(name: str):
    return shm.DIRECTORY / f"vqshm.{name}"


def traces(name: str) -> set[str]:
    """Whatever a region has in the file system."""
    found = {
        entry.name for entry in shm.DIRECTORY.iterdir() if entry.name.startswith((f"vqshm.{name}", f"sem.vqshm.{name}"))
    }
    return found | {entry.name for entry in names.runtime_directory().glob(f"{name}.sock")}


def patch(name: str, offset: int, data: bytes) -> None:
    with path(name).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def abandoned(start, name: str, notify: str = "eventfd") -> None:
    """A region whose coordinator was killed."""
    actor = start(coordinate, name, (echo_spec(),), notify)
    assert actor.hear() == "ready"
    actor.kill()


# -- looking -----------------------------------------------------------------------------------------------------------


def test_a_region_is_alive_while_its_coordinator_runs(region):
    found = look_at(region.name)
    assert (found.condition, found.owner, found.problem) == (
        Condition.ALIVE,
        ProcessId.of(region.coordinator.pid),
        "",
    )
    assert not found.abandoned


def test_a_region_of_a_stopped_coordinator_is_alive(region):
    region.coordinator.freeze()
    assert look_at(region.name).condition is Condition.ALIVE
    assert region.name not in sweep([region.name])


def test_a_region_is_stale_when_its_coordinator_was_killed(start, name):
    abandoned(start, name)
    found = look_at(name)
    assert (found.condition, found.abandoned) == (Condition.STALE, True)


def test_a_region_whose_owner_s_pid_is_another_process_by_now_is_stale(region):
    patch(region.name, PID_AT, struct.pack("<QQ", os.getpid(), 1))
    assert look_at(region.name).condition is Condition.STALE


@pytest.mark.fault("E09")
@pytest.mark.parametrize("size", [0, PAGE, 10 * PAGE])
def test_a_region_without_magic_or_maker_is_half_made(name, size):
    path(name).write_bytes(bytes(size))
    path(name).chmod(0o600)
    assert look_at(name).condition is Condition.HALF_MADE


def test_an_object_of_a_size_that_no_region_has_is_foreign(name):
    path(name).write_bytes(bytes(100))
    path(name).chmod(0o600)
    assert look_at(name).condition is Condition.FOREIGN
    path(name).unlink()


def test_a_region_without_magic_whose_maker_lives_is_in_the_making(name):
    made = shm.create(name, PAGE)
    found = look_at(name)
    assert (found.condition, found.abandoned) == (Condition.IN_THE_MAKING, False)
    made.close()


@pytest.mark.fault("E09")
@pytest.mark.parametrize(
    ("offset", "data"),
    [(0, b"NOTVQSHM"), (VERSION_AT, b"\xff\0\0\0"), (24, b"\xff" * 8), (32, b"\xff\xff\xff\xff"), (64, b"\xff/../\0")],
    ids=["magic", "version", "size", "devices", "name"],
)
def test_a_region_that_says_something_impossible_is_foreign_and_left_alone(region, offset, data):
    before = path(region.name).read_bytes()[offset : offset + len(data)]
    patch(region.name, offset, data)
    assert look_at(region.name).condition is Condition.FOREIGN
    assert region.name not in sweep([region.name])
    with pytest.raises(VersionMismatch):
        open_plan(region.name)
    patch(region.name, offset, before)


def test_a_plan_opens_no_descriptor_when_it_raises(name):
    path(name).write_bytes(bytes(PAGE))
    path(name).chmod(0o600)
    before = descriptors()
    with pytest.raises(InvalidState, match="half made"):
        open_plan(name)
    with pytest.raises(NotFound):
        open_plan("nobody")
    with pytest.raises(RuleError):
        open_plan("../etc/passwd")
    assert descriptors() == before


def test_a_region_that_does_not_exist_comes_with_a_list_of_those_that_do(region):
    with pytest.raises(NotFound, match=rf"no region 'nobody'.*{region.name}"):
        open_plan("nobody")


@pytest.mark.parametrize("bad", ["UPPER", "with space", "x" * 60, "[a-z]*"])
def test_files_that_cannot_be_regions_are_passed_over(bad):
    path(bad).write_bytes(b"somebody's")
    try:
        assert bad not in {found.name for found in look_at_all()}
        assert bad not in sweep([bad])
        assert path(bad).exists()
    finally:
        path(bad).unlink()


def test_a_fifo_holds_nobody_up(name):
    os.mkfifo(path(name), 0o666)
    assert name not in {found.name for found in look_at_all()}
    assert name not in sweep([name])
    path(name).unlink()


# -- sweeping ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("D10")
@BOTH
def test_a_sweep_removes_everything_that_a_dead_region_left(start, name, notify):
    abandoned(start, name, notify)
    assert len(traces(name)) == {"eventfd": 2, "semaphore": 4}[notify]
    assert name in sweep()
    assert traces(name) == set()
    assert name not in sweep()


@BOTH
def test_a_sweep_leaves_the_living_alone(make_region, notify):
    region = make_region(notify=notify)
    before = traces(region.name)
    assert region.name not in sweep([region.name])
    assert traces(region.name) == before


def test_a_sweep_removes_what_is_half_made(name):
    path(name).write_bytes(bytes(PAGE))
    path(name).chmod(0o600)
    assert name in sweep([name])
    assert not path(name).exists()


def test_a_sweep_leaves_what_is_being_made_under_another_lock(name, monkeypatch, tmp_path):
    made = shm.create(name, PAGE)
    (tmp_path / "other").mkdir(mode=0o700)
    monkeypatch.setenv("VQSHM_RUNTIME_DIR", str(tmp_path / "other"))
    assert name not in sweep([name])
    assert path(name).exists()
    made.close()


@pytest.mark.fault("F03")
@root_only
def test_a_sweep_leaves_what_belongs_to_somebody_else(start, name):
    abandoned(start, name)
    os.chown(path(name), OTHER_USER, OTHER_USER)
    assert name not in sweep([name])
    assert path(name).exists()


def test_a_sweep_removes_a_socket_without_a_region(name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(names.socket_path(name)))
    assert name in sweep([name])
    assert traces(name) == set()


def test_a_sweep_passes_over_sockets_of_others():
    other = names.runtime_directory() / "Not A Region.sock"
    other.touch()
    assert "Not A Region" not in sweep(["Not A Region"])
    other.unlink()


def test_regions_of_similar_names_do_not_touch_each_other(start, name):
    neighbours = [f"{name}.b", f"{name}-b", f"{name}.k0", f"{name}b"]
    for each in [name, *neighbours]:
        abandoned(start, each, "semaphore")
    before = {each: traces(each) for each in neighbours}
    clear_away(name)
    assert not path(name).exists()
    assert not list(shm.DIRECTORY.glob(f"sem.vqshm.{name}.[A-Z]*"))
    assert {each: traces(each) for each in neighbours} == before
    for each in neighbours:
        clear_away(each)
    assert traces(name) == set()


@pytest.mark.fault("D10")
def test_a_coordinator_takes_the_name_of_a_dead_one(start, name):
    abandoned(start, name, "semaphore")
    with Coordinator(name, [echo_spec()]):
        assert look_at(name).owner == ProcessId.own()
    assert traces(name) == set()


def test_a_coordinator_takes_the_name_of_one_that_died_while_making_it(name):
    path(name).write_bytes(bytes(PAGE))
    path(name).chmod(0o600)
    with Coordinator(name, [echo_spec()]):
        assert look_at(name).condition is Condition.ALIVE


# -- the runtime directory ---------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Where the runtime directory should be, not made yet."""
    monkeypatch.setenv("VQSHM_RUNTIME_DIR", str(tmp_path / "runtime"))
    return tmp_path / "runtime"


def test_the_runtime_directory_is_made_for_this_user_alone(elsewhere):
    old = os.umask(0)
    try:
        assert names.runtime_directory() == elsewhere
    finally:
        os.umask(old)
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o710, 0o701])
def test_a_runtime_directory_that_others_may_enter_is_refused(elsewhere, mode):
    elsewhere.mkdir()
    elsewhere.chmod(mode)
    with pytest.raises(UntrustedPeer, match="0700"):
        names.runtime_directory()
    with pytest.raises(UntrustedPeer):
        Coordinator(new_name(), [echo_spec()])


@pytest.mark.parametrize("kind", ["file", "symlink", "dangling symlink", "fifo"])
def test_a_runtime_directory_that_is_none_is_refused(elsewhere, tmp_path, kind):
    match kind:
        case "file":
            elsewhere.touch(0o600)
        case "fifo":
            os.mkfifo(elsewhere, 0o600)
        case "symlink":
            (tmp_path / "real").mkdir(0o700)
            elsewhere.symlink_to(tmp_path / "real")
        case _:
            elsewhere.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UntrustedPeer):
        names.runtime_directory()


@root_only
def test_a_runtime_directory_of_another_user_is_refused(elsewhere):
    elsewhere.mkdir(0o700)
    os.chown(elsewhere, OTHER_USER, OTHER_USER)
    with pytest.raises(UntrustedPeer):
        names.runtime_directory()


def test_the_session_directory_is_preferred_to_tmp(monkeypatch, tmp_path):
    monkeypatch.delenv("VQSHM_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert names.runtime_directory() == tmp_path / "vqshm"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "not there"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert names.runtime_directory() == tmp_path / f"vqshm-{os.geteuid()}"


# -- the lock ----------------------------------------------------------------------------------------------------------


def hold_the_lock(me):
    with names.naming_lock():
        me.send("locked")
        me.recv()


@pytest.mark.fault("D13")
def test_a_lock_that_somebody_keeps_is_a_deadline_and_not_a_hang(start, elsewhere, monkeypatch):
    monkeypatch.setattr(names, "LOCK_TIMEOUT", 0.05)
    elsewhere.mkdir(0o700)
    fd = os.open(elsewhere / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    before = descriptors()
    with pytest.raises(DeadlineExceeded, match="lock"):
        sweep(["nobody"])
    assert descriptors() == before
    os.close(fd)
    sweep(["nobody"])


@pytest.mark.fault("D13")
def test_the_lock_of_a_killed_process_is_free(start):
    actor = start(hold_the_lock)
    actor.hear()
    actor.kill()
    with names.naming_lock():
        pass


@pytest.mark.fault("D13")
def test_who_waits_for_the_lock_gets_it_when_it_is_free(start):
    first, second = start(hold_the_lock), start(hold_the_lock)
    ready = connection.wait([first.connection, second.connection], PATIENCE)
    assert len(ready) == 1
    holder, waiter = (first, second) if first.connection in ready else (second, first)
    assert not waiter.connection.poll(0.05)
    holder.say("go on")
    waiter.hear()
    waiter.say("go on")


def test_the_header_is_judged_on_a_copy_of_its_first_bytes(region):
    """Nothing that the header claims leads to more than the object has."""
    size = path(region.name).stat().st_size
    with path(region.name).open("r+b") as file, mmap.mmap(file.fileno(), PAGE) as head:
        head[24:32] = struct.pack("<Q", 1 << 40)
        with pytest.raises(VersionMismatch, match="claims"):
            open_plan(region.name)
        head[24:32] = struct.pack("<Q", size)
    fd, _, plan = open_plan(region.name)
    fd.close()
    assert plan.total_bytes == size
