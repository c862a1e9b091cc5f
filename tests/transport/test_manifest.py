"""A manifest is read back as it was planned; bytes that no plan would write are a named error and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import InvalidState, RuleError, VersionMismatch
from vqshm.memory import atomic
from vqshm.transport import DeviceSpec, Manifest, QueueSpec, plan, read_header, read_manifest, write_manifest
from vqshm.transport.manifest import MAGIC

DEVICES = [
    DeviceSpec("echo", 0x7601, (QueueSpec(16, 4096),)),
    DeviceSpec("net", 1, (QueueSpec(256, 8192), QueueSpec(128, 1)), config_bytes=12),
    DeviceSpec("none", 4, (), config_bytes=0, restart="resume"),
]
PLAN = plan(DEVICES)
# As in the table of the module: header 128 bytes, three devices of 64, three queues of 16.
STATIC = 128 + 3 * 64 + 3 * 16


def made(notify: str = "eventfd") -> bytearray:
    memory = bytearray(PLAN.total_bytes)
    write_manifest(atomic.Region(memory), PLAN, name="cam0", pid=4711, start_time=2**40, notify=notify)
    return memory


@pytest.fixture
def memory():
    return made()


def changed(offset: int, data: bytes) -> bytes:
    memory = made()
    memory[offset : offset + len(data)] = data
    return bytes(memory)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, atomic.Region])
def test_a_plan_is_read_back_from_a_copy_and_from_the_memory_itself(memory, kind):
    assert read_manifest(kind(memory), len(memory)) == PLAN


def test_the_manifest_alone_is_enough(memory):
    assert read_manifest(memory[:STATIC], len(memory)) == PLAN


@pytest.mark.parametrize("notify", ["eventfd", "semaphore"])
def test_the_header_says_who_made_it_and_how_to_wake(notify):
    memory = made(notify)
    assert read_header(memory, len(memory)) == ("cam0", 4711, 2**40, notify)


def test_the_fields_lie_where_the_table_says(memory):
    def number(offset: int, size: int) -> int:
        return int.from_bytes(memory[offset : offset + size], "little")

    assert bytes(memory[:5]) == b"VQSHM"
    assert [number(offset, 4) for offset in (8, 12, 16, 20)] == [2, 128, PLAN.manifest_bytes, PLAN.cells_at]
    assert number(24, 8) == PLAN.total_bytes == len(memory)
    assert [number(offset, 4) for offset in (32, 36, 40, 44)] == [3, 3, 1, 0]
    assert [number(48, 8), number(56, 8)] == [4711, 2**40]
    assert bytes(memory[64:96]) == b"cam0".ljust(32, b"\0")
    assert bytes(memory[192:224]) == b"net".ljust(32, b"\0")
    assert [number(192 + offset, 4) for offset in (32, 36, 40, 44)] == [1, 2, 12, 0]
    assert number(256 + 44, 4) == 1  # resume
    assert [number(320 + 16, 4), number(320 + 24, 8)] == [256, 8192]


def test_the_magic_is_stored_last(monkeypatch):
    memory = bytearray(PLAN.total_bytes)
    stores = []

    def store(region: atomic.Region, offset: int, value: int) -> None:
        stores.append((offset, value, any(memory[8:])))

    monkeypatch.setattr("vqshm.transport.manifest.atomic.store_u64", store)
    write_manifest(atomic.Region(memory), PLAN, name="cam0", pid=1, start_time=1, notify="eventfd")
    assert stores == [(0, 0, False), (0, MAGIC, True)]


def test_writing_again_clears_what_an_earlier_life_left(memory):
    region = atomic.Region(memory)
    Manifest(region, PLAN).device(0).driver_pid = 99
    write_manifest(region, PLAN, name="cam0", pid=1, start_time=1, notify="eventfd")
    assert Manifest(region, PLAN).device(0).driver_pid == 0


def test_a_region_that_is_too_small_or_a_bad_name_is_refused(memory):
    with pytest.raises(RuleError, match="manifest"):
        write_manifest(atomic.Region(memory, 0, 4096 - 8), PLAN, name="a", pid=1, start_time=1, notify="eventfd")
    with pytest.raises(RuleError, match="name"):
        write_manifest(atomic.Region(memory), PLAN, name="../x", pid=1, start_time=1, notify="eventfd")


# -- not there yet -----------------------------------------------------------------------------------------------------


@pytest.mark.fault("E09")
@pytest.mark.parametrize("source", [b"", bytes(4096)])
def test_an_object_without_a_size_is_half_made(source):
    with pytest.raises(InvalidState, match="half made"):
        read_manifest(source, 0)


@pytest.mark.fault("E09")
def test_without_magic_it_is_half_made(memory):
    with pytest.raises(InvalidState, match="half made"):
        read_manifest(bytes(len(memory)), len(memory))
    with pytest.raises(InvalidState, match="half made"):
        read_manifest(changed(0, bytes(8)), len(memory))


# -- somebody else's ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("E09")
@pytest.mark.parametrize(
    ("source", "says"),
    [
        (changed(0, b"\1"), "magic"),
        (changed(0, bytes(reversed(MAGIC.to_bytes(8, "little")))), "byte order"),
        (changed(8, b"\1"), "version"),
        (changed(12, b"\1"), "version"),
        (changed(24, b"\1"), "claims"),
        (changed(24, b"\xff" * 8), "claims"),
        (changed(32, b"\xff" * 4), "too many"),
        (changed(36, b"\xff" * 4), "too many"),
        (changed(32, b"\0"), "impossible"),
        (changed(40, b"\0"), "impossible"),
        (changed(40, b"\3"), "impossible"),
        (changed(64, b"\xff"), "impossible"),
        (changed(64, b"\0" * 32), "impossible"),
        (changed(128, b"NET"), "impossible"),
        (changed(192, b"echo"), "impossible"),
        (changed(128 + 40, b"\xff" * 4), "impossible"),
        (changed(320, b"\3"), "impossible"),
        (changed(320 + 8, b"\xff" * 8), "impossible"),
        (changed(16, b"\1"), "contradicts"),
        (changed(20, b"\1"), "contradicts"),
        (changed(44, b"\1"), "contradicts"),
        (changed(100, b"\1"), "contradicts"),
        (changed(128 + 36, b"\0"), "contradicts"),
        (changed(128 + 36, b"\xff" * 4), "contradicts"),
        (changed(128 + 60, b"\1"), "contradicts"),
        (changed(320, b"\0\x80"), "contradicts"),
        (changed(320 + 4, b"\1"), "contradicts"),
        (changed(320 + 8, b"\0\0\xff"), "contradicts"),
    ],
)
def test_a_field_that_is_wrong_is_said_to_be(source, says):
    with pytest.raises(VersionMismatch, match=says):
        read_manifest(source, len(source))


@pytest.mark.parametrize("size", [1, 4095, 4097, (1 << 40) + 4096, 1 << 62])
def test_a_size_that_no_region_has_is_refused(memory, size):
    with pytest.raises(VersionMismatch):
        read_manifest(memory, size)


@pytest.mark.fault("E09")
@pytest.mark.parametrize("length", [0, 8, 127, 128, STATIC - 1])
def test_a_manifest_that_is_cut_off_is_refused(memory, length):
    with pytest.raises(VersionMismatch):
        read_manifest(memory[:length], len(memory))


@pytest.mark.fault("E09")
@given(st.binary(max_size=600), st.integers(0, 1 << 41))
def test_any_bytes_are_a_named_error(junk, size):
    with pytest.raises((InvalidState, VersionMismatch)):
        read_manifest(junk, size)


@given(st.binary(max_size=600))
def test_any_bytes_behind_the_right_beginning_are_a_named_error_or_a_plan(junk):
    total = PLAN.total_bytes
    head = made()[:32]
    try:
        found = read_manifest(bytes(head) + junk, total)
    except VersionMismatch:
        return
    assert found.total_bytes == total


@given(st.lists(st.tuples(st.integers(0, STATIC - 1), st.integers(0, 255)), max_size=4))
def test_a_manifest_with_changed_bytes_is_a_named_error_or_a_plan_that_fits(changes):
    memory = made()
    for offset, value in changes:
        memory[offset] = value
    try:
        found = read_manifest(memory, len(memory))
    except (InvalidState, VersionMismatch):
        return
    assert (found.total_bytes, found.manifest_bytes) == (PLAN.total_bytes, PLAN.manifest_bytes)


def test_a_restart_policy_that_does_not_exist_is_another_version():
    with pytest.raises(VersionMismatch, match="no restart policy 3"):
        read_manifest(changed(128 + 44, b"\x03"), PLAN.total_bytes)
