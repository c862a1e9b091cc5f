"""The sending end: every kind of buffer, room and its lack, batches, and how seldom it kicks."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import queue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import InvalidState, MessageTooLarge, NoRoom, QueueBroken
from vqshm.memory.arena import GRAIN

NOT_BYTES = ["text", 3, 1.5, None, object(), {1: 2}, [b"a", "text"], (None,), [[b"nested"]]]


def kinds():
    mapped = mmap.mmap(-1, 4096)
    mapped[:3] = b"abc"
    grid = memoryview(bytes(range(12))).cast("B", shape=[3, 4])
    return {
        "bytes": b"abc",
        "bytes subclass": type("Text", (bytes,), {})(b"abc"),
        "bytearray": bytearray(b"abc"),
        "memoryview": memoryview(b"xabcx")[1:4],
        "memoryview of doubles": memoryview(array.array("d", [1.5, 2.5])),
        "memoryview of two dimensions": grid,
        "memoryview of no dimensions": memoryview(bytearray(8)).cast("d", shape=[]),
        "array": array.array("H", [1, 2, 3]),
        "empty array": array.array("d"),
        "mmap": mapped,
        "ctypes array": (ctypes.c_int * 3)(1, 2, 3),
        "ctypes structure": type("Pair", (ctypes.Structure,), {"_fields_": [("a", ctypes.c_int)] * 1})(7),
        "ctypes number": ctypes.c_double(1.5),
        "empty ctypes array of arrays": ((ctypes.c_int * 3) * 0)(),
        "empty": b"",
        "empty memoryview": memoryview(b""),
    }


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("send", ["send", "send_many", "gather", "call"])
def test_any_contiguous_buffer_is_a_message(lane, kind, send):
    r, data = lane(area=1 << 14), kinds()[kind]
    if send == "send":
        r.outlet.send(data)
    elif send == "send_many":
        r.outlet.send_many([data])
    elif send == "gather":
        r.outlet.send((data,))
    else:
        with pytest.raises(TimeoutError):
            r.outlet.call(data, 1, 0)
    assert r.inlet.recv(0) == bytes(memoryview(data).tobytes())
    if isinstance(data, mmap.mmap):
        data.close()  # nobody holds it any more


@pytest.mark.parametrize("data", NOT_BYTES, ids=repr)
def test_what_is_no_buffer_is_a_type_error_and_leaves_nothing_behind(lane, data):
    r = lane()
    with pytest.raises(TypeError):
        r.outlet.send(data)
    with pytest.raises(TypeError):
        r.outlet.send_many([data])
    with pytest.raises(TypeError):
        r.outlet.call(data, 8)
    r.assert_at_rest()
    assert r.inlet.available() == 0


def test_bytes_and_text_are_no_sequence_of_messages(lane):
    r = lane()
    for wrong in (b"abc", "abc", 3, None, memoryview(b"abc")):
        with pytest.raises(TypeError):
            r.outlet.send_many(wrong)
    r.assert_at_rest()


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: [b"a", m, b"b"]], ids=["alone", "gathered"])
def test_a_buffer_with_gaps_is_a_value_error_and_leaves_nothing_behind(lane, wrap):
    r = lane()
    with pytest.raises(ValueError, match="contiguous"):
        r.outlet.send(wrap(memoryview(bytearray(64))[::2]))
    with pytest.raises(ValueError, match="contiguous"):
        r.outlet.send_many([b"x", wrap(memoryview(bytearray(64))[::-1])])
    with pytest.raises(ValueError, match="contiguous"):
        r.outlet.call(memoryview(bytearray(64))[::3], 8)
    assert r.drain() == [b"x"]
    r.assert_at_rest()


def test_a_released_view_is_a_value_error(lane):
    r = lane()
    view = memoryview(b"abc")
    view.release()
    with pytest.raises(ValueError, match="released"):
        r.outlet.send(view)
    r.assert_at_rest()


@pytest.mark.parametrize("change", [lambda b: b.append(1), lambda b: b.pop(), lambda b: b.clear()])
def test_a_buffer_that_changes_its_size_while_room_is_waited_for_is_a_value_error(lane, change):
    for wrap in (lambda b: b, lambda b: [b"abc", b]):
        r = lane(2, 256)
        r.outlet.send_many([b"1" * 100, b"2"])
        data = bytearray(b"x" * 200)

        def meanwhile(r=r, data=data):
            change(data)
            r.drain()

        r.out.meanwhile = meanwhile
        with pytest.raises(ValueError, match="it must not change while it is copied"):
            r.outlet.send(wrap(data))
        assert r.drain() == []
        r.assert_at_rest()
        data.append(2)  # nobody holds it any more


def test_a_list_that_changes_while_room_is_waited_for_sends_nothing(lane):
    r = lane(2, 256)
    r.outlet.send_many([b"1" * 100, b"2"])
    pieces = [b"x" * 100, b"y" * 100]

    def meanwhile():
        pieces.pop()
        r.drain()

    r.out.meanwhile = meanwhile
    with pytest.raises(ValueError, match="argument"):
        r.outlet.send(pieces)
    assert r.drain() == []
    r.assert_at_rest()


def test_pieces_are_gathered_in_order_and_a_gathering_of_nothing_is_an_empty_message(lane):
    r = lane()
    r.outlet.send([b"a", bytearray(b"bc"), b"", memoryview(b"def")])
    r.outlet.send(())
    r.outlet.send([b"", b""])
    r.outlet.send([b"x" * 100] * 10)
    assert r.drain() == [b"abcdef", b"", b"", b"x" * 1000]
    r.assert_at_rest()


def test_a_message_may_come_from_the_same_memory(lane):
    r = lane()
    r.outlet.send(b"0123456789" * 10)
    loan = r.inlet.recv_view()
    r.outlet.send(loan.view)
    r.outlet.send([loan.view, loan.view])
    loan.release()
    assert r.drain() == [b"0123456789" * 10, b"0123456789" * 20]
    with r.outlet.reserve(4) as view:
        view[:] = b"self"
        r.outlet.send(view)
    assert r.drain() == [b"self", b"self"]
    r.assert_at_rest()


# -- room --------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("G08")
@pytest.mark.parametrize("area", [64, 100, 4096])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_message_may_be_as_large_as_the_whole_arena_but_no_larger(lane, area, size):
    r = lane(size, area)
    limit = area // GRAIN * GRAIN
    r.outlet.send(b"x" * limit)
    assert r.drain() == [b"x" * limit]
    for attempt in (
        lambda: r.outlet.send(b"x" * (limit + 1), 0),
        lambda: r.outlet.send([b"x" * limit, b"x"], 0),
        lambda: r.outlet.send_many([b"x" * (limit + 1)], 0),
        lambda: r.outlet.reserve(limit + 1, 0),
        *((lambda: r.outlet.call(b"", limit + 1, 0), lambda: r.outlet.call(b"x" * limit, 1, 0)) if size > 1 else ()),
    ):
        with pytest.raises(MessageTooLarge) as caught:
            attempt()
        assert isinstance(caught.value, ValueError)
        assert str(limit) in str(caught.value)
        assert caught.value.facts["limit"] == limit
    r.assert_at_rest()
    r.outlet.send(b"y" * limit, 0)
    assert r.drain() == [b"y" * limit]


@pytest.mark.parametrize("count", [2**31, 2**32, 2**62, 2**63 - 64, 2**63 - 1])
def test_a_count_beyond_all_bounds_is_too_large_and_harms_nothing(lane, count):
    r = lane()
    with pytest.raises(MessageTooLarge):
        r.outlet.reserve(count)
    for data in (b"", b"x", b"x" * 65):
        with pytest.raises(MessageTooLarge):
            r.outlet.call(data, count)
    r.assert_at_rest()


def test_a_message_beyond_what_a_chain_can_describe_is_too_large_whatever_the_arena(lane):
    """2^32-1 bytes [2.7.5.2]; the memory is only mapped, never touched."""
    from vqshm.lane.outlet import Outlet
    from vqshm.memory import GuestMemory

    area = (1 << 32) + 4096
    no_reserve = 0x4000  # MAP_NORESERVE, which Python's mmap has no name for
    with mmap.mmap(-1, area, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve) as memory:
        r = lane()
        guest = GuestMemory([(0x1_0000, r.bytes), (1 << 40, memory)])
        outlet = Outlet(guest, r.layout, (1 << 40, area), r.outlet.bell, r.out)
        for count in (1 << 32, (1 << 32) + 1):
            with pytest.raises(MessageTooLarge) as caught:
                outlet.reserve(count, 0)
            assert caught.value.facts["limit"] < 1 << 32
        largest = outlet.arena.size
        assert largest >= (1 << 32) - 64
        outlet.reserve(largest, 0).commit()
        assert r.desc(0) == (1 << 40, largest, 0, 0)
        with pytest.raises(MessageTooLarge):
            outlet.call(b"x", largest, 0)
        del outlet, guest, caught
        gc.collect()


@pytest.mark.fault("G01")
@pytest.mark.parametrize("event_idx", [True, False])
def test_a_full_lane_says_at_the_deadline_who_holds_what(lane, event_idx):
    r = lane(2, event_idx=event_idx)
    r.outlet.send_many([b"a" * 100, b"b"])
    with pytest.raises(NoRoom) as caught:
        r.outlet.send(b"c" * 70, 0)
    assert isinstance(caught.value, queue.Full)
    assert isinstance(caught.value, TimeoutError)
    assert "the double was asked" in str(caught.value)
    assert "70 bytes" in str(caught.value)
    assert r.outlet.holds() == "2 of 2 messages are out, 192 of 4096 bytes; the oldest takes 128 bytes"
    assert r.drain() == [b"a" * 100, b"b"]
    r.outlet.send(b"c" * 70, 0)
    assert r.drain() == [b"c" * 70]
    r.outlet.reclaim()
    assert r.outlet.holds() == "nothing is out"


def test_views_that_are_kept_starve_the_sender_until_they_are_released(lane):
    r = lane(8, 1024)
    r.outlet.send_many([b"x" * 300] * 3)
    loans = [r.inlet.recv_view() for _ in range(3)]
    with pytest.raises(NoRoom, match="the double was asked"):
        r.outlet.send(b"y" * 300, 0)
    for loan in loans:
        loan.release()
    r.inlet.tell()
    r.outlet.send(b"y" * 300, 0)
    assert r.drain() == [b"y" * 300]
    r.assert_at_rest()


@pytest.mark.parametrize("timeout", [-1, -0.001, float("-inf"), float("nan")])
def test_a_negative_timeout_is_a_value_error(lane, timeout):
    r = lane()
    for attempt in (
        lambda: r.outlet.send(b"x", timeout),
        lambda: r.outlet.send([b"x"], timeout),
        lambda: r.outlet.send_many([b"x"], timeout),
        lambda: r.outlet.reserve(1, timeout),
        lambda: r.outlet.call(b"x", 1, timeout),
    ):
        with pytest.raises(ValueError, match="timeout"):
            attempt()
    r.assert_at_rest()
    assert r.drain() == []


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 64])
@pytest.mark.parametrize("area", [64, 1024, 1 << 16])
def test_a_batch_larger_than_the_lane_reaches_a_receiver_that_takes_what_it_is_shown(lane, size, area):
    r = lane(size, area)
    got = []

    def meanwhile():
        taken = r.drain()
        got.extend(taken)
        return bool(taken)  # nothing was shown, and the sender sleeps: nobody would ever wake it

    r.out.meanwhile = meanwhile
    messages = [bytes([i]) * (i % 64) for i in range(200)]
    r.outlet.send_many(iter(messages))
    assert got + r.drain() == messages
    r.assert_at_rest()


@pytest.mark.parametrize("form", [list, tuple, iter, lambda m: (x for x in m), dict.fromkeys])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 100])
def test_a_batch_may_be_any_iterable(lane, form, count):
    r = lane(128, 1 << 14)
    messages = [b"%d" % i for i in range(count)]
    r.outlet.send_many(form(messages))
    assert r.drain() == messages
    assert r.outlet.messages == count


def test_a_batch_that_fails_sends_what_stood_in_front_and_says_how_many(lane):
    r = lane(4)
    with pytest.raises(NoRoom) as caught:
        r.outlet.send_many([b"%d" % i for i in range(9)], 0)
    assert caught.value.facts["sent"] == 4
    assert r.drain() == [b"0", b"1", b"2", b"3"]

    def messages():
        yield b"a"
        raise KeyError("mine")

    with pytest.raises(KeyError):
        r.outlet.send_many(messages())
    assert r.drain() == [b"a"]
    r.assert_at_rest()


def test_a_batch_may_send_through_its_own_outlet(lane):
    r = lane(64)

    def messages():
        for i in range(5):
            yield b"%d" % i
            r.outlet.send(b"inner %d" % i)

    r.outlet.send_many(messages())
    assert r.drain() == [x for i in range(5) for x in (b"%d" % i, b"inner %d" % i)]


# -- life --------------------------------------------------------------------------------------------------------------


def test_an_outlet_that_is_not_ready_says_why(lane):
    r = lane()
    r.outlet.ready = False
    for attempt in (
        lambda: r.outlet.send(b"x"),
        lambda: r.outlet.send([b"x"]),
        lambda: r.outlet.send_many([b"x"]),
        lambda: r.outlet.reserve(1),
        lambda: r.outlet.call(b"x", 1),
    ):
        with pytest.raises((InvalidState, QueueBroken)):
            attempt()
    r.outlet.ready = True
    r.assert_at_rest()


def test_a_restart_forgets_what_was_in_flight_and_the_lane_is_whole_again(lane):
    r = lane(4, 1024)
    for round_ in range(3):
        r.outlet.send_many([b"x" * 200] * 3)
        r.layout.zero(r.memory)
        r.outlet.restart()
        r.inlet.restart(True, False)
        assert r.outlet.epoch == r.inlet.epoch == round_ + 1
        r.assert_at_rest()
        r.outlet.send(b"y" * 1024, 0)
        assert r.drain() == [b"y" * 1024]
        r.assert_at_rest()


@given(st.lists(st.binary(max_size=300), max_size=40), st.sampled_from([True, False]))
def test_figures_count_messages_and_bytes(lane, messages, event_idx):
    r = lane(64, 1 << 14, event_idx=event_idx)
    r.outlet.send_many(messages)
    assert r.drain() == messages
    assert r.outlet.messages == r.inlet.messages == len(messages)
    assert r.outlet.bytes_out == r.inlet.bytes_in == sum(map(len, messages))


def test_counters_are_shown_now_and_then(lane):
    r = lane(64, 1 << 14)
    for _ in range(300):
        r.outlet.send_many([b"x"] * 32)
        r.drain()
        r.outlet.reclaim()
    assert r.out.shown == 300 * 32 // 4096
    assert r.into.shown >= 2
