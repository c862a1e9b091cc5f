# cython: nonecheck=False, initializedcheck=False
"""The split virtqueue: how its two halves share one guest memory, and what both need [2.7].

    driver owns                                           device owns
    descriptor table   addr len flags next
    available ring     flags idx ring[] used_event        used ring   flags idx ring[] avail_event

Each half writes only what it owns, publishes with one release store of its idx, and reads the other's idx with one
acquire load; positions run freely through 0..65535 and are masked only to find a slot. So neither half ever waits for
the other.

Two rules:

1. Nothing shared is believed. A word of the other side is fetched once and the copy is checked before use; what a half
   needs to know later it keeps in private memory (the shadow) and never reads back.
2. Whoever sees the other side break a rule raises it as a `PeerViolation`, once, and the queue is broken from then on:
   to take, return, offer, reap or arm raises `QueueBroken` until a reset. Other queues do not notice.

Notification suppression [2.7.7, 2.7.10]: "arm, fence, look again" by whoever is about to sleep, "publish, fence, ask"
by whoever has published. The two fences make it impossible that both overlook the other.

The halves are `split_device` and `split_driver`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from vqshm.errors import QueueBroken, RuleError, VqshmError, blame_peer
from vqshm.memory import atomic
from vqshm.ring import layout as ring_layout

if TYPE_CHECKING:
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.ring.layout import SplitLayout


class Half:
    """What both halves share: the windows over the three areas, and being broken."""

    __slots__ = (
        "_avail",
        "_avail_event",
        "_desc",
        "_mask",
        "_used",
        "_used_event",
        "_windows",
        "broken",
        "event_idx",
        "memory",
        "name",
        "size",
    )

    def __init__(self, memory: Memory, layout: SplitLayout, event_idx: bool, name: str) -> None:
        self.name = name
        self.broken: VqshmError | None = None
        self.bind(memory, layout, event_idx)

    def bind(self, memory: Memory, layout: SplitLayout, event_idx: bool) -> None:
        """Use these areas from now on; positions stay as they are."""
        self.memory = memory
        self.size = layout.size
        self._mask = layout.size - 1
        self.event_idx = event_idx
        self._used_event = ring_layout.used_event_offset(layout.size)  # in the available ring
        self._avail_event = ring_layout.avail_event_offset(layout.size)  # in the used ring
        desc = memory.window(layout.desc_table, ring_layout.desc_table_bytes(layout.size), 16)
        avail = memory.window(layout.avail_ring, ring_layout.avail_ring_bytes(layout.size), 2)
        used = memory.window(layout.used_ring, ring_layout.used_ring_bytes(layout.size), 4)
        self._desc = atomic.span_of(desc)
        self._avail = atomic.span_of(avail)
        self._used = atomic.span_of(used)
        self._windows = (desc, avail, used)  # to which a span holds no reference

    def avail_idx(self) -> int:
        """The idx field of the available ring, as it stands in memory."""
        return atomic.load_u16(self._avail, ring_layout.IDX)

    def used_idx(self) -> int:
        """The idx field of the used ring, as it stands in memory."""
        return atomic.load_u16(self._used, ring_layout.IDX)

    def _violation(self, error: RuleError) -> VqshmError:
        """The other side broke a rule: stop this queue, and return what to raise."""
        error.facts.setdefault("queue", self.name)
        error.args = (f"{self.name}: {error}",)
        self.broken = blame_peer(error)  # never raised itself: a traceback would keep frames, and these the memory
        return blame_peer(error)

    def _refuse(self) -> NoReturn:
        raise QueueBroken(f"{self.name} stopped at: {self.broken}; reset it to go on", queue=self.name) from self.broken
