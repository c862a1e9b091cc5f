"""What both ends owe their processes: Ctrl-C, event loops, threads, forks, pickles."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing.connection
import os
import pickle
import select
import signal
import subprocess
import sys
import threading

import pytest
from vqshm_harness import BOTH, PATIENCE, wait_until

from vqshm import Receiver, Sender, core
from vqshm.errors import EndOfMessages, InvalidState, NoMessage, NoRoom, PeerGone, VqshmError
from vqshm.notify import EventFd, Semaphore


def in_thread(function, *args):
    """(a thread that runs it, a list that gets what it returns or raises)."""
    seen = []

    def run():
        try:
            seen.append(function(*args))
        except VqshmError as error:
            seen.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, seen


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


def interrupted_receiver(me, name, what):
    """Waits until Ctrl-C, then says what comes."""
    with Receiver.attach(name) as receiver:
        me.send("up")
        try:
            match what:
                case "recv":
                    receiver.recv()
                case "recv_many":
                    receiver.recv_many(10)
                case "recv_view":
                    receiver.recv_view()
                case "iter":
                    list(receiver)
                case "serve":
                    receiver.serve(bytes)
        except KeyboardInterrupt:
            me.send("interrupted")
        while True:
            me.send(receiver.recv())


@BOTH
@pytest.mark.parametrize("what", ["recv", "recv_many", "recv_view", "iter", "serve"])
@pytest.mark.parametrize("attached", [False, True], ids=["alone", "attached"])
def test_ctrl_c_ends_a_wait_for_messages_at_once_and_the_lane_works_afterwards(make_channel, notify, what, attached):
    channel = make_channel(notify=notify)
    actor = channel.start(interrupted_receiver, what)
    sender = Sender.attach(channel.name) if attached else None
    wait_until(lambda: actor.state() == "S", "the receiver sleeps")
    actor.signal(signal.SIGINT)
    assert actor.hear() == "interrupted"
    with sender or Sender.attach(channel.name) as sender:
        for number in range(100):
            sender.send(b"%d" % number)
            assert actor.hear() == b"%d" % number


def interrupted_sender(me, name, what):
    """Waits for a stopped receiver until Ctrl-C, then sends numbers."""
    with Sender.attach(name) as sender:
        for _ in range(4 if what != "call" else 0):
            sender.send(b"before")
        me.send("up")
        try:
            match what:
                case "send":
                    sender.send(b"never")
                case "send_many":
                    sender.send_many([b"never"])
                case "reserve":
                    sender.reserve(1)
                case "call":
                    sender.call(b"before", 1)
                case "flush":
                    sender.flush()
        except KeyboardInterrupt:
            me.send("interrupted")
        me.recv()
        for number in range(100):
            sender.send(b"%d" % number)
        assert sender.call(b"question", 8) == b"answer"
        me.send(sender.counts["messages"])


@BOTH
@pytest.mark.parametrize("what", ["send", "send_many", "reserve", "call", "flush"])
def test_ctrl_c_ends_a_wait_of_a_sender_at_once_and_the_lane_works_afterwards(make_channel, notify, what):
    channel = make_channel(size=4, notify=notify)
    with Receiver.attach(channel.name) as receiver:
        actor = channel.start(interrupted_sender, what)
        wait_until(lambda: actor.state() == "S", "the sender sleeps")
        actor.signal(signal.SIGINT)
        assert actor.hear() == "interrupted"
        actor.say("go on")
        old = [receiver.recv(PATIENCE) for _ in range(1 if what == "call" else 4)]
        assert set(old) == {b"before"}
        assert [receiver.recv(PATIENCE) for _ in range(100)] == [b"%d" % number for number in range(100)]
        loan = receiver.recv_view(PATIENCE)
        loan.reply(b"answer")
        loan.release()
        assert actor.hear() == len(old) + 101
        actor.finish()


# A compiled eventfd is signalled without a step at which Ctrl-C could strike.
INTERRUPTED = BOTH if core.kind() == "interpreted" else pytest.mark.parametrize("notify", ["semaphore"])


def interrupt_the_next_signal(monkeypatch, notify):
    """Ctrl-C arrives just when a doorbell is about to be rung."""
    bell = EventFd if notify == "eventfd" else Semaphore
    real, rung = bell.signal, []

    def interrupted(self):
        rung.append(self)
        if len(rung) == 1:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(bell, "signal", interrupted)


@INTERRUPTED
def test_ctrl_c_while_the_other_side_is_being_woken_does_not_leave_the_receiver_asleep(pair, monkeypatch, notify):
    sender, receiver = pair(notify=notify)
    thread, seen = in_thread(receiver.recv, PATIENCE)
    wait_until(lambda: receiver.counts["waits"] > 0, "the receiver sleeps")
    interrupt_the_next_signal(monkeypatch, notify)
    with pytest.raises(KeyboardInterrupt):
        sender.send(b"published")
    thread.join(PATIENCE / 4)
    asleep = thread.is_alive()
    sender.close()  # which wakes it in any case
    thread.join(PATIENCE)
    assert (asleep, seen) == (False, [b"published"])


@INTERRUPTED
def test_ctrl_c_while_the_other_side_is_being_woken_does_not_leave_the_sender_asleep(pair, monkeypatch, notify):
    sender, receiver = pair(size=2, notify=notify)
    sender.send_many([b"x"] * 2)
    thread, seen = in_thread(sender.send, b"y", PATIENCE)
    wait_until(lambda: sender.counts["waits"] > 0, "the sender sleeps")
    interrupt_the_next_signal(monkeypatch, notify)
    with pytest.raises(KeyboardInterrupt):
        receiver.recv_many(2, PATIENCE)
    thread.join(PATIENCE / 4)
    asleep = thread.is_alive()
    receiver.close()  # which wakes it in any case
    thread.join(PATIENCE)
    assert (asleep, seen) == (False, [None])


# -- event loops -------------------------------------------------------------------------------------------------------


def readable(end, timeout: float = 0) -> bool:
    return bool(select.select([end], [], [], timeout)[0])


def fill(sender) -> None:
    """Raises NoRoom, or what happened instead."""
    while True:
        sender.send(b"x", 0)


def follow(receiver) -> None:
    """Drains whenever there is something; raises EndOfMessages."""
    while readable(receiver, PATIENCE):
        drain(receiver)


def drain(receiver) -> list[bytes]:
    """What an event loop does when a receiver is readable."""
    messages = []
    try:
        while True:
            messages.append(receiver.recv(0))
    except NoMessage:
        return messages


@pytest.mark.parametrize("event_idx", [True, False])
def test_a_receiver_is_readable_while_there_is_a_message_and_not_when_it_has_none(pair, event_idx):
    sender, receiver = pair(event_idx=event_idx)
    assert receiver.fileno() == receiver.fileno()
    drain(receiver)
    for _ in range(50):
        assert not readable(receiver)
        sender.send(b"1")
        sender.send(b"2")
        assert readable(receiver, PATIENCE)
        assert receiver.recv(0) == b"1"
        assert readable(receiver, PATIENCE)  # there is one more
        assert drain(receiver) == [b"2"]


def test_a_message_that_was_there_before_anybody_asked_for_a_descriptor_makes_it_readable(pair):
    sender, receiver = pair()
    sender.send(b"early")
    assert readable(receiver, PATIENCE)
    assert drain(receiver) == [b"early"]


@pytest.mark.parametrize("event_idx", [True, False])
def test_a_wait_between_two_looks_of_an_event_loop_hides_nothing(pair, event_idx):
    """`wait([receiver])`, then a plain `recv()`, as with a pipe: the next wait sees what is left."""
    sender, receiver = pair(event_idx=event_idx)
    receiver.fileno()
    drain(receiver)
    assert not readable(receiver)
    thread = threading.Thread(target=lambda: sender.send_many([b"1", b"2"]))
    thread.start()
    assert receiver.recv(PATIENCE) == b"1"
    thread.join()
    assert readable(receiver, PATIENCE)
    assert drain(receiver) == [b"2"]


@pytest.mark.parametrize("event_idx", [True, False])
def test_a_sender_is_readable_when_there_is_room_again(pair, event_idx):
    sender, receiver = pair(size=4, event_idx=event_idx)
    sender.fileno()
    for _ in range(20):
        with pytest.raises(NoRoom):
            fill(sender)
        assert not readable(sender)
        receiver.recv(0)
        assert readable(sender, PATIENCE)
        sender.send(b"y", 0)


def test_who_leaves_makes_the_receiver_readable_and_so_does_the_next_one(pair):
    sender, receiver = pair()
    receiver.fileno()
    for _ in range(3):
        drain(receiver)
        assert not readable(receiver)
        sender.send(b"last words")
        sender.close()
        assert readable(receiver, PATIENCE)
        assert receiver.recv(0) == b"last words"
        with pytest.raises(EndOfMessages):
            follow(receiver)
        drain(receiver)
        sender = Sender.attach(sender.region)
        assert readable(receiver, PATIENCE)
    sender.close()


def test_a_receiver_that_leaves_makes_its_sender_readable(pair):
    sender, receiver = pair(size=4)
    sender.fileno()
    with pytest.raises(NoRoom):
        fill(sender)
    assert not readable(sender)
    receiver.close()
    with pytest.raises(PeerGone):
        send_while_readable(sender)


def send_while_readable(sender) -> None:
    """It may be woken for nothing first: who leaves rings, and then the coordinator tells."""
    while readable(sender, PATIENCE):
        with contextlib.suppress(NoRoom):
            sender.send(b"x", 0)


def sending_until_killed(me, name):
    with Sender.attach(name) as sender:
        sender.send(b"x")
        me.send("up")
        me.recv()


def test_the_death_of_each_sender_makes_the_receiver_readable_even_without_a_coordinator(make_channel):
    channel = make_channel()
    with Receiver.attach(channel.name) as receiver:
        receiver.fileno()
        for last in (False, False, True):
            actor = channel.start(sending_until_killed)
            assert readable(receiver, PATIENCE)
            messages = []
            while not messages:
                assert readable(receiver, PATIENCE)
                messages = drain(receiver)
            assert messages == [b"x"]
            if last:
                channel.coordinator.kill()
                assert readable(receiver, PATIENCE)
                drain(receiver)
            actor.kill()
            with pytest.raises(EndOfMessages):
                follow(receiver)
            if not last:
                drain(receiver)


def flooding(me, name, count, event_idx):
    """Sends numbers as fast as it can."""
    with Sender.attach(name, event_idx=event_idx) as sender:
        me.send("up")
        for number in range(count):
            sender.send(b"%d" % number)
        sender.flush()


def by_select(receiver):
    return select.select([receiver], [], [], PATIENCE)[0]


def by_poll(receiver):
    poller = select.poll()
    poller.register(receiver, select.POLLIN)
    return poller.poll(PATIENCE * 1000)


def by_connection(receiver):
    return multiprocessing.connection.wait([receiver], PATIENCE)


@pytest.mark.parametrize(
    ("wait", "event_idx"), [(by_select, True), (by_select, False), (by_poll, True), (by_connection, True)]
)
def test_fifty_thousand_messages_through_an_event_loop_lose_nothing(make_channel, wait, event_idx):
    channel = make_channel(size=256)
    with Receiver.attach(channel.name) as receiver:
        channel.start(flooding, 50_000, event_idx)
        count = 0
        with contextlib.suppress(EndOfMessages):
            while wait(receiver):
                with contextlib.suppress(NoMessage):
                    while True:
                        assert receiver.recv(0) == b"%d" % count
                        count += 1
        assert count == 50_000


def test_a_loop_of_asyncio_is_called_for_messages_and_for_the_end(make_channel):
    channel = make_channel(size=256)

    async def receive_all(receiver):
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        messages = []

        def take():
            try:
                while True:
                    messages.append(receiver.recv(0))
            except NoMessage:
                pass
            except EndOfMessages:
                loop.remove_reader(receiver)
                over.set()

        loop.add_reader(receiver, take)
        await asyncio.wait_for(over.wait(), PATIENCE)
        return messages

    with Receiver.attach(channel.name) as receiver:
        for _ in range(2):
            channel.start(flooding, 5000, True)
            assert asyncio.run(receive_all(receiver)) == [b"%d" % number for number in range(5000)]


def test_a_receiver_in_an_event_loop_is_quiet_when_there_is_nothing(pair):
    sender, receiver = pair()
    for number in range(10):
        sender.send(b"%d" % number)
        assert readable(receiver, PATIENCE)
        drain(receiver)
        assert not readable(receiver)


def test_semaphores_cannot_be_watched(pair):
    for end in pair(notify="semaphore"):
        with pytest.raises(InvalidState, match="semaphores"):
            end.fileno()


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def busy_threads():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def run_all(*functions):
    """Each in a thread of its own; the first exception of any."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.usefixtures("busy_threads")
def test_threads_that_take_turns_share_both_ends(pair):
    """An end is for one thread at a time; a lock is all that more of them need."""
    sender, receiver = pair(size=16)
    count, senders, receivers = 2000, 3, 3
    sending, receiving = threading.Lock(), threading.Lock()
    taken: list[list[bytes]] = [[] for _ in range(receivers)]

    def send(me):
        for number in range(count):
            with sending:
                sender.send(b"%d %d" % (me, number), PATIENCE)

    def receive(me):
        while sum(map(len, taken)) < senders * count:
            with receiving, contextlib.suppress(NoMessage):
                taken[me] += receiver.recv_many(10, 0.01)

    run_all(*(lambda me=me: send(me) for me in range(senders)), *(lambda me=me: receive(me) for me in range(receivers)))
    assert sorted(itertools.chain(*taken)) == sorted(b"%d %d" % (me, n) for me in range(senders) for n in range(count))


def test_a_thread_that_comes_while_another_one_waits_for_a_message_is_refused_and_the_other_gets_it(pair):
    sender, receiver = pair()
    thread, seen = in_thread(receiver.recv, PATIENCE)
    wait_until(lambda: receiver.counts["waits"] > 0, "the thread sleeps")
    for receive in (receiver.recv, receiver.recv_view, lambda timeout: receiver.recv_many(5, timeout)):
        for timeout in (0, None):
            with pytest.raises(InvalidState, match="another thread"):
                receive(timeout)
    sender.send(b"for the first")
    thread.join(PATIENCE)
    assert seen == [b"for the first"]
    sender.send(b"x")
    assert receiver.recv(PATIENCE) == b"x"


def test_a_thread_that_comes_while_another_one_waits_for_room_is_refused_and_the_other_gets_it(pair):
    sender, receiver = pair(size=4)
    sender.send_many([b"x"] * 4)
    thread, seen = in_thread(sender.send, b"y", PATIENCE)
    wait_until(lambda: sender.counts["waits"] > 0, "the thread sleeps")
    for send in (
        lambda: sender.send(b"z"),
        lambda: sender.send_many([b"z"], 0),
        lambda: sender.reserve(1),
        lambda: sender.call(b"z", 1),
    ):
        with pytest.raises(InvalidState, match="another thread"):
            send()
    assert [receiver.recv(PATIENCE) for _ in range(4)] == [b"x"] * 4
    thread.join(PATIENCE)
    assert seen == [None]
    assert receiver.recv(PATIENCE) == b"y"


def test_a_thread_that_comes_while_another_one_waits_for_an_answer_is_refused_and_the_other_gets_it(pair):
    sender, receiver = pair()
    thread, seen = in_thread(sender.call, b"question", 8, PATIENCE)
    loan = receiver.recv_view(PATIENCE)
    wait_until(lambda: sender.counts["waits"] > 0, "the thread sleeps")
    with pytest.raises(InvalidState, match="another thread"):
        sender.call(b"z", 1)
    loan.reply(b"answer")
    loan.release()
    thread.join(PATIENCE)
    assert seen == [b"answer"]


# -- forks and pickles -------------------------------------------------------------------------------------------------


def verdict(call) -> str:
    """The name of what a call raises."""
    try:
        call()
    except VqshmError as error:
        return type(error).__name__
    return "nothing"


def forking_sender(me, name):
    """Forks, lets the child try everything, and goes on."""
    with Sender.attach(name) as sender:
        sender.send(b"before")
        reservation = sender.reserve(7)
        pid = os.fork()
        if not pid:
            calls = {
                "send": lambda: sender.send(b"child"),
                "send_many": lambda: sender.send_many([b"child"]),
                "reserve": lambda: sender.reserve(5),
                "commit": reservation.commit,
                "call": lambda: sender.call(b"child", 1),
                "flush": sender.flush,
                "reset": sender.reset,
                "fileno": sender.fileno,
                "close": sender.close,
            }
            me.send({what: verdict(call) for what, call in calls.items()})
            os._exit(0)
        os.waitpid(pid, 0)
        reservation.view[:] = b"between"
        reservation.commit()
        sender.send(b"after")
        sender.flush()


@pytest.mark.fault("D18")
@BOTH
def test_a_forked_sender_refuses_and_its_parent_goes_on(make_channel, start, notify):
    channel = make_channel(notify=notify)
    with Receiver.attach(channel.name) as receiver:
        actor = start(forking_sender, channel.name)
        seen = actor.hear()
        assert seen.pop("close") == "nothing"
        assert seen == dict.fromkeys(seen, "ForkedHandle")
        assert list(receiver) == [b"before", b"between", b"after"]


def forking_receiver(me, name):
    with Receiver.attach(name) as receiver:
        me.send("up")
        me.send(receiver.recv())
        loan = receiver.recv_view()
        pid = os.fork()
        if not pid:
            calls = {
                "recv": receiver.recv,
                "recv(0)": lambda: receiver.recv(0),
                "recv_many": lambda: receiver.recv_many(3),
                "recv_view": receiver.recv_view,
                "iter": lambda: list(receiver),
                "serve": lambda: receiver.serve(bytes),
                "fileno": receiver.fileno,
                "qsize": receiver.qsize,
                "empty": receiver.empty,
                "release": loan.release,
                "close": receiver.close,
            }
            me.send({what: verdict(call) for what, call in calls.items()})
            os._exit(0)
        os.waitpid(pid, 0)
        with loan as view:
            me.send(view.tobytes())
        for message in receiver:
            me.send(message)


@pytest.mark.fault("D18")
@BOTH
def test_a_forked_receiver_refuses_and_its_parent_goes_on(make_channel, notify):
    channel = make_channel(size=4, notify=notify)
    actor = channel.start(forking_receiver)
    with Sender.attach(channel.name) as sender:
        sender.send_many([b"1", b"2", b"3"])
        assert actor.hear() == b"1"
        seen = actor.hear()
        assert (seen.pop("close"), seen.pop("release")) == ("nothing", "nothing")
        assert seen == dict.fromkeys(seen, "ForkedHandle")
        assert [actor.hear() for _ in range(2)] == [b"2", b"3"]
        sender.flush(PATIENCE)
        assert not sender.peer_gone
        for number in range(20):
            sender.send(b"%d" % number, PATIENCE)
            assert actor.hear() == b"%d" % number


def test_ends_do_not_pickle_and_say_what_does(pair):
    for end in pair():
        with pytest.raises(TypeError, match="handle"):
            pickle.dumps(end)
        assert pickle.loads(pickle.dumps(end.handle)) == end.handle


BY_HANDLE = """
import pickle, sys
from vqshm import Sender
handle = pickle.load(sys.stdin.buffer)
with Sender.attach(handle.region, handle.device) as sender:
    sender.send(b"from another process")
"""


def test_the_handle_of_an_end_attaches_in_another_process(make_channel):
    channel = make_channel("left", "right")
    with Receiver.attach(channel.name, "right") as receiver:
        subprocess.run([sys.executable, "-P", "-c", BY_HANDLE], input=pickle.dumps(receiver.handle), check=True)
        assert list(receiver) == [b"from another process"]


# -- what an end tells about itself ------------------------------------------------------------------------------------


def test_ends_tell_who_they_are_and_who_is_on_the_other_side(pair):
    sender, receiver = pair()
    sender.send(b"x")
    receiver.recv(PATIENCE)
    for end in (sender, receiver):
        assert end.peer.pid == os.getpid()
        assert not end.peer_gone
        assert (end.lane, end.notify) == ("lane", "eventfd")
        assert end.region in repr(end)


def test_leaving_a_block_closes_even_after_an_exception(pair):
    sender, receiver = pair()
    with pytest.raises(ZeroDivisionError), sender, receiver:
        _ = 1 // 0
    for act in (lambda: sender.send(b"x"), receiver.recv):
        with pytest.raises(InvalidState, match="closed"):
            act()
