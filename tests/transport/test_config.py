"""A driver reads the configuration space whole: never a mixture of two versions, never outside it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import pytest

from vqshm.errors import DeadlineExceeded, RuleError
from vqshm.memory import atomic
from vqshm.transport import ConfigSpace

SIZE = 64


@pytest.fixture
def memory():
    return bytearray(256)


@pytest.fixture
def space(memory):
    return ConfigSpace(atomic.Region(memory), 128, SIZE, 8)


def test_what_is_written_is_read(space, memory):
    space.update(8, bytes(range(8)))
    assert space.read(8, 8) == bytes(range(8))
    assert bytes(memory[136:144]) == bytes(range(8))


def test_multi_byte_fields_are_little_endian(space):
    space.update(0, bytes.fromhex("0102030405060708"))
    assert [space.u8(0), space.u16(0), space.u32(0), space.u64(0)] == [1, 0x0201, 0x04030201, 0x0807060504030201]


def test_each_update_moves_the_generation_on_to_another_even_number(space):
    seen = [space.generation]
    for _ in range(3):
        space.update(0, b"x")
        seen.append(space.generation)
    assert seen == [0, 2, 4, 6]


def test_the_generation_wraps(space, memory):
    memory[8:12] = (2**32 - 2).to_bytes(4, "little")
    space.update(0, b"x")
    assert space.generation == 0


@pytest.mark.parametrize(("offset", "count"), [(-1, 1), (0, SIZE + 1), (SIZE, 1), (SIZE - 3, 4), (0, -1), (2**64, 1)])
def test_nothing_outside_is_read(space, offset, count):
    with pytest.raises(RuleError):
        space.read(offset, count)


@pytest.mark.parametrize("offset", [-1, SIZE - 1, SIZE, 2**64])
def test_nothing_outside_is_written(space, memory, offset):
    before = bytes(memory)
    with pytest.raises(RuleError):
        space.update(offset, b"xx")
    assert bytes(memory) == before


def test_the_whole_space_and_none_of_it_can_be_read(space):
    assert space.read(0, SIZE) == bytes(SIZE)
    assert space.read(SIZE, 0) == b""


def test_a_device_that_died_in_the_middle_of_an_update_is_not_waited_for_without_end(space, memory):
    memory[8] = 1
    with pytest.raises(DeadlineExceeded, match="generation 1"):
        space.read(0, 4)


def test_its_successor_brings_the_space_back(space, memory):
    memory[8] = 1
    space.update(0, b"new!")
    assert space.generation == 2
    assert space.read(0, 4) == b"new!"


def test_a_read_only_mapping_can_be_read_and_not_updated(memory):
    space = ConfigSpace(atomic.Region(bytes(memory)), 128, SIZE, 8)
    assert space.read(0, 4) == bytes(4)
    with pytest.raises(TypeError):
        space.update(0, b"x")


WRITER = """
import mmap, sys
from vqshm.memory import atomic
from vqshm.transport import ConfigSpace
space = ConfigSpace(atomic.Region(mmap.mmap(int(sys.argv[1]), 4096)), 1024, 2048, 64)
version = 0
while space._region.read(0, 1) == b"\\0":
    version = (version + 1) % 256
    space.update(0, bytes([version]) * 2048)
"""


def test_no_read_mixes_two_versions_while_another_process_writes():
    if not atomic.ORDERED:
        pytest.skip("the interpreted core does not order memory between processes here")
    fd = os.memfd_create("config")
    os.ftruncate(fd, 4096)
    with mmap.mmap(fd, 4096) as memory:
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(fd)],
            pass_fds=[fd],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        region = atomic.Region(memory)
        space = ConfigSpace(region, 1024, 2048, 64)
        versions = set()
        try:
            while len(versions) < 50:
                assert writer.poll() is None
                try:
                    seen = set(space.read(0, 2048))
                except DeadlineExceeded:
                    continue  # a writer without a pause may always be in the way: then it is said, not guessed
                assert len(seen) == 1
                versions |= seen
        finally:
            memory[0] = 1
            writer.wait(60)
        del region, space
    os.close(fd)
