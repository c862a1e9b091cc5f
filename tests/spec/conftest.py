"""A split queue in a bytearray, and the control side of a device, with eyes of their own for what happens there.

What the tests see of the rings is parsed here with `struct`, after the text of the specification; nothing of vqshm's
own parsing is used for it. What a test pokes into the rings is what another implementation could have written.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from vqshm import Coordinator, Device, Driver, spec
from vqshm.host import ProcessId
from vqshm.host.coordination.slot import Slot
from vqshm.memory import GuestMemory, Region
from vqshm.notify import EventFd
from vqshm.ring import DeviceQueue, QueueConfig, SplitLayout
from vqshm.transport import DeviceSpec, Manifest, QueueSpec, plan

NEXT, WRITE, INDIRECT = 1, 2, 4
VERSION_1 = spec.mask(spec.VIRTIO_F_VERSION_1)
BASE = 0x7000_0000
BUFFERS_AT = 0x4_0000  # offset of the buffer area; the rings, and the indirect tables, lie before it
TABLES_AT = 0x2_0000
BYTES = 0x8_0000


class Desc(NamedTuple):
    addr: int
    len: int
    flags: int
    next: int


class Ring(NamedTuple):
    flags: int
    idx: int
    ring: tuple
    event: int


class Bench:
    """One queue of `size` descriptors; `driver` and `device` are made when first asked for."""

    def __init__(self, size=8, *, event_idx=False, indirect=False, strict=True):
        self.size = size
        self.bytes = bytearray(BYTES)
        self.memory = GuestMemory([(BASE, self.bytes)])
        self.layout = SplitLayout.at(BASE, size)
        self.config = QueueConfig(self.layout, event_idx=event_idx, indirect=indirect)
        self.strict = strict
        self.entries = size
        self._taken = 0
        self._driver = self._device = None

    @property
    def driver(self):
        if self._driver is None:
            self._driver = self.config.driver(self.memory, indirect_tables=(BASE + TABLES_AT, self.entries))
        return self._driver

    @property
    def device(self) -> DeviceQueue:
        if self._device is None:
            self._device = self.config.device(self.memory, strict=self.strict)
        return self._device

    def buffer(self, count, fill=b""):
        """(guest address, bytes) of a fresh buffer."""
        address = BASE + BUFFERS_AT + self._taken
        self._taken = (self._taken + count + 15) // 16 * 16
        assert BUFFERS_AT + self._taken <= BYTES
        self.poke(address, fill)
        return address, count

    # -- looking -------------------------------------------------------------------------------------------------------

    def peek(self, address, count):
        return bytes(self.bytes[address - BASE : address - BASE + count])

    def desc(self, index, table=None):
        at = (self.layout.desc_table if table is None else table) + 16 * index
        return Desc(*struct.unpack("<QIHH", self.peek(at, 16)))

    def chain(self, head):
        """The descriptors in the order of the chain, those of the main table first; raises if it does not end."""
        found = []
        index, table, limit = head, None, self.size
        while True:
            found.append(self.desc(index, table))
            assert len(found) <= 2 * self.size, "the chain does not end"
            last = found[-1]
            if last.flags & INDIRECT:
                index, table, limit = 0, last.addr, last.len // 16
            elif last.flags & NEXT:
                index = last.next
            else:
                return found
            assert index < limit

    def buffers(self, head):
        """The descriptors of the chain that describe buffers."""
        return [d for d in self.chain(head) if not d.flags & INDIRECT]

    def avail(self):
        words = struct.unpack(f"<{self.size + 3}H", self.peek(self.layout.avail_ring, 6 + 2 * self.size))
        return Ring(words[0], words[1], words[2:-1], words[-1])

    def used(self):
        flags, idx = struct.unpack("<HH", self.peek(self.layout.used_ring, 4))
        ring = struct.iter_unpack("<II", self.peek(self.layout.used_ring + 4, 8 * self.size))
        event = struct.unpack("<H", self.peek(self.layout.used_ring + 4 + 8 * self.size, 2))[0]
        return Ring(flags, idx, tuple(ring), event)

    def _word(self, address):
        return struct.unpack_from("<H", self.bytes, address - BASE)[0]

    def snapshot(self, *without):
        """All bytes, those of the given (address, count) ranges blanked."""
        copy = bytearray(self.bytes)
        for address, count in without:
            copy[address - BASE : address - BASE + count] = bytes(count)
        return bytes(copy)

    @property
    def used_area(self):
        return self.layout.used_ring, 6 + 8 * self.size

    # -- being the other side ------------------------------------------------------------------------------------------

    def poke(self, address, data):
        self.bytes[address - BASE : address - BASE + len(data)] = data

    def poke_desc(self, index, addr, length, flags=0, following=0, table=None):
        at = (self.layout.desc_table if table is None else table) + 16 * index
        self.poke(at, struct.pack("<QIHH", addr, length, flags, following))

    def poke_avail(self, *, flags=None, idx=None, event=None):
        self._poke_words(self.layout.avail_ring, 4 + 2 * self.size, flags, idx, event)

    def poke_used(self, *, flags=None, idx=None, event=None):
        self._poke_words(self.layout.used_ring, 4 + 8 * self.size, flags, idx, event)

    def _poke_words(self, base, event_at, flags, idx, event):
        for at, value in ((0, flags), (2, idx), (event_at, event)):
            if value is not None:
                self.poke(base + at, struct.pack("<H", value))

    def offer(self, head):
        """As a foreign driver: make the chain at `head` available."""
        idx = self._word(self.layout.avail_ring + 2)
        self.poke(self.layout.avail_ring + 4 + 2 * (idx % self.size), struct.pack("<H", head))
        self.poke_avail(idx=(idx + 1) & 0xFFFF)

    def give_back(self, head, written=0):
        """As a foreign device: return the chain at `head`."""
        idx = self._word(self.layout.used_ring + 2)
        self.poke(self.layout.used_ring + 4 + 8 * (idx % self.size), struct.pack("<II", head, written))
        self.poke_used(idx=(idx + 1) & 0xFFFF)


class Client:
    """A process attached to a slot, as far as the slot knows; keeps what it is told."""

    def __init__(self):
        self.process = ProcessId.own()
        self.serial = 0
        self.replies = []
        self.events = []

    def reply(self, message, fds=(), serial=None):
        self.replies.append(message)

    def event(self, what, **facts):
        self.events.append((what, facts))


class Control:
    """The control side of one device without any process: a slot, and a driver and a device that write to it."""

    def __init__(self, *, offered=VERSION_1, config=b"", attach=True):
        self.plan = plan([DeviceSpec("dev", 1, config_bytes=64)])
        self.manifest = Manifest(Region(bytearray(self.plan.manifest_bytes)), self.plan)
        self.cells = self.manifest.device(0)
        self.config = self.manifest.config(0)
        self.slot = Slot(self.plan.devices[0], self.cells, self.config, [], [])
        self.driver, self.device = Client(), Client()
        if attach:
            self.slot.attach_device(self.device, offered, config)
            self.slot.attach_driver(self.driver)

    def features(self, bits):
        self.slot.write_features(self.driver, bits)

    def status(self, *values):
        """Write the register, value by value; what it holds then."""
        for value in values:
            self.slot.write_status(self.driver, value)
        return self.cells.status

    def bring_up(self, accepted=VERSION_1, to=15):
        """Through the initialisation, up to a status."""
        steps = [value for value in (0, 1, 3) if value <= to]
        self.status(*steps)
        if to > 3:
            self.features(accepted)
            self.status(*(value for value in (11, 15) if value <= to))


class World:
    """A coordinator in a thread of this process, one device of one queue, and notes on what the driver writes."""

    SIZE = 16

    def __init__(self, name, monkeypatch):
        self.name = name
        self.written = []  # ("features", bits), ("status", value, kicked: bool, the rings as bytes)
        self.shown = []  # the register as everybody sees it, before each write
        self.handles = []
        self.coordinator = Coordinator(name, [DeviceSpec("dev", 1, (QueueSpec(self.SIZE, 1 << 16),), config_bytes=64)])
        self.plan = self.coordinator.plan.devices[0].queues[0]
        self._stop = EventFd.create()
        self._listen(monkeypatch)
        self._thread = threading.Thread(target=self.coordinator.serve, args=(self._stop.fileno(),))
        self._thread.start()

    def _listen(self, monkeypatch):
        write_features, write_status = Slot.write_features, Slot.write_status

        def noted_features(slot, client, bits):
            self.written.append(("features", bits))
            write_features(slot, client, bits)

        def noted_status(slot, client, value):
            self.written.append(("status", value, self.kicked(), self.rings()))
            self.shown.append(slot._cells.status)
            write_status(slot, client, value)

        monkeypatch.setattr(Slot, "write_features", noted_features)
        monkeypatch.setattr(Slot, "write_status", noted_status)

    def device(self, **how):
        self.handles.append(Device.attach(self.name, **how))
        return self.handles[-1]

    def driver(self, **how):
        self.handles.append(Driver.attach(self.name, **how))
        return self.handles[-1]

    @property
    def statuses(self):
        return [entry[1] for entry in self.written if entry[0] == "status"]

    def kicked(self):
        """Whether a kick is pending on the device's doorbell."""
        return bool(select.select([self.coordinator._slots[0].kicks[0].fileno()], [], [], 0)[0])

    def called(self):
        return bool(select.select([self.coordinator._slots[0].calls[0].fileno()], [], [], 0)[0])

    def rings(self):
        """The bytes of the three areas."""
        memory = self.handles[0].memory
        return [memory.read(address, count) for _, address, count in self.plan.layout.areas()]

    def poke_rings(self, fill):
        for _, address, count in self.plan.layout.areas():
            self.handles[0].memory.write(address, fill * count)

    def close(self):
        for handle in reversed(self.handles):
            handle.close()
        self._stop.signal()
        self._thread.join(10)
        self.coordinator.close()
        self._stop.close()


@pytest.fixture
def world(request, tmp_path, monkeypatch):
    """A running coordinator."""
    monkeypatch.setenv("VQSHM_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    made = World(f"spec{os.getpid()}.{abs(hash(request.node.name)) % 10**6}", monkeypatch)
    yield made
    made.close()


@pytest.fixture(scope="session")
def control():
    """The class itself."""
    return Control


@pytest.fixture(scope="session")
def bench():
    """The class itself: each test makes its own, and one for each example of Hypothesis."""
    return Bench


@pytest.fixture(scope="session")
def traces():
    """Every access to shared memory of a few operations, in order: {operation: [[function, area, offset, value], …]}.

    Only the interpreted core can be listened to, so it runs in a process of its own; the compiled one is built from the
    same source, and what its seam adds is read by a test of its own.
    """
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("trace_order.py")],
        env={**os.environ, "VQSHM_PURE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: [tuple(step) for step in steps] for name, steps in json.loads(done.stdout).items()}
