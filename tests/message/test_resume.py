"""Receivers of a channel that resumes, one after the other: what was done, what comes again, and who is told.

Here a receiver's end is a `close` in the middle of its work, by an exception where something shall come again; real
deaths are in tests/process.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from vqshm_harness import PATIENCE, new_name, wait_until

from vqshm import Fanin, Fanout, Receiver, Sender, open_channel
from vqshm.errors import (
    DeviceNeedsReset,
    EndOfMessages,
    InvalidInflight,
    InvalidState,
    NoMessage,
    NoRoom,
    PeerGone,
    RuleError,
)
from vqshm.host import Handle
from vqshm.host.coordination.supervisor import give_up
from vqshm.host.driver_role import DriverRole
from vqshm.message.aio import AsyncReceiver, AsyncSender


class Trouble(Exception):
    """What a program does not expect."""


@pytest.fixture
def lasting(make_channel):
    """The name of a channel that resumes, with one lane or several."""

    def make(*lanes, **kinds):
        return make_channel(*lanes, restart="resume", **kinds).name

    return make


@contextlib.contextmanager
def in_trouble(attach):
    """A receiver that is left by an exception."""
    with contextlib.suppress(Trouble), attach as end:
        yield end
        raise Trouble


# -- the front door ----------------------------------------------------------------------------------------------------


def test_a_channel_is_opened_with_what_becomes_of_a_lane_whose_receiver_dies():
    name = new_name()
    with open_channel(name, restart="resume"):
        with in_trouble(Receiver.attach(name)) as receiver, Sender.attach(name) as sender:
            sender.send_many([b"0", b"1"])
            assert receiver.recv(PATIENCE) == b"0"
            assert receiver.recv(PATIENCE) == b"1"
        with Receiver.attach(name) as receiver:
            assert receiver.recv(PATIENCE) == b"1"
            assert receiver.replayed


@pytest.mark.parametrize("restart", ["hope", None])
def test_a_policy_that_no_lane_has_is_refused(restart):
    with pytest.raises(ValueError, match="reset, resume, fail"):
        open_channel(new_name(), restart=restart)


@pytest.mark.parametrize("attach", [Sender.attach, Receiver.attach, Fanin.attach, Fanout.attach])
def test_a_lane_whose_messages_are_to_fail_is_refused_by_name(make_channel, attach):
    name = make_channel(restart="fail").name
    with pytest.raises(RuleError, match="for a lane that is resume, with max_attempts=1"):
        attach(name, timeout=1)


def test_where_receivers_do_not_resume_nothing_is_ever_replayed(pair):
    sender, receiver = pair()
    sender.send_many([b"x"] * 3)
    receiver.recv()
    receiver.recv_many(1)
    with receiver.recv_view() as view:
        assert bytes(view) == b"x"
    assert receiver.replayed is False
    receiver.done()
    assert sender.qsize() == 0


# -- what is done ------------------------------------------------------------------------------------------------------


def test_what_is_done_is_seen_by_the_sender_at_once(lasting):
    name = lasting()
    with Receiver.attach(name) as receiver, Sender.attach(name) as sender:
        sender.send_many([b"%d" % number for number in range(6)])
        receiver.recv(PATIENCE)
        assert sender.qsize() == 6
        receiver.recv_many(2, PATIENCE)
        assert sender.qsize() == 5
        receiver.done()
        assert sender.qsize() == 3
        with receiver.recv_view(PATIENCE):
            assert sender.qsize() == 3
        assert sender.qsize() == 2
        assert receiver.recv(PATIENCE) == b"4"
    assert receiver.counts["messages"] == 5


def test_who_closes_a_receiver_is_done_with_what_it_received(lasting):
    name = lasting()
    with Receiver.attach(name) as receiver:
        sender = Sender.attach(name)
        sender.send_many([b"0", b"1", b"2"])
        receiver.recv_many(2, PATIENCE)
    assert sender.qsize() == 1
    with sender, Receiver.attach(name) as receiver:
        assert receiver.recv(PATIENCE) == b"2"
        assert not receiver.replayed


def test_a_block_that_is_left_by_an_exception_has_not_done_the_last(lasting):
    name = lasting()
    with in_trouble(Receiver.attach(name)) as receiver:
        sender = Sender.attach(name)
        sender.send_many([b"0", b"1", b"2"])
        assert receiver.recv(PATIENCE) == b"0"
        assert receiver.recv(PATIENCE) == b"1"
    assert sender.qsize() == 2
    with sender, Receiver.attach(name) as receiver:
        assert (receiver.recv(PATIENCE), receiver.replayed) == (b"1", True)
        assert (receiver.recv(PATIENCE), receiver.replayed) == (b"2", False)
        with pytest.raises(NoMessage):
            receiver.recv(0)


def test_objects_are_done_with_as_messages_are_arrays_too(lasting):
    numpy = pytest.importorskip("numpy")
    name = lasting()
    things = [{"a": 1}, numpy.arange(5), numpy.arange(3)]
    with in_trouble(Receiver.attach(name)) as receiver:
        sender = Sender.attach(name)
        sender.put_many(things)
        assert receiver.get(timeout=PATIENCE) == things[0]
        assert list(receiver.get(timeout=PATIENCE)) == [0, 1, 2, 3, 4]
        assert list(receiver.get(timeout=PATIENCE)) == [0, 1, 2]
        assert sender.qsize() == 1
    with sender, Receiver.attach(name) as receiver:
        with receiver.get_view(timeout=PATIENCE) as thing:
            assert list(thing) == [0, 1, 2]
            assert receiver.replayed
            del thing
        loan = None
        sender.put({"b": 2})
        loan = receiver.get_view(timeout=PATIENCE)
        assert loan.replayed is False
        loan.release()
        assert sender.qsize() == 0


def test_what_a_receiver_that_left_had_not_done_is_there_before_anything_is_asked_for(lasting):
    name = lasting()
    with in_trouble(Receiver.attach(name)) as receiver:
        sender = Sender.attach(name)
        sender.send_many([b"%d" % number for number in range(5)])
        receiver.recv_many(3, PATIENCE)
    with sender, Receiver.attach(name) as receiver:
        wait_until(receiver.qsize, "it hears of the sender")
        assert receiver.qsize() == 5
        assert not receiver.empty()
        for again in (b"0", b"1", b"2"):  # one by one
            assert receiver.recv_many(9, PATIENCE) == [again]
            assert receiver.replayed
        assert receiver.recv_many(9, PATIENCE) == [b"3", b"4"]
        assert not receiver.replayed


def test_the_sender_leaves_when_it_likes_and_the_next_one_begins_anew(lasting):
    name = lasting()
    with in_trouble(Receiver.attach(name)) as receiver, Sender.attach(name) as sender:
        sender.send_many([b"0", b"1"])
        receiver.recv(PATIENCE)
    with Receiver.attach(name) as receiver:
        assert list(receiver) == [b"0", b"1"]
        with Sender.attach(name) as sender:
            sender.send(b"new")
            assert (receiver.recv(PATIENCE), receiver.replayed) == (b"new", False)


def test_a_reset_of_the_sender_ends_a_session_and_tells_what_is_lost(lasting):
    name = lasting()
    with in_trouble(Receiver.attach(name)) as receiver:
        sender = Sender.attach(name)
        sender.send_many([b"0", b"1", b"2"])
        receiver.recv(PATIENCE)
        receiver.recv(PATIENCE)
    with sender, Receiver.attach(name) as receiver:
        thread = threading.Thread(target=lambda: [sender.reset(PATIENCE), sender.send(b"anew")])
        thread.start()
        while not receiver.replayed:
            assert receiver.recv(PATIENCE) == b"1"
        assert list(receiver) == [b"2"]
        assert receiver.recv(PATIENCE) == b"anew"
        thread.join(PATIENCE)


@pytest.mark.parametrize("restart", ["reset", "resume"])
def test_a_receiver_that_is_replaced_while_its_sender_attaches_is_noticed(make_channel, monkeypatch, restart):
    name = make_channel(restart=restart).name
    receivers = [Receiver.attach(name)]
    negotiate = DriverRole._negotiate
    got = []

    def receive():
        while not got:
            with contextlib.suppress(EndOfMessages):
                got.append(receivers[0].recv(PATIENCE))
        receivers[0].done()

    thread = threading.Thread(target=receive)

    def negotiate_and_replace(driver, *args):
        status = negotiate(driver, *args)
        if not thread.is_alive():
            receivers.pop().close()
            receivers.append(Receiver.attach(name))
            thread.start()
        return status

    monkeypatch.setattr(DriverRole, "_negotiate", negotiate_and_replace)
    with Sender.attach(name, timeout=PATIENCE) as sender:
        sender.send(b"x")
        sender.flush(PATIENCE)
        thread.join(PATIENCE)
        assert got == [b"x"]
    receivers[0].close()


# -- an area that was spoilt -------------------------------------------------------------------------------------------


def test_an_area_that_was_spoilt_is_named_once_and_the_sender_must_reset(lasting):
    name = lasting()
    with in_trouble(Receiver.attach(name)) as receiver:
        sender = Sender.attach(name)
        sender.send_many([b"0", b"1"])
        receiver.recv(PATIENCE)
        area = sender._driver.plan.queues[0].inflight
        sender._driver.memory.write(area.address + 14, b"\x00\x80")
    with sender, Receiver.attach(name) as receiver:
        with pytest.raises(InvalidInflight, match="last batch"):
            receiver.recv(PATIENCE)
        with pytest.raises(DeviceNeedsReset):
            sender.flush(PATIENCE)
        thread = threading.Thread(target=lambda: [sender.reset(PATIENCE), sender.send(b"anew")])
        thread.start()
        assert receiver.recv(PATIENCE) == b"anew"
        assert not receiver.replayed
        thread.join(PATIENCE)


# -- event loops -------------------------------------------------------------------------------------------------------


def test_in_an_event_loop_it_is_the_same(lasting):
    name = lasting(size=4)

    async def sending(sender):
        for number in range(20):
            await sender.send(b"%d" % number, PATIENCE)

    async def main():
        got = []
        receiver = await AsyncReceiver.attach(name)
        async with await AsyncSender.attach(name) as sender:
            task = asyncio.create_task(sending(sender))
            for _ in range(4):
                with contextlib.suppress(Trouble):
                    async with receiver:
                        got += [(int(await receiver.recv(PATIENCE)), receiver.replayed) for _ in range(3)]
                        raise Trouble
                await asyncio.sleep(0.01)
                receiver = await AsyncReceiver.attach(name)
            async with receiver:
                while len(got) < 24:
                    got.append((int(await receiver.recv(PATIENCE)), receiver.replayed))
                receiver.done()
                await task
                await sender.flush(PATIENCE)
        assert [number for number, again in got if not again] == list(range(20))
        assert [number for number, again in got if again] == [2, 4, 6, 8]

    asyncio.run(main())


# -- fans --------------------------------------------------------------------------------------------------------------


def test_a_fan_in_takes_nothing_ahead_and_goes_on_where_another_stopped(lasting):
    name = lasting("s0r0", "s1r0")
    with in_trouble(Fanin.attach(name)) as fan:
        senders = [Sender.attach(name, lane) for lane in ("s0r0", "s1r0")]
        for sender, letter in zip(senders, "ab", strict=True):
            sender.send_many([f"{letter}{number}".encode() for number in range(5)])
        first = [fan.recv(PATIENCE) for _ in range(4)]
        assert not fan.replayed
        assert sum(sender.qsize() for sender in senders) == 7
        assert len(fan.recv_many(2, PATIENCE)) == 2
        assert sum(sender.qsize() for sender in senders) == 6
    with Fanin.attach(name) as fan:
        again, rest = [], []
        for _ in range(6):
            message = fan.recv(PATIENCE)
            (again if fan.replayed else rest).append(message)
        assert len(again) == 2
        assert len({*first, *again, *rest}) == 10
        fan.done()
        assert [sender.qsize() for sender in senders] == [0, 0]
        for sender in senders:
            sender.send(b"view")
            with fan.recv_view(PATIENCE) as view:
                assert bytes(view) == b"view"
            assert sender.qsize() == 0
            sender.close()
        with pytest.raises(EndOfMessages):
            fan.recv(PATIENCE)


def test_a_fan_in_says_once_which_lane_was_spoilt_and_the_others_go_on(lasting):
    name = lasting("s0r0", "s1r0")
    with in_trouble(Fanin.attach(name)) as fan:
        senders = [Sender.attach(name, lane) for lane in ("s0r0", "s1r0")]
        for sender in senders:
            sender.send(b"x")
        fan.recv(PATIENCE)
        fan.recv(PATIENCE)
        area = senders[0]._driver.plan.queues[0].inflight
        senders[0]._driver.memory.write(area.address + 14, b"\x00\x80")
    with Fanin.attach(name) as fan:
        with pytest.raises(InvalidInflight, match="s0r0"):
            fan.recv(PATIENCE)
        assert (fan.recv(PATIENCE), fan.replayed) == (b"x", True)
        for sender in senders:
            sender.close()


def test_a_fan_out_waits_for_the_next_receiver_and_leaves_nobody_out(lasting):
    name = lasting("s0r0", "s0r1", size=4)
    with Receiver.attach(name, "s0r1") as steady:
        with in_trouble(Receiver.attach(name, "s0r0")) as receiver:
            fan = Fanout.attach(name, mode="broadcast")
            fan.send_many([b"%d" % number for number in range(3)])
            assert receiver.recv(PATIENCE) == b"0"
        assert steady.recv_many(3, PATIENCE) == [b"0", b"1", b"2"]
        steady.done()
        fan.send(b"3", PATIENCE)
        with pytest.raises(NoRoom):
            fan.send(b"4", 0.1)
        assert fan.gone == []
        with Receiver.attach(name, "s0r0") as receiver:
            assert (receiver.recv(PATIENCE), receiver.replayed) == (b"0", True)
            receiver.done()
            fan.send(b"4", PATIENCE)
            assert receiver.recv_many(9, PATIENCE) == [b"1", b"2", b"3", b"4"]
            assert not receiver.replayed
            receiver.done()
            assert steady.recv_many(9, PATIENCE) == [b"3", b"4"]
            steady.done()
            fan.flush(PATIENCE)
            fan.close()


def test_a_fan_out_that_shares_goes_on_with_the_others_meanwhile(lasting):
    name = lasting("s0r0", "s0r1", size=4)
    with Receiver.attach(name, "s0r1") as steady:
        with Receiver.attach(name, "s0r0"):
            fan = Fanout.attach(name)
        got = []
        for number in range(40):
            fan.send(b"%d" % number, PATIENCE)
            with contextlib.suppress(NoMessage):
                got += steady.recv_many(9, 0)
        steady.done()
        assert fan.gone == []
        with Receiver.attach(name, "s0r0") as receiver:
            with contextlib.suppress(NoMessage):
                while True:
                    got.append(receiver.recv(0.2))
            with contextlib.suppress(NoMessage):
                while True:
                    got.append(steady.recv(0))
            fan.flush(PATIENCE)
        assert sorted(map(int, got)) == list(range(40))
        fan.close()


def test_a_supervisor_that_gives_up_ends_the_wait(lasting):
    name = lasting(size=2)
    with Receiver.attach(name):
        sender = Sender.attach(name)
    with sender:
        sender.send_many([b"0", b"1"])
        give_up(Handle(name, "lane"), "it dies too often")
        with pytest.raises(PeerGone):
            sender.send(b"2", PATIENCE)
    with pytest.raises(InvalidState):
        sender.send(b"3")
