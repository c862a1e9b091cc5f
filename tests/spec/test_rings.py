"""The available and the used ring: who writes what, when, and in which order [2.7.6, 2.7.8, 2.7.13, 3.3.1]."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import errors
from vqshm.memory import atomic

NEXT, WRITE, INDIRECT = 1, 2, 4
IDX = 2  # offset of idx in both rings
INDIRECTLY = pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])


# -- 2.7.6 the available ring ------------------------------------------------------------------------------------------


@pytest.mark.spec("2.7.6.1-driver-1")
@INDIRECTLY
@given(
    plan=st.lists(
        st.tuples(st.sampled_from(["add", "batch", "full", "reap", "ask", "bad"]), st.integers(1, 3)), max_size=25
    )
)
def test_avail_idx_moves_forward_by_the_chains_offered_and_never_back(bench, indirect, plan):
    rig = bench(indirect=indirect)
    buffer = rig.buffer(16)
    position, in_flight = 0, []
    for what, count in plan:
        if what == "add":
            with contextlib.suppress(errors.QueueFull):
                in_flight.append(rig.driver.add([buffer] * count))
        elif what == "batch":
            for _ in range(count):
                with contextlib.suppress(errors.QueueFull):
                    in_flight.append(rig.driver.add([buffer], publish=False))
            rig.driver.publish()
        elif what == "full":
            with pytest.raises(errors.RuleError):
                rig.driver.add([buffer] * (rig.size + count))
        elif what == "bad":
            with pytest.raises((errors.GuestMemory, errors.QueueFull)):
                rig.driver.add([buffer, (1, count)])
        elif what == "reap" and in_flight:
            rig.give_back(in_flight.pop())
            rig.driver.reap()
        else:
            rig.driver.needs_kick()
            rig.driver.enable_notification()
            rig.driver.disable_notification()
        offered = rig.driver.in_flight + rig.driver.last_used
        assert rig.avail().idx == offered & 0xFFFF
        assert offered >= position
        position = offered


@pytest.mark.spec("2.7.6.1-driver-1", "2.7.10.1-driver-5")
def test_where_positions_wrap_avail_idx_goes_on_and_no_kick_is_lost(bench):
    rig = bench(256, event_idx=True)
    buffer = rig.buffer(16)
    rig.poke_used(event=0xFFFF)
    kicked_at = []
    for position in range(0, 0x1_0000 + 512, 256):
        for _ in range(256):
            rig.driver.add([buffer], publish=False)
        rig.driver.publish()
        assert rig.avail().idx == (position + 256) & 0xFFFF
        if rig.driver.needs_kick():
            kicked_at.append(position)
        for head in rig.avail().ring:
            rig.give_back(head)
        while rig.driver.reap():
            pass
    assert kicked_at == [0x1_0000 - 256]


@pytest.mark.spec("3.3.1-driver-1")
@INDIRECTLY
@given(plan=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), max_size=40))
def test_the_descriptors_of_a_chain_in_flight_stay_as_they_are(bench, indirect, plan):
    rig = bench(indirect=indirect)
    exposed = {}
    for count, choice in plan:
        if choice % 3 == 0 and exposed:
            head = list(exposed)[choice % len(exposed)]
            del exposed[head]
            rig.give_back(head)
            assert rig.driver.reap() == (head, 0)
        with contextlib.suppress(errors.QueueFull):
            head = rig.driver.add([rig.buffer(16) for _ in range(count)])
            exposed[head] = rig.chain(head)
        rig.driver.needs_kick()
        rig.driver.enable_notification()
        assert all(rig.chain(head) == chain for head, chain in exposed.items())


@pytest.mark.spec("3.3.1-driver-1")
def test_an_offered_entry_of_the_available_ring_stays_until_it_is_taken(bench):
    rig = bench(4)
    buffer = rig.buffer(16)
    heads = [rig.driver.add([buffer]) for _ in range(4)]
    with pytest.raises(errors.QueueFull):
        rig.driver.add([buffer])
    assert list(rig.avail().ring) == heads


# -- 2.7.8 the used ring -----------------------------------------------------------------------------------------------


@pytest.mark.spec("2.7.8.2-device-1")
@pytest.mark.parametrize("event_idx", ["", " event_idx"])
def test_the_used_element_is_stored_before_used_idx(traces, event_idx):
    steps = traces[f"give back and ask{event_idx}"]
    stores = [step for step in steps if step[0].startswith(("put", "store"))]
    *element, idx = stores
    assert [area for _, area, _, _ in stores] == ["used"] * len(stores)
    assert ("put_u32", "used", 8, 6) in element  # the length of element 0
    assert idx == ("store_u16", "used", IDX, 1)  # a release store: what was stored before is visible before


@pytest.mark.spec("2.7.8.2-device-1")
def test_the_used_element_tells_head_and_length(bench):
    rig = bench()
    heads = [rig.driver.add([], [rig.buffer(32)]) for _ in range(3)]
    for length, _ in enumerate(heads, 7):
        rig.device.add_used(rig.device.pop().head_index, length)
    assert rig.used().idx == 3
    assert rig.used().ring[:3] == tuple(zip(heads, (7, 8, 9), strict=True))


@pytest.mark.spec("2.7.8.2-device-2")
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), count=st.integers(0, 80))
def test_the_reported_bytes_are_written_from_the_first_writable_one_on(bench, sizes, count):
    rig = bench()
    buffers = [rig.buffer(size, b"." * size) for size in sizes]
    rig.driver.add([rig.buffer(4)], buffers)
    chain = rig.device.pop()
    writer = chain.writer()
    writer.write(b"x" * count)
    # Before used.idx moves:
    assert rig.used().idx == 0
    written = b"".join(rig.peek(*buffer) for buffer in buffers)
    fits = min(count, sum(sizes))
    assert writer.bytes_written == fits
    assert written == b"x" * fits + b"." * (sum(sizes) - fits)

    rig.device.add_used(chain.head_index, writer.bytes_written)
    assert rig.used().ring[0] == (chain.head_index, fits)


@pytest.mark.fault("A30")
@pytest.mark.spec("2.7.8.2-device-2")
def test_more_bytes_than_the_chain_can_hold_are_not_reported(bench):
    rig = bench()
    rig.driver.add([rig.buffer(64)], [rig.buffer(16), rig.buffer(8)])
    head = rig.device.pop().head_index
    before = rig.snapshot()
    with pytest.raises(errors.InvalidUsedLength):
        rig.device.add_used(head, 25)
    assert rig.snapshot() == before
    rig.device.add_used(head, 24)


@pytest.mark.fault("B06")
@pytest.mark.spec("2.7.8.3-driver-1")
@pytest.mark.parametrize("written", [0, 1, 15, 16])
def test_reap_tells_how_many_bytes_may_be_looked_at(bench, written):
    rig = bench()
    token = rig.driver.add([rig.buffer(64)], [rig.buffer(8), rig.buffer(8)])
    rig.give_back(token, written)
    assert rig.driver.reap() == (token, written)


@pytest.mark.fault("A30")
@pytest.mark.spec("2.7.8.3-driver-1")
@pytest.mark.parametrize("written", [17, 80, 0xFFFF_FFFF])
def test_a_length_beyond_the_writable_bytes_is_not_believed(bench, written):
    rig = bench()
    token = rig.driver.add([rig.buffer(64)], [rig.buffer(8), rig.buffer(8)])
    rig.give_back(token, written)
    with pytest.raises(errors.InvalidUsedLength) as raised:
        rig.driver.reap()
    assert isinstance(raised.value, errors.PeerViolation)


# -- 2.7.13 order ------------------------------------------------------------------------------------------------------

VARIANTS = pytest.mark.parametrize("variant", ["", " indirect", " event_idx", " event_idx indirect"])


@pytest.mark.spec("2.7.13.3.1-driver-1")
@VARIANTS
@pytest.mark.parametrize(("operation", "chains"), [("add", 1), ("add two", 2)])
def test_chains_and_ring_entries_are_stored_before_the_avail_idx_that_covers_them(traces, operation, chains, variant):
    steps = traces[operation + variant]
    *before, last = [step for step in steps if step[0].startswith(("put", "store"))]
    assert last[:3] == ("store_u16", "avail", IDX)  # a release store: what was stored before is visible before
    assert steps[-1] == last
    indirect = "indirect" in variant
    assert sum(area == "desc" for _, area, _, _ in before) == 2 * chains * (1 if indirect else 3)
    assert sum(area == "table" for _, area, _, _ in before) == 2 * chains * (3 if indirect else 0)
    assert sum(area == "avail" for _, area, _, _ in before) == chains
    assert all(step[1] != "avail" or step[2] != IDX for step in before)


@pytest.mark.spec("2.7.13.4.1-driver-1")
@VARIANTS
def test_a_full_fence_stands_between_avail_idx_and_the_wish_of_the_device(traces, variant):
    steps = traces[f"add and ask{variant}"]
    stored = max(i for i, step in enumerate(steps) if step[:3] == ("store_u16", "avail", IDX))
    wishes = [i for i, (kind, area, _, _) in enumerate(steps) if area == "used" and kind.startswith(("load", "get"))]
    fences = [i for i, step in enumerate(steps) if step[0] == "fence"]
    assert len(wishes) == 1
    assert any(stored < fence < wishes[0] for fence in fences)
    assert steps[wishes[0]][2] == (4 + 8 * 32 if "event_idx" in variant else 0)  # avail_event, or flags


@pytest.mark.spec("2.7.13.3.1-driver-1", "2.7.13.4.1-driver-1")
def test_the_compiled_seam_makes_stores_release_and_the_fence_a_full_one():
    folder = Path(atomic.__file__).parent
    header = (folder / "atomic.h").read_text(encoding="utf-8")
    inlined = (folder / "atomic.pxd").read_text(encoding="utf-8")
    assert re.search(r"vq_store_u##bits\(.*?__atomic_store_n\([^;]*__ATOMIC_RELEASE\)", header, re.DOTALL)
    assert re.search(r"vq_load_u##bits\(.*?__atomic_load_n\([^;]*__ATOMIC_ACQUIRE\)", header, re.DOTALL)
    assert re.search(r"vq_fence\(void\) *\{ *__atomic_thread_fence\(__ATOMIC_SEQ_CST\);", header)
    assert re.search(r"inline int fence\(\)[^:]*:\n    vq_fence\(\)\n", inlined)
    for name in ("store_u16", "load_u16"):
        body = re.search(rf"inline \w+ {name}\(.*?\n\n", inlined, re.DOTALL).group()
        assert f"vq_{name}(span.base + offset" in body


def test_the_interpreted_seam_knows_where_its_order_holds():
    import platform

    assert atomic.ORDERED or platform.machine() not in {"x86_64", "AMD64"}
