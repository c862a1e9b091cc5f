"""The receiving end: one, many or all messages, chains of every legal shape, and how late the sender hears of it."""

from __future__ import annotations

import queue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import EndOfMessages, InvalidState, NoMessage, QueueBroken

WRITE, NEXT, INDIRECT = 2, 1, 4


def test_recv_gives_the_messages_in_order_as_bytes(lane):
    r = lane()
    for data in (b"a", b"", b"c" * 1000):
        r.outlet.send(data)
    got = [r.inlet.recv(), r.inlet.recv(0), r.inlet.recv(timeout=1.5)]
    assert got == [b"a", b"", b"c" * 1000]
    assert {type(m) for m in got} == {bytes}
    r.assert_at_rest()


def test_an_empty_lane_raises_at_the_deadline(lane):
    r = lane()
    for attempt in (lambda: r.inlet.recv(0), lambda: r.inlet.recv_many(3, 0), lambda: r.inlet.recv_view(0)):
        with pytest.raises(NoMessage) as caught:
            attempt()
        assert isinstance(caught.value, queue.Empty)
        assert isinstance(caught.value, TimeoutError)
        assert "the double was asked" in str(caught.value)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("-inf"), float("nan")])
@pytest.mark.parametrize("waiting", [0, 1])
def test_a_negative_timeout_is_a_value_error_whatever_is_there(lane, timeout, waiting):
    r = lane()
    r.outlet.send_many([b"x"] * waiting)
    for attempt in (
        lambda: r.inlet.recv(timeout),
        lambda: r.inlet.recv_many(1, timeout),
        lambda: r.inlet.recv_view(timeout),
    ):
        with pytest.raises(ValueError, match="timeout"):
            attempt()
    assert r.drain() == [b"x"] * waiting


@pytest.mark.parametrize("timeout", ["1", b"1", [], object()], ids=repr)
def test_a_timeout_is_a_number(lane, timeout):
    r = lane()
    with pytest.raises(TypeError):
        r.inlet.recv(timeout)
    with pytest.raises(TypeError):
        r.outlet.send(b"x", timeout)
    r.assert_at_rest()


@pytest.mark.parametrize("limit", [0, -1, -(2**31)])
def test_a_limit_below_one_is_a_value_error(lane, limit):
    r = lane()
    r.outlet.send(b"x")
    with pytest.raises(ValueError, match="at least 1"):
        r.inlet.recv_many(limit, 0)
    assert r.drain() == [b"x"]


@given(st.integers(0, 20), st.integers(1, 25))
def test_recv_many_gives_what_is_there_up_to_the_limit(lane, count, limit):
    r = lane(32)
    messages = [b"%d" % i for i in range(count)]
    r.outlet.send_many(messages)
    if count:
        assert r.inlet.recv_many(limit, 0) == messages[:limit]
    else:
        with pytest.raises(NoMessage):
            r.inlet.recv_many(limit, 0)
    assert r.drain() == messages[limit:]
    r.assert_at_rest()


def test_recv_many_waits_for_the_first_only(lane):
    r = lane()
    r.into.meanwhile = lambda: r.outlet.send_many([b"a", b"b"])
    assert r.inlet.recv_many(5) == [b"a", b"b"]
    assert len(r.into.sleeps) == 1


def test_recv_many_counts_on_nothing_that_another_thread_may_take(lane):
    """To call the sender is to let others run: here, somebody who takes a message."""
    r = lane(16)
    stolen = []
    r.outlet.send_many([b"%d" % i for i in range(12)])
    r.outlet.enable_notification()
    r.inlet.bell.ring = lambda: stolen or stolen.append(r.inlet.recv(0))
    got = r.inlet.recv_many(12, 0)
    assert len(stolen) == 1
    assert sorted(got + stolen, key=int) == [b"%d" % i for i in range(12)]
    r.assert_at_rest()


def test_an_iteration_ends_when_the_sender_has_left(lane):
    r = lane()
    r.outlet.send_many([b"a", b"b"])

    def left():
        raise EndOfMessages("gone")

    r.into.meanwhile = left
    assert list(r.inlet) == [b"a", b"b"]
    with pytest.raises(EndOfMessages):
        r.inlet.recv()


def test_what_the_keeper_raises_comes_through(lane):
    r = lane()

    def interrupt():
        raise KeyboardInterrupt

    r.into.meanwhile = interrupt
    for attempt in (r.inlet.recv, lambda: r.inlet.recv_many(2), r.inlet.recv_view):
        with pytest.raises(KeyboardInterrupt):
            attempt()
    r.inlet.ready = False
    with pytest.raises((InvalidState, QueueBroken)):
        r.inlet.recv(0)


def test_the_keeper_may_make_an_inlet_ready_again(lane):
    r = lane()
    r.inlet.ready = False
    r.outlet.send(b"x")

    class Host:
        def get_ready(self, _deadline):
            r.inlet.ready = True

    r.inlet.keeper = Host()
    assert r.inlet.recv() == b"x"


# -- chains of somebody else's driver ----------------------------------------------------------------------------------


@pytest.mark.fault("G08")
@pytest.mark.parametrize("take", ["recv", "recv_many", "recv_view"])
@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([(0, 3, 0)], b"abc"),
        ([(0, 1, 0), (1, 2, 0)], b"abc"),
        ([(0, 0, 0), (0, 3, 0), (1, 0, 0)], b"abc"),
        ([(0, 3, 0), (8, 4, WRITE)], b"abc"),
        ([(0, 2, 0), (4, 1, 0), (8, 4, WRITE), (16, 4, WRITE)], b"abe"),
        ([(8, 4, WRITE)], b""),
        ([(0, 0, 0)], b""),
        ([(0, 3, 0x8000), (3, 3, 0x10)], b"abcdef"),  # reserved flags mean nothing
    ],
)
@pytest.mark.parametrize("table", [False, True], ids=["direct", "indirect"])
def test_every_legal_chain_is_a_message(lane, take, pieces, message, table):
    r = lane()
    r.poke(r.area, b"abcdef")
    at = r.area + 1024 if table else None
    for i, (offset, length, flags) in enumerate(pieces):
        last = i + 1 == len(pieces)
        r.poke_desc(i, r.area + offset, length, flags | (0 if last else NEXT), 0 if last else i + 1, table=at)
    if table:
        r.poke_desc(0, at, 16 * len(pieces), INDIRECT)
    r.offer(0)
    if take == "recv":
        assert r.inlet.recv(0) == message
    elif take == "recv_many":
        assert r.inlet.recv_many(9, 0) == [message]
    else:
        with r.inlet.recv_view(0) as view:
            assert view == message
            assert view.readonly
    r.inlet.tell()
    assert r.used == 1
    assert r.peek(r.layout.used_ring + 4, 8) == bytes(8)  # chain 0, nothing written
    assert r.inlet.bytes_in == len(message)


def test_an_empty_piece_may_lie_anywhere(lane):
    r = lane()
    for addr in (0, 2**64 - 1, r.area + 4096, 12345):
        r.poke_desc(3, addr, 0)
        r.offer(3)
        assert r.inlet.recv(0) == b""


# -- how late the sender hears of it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 8, 64, 128, 1024])
@pytest.mark.parametrize("length", [0, 1, 1000, 20000])
@pytest.mark.parametrize("take", ["recv", "recv_many", "recv_view"])
def test_no_more_than_16_messages_or_16_kib_are_withheld(lane, size, length, take):
    r = lane(size, 1 << 18)
    most = max(1, min(16, size // 4))
    for i in range(3 * most + 5):
        r.outlet.send(b"x" * length, 0)
        if take == "recv":
            r.inlet.recv(0)
        elif take == "recv_many":
            r.inlet.recv_many(1, 0)
        else:
            with r.inlet.recv_view(0):
                pass
        withheld = (i + 1 - r.used) & 0xFFFF
        assert withheld < most
        assert withheld * length < 1 << 14


@pytest.mark.parametrize("timeout", [0, 0.001, None])
def test_nothing_is_withheld_from_the_sender_by_one_who_waits(lane, timeout):
    r = lane(128, 1 << 14)
    r.outlet.send_many([b"x"] * 3)
    loan = r.inlet.recv_view()
    r.inlet.recv_many(3)
    loan.release()
    assert r.used == 0
    seen = []

    def meanwhile():
        seen.append(r.used)
        return False

    r.into.meanwhile = meanwhile
    with pytest.raises(NoMessage):
        r.inlet.recv(timeout)
    assert seen == [3]


def test_a_receiver_that_asks_in_vain_gives_back_what_it_dropped(lane):
    r = lane()
    r.outlet.send(b"x")
    loan = r.inlet.recv_view()
    view = loan.view[0:1]
    del loan
    with pytest.raises(NoMessage):
        r.inlet.recv(0)
    assert r.used == 0
    del view
    with pytest.raises(NoMessage):
        r.inlet.recv(0)
    assert r.used == 1
    r.assert_at_rest()


# -- notifications -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event_idx", [True, False])
def test_a_sender_that_is_awake_is_not_called(lane, event_idx):
    r = lane(64, 1 << 14, event_idx=event_idx)
    r.outlet.disable_notification()
    for i in range(3000):
        r.outlet.send(b"%d" % i)
        assert r.inlet.recv(0) == b"%d" % i
    # used_event is 0 from the start, so the very first one calls with EVENT_IDX
    assert r.inlet.bell.rung == r.inlet.calls == (1 if event_idx else 0)


@pytest.mark.parametrize("event_idx", [True, False])
def test_a_sender_that_armed_is_called_once(lane, event_idx):
    r = lane(64, 1 << 14, event_idx=event_idx)
    for _ in range(10):
        r.outlet.send_many([b"x"] * 50, 0)
        before = r.inlet.bell.rung
        assert not r.outlet.enable_notification(1)
        r.inlet.recv_many(10)
        r.inlet.tell()
        assert r.inlet.bell.rung == before + 1
        r.outlet.disable_notification()
        r.drain()
        assert r.inlet.bell.rung == before + 1
        r.outlet.reclaim()


@given(st.integers(1, 40), st.data())
def test_a_sender_that_waits_for_so_many_is_called_when_they_are_back(lane, count, data):
    r = lane(64, 1 << 14)
    r.outlet.send_many([b"x"] * count)
    after = data.draw(st.integers(1, count))
    assert not r.outlet.enable_notification(after)
    back = 0
    while back < count:
        before = r.inlet.bell.rung
        step = data.draw(st.integers(1, count - back))
        r.inlet.recv_many(step)
        r.inlet.tell()
        assert r.inlet.bell.rung - before == (1 if back < after <= back + step else 0)
        back += step


# -- life --------------------------------------------------------------------------------------------------------------


def test_a_restart_takes_the_features_of_the_next_sender(lane):
    r = lane()
    r.outlet.send(b"old")
    r.layout.zero(r.memory)
    r.inlet.restart(event_idx=False, indirect=False)
    r.outlet.restart()
    assert r.inlet.epoch == 1
    assert not r.inlet.event_idx
    assert not r.inlet.indirect
    r.outlet.send(b"next")
    assert r.drain() == [b"next"]
