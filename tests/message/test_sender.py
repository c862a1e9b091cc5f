"""A sender sends whatever is bytes, in place if wished; waits for room; tells who holds what."""

from __future__ import annotations

import array
import ctypes
import queue
import select
import signal
import threading

import pytest
from vqshm_harness import BOTH, PATIENCE, wait_until

from vqshm import Receiver, Sender
from vqshm.errors import DeadlineExceeded, InvalidState, MessageTooLarge, NoMessage, NoRoom, PeerGone, QueueFull


def fill(sender: Sender, data: bytes = b"x") -> int:
    """Send until there is no room; how many went."""
    count = 0
    try:
        while True:
            sender.send(data, 0)
            count += 1
    except NoRoom:
        return count


def give_back(receiver: Receiver) -> None:
    """Let the receiver show the sender what it has taken, which it does whenever it finds nothing more."""
    with pytest.raises(NoMessage):
        receiver.recv(0)


# -- what is sent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"bytes", b"bytes"),
        (b"", b""),
        (bytearray(b"bytearray"), b"bytearray"),
        (bytearray(), b""),
        (memoryview(b"memoryview")[2:5], b"mor"),
        (memoryview(b""), b""),
        (memoryview(b"abcdefgh").cast("i"), b"abcdefgh"),
        (memoryview(b"abcdefgh").cast("B", (2, 4)), b"abcdefgh"),
        (array.array("H", [1, 2]), b"\1\0\2\0"),
        (array.array("d"), b""),
        ((ctypes.c_int * 2)(1, 2), b"\1\0\0\0\2\0\0\0"),
        ([b"a", bytearray(b"bc"), memoryview(b"def")], b"abcdef"),
        ((b"a", b"", b"b"), b"ab"),
        ([], b""),
        ([b"", b""], b""),
    ],
    ids=repr,
)
def test_any_contiguous_bytes_are_a_message(pair, data, expected):
    sender, receiver = pair()
    sender.send(data)
    sender.send_many([data, data])
    assert [receiver.recv(PATIENCE) for _ in range(3)] == [expected] * 3
    assert sender.counts["messages"] == 3
    assert sender.counts["bytes"] == 3 * len(expected)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ("text", TypeError),
        (7, TypeError),
        (None, TypeError),
        ([b"a", 7], TypeError),
        ([[b"a"]], TypeError),
        (memoryview(b"abcdef")[::2], ValueError),
        ([b"a", memoryview(b"abcdef")[::-1]], ValueError),
    ],
    ids=repr,
)
def test_what_is_no_contiguous_bytes_is_refused_and_nothing_of_it_is_sent(pair, data, error):
    sender, receiver = pair(size=4, buffers=4096)
    for _ in range(10):  # more often than there is room: nothing is lost
        with pytest.raises(error):
            sender.send(data)
        if not isinstance(data, list):
            with pytest.raises(error):
                sender.call(data, 4)
    with pytest.raises(error):
        sender.send_many([b"before", data, b"behind"])
    sender.send(bytes(4096 - 64), PATIENCE)  # all the room there is
    assert receiver.recv(PATIENCE) == b"before"
    assert receiver.recv(PATIENCE) == bytes(4096 - 64)
    give_back(receiver)


@pytest.mark.fault("G08")
def test_the_largest_message_takes_the_whole_lane_and_one_byte_more_is_refused_with_the_numbers(pair):
    sender, receiver = pair(buffers=8192)
    largest = bytes(range(256)) * 32
    assert sender.capacity == len(largest)
    for send in (
        sender.send,
        lambda data: sender.send([data[:1], data[1:]]),
        lambda data: sender.send_many([data]),
        lambda data: sender.reserve(len(data)),
        lambda data: sender.call(data, 1),
    ):
        with pytest.raises(MessageTooLarge, match="8192") as caught:
            send(largest + b"x")
        assert isinstance(caught.value, ValueError)
        assert caught.value.facts["limit"] == 8192
        assert caught.value.facts["count"] > 8192
    for _ in range(3):
        sender.send(largest, PATIENCE)
        assert receiver.recv(PATIENCE) == largest


@pytest.mark.parametrize("size", [1, 2, 4, 256])
def test_what_a_receiver_took_makes_room_at_once_if_the_lane_is_small(pair, size):
    """It may hold a few messages back, but never so many that the sender is held up though everything was received."""
    sender, receiver = pair(size=size, buffers=4096)
    for _ in range(50):
        taken = fill(sender, bytes(1000))
        assert 1 <= taken <= min(size, 4)
        for _ in range(taken):
            receiver.recv(PATIENCE)
        sender.send(b"there is room", 0)
        assert receiver.recv(PATIENCE) == b"there is room"
        give_back(receiver)


@pytest.mark.parametrize("event_idx", [True, False])
def test_many_messages_are_shown_in_few_notifications(pair, event_idx):
    sender, receiver = pair(size=1024, event_idx=event_idx)
    sender.send_many(b"%d" % number for number in range(1000))
    kicks = sender.counts["kicks"]
    assert kicks <= 1 + 1000 // 32
    assert receiver.recv_many(1000) == [b"%d" % number for number in range(1000)]


def test_of_a_batch_that_finds_no_room_the_first_ones_are_sent(pair):
    sender, receiver = pair(size=8)
    with pytest.raises(NoRoom) as caught:
        sender.send_many([b"%d" % number for number in range(20)], 0)
    assert caught.value.facts["sent"] == 8
    assert receiver.recv_many(100) == [b"%d" % number for number in range(8)]


def test_an_exception_of_the_iterator_leaves_what_was_sent_before(pair):
    def messages():
        yield b"1"
        yield b"2"
        raise ZeroDivisionError

    sender, receiver = pair()
    with pytest.raises(ZeroDivisionError):
        sender.send_many(messages())
    assert receiver.recv_many(10) == [b"1", b"2"]


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("-inf")])
def test_a_negative_timeout_is_refused(pair, timeout):
    sender, receiver = pair()
    for send in (
        lambda: sender.send(b"x", timeout),
        lambda: sender.send([b"x"], timeout),
        lambda: sender.send_many([b"x"], timeout),
        lambda: sender.reserve(1, timeout),
        lambda: sender.call(b"x", 1, timeout),
        lambda: sender.flush(timeout),
    ):
        with pytest.raises(ValueError, match="timeout"):
            send()
    assert receiver.empty()


# -- in place ----------------------------------------------------------------------------------------------------------


def test_what_is_written_into_a_reservation_is_sent_when_its_block_is_left(pair):
    sender, receiver = pair()
    with sender.reserve(5) as view:
        assert (len(view), view.readonly, view.format) == (5, False, "B")
        view[:] = b"hello"
        with pytest.raises(NoMessage):
            receiver.recv(0)
    assert receiver.recv(PATIENCE) == b"hello"
    with pytest.raises(ValueError, match="released"):
        view[0] = 0
    with sender.reserve(0):
        pass
    assert receiver.recv(PATIENCE) == b""


def test_less_than_was_reserved_can_be_sent_and_more_cannot(pair):
    sender, receiver = pair()
    for count in (0, 1, 9, 10):
        reservation = sender.reserve(10)
        reservation.view[:] = b"0123456789"
        with pytest.raises(ValueError, match="10 bytes"):
            reservation.commit(11)
        reservation.commit(count)
        assert receiver.recv(PATIENCE) == b"0123456789"[:count]
        with pytest.raises(InvalidState):
            reservation.commit()
        with pytest.raises(InvalidState):
            _ = reservation.view
        reservation.cancel()
    with pytest.raises(ValueError, match="-1"):
        sender.reserve(-1)


def test_a_block_that_is_left_by_an_exception_sends_nothing_and_gives_its_room_back(pair):
    sender, receiver = pair(size=2, buffers=4096)
    for _ in range(20):
        with pytest.raises(ZeroDivisionError), sender.reserve(4096, 0) as view:
            view[0] = 1 // 0
    sender.send(bytes(4096), 0)
    assert receiver.recv(PATIENCE) == bytes(4096)


def test_a_reservation_that_nobody_holds_any_more_gives_its_room_back(pair):
    sender, _ = pair(size=2, buffers=4096)
    for _ in range(20):
        sender.reserve(4096, 0)
    sender.send(bytes(4096), 0)
    sender.close()


def test_a_part_of_a_view_that_outlives_its_block_is_told_and_nothing_is_sent_meanwhile(pair):
    sender, receiver = pair()
    reservation = sender.reserve(8)
    with pytest.raises(InvalidState, match="still exists"), reservation as view:
        part = view[2:]
    with pytest.raises(NoMessage):
        receiver.recv(0)
    part[:] = b"behind"
    del part
    reservation.commit()
    assert receiver.recv(PATIENCE)[2:] == b"behind"


def test_messages_overtake_a_reservation_that_is_open(pair):
    sender, receiver = pair()
    with sender.reserve(5) as view:
        view[:] = b"later"
        sender.send(b"sooner")
        assert receiver.recv(PATIENCE) == b"sooner"
    assert receiver.recv(PATIENCE) == b"later"


def test_room_that_only_reservations_hold_is_not_waited_for(pair):
    sender, receiver = pair(size=4, buffers=4096)
    with sender.reserve(4096):
        for timeout in (0, None):
            with pytest.raises(InvalidState, match="1 reservation"):
                sender.send(b"x", timeout)
    assert receiver.recv(PATIENCE) == bytes(4096)


def test_a_sender_with_open_reservations_does_not_close(pair):
    sender, receiver = pair()
    reservation = sender.reserve(5)
    view = reservation.view
    with pytest.raises(InvalidState, match="1 reservation"):
        sender.close()
    view[:] = b"alive"
    reservation.commit()
    sender.send(b"still open")
    sender.close()
    sender.close()
    assert [receiver.recv(PATIENCE) for _ in range(2)] == [b"alive", b"still open"]


def test_a_reset_is_refused_while_a_reservation_is_open(pair):
    sender, receiver = pair()
    reservation = sender.reserve(5)
    receiver.close()
    with Receiver.attach(sender.region) as successor:
        with pytest.raises(InvalidState, match="1 reservation"):
            sender.reset(PATIENCE)
        reservation.cancel()
        assert sender.reset(PATIENCE) == 0
        sender.send(b"x")
        assert successor.recv(PATIENCE) == b"x"
        sender.close()


# -- calls -------------------------------------------------------------------------------------------------------------


def serving(me, name):
    """Answers in capitals; "end" ends it."""
    with Receiver.attach(name) as receiver:
        me.send("up")
        receiver.serve(lambda view: view.tobytes().upper())
        me.send("served")


@BOTH
def test_calls_are_answered(make_channel, notify):
    channel = make_channel(size=8, buffers=1 << 14, notify=notify)
    actor = channel.start(serving)
    with Sender.attach(channel.name) as sender:
        for number in range(300):
            word = b"word %d" % number * (number % 50)
            assert sender.call(word, max(1, len(word)), PATIENCE) == word.upper()
        assert sender.call(b"", 2, PATIENCE) == b""
        with pytest.raises(ValueError, match="at least 1"):
            sender.call(b"x", 0)
    assert actor.hear() == "served"


def test_a_call_that_is_received_as_a_message_has_an_empty_answer(pair):
    sender, receiver = pair()
    thread = threading.Thread(target=receiver.recv)
    thread.start()
    assert sender.call(b"x", 10, PATIENCE) == b""
    thread.join()


def test_a_call_without_an_answer_ends_at_its_deadline_and_its_room_comes_back(pair):
    sender, receiver = pair(size=4, buffers=4096)
    for _ in range(10):
        with pytest.raises(NoMessage, match=r"no answer.*is alive") as caught:
            sender.call(b"x", 2048, 0.001)
        assert isinstance(caught.value, (queue.Empty, TimeoutError))
        assert receiver.recv(PATIENCE) == b"x"  # too late
        give_back(receiver)
    sender.flush(0)
    sender.send(bytes(4096), 0)


# -- waiting for room --------------------------------------------------------------------------------------------------


def slow(me, name):
    """Receives as many messages as it is told each time, and says what they were."""
    with Receiver.attach(name) as receiver:
        me.send("up")
        while True:
            me.send([receiver.recv() for _ in range(me.recv())])


def pressing(me, name, what):
    """Waits for room without end, and says when it got some."""
    with Sender.attach(name) as sender:
        me.send("up")
        for number in range(4):
            sender.send(b"%d" % number)
        match what:
            case "send":
                sender.send(b"pressed")
            case "send_many":
                sender.send_many([b"pressed"])
            case "reserve":
                with sender.reserve(7) as view:
                    view[:] = b"pressed"
            case "flush":
                sender.flush()
        me.send("through")
        me.recv()


@pytest.mark.fault("G01")
@BOTH
@pytest.mark.parametrize("what", ["send", "send_many", "reserve", "flush"])
def test_who_waits_for_room_wakes_up_when_there_is_some(make_channel, notify, what):
    channel = make_channel(size=4, notify=notify)
    receiver = channel.start(slow)
    sender = channel.start(pressing, what)
    wait_until(lambda: sender.state() == "S", "the sender sleeps")
    receiver.say(4)
    assert receiver.hear() == [b"0", b"1", b"2", b"3"]
    assert sender.hear() == "through"
    if what != "flush":
        receiver.say(1)
        assert receiver.hear() == [b"pressed"]
    sender.finish()
    receiver.finish()


@BOTH
@pytest.mark.parametrize("late", [False, True], ids=["asleep", "just awake"])
def test_a_receiver_that_leaves_while_its_sender_falls_asleep_is_not_waited_for(pair, monkeypatch, notify, late):
    """It sleeps in two steps; what it hears in the first must not be slept over in the second."""
    sender, receiver = pair(size=8, notify=notify)
    assert fill(sender) == 8
    listen, slept = sender._ears.listen, []

    def falling_asleep(seconds):
        if not receiver._endpoint._closed:
            receiver.close()
            wait_until(lambda: select.select([sender._endpoint.fileno()], [], [], 0)[0], "its sender is told")
            if late:
                sender._endpoint.hear()
                return False
        slept.append(seconds)
        return listen(seconds)

    monkeypatch.setattr(sender._ears, "listen", falling_asleep)
    with pytest.raises(PeerGone):
        sender.send(b"y", PATIENCE)
    assert len(slept) == (0 if late else 1)


@pytest.mark.fault("G01")
@BOTH
@pytest.mark.parametrize("timeout", [0, 0.001, 0.03])
def test_no_room_until_the_deadline_names_who_holds_what(make_channel, notify, timeout):
    channel = make_channel(size=4, notify=notify)
    receiver = channel.start(slow)
    with Sender.attach(channel.name) as sender:
        assert fill(sender) == 4
        receiver.say(3)
        assert receiver.hear() == [b"x"] * 3
        assert fill(sender) == 3
        for send in (
            lambda: sender.send(b"x", timeout),
            lambda: sender.send_many([b"x"], timeout),
            lambda: sender.reserve(1, timeout),
            lambda: sender.call(b"x", 1, timeout),
            lambda: sender.flush(timeout),
        ):
            with pytest.raises(NoRoom) as caught:
                send()
            error = caught.value
            assert isinstance(error, (queue.Full, TimeoutError, QueueFull, DeadlineExceeded))
            text = str(error)
            assert f"process {receiver.pid}, is alive" in text
            assert "4 of 7 messages are out" in text
            assert "has given 3 messages back" in text
    receiver.kill()


def frozen_ones(me, name):
    with Receiver.attach(name) as receiver:
        me.send("up")
        while True:
            receiver.recv()


@pytest.mark.fault("C10")
@BOTH
def test_a_stopped_receiver_is_alive_and_goes_on_where_it_was(make_channel, notify):
    channel = make_channel(size=16, notify=notify)
    receiver = channel.start(frozen_ones)
    with Sender.attach(channel.name) as sender:
        sender.send(b"x")
        sender.flush(PATIENCE)
        receiver.freeze()
        assert fill(sender) == 16
        with pytest.raises(NoRoom, match=rf"process {receiver.pid}, is alive and has given 1 messages back"):
            sender.send(b"x", 0.02)
        receiver.signal(signal.SIGCONT)
        sender.send(b"x", PATIENCE)
        sender.flush(PATIENCE)
        assert sender.qsize() == 0
        assert sender.counts["messages"] == 18


def test_figures(pair):
    sender, receiver = pair()
    assert sender.qsize() == 0
    sender.send(b"12345")
    sender.send(b"678")
    assert sender.qsize() == 2
    counts = sender.counts
    assert (counts["messages"], counts["bytes"]) == (2, 8)
    assert set(counts) == {"messages", "bytes", "kicks", "kicks_suppressed", "waits", "undone"}
    assert receiver.recv_many(10) == [b"12345", b"678"]
    give_back(receiver)
    assert sender.qsize() == 0
    sender.flush(0)


def test_a_closed_sender_sends_nothing(pair):
    sender, _ = pair()
    sender.close()
    for send in (
        lambda: sender.send(b"x"),
        lambda: sender.send_many([b"x"]),
        lambda: sender.reserve(1),
        lambda: sender.call(b"x", 1),
        sender.flush,
        sender.reset,
        sender.fileno,
    ):
        with pytest.raises(InvalidState, match="closed"):
            send()


# -- reset -------------------------------------------------------------------------------------------------------------


def test_a_reset_tells_how_many_messages_nobody_gave_back(pair):
    sender, receiver = pair()
    for number in range(10):
        sender.send(b"%d" % number)
    for _ in range(7):
        receiver.recv(PATIENCE)
    receiver.close()
    with pytest.raises(PeerGone) as caught:
        sender.flush()
    assert caught.value.facts["in_flight"] == 3
    with Receiver.attach(sender.region) as successor:
        assert sender.reset(PATIENCE) == 3
        sender.send(b"anew")
        assert successor.recv(PATIENCE) == b"anew"
        sender.close()


def test_a_reset_that_finds_no_receiver_can_be_tried_again(pair):
    sender, receiver = pair()
    sender.send(b"lost")
    receiver.close()
    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            sender.reset(0.02)
        with pytest.raises((InvalidState, PeerGone)):
            sender.send(b"x", 0)
    with Receiver.attach(sender.region) as successor:
        assert sender.reset(PATIENCE) == 1
        sender.send(b"x")
        assert successor.recv(PATIENCE) == b"x"
        sender.close()
