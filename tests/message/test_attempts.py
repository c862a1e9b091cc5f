"""A message that no receiver lives to be done with: how often it came, when it is given up, and who is told of that.

Here a receiver's end is a `close` in the middle of its work; one that kills is in tests/process/test_poison.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

import pytest
from vqshm_harness import PATIENCE, new_name

from vqshm import Fanin, Receiver, Sender, open_channel
from vqshm.errors import EndOfMessages, NoMessage
from vqshm.message.aio import AsyncReceiver
from vqshm.view.snapshot import take

pytestmark = pytest.mark.fault("D01")


class Trouble(Exception):
    """What a program does not expect."""


@contextlib.contextmanager
def in_trouble(attach):
    """A receiver that is left by an exception, which has not done its last message."""
    with contextlib.suppress(Trouble), attach as end:
        yield end
        raise Trouble


@pytest.fixture
def limited(make_channel):
    """The name of a channel whose messages are received so often at most."""

    def make(attempts, *lanes, **kinds):
        return make_channel(*lanes, restart="resume", attempts=attempts, **kinds).name

    return make


def test_a_receiver_is_told_for_which_time_a_message_comes(limited):
    name = limited(None)
    with Receiver.attach(name), Sender.attach(name) as sender:
        sender.send(b"poison")
        sender.send(b"next")
    for attempt in range(1, 9):
        with in_trouble(Receiver.attach(name)) as receiver:
            assert receiver.recv(PATIENCE) == b"poison"
            assert (receiver.attempts, receiver.replayed) == (attempt, attempt > 1)
    with Receiver.attach(name) as receiver:  # which puts it aside
        loan = receiver.recv_view(PATIENCE)
        assert (loan.attempts, loan.replayed) == (9, True)
        loan.release()
        assert receiver.recv(PATIENCE) == b"next"
        assert (receiver.attempts, receiver.replayed) == (1, False)


def test_each_face_of_a_receiver_tells_it(limited):
    name = limited(None)
    with in_trouble(Receiver.attach(name)) as receiver, Sender.attach(name) as sender:
        sender.put({"a": 1})
        receiver.recv(PATIENCE)
    with in_trouble(Fanin.attach(name)) as fan:
        fan.recv(PATIENCE)
        assert (fan.attempts, fan.replayed) == (2, True)
    with in_trouble(Receiver.attach(name)) as receiver:
        receiver.recv_many(9, PATIENCE)
        assert receiver.attempts == 3

    async def ask():
        async with await AsyncReceiver.attach(name) as receiver:
            await receiver.recv(PATIENCE)
            assert receiver.attempts == 4
            raise Trouble

    with contextlib.suppress(Trouble):
        asyncio.run(ask())
    with Receiver.attach(name) as receiver:
        loan = receiver.get_view(timeout=PATIENCE)
        assert (loan.attempts, loan.replayed) == (5, True)
        with loan as value:
            assert value == {"a": 1}
            del value


def test_after_so_many_times_it_is_given_up_and_the_lane_goes_on(limited, caplog):
    name = limited(3)
    sender = None
    for attempt in range(1, 4):
        with in_trouble(Receiver.attach(name)) as receiver:
            sender = sender or Sender.attach(name)
            if attempt == 1:
                sender.send_many([b"before", b"poison", b"after"])
                assert receiver.recv(PATIENCE) == b"before"
            assert receiver.recv(PATIENCE) == b"poison"
            assert receiver.attempts == attempt
            assert (receiver.counts["undone"], sender.counts["undone"]) == (0, 0)
    with sender, Receiver.attach(name) as receiver, caplog.at_level(logging.WARNING, "vqshm.device"):
        assert receiver.recv(PATIENCE) == b"after"
        assert (receiver.attempts, receiver.replayed) == (1, False)
        assert (receiver.counts["undone"], sender.counts["undone"]) == (1, 1)
        assert "1 messages were given up: received 3 times" in caplog.text
        receiver.done()
        sender.flush(PATIENCE)
        with pytest.raises(NoMessage):
            receiver.recv(0)
        (cells,) = take(name).queues
        assert cells.device["undone"] == 1
    assert sender.counts["undone"] == 1


def test_a_reset_begins_to_count_anew_and_the_sender_counts_on(limited):
    name = limited(1)
    with in_trouble(Receiver.attach(name)) as receiver:
        sender = Sender.attach(name)
        sender.send(b"one")
        receiver.recv(PATIENCE)
    with sender, in_trouble(Receiver.attach(name)) as receiver:
        sender.send(b"two")
        assert receiver.recv(PATIENCE) == b"two"
        assert sender.counts["undone"] == receiver.counts["undone"] == 1
        thread = threading.Thread(target=lambda: [sender.reset(PATIENCE), sender.send(b"three")])
        thread.start()
        with pytest.raises(EndOfMessages):
            receiver.recv(PATIENCE)
        assert receiver.recv(PATIENCE) == b"three"
        thread.join(PATIENCE)
        assert (sender.counts["undone"], receiver.counts["undone"]) == (1, 0)


# -- fail --------------------------------------------------------------------------------------------------------------


def test_where_receivers_fail_what_was_not_done_is_given_up_and_the_rest_comes():
    name = new_name()
    with open_channel(name, restart="fail"):
        with in_trouble(Receiver.attach(name)) as receiver:
            sender = Sender.attach(name)
            sender.send_many([b"%d" % number for number in range(6)])
            assert receiver.recv(PATIENCE) == b"0"
            assert receiver.recv_many(3, PATIENCE) == [b"1", b"2", b"3"]
        with sender, Receiver.attach(name) as receiver:
            assert receiver.recv(PATIENCE) == b"4"
            assert not receiver.replayed
            assert receiver.recv(PATIENCE) == b"5"
            assert sender.counts["undone"] == receiver.counts["undone"] == 3


@pytest.mark.parametrize("attempts", [2, 0, -1])
def test_what_fails_is_not_attempted_twice(attempts):
    with pytest.raises(ValueError, match="received once"):
        open_channel(new_name(), restart="fail", max_attempts=attempts)


@pytest.mark.parametrize(("restart", "attempts"), [("reset", 1), ("resume", 0), ("resume", 1 << 16), ("resume", 1.5)])
def test_a_limit_that_makes_no_sense_is_refused(restart, attempts):
    with pytest.raises(ValueError, match="max_attempts"):
        open_channel(new_name(), restart=restart, max_attempts=attempts)
