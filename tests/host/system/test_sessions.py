"""Who works in a region without its coordinator: what a cell says counts only if the kernel says so, too."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from vqshm.host.system import memfd, sessions

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process as another user")
SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def fd(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture
def hidden(monkeypatch):
    """No process lets its descriptors be listed."""

    def refuse(path):
        raise PermissionError(errno.EACCES, "hidden", path)

    monkeypatch.setattr(os, "listdir", refuse)


def test_who_has_it_open_has_it_open(fd, tmp_path):
    assert sessions.has_open(os.getpid(), fd)
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE, pass_fds=[fd]) as process:
        assert sessions.has_open(process.pid, fd)
        assert not sessions.has_open(process.pid, other)
        os.close(other)
        process.stdin.close()
        process.wait()
        assert not sessions.has_open(process.pid, fd)


@pytest.mark.fault("D08")
@pytest.mark.usefixtures("hidden")
def test_a_process_of_this_user_that_does_not_let_itself_be_looked_at_counts(fd):
    assert sessions.has_open(os.getpid(), fd)


@pytest.mark.fault("D08")
@root_only
@pytest.mark.usefixtures("hidden")
def test_one_of_another_user_does_not(fd):
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, user=4242) as process:
        assert not sessions.has_open(process.pid, fd)
        process.stdin.close()


@pytest.mark.fault("E07")
def test_no_descriptor_left_does_not_mean_that_nobody_has_the_memory(monkeypatch):
    def refuse(_path):
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(OSError, match="too many"):
        memfd.find("nobody", b"x")
