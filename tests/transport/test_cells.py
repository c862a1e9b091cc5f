"""Each live cell is a word of its own, each side's words lie on lines of their own, and a reader needs only to read."""

from __future__ import annotations

import pytest

from vqshm.memory import atomic
from vqshm.transport import DeviceSpec, Manifest, QueueSpec, plan, write_manifest
from vqshm.transport.cells import Cell, DeviceCells, DeviceCounters, DriverCounters

PLAN = plan([DeviceSpec("a", 1, (QueueSpec(16, 1), QueueSpec(16, 1))), DeviceSpec("b", 1, (QueueSpec(16, 1),))])


@pytest.fixture
def memory():
    memory = bytearray(PLAN.total_bytes)
    write_manifest(atomic.Region(memory), PLAN, name="cells", pid=1, start_time=1, notify="eventfd")
    return memory


@pytest.fixture
def manifest(memory):
    return Manifest(atomic.Region(memory), PLAN)


def all_cells(manifest: Manifest) -> list:
    devices = [manifest.device(index) for index in range(2)]
    queues = [manifest.queue(index) for index in range(3)]
    return [*devices, *(queue.driver for queue in queues), *(queue.device for queue in queues)]


def test_every_cell_is_a_word_of_its_own(manifest):
    number = 0
    for cells in all_cells(manifest):
        for name in cells.snapshot():
            number += 1
            setattr(cells, name, number)
    values = [value for cells in all_cells(manifest) for value in cells.snapshot().values()]
    assert values == list(range(1, number + 1))
    assert number == 2 * 10 + 3 * 7 + 3 * 8


def test_cells_touch_neither_records_nor_configuration(manifest, memory):
    before = bytes(memory)
    for cells in all_cells(manifest):
        for name in cells.snapshot():
            setattr(cells, name, 2**32 - 1)
    differing = [offset for offset in range(PLAN.manifest_bytes) if memory[offset] != before[offset]]
    assert min(differing) >= PLAN.cells_at
    assert max(differing) < min(device.config_at for device in PLAN.devices)
    assert bytes(memory[PLAN.manifest_bytes :]) == before[PLAN.manifest_bytes :]


def test_the_sides_of_a_queue_write_lines_of_their_own(manifest):
    for index in range(3):
        queue = manifest.queue(index)
        assert queue.driver.base % 64 == queue.device.base % 64 == 0
        assert queue.driver.base != queue.device.base
    for cls in (DriverCounters, DeviceCounters):
        assert max(cell.offset for cell in vars(cls).values() if isinstance(cell, Cell)) < 64


def test_the_owners_of_a_device_write_lines_of_their_own():
    lines = {name: cell.offset // 64 for name, cell in vars(DeviceCells).items() if isinstance(cell, Cell)}
    assert lines == {
        "status": 0,
        "offered": 0,
        "accepted": 0,
        "resumed": 0,
        "orphaned": 0,
        "driver_pid": 1,
        "driver_start_time": 1,
        "device_pid": 2,
        "device_start_time": 2,
        "config_generation": 2,
    }


def test_a_configuration_space_counts_its_generation_in_the_cell(manifest):
    manifest.config(1).update(0, b"hello")
    assert manifest.device(1).config_generation == 2
    assert manifest.device(0).config_generation == 0
    assert manifest.config(1).read(0, 5) == b"hello"


def test_a_reader_opens_them_read_only(manifest, memory):
    manifest.queue(2).driver.added = 7
    reader = Manifest(atomic.Region(bytes(memory)), PLAN)
    assert reader.queue(2).driver.snapshot()["added"] == 7
    with pytest.raises(TypeError):
        reader.queue(2).driver.added = 8


def test_there_are_no_cells_beyond_the_plan(manifest):
    for call in (lambda: manifest.device(2), lambda: manifest.queue(3), lambda: manifest.config(2)):
        with pytest.raises(IndexError):
            call()
