"""Snapshots: everything about a region, from a read-only mapping, whatever its cells say."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vqshm import Coordinator, DeviceSpec, QueueSpec, spec
from vqshm.errors import NotFound, ReadOnlyMemory, RuleError
from vqshm.host import ProcessId
from vqshm.memory import GuestMemory, Region
from vqshm.ring import QueueConfig
from vqshm.transport import GUEST_BASE, Manifest, read_manifest
from vqshm.view import Observer, take


@pytest.fixture
def region():
    devices = [
        DeviceSpec("echo0", spec.VQSHM_ID_ECHO, (QueueSpec(8, 4096), QueueSpec(16, 8192))),
        DeviceSpec("odd", 0x4711, (QueueSpec(4, 1),)),
    ]
    with Coordinator(f"snap{os.getpid()}", devices) as coordinator:
        yield coordinator.name


@pytest.fixture
def live(region):
    """The region mapped for writing, as a peer has it."""
    path = Path("/dev/shm", f"vqshm.{region}")
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    whole = Region(mapping)
    return whole, Manifest(whole, read_manifest(whole, whole.size))


def ended_process() -> ProcessId:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = ProcessId.of(child.pid)
    child.communicate(b"\n", timeout=30)
    return process


def test_a_fresh_region(region):
    snapshot = take(region)
    assert (snapshot.name, snapshot.condition, snapshot.notify) == (region, "alive", "eventfd")
    assert snapshot.coordinator.pid == os.getpid()
    assert snapshot.coordinator.alive
    assert snapshot.coordinator.age >= 0
    assert "python" in snapshot.coordinator.command
    assert [device.kind for device in snapshot.devices] == ["echo", "id 0x4711"]
    assert [queue.index for queue in snapshot.queues] == [0, 1, 2]
    assert [queue.number for queue in snapshot.queues] == [0, 1, 0]
    device = snapshot.devices[0]
    assert (device.state, device.driver, device.device, device.offered) == ("reset", None, None, ())
    assert device.queues[0].event_idx is None


@pytest.mark.fault("E11")
def test_an_observer_that_writes_is_refused_and_changes_nothing(region):
    observer = Observer(region)
    before = observer.snapshot().devices
    with pytest.raises(ReadOnlyMemory):
        observer.manifest.device(0).status = 15
    with pytest.raises(ReadOnlyMemory):
        observer.manifest.config(0).update(0, b"x")
    with pytest.raises(PermissionError):
        observer.manifest.queue(0).driver.added = 1
    assert observer.snapshot().devices == before


def test_what_the_cells_say(region, live):
    _, manifest = live
    me, gone = ProcessId.own(), ended_process()
    cells = manifest.device(0)
    cells.offered = spec.mask(spec.VIRTIO_F_VERSION_1, spec.VIRTIO_F_EVENT_IDX)
    cells.accepted = spec.mask(spec.VIRTIO_F_VERSION_1)
    cells.status = 15
    cells.driver_start_time, cells.driver_pid = me.start_time, me.pid
    cells.device_start_time, cells.device_pid = gone.start_time, gone.pid
    manifest.queue(1).driver.added = 12
    manifest.queue(1).device.bytes_out = 1 << 60

    device = take(region).devices[0]
    assert (device.state, device.status_bits) == ("live", "ACKNOWLEDGE|DRIVER|FEATURES_OK|DRIVER_OK")
    assert device.offered == ("VIRTIO_F_EVENT_IDX", "VIRTIO_F_VERSION_1")
    assert device.accepted == ("VIRTIO_F_VERSION_1",)
    assert device.driver.alive
    assert not device.device.alive
    assert device.device.age is None
    assert device.queues[1].driver["added"] == 12
    assert device.queues[1].device["bytes_out"] == 1 << 60
    assert device.queues[1].event_idx is False


def test_a_pid_that_was_used_again_is_another_process(region, live):
    _, manifest = live
    cells = manifest.device(0)
    cells.driver_start_time, cells.driver_pid = 1, os.getpid()
    assert not take(region).devices[0].driver.alive


def test_the_rings_are_read_where_the_plan_says(region, live):
    whole, manifest = live
    queue = manifest.plan.queues[1]
    observer = Observer(region)
    assert observer.snapshot().queues[1].ring.claimed == 0
    memory = GuestMemory([(GUEST_BASE, whole.view(manifest.plan.manifest_bytes, manifest.plan.guest_bytes))])
    driver = QueueConfig(queue.layout).driver(memory)
    driver.add([(queue.buffers.address, 100)])
    rings = [entry.ring.claimed for entry in observer.snapshot().queues]
    assert rings == [0, 1, 0]


def test_impossible_cells_are_shown_and_raise_nothing(region, live):
    whole, manifest = live
    start = manifest.plan.cells_at
    whole.write(start, b"\xff" * (manifest.plan.device_cells_at(1) - start))
    whole.write(manifest.plan.manifest_bytes, b"\xff" * manifest.plan.guest_bytes)
    snapshot = take(region)
    device = snapshot.devices[0]
    assert device.state == "impossible"
    assert not device.driver.alive
    assert "reserved bit 44" in device.offered
    json.dumps(snapshot.as_map())


def test_the_map_is_plain_and_small(region):
    text = json.dumps(take(region).as_map())
    back = json.loads(text)
    assert back["devices"][0]["queues"][0]["ring"]["claimed"] == 0
    assert back["coordinator"]["pid"] == os.getpid()
    assert "table" not in back["devices"][0]["queues"][0]["ring"]


def test_the_mapping_is_read_only_and_nothing_changes(region, live):
    whole, _ = live
    before = whole.read(0, whole.size)
    observer = Observer(region)
    for _ in range(3):
        observer.snapshot()
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(f"vqshm.{region}")]
    assert any(line.split()[1] == "r--s" for line in lines)
    assert observer.manifest.region.readonly
    with pytest.raises(TypeError):
        observer.manifest.device(0).status = 1
    assert whole.read(0, whole.size) == before


def test_no_descriptor_and_no_mapping_stays(region):
    def held() -> tuple[int, int]:
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return descriptors, Path("/proc/self/maps").read_text().count(region)

    before = held()
    take(region)
    assert held() == before


def test_an_unknown_name_lists_what_exists(region):
    with pytest.raises(NotFound, match=region):
        take("no-such-region")
    with pytest.raises(RuleError):
        take("../etc/passwd")
