"""Room that is written in place: sent once or given back once, and out of reach afterwards."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import InvalidState, NoRoom, QueueBroken


def test_leaving_the_block_sends(lane):
    r = lane()
    with r.outlet.reserve(10) as view:
        assert (view.nbytes, view.format, view.readonly) == (10, "B", False)
        assert r.outlet.reserved == 1
        view[:] = b"0123456789"
        assert r.inlet.available() == 0
    assert r.drain() == [b"0123456789"]
    r.assert_at_rest()


def test_an_exception_cancels(lane):
    r = lane()
    for error in (KeyError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error), r.outlet.reserve(10) as view:  # noqa: PT012 - the block is what is tested
            view[:] = b"0123456789"
            raise error
    assert r.drain() == []
    r.assert_at_rest()


@given(st.integers(0, 300), st.data())
def test_commit_sends_the_first_bytes(lane, count, data):
    r = lane()
    reservation = r.outlet.reserve(count)
    reservation.view[:] = bytes(i % 251 for i in range(count))
    sent = data.draw(st.integers(0, count))
    reservation.commit(sent)
    assert r.drain() == [bytes(i % 251 for i in range(sent))]
    r.assert_at_rest()


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 4096])
def test_a_reservation_that_nobody_looked_at_is_sent_as_it_is(lane, count):
    r = lane()
    r.outlet.reserve(count).commit()
    assert [len(m) for m in r.drain()] == [count]
    r.outlet.reserve(count).commit(0)
    assert r.drain() == [b""]
    r.outlet.reserve(count).cancel()
    assert r.drain() == []
    r.assert_at_rest()


def test_more_than_was_reserved_is_a_value_error_and_the_reservation_stays(lane):
    r = lane()
    reservation = r.outlet.reserve(10)
    reservation.view[:] = b"0123456789"
    for count in (11, 64, 2**31):
        with pytest.raises(ValueError, match="10 bytes were reserved"):
            reservation.commit(count)
    reservation.commit(10)
    assert r.drain() == [b"0123456789"]
    r.assert_at_rest()


@pytest.mark.parametrize("count", [-1, -(2**31)])
def test_a_negative_count_cannot_be_reserved(lane, count):
    r = lane()
    with pytest.raises(ValueError, match="cannot reserve"):
        r.outlet.reserve(count)
    r.assert_at_rest()


@pytest.mark.parametrize("end", ["commit", "cancel", "block"])
def test_what_was_sent_or_cancelled_is_over(lane, end):
    r = lane()
    reservation = r.outlet.reserve(10)
    view = reservation.view
    if end == "block":
        with reservation as inner:
            assert inner is view
    else:
        getattr(reservation, end)()
    for use in (lambda: view[0], lambda: view.__setitem__(0, 1), lambda: view[2:]):
        with pytest.raises(ValueError, match="released"):
            use()
    for use in (reservation.commit, lambda: reservation.commit(3), lambda: reservation.view, reservation.__enter__):
        with pytest.raises(InvalidState, match="sent or cancelled"):
            use()
    reservation.cancel()
    reservation.__exit__(None, None, None)
    assert len(r.drain()) == (0 if end == "cancel" else 1)
    r.assert_at_rest()


def test_commit_and_cancel_inside_the_block_are_the_end_of_it(lane):
    r = lane()
    reservation = r.outlet.reserve(10)
    with reservation as view:
        view[:4] = b"abcd"
        reservation.commit(4)
    reservation = r.outlet.reserve(10)
    with reservation:
        reservation.cancel()
    assert r.drain() == [b"abcd"]
    r.assert_at_rest()


@pytest.mark.parametrize("keep", [lambda v: v[2:5], memoryview, lambda v: v.cast("H"), lambda v: v.toreadonly()])
@pytest.mark.parametrize("end", ["commit", "cancel"])
def test_whoever_keeps_a_part_could_still_write_so_nothing_is_sent(lane, keep, end):
    r = lane()
    reservation = r.outlet.reserve(10)
    kept = keep(reservation.view)
    for _ in range(2):
        with pytest.raises(InvalidState, match="still exists"):
            getattr(reservation, end)()
    assert r.inlet.available() == 0
    assert r.outlet.reserved == 1
    del kept
    getattr(reservation, end)()
    assert len(r.drain()) == (1 if end == "commit" else 0)
    r.assert_at_rest()


def test_a_reservation_that_is_dropped_is_cancelled(lane):
    r = lane()
    r.outlet.reserve(10)
    reservation = r.outlet.reserve(10)
    reservation.view[:] = bytes(10)
    del reservation
    gc.collect()
    r.outlet.send(b"x" * 4096, 0)
    assert r.drain() == [b"x" * 4096]
    r.assert_at_rest()


def test_what_a_view_was_made_from_does_not_open_the_room_of_the_next_message(lane):
    r = lane()
    reservation = r.outlet.reserve(3)
    kept = reservation.view.obj
    del reservation
    r.outlet.reclaim()
    if r.outlet.reserved == 0:  # else `kept` counts as somebody who may write, and the room is still taken
        with pytest.raises((BufferError, ValueError, RuntimeError)):
            memoryview(kept)
    else:
        assert r.outlet.arena.out == 1


def test_a_dropped_reservation_keeps_its_room_while_a_part_of_its_view_lives(lane):
    r = lane()
    reservation = r.outlet.reserve(10)
    kept = reservation.view[:5]
    del reservation
    gc.collect()
    for _ in range(3):
        r.outlet.send(b"x" * 64, 0)
    kept[:] = b"stray"
    assert r.drain() == [b"x" * 64] * 3
    kept.release()
    r.outlet.send(b"x" * 4096, 0)
    assert r.drain() == [b"x" * 4096]
    r.assert_at_rest()


@given(st.lists(st.tuples(st.integers(0, 500), st.sampled_from(["commit", "cancel"])), max_size=8), st.randoms())
def test_reservations_end_in_any_order_beside_messages(lane, plans, random):
    r = lane(8, 8192)
    open_ = []
    for i, (count, end) in enumerate(plans):
        reservation = r.outlet.reserve(count)
        reservation.view[:] = bytes([i]) * count
        open_.append((bytes([i]) * count, end, reservation))
    random.shuffle(open_)
    expected = []
    for data, end, reservation in open_:
        getattr(reservation, end)()
        if end == "commit":
            expected.append(data)
    assert r.drain() == expected
    r.assert_at_rest()


def test_a_reservation_has_its_descriptor_so_sending_it_never_waits(lane):
    r = lane(2)
    reservation = r.outlet.reserve(10)
    r.outlet.send(b"a")
    with pytest.raises(NoRoom):
        r.outlet.send(b"b", 0)
    reservation.commit()
    assert r.drain() == [b"a", bytes(10)]
    r.assert_at_rest()


def test_reservations_that_hold_all_the_room_are_named(lane):
    r = lane(4, 1024)
    held = [r.outlet.reserve(512), r.outlet.reserve(512)]
    with pytest.raises(InvalidState, match="2 reservations"):
        r.outlet.send(b"x", 0)
    with pytest.raises(InvalidState, match="2 reservations"):
        r.outlet.reserve(1)
    for reservation in held:
        reservation.cancel()
    r.outlet.send(b"x" * 1024, 0)
    assert r.drain() == [b"x" * 1024]
    r.assert_at_rest()


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize("end", ["commit", "cancel", "block", "failed block", "drop"])
def test_a_reservation_from_before_a_restart_is_void(lane, looked, end):
    r = lane(4, 1024)
    reservation = r.outlet.reserve(1000)
    if looked:
        reservation.view[:3] = b"old"
    r.outlet.restart()
    r.outlet.send(b"next" * 100)
    other = r.outlet.reserve(100)
    if end in {"commit", "cancel"}:
        with pytest.raises(InvalidState, match="reset"):
            getattr(reservation, end)()
    elif end == "block":
        with pytest.raises(InvalidState, match="reset"):
            reservation.__exit__(None, None, None)
    elif end == "failed block":
        reservation.__exit__(KeyError, KeyError(), None)
    del reservation
    gc.collect()
    assert r.outlet.reserved == 1
    assert r.outlet.num_free == 2
    other.commit(0)
    assert r.drain() == [b"next" * 100, b""]
    r.assert_at_rest()


def test_a_reservation_from_before_a_restart_gives_nobody_the_memory_of_the_next_messages(lane):
    r = lane()
    reservation = r.outlet.reserve(10)
    r.outlet.restart()
    with pytest.raises(InvalidState):
        reservation.view  # noqa: B018 - it is the look that must fail


def test_a_reservation_on_a_lane_that_is_not_ready_says_why_and_can_be_ended_later(lane):
    r = lane()
    reservation = r.outlet.reserve(3)
    reservation.view[:] = b"abc"
    r.outlet.ready = False
    for attempt in (reservation.commit, reservation.cancel):
        with pytest.raises((InvalidState, QueueBroken), match="not ready"):
            attempt()
    r.outlet.ready = True
    reservation.commit()
    assert [len(m) for m in r.drain()] == [3]
    r.assert_at_rest()
