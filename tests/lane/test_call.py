"""Calls: a question and its answer on one chain."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import InvalidState, MessageTooLarge, NoMessage, NoRoom, VqshmError


def serve_one(r, function):
    loan = r.inlet.recv_view(0)
    reply = function(bytes(loan.view))
    if reply is not None:
        loan.reply(reply)
    loan.release()


@given(st.binary(max_size=300), st.integers(1, 300), st.data(), st.booleans())
def test_an_answer_of_any_size_comes_back(lane, question, room, data, event_idx):
    r = lane(event_idx=event_idx)
    reply = data.draw(st.binary(max_size=room))
    heard = []

    def answer(message):
        heard.append(message)
        return reply

    r.out.meanwhile = lambda: serve_one(r, answer)
    assert r.outlet.call(question, room) == reply
    assert heard == [question]
    r.assert_at_rest()


def test_a_caller_is_told_at_once_whatever_else_is_withheld(lane):
    r = lane(128, 1 << 14)
    r.outlet.send_many([b"a", b"b"])
    r.out.meanwhile = lambda: r.inlet.recv_many(2) and serve_one(r, lambda _: b"answer")
    assert r.outlet.call(b"q", 10) == b"answer"
    assert r.out.sleeps == [1]
    assert r.used == 3
    r.assert_at_rest()


def test_an_answer_larger_than_its_room_is_refused_and_a_smaller_one_still_possible(lane):
    r = lane()

    def meanwhile():
        loan = r.inlet.recv_view(0)
        assert loan.room == 3
        with pytest.raises(MessageTooLarge) as caught:
            loan.reply(b"four")
        assert caught.value.facts == {"count": 4, "limit": 3}
        loan.reply(b"abc")
        loan.reply(b"de")  # the last word counts
        loan.release()

    r.out.meanwhile = meanwhile
    assert r.outlet.call(b"q", 3) == b"de"
    r.assert_at_rest()


def test_a_loan_that_is_dropped_sends_the_answer_it_has(lane):
    r = lane()

    def meanwhile():
        loan = r.inlet.recv_view(0)
        loan.reply(b"abc")
        del loan
        r.inlet.tell()

    r.out.meanwhile = meanwhile
    assert r.outlet.call(b"q", 3) == b"abc"
    r.assert_at_rest()


def test_whoever_receives_a_call_as_bytes_answers_with_nothing(lane):
    r = lane()

    def meanwhile():
        assert r.inlet.recv(0) == b"q"
        r.inlet.tell()

    r.out.meanwhile = meanwhile
    assert r.outlet.call(b"q", 3) == b""
    r.assert_at_rest()


@pytest.mark.parametrize("answer_bytes", [0, -1, -(2**31)])
def test_an_answer_needs_room(lane, answer_bytes):
    r = lane()
    with pytest.raises(ValueError, match="at least 1"):
        r.outlet.call(b"q", answer_bytes)
    r.assert_at_rest()


def test_a_queue_of_one_descriptor_has_no_calls_and_says_so(lane):
    r = lane(1)
    with pytest.raises(VqshmError, match="descriptor"):
        r.outlet.call(b"q", 3, 0)
    r.assert_at_rest()


def test_a_call_waits_for_room_like_any_message(lane):
    r = lane(2)
    r.outlet.send(b"a")
    with pytest.raises(NoRoom):
        r.outlet.call(b"q", 3, 0)
    taken = []

    r.out.meanwhile = lambda: taken.extend(r.drain()) if not taken else serve_one(r, lambda _: b"abc")
    assert r.outlet.call(b"q", 3) == b"abc"
    assert taken == [b"a"]
    r.assert_at_rest()


@pytest.mark.parametrize("late", [b"", b"late"])
def test_an_answer_that_nobody_waits_for_any_more_is_thrown_away(lane, late):
    r = lane(4, 256)
    with pytest.raises(NoMessage):
        r.outlet.call(b"first", 64, 0)
    assert (r.outlet.calls, r.outlet.in_flight) == (1, 1)
    r.out.meanwhile = lambda: [serve_one(r, lambda q: late if q == b"first" else b"right") for _ in range(2)]
    assert r.outlet.call(b"second", 64) == b"right"
    r.assert_at_rest()
    r.outlet.send(b"x" * 256, 0)
    assert r.drain() == [b"x" * 256]


def test_the_room_of_an_answer_is_not_reused_while_it_is_on_its_way(lane):
    r = lane(4, 256)
    with pytest.raises(NoMessage):
        r.outlet.call(b"", 64, 0)
    loan = r.inlet.recv_view(0)
    r.outlet.send_many([b"a" * 64, b"b" * 64])
    with pytest.raises(NoRoom):
        r.outlet.send(b"c" * 100, 0)
    loan.reply(b"x" * 64)
    assert r.drain() == [b"a" * 64, b"b" * 64]
    loan.release()
    r.assert_at_rest()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConnectionError])
def test_a_caller_that_is_interrupted_forgets_the_call(lane, error):
    r = lane(2, 128)

    def meanwhile():
        raise error

    r.out.meanwhile = meanwhile
    with pytest.raises(error):
        r.outlet.call(b"q", 10)
    serve_one(r, lambda _: b"answer")
    r.assert_at_rest()
    # … and when the answer is there already
    r.out.meanwhile = lambda: [serve_one(r, lambda _: b"answer"), r.outlet.reclaim(), meanwhile()]
    with pytest.raises(error):
        r.outlet.call(b"q", 10)
    r.assert_at_rest()


def test_while_one_waits_for_an_answer_another_thread_is_told_so_and_harms_nothing(lane):
    r = lane()
    refused = []

    def meanwhile():
        for attempt in (
            lambda: r.outlet.send(b"x"),
            lambda: r.outlet.send_many([b"x", b"y"]),
            lambda: r.outlet.reserve(1),
            lambda: r.outlet.call(b"b", 8),
        ):
            with pytest.raises(InvalidState, match="another thread waits") as caught:
                attempt()
            refused.append(caught.value)
        serve_one(r, lambda q: b"to " + q)
        r.outlet.reclaim()

    r.out.meanwhile = meanwhile
    assert r.outlet.call(b"a", 8) == b"to a"
    assert len(refused) == 4
    r.assert_at_rest()
    r.outlet.send(b"x")
    assert r.drain() == [b"x"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_reservation_that_is_sent_meanwhile_does_not_take_the_room_of_an_answer(lane, interrupted):
    """The answer is there and its chain's number free again, so the reservation gets that number."""
    r = lane(4, 512)
    reservation = r.outlet.reserve(64)
    reservation.view[:] = b"x" * 64

    def meanwhile():
        serve_one(r, lambda _: b"answer")
        r.outlet.reclaim()
        reservation.commit()
        if interrupted:
            raise KeyboardInterrupt

    r.out.meanwhile = meanwhile
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            r.outlet.call(b"q", 10)
    else:
        assert r.outlet.call(b"q", 10) == b"answer"
    r.outlet.send_many([b"y" * 64, b"z" * 64])
    assert r.drain() == [b"x" * 64, b"y" * 64, b"z" * 64]
    r.assert_at_rest()


def test_a_call_on_a_lane_that_starts_anew_meanwhile_is_an_error(lane):
    r = lane()

    def meanwhile():
        r.layout.zero(r.memory)
        r.outlet.restart()
        r.inlet.restart(event_idx=True, indirect=False)

    r.out.meanwhile = meanwhile
    with pytest.raises(InvalidState):
        r.outlet.call(b"q", 10, 1)
    r.assert_at_rest()
    r.outlet.send(b"x" * 4096, 0)
    assert r.drain() == [b"x" * 4096]


def test_a_forgotten_call_from_before_a_restart_is_forgotten(lane):
    r = lane()
    with pytest.raises(NoMessage):
        r.outlet.call(b"q", 10, 0)
    r.layout.zero(r.memory)
    r.outlet.restart()
    r.inlet.restart(event_idx=True, indirect=False)
    r.assert_at_rest()
    r.out.meanwhile = lambda: serve_one(r, lambda _: b"abc")
    assert r.outlet.call(b"q", 3) == b"abc"
    r.assert_at_rest()


def test_a_call_in_two_halves_lets_its_caller_do_other_things(lane):
    r = lane()
    call = r.outlet.start_call(b"q", 10)
    r.outlet.send(b"meanwhile")
    with pytest.raises(NoMessage):
        call.answer(0)
    serve_one(r, lambda question: question + b"?")
    assert r.inlet.recv(0) == b"meanwhile"
    r.inlet.tell()
    assert call.answer(0) == b"q?"
    with pytest.raises(InvalidState, match="answered or forgotten"):
        call.answer(0)
    r.assert_at_rest()


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("how", ["forgotten", "dropped"])
def test_room_of_a_call_that_nobody_waits_for_comes_back(lane, answered, how):
    r = lane()
    call = r.outlet.start_call(b"q", 10)
    if answered:
        serve_one(r, lambda question: question)
        r.outlet.reclaim()
    if how == "forgotten":
        call.forget()
        call.forget()
    else:
        del call
    if not answered:
        serve_one(r, lambda question: question)
    r.outlet.reclaim()
    assert r.outlet.calls == 0
    r.assert_at_rest()


@pytest.mark.parametrize("order", ["the first one first", "the last one first"])
def test_an_answer_that_waits_to_be_fetched_is_not_that_of_a_call_with_the_same_descriptor(lane, order):
    r = lane()
    calls = [(r.outlet.start_call(b"one", 10), b"1")]
    serve_one(r, lambda _: b"1")
    r.inlet.tell()
    r.outlet.reclaim()  # its answer is here, its descriptors are free, and nobody has fetched it yet
    calls.append((r.outlet.start_call(b"two", 10), b"22"))
    serve_one(r, lambda _: b"22")
    for call, answer in calls if order == "the first one first" else reversed(calls):
        assert call.answer(0) == answer
    r.assert_at_rest()


def test_a_call_of_before_a_reset_says_so_and_touches_nothing(lane):
    r = lane()
    call = r.outlet.start_call(b"q", 10)
    r.outlet.restart()
    r.inlet.restart(event_idx=True, indirect=False)
    other = r.outlet.start_call(b"other", 10)
    with pytest.raises(InvalidState, match="was reset"):
        call.answer(0)
    call.forget()
    serve_one(r, lambda question: question)
    assert other.answer(0) == b"other"
    r.assert_at_rest()


def test_a_call_cannot_be_copied(lane):
    call = lane().outlet.start_call(b"q", 10)
    for duplicate in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied"):
            duplicate(call)
