"""Queues as users meet them: a configuration that becomes one half, and `Queue`, as in the Rust crate `virtio-queue`.

`QueueConfig` is checked once, when it is activated, and yields a `DeviceQueue` or a `DriverQueue`: the way of the host
layer.

`Queue` keeps the seed's words and its behaviour for a device author who configures a queue register by register:
setters may come in any order and ignore what is not acceptable (their `try_` forms raise), and every operation takes
the memory it works on. Underneath runs the same `DeviceQueue`, in seed policy unless `strict=True`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vqshm import spec
from vqshm.errors import (
    AddressOverflow,
    InvalidAvailRingAlign,
    InvalidDescTableAlign,
    InvalidMaxSize,
    InvalidSize,
    InvalidUsedRingAlign,
    QueueNotReady,
    RuleError,
)
from vqshm.ring.inflight import Inflight
from vqshm.ring.layout import SplitLayout, is_queue_size
from vqshm.ring.split_device import AvailIter, DeviceQueue
from vqshm.ring.split_driver import DriverQueue
from vqshm.ring.state import QueueState

if TYPE_CHECKING:
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.ring.chain import DescriptorChain
    from vqshm.ring.tries import Tries


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """Everything two halves must agree on, before either runs."""

    layout: SplitLayout
    event_idx: bool = False
    indirect: bool = False
    name: str = "queue"

    def check(self, memory: Memory) -> None:
        """Raise the named error of the first rule broken: size, alignment, overlap, areas not in memory [2.7]."""
        self.layout.check()
        for _, start, size in self.layout.areas():
            memory.check(start, size)

    def device(
        self, memory: Memory, *, strict: bool = True, inflight: int | None = None, tries: Tries | None = None
    ) -> DeviceQueue:
        """The device half; `inflight`: the address of its in-flight area, if it has one. Raises as `check`.

        `tries`: where it counts, besides, how often chains were handed out.
        """
        self.check(memory)
        return DeviceQueue(
            memory,
            self.layout,
            event_idx=self.event_idx,
            indirect=self.indirect,
            strict=strict,
            inflight=None if inflight is None else Inflight(memory, inflight, self.layout.size, tries),
            name=self.name,
        )

    def driver(self, memory: Memory, *, indirect_tables: tuple[int, int] | None = None) -> DriverQueue:
        """The driver half; `indirect_tables` as `DriverQueue` takes them, used if `indirect`. Raises as `check`."""
        self.check(memory)
        return DriverQueue(
            memory,
            self.layout,
            event_idx=self.event_idx,
            indirect_tables=indirect_tables if self.indirect else None,
            name=self.name,
        )


class Queue:
    """A virtqueue seen from the device, configured register by register: `virtio-queue`'s `Queue`.

    `max_size`: the largest size the device offers. Raises InvalidMaxSize.
    """

    def __init__(self, max_size: int, *, strict: bool = False, name: str = "queue") -> None:
        if not is_queue_size(max_size):
            raise InvalidMaxSize(f"max_size {max_size} is not a power of two in 1..{spec.MAX_QUEUE_SIZE}")
        self.max_size = max_size
        self.strict = strict
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Back to the state of a fresh queue of the same `max_size`."""
        self._ready = False
        self._event_idx = False
        self._layout = SplitLayout(self.max_size, 0, 0, 0)
        self._half: DeviceQueue | None = None
        self._memory: Memory | None = None
        self._next_avail = 0
        self._next_used = 0

    @contextmanager
    def lock(self) -> Iterator[Queue]:
        """Itself: a plain queue belongs to one thread. `QueueSync.lock` is the one that locks."""
        yield self

    # -- configuration -------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Descriptors in the table; `max_size` until the driver chose less."""
        return self._layout.size

    @property
    def desc_table(self) -> int:
        """Guest address of the descriptor table."""
        return self._layout.desc_table

    @property
    def avail_ring(self) -> int:
        """Guest address of the available ring."""
        return self._layout.avail_ring

    @property
    def used_ring(self) -> int:
        """Guest address of the used ring."""
        return self._layout.used_ring

    @property
    def ready(self) -> bool:
        """Whether the driver finished the configuration."""
        return self._ready

    @property
    def event_idx_enabled(self) -> bool:
        """Whether VIRTIO_F_EVENT_IDX was negotiated."""
        return self._event_idx

    def set_ready(self, ready: bool) -> None:
        """Mark the configuration finished, or not."""
        self._ready = bool(ready)

    def set_event_idx(self, enabled: bool) -> None:
        """Use event indices for notification suppression."""
        self._event_idx = bool(enabled)
        self._rebind()

    def try_set_size(self, size: int) -> None:
        """Set the queue size. Raises InvalidSize; nothing changes then."""
        if not is_queue_size(size, self.max_size):
            raise InvalidSize(f"{self.name}: size {size} is not a power of two in 1..{self.max_size}", size=size)
        self._set_layout(size=size)

    def try_set_desc_table_address(self, address: int) -> None:
        """Set the guest address of the descriptor table. Raises InvalidDescTableAlign; nothing changes then."""
        if address % spec.DESC_TABLE_ALIGN:
            raise InvalidDescTableAlign(f"{self.name}: descriptor table {address:#x} is not aligned to 16")
        self._set_layout(desc_table=address)

    def try_set_avail_ring_address(self, address: int) -> None:
        """Set the guest address of the available ring. Raises InvalidAvailRingAlign; nothing changes then."""
        if address % spec.AVAIL_RING_ALIGN:
            raise InvalidAvailRingAlign(f"{self.name}: available ring {address:#x} is not aligned to 2")
        self._set_layout(avail_ring=address)

    def try_set_used_ring_address(self, address: int) -> None:
        """Set the guest address of the used ring. Raises InvalidUsedRingAlign; nothing changes then."""
        if address % spec.USED_RING_ALIGN:
            raise InvalidUsedRingAlign(f"{self.name}: used ring {address:#x} is not aligned to 4")
        self._set_layout(used_ring=address)

    def set_size(self, size: int) -> bool:
        """`try_set_size` as a register write: what is not acceptable changes nothing. Returns whether it was taken."""
        return self._forgiving(self.try_set_size, size)

    def set_desc_table_address(self, low: int | None = None, high: int | None = None) -> bool:
        """Write the low and/or high 32 bits of the address; None keeps that half. Returns whether it was taken."""
        return self._forgiving(self.try_set_desc_table_address, _join(self.desc_table, low, high))

    def set_avail_ring_address(self, low: int | None = None, high: int | None = None) -> bool:
        """Write the low and/or high 32 bits of the address; None keeps that half. Returns whether it was taken."""
        return self._forgiving(self.try_set_avail_ring_address, _join(self.avail_ring, low, high))

    def set_used_ring_address(self, low: int | None = None, high: int | None = None) -> bool:
        """Write the low and/or high 32 bits of the address; None keeps that half. Returns whether it was taken."""
        return self._forgiving(self.try_set_used_ring_address, _join(self.used_ring, low, high))

    def is_valid(self, memory: Memory) -> bool:
        """Whether the queue is ready and its three areas exist in `memory`."""
        return self._ready and all(memory.check_range(start, size) for _, start, size in self._layout.areas())

    def state(self) -> QueueState:
        """The plain numbers that describe this queue."""
        return QueueState(
            max_size=self.max_size,
            next_avail=self.next_avail,
            next_used=self.next_used,
            event_idx_enabled=self._event_idx,
            ready=self._ready,
            **self._layout._asdict(),
        )

    @classmethod
    def from_state(cls, state: QueueState, *, strict: bool = False, name: str = "queue") -> Queue:
        """A queue that goes on where `state` was taken; the state is untrusted.

        Raises InvalidMaxSize, InvalidSize, InvalidDescTableAlign, InvalidAvailRingAlign, InvalidUsedRingAlign.
        """
        queue = cls(state.max_size, strict=strict, name=name)
        queue.set_next_avail(state.next_avail)
        queue.set_next_used(state.next_used)
        queue.set_event_idx(state.event_idx_enabled)
        queue.try_set_size(state.size)
        queue.set_ready(state.ready)
        queue.try_set_desc_table_address(state.desc_table)
        queue.try_set_avail_ring_address(state.avail_ring)
        queue.try_set_used_ring_address(state.used_ring)
        return queue

    # -- positions -----------------------------------------------------------------------------------------------------

    @property
    def next_avail(self) -> int:
        """Position of the next chain to take, u16."""
        return self._half.next_avail if self._half is not None else self._next_avail

    @property
    def next_used(self) -> int:
        """Position of the next used element, u16."""
        return self._half.next_used if self._half is not None else self._next_used

    def set_next_avail(self, position: int) -> None:
        """Go on taking at `position` (u16). Raises ValueError."""
        self._next_avail = _position(position)
        if self._half is not None:
            self._half.seek(self._next_avail, self._half.next_used)

    def set_next_used(self, position: int) -> None:
        """Go on returning at `position` (u16). Raises ValueError."""
        self._next_used = _position(position)
        if self._half is not None:
            self._half.seek(self._half.next_avail, self._next_used)

    def go_to_previous_position(self) -> None:
        """Undo the last advance of `next_avail`: that chain will be taken again."""
        if self._half is not None:
            self._half.go_to_previous_position()
        else:
            self._next_avail = (self._next_avail - 1) & 0xFFFF

    # -- operation -----------------------------------------------------------------------------------------------------

    def avail_idx(self, memory: Memory) -> int:
        """The idx field of the available ring. Raises GuestMemory, AddressOverflow."""
        return self._on(memory).avail_idx()

    def used_idx(self, memory: Memory) -> int:
        """The idx field of the used ring. Raises GuestMemory, AddressOverflow."""
        return self._on(memory).used_idx()

    def pop_descriptor_chain(self, memory: Memory) -> DescriptorChain | None:
        """Take the next available chain; None if there is none or, in seed policy, if it cannot be had."""
        try:
            return next(self.iter(memory), None)
        except (RuleError, QueueNotReady):
            if self.strict:
                raise
            return None

    def iter(self, memory: Memory) -> AvailIter:
        """An iterator that takes the chains available at this moment.

        Raises QueueNotReady, InvalidAvailRingIndex, GuestMemory, AddressOverflow.
        """
        if not self._ready or self.avail_ring == 0:
            raise QueueNotReady(f"{self.name} is not ready", queue=self.name)
        return AvailIter(self._on(memory))

    def add_used(self, memory: Memory, head_index: int, written: int) -> None:
        """Return a chain with the number of bytes written.

        Raises InvalidDescriptorIndex, GuestMemory, AddressOverflow.
        """
        self._on(memory).add_used(head_index, written)

    def needs_notification(self, memory: Memory) -> bool:
        """Whether the driver must be called now. Raises GuestMemory, AddressOverflow."""
        return self._on(memory).needs_notification()

    def enable_notification(self, memory: Memory) -> bool:
        """Ask to be kicked; True if chains are waiting already. Raises GuestMemory, AddressOverflow."""
        return self._on(memory).enable_notification()

    def disable_notification(self, memory: Memory) -> None:
        """Ask not to be kicked. Raises GuestMemory, AddressOverflow."""
        self._on(memory).disable_notification()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _on(self, memory: Memory) -> DeviceQueue:
        """The running half on `memory`: made once, and again when configuration or memory changed."""
        if self._half is None:
            self._half = DeviceQueue(
                memory, self._layout, event_idx=self._event_idx, strict=self.strict, name=self.name
            )
            self._half.seek(self._next_avail, self._next_used)
        elif self._memory is not memory:
            self._half.bind(memory, self._layout, self._event_idx)
        self._memory = memory
        return self._half

    def _set_layout(self, **change: int) -> None:
        for name, value in change.items():
            if value >> 64:
                raise AddressOverflow(f"{self.name}: {name} {value:#x} is not a 64-bit address", address=value)
        self._layout = self._layout._replace(**change)
        self._rebind()

    def _rebind(self) -> None:
        if self._half is not None and self._memory is not None:
            self._half.bind(self._memory, self._layout, self._event_idx)

    @staticmethod
    def _forgiving(setter: Callable[[int], None], value: int) -> bool:
        try:
            setter(value)
        except RuleError:
            return False
        return True


def _position(value: int) -> int:
    if value >> 16:
        raise ValueError(f"position {value} must lie in 0..65535")
    return value


def _join(address: int, low: int | None, high: int | None) -> int:
    """`address` with its low and/or high 32 bits replaced. Raises ValueError for a half that has more."""
    low = address & 0xFFFF_FFFF if low is None else low
    high = address >> 32 if high is None else high
    if (low | high) >> 32:
        raise ValueError(f"half an address has 32 bits: low {low:#x}, high {high:#x}")
    return (high << 32) | low
