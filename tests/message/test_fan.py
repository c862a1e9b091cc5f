"""Several lanes as one: nobody starves, order is kept, who dies is named, and the others never notice."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import select
import signal
import struct
import threading
import time
from pathlib import Path

import pytest
from vqshm_harness import BOTH, PATIENCE, Interrupter, descriptors, wait_until

from vqshm import Fanin, Fanout, Receiver, Sender
from vqshm.errors import (
    ChainTooLong,
    EndOfMessages,
    InvalidAvailRingIndex,
    InvalidState,
    InvalidUsedRingIndex,
    MessageTooLarge,
    NoMessage,
    NoRoom,
    PeerGone,
    PeerViolation,
    RoleTaken,
)
from vqshm.memory import atomic
from vqshm.message.channel import lanes_of
from vqshm.message.fan.turns import TENURE, WORTH
from vqshm.ring.layout import IDX

FOUR_IN = [f"s{number}r0" for number in range(4)]
FOUR_OUT = [f"s0r{number}" for number in range(4)]


# -- actors ------------------------------------------------------------------------------------------------------------


def produce(me, region, lane, count):
    """Send numbered messages; endlessly if there is no count."""
    with Sender.attach(region, lane) as sender:
        me.send("ready")
        number = 0
        while number != count:
            sender.send(struct.pack("<QQ", int(lane[1]), number))
            number += 1
        me.recv()


def consume(me, region, lane):
    """Receive until the sender leaves, and tell what came."""
    with Receiver.attach(region, lane) as receiver:
        me.send("ready")
        me.send(list(receiver))


def fall_asleep(me, region, lane):
    """Hold the receiver's role and take nothing."""
    with Receiver.attach(region, lane):
        me.send("ready")
        me.recv()


def take_place(me, region):
    """Take a place as soon as the test says so, and tell which."""
    me.recv()
    with Fanin.attach(region) as fan:
        me.send(fan.lanes)
        me.recv()


def idle(me, region):
    """Look into the region, and leave."""
    lanes_of(region)


def listen(me, region):
    """Receive from everybody."""
    with Fanin.attach(region) as fan:
        me.send("ready")
        me.send(list(fan))


# -- fixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def senders(make_channel):
    """A fan-in of four lanes, and the sender of each."""
    name = make_channel(*FOUR_IN).name
    with Fanin.attach(name) as fan:
        ends = [Sender.attach(name, lane) for lane in FOUR_IN]
        yield fan, ends
        for end in ends:
            end.close()


@pytest.fixture
def receivers(make_channel):
    """The four receivers of a channel, and a function that makes the fan-out to them."""
    name = make_channel(*FOUR_OUT).name
    ends = [Receiver.attach(name, lane) for lane in FOUR_OUT]
    fans = []

    def fan_out(mode="share"):
        fans.append(Fanout.attach(name, mode=mode))
        return fans[-1]

    yield fan_out, ends
    for fan in fans:
        fan.close()
    for end in ends:
        end.close()


def fill(fan, message=b"x") -> int:
    """Send until there is no room."""
    count = 0
    with contextlib.suppress(NoRoom):
        while True:
            fan.send(message, 0)
            count += 1
    return count


def drain(receiver) -> list[bytes]:
    """Everything that is there; the sender has it all back then."""
    messages = []
    with contextlib.suppress(NoMessage):
        while True:
            messages += receiver.recv_many(1000, 0)
    return messages


# -- places ------------------------------------------------------------------------------------------------------------


def test_each_fan_takes_the_first_free_place(make_channel):
    name = make_channel("s0r0", "s0r1", "s1r0", "s1r1").name
    with Fanin.attach(name) as first, Fanin.attach(name) as second:
        assert (first.lanes, second.lanes) == (("s0r0", "s1r0"), ("s0r1", "s1r1"))
        with pytest.raises(RoleTaken, match="every place for a receiver"):
            Fanin.attach(name)
        with Fanout.attach(name) as third, Fanout.attach(name) as fourth:
            assert (third.place, fourth.place) == (0, 1)
            with pytest.raises(RoleTaken):
                Fanout.attach(name)
        for fan in (first, second):
            with pytest.raises(EndOfMessages):  # they see that both have left
                fan.recv(PATIENCE)
        with Fanout.attach(name) as again:
            assert again.place == 0


def test_a_place_that_is_taken_in_part_is_left_to_whoever_has_the_rest(make_channel):
    name = make_channel("s0r0", "s0r1", "s1r0", "s1r1").name
    with Receiver.attach(name, "s1r0"), Fanin.attach(name) as fan:
        assert fan.lanes == ("s0r1", "s1r1")
        with Receiver.attach(name, "s0r0"):  # the other one was given back
            pass


def test_two_processes_that_race_for_a_place_get_two_different_ones(make_channel, start):
    name = make_channel("s0r0", "s0r1", "s1r0", "s1r1").name
    for _ in range(5):
        racers = [start(take_place, name) for _ in range(2)]
        for racer in racers:
            racer.say("go")
        assert sorted(racer.hear() for racer in racers) == [("s0r0", "s1r0"), ("s0r1", "s1r1")]
        for racer in racers:
            racer.say("leave")
            racer.finish()


def test_nothing_stays_open(make_channel):
    name = make_channel(*FOUR_IN).name
    before = descriptors()
    with Fanin.attach(name) as fan:
        fan.fileno()
        with Fanout.attach(name) as sender:
            sender.send(b"here")
            sender.fileno()
            assert fan.recv() == b"here"
    fan.close()
    with pytest.raises(InvalidState, match="closed"):
        fan.recv(0)
    with pytest.raises(InvalidState, match="closed"):
        sender.send(b"too late", 0)
    del fan, sender
    assert descriptors() == before


# -- fan-in ------------------------------------------------------------------------------------------------------------


def test_a_busy_lane_keeps_none_from_being_heard(senders):
    fan, ends = senders
    ends[0].send_many([b"busy"] * 60)
    for end in ends[1:]:
        end.send(b"one")
    first = [fan.recv() for _ in range(19)]
    assert first.count(b"one") == 3
    assert fan.recv_many(1000) == [b"busy"] * 44


def test_the_order_of_each_sender_is_kept_whatever_way_messages_are_taken(senders):
    fan, ends = senders
    seen: dict[int, list[int]] = {number: [] for number in range(4)}

    def note(message):
        who, number = struct.unpack("<QQ", message)
        seen[who].append(number)

    for number in range(50):
        for who, end in enumerate(ends):
            end.send(struct.pack("<QQ", who, number))
    for _ in range(10):
        note(fan.recv())
        with fan.recv_view() as view:
            note(view)
        for message in fan.recv_many(7):
            note(message)
    for message in drain(fan):
        note(message)
    assert seen == {number: list(range(50)) for number in range(4)}


def test_what_was_taken_is_received_for_its_sender_and_still_there(senders):
    fan, ends = senders
    ends[2].send_many([b"a", b"b", b"c"])
    assert fan.recv() == b"a"
    ends[2].flush(PATIENCE)
    assert fan.qsize() == 2
    assert [fan.recv_many(5), fan.empty()] == [[b"b", b"c"], True]


def test_a_view_of_what_was_taken_is_read_only_and_unusable_afterwards(senders):
    fan, ends = senders
    ends[0].send_many([b"first", b"second"])
    fan.recv()
    loan = fan.recv_view()
    with loan as view:
        assert (bytes(view), view.readonly, loan.room) == (b"second", True, 0)
        with pytest.raises(MessageTooLarge):
            loan.reply(b"to nobody")
    with pytest.raises(ValueError, match="released"):
        view[0]
    with pytest.raises(InvalidState):
        _ = loan.view


def test_closing_with_views_out_is_refused_and_closes_nothing(senders):
    fan, ends = senders
    ends[3].send(b"looked at")
    with fan.recv_view() as view:
        with pytest.raises(InvalidState, match="1 messages"):
            fan.close()
        assert bytes(view) == b"looked at"
    ends[3].send(b"still open")
    assert fan.recv() == b"still open"


def test_bad_arguments_are_refused(senders, receivers):
    fan, _ = senders
    fan_out, _ = receivers
    for call in (lambda: fan.recv(-1), lambda: fan.recv_many(0), lambda: fan.recv_many(1, float("nan"))):
        with pytest.raises(ValueError, match=r"not|cannot"):
            call()
    out = fan_out()
    for call in (lambda: out.send(b"", -1), lambda: out.send_many([], -1), lambda: out.reserve(-1)):
        with pytest.raises(ValueError, match=r"not|cannot"):
            call()
    with pytest.raises(ValueError, match='"share" or "broadcast"'):
        Fanout.attach(out.region, mode="multicast")


def test_a_deadline_names_the_senders_that_are_there(senders):
    fan, ends = senders
    for timeout in (0, 0.01):
        with pytest.raises(NoMessage, match=f"4 senders are there .*s3r0: process {ends[3].peer.pid}"):
            fan.recv(timeout)


def test_senders_come_and_go_and_the_end_comes_once_all_have_left(senders):
    fan, ends = senders
    ends[1].send(b"bye")
    ends[1].close()
    assert fan.recv() == b"bye"
    ends[0].send(b"still here")
    assert fan.recv() == b"still here"
    with pytest.raises(NoMessage):
        fan.recv(0.01)
    assert [(who.lane, who.ended) for who in fan.departed] == [("s1r0", False)]
    with Sender.attach(fan.region, "s1r0") as back:
        back.send(b"again")
        assert fan.recv() == b"again"
        assert len(fan.present) == 4
    for end in ends:
        end.close()
    with pytest.raises(EndOfMessages) as caught:
        fan.recv(PATIENCE)
    assert caught.value.facts["pid"] == os.getpid()
    with pytest.raises(NoMessage, match="no sender"):
        fan.recv(0.01)  # once only: now it waits for the next one
    assert len(fan.departed) == 5


def test_an_event_loop_hears_of_the_end_also_where_every_look_found_one_more_that_left(make_channel, monkeypatch):
    channel = make_channel(*FOUR_IN)
    with Fanin.attach(channel.name) as fan:
        ends = [Sender.attach(channel.name, lane) for lane in FOUR_IN]
        for end in ends:
            end.send(b"here")
        assert [fan.recv(PATIENCE) for _ in ends] == [b"here"] * 4
        channel.coordinator.kill()  # which would answer the last goodbye, and wake us
        watched = fan.fileno()
        with pytest.raises(NoMessage):
            fan.recv(0)
        listen = fan._ears.listen

        def listen_when_the_next_has_left(seconds):
            if ends:
                ends.pop().close()
            return listen(seconds)

        def ask_for_ever():
            while True:
                with contextlib.suppress(NoMessage):
                    fan.recv(0)
                assert select.select([watched], [], [], 0)[0], "the event loop would ask no more"

        monkeypatch.setattr(fan._ears, "listen", listen_when_the_next_has_left)
        with pytest.raises(EndOfMessages):
            ask_for_ever()


def test_objects_travel_through_fans(make_channel):
    name = make_channel("s0r0", "s0r1").name
    with Fanin.attach(name) as one, Fanin.attach(name) as two:
        with Fanout.attach(name) as share:
            share.put({"n": 1})
            share.put_nowait([2])
            assert [one.get(), two.get_nowait()] == [{"n": 1}, [2]]
        for fan in (one, two):
            with pytest.raises(EndOfMessages):
                fan.get(timeout=PATIENCE)
        with Fanout.attach(name, mode="broadcast") as news:
            news.put(bytearray(b"raw"))
            assert bytes(one.get()) == bytes(two.get()) == b"raw"


def test_a_sender_that_breaks_a_rule_breaks_its_lane_only(senders):
    fan, ends = senders
    layout = ends[2]._driver.plan.queues[0].layout
    avail = ends[2]._driver.memory.window(layout.avail_ring, 8, 2)
    atomic.store_u16(avail, IDX, 500)
    ends[0].send(b"before")
    raised, messages = [], []
    for _ in range(6):
        try:
            messages += fan.recv_many(100, 0.01)
        except PeerViolation as error:
            raised.append(error)
        except NoMessage:
            pass
    assert [type(error).__mro__[2] for error in raised] == [InvalidAvailRingIndex]
    assert "s2r0" in str(raised[0])
    assert messages == [b"before"]
    ends[3].send(b"after")
    assert fan.recv() == b"after"
    assert set(fan.present) == set(FOUR_IN)  # it may reset its lane


def test_a_sender_whose_lane_broke_comes_back_after_a_reset(senders):
    fan, ends = senders
    layout = ends[0]._driver.plan.queues[0].layout
    atomic.store_u16(ends[0]._driver.memory.window(layout.avail_ring, 8, 2), IDX, 500)
    with pytest.raises(PeerViolation):
        fan.recv(PATIENCE)
    back = threading.Thread(target=lambda: (ends[0].reset(PATIENCE), ends[0].send(b"well again")))
    back.start()
    assert fan.recv(PATIENCE) == b"well again"
    back.join()
    assert len(fan.present) == 4


def test_a_fan_waits_for_the_reset_of_its_only_sender_and_says_the_end_when_that_one_leaves(make_channel):
    name = make_channel().name
    with Fanin.attach(name, limit=100) as fan, Sender.attach(name, timeout=PATIENCE) as sender:
        sender.send(bytes(100))
        sender.send(bytes(101))
        assert fan.recv(PATIENCE) == bytes(100)
        with pytest.raises(ChainTooLong, match="100 are the limit"):
            fan.recv(PATIENCE)
        with pytest.raises(NoMessage, match="1 senders are there"):
            fan.recv(0.01)  # and not that everybody left
        back = threading.Thread(target=lambda: (sender.reset(PATIENCE), sender.send(b"anew")))
        back.start()
        assert fan.recv() == b"anew"
        back.join()
        sender.send(bytes(101))
        with pytest.raises(ChainTooLong):
            fan.recv(PATIENCE)
        sender.close()
        with pytest.raises(EndOfMessages):
            fan.recv(PATIENCE)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused_and_takes_no_place(make_channel, limit):
    name = make_channel(*FOUR_IN).name
    with pytest.raises(ValueError, match="at least 1 byte"):
        Fanin.attach(name, limit=limit)
    with Fanin.attach(name):
        pass


@BOTH
def test_three_of_four_producers_never_notice_that_the_fourth_was_killed(make_channel, start, notify):
    name = make_channel(*FOUR_IN, notify=notify).name
    with Fanin.attach(name) as fan:
        producers = [start(produce, name, lane, 3000 if lane != "s1r0" else -1) for lane in FOUR_IN]
        for producer in producers:
            assert producer.hear() == "ready"
        seen: dict[int, list[int]] = {number: [] for number in range(4)}
        killed = False
        while not killed or any(len(seen[who]) < 3000 for who in (0, 2, 3)) or not fan.departed:
            try:
                message = fan.recv(PATIENCE if not killed else 0.05)
            except NoMessage:
                continue
            who, number = struct.unpack("<QQ", message)
            seen[who].append(number)
            if len(seen[1]) == 500 and not killed:
                producers[1].kill()
                killed = True
        assert [(who.lane, who.pid, who.ended) for who in fan.departed] == [("s1r0", producers[1].pid, True)]
        assert all(seen[who] == list(range(3000)) for who in (0, 2, 3))
        assert seen[1] == list(range(len(seen[1])))
        for producer in (producers[0], producers[2], producers[3]):
            producer.say("leave")
        with pytest.raises(EndOfMessages):
            fan.recv(PATIENCE)


def test_one_who_waits_sleeps_until_there_is_news_and_hears_ctrl_c(make_channel, start):
    name = make_channel("s0r0", "s1r0", "s0r1", "s1r1").name
    first, second = start(listen, name), start(listen, name)
    assert [first.hear(), second.hear()] == ["ready", "ready"]
    wait_until(lambda: first.state() == second.state() == "S", "they sleep")
    before = switches(first), switches(second)
    for _ in range(3):
        start(idle, name).finish()  # some time passes
    assert (switches(first), switches(second)) == before  # nobody woke up to look
    lane = "s0r0" if first.pid == holder(name, "s0r0") else "s0r1"
    with Sender.attach(name, lane) as sender:  # its arrival alone wakes the right one
        sender.send(b"x")
        sender.flush(PATIENCE)
    assert first.hear() == [b"x"]
    second.signal(signal.SIGINT)
    assert second.end() == 1


def switches(actor) -> int:
    """How often a process went to sleep."""
    status = Path(f"/proc/{actor.pid}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)[1])


def holder(region, lane) -> int:
    """The process that receives on a lane."""
    with pytest.raises(RoleTaken) as caught:
        Receiver.attach(region, lane)
    return int(re.search(r"process (\d+)", str(caught.value))[1])


def test_threads_share_a_fan(senders):
    fan, ends = senders
    got: list[list[bytes]] = [[], [], []]

    def take(mine):
        try:
            while True:
                mine.append(fan.recv(PATIENCE))
        except EndOfMessages:
            ended.release()

    ended = threading.Semaphore(0)
    threads = [threading.Thread(target=take, args=(mine,), daemon=True) for mine in got]
    for thread in threads:
        thread.start()
    for number in range(300):
        ends[number % 4].send(b"%d" % number, PATIENCE)
    for end in ends:
        end.close()
    assert ended.acquire(timeout=PATIENCE)  # the end is raised once: the others wait for the next sender
    assert sorted(int(message) for mine in got for message in mine) == list(range(300))
    for _ in range(2):
        with Sender.attach(fan.region, "s0r0"):
            pass
        assert ended.acquire(timeout=PATIENCE)
    for thread in threads:
        thread.join()


# -- fan-out, sharing --------------------------------------------------------------------------------------------------


def test_work_is_shared_in_turn(receivers):
    fan_out, ends = receivers
    fan = fan_out()
    for number in range(8):
        fan.send(b"%d" % number)
    assert [drain(end) for end in ends] == [[b"0", b"4"], [b"1", b"5"], [b"2", b"6"], [b"3", b"7"]]
    fan.send_many(b"%d" % number for number in range(8))
    assert [len(drain(end)) for end in ends] == [2, 2, 2, 2]


def test_who_keeps_pace_keeps_the_turn_and_over_time_all_get_equally_much(receivers):
    fan_out, ends = receivers
    fan = fan_out()
    got = [0, 0, 0, 0]
    changes, last = 0, -1
    end = time.monotonic_ns() + 200 * TENURE
    while time.monotonic_ns() < end or sum(got) < 1000:
        fan.send(b"x")
        (number,) = (number for number, receiver in enumerate(ends) if drain(receiver))
        got[number] += 1
        changes += number != last
        last = number
    assert changes < sum(got) / 3
    assert max(got) < 2 * min(got), got


def test_who_takes_long_for_a_message_gets_hardly_another_while_somebody_is_idle(receivers):
    fan_out, ends = receivers
    fan = fan_out()
    for _ in range(100):
        fan.send(b"quick")
        for receiver in ends:
            drain(receiver)
    fan.send(b"slow")
    slow = [receiver.qsize() for receiver in ends].index(1)
    time.sleep(2 * WORTH / 1e9)  # so long it takes, at least
    for _ in range(1000):
        fan.send(b"quick")
        for receiver in ends[:slow] + ends[slow + 1 :]:
            drain(receiver)
    first, *others = drain(ends[slow])
    assert first == b"slow"
    assert len(others) < 10  # of a thousand: on a busy machine the others look slow, too, now and then


def test_the_full_ones_are_passed_over(receivers):
    fan_out, ends = receivers
    fan = fan_out()
    assert fill(fan) == 4 * 64
    assert len(drain(ends[2])) == 64
    fan.send_many([b"y"] * 64, 0)
    assert drain(ends[2]) == [b"y"] * 64
    assert [len(drain(end)) for end in ends] == [64, 64, 0, 64]


def test_a_deadline_tells_who_is_full_and_how_many_were_sent(receivers):
    fan_out, ends = receivers
    fan = fan_out()
    for timeout in (0, 0.01):
        drain(ends[1])
        with pytest.raises(NoRoom, match=f"s0r3: the receiver, process {os.getpid()}") as caught:
            fan.send_many((b"%d" % number for number in range(1000)), timeout)
        assert caught.value.facts["sent"] == (256 if not timeout else 64)
    assert fan.full()


def test_who_waits_for_room_is_woken_by_any_receiver(receivers):
    fan_out, ends = receivers
    fan = fan_out()
    fill(fan)
    waiter = threading.Thread(target=fan.send, args=(b"last", PATIENCE))
    waiter.start()
    wait_until(lambda: fan.counts["waits"], "it waits")
    came = drain(ends[3])
    waiter.join()
    came += drain(ends[3])  # if it was not quick enough to be among the first
    assert came == [b"x"] * 64 + [b"last"]


def test_calls_and_reservations_go_to_the_next_in_turn(receivers):
    fan_out, ends = receivers
    fan = fan_out()
    with fan.reserve(5) as view:
        view[:] = b"first"
    assert ends[0].recv(0) == b"first"
    server = threading.Thread(target=ends[1].serve, args=(lambda view: bytes(view)[::-1],))
    server.start()
    assert fan.call(b"abc", 16, PATIENCE) == b"cba"
    held = fan.reserve(1)
    with pytest.raises(InvalidState, match="reservation"):
        fan.close()
    held.cancel()
    fan.close()
    server.join()


def test_flush_waits_for_all_of_them(receivers):
    fan_out, ends = receivers
    fan = fan_out()
    fan.send_many([b"x"] * 8)
    for end in ends[:3]:
        drain(end)
    with pytest.raises(NoRoom, match="s0r3"):
        fan.flush(0.01)
    drain(ends[3])
    fan.flush(PATIENCE)
    assert (fan.qsize(), fan.counts["messages"]) == (0, 8)


def test_flush_sleeps_and_ends_in_time_though_only_the_last_lane_gave_back(receivers):
    fan_out, ends = receivers
    fan = fan_out()
    fan.send_many([b"x"] * 8)
    drain(ends[3])
    start = time.thread_time()
    with pytest.raises(NoRoom, match="not everything was received"):
        fan.flush(0.5)
    assert time.thread_time() - start < 0.25
    for end in ends[:3]:
        drain(end)
    fan.flush(PATIENCE)


@BOTH
def test_a_receiver_that_dies_is_left_out_and_named(make_channel, start, notify):
    name = make_channel("s0r0", "s0r1", size=16, notify=notify).name
    sleeper, worker = start(fall_asleep, name, "s0r0"), start(consume, name, "s0r1")
    assert [sleeper.hear(), worker.hear()] == ["ready", "ready"]
    with Fanout.attach(name) as fan:
        sent = [b"%d" % number for number in range(500)]
        for message in sent[:100]:
            fan.send(message, PATIENCE)
        assert fan.gone == []
        sleeper.kill()
        for message in sent[100:]:
            fan.send(message, PATIENCE)
        fan.flush(PATIENCE)
        (gone,) = fan.gone
        assert (gone.lane, gone.pid) == ("s0r0", sleeper.pid)
        assert 1 <= gone.undelivered <= 16
        assert isinstance(gone.error, PeerGone)
    received = worker.hear()
    assert len(received) == 500 - gone.undelivered
    assert received == sorted(received, key=int)


@pytest.mark.parametrize("mode", ["share", "broadcast"])
def test_without_any_receiver_the_sender_is_told_and_never_waits_for_ever(make_channel, start, mode):
    name = make_channel("s0r0", "s0r1", size=16).name
    sleepers = [start(fall_asleep, name, lane) for lane in ("s0r0", "s0r1")]
    for sleeper in sleepers:
        assert sleeper.hear() == "ready"
    with Fanout.attach(name, mode=mode) as fan:
        fill(fan)
        killer = threading.Thread(target=lambda: [sleeper.kill() for sleeper in sleepers])
        killer.start()
        with pytest.raises(PeerGone, match="every receiver is gone") as caught:
            fan.send(b"x", PATIENCE)
        killer.join()
        assert caught.value.facts["in_flight"] == 32
        for call in (
            lambda: fan.send(b"x"),
            lambda: fan.send_many([b"x"]),
            fan.flush,
            lambda: fan.reserve(1),
        ):
            with pytest.raises(PeerGone), call() as view:  # a broadcast is sent on leaving the block
                view[:] = b"x"


@pytest.mark.parametrize("mode", ["share", "broadcast"])
def test_a_receiver_that_breaks_a_rule_is_left_out_and_that_is_raised_once(receivers, mode):
    fan_out, ends = receivers
    fan = fan_out(mode)
    layout = ends[1]._device.plan.queues[0].layout
    atomic.store_u16(ends[1]._device.memory.window(layout.used_ring, 8, 4), IDX, 500)
    raised = []
    for _ in range(8):
        try:
            while True:
                fan.send(b"x", 0.01)
        except PeerViolation as error:
            raised.append(error)
        except NoRoom:
            for end in (ends[0], ends[2], ends[3]):
                drain(end)
    assert [type(error).__mro__[2] for error in raised] == [InvalidUsedRingIndex]
    assert [gone.lane for gone in fan.gone] == ["s0r1"]
    fan.send(b"go on")


# -- fan-out, broadcasting ---------------------------------------------------------------------------------------------


def test_a_broadcast_reaches_everybody_in_order(receivers):
    fan_out, ends = receivers
    fan = fan_out("broadcast")
    fan.send(b"one")
    fan.send([b"tw", b"o"])
    fan.send_many([b"", b"four", bytearray(b"five")])
    with fan.reserve(10) as view:
        view[:3] = b"six"
    for end in ends:
        assert drain(end) == [b"one", b"two", b"", b"four", b"five", b"six" + bytes(7)]
    with pytest.raises(InvalidState):
        fan.call(b"who answers?", 1)


def test_the_slowest_decides_and_is_named(receivers):
    fan_out, ends = receivers
    fan = fan_out("broadcast")
    assert fill(fan) == 64
    for end in ends[:3]:
        drain(end)
    with pytest.raises(NoRoom) as caught:
        fan.send(b"y", 0.01)
    assert "s0r3: the receiver" in str(caught.value)
    assert "s0r0" not in str(caught.value)


def test_a_broadcast_that_meets_a_deadline_reached_nobody_and_can_be_sent_again(receivers):
    fan_out, ends = receivers
    fan = fan_out("broadcast")
    fill(fan)
    for end in ends[:3]:
        drain(end)
    for _ in range(100):  # what was set aside for it is given back each time
        with pytest.raises(NoRoom):
            fan.send(b"y", 0)
    assert [len(drain(end)) for end in ends] == [0, 0, 0, 64]
    fan.send(b"y", PATIENCE)
    assert [drain(end) for end in ends] == [[b"y"]] * 4
    with pytest.raises(NoRoom) as caught:
        fan.send_many([b"z"] * 100, 0)
    assert caught.value.facts["sent"] == 64
    assert [drain(end) for end in ends] == [[b"z"] * 64] * 4


def test_large_broadcasts_wait_for_room_and_arrive_whole(receivers):
    fan_out, ends = receivers
    fan = fan_out("broadcast")
    messages = [bytes([number]) * (150_000 + number) for number in range(10)]  # more than half of a lane's memory
    got: list[list[bytes]] = [[], [], [], []]

    def take(end, mine):
        while len(mine) < len(messages):
            mine.append(end.recv(PATIENCE))

    threads = [threading.Thread(target=take, args=pair) for pair in zip(ends, got, strict=True)]
    for thread in threads:
        thread.start()
    for message in messages:
        fan.send(message, PATIENCE)
    for thread in threads:
        thread.join()
    assert got == [messages] * 4
    with pytest.raises(MessageTooLarge):
        fan.send(bytes(1 << 19), 0)
    with pytest.raises(ValueError, match="contiguous"):
        fan.send(memoryview(b"abcdef")[::2])


def test_a_broadcast_goes_on_without_the_one_that_dies(make_channel, start):
    name = make_channel("s0r0", "s0r1", size=16).name
    sleeper, worker = start(fall_asleep, name, "s0r0"), start(consume, name, "s0r1")
    assert [sleeper.hear(), worker.hear()] == ["ready", "ready"]
    with Fanout.attach(name, mode="broadcast") as fan:
        for number in range(16):
            fan.send(b"%d" % number)
        killer = threading.Thread(target=sleeper.kill)
        killer.start()
        for number in range(16, 100):
            fan.send(b"%d" % number, PATIENCE)  # waits for the sleeper, until it is gone
        killer.join()
        assert [(gone.lane, gone.pid, gone.undelivered) for gone in fan.gone] == [("s0r0", sleeper.pid, 16)]
    assert worker.hear() == [b"%d" % number for number in range(100)]


# -- both, in traffic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["share", "broadcast"])
def test_a_fan_out_and_workers_in_their_own_processes(make_channel, start, mode):
    name = make_channel(*FOUR_OUT).name
    workers = [start(consume, name, lane) for lane in FOUR_OUT]
    for worker in workers:
        assert worker.hear() == "ready"
    sent = [b"%d" % number for number in range(2000)]
    with Fanout.attach(name, mode=mode) as fan:
        fan.send_many(sent[:1000], PATIENCE)
        for message in sent[1000:]:
            fan.send(message, PATIENCE)
        fan.flush(PATIENCE)
        assert fan.gone == []
    received = [worker.hear() for worker in workers]
    for messages in received:
        assert messages == sorted(messages, key=int)
    if mode == "broadcast":
        assert received == [sent] * 4
    else:
        assert sorted((message for messages in received for message in messages), key=int) == sent
        assert all(received)


@pytest.mark.fault("D19")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_fan_whose_closing_was_interrupted_is_closed_when_that_is_called_again(make_channel):
    name = make_channel("s0r0", "s1r0").name
    files = frozenset(
        importlib.import_module(f"vqshm.{module}").__file__
        for module in ("message.fan.base", "message.fan.fan_in", "message.receiver", "message.ears", "host.endpoint")
    )
    Fanin.attach(name).close()
    before = descriptors()
    for number in itertools.count(1, 5):
        fan, interrupter = Fanin.attach(name), Interrupter(number, files)
        with interrupter:
            fan.close()
        fan.close()
        del fan
        assert descriptors() == before, interrupter.where
        if not interrupter.struck:
            break
    assert number > 50
