"""Pages are there when they are mapped; a wish that is not granted is a warning with the reason, and nothing worse."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest
from vqshm_harness import PATIENCE, clear_away, echo_spec, new_name

from vqshm import Driver
from vqshm.errors import RegionShrunk, RuleError
from vqshm.host import Coordinator, Hints, launch, look_at
from vqshm.host.system import pages, shm

PAGE = 4096
SIZE = 16 * PAGE


@pytest.fixture
def name():
    name = new_name()
    yield name
    clear_away(name)


@pytest.fixture
def file():
    fd = os.memfd_create("pages")
    yield fd
    os.close(fd)


def in_memory(memory: mmap.mmap) -> int:
    """How many kilobytes of a mapping are mapped in, by the kernel's word."""
    address = pages._range(memory)[0].value
    with Path("/proc/self/smaps").open() as maps:
        for line in maps:
            if line.startswith(f"{address:08x}-"):
                return next(int(line.split()[1]) for line in maps if line.startswith("Rss:"))
    raise LookupError(hex(address))


def locked_kilobytes() -> int:
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmLck:"))


# -- mapping -----------------------------------------------------------------------------------------------------------


def test_what_is_mapped_is_there_before_it_is_touched(file):
    pages.reserve(file, SIZE).close()
    memory = pages.map_object(file, SIZE)
    assert in_memory(memory) == SIZE // 1024
    memory.close()


def test_reserving_takes_the_memory_at_once(file):
    memory = pages.reserve(file, SIZE)
    assert os.fstat(file).st_blocks * 512 == SIZE
    assert in_memory(memory) == SIZE // 1024
    assert bytes(memory) == bytes(SIZE)
    memory.close()


def test_an_object_that_shrinks_while_it_is_mapped_is_an_error_and_no_sigbus(file, monkeypatch):
    pages.reserve(file, SIZE).close()
    os.ftruncate(file, PAGE)
    with pytest.raises(RegionShrunk):
        pages.map_object(file, SIZE)
    os.ftruncate(file, SIZE)
    populate = pages._populate

    def shrinks(memory, advice):
        os.ftruncate(file, PAGE)
        populate(memory, advice)

    monkeypatch.setattr(pages, "_populate", shrinks)
    with pytest.raises(RegionShrunk):
        pages.map_object(file, SIZE)


def test_an_older_kernel_maps_without_populating(file, monkeypatch):
    monkeypatch.setattr(pages, "MADV_POPULATE_WRITE", 9999)
    memory = pages.reserve(file, SIZE)
    memory[SIZE - 1] = 1
    memory.close()


# -- wishes ------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("E12")
def test_locked_pages_are_locked(file):
    before = locked_kilobytes()
    memory = pages.reserve(file, SIZE, Hints(lock=True))
    assert locked_kilobytes() == before + SIZE // 1024
    memory.close()
    assert locked_kilobytes() == before


@pytest.mark.fault("E12")
def test_where_nothing_may_be_locked_that_is_a_warning(file, monkeypatch):
    def refused(*_args):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(pages, "_call", refused)
    with pytest.warns(RuntimeWarning, match="no locked memory: .*ulimit -l"):
        memory = pages.reserve(file, SIZE, Hints(lock=True))
    memory[:] = b"x" * SIZE  # it serves all the same
    memory.close()


@pytest.mark.fault("E12")
@pytest.mark.parametrize("policy", ["always within_size advise [never] deny force", None])
def test_where_there_are_no_huge_pages_that_is_a_warning(file, monkeypatch, tmp_path, policy):
    switch = tmp_path / "shmem_enabled"
    if policy is not None:
        switch.write_text(policy)
    monkeypatch.setattr(pages, "_HUGE_SHARED", switch)
    with pytest.warns(RuntimeWarning, match=r"no huge pages: .*(\[never\]|No such file)"):
        pages.reserve(file, SIZE, Hints(huge_pages=True)).close()
    assert os.fstat(file).st_blocks * 512 == SIZE


@pytest.mark.fault("E12")
def test_huge_pages_are_asked_for_before_the_pages_are_reserved(file, monkeypatch, tmp_path):
    (tmp_path / "shmem_enabled").write_text("always within_size [advise] never deny force")
    monkeypatch.setattr(pages, "_HUGE_SHARED", tmp_path / "shmem_enabled")
    seen = []
    reserve = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda *args: (seen.append(flags()), reserve(*args)))
    memory = pages.reserve(file, SIZE, Hints(huge_pages=True))
    assert "hg" in seen[0]
    memory.close()


def flags() -> str:
    """The kernel's flags of the mapping of the object under test."""
    with Path("/proc/self/smaps").open() as maps:
        for line in maps:
            if "memfd:pages" in line:
                return next(line for line in maps if line.startswith("VmFlags:"))
    raise LookupError("memfd:pages")


@pytest.mark.fault("E12")
def test_a_node_that_exists_is_preferred_and_one_that_does_not_is_a_warning(file):
    reason = None
    try:
        pages._prefer_node(mmap.mmap(-1, PAGE), 0)
    except OSError as error:
        reason = error.errno
    if reason is None:
        pages.reserve(file, SIZE, Hints(numa_node=0)).close()
    else:
        assert reason in {errno.ENOSYS, errno.EPERM}  # a kernel or a sandbox without it
    with pytest.warns(RuntimeWarning, match="no memory of NUMA node 1023: "):
        pages.reserve(file, SIZE, Hints(numa_node=1023)).close()
    assert os.fstat(file).st_blocks * 512 == SIZE


@pytest.mark.parametrize("node", [-1, 1024, 1.0, "0", True])
def test_a_node_that_cannot_be_is_refused(node):
    with pytest.raises(RuleError, match="NUMA node"):
        Hints(numa_node=node)


@pytest.mark.fault("E12")
@pytest.mark.parametrize("memory", ["named", "memfd"])
def test_a_region_with_wishes_serves(name, memory, recwarn):
    with Coordinator(name, [echo_spec()], memory=memory, hints=Hints(True, True, 0)):
        assert look_at(name).devices == ("echo0",)
    assert all("the region has no" in str(warning.message) for warning in recwarn)
    assert name not in shm.existing()


def test_a_launched_region_has_the_memory_that_was_asked_for(name, start):
    with launch(name, [echo_spec()], memory="memfd", hints=Hints(lock=True)):
        assert name not in shm.existing()
        device = start(serve, name)
        assert device.hear() == "ready"
        with Driver.attach(name) as driver:
            assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"


def serve(me, name):
    from vqshm_harness import echo

    echo(me, name)
