"""Image: a private copy of a split queue, as it stands in memory, and what follows from it [2.7].

Rules
- Only read, never believed. Each shared word is fetched once, and what is derived is derived from the copies, so that
  it cannot change while it is being looked at. If the queue moved meanwhile, all is read anew, a few times at most.
- Nothing here raises for what the areas hold: an impossible index, a loop, an address that does not exist becomes the
  `problem` of its chain or an entry of `problems`.
- Work is bounded by the queue size, whatever the areas hold.

What memory does not tell: each half keeps its own position to itself (the device's next chain to take, the driver's
next one to reap). So a chain that was taken and one that still waits look alike: both are "in flight", offered and not
yet returned. Where chains return out of order, the offers of the last lap are set against its returns; one that is held
for longer than a lap is counted, but its slot has gone to another.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from vqshm import spec
from vqshm.errors import RuleError
from vqshm.memory import atomic
from vqshm.ring import layout as ring_layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqshm.memory import GuestMemory
    from vqshm.ring import SplitLayout

TRIES: Final = 4  # times a moving queue is read anew, to catch it between two steps
_U16: Final = 0xFFFF
_ENTRY: Final = struct.Struct("<QIHH")


class Entry(NamedTuple):
    """One descriptor as it stands in a table: `addr` a guest address, `len` in bytes [2.7.5]."""

    addr: int
    len: int
    flags: int
    next: int

    @property
    def writable(self) -> bool:
        """For the device to write; otherwise for it to read."""
        return bool(self.flags & spec.VIRTQ_DESC_F_WRITE)

    @property
    def indirect(self) -> bool:
        """Whether the buffer is a table of descriptors."""
        return bool(self.flags & spec.VIRTQ_DESC_F_INDIRECT)

    @property
    def following(self) -> int | None:
        """Index of the next descriptor of the chain; None at its end."""
        return self.next if self.flags & spec.VIRTQ_DESC_F_NEXT else None


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain in flight. `position`: u16, of its slot in the available ring. `readable`, `writable`: bytes."""

    position: int
    head: int
    parts: tuple[int, ...]  # indices in the descriptor table, in order
    readable: int
    writable: int
    indirect: int = 0  # entries of its indirect table, 0 without one
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RingImage:
    """A queue of `size` slots. Positions (`…_idx`, `…_event`) are u16 and run freely; a slot is position mod size."""

    size: int
    avail_flags: int
    avail_idx: int
    heads: tuple[int, ...]  # the available ring, by slot
    used_event: int
    used_flags: int
    used_idx: int
    used: tuple[tuple[int, int], ...]  # the used ring, by slot: (id, bytes written)
    avail_event: int
    table: tuple[Entry, ...]
    steady: bool = True  # neither idx moved while it was read
    chains: tuple[Chain, ...] = ()  # in flight, in the order they were offered
    problems: tuple[str, ...] = ()
    owners: dict[int, int] = field(default_factory=dict)  # descriptor → head of the chain in flight it belongs to

    @property
    def claimed(self) -> int:
        """Chains in flight according to the two idx; more than `size` is impossible."""
        return (self.avail_idx - self.used_idx) & _U16

    @property
    def out_of_sight(self) -> int:
        """Chains in flight that are in the ring no more: offered so long ago that others took their slots."""
        return max(0, min(self.claimed, self.size) - len(self.chains))

    @property
    def in_order(self) -> bool:
        """Whether the chains in flight are exactly the last ones offered."""
        return all(chain.position == (self.used_idx + number) & _U16 for number, chain in enumerate(self.chains))


def read_ring(memory: GuestMemory, layout: SplitLayout) -> RingImage:
    """Copy a queue and work out what is in flight. Reads only, so the mapping may be read-only.

    Raises GuestMemory where the areas do not lie in memory, InvalidSize and its like for an impossible layout.
    """
    layout.check()
    tries = 1
    image = _work_out(memory, _copy(memory, layout))
    while _indices(memory, layout) != (image.used_idx, image.avail_idx):
        if tries == TRIES:
            # Read while it ran: the parts are of slightly different moments, so what looks wrong may be right.
            chains = tuple(replace(chain, problem="") for chain in image.chains)
            return replace(image, steady=False, chains=chains, problems=())
        tries += 1
        image = _work_out(memory, _copy(memory, layout))
    return image


def _indices(memory: GuestMemory, layout: SplitLayout) -> tuple[int, int]:
    """used.idx, then avail.idx: in this order never more chains seem returned than were offered."""
    avail = memory.window(layout.avail_ring, spec.AVAIL_HEADER_SIZE, spec.AVAIL_RING_ALIGN)
    used = memory.window(layout.used_ring, spec.USED_HEADER_SIZE, spec.USED_RING_ALIGN)
    return atomic.load_u16(used, ring_layout.IDX), atomic.load_u16(avail, ring_layout.IDX)


def _copy(memory: GuestMemory, layout: SplitLayout) -> RingImage:
    size = layout.size
    avail = memory.window(layout.avail_ring, ring_layout.avail_ring_bytes(size), spec.AVAIL_RING_ALIGN)
    used = memory.window(layout.used_ring, ring_layout.used_ring_bytes(size), spec.USED_RING_ALIGN)
    used_idx, avail_idx = _indices(memory, layout)
    heads = memory.read(layout.avail_ring + ring_layout.RING, spec.AVAIL_ELEMENT_SIZE * size)
    returned = memory.read(layout.used_ring + ring_layout.RING, spec.USED_ELEMENT_SIZE * size)
    table = memory.read(layout.desc_table, ring_layout.desc_table_bytes(size))
    return RingImage(
        size=size,
        avail_flags=atomic.load_u16(avail, ring_layout.FLAGS),
        avail_idx=avail_idx,
        heads=struct.unpack(f"<{size}H", heads),
        used_event=atomic.load_u16(avail, ring_layout.used_event_offset(size)),
        used_flags=atomic.load_u16(used, ring_layout.FLAGS),
        used_idx=used_idx,
        used=tuple(struct.iter_unpack("<II", returned)),
        avail_event=atomic.load_u16(used, ring_layout.avail_event_offset(size)),
        table=entries(table),
    )


def entries(table: bytes) -> tuple[Entry, ...]:
    """Decode a descriptor table; bytes behind the last whole entry are left out."""
    whole = len(table) - len(table) % spec.DESC_SIZE
    return tuple(map(Entry._make, _ENTRY.iter_unpack(table[:whole])))


def _work_out(memory: GuestMemory, image: RingImage) -> RingImage:
    problems = []
    if image.claimed > image.size:
        problems.append(
            f"avail.idx {image.avail_idx} is {image.claimed} ahead of used.idx {image.used_idx}, "
            f"but there are {image.size} slots"
        )
    follower = _Follower(memory, image)
    chains = tuple(follower.chain(position, head) for position, head in in_flight(image))
    problems += [f"chain {chain.head}: {chain.problem}" for chain in chains if chain.problem]
    return replace(image, chains=chains, problems=tuple(problems), owners=follower.owners)


def in_flight(image: RingImage) -> list[tuple[int, int]]:
    """(position, head) of the chains that were offered and not returned, in the order they were offered.

    How many is certain: avail.idx - used.idx. Which ones is certain while the device returns them in order; otherwise
    each offer of the last lap is set against the returns of the last lap.
    """
    count = min(image.claimed, image.size)
    if not count:
        return []
    mask = image.size - 1
    offered: dict[int, int] = {}  # head → how many positions ago it was last offered, 1 is the newest
    balance: dict[int, int] = {}  # head → offers minus returns
    for ago in range(1, image.size + 1):
        head = image.heads[(image.avail_idx - ago) & mask]
        offered.setdefault(head, ago)
        balance[head] = balance.get(head, 0) + 1
    lap = image.size - count  # returns whose offers are still in the ring
    returned: dict[int, int] = {}  # head → how many positions before avail.idx it was last returned
    for ago in range(1, lap + 1):
        head = image.used[(image.used_idx - ago) & mask][0]
        returned.setdefault(head, ago + count)
        balance[head] = balance.get(head, 0) - 1
    # A return at or behind the offer's own position came after it: the device cannot return what was not offered yet.
    open_ = [head for head, ago in offered.items() if ago < returned.get(head, ago + 1)]
    open_.sort(key=lambda head: (balance[head] <= 0, offered[head]))
    newest_last = sorted(open_[:count], key=lambda head: -offered[head])
    return [((image.avail_idx - offered[head]) & _U16, head) for head in newest_last]


class _Follower:
    """Follows chains through the copied table, visiting each descriptor once for all of them."""

    def __init__(self, memory: GuestMemory, image: RingImage) -> None:
        self.owners: dict[int, int] = {}
        self._memory = memory
        self._image = image
        self._budget = 8 * image.size + 1024  # entries of indirect tables that are looked at

    def chain(self, position: int, head: int) -> Chain:
        """The chain that the slot of this position refers to."""
        indices, problem = _walk(self._image.table, head, head, self.owners)
        parts = [self._image.table[index] for index in indices]
        tables = [entry for entry in parts if entry.indirect]
        count = 0
        if tables and not problem:
            inner, problem = self._indirect(tables[0])
            count = tables[0].len // spec.DESC_SIZE
            parts = [entry for entry in parts if not entry.indirect] + inner
        problem = problem or _flaw(parts)
        readable = sum(entry.len for entry in parts if not entry.writable)
        writable = sum(entry.len for entry in parts if entry.writable)
        return Chain(position, head, tuple(indices), readable, writable, count, problem)

    def _indirect(self, entry: Entry) -> tuple[list[Entry], str]:
        """The descriptors that an indirect table chains together, and what is wrong with it [2.7.5.3]."""
        count = entry.len // spec.DESC_SIZE
        if entry.len % spec.DESC_SIZE or not 0 < count <= _U16:
            return [], f"an indirect table of {entry.len} bytes"
        if count > self._budget:
            return [], ""  # not wrong, but nobody looks through all of this
        self._budget -= count
        try:
            table = entries(self._memory.read(entry.addr, entry.len))
        except RuleError:
            return [], f"its indirect table at {entry.addr:#x} is not in memory"
        indices, flaw = _walk(table, 0, 0, {})
        found = [table[index] for index in indices]
        if any(inner.indirect for inner in found):
            flaw = flaw or "holds another one"
        return found, f"its indirect table: {flaw}" if flaw else ""


def _walk(table: Sequence[Entry], start: int, name: int, owners: dict[int, int]) -> tuple[list[int], str]:
    """The indices of a chain and what ends it too early; `owners` grows by them, under the chain's `name`."""
    indices: list[int] = []
    index: int | None = start
    while index is not None:
        if index >= len(table):
            return indices, f"leads to descriptor {index} of {len(table)}"
        if index in owners:
            loop = index in indices
            return indices, f"comes back to descriptor {index}" if loop else f"shares descriptor {index} with another"
        owners[index] = name
        indices.append(index)
        index = table[index].following
    return indices, ""


def _flaw(parts: Sequence[Entry]) -> str:
    """What a device would refuse in these descriptors, or nothing."""
    seen_writable = False
    for entry in parts:
        if seen_writable and not entry.writable:
            return "a readable descriptor behind a writable one"
        seen_writable = entry.writable
    return ""
