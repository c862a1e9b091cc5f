"""Objects are made whole or not at all, for one user alone, and opened only if they are what they should be."""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import resource
import stat
import subprocess
import sys

import pytest
from vqshm_harness import clear_away, descriptors, new_name

from vqshm.errors import NameInUse, NotFound, ShmFull, UntrustedPeer
from vqshm.host.system import pages, shm

PAGE = 4096
OTHER_USER = 4242
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def name():
    name = new_name()
    yield name
    shm.unlink(name)


@pytest.fixture
def flat():
    """The test leaves as many descriptors open as it found."""
    before = descriptors()
    yield
    assert descriptors() == before


def path(name: str):
    return shm.DIRECTORY / f"vqshm.{name}"


@pytest.mark.fault("F04")
@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_an_object_is_its_users_alone_whatever_the_umask(name, umask):
    old = os.umask(umask)
    try:
        shm.create(name, PAGE).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(path(name).stat().st_mode) == 0o600


def test_an_object_is_made_of_zeros_and_shared(name, flat):
    made = shm.create(name, 3 * PAGE)
    fd, size = shm.open_object(name)
    mapped = pages.map_object(fd.fileno(), size)
    fd.close()
    assert size == 3 * PAGE
    assert mapped[:] == bytes(size)
    made[5] = 7
    assert mapped[5] == 7
    made.close()
    mapped.close()


@pytest.mark.fault("E02")
def test_its_pages_are_reserved_when_it_is_made(name):
    shm.create(name, 64 * PAGE).close()
    assert path(name).stat().st_blocks * 512 == 64 * PAGE


@pytest.mark.fault("F03")
def test_a_name_is_taken_once(name, flat):
    shm.create(name, PAGE).close()
    with pytest.raises(NameInUse):
        shm.create(name, 2 * PAGE)
    assert path(name).stat().st_size == PAGE


@pytest.mark.fault("F03")
def test_a_symlink_under_the_name_is_not_followed(name, tmp_path):
    path(name).symlink_to(tmp_path / "victim")
    with pytest.raises(NameInUse):
        shm.create(name, PAGE)
    assert not (tmp_path / "victim").exists()


def test_a_mapping_that_may_only_read_cannot_write(name):
    shm.create(name, PAGE).close()
    fd, size = shm.open_object(name, writable=False)
    mapped = pages.map_object(fd.fileno(), size, writable=False)
    fd.close()
    with pytest.raises(TypeError):
        mapped[0] = 1
    mapped.close()


def test_descriptors_are_not_inherited(name):
    shm.create(name, PAGE).close()
    fd, _ = shm.open_object(name)
    assert not os.get_inheritable(fd.fileno())
    fd.close()


# -- no room -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("E01")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EFBIG])
def test_no_room_is_an_error_when_it_is_made_and_no_name_is_left(name, monkeypatch, flat, number):
    def full(fd, offset, length):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ShmFull, match=r"needs 1,048,576 bytes.*vqshm clean") as caught:
        shm.create(name, 1 << 20)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.facts["size"] == 1 << 20
    assert name not in shm.existing()


@pytest.mark.parametrize("failing", ["fallocate", "map"])
def test_no_failure_in_the_middle_leaves_a_name(name, monkeypatch, flat, failing):
    def broken(*_args, **_kwargs):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(*((os, "posix_fallocate") if failing == "fallocate" else (mmap, "mmap")), broken)
    with pytest.raises(OSError, match="broken"):
        shm.create(name, PAGE)
    assert name not in shm.existing()


def more_than_may_be_written(me, name):
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, PAGE))
    try:
        shm.create(name, 2 * PAGE)
    except ShmFull:
        me.send(shm.existing())


@pytest.mark.fault("E01")
def test_the_limit_of_a_process_is_no_room_and_no_signal(start, name):
    actor = start(more_than_may_be_written, name)
    assert name not in actor.hear()
    assert actor.end() == 0


@pytest.mark.fault("E01", "E02")
def test_a_full_shared_memory_is_an_error_and_never_sigbus(name):
    program = (
        "import sys; from vqshm.errors import ShmFull; from vqshm.host.system import shm; from pathlib import Path\n"
        "fits = shm.create('fits', 256 << 10)\n"
        "fits[:] = b'x' * len(fits)\n"
        "try: shm.create('big', 900 << 10)\n"
        "except ShmFull as error: print(error.facts['free'], *shm.existing())\n"
        "Path('/dev/shm/filler').write_bytes(b'x' * (700 << 10))\n"
        "fits[:] = b'y' * len(fits)\n"
    )
    small = 'mount --make-rprivate / && mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    ran = subprocess.run(
        [*command, "sh", "-c", small, "sh", sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    if ran.returncode and ("unshare" in ran.stderr or "mount" in ran.stderr):
        pytest.skip(f"no mount namespace to be had: {ran.stderr.strip()}")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{768 << 10} fits\n", "")


# -- opening -----------------------------------------------------------------------------------------------------------


def test_a_name_that_does_not_exist_is_not_found(name, flat):
    with pytest.raises(NotFound, match=f"no region '{name}'"):
        shm.open_object(name)


@pytest.mark.fault("F04")
@root_only
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_an_object_of_another_user_is_refused(name, flat, mode):
    shm.create(name, PAGE).close()
    path(name).chmod(mode)
    os.chown(path(name), OTHER_USER, OTHER_USER)
    with pytest.raises(UntrustedPeer, match=str(OTHER_USER)):
        shm.open_object(name)


@pytest.mark.fault("F04")
@pytest.mark.parametrize("mode", [0o640, 0o606, 0o660, 0o666, 0o601])
def test_an_object_that_others_may_open_is_refused(name, flat, mode):
    shm.create(name, PAGE).close()
    path(name).chmod(mode)
    with pytest.raises(UntrustedPeer):
        shm.open_object(name)


@pytest.mark.fault("F03")
@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("kind", ["fifo", "directory", "symlink", "dangling symlink"])
def test_what_is_no_file_is_refused_without_waiting(name, flat, tmp_path, kind, writable):
    match kind:
        case "fifo":
            os.mkfifo(path(name), 0o600)
        case "directory":
            path(name).mkdir(0o700)
        case "symlink":
            (tmp_path / "elsewhere").write_bytes(bytes(PAGE))
            path(name).symlink_to(tmp_path / "elsewhere")
        case _:
            path(name).symlink_to(tmp_path / "nowhere")
    try:
        with pytest.raises(UntrustedPeer):
            shm.open_object(name, writable=writable)
    finally:
        (path(name).rmdir if kind == "directory" else path(name).unlink)()


@pytest.mark.fault("E07")
def test_without_descriptors_there_is_an_error_and_no_leak(name):
    made = shm.create(name, PAGE)  # held on to: what has no maker any more is swept, by tests beside us, too
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 1, limits[1]))
    spare = []
    try:
        with pytest.raises(OSError, match=r"open files|files open"):
            spare.extend(shm.open_object(name)[0] for _ in itertools.count())
        with pytest.raises(OSError, match=r"open files|files open"):
            shm.create(new_name(), PAGE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in spare:
            fd.close()
    assert descriptors() == before
    shm.open_object(name)[0].close()
    made.close()


def test_removing_what_is_gone_does_nothing():
    shm.unlink("nobody-was-here")


# -- its maker ---------------------------------------------------------------------------------------------------------


def test_an_object_is_in_the_making_until_its_maker_lets_go(name):
    made = shm.create(name, PAGE)
    fd, _ = shm.open_object(name)
    assert shm.in_the_making(fd)
    made.close()
    assert not shm.in_the_making(fd)
    fcntl.flock(fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)  # to ask keeps no lock
    fd.close()


def maker(me, name):
    made = shm.create(name, PAGE)
    me.send("made")
    me.recv()
    made.close()


def test_an_object_whose_maker_was_killed_is_not_in_the_making(start, name):
    actor = start(maker, name)
    actor.hear()
    fd, _ = shm.open_object(name)
    assert shm.in_the_making(fd)
    actor.kill()
    assert not shm.in_the_making(fd)
    fd.close()
    clear_away(name)
