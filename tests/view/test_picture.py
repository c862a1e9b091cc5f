"""The drawing: what a known queue looks like, and that whatever stands in memory can be drawn."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout
from vqshm.view import draw

BASE = 0x4000_0000
BUFFERS = BASE + 0x1_0000


def queue(size: int, offered: int, returned: int, *, event_idx: bool = True):
    """Memory and layout after that many chains of one readable and one writable buffer."""
    memory = GuestMemory([(BASE, bytearray(1 << 17))])
    layout = SplitLayout.at(BASE, size)
    config = QueueConfig(layout, event_idx=event_idx)
    driver, device = config.driver(memory), config.device(memory)
    for i in range(offered):
        driver.add([(BUFFERS + 0x100 * (i % 16), 64)], [(BUFFERS + 0x2000, 4096)])
        chain = device.pop()
        if i < returned:
            device.add_used(chain.head_index, 12)
            driver.reap()
    device.enable_notification()
    driver.enable_notification()
    return memory, layout


WHOLE = """\
2 chains in flight, 4 of 8 descriptors

        available ring         used ring
      ╭──────────────────╮   ╭───────────────────╮
      │ flags          0 │   │ flags           0 │   descriptor table
      │ idx            3 │   │ idx             1 │ ╭───────────────────────────╮
      ├──────────────────┤   ├───────────────────┤ │   address    length  next │
      │    head          │   │     id  written   │ ├───────────────────────────┤
    0 │       0          │   │      0      12 B  │ │ ● 0x40010100     64 R →1  │
    1 │ ●     0          │uU▸│      ·            │ │ ● 0x40012000   4096 W     │
    2 │ ●     2          │   │      ·            │ │ ● 0x40010200     64 R →3  │
aA▸ 3 │       ·          │   │      ·            │ │ ● 0x40012000   4096 W     │
    4 │       ·          │   │      ·            │ │   ·               ·       │
    5 │       ·          │   │      ·            │ │   ·               ·       │
    6 │       ·          │   │      ·            │ │   ·               ·       │
    7 │       ·          │   │      ·            │ │   ·               ·       │
      ├──────────────────┤   ├───────────────────┤ ╰───────────────────────────╯
      │ used_event     1 │   │ avail_event     3 │   driver writes
      ╰──────────────────╯   ╰───────────────────╯
        driver writes          device writes

avail_event 3: the next chain offered kicks the device
used_event 1: the next chain returned calls the driver

in flight, oldest first, with what the device may do:
● position 1: chain 0 → 1  read 64 B, write 4,096 B
● position 2: chain 2 → 3  read 64 B, write 4,096 B

● in flight   A avail.idx: the driver's next slot
U used.idx: the device's next slot   a avail_event   u used_event
R device reads   W device writes"""


def test_a_small_queue_is_drawn_whole():
    assert draw(*queue(8, 3, 1)) == WHOLE


STRIPS = """\
3 chains in flight, 6 of 64 descriptors

             64 slots
available    ··················███···········································
                                  A
                                  a
used         ································································
                               U
                               u
descriptors  ██████··························································

avail_event 149: the next chain offered kicks the device
used_event 146: the next chain returned calls the driver"""


def test_a_large_queue_is_drawn_as_strips():
    assert draw(*queue(64, 149, 146), compact=True) == STRIPS


def test_one_sign_stands_for_several_slots():
    lines = draw(*queue(1024, 100, 0)).splitlines()
    assert "1024 slots, 16 to a sign" in lines[2]
    assert lines[3].startswith("available    ██████░···")


def test_where_three_boxes_do_not_fit_they_are_stacked_and_then_given_up():
    where = queue(8, 3, 1)
    assert "╭" in draw(*where, width=60)
    assert "╭" not in draw(*where, width=45)


def test_without_event_idx_the_flags_speak():
    memory, layout = queue(8, 1, 0, event_idx=False)
    memory.write(layout.avail_ring, b"\1\0")
    text = draw(memory, layout, event_idx=False)
    assert "used.flags 0: the device wants to be kicked" in text
    assert "avail.flags 1: the driver asks for no calls" in text
    assert "a▸" not in text


def test_before_negotiation_nothing_is_said_about_wakeups():
    assert "nothing is agreed yet" in draw(*queue(8, 0, 0), event_idx=None)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (3, "avail_event 3: the next chain offered"),
        (4, "avail_event 4: the 2nd next chain offered"),
        (5, "the 3rd next"),
        (6, "the 4th next"),
        (2, "avail_event 2 lies behind avail.idx: no kick is wanted"),
    ],
)
def test_an_event_is_told_in_words(event, words):
    memory, layout = queue(8, 3, 1)
    memory.write(layout.used_ring + 4 + 8 * 8, struct.pack("<H", event))
    assert words in draw(memory, layout)


def test_what_cannot_be_is_marked():
    memory, layout = queue(8, 3, 1)
    memory.write(layout.avail_ring + 4 + 2, struct.pack("<H", 4711))
    memory.write(layout.used_ring + 4, struct.pack("<II", 0xFFFF_FFFF, 0xFFFF_FFFF))
    memory.write(layout.desc_table + 32, struct.pack("<QIHH", (1 << 64) - 1, 0xFFFF_FFFF, 1, 60_000))
    text = draw(memory, layout)
    assert "│ !  4711" in text
    assert "→!" in text
    assert "! chain 4711: leads to descriptor 4711 of 8" in text
    assert "! chain 2: leads to descriptor 60000 of 8" in text
    assert "! impossible" in text


@given(
    order=st.integers(0, 6),
    garbage=st.binary(max_size=2048),
    idx=st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    event_idx=st.sampled_from([True, False, None]),
    width=st.integers(1, 140),
    compact=st.booleans(),
)
def test_whatever_stands_in_memory_is_drawn_and_fits(order, garbage, idx, event_idx, width, compact):
    size = 1 << order
    layout = SplitLayout.at(BASE, size)
    content = bytearray((garbage * (8192 // max(len(garbage), 1) + 1))[:8192].ljust(8192, b"\0"))
    struct.pack_into("<H", content, layout.avail_ring - BASE + 2, idx[0])
    struct.pack_into("<H", content, layout.used_ring - BASE + 2, idx[1])
    before = bytes(content)
    text = draw(GuestMemory([(BASE, content)]), layout, event_idx=event_idx, width=width, compact=compact)
    assert max(map(len, text.splitlines())) <= max(width, 20)
    assert bytes(content) == before  # looking changes nothing


@pytest.mark.parametrize("size", [1 << order for order in range(16)])
def test_every_size_can_be_drawn(size):
    layout = SplitLayout.at(BASE, size)
    memory = GuestMemory([(BASE, bytearray(layout.end - BASE))])
    for width in (20, 40, 80, 200):
        assert max(map(len, draw(memory, layout, width=width).splitlines())) <= width
