"""A borrowed message: given back once, when nobody looks at it any more, and never seen by anybody afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import EndOfMessages, InvalidState, MessageTooLarge, NoMessage


def lent(r, data=b"0123456789"):
    r.outlet.send(data)
    return r.inlet.recv_view(0)


def test_a_view_shows_the_message_in_place_and_cannot_be_written(lane):
    r = lane()
    with lent(r) as view:
        assert view == b"0123456789"
        assert (view.format, view.ndim, view.readonly, view.contiguous) == ("B", 1, True, True)
        with pytest.raises(TypeError):
            view[0] = 1
        with pytest.raises((TypeError, BufferError)):
            (ctypes.c_char * 10).from_buffer(view)
        r.poke(r.area, b"X")
        assert view[0] == ord("X")
    r.assert_at_rest()


def test_a_view_is_of_no_use_once_the_message_was_given_back(lane):
    r = lane()
    loan = lent(r)
    with loan as view:
        pass
    for use in (lambda: view[0], lambda: bytes(view), view.tolist, lambda: view[1:], lambda: len(view)):
        with pytest.raises(ValueError, match="released"):
            use()
    for use in (lambda: loan.view, loan.__enter__, lambda: loan.reply(b"")):
        with pytest.raises(InvalidState, match="given back"):
            use()


def test_release_may_be_called_twice_and_gives_back_once(lane):
    r = lane()
    loan, other = lent(r), lent(r)
    for _ in range(3):
        loan.release()
        assert r.inlet.lent == 1
    with other:
        pass
    other.release()
    r.assert_at_rest()
    assert r.used == 2


@pytest.mark.parametrize("size", [0, 1, 10])
def test_a_message_that_was_never_looked_at_is_given_back_by_who_says_so(lane, size):
    r = lane()
    lent(r, b"x" * size).release()
    with lent(r, b"x" * size):
        pass
    r.assert_at_rest()
    loan = lent(r, b"x" * size)
    assert loan.view == b"x" * size
    del loan
    r.assert_at_rest()


@pytest.mark.parametrize("size", [0, 1, 10])
@pytest.mark.parametrize("take", ["recv", "recv_many", "recv_view"])
def test_a_message_that_was_dropped_before_anybody_looked_at_it_is_handed_out_again(lane, size, take):
    r = lane()
    loans = [lent(r, letter * size) for letter in (b"a", b"b", b"c")]
    r.outlet.send(b"behind")
    loans[1].release()
    del loans
    gc.collect()
    assert r.inlet.available() == 3
    assert r.inlet.lent == 0
    got = []
    while r.inlet.available():
        if take == "recv":
            got.append(r.inlet.recv(0))
        elif take == "recv_many":
            got += r.inlet.recv_many(9, 0)
        else:
            with r.inlet.recv_view(0) as view:
                got.append(bytes(view))
    assert got == [b"a" * size, b"c" * size, b"behind"]
    r.assert_at_rest()


def test_a_call_whose_loan_was_dropped_unseen_can_be_answered(lane):
    r = lane()
    call = r.outlet.start_call(b"question", 8)
    r.inlet.recv_view(0)
    gc.collect()
    loan = r.inlet.recv_view(0)
    assert loan.view == b"question"
    loan.reply(b"answer")
    loan.release()
    assert call.answer(0) == b"answer"
    r.assert_at_rest()


def test_what_was_dropped_unseen_is_of_no_interest_after_a_restart(lane):
    r = lane()
    lent(r)
    r.layout.zero(r.memory)
    r.outlet.restart()
    r.inlet.restart(event_idx=True, indirect=False)
    r.outlet.send(b"anew")
    assert r.drain() == [b"anew"]
    r.assert_at_rest()


KEPT = {
    "slice": lambda view: view[2:5],
    "empty slice": lambda view: view[5:5],
    "cast": lambda view: view.cast("H"),
    "read-only twin": memoryview.toreadonly,
    "memoryview of it": memoryview,
    "slice of a slice": lambda view: view[1:][1:],
    "iterator over a slice": lambda view: iter(view[2:]),
    "array": lambda view: ctypes.py_object(memoryview(view)),
}


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
def test_whoever_keeps_a_part_hears_of_it_and_the_message_stays_out_until_it_dies(lane, keep):
    r = lane(2, 128)
    loan = lent(r)
    kept = keep(loan.view)
    for _ in range(2):
        with pytest.raises(InvalidState, match="still exists"):
            loan.release()
    r.inlet.tell()
    assert r.used == 0
    assert r.inlet.lent == 1
    r.outlet.send(b"y" * 60)
    assert r.inlet.recv(0) == b"y" * 60  # and lies elsewhere
    assert r.peek(r.area, 10) == b"0123456789"
    del kept
    loan.release()
    r.assert_at_rest()


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
def test_a_message_whose_part_was_kept_goes_back_by_itself_once_that_dies(lane, keep):
    r = lane()
    kept = []
    with pytest.raises(InvalidState, match="still exists"), lent(r) as view:
        kept.append(keep(view))
    del view
    gc.collect()
    r.inlet.tell()
    assert (r.used, r.inlet.lent) == (0, 1)
    kept.clear()
    gc.collect()
    r.assert_at_rest()
    assert r.used == 1


def test_a_view_that_the_user_released_is_given_back(lane):
    r = lane()
    loan = lent(r)
    loan.view.release()
    loan.release()
    r.assert_at_rest()


def test_the_error_of_the_block_matters_more_than_a_kept_part(lane):
    r = lane()
    kept = []
    with pytest.raises(KeyError), lent(r) as view:  # noqa: PT012 - the block is what is tested
        kept.append(view[1:])
        raise KeyError("mine")
    kept.clear()
    del view
    gc.collect()
    r.assert_at_rest()


@pytest.mark.parametrize("end", ["release", "drop"])
def test_what_a_view_was_made_from_does_not_open_the_next_message(lane, end):
    r = lane()
    loan = lent(r, b"old")
    kept = loan.view.obj
    if end == "release":
        with contextlib.suppress(InvalidState):
            loan.release()
    del loan
    r.inlet.tell()
    if r.inlet.lent == 0:  # else `kept` counts as somebody who looks, and the message is still out
        r.outlet.reclaim()
        r.outlet.send(b"new")
        with pytest.raises((BufferError, ValueError, RuntimeError)):
            memoryview(kept)
    else:
        assert bytes(kept) == b"old"


def test_a_loan_in_a_cycle_is_given_back_by_the_collector(lane):
    r = lane()
    loan = lent(r)
    ring = [loan, loan.view]
    ring.append(ring)
    del loan, ring
    gc.collect()
    r.assert_at_rest()


@given(st.lists(st.integers(0, 200), min_size=1, max_size=16), st.randoms(use_true_random=False), st.data())
def test_loans_go_back_in_any_order_released_or_dropped(lane, sizes, random, data):
    r = lane(16, 4096)
    r.outlet.send_many([bytes([i]) * size for i, size in enumerate(sizes)])
    loans = [(i, size, r.inlet.recv_view(0)) for i, size in enumerate(sizes)]
    random.shuffle(loans)
    while loans:
        i, size, loan = loans.pop()
        assert loan.view == bytes([i]) * size
        assert r.inlet.lent == len(loans) + 1
        if data.draw(st.booleans()):
            loan.release()
        del loan
        r.inlet.tell()
        assert r.inlet.lent == len(loans)
        r.outlet.reclaim()
        assert r.outlet.in_flight == len(loans)
    r.assert_at_rest()


def test_a_message_in_several_pieces_is_one_view(lane):
    r = lane()
    r.poke(r.area, b"abcdef")
    r.poke_desc(0, r.area, 2, 1, 1)
    r.poke_desc(1, r.area + 3, 3, 0)
    r.offer(0)
    with r.inlet.recv_view(0) as view:
        assert view == b"abdef"
        assert view.readonly


# -- answers -----------------------------------------------------------------------------------------------------------


def test_only_a_call_has_room_for_an_answer(lane):
    r = lane()
    loan = lent(r)
    assert loan.room == 0
    loan.reply(b"")
    with pytest.raises(MessageTooLarge) as caught:
        loan.reply(b"x")
    assert caught.value.facts == {"count": 1, "limit": 0}
    loan.release()
    r.assert_at_rest()


@pytest.mark.parametrize(
    ("data", "error"), [("text", TypeError), (None, TypeError), (memoryview(b"abcd")[::2], ValueError)]
)
def test_an_answer_is_a_contiguous_buffer(lane, data, error):
    r = lane()
    loan = lent(r)
    with pytest.raises(error):
        loan.reply(data)
    loan.release()
    r.assert_at_rest()


# -- when the lane ends or starts anew ---------------------------------------------------------------------------------


def test_what_is_released_after_the_sender_left_is_out_no_more(lane):
    r = lane()
    loan, dropped = lent(r), lent(r)
    assert dropped.view == b"0123456789"
    r.inlet.ready = False
    loan.release()
    assert r.inlet.lent == 1
    used = r.used
    del dropped
    r.inlet.tell()
    assert r.inlet.lent == 0
    assert r.used == used  # the rings are somebody else's by now


def restarted(r):
    r.layout.zero(r.memory)
    r.outlet.restart()
    r.inlet.restart(event_idx=True, indirect=False)
    r.outlet.send_many([b"after"] * 2)


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize("end", ["release", "drop", "block"])
def test_a_loan_from_before_a_restart_gives_nothing_back(lane, looked, end):
    r = lane()
    loan = lent(r)
    if looked:
        assert loan.view == b"0123456789"
    restarted(r)
    second = r.inlet.recv_view(0)  # the same head
    with pytest.raises(InvalidState):
        loan.reply(b"")
    if end == "release":
        loan.release()
    elif end == "block":
        loan.__exit__(None, None, None)
    del loan
    r.inlet.tell()
    assert (r.inlet.lent, r.used) == (1, 0)
    second.release()
    r.inlet.tell()
    assert (r.inlet.lent, r.used) == (0, 1)
    assert r.drain() == [b"after"]
    r.assert_at_rest()


def test_a_loan_from_before_a_restart_does_not_show_the_messages_of_the_next_sender(lane):
    r = lane()
    loan = lent(r)
    restarted(r)
    with pytest.raises(InvalidState):
        loan.view  # noqa: B018 - it is the look that must fail
    with pytest.raises(InvalidState):
        loan.__enter__()


# -- serving -----------------------------------------------------------------------------------------------------------


def until_idle(r):
    def left():
        raise EndOfMessages("gone")

    r.into.meanwhile = left


ANSWERS = {
    "the message itself": (lambda view: view, b"question"),
    "a part of it": (lambda view: view[:5], b"quest"),
    "a part of a part": (lambda view: view[1:][:2], b"ue"),
    "bytes": (lambda view: bytes(view)[::-1], b"noitseuq"),
    "nothing": (lambda view: None, b""),
    "empty": (lambda view: b"", b""),
    "as much as there is room for": (lambda view: b"x" * 64, b"x" * 64),
}


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_serve_answers_each_call(lane, answer, expected):
    r = lane()
    until_idle(r)
    r.out.meanwhile = lambda: r.inlet.serve(answer)
    for _ in range(3):
        assert r.outlet.call(b"question", 64) == expected
    r.assert_at_rest()


def test_serve_hands_over_what_its_function_raises_and_gives_the_message_back(lane):
    r = lane()

    def answer(view):
        raise KeyError("mine")

    r.outlet.send(b"x")
    with pytest.raises(KeyError):
        r.inlet.serve(answer)
    gc.collect()
    r.assert_at_rest()


def test_serve_refuses_an_answer_to_what_is_no_call(lane):
    r = lane()
    r.outlet.send(b"no call")
    with pytest.raises(MessageTooLarge):
        r.inlet.serve(lambda view: b"answer")
    r.outlet.send(b"no call")
    with pytest.raises(NoMessage):
        r.inlet.serve(lambda view: b"")
    r.assert_at_rest()
