"""What a copy of a queue tells: who is in flight, in which order, and what makes no sense."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vqshm.errors import GuestMemory as OutsideError
from vqshm.errors import InvalidSize
from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout
from vqshm.view import image as image_module
from vqshm.view.image import read_ring

BASE = 0x4000_0000
BUFFERS = BASE + 0x8000
TABLES = BASE + 0xC000


class Pair:
    """Both halves over a bytearray."""

    def __init__(self, size: int, *, indirect: bool = False, event_idx: bool = True) -> None:
        self.bytes = bytearray(1 << 16)
        self.memory = GuestMemory([(BASE, self.bytes)])
        self.layout = SplitLayout.at(BASE, size)
        config = QueueConfig(self.layout, event_idx=event_idx, indirect=indirect)
        self.driver = config.driver(self.memory, indirect_tables=(TABLES, 4) if indirect else None)
        self.device = config.device(self.memory)

    def image(self):
        return read_ring(self.memory, self.layout)

    def put(self, address: int, form: str, *values: int) -> None:
        struct.pack_into(f"<{form}", self.bytes, address - BASE, *values)


def heads(image) -> list[int]:
    return [chain.head for chain in image.chains]


def test_a_fresh_queue_has_nothing_in_flight():
    image = Pair(8).image()
    assert (image.chains, image.problems, image.claimed, image.steady) == ((), (), 0, True)


def test_what_was_offered_is_in_flight_until_it_is_returned():
    pair = Pair(8)
    first = pair.driver.add([(BUFFERS, 10)])
    second = pair.driver.add([(BUFFERS, 7)], [(BUFFERS + 64, 100), (BUFFERS + 256, 5)])
    chains = pair.image().chains
    assert [(chain.head, chain.position) for chain in chains] == [(first, 0), (second, 1)]
    assert (chains[1].readable, chains[1].writable, len(chains[1].parts)) == (7, 105, 3)
    assert pair.image().owners == {first: first, **dict.fromkeys(chains[1].parts, second)}

    taken = pair.device.pop_head()
    assert heads(pair.image()) == [first, second]  # being taken leaves no trace in memory
    pair.device.add_used(taken, 0)
    assert heads(pair.image()) == [second]


def test_unpublished_chains_are_not_in_flight():
    pair = Pair(4)
    pair.driver.add([(BUFFERS, 1)], publish=False)
    assert pair.image().chains == ()


def test_a_device_may_return_chains_in_any_order():
    pair = Pair(4)
    offered = [pair.driver.add([(BUFFERS, 1 + i)]) for i in range(3)]
    for _ in range(3):
        pair.device.pop()
    pair.device.add_used(offered[1], 0)
    image = pair.image()
    assert heads(image) == [offered[0], offered[2]]
    assert not image.in_order


def test_an_indirect_table_is_looked_into():
    pair = Pair(4, indirect=True)
    pair.driver.add([(BUFFERS, 7)], [(BUFFERS + 64, 100)])
    (chain,) = pair.image().chains
    assert (chain.indirect, chain.readable, chain.writable, len(chain.parts)) == (2, 7, 100, 1)


@given(
    size=st.sampled_from([1, 2, 4, 8, 16]),
    laps=st.sampled_from([0, 1, -1]),
    steps=st.lists(st.sampled_from("ooor"), max_size=80),
)
def test_in_order_it_is_always_exact(size, laps, steps):
    """Seen as if some laps had been driven before, so that the positions wrap around 65535, too."""
    pair = Pair(size)
    flying: list[int] = []
    for step in steps:
        if step == "o" and pair.driver.num_free:
            flying.append(pair.driver.add([(BUFFERS, 1)]))
        elif step == "r" and flying:
            pair.device.add_used(pair.device.pop_head(), 0)
            pair.driver.reap()
            flying.pop(0)
        later = bytearray(pair.bytes)
        for ring in (pair.layout.avail_ring, pair.layout.used_ring):
            (idx,) = struct.unpack_from("<H", later, ring + 2 - BASE)
            struct.pack_into("<H", later, ring + 2 - BASE, (idx + laps * size) & 0xFFFF)
        image = read_ring(GuestMemory([(BASE, later)]), pair.layout)
        assert heads(image) == flying
        assert image.in_order
        assert image.problems == ()


@given(st.lists(st.one_of(st.just(-1), st.integers(0, 7)), max_size=60))
@example([*[-1] * 8, 1, -1])  # a chain held so long that its slot in the available ring is taken by another
def test_out_of_order_the_number_is_exact_and_so_is_the_first_lap(steps):
    pair = Pair(8)
    flying: list[int] = []
    offered = 0
    for step in steps:
        if step < 0:
            if pair.driver.num_free:
                flying.append(pair.driver.add([(BUFFERS, 1)]))
                pair.device.pop_head()
                offered += 1
        elif flying:
            pair.device.add_used(flying.pop(step % len(flying)), 0)
            pair.driver.reap()
        image = pair.image()
        found = heads(image)
        assert len(found) + image.out_of_sight == len(flying)
        if offered <= 8:
            assert found == flying


def test_a_queue_that_never_holds_still_is_told_and_accused_of_nothing(monkeypatch):
    pair = Pair(4)
    pair.driver.add([(BUFFERS, 1)])
    pair.put(pair.layout.desc_table, "QIHH", BUFFERS, 1, 1, 99)
    assert pair.image().problems
    copy, copies = image_module._copy, []

    def moves(memory, layout):
        copies.append(copy(memory, layout))
        pair.device.add_used(pair.device.pop_head(), 0)
        pair.driver.reap()
        pair.driver.add([(BUFFERS, 1)])
        return copies[-1]

    monkeypatch.setattr(image_module, "_copy", moves)
    image = pair.image()
    assert not image.steady
    assert image.problems == ()
    assert len(copies) == image_module.TRIES


# -- what no correct driver or device writes ---------------------------------------------------------------------------


def full(pair: Pair) -> None:
    for _ in range(pair.layout.size):
        pair.driver.add([(BUFFERS, 1)])


def test_an_impossible_head_is_named():
    pair = Pair(4)
    full(pair)
    pair.put(pair.layout.avail_ring + 4 + 2, "H", 77)
    image = pair.image()
    assert any("descriptor 77 of 4" in problem for problem in image.problems)


def test_more_in_flight_than_there_are_slots_is_named():
    pair = Pair(4)
    pair.put(pair.layout.avail_ring + 2, "H", 9)
    image = pair.image()
    assert image.claimed == 9
    assert len(image.chains) <= 4
    assert "9 ahead of used.idx 0" in image.problems[0]


@pytest.mark.parametrize(
    ("descriptors", "what"),
    [
        ([(BUFFERS, 1, 1, 0)], "comes back to descriptor 0"),
        ([(BUFFERS, 1, 1, 9)], "leads to descriptor 9 of 4"),
        ([(BUFFERS, 1, 3, 1), (BUFFERS, 1, 0, 0)], "a readable descriptor behind a writable one"),
        ([(TABLES, 15, 4, 0)], "an indirect table of 15 bytes"),
        ([(TABLES, 0, 4, 0)], "an indirect table of 0 bytes"),
        ([(0x10, 16, 4, 0)], "its indirect table at 0x10 is not in memory"),
        ([((1 << 64) - 16, 32, 4, 0)], "is not in memory"),
        ([(BUFFERS + 0x100, 32, 4, 0)], "its indirect table: comes back to descriptor 0"),
        ([(BUFFERS + 0x200, 16, 4, 0)], "its indirect table: holds another one"),
    ],
)
def test_a_broken_chain_is_named(descriptors, what):
    pair = Pair(4)
    pair.driver.add([(BUFFERS, 1)])
    for index, fields in enumerate(descriptors):
        pair.put(pair.layout.desc_table + 16 * index, "QIHH", *fields)
    pair.put(BUFFERS + 0x100, "QIHH", BUFFERS, 1, 1, 0)
    pair.put(BUFFERS + 0x200, "QIHH", BUFFERS, 16, 4, 0)
    (chain,) = pair.image().chains
    assert what in chain.problem


def test_two_chains_that_share_a_descriptor_are_named():
    pair = Pair(4)
    first, second = pair.driver.add([(BUFFERS, 1)]), pair.driver.add([(BUFFERS, 1)])
    pair.put(pair.layout.desc_table + 16 * second, "QIHH", BUFFERS, 1, 1, first)
    assert pair.image().problems == (f"chain {second}: shares descriptor {first} with another",)


def test_a_huge_queue_of_indirect_tables_does_not_take_for_ever():
    """Every descriptor refers to the largest table there is: nobody reads all of them."""
    size = 4096
    layout = SplitLayout.at(BASE, size)
    memory = bytearray(1 << 21)
    table = layout.end
    for index in range(size):
        struct.pack_into("<QIHH", memory, 16 * index, table, 65_535 * 16, 4, 0)
        struct.pack_into("<H", memory, layout.avail_ring - BASE + 4 + 2 * index, index)
    struct.pack_into("<H", memory, layout.avail_ring - BASE + 2, size)
    assert len(read_ring(GuestMemory([(BASE, memory)]), layout).chains) == size


def test_the_layout_is_the_callers():
    memory = GuestMemory([(BASE, bytearray(4096))])
    with pytest.raises(InvalidSize):
        read_ring(memory, SplitLayout(3, BASE, BASE + 64, BASE + 128))
    with pytest.raises(OutsideError):
        read_ring(memory, SplitLayout.at(BASE + 4000, 8))


def test_a_read_only_buffer_will_do():
    pair = Pair(4)
    pair.driver.add([(BUFFERS, 1)])
    frozen = GuestMemory([(BASE, memoryview(bytes(pair.bytes)))])
    assert heads(read_ring(frozen, pair.layout)) == [0]
