"""A plan puts everything somewhere, nothing twice, and nothing that a descriptor can reach into the manifest."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import InvalidSize, NotFound, RuleError
from vqshm.memory import GuestMemory
from vqshm.transport import GUEST_BASE, DeviceSpec, QueueSpec, plan
from vqshm.transport.planning import DEVICE_CELLS_BYTES, DEVICES_AT, PAGE, QUEUE_CELLS_BYTES, RESTARTS

queue_specs = st.builds(QueueSpec, st.sampled_from([1, 2, 256, 32768]), st.integers(1, 1 << 24))
names = st.integers(0, 9999).map("d{}".format)
device_specs = st.builds(
    DeviceSpec,
    names,
    st.integers(0, 2**32 - 1),
    st.lists(queue_specs, max_size=4).map(tuple),
    st.integers(0, 4096),
    st.sampled_from(RESTARTS),
)
regions = st.lists(device_specs, min_size=1, max_size=8, unique_by=lambda device: device.name)


@given(regions)
def test_nothing_overlaps_and_everything_is_inside(devices):
    planned = plan(devices)
    areas = []
    for device in planned.devices:
        areas.append((planned.device_cells_at(device.index), DEVICE_CELLS_BYTES))
        areas.append((device.config_at, device.config_bytes))
    areas += [(planned.queue_cells_at(queue.index), QUEUE_CELLS_BYTES) for queue in planned.queues]
    assert all(start >= planned.cells_at > DEVICES_AT for start, _ in areas)
    assert all(start + size <= planned.manifest_bytes for start, size in areas)
    offset = planned.manifest_bytes - GUEST_BASE
    for queue in planned.queues:
        queue.layout.check()
        areas += [(start + offset, size) for _, start, size in queue.layout.areas()]
        areas.append((queue.buffers.address + offset, queue.buffers.length))
        if queue.inflight is not None:
            areas.append((queue.inflight.address + offset, queue.inflight.length))
    areas.sort()
    for (start, size), (following, _) in itertools.pairwise(areas):
        assert start + size <= following
    assert sum(areas[-1]) <= planned.total_bytes


@given(regions)
def test_guest_memory_starts_behind_the_manifest(devices):
    planned = plan(devices)
    addresses = [start for queue in planned.queues for _, start, _ in queue.layout.areas()]
    assert all(GUEST_BASE <= address < GUEST_BASE + planned.guest_bytes for address in addresses)
    assert planned.manifest_bytes + planned.guest_bytes == planned.total_bytes
    assert planned.manifest_bytes % PAGE == planned.total_bytes % PAGE == 0


@given(regions)
def test_a_plan_keeps_what_was_asked_for_and_is_the_same_every_time(devices):
    planned = plan(devices)
    assert [device.spec for device in planned.devices] == devices
    assert [queue.index for queue in planned.queues] == list(range(len(planned.queues)))
    assert all(queue.buffers.length >= queue.spec.buffer_bytes for queue in planned.queues)
    assert all(queue.buffers.address % PAGE == queue.buffers.length % PAGE == 0 for queue in planned.queues)
    assert plan(devices) == planned


def test_lines_that_different_sides_write_are_apart():
    planned = plan([DeviceSpec("a", 1), DeviceSpec("b", 1)])
    for index in range(2):
        assert planned.device_cells_at(index) % 64 == planned.queue_cells_at(index) % 64 == 0


def test_a_device_is_found_by_name():
    planned = plan([DeviceSpec("a", 1), DeviceSpec("b", 2)])
    assert planned.device("b").device_id == 2
    with pytest.raises(NotFound, match="a, b"):
        planned.device("c")


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a/b", "a b", "ä", "a" * 32, "a\n", "a\0", None, 1])
def test_a_name_of_another_shape_is_refused(name):
    with pytest.raises(RuleError, match="name"):
        DeviceSpec(name, 1)


@pytest.mark.parametrize("name", ["a", "0", "blk0", "a_b.c-d", "a" * 31])
def test_a_name_of_the_right_shape_is_taken(name):
    assert DeviceSpec(name, 1).name == name


@pytest.mark.parametrize("size", [0, 3, 65536, -1])
def test_a_queue_size_is_a_power_of_two(size):
    with pytest.raises(InvalidSize):
        QueueSpec(size)


@pytest.mark.parametrize(
    "call",
    [
        lambda: QueueSpec(256, 0),
        lambda: QueueSpec(256, -1),
        lambda: QueueSpec(256, (1 << 40) + 1),
        lambda: QueueSpec(256, 1.5),
        lambda: DeviceSpec("a", -1),
        lambda: DeviceSpec("a", 2**32),
        lambda: DeviceSpec("a", 1, config_bytes=-1),
        lambda: DeviceSpec("a", 1, config_bytes=4097),
        lambda: DeviceSpec("a", 1, (QueueSpec(),) * 257),
        lambda: plan([]),
        lambda: plan([DeviceSpec(f"d{i}", 1) for i in range(65)]),
        lambda: plan([DeviceSpec("a", 1, (QueueSpec(1, 1),) * 200), DeviceSpec("b", 1, (QueueSpec(1, 1),) * 57)]),
        lambda: plan([DeviceSpec("a", 1, (QueueSpec(1, 1 << 40),))]),
        lambda: plan([DeviceSpec("a", 1), DeviceSpec("a", 2)]),
    ],
)
def test_what_is_beyond_a_limit_is_refused(call):
    with pytest.raises(RuleError):
        call()


def test_the_limits_themselves_are_taken():
    devices = [DeviceSpec(f"d{i}", 2**32 - 1, (QueueSpec(32768, 1),) * 4, 4096) for i in range(64)]
    assert len(plan(devices).queues) == 256


def test_specs_and_plans_do_not_change():
    planned = plan([DeviceSpec("a", 1)])
    for thing, field in [(planned, "total_bytes"), (planned.devices[0].spec, "name"), (planned.queues[0].spec, "size")]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, field, 0)


def test_only_a_device_that_is_to_be_resumed_has_in_flight_areas():
    for restart in RESTARTS:
        (queue,) = plan([DeviceSpec("d", 1, (QueueSpec(8, 1),), restart=restart)]).queues
        assert (queue.inflight is not None) == (restart == "resume")
        if queue.inflight is not None:
            assert queue.inflight.length == 16 + 8 * 16
            assert queue.inflight.address % 8 == 0


def test_a_restart_policy_that_does_not_exist_is_refused():
    with pytest.raises(RuleError, match="reset, resume, fail"):
        DeviceSpec("d", 1, restart="hope")


def test_the_driver_zeroes_what_the_two_sides_share_and_no_more():
    layout = plan([DeviceSpec("d", 1, (QueueSpec(8, 1),), restart="resume")])
    memory = GuestMemory([(GUEST_BASE, bytearray(b"\xff" * layout.guest_bytes))])
    (queue,) = layout.queues
    queue.zero(memory)
    for _, start, size in (*queue.layout.areas(), ("in flight", *queue.inflight)):
        assert memory.read(start, size) == bytes(size)
    assert memory.read(*queue.buffers) == b"\xff" * queue.buffers.length
