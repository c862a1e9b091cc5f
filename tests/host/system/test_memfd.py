"""Sealed regions: nothing in /dev/shm, nobody can cut them, and what is handed over is proved before it is mapped."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket

import pytest
from vqshm_harness import PATIENCE, clear_away, coordinate, descriptors, echo_spec, new_name, pumping, wait_until

from vqshm import Device, Driver
from vqshm.errors import (
    CoordinatorGone,
    DeadlineExceeded,
    InvalidState,
    NameInUse,
    NotFound,
    ProtocolError,
    ShmFull,
    StaleSession,
    UntrustedPeer,
    VersionMismatch,
)
from vqshm.host import Condition, Coordinator, ProcessId, look_at, open_plan, sweep
from vqshm.host.system import memfd, names, shm
from vqshm.notify import Deadline
from vqshm.transport import Channel
from vqshm.view import regions
from vqshm.view.snapshot import take

PAGE = 4096


@pytest.fixture
def name():
    name = new_name()
    yield name
    clear_away(name)


@pytest.fixture
def sealed(make_region):
    return make_region(memory="memfd")


def handed_over(region) -> int:
    return open_plan(region.name)[0]


def traces(name: str) -> list[str]:
    found = [*shm.DIRECTORY.glob(f"*vqshm.{name}*"), *names.runtime_directory().glob(f"{name}.*")]
    return sorted(path.name for path in found)


# -- the memory --------------------------------------------------------------------------------------------------------


def test_buffers_flow_through_memory_that_has_no_name(sealed):
    sealed.echo()
    with Driver.attach(sealed.name) as driver:
        for number in range(200):
            assert driver.request(b"%d" % number, 8, timeout=PATIENCE) == b"%d" % number
        driver.reset(PATIENCE)
        assert driver.request(b"again", 8, timeout=PATIENCE) == b"again"
        assert not list(shm.DIRECTORY.glob(f"*vqshm.{sealed.name}*"))
    assert traces(sealed.name) == [f"{sealed.name}.memfd", f"{sealed.name}.sock"]


@pytest.mark.fault("E02")
def test_nobody_can_cut_or_stretch_or_unseal_it(sealed):
    fd = handed_over(sealed)
    size = os.fstat(fd.fileno()).st_size
    for change in (0, size - PAGE, size + PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd.fileno(), change)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert os.fstat(fd.fileno()).st_size == size
    assert not os.get_inheritable(fd.fileno())
    fd.close()


@pytest.mark.fault("E01")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EFBIG])
def test_no_room_is_an_error_and_leaves_nothing(name, monkeypatch, number):
    def full(fd, offset, length):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = descriptors()
    with pytest.raises(ShmFull, match="cannot be reserved"):
        Coordinator(name, [echo_spec()], memory="memfd")
    assert traces(name) == []
    assert descriptors() == before


@pytest.mark.fault("E02")
def test_its_pages_are_reserved_when_it_is_made(name):
    fd, memory = memfd.create(name, 8 * PAGE)
    assert os.fstat(fd.fileno()).st_blocks * 512 >= 8 * PAGE
    memory.close()
    fd.close()


def test_an_observer_is_handed_memory_it_cannot_write(sealed):
    fd, _, plan = open_plan(sealed.name, writable=False)
    assert fcntl.fcntl(fd.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    with pytest.raises(PermissionError):
        mmap.mmap(fd.fileno(), plan.total_bytes)
    fd.close()
    assert take(sealed.name).coordinator.pid == sealed.coordinator.pid


def test_a_region_with_a_name_is_handed_over_as_it_is(region):
    """In case somebody removes that name."""
    fd = memory_from(names.socket_path(region.name))
    assert os.path.samestat(os.fstat(fd.fileno()), (shm.DIRECTORY / f"vqshm.{region.name}").stat())
    with pytest.raises(UntrustedPeer, match="not sealed"):
        memfd.check(fd, region.name)
    fd.close()


def memory_from(path):
    from vqshm.host.connection import fetch_memory

    return fetch_memory(path, "it", writable=True, coordinator=0, deadline=Deadline(PATIENCE))


# -- what a liar hands over --------------------------------------------------------------------------------------------


def liar(me, name, kind):
    """Listens where a coordinator would, behind a true paper, and hands over something else."""
    names.socket_path(name).unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(names.socket_path(name)))
        listener.listen()
        me.send("ready")
        channel = Channel(listener.accept()[0])
        channel.receive(Deadline(PATIENCE))
        fds = _lies(name, kind)
        if kind == "silence":
            me.recv()
        channel.send({"type": "opened" if kind != "another answer" else "ok"}, fds)
        me.recv()


def _lies(name, kind):
    if kind in {"no descriptor", "another answer", "silence"}:
        return ()
    if kind == "a pipe":
        return os.pipe()[:1]
    if kind == "a file":
        return (os.open(names.paper_path(name), os.O_RDWR),)
    fd = os.memfd_create("lie", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE if kind == "too small" else names.paper_path(name).stat().st_size)
    if kind == "half sealed":
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    if kind in {"empty", "too small", "another's"}:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, memfd.SEALS)
    if kind == "too small":
        os.pwrite(fd, names.paper_path(name).read_bytes()[:PAGE], 0)
    if kind == "another's":
        os.fchown(fd, 4242, -1)
    return (fd,)


@pytest.mark.fault("F10")
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("no descriptor", ProtocolError),
        ("another answer", ProtocolError),
        ("silence", DeadlineExceeded),
        ("a pipe", UntrustedPeer),
        ("a file", UntrustedPeer),
        ("not sealed", UntrustedPeer),
        ("half sealed", UntrustedPeer),
        ("empty", InvalidState),
        ("too small", VersionMismatch),
        pytest.param("another's", UntrustedPeer, marks=pytest.mark.skipif(os.geteuid() != 0, reason="root only")),
    ],
)
def test_memory_is_proved_before_it_is_mapped(sealed, start, kind, error):
    impostor = start(liar, sealed.name, kind)
    assert impostor.hear() == "ready"
    before = descriptors()
    with pytest.raises(error):
        Driver.attach(sealed.name, timeout=0.3 if kind == "silence" else PATIENCE)
    assert descriptors() == before


# -- its name ----------------------------------------------------------------------------------------------------------


def test_it_is_listed_and_looked_at_and_removed_like_any_other(sealed):
    found = look_at(sealed.name)
    assert (found.condition, found.owner.pid) == (Condition.ALIVE, sealed.coordinator.pid)
    entry = next(entry for entry in regions.list_regions() if entry.name == sealed.name)
    assert (entry.condition, entry.devices) == ("alive", ("echo0",))
    assert sealed.name not in sweep([sealed.name])
    assert sealed.name in regions.clean(dry_run=True).left
    sealed.coordinator.finish()
    assert traces(sealed.name) == []
    with pytest.raises(NotFound):
        look_at(sealed.name)


@pytest.mark.fault("D10")
def test_what_a_killed_coordinator_left_is_stale_and_swept(sealed):
    sealed.coordinator.kill()
    assert look_at(sealed.name).condition is Condition.STALE
    with pytest.raises(CoordinatorGone, match="vqshm clean"):
        Driver.attach(sealed.name)
    sweep([sealed.name])
    assert traces(sealed.name) == []


@pytest.mark.parametrize(("theirs", "ours"), [("memfd", "named"), ("named", "memfd"), ("memfd", "memfd")])
def test_a_name_is_one_name_whatever_memory_is_behind_it(make_region, theirs, ours):
    region = make_region(memory=theirs)
    before = traces(region.name)
    with pytest.raises(NameInUse, match=str(region.coordinator.pid)):
        Coordinator(region.name, [echo_spec()], memory=ours)
    assert traces(region.name) == before
    region.coordinator.kill()
    with Coordinator(region.name, [echo_spec()], memory=ours):
        assert look_at(region.name).owner == ProcessId.own()
    assert traces(region.name) == []


@pytest.mark.fault("D08")
def test_a_session_in_sealed_memory_outlives_its_coordinator_and_holds_the_name(sealed):
    device, driver = sealed.echo(), sealed.start(pumping)
    driver.hear()
    sealed.coordinator.kill()
    with pytest.raises(StaleSession) as caught:
        Coordinator(sealed.name, [echo_spec()], memory="memfd")
    assert set(caught.value.facts["pids"]) == {driver.pid, device.pid}
    first = driver.hear()
    while driver.hear() < first + 100:
        pass
    driver.kill()
    assert device.end() == 0
    with Coordinator(sealed.name, [echo_spec()], memory="memfd"):
        assert look_at(sealed.name).owner == ProcessId.own()


def half_way(me, name, point):
    """A coordinator that stops at a step of making a sealed region, to be killed there."""

    def stop(*_args):
        me.send("there")
        me.recv()

    setattr(*{"size": (os, "ftruncate"), "memory": (os, "memfd_create"), "paper": (memfd, "write_paper")}[point], stop)
    Coordinator(name, [echo_spec()], memory="memfd")


@pytest.mark.fault("D09")
@pytest.mark.parametrize("point", ["size", "memory", "paper"])
def test_a_sealed_region_whose_maker_was_killed_half_way_is_never_attached_to_and_swept(start, name, point):
    maker = start(half_way, name, point)
    assert maker.hear() == "there"
    for condition in (Condition.IN_THE_MAKING, Condition.HALF_MADE):
        for attach in (Driver.attach, Device.attach):
            with pytest.raises(InvalidState, match="half made"):
                attach(name)
        assert look_at(name).condition is condition
        maker.kill()
    sweep([name])
    assert traces(name) == []


def race(me, name):
    me.send("at the start")
    me.recv()
    try:
        coordinate(me, name, [echo_spec()], memory="memfd")
    except NameInUse:
        me.send("lost")


@pytest.mark.fault("D11")
def test_of_two_that_start_at_once_exactly_one_wins(start, name):
    for _ in range(20):
        racers = [start(race, name), start(race, name)]
        assert [racer.hear() for racer in racers] == ["at the start"] * 2
        for racer in racers:
            racer.say("go")
        assert sorted(racer.hear() for racer in racers) == ["lost", "ready"]
        assert look_at(name).owner.pid in {racer.pid for racer in racers}
        for racer in racers:
            racer.finish()
    assert traces(name) == []


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder", "open to others", "another's"])
def test_a_paper_that_is_none_is_refused(name, tmp_path, kind):
    path = names.paper_path(name)
    match kind:
        case "symlink":
            (tmp_path / "elsewhere").write_bytes(bytes(PAGE))
            path.symlink_to(tmp_path / "elsewhere")
        case "fifo":
            os.mkfifo(path, 0o600)
        case "folder":
            path.mkdir(0o700)
        case _:
            path.write_bytes(bytes(PAGE))
            path.chmod(0o666 if kind == "open to others" else 0o600)
    if kind == "another's":
        if os.geteuid():
            pytest.skip("only root can give a file to another user")
        os.chown(path, 4242, -1)
    before = descriptors()
    for look in (look_at, open_plan, Driver.attach):
        with pytest.raises(UntrustedPeer):
            look(name)
    with pytest.raises(UntrustedPeer):
        Coordinator(name, [echo_spec()], memory="memfd")
    assert name in {entry.name for entry in regions.list_regions() if entry.condition == regions.NOT_YOURS}
    assert name not in sweep([name])
    assert descriptors() == before
    (path.rmdir if kind == "folder" else path.unlink)()


def test_a_hundred_of_them_leave_nothing(start, name):
    before = descriptors()
    for _ in range(100):
        with Coordinator(name, [echo_spec()], memory="memfd"):
            assert look_at(name).condition is Condition.ALIVE
    wait_until(lambda: descriptors() == before, "nothing is open any more")
    assert traces(name) == []
