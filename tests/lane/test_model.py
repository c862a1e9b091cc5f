"""Both ends together: every message arrives once, in order and unharmed, and nobody sleeps through what comes."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqshm.errors import InvalidState, NoMessage, NoRoom


class Traffic:
    """A lane, and what must come out of it."""

    def __init__(self, r):
        self.r = r
        self.expected = deque()
        self.loans = []  # (loan, what it must show)
        self.reservations = []
        self.number = itertools.count()
        r.out.meanwhile = self.make_room

    def message(self, size):
        """A content that no other message has, as far as so many bytes allow."""
        tag = b"%d." % next(self.number)
        return (tag * (size // len(tag) + 1))[:size]

    def make_room(self):
        """The receiver's turn, when the sender would sleep: False if it can give nothing back."""
        before = self.r.outlet.used()
        self.take_all()
        self.r.inlet.tell()
        return self.r.outlet.used() > before or self.r.outlet.used() > 0

    def take_all(self):
        while self.r.inlet.available():
            for message in self.r.inlet.recv_many(5, 0):
                assert message == self.expected.popleft()

    # -- one step each; a lane that is full because of loans and reservations may say so ------------------------------

    def send(self, size, _):
        message = self.message(size)
        self.expected.append(message)
        try:
            self.r.outlet.send(message, 0)
        except (NoRoom, InvalidState):
            assert self.loans or self.reservations
            self.expected.pop()

    def send_many(self, size, count):
        for message in [self.message((size * i) % 700) for i in range(count)]:
            self.expected.append(message)
        batch = list(self.expected)[len(self.expected) - count :] if count else []
        try:
            self.r.outlet.send_many(iter(batch), 0)
        except (NoRoom, InvalidState) as error:
            assert self.loans or self.reservations
            sent = error.facts.get("sent")
            if sent is None:  # only a deadline says how many
                sent = self.r.outlet.messages - self.counted
            for _ in range(count - sent):
                self.expected.pop()

    def gather(self, size, count):
        whole = self.message(size)
        cut = [whole[i::1][: max(1, size // (count + 1))] for i in range(0, size, max(1, size // (count + 1)))]
        assert b"".join(cut) == whole
        self.expected.append(whole)
        try:
            self.r.outlet.send(cut, 0)
        except (NoRoom, InvalidState):
            assert self.loans or self.reservations
            self.expected.pop()

    def reserve(self, size, _):
        try:
            reservation = self.r.outlet.reserve(size, 0)
        except (NoRoom, InvalidState):
            assert self.loans or self.reservations
            return
        message = self.message(size)
        reservation.view[:] = message
        self.reservations.append((reservation, message))

    def commit(self, size, index):
        if self.reservations:
            reservation, message = self.reservations.pop(index % len(self.reservations))
            count = min(size, len(message))
            assert reservation.view == message
            reservation.commit(count)
            self.expected.append(message[:count])

    def cancel(self, _, index):
        if self.reservations:
            reservation, message = self.reservations.pop(index % len(self.reservations))
            assert reservation.view == message
            reservation.cancel()

    def recv(self, _, __):
        try:
            assert self.r.inlet.recv(0) == self.expected.popleft()
        except (NoMessage, IndexError):
            assert not self.expected

    def recv_many(self, _, count):
        if self.expected:
            for message in self.r.inlet.recv_many(count + 1, 0):
                assert message == self.expected.popleft()

    def lend(self, _, __):
        if self.expected:
            loan = self.r.inlet.recv_view(0)
            self.loans.append((loan, self.expected.popleft()))
            assert loan.view == self.loans[-1][1]

    def release(self, _, index):
        if self.loans:
            loan, message = self.loans.pop(index % len(self.loans))
            assert loan.view == message
            loan.release()

    def drop(self, _, index):
        if self.loans:
            loan, message = self.loans.pop(index % len(self.loans))
            assert loan.view == message
            del loan

    def call(self, size, room):
        question, room = self.message(size), room + 1
        if self.loans or self.reservations:
            return
        self.take_all()
        self.r.inlet.tell()
        reply = self.message(room)

        def meanwhile():
            loan = self.r.inlet.recv_view(0)
            assert loan.view == question
            loan.reply(reply)
            loan.release()

        self.r.out.meanwhile = meanwhile
        assert self.r.outlet.call(question, room) == reply
        self.r.out.meanwhile = self.make_room

    def give_up(self, size, room):
        """A call that nobody waits for any more."""
        question = self.message(size)
        self.r.out.meanwhile = None
        try:
            self.r.outlet.call(question, room + 1, 0)
        except NoRoom:
            pass
        except NoMessage:
            self.expected.append(question)
        except InvalidState:
            assert self.reservations
        self.r.out.meanwhile = self.make_room

    def reclaim(self, _, __):
        self.r.outlet.reclaim()

    def tell(self, _, __):
        self.r.inlet.tell()

    def step(self, name, size, index):
        self.counted = self.r.outlet.messages
        getattr(self, name)(size, index)
        for loan, message in self.loans:
            assert loan.view == message
        for reservation, message in self.reservations:
            assert reservation.view == message
        r = self.r
        assert r.outlet.in_flight + r.outlet.reserved + r.outlet.num_free <= r.size
        assert r.outlet.reserved == len(self.reservations)

    def finish(self):
        while self.reservations:
            self.cancel(0, 0)
        while self.loans:
            self.release(0, 0)
        self.take_all()
        assert not self.expected
        self.r.assert_at_rest()


STEPS = (
    *("send", "send", "send_many", "gather", "reserve", "commit", "cancel", "call", "give_up", "reclaim"),
    *("recv", "recv_many", "lend", "lend", "release", "drop", "tell"),
)


@settings(max_examples=250)
@given(
    st.sampled_from([2, 4, 8, 64]),
    st.sampled_from([1024, 4096]),
    st.booleans(),
    st.sampled_from([0, 65530]),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 700), st.integers(0, 40)), max_size=60),
)
def test_every_message_arrives_once_in_order_and_unharmed(lane, size, area, event_idx, start, plan):
    traffic = Traffic(lane(size, area, event_idx=event_idx, start=start))
    for step in plan:
        traffic.step(*step)
    traffic.finish()


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("size", [1, 2, 8, 256, 32768])
def test_positions_run_past_65536(lane, size, event_idx):
    start = 0 if size > 2 else 0xF000  # the small ones go slowly
    r = lane(size, 1 << 20, event_idx=event_idx, start=start)
    batch, sent = min(size, 1000), 0
    while sent + start < 70_000:
        messages = [b"%d" % i for i in range(sent, sent + batch)]
        r.outlet.send_many(messages, 0)
        sent += batch
        assert r.inlet.recv_many(batch, 0) == messages
        r.inlet.tell()
    assert r.outlet.messages == r.inlet.messages == sent
    assert r.avail == r.used == (start + sent) & 0xFFFF
    r.assert_at_rest()
    # Whoever never arms is woken at most once each time the positions come round.
    assert r.outlet.kicks <= (2 if event_idx else sent)
    assert r.inlet.calls <= (2 if event_idx else sent)


@pytest.mark.parametrize("start", [65530, 65535])
@pytest.mark.parametrize("size", [1, 2, 8, 256, 32768])
def test_each_way_of_taking_crosses_65536(lane, size, start):
    for take in ("recv", "recv_many", "recv_view"):
        r = lane(size, 1 << 16, start=start)
        for i in range(20):
            r.outlet.send(b"%d" % i, 0)
            if take == "recv":
                assert r.inlet.recv(0) == b"%d" % i
            elif take == "recv_many":
                assert r.inlet.recv_many(5, 0) == [b"%d" % i]
            else:
                with r.inlet.recv_view(0) as view:
                    assert view == b"%d" % i
        r.assert_at_rest()


# -- nobody sleeps through what comes ----------------------------------------------------------------------------------


class Asleep(Exception):
    """This side has armed, found nothing, and would sleep now."""

    def __init__(self, after):
        self.after = after


class Sleeper:
    """A keeper that arms as the real ones do, and says where they would sleep."""

    def __init__(self, r, side):
        self.r = r
        self.side = side

    def sleep(self, _deadline, after=1):
        r = self.r
        if self.side == "outlet":
            busy = r.outlet.used() or r.outlet.enable_notification(after)
        else:
            busy = r.inlet.available() or r.inlet.enable_notification()
        if busy:
            return True
        raise Asleep(after)

    def lie_down(self, _deadline):
        return False

    def show_counts(self):
        pass

    def stalled(self):
        return ""


def sending(r, batches):
    """Steps of the sender. Yields None where it could be interrupted, else how it sleeps: for a while, or for ever."""
    for batch in batches:
        left = list(batch)
        while left:
            before = r.outlet.messages
            try:
                if len(left) == 1:
                    r.outlet.send(left[0], 0)
                else:
                    r.outlet.send_many(left, 0)
            except Asleep as asleep:
                del left[: r.outlet.messages - before]
                if asleep.after > 1:
                    yield "nap"
                if r.outlet.used() == 0 and not r.outlet.enable_notification():
                    yield "sleep"
                r.outlet.disable_notification()
            else:
                left.clear()
            yield None


def receiving(r, count, got, many):
    """Steps of the receiver, likewise."""
    while len(got) < count:
        try:
            if many:
                got += r.inlet.recv_many(many, 0)
            else:
                with r.inlet.recv_view(0) as view:
                    got.append(bytes(view))
        except Asleep:
            yield "sleep"
            r.inlet.disable_notification()
        yield None
    r.inlet.tell()


@settings(max_examples=250)
@given(
    st.sampled_from([1, 2, 4, 8, 64]),
    st.sampled_from([256, 4096]),
    st.booleans(),
    st.sampled_from([0, 65520]),
    st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=12), min_size=1, max_size=12),
    st.integers(0, 20),
    st.lists(st.booleans(), max_size=200),
)
def test_whoever_would_sleep_is_woken_when_work_comes(lane, size, area, event_idx, start, sizes, many, schedule):
    r = lane(size, area, event_idx=event_idx, start=start)
    r.outlet.keeper, r.inlet.keeper = Sleeper(r, "outlet"), Sleeper(r, "inlet")
    r.outlet.disable_notification()
    r.inlet.disable_notification()
    number = itertools.count()
    batches = [[bytes([next(number) % 251]) * n for n in batch] for batch in sizes]
    messages = [message for batch in batches for message in batch]
    got = []
    sides = [
        [
            sending(r, batches),
            r.inlet.bell,
            None,
            0,
        ],  # steps, the bell that wakes it, how it sleeps, rings it has heard
        [receiving(r, len(messages), got, many), r.outlet.bell, None, 0],
    ]
    choices = itertools.chain(schedule, itertools.cycle([False, True]))
    idle = 0
    while any(side[0] is not None for side in sides):
        side = sides[next(choices)]
        steps, bell, state, heard = side
        if steps is None or (state == "sleep" and bell.rung == heard):
            idle += 1
            assert idle < 400, f"both sleep: {len(got)} of {len(messages)} came"
            continue
        idle = 0
        side[3] = bell.rung  # whoever wakes clears the bell before it looks
        try:
            side[2] = next(steps)
        except StopIteration:
            side[0] = None
    assert got == messages


@pytest.mark.parametrize("event_idx", [True, False])
def test_a_receiver_that_is_awake_is_not_kicked(lane, event_idx):
    r = lane(64, 1 << 14, event_idx=event_idx)
    r.outlet.send(b"first")
    assert r.outlet.bell.rung == r.outlet.kicks == 1
    r.inlet.disable_notification()
    assert r.drain() == [b"first"]
    for i in range(3000):
        r.outlet.send(b"%d" % i)
        assert r.inlet.recv(0) == b"%d" % i
    assert r.outlet.bell.rung == 1
    assert r.outlet.kicks_suppressed == 3000


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("batch", [1, 5, 31])
def test_a_receiver_that_armed_is_kicked_once(lane, event_idx, batch):
    r = lane(64, 1 << 14, event_idx=event_idx)
    r.outlet.send(b"first")
    r.inlet.disable_notification()
    r.drain()
    for _ in range(10):
        before = r.outlet.bell.rung
        assert not r.inlet.enable_notification()
        r.outlet.send_many([b"x"] * batch)
        assert r.outlet.bell.rung == before + 1
        r.inlet.disable_notification()
        r.outlet.send_many([b"x"] * batch)
        assert r.outlet.bell.rung == before + 1
        assert len(r.drain()) == 2 * batch
        r.outlet.reclaim()
