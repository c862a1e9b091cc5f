"""Where the three areas lie: sizes and alignments of the specification, and no shared byte [2.7]."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import errors
from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout
from vqshm.ring import layout as ring_layout

SIZES = [1 << shift for shift in range(16)]
GOOD = SplitLayout(8, 0x1000, 0x2000, 0x3000)


def test_a_queue_size_is_a_power_of_two_up_to_32768():
    assert [size for size in range(-5, 70_000) if ring_layout.is_queue_size(size)] == SIZES
    assert [size for size in range(70_000) if ring_layout.is_queue_size(size, 256)] == SIZES[:9]
    assert not ring_layout.is_queue_size(2**70)


@pytest.mark.parametrize("size", SIZES)
def test_areas_have_the_bytes_and_the_alignment_of_the_specification(size):
    layout = SplitLayout.at(0x1_0001, size)
    layout.check()
    (_, desc, desc_bytes), (_, avail, avail_bytes), (_, used, used_bytes) = layout.areas()
    assert (desc_bytes, avail_bytes, used_bytes) == (16 * size, 6 + 2 * size, 6 + 8 * size)
    assert (desc % 16, avail % 2, used % 4) == (0, 0, 0)
    assert desc >= 0x1_0001
    assert layout.end >= used + used_bytes
    assert ring_layout.used_event_offset(size) == avail_bytes - 2
    assert ring_layout.avail_event_offset(size) == used_bytes - 2


@pytest.mark.parametrize("size", SIZES)
def test_what_the_two_sides_write_shares_no_cache_line(size):
    layout = SplitLayout.at(0x1_0040, size)
    areas = sorted((start, start + count) for _, start, count in layout.areas())
    for (_, end), (start, _) in itertools.pairwise(areas):
        assert (end - 1) // 64 < start // 64
    assert layout.end % 64 == 0


@pytest.mark.fault("A23")
@pytest.mark.parametrize("size", [0, 3, 6, 100, 32767, 32769, 65535, 65536, -8, 2**70])
def test_a_size_that_cannot_be_is_refused(size):
    with pytest.raises(errors.InvalidSize):
        SplitLayout.at(0, size)
    with pytest.raises(errors.InvalidSize):
        GOOD._replace(size=size).check()


@pytest.mark.parametrize("wrong", [None, "8", 8.0, b"8"])
def test_wrong_types_are_refused(wrong):
    for make in (lambda: SplitLayout.at(0, wrong), lambda: SplitLayout.at(wrong, 8)):
        with pytest.raises(TypeError):
            make()


@pytest.mark.fault("A23")
@pytest.mark.parametrize(
    ("change", "error"),
    [
        *(({"desc_table": 0x1000 + off}, errors.InvalidDescTableAlign) for off in (1, 2, 4, 8, 15)),
        ({"avail_ring": 0x2001}, errors.InvalidAvailRingAlign),
        *(({"used_ring": 0x3000 + off}, errors.InvalidUsedRingAlign) for off in (1, 2, 3)),
        ({"avail_ring": 0x1000}, errors.RingOverlap),
        ({"avail_ring": 0x107E}, errors.RingOverlap),
        ({"used_ring": 0x2014}, errors.RingOverlap),
        ({"used_ring": 0x1FC0}, errors.RingOverlap),
        ({"desc_table": 0x2FF0}, errors.RingOverlap),
        ({"used_ring": 2**64 - 16}, errors.AddressOverflow),
        ({"desc_table": 2**70}, errors.AddressOverflow),
    ],
)
def test_areas_that_cannot_be_are_refused_by_name(change, error):
    """A23: before a queue runs, and by both halves."""
    layout = GOOD._replace(**change)
    config = QueueConfig(layout)
    memory = GuestMemory([(0, bytearray(0x8000))])
    with pytest.raises(error):
        layout.check()
    for start in (config.check, config.device, config.driver):
        with pytest.raises(error):
            start(memory)


@pytest.mark.parametrize(
    "layout",
    [SplitLayout(1, 0, 16, 24), SplitLayout(8, 0x1000, 0x1080, 0x1098), SplitLayout(8, 0x1080, 0x1046, 0x1000)],
)
def test_areas_may_touch_and_come_in_any_order(layout):
    layout.check()
    memory = GuestMemory([(0, bytearray(0x8000))])
    config = QueueConfig(layout)
    driver, device = config.driver(memory), config.device(memory)
    token = driver.add([(0x4000, 1)])
    device.add_used(device.pop().head_index, 0)
    assert driver.reap() == (token, 0)


def overlaps(layout):
    cells = [set(range(start, start + count)) for _, start, count in layout.areas()]
    return bool(cells[0] & cells[1] or cells[0] & cells[2] or cells[1] & cells[2])


@pytest.mark.fault("A23")
@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 20), st.integers(0, 160), st.integers(0, 80))
def test_an_overlap_is_found_wherever_two_areas_share_a_byte(size, desc, avail, used):
    layout = SplitLayout(size, 16 * desc, 2 * avail, 4 * used)
    if overlaps(layout):
        with pytest.raises(errors.RingOverlap):
            layout.check()
    else:
        layout.check()


@pytest.mark.fault("A23")
@pytest.mark.parametrize("area", ["desc_table", "avail_ring", "used_ring"])
def test_an_area_that_leaves_memory_is_refused(area):
    ends = {"desc_table": 128, "avail_ring": 22, "used_ring": 70}
    memory = GuestMemory([(0, bytearray(0x8000))])
    inside = GOOD._replace(**{area: (0x8000 - ends[area]) // 16 * 16})
    QueueConfig(inside).check(memory)
    outside = GOOD._replace(**{area: (0x8000 - ends[area]) // 16 * 16 + 16})
    for start in (QueueConfig(outside).device, QueueConfig(outside).driver):
        with pytest.raises(errors.GuestMemory):
            start(memory)
