"""A receiver takes messages as bytes or in place, waits for them, and tells when the sender has left."""

from __future__ import annotations

import gc
import queue
import threading
import time
from pathlib import Path

import pytest
from vqshm_harness import BOTH, PATIENCE, wait_until

from vqshm import Receiver, Sender
from vqshm.errors import (
    ChainTooLong,
    DeadlineExceeded,
    EndOfMessages,
    InvalidState,
    MessageTooLarge,
    NoMessage,
    NoRoom,
    PeerGone,
    PeerViolation,
    QueueBroken,
    QueueEmpty,
)

# -- taking ------------------------------------------------------------------------------------------------------------


def test_messages_come_in_order_one_or_many_at_a_time(pair):
    sender, receiver = pair(size=64)
    words = [b"%d" % number for number in range(50)]
    sender.send_many(words)
    assert receiver.recv(PATIENCE) == words[0]
    assert receiver.recv_many(1, PATIENCE) == words[1:2]
    assert receiver.recv_many(10, PATIENCE) == words[2:12]
    with receiver.recv_view(PATIENCE) as view:
        assert view == words[12]
    assert receiver.recv_many(1000, PATIENCE) == words[13:]
    assert isinstance(receiver.recv_many, type(receiver.recv))


@pytest.mark.parametrize("limit", [0, -1])
def test_to_receive_no_messages_is_refused(pair, limit):
    sender, receiver = pair()
    sender.send(b"x")
    with pytest.raises(ValueError, match="at least 1"):
        receiver.recv_many(limit)
    assert receiver.recv(0) == b"x"


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("-inf")])
def test_a_negative_timeout_is_refused(pair, timeout):
    sender, receiver = pair()
    sender.send(b"x")
    for receive in (receiver.recv, receiver.recv_view, lambda timeout: receiver.recv_many(5, timeout)):
        with pytest.raises(ValueError, match="timeout"):
            receive(timeout)
    assert receiver.recv(0) == b"x"


def test_what_is_there_is_told_before_anything_was_received(pair):
    sender, receiver = pair()
    assert receiver.empty()
    sender.send_many([b"1", b"2", b"3"])
    assert (receiver.qsize(), receiver.empty()) == (3, False)
    assert receiver.recv(0) == b"1"
    assert receiver.qsize() == 2
    counts = receiver.counts
    assert (counts["messages"], counts["bytes"]) == (1, 1)
    assert set(counts) == {"messages", "bytes", "calls", "calls_suppressed", "waits", "undone"}


def test_without_a_sender_there_is_no_message_and_one_may_come_later(make_channel):
    channel = make_channel()
    with Receiver.attach(channel.name) as receiver:
        assert receiver.peer is None
        for timeout in (0, 0.01):
            with pytest.raises(NoMessage):
                receiver.recv(timeout)
        assert receiver.empty()
        with Sender.attach(channel.name) as sender:
            sender.send(b"x")
            assert receiver.recv(PATIENCE) == b"x"


# -- in place ----------------------------------------------------------------------------------------------------------


def test_a_message_is_looked_at_in_place_until_its_block_is_left(pair):
    sender, receiver = pair()
    sender.send(b"look")
    loan = receiver.recv_view(PATIENCE)
    with loan as view:
        assert (view.tobytes(), view.readonly, view.format) == (b"look", True, "B")
        with pytest.raises(TypeError):
            view[0] = 0
    with pytest.raises(ValueError, match="released"):
        view[0]
    with pytest.raises(InvalidState, match="given back"):
        _ = loan.view
    with pytest.raises(InvalidState, match="given back"):
        loan.reply(b"x")
    loan.release()


def test_loans_are_released_in_any_order_and_hold_the_room_of_the_younger_ones(pair):
    sender, receiver = pair(size=4)
    sender.send_many([b"0", b"1", b"2", b"3"])
    loans = [receiver.recv_view(PATIENCE) for _ in range(4)]
    views = [loan.view for loan in loans]
    with pytest.raises(NoRoom, match="4 of 4 messages are out"):
        sender.send(b"4", 0.001)
    for number in (2, 0, 3, 1):
        assert views[number] == b"%d" % number
        loans[number].release()
    sender.send_many([b"4", b"5", b"6", b"7"], 0)
    assert receiver.recv_many(10) == [b"4", b"5", b"6", b"7"]


def test_a_part_of_a_view_that_outlives_its_block_is_told_and_stays_true(pair):
    sender, receiver = pair(buffers=4096)
    sender.send(b"keep me")
    with pytest.raises(InvalidState, match="still exists"), receiver.recv_view(PATIENCE) as view:
        part = view[5:]
    for _ in range(20):
        sender.send(bytes(100), 0)
        receiver.recv(PATIENCE)
        with pytest.raises(NoMessage):
            receiver.recv(0)
    assert part == b"me"
    with pytest.raises(InvalidState, match="looked at"):
        receiver.close()
    del part, view
    gc.collect()
    with pytest.raises(NoMessage):
        receiver.recv(0)
    sender.flush(0)
    receiver.close()


def test_a_loan_that_nobody_holds_any_more_is_given_back(pair):
    sender, receiver = pair(size=2)
    for number in range(20):
        sender.send(b"%d" % number, 0)
        assert receiver.recv_view(PATIENCE).view == b"%d" % number
        gc.collect()
        with pytest.raises(NoMessage):
            receiver.recv(0)
    sender.flush(0)


def test_a_receiver_with_loans_out_does_not_close(pair):
    sender, receiver = pair()
    sender.send(b"borrowed")
    loan = receiver.recv_view(PATIENCE)
    view = loan.view
    with pytest.raises(InvalidState, match="1 message"):
        receiver.close()
    assert view == b"borrowed"
    sender.send(b"still open")
    assert receiver.recv(PATIENCE) == b"still open"
    loan.release()
    receiver.close()
    receiver.close()


def test_a_receiver_with_loans_of_a_sender_that_left_does_not_close_either(pair):
    sender, receiver = pair()
    sender.send(b"borrowed")
    loan = receiver.recv_view(PATIENCE)
    view = loan.view
    sender.close()
    with pytest.raises(EndOfMessages):
        receiver.recv(PATIENCE)
    with pytest.raises(InvalidState, match="1 message"):
        receiver.close()  # the next sender would write under the view
    assert view == b"borrowed"
    loan.release()
    receiver.close()


@pytest.mark.parametrize("how", ["release", "drop"])
def test_views_outlive_their_sender_and_the_next_one_waits_for_them(pair, how):
    sender, receiver = pair()
    sender.send(b"borrowed")
    loan = receiver.recv_view(PATIENCE)
    view = loan.view
    sender.close()
    with pytest.raises(EndOfMessages):
        receiver.recv(PATIENCE)
    with pytest.raises(InvalidState, match="still out"):
        receiver.recv(0)
    with pytest.raises(DeadlineExceeded, match="let go"):
        Sender.attach(sender.region, timeout=0.02)
    assert view == b"borrowed"
    if how == "release":
        loan.release()
    else:
        del loan, view
        gc.collect()
    with pytest.raises(NoMessage):
        receiver.recv(0)
    with Sender.attach(sender.region) as successor:
        successor.send(b"next")
        assert receiver.recv(PATIENCE) == b"next"


def test_replies_have_their_limits(pair):
    sender, receiver = pair()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(sender.call(b"question", 4, PATIENCE)))
    thread.start()
    loan = receiver.recv_view(PATIENCE)
    assert loan.room == 4
    with pytest.raises(MessageTooLarge, match=r"5 bytes.*room for 4"):
        loan.reply(b"12345")
    loan.reply(b"1")
    loan.reply(b"1234")
    loan.release()
    thread.join()
    assert answers == [b"1234"]
    sender.send(b"no question")
    with receiver.recv_view(PATIENCE):
        pass
    sender.send(b"no question")
    loan = receiver.recv_view(PATIENCE)
    assert loan.room == 0
    with pytest.raises(MessageTooLarge):
        loan.reply(b"x")
    loan.release()


def test_an_exception_of_who_serves_reaches_its_caller_and_the_call_ends_without_an_answer(pair):
    sender, receiver = pair()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(sender.call(b"x", 4, PATIENCE)))
    thread.start()
    with pytest.raises(ZeroDivisionError):
        receiver.serve(lambda view: 1 // 0)
    thread.join()
    assert answers == [b""]


# -- waiting -----------------------------------------------------------------------------------------------------------


def waiting(me, name):
    """Receives without end, and says each message."""
    with Receiver.attach(name) as receiver:
        me.send("up")
        while True:
            for message in receiver:
                me.send(message)
            me.send("end")


def counting(me, name):
    """Receives for a while with another thread that counts; says how far that one came meanwhile."""
    with Receiver.attach(name) as receiver:
        count, stop = 0, threading.Event()

        def run():
            nonlocal count
            while not stop.is_set():
                count += 1

        thread = threading.Thread(target=run)
        thread.start()
        me.send("up")
        receiver.recv()
        seen = count
        me.send(seen)
        receiver.recv()
        me.send(count - seen)
        stop.set()
        thread.join()


@BOTH
def test_who_waits_for_a_message_wakes_up_when_it_comes(make_channel, notify):
    channel = make_channel(notify=notify)
    actor = channel.start(waiting)
    for _ in range(2):
        with Sender.attach(channel.name) as sender:
            for number in range(20):
                wait_until(lambda: actor.state() == "S", "the receiver sleeps")
                sender.send(b"%d" % number)
                assert actor.hear() == b"%d" % number
        assert actor.hear() == "end"


@BOTH
def test_a_waiting_receiver_uses_no_processor(make_channel, notify):
    channel = make_channel(notify=notify)
    actor = channel.start(waiting)
    with Sender.attach(channel.name) as sender:
        sender.send(b"x")
        assert actor.hear() == b"x"
        wait_until(lambda: actor.state() == "S", "the receiver sleeps")
        before, start = nanoseconds(actor.pid), time.process_time()
        while time.process_time() - start < 0.4:
            pass  # what this process uses meanwhile is the measure
        used = nanoseconds(actor.pid) - before
        assert used < (0.001 if notify == "eventfd" else 0.05) * 0.4e9


def nanoseconds(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


@BOTH
def test_other_threads_run_while_one_waits(make_channel, notify):
    channel = make_channel(notify=notify)
    actor = channel.start(counting)
    with Sender.attach(channel.name) as sender:
        wait_until(lambda: actor.cpu_seconds() > 0.2, "the other thread has counted")
        sender.send(b"x")
        assert actor.hear() > 1000
        used = actor.cpu_seconds()
        wait_until(lambda: actor.cpu_seconds() > used + 0.2, "the other thread has counted")
        sender.send(b"x")
        assert actor.hear() > 1000


@BOTH
@pytest.mark.parametrize("timeout", [0, 0.001, 0.03])
def test_no_message_until_the_deadline_names_who_is_waited_for(make_channel, notify, timeout):
    channel = make_channel(notify=notify)
    with Receiver.attach(channel.name) as receiver:
        actor = channel.start(sending_once)
        assert receiver.recv(PATIENCE) == b"once"
        for receive in (receiver.recv, receiver.recv_view, lambda timeout: receiver.recv_many(5, timeout)):
            with pytest.raises(NoMessage, match=rf"process {actor.pid}, is alive; 1 came so far") as caught:
                receive(timeout)
            assert isinstance(caught.value, queue.Empty)
            assert isinstance(caught.value, TimeoutError)
            assert isinstance(caught.value, QueueEmpty)
            assert not isinstance(caught.value, PeerGone)


def sending_once(me, name):
    with Sender.attach(name) as sender:
        sender.send(b"once")
        me.send("up")
        me.recv()


# -- the end of a sender -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 50])
def test_after_a_sender_left_everything_is_received_and_then_the_end_is_told_once(pair, count):
    sender, receiver = pair()
    pid = sender.peer.pid
    sender.send_many(b"%d" % number for number in range(count))
    sender.close()
    assert [receiver.recv(PATIENCE) for _ in range(count)] == [b"%d" % number for number in range(count)]
    with pytest.raises(EndOfMessages, match="left") as caught:
        receiver.recv(PATIENCE)
    assert isinstance(caught.value, EOFError)
    assert caught.value.facts == {"pid": pid, "ended": False}
    with pytest.raises(NoMessage):
        receiver.recv(0.001)
    with Sender.attach(sender.region) as successor:
        successor.send(b"anew")
        assert receiver.recv(PATIENCE) == b"anew"
        assert successor.counts["messages"] == 1


def test_iteration_and_serving_end_with_the_sender_and_can_be_begun_again(pair):
    sender, receiver = pair()
    name = sender.region
    for _ in range(3):
        sender.send_many([b"a", b"b"])
        sender.close()
        assert list(receiver) == [b"a", b"b"]
        sender = Sender.attach(name)
        sender.send_many([b"", b"c"])
        sender.close()
        seen = []
        receiver.serve(lambda view, seen=seen: seen.append(view.tobytes()))
        assert seen == [b"", b"c"]
        sender = Sender.attach(name)
    sender.close()


def test_a_sender_that_came_and_left_before_anybody_looked_loses_nothing(make_channel):
    channel = make_channel()
    with Receiver.attach(channel.name) as receiver:
        for number in range(3):
            with Sender.attach(channel.name) as sender:
                sender.send(b"%d" % number)
            assert list(receiver) == [b"%d" % number]


def test_a_sender_cannot_begin_before_the_last_one_s_messages_were_received(make_channel):
    channel = make_channel()
    with Receiver.attach(channel.name) as receiver:
        with Sender.attach(channel.name) as sender:
            sender.send(b"unread")
        with pytest.raises(DeadlineExceeded):
            Sender.attach(channel.name, timeout=0.02)
        assert list(receiver) == [b"unread"]
        with Sender.attach(channel.name) as sender:
            sender.send(b"x")
            assert receiver.recv(PATIENCE) == b"x"


def test_a_reset_by_the_sender_ends_its_messages_and_begins_anew(pair):
    sender, receiver = pair()
    sender.send(b"before")
    seen = []

    def run():
        seen.append(list(receiver))
        seen.append(receiver.recv(PATIENCE))

    thread = threading.Thread(target=run)
    thread.start()
    assert sender.reset(PATIENCE) == 0  # it was received before the receiver let go
    sender.send(b"after")
    thread.join()
    assert seen == [[b"before"], b"after"]


def test_a_closed_receiver_receives_nothing(pair):
    sender, receiver = pair()
    sender.send(b"x")
    receiver.close()
    for receive in (
        receiver.recv,
        receiver.recv_view,
        lambda: receiver.recv_many(1),
        lambda: receiver.serve(bytes),
        lambda: list(receiver),
        receiver.fileno,
        receiver.qsize,
        receiver.empty,
    ):
        with pytest.raises(InvalidState, match="handle is closed"):
            receive()


# -- a limit -----------------------------------------------------------------------------------------------------------


def test_a_message_beyond_the_limit_of_its_receiver_is_a_violation_of_the_sender(make_channel):
    channel = make_channel()
    with Receiver.attach(channel.name, limit=100) as receiver, Sender.attach(channel.name) as sender:
        sender.send(bytes(100))
        assert receiver.recv(PATIENCE) == bytes(100)
        sender.send(bytes(101))
        with pytest.raises(ChainTooLong, match="100 are the limit") as caught:
            receiver.recv(PATIENCE)
        assert isinstance(caught.value, PeerViolation)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused_and_takes_no_role(make_channel, limit):
    channel = make_channel()
    with pytest.raises(ValueError, match="at least 1 byte"):
        Receiver.attach(channel.name, limit=limit)
    with Receiver.attach(channel.name):
        pass


# -- behind a violation ------------------------------------------------------------------------------------------------


def send_too_much(me, region):
    """Send a message that is too long; when told so reset the lane and send another one."""
    with Sender.attach(region) as sender:
        sender.send(bytes(101))
        me.recv()
        sender.reset(PATIENCE)
        sender.send(b"anew")
        me.recv()


def test_behind_a_violation_the_reset_of_the_sender_is_waited_for(make_channel, start):
    name = make_channel().name
    with Receiver.attach(name, limit=100) as receiver:
        sender = start(send_too_much, name)
        with pytest.raises(PeerViolation):
            receiver.recv(PATIENCE)
        for timeout in (0, 0.01):
            with pytest.raises(QueueBroken, match="must reset it"):
                receiver.recv(timeout)
        sender.say("go on")
        assert receiver.recv() == b"anew"
        sender.say("leave")


def test_behind_a_violation_a_sender_that_dies_is_not_waited_for(make_channel, start):
    name = make_channel().name
    with Receiver.attach(name, limit=100) as receiver:
        sender = start(send_too_much, name)
        with pytest.raises(PeerViolation):
            receiver.recv(PATIENCE)
        timer = threading.Timer(0.2, sender.kill)
        timer.start()
        with pytest.raises(NoMessage, match="no driver attached"):  # it is the next one that is waited for
            receiver.recv(1.0)
        timer.join()
        with Sender.attach(name) as other:
            other.send(b"anew")
            assert receiver.recv(PATIENCE) == b"anew"
