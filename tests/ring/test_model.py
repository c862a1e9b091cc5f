"""Both halves against a model that knows no rings: two lists, and positions that are counted and never wrap.

    offered ──▶ published ──▶ taken by the device ──▶ returned, in any order ──▶ reaped

Nothing is lost, doubled or reordered; descriptors come back; a sleeper is woken, and nobody is woken more often than
there are messages. Every size, direct and indirect, with and without EVENT_IDX, and around the wrap of the positions
(G02, C09).
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from vqshm import core, errors
from vqshm.memory import BufferPool

SIZES = [1 << shift for shift in range(16)]
STARTS = [0, 1, 32767, 65519, 65530, 65535]
ENTRIES = 4  # of an indirect table of the rig's driver half


class Message:
    """One chain: its buffers, what the driver put in, and what the device answered."""

    def __init__(self, number, readable, writable):
        self.number = number
        self.readable = readable
        self.writable = writable
        self.room = sum(count for _, count in writable)
        self.token = None
        self.descriptors = 0
        self.answer = b""


class Sleeper:
    """One side's wish to be woken: the position it named, by count, or its flag; and whether it sleeps."""

    def __init__(self, event_idx, start):
        self.event_idx = event_idx
        self.event = 0  # as the zeroed memory says, modulo 65536
        self.silent = False
        self.asleep = False
        self.asked = start  # position up to which the other side has asked

    def wanted(self, position):
        """Whether the other side, now at `position`, must wake this one."""
        passed = range(self.asked, position)
        self.asked = position
        if self.event_idx:
            return any(p & 0xFFFF == self.event for p in passed)
        return bool(passed) and not self.silent


class Halves(RuleBasedStateMachine):
    """Rules are the calls of the two halves, in any order a single thread could make them."""

    Rig = None  # set by whoever runs it

    @initialize(
        size=st.sampled_from([*SIZES[:9], *SIZES[:9], *SIZES]),
        start=st.sampled_from(STARTS),
        event_idx=st.booleans(),
        indirect=st.booleans(),
    )
    def begin(self, size, start, event_idx, indirect):
        self.rig = self.Rig(size, start=start, event_idx=event_idx, indirect=indirect)
        self.driver, self.device = self.rig.driver, self.rig.device
        self.pool = BufferPool(self.rig.buffers, 0x1_0000)
        self.size, self.indirect, self.event_idx = size, indirect, event_idx
        self.numbers = 0
        self.unpublished, self.published, self.taken, self.returned = [], [], [], []
        self.undo = []  # what was taken since something else made going back impossible
        self.published_at = self.taken_at = self.returned_at = self.reaped_at = start
        self.kick = Sleeper(event_idx, start)  # the device waits for it
        self.call = Sleeper(event_idx, start)  # the driver waits for it
        self.kicks = self.calls = 0

    @property
    def in_flight(self):
        return [*self.unpublished, *self.published, *self.taken, *self.returned]

    @property
    def descriptors(self):
        return sum(message.descriptors for message in self.in_flight)

    # -- the driver ----------------------------------------------------------------------------------------------------

    @rule(
        readable=st.lists(st.integers(4, 60), max_size=5),
        writable=st.lists(st.integers(1, 60), max_size=5),
        publish=st.booleans(),
    )
    def add(self, readable, writable, publish):
        count = len(readable) + len(writable)
        needed = 1 if self.indirect and 1 < count <= ENTRIES else count
        readable = [(self.pool.allocate(n), n) for n in readable]
        writable = [(self.pool.allocate(n), n) for n in writable]
        message = Message(self.numbers, readable, writable)
        if count == 0 or count > self.size:
            expected = errors.InvalidChain
        else:
            expected = errors.QueueFull if needed > self.size - self.descriptors else None
        if expected is not None:
            with pytest.raises(expected):
                self.driver.add(readable, writable, publish=publish)
            self.free(message)
            return
        for i, (addr, _) in enumerate(readable):
            self.rig.poke(addr, struct.pack("<HH", message.number & 0xFFFF, i))
        message.token = self.driver.add(readable, writable, publish=publish)
        message.descriptors = needed
        assert message.token not in [other.token for other in self.in_flight]
        self.numbers += 1
        self.unpublished.append(message)
        if publish:
            self.show()

    @rule()
    def publish(self):
        self.driver.publish()
        self.show()

    def show(self):
        self.published_at += len(self.unpublished)
        self.published += self.unpublished
        self.unpublished = []

    @rule()
    def ask_kick(self):
        wanted = self.kick.wanted(self.published_at)
        assert self.driver.needs_kick() is wanted
        if wanted:
            self.kicks += 1
            self.kick.asleep = False

    @rule()
    def reap(self):
        returned = self.driver.reap()
        if not self.returned:
            assert returned is None
            return
        message = self.returned.pop(0)
        assert returned == (message.token, len(message.answer))
        stored = b"".join(self.rig.peek(addr, count) for addr, count in message.writable)
        assert stored[: len(message.answer)] == message.answer
        self.reaped_at += 1
        self.free(message)

    def free(self, message):
        for addr, _ in (*message.readable, *message.writable):
            self.pool.release(addr)

    @rule(after=st.integers(0, 5))
    def driver_arms(self, after):
        if self.event_idx:
            in_flight = len(self.in_flight)
            after = max(1, min(after, in_flight))
            self.call.event = (self.reaped_at + after - 1) & 0xFFFF
        else:
            after = 1
        self.call.silent = False
        there = self.driver.enable_notification(after)
        assert there is (len(self.returned) >= after)
        self.call.asleep = not there

    @precondition(lambda self: not self.call.asleep)
    @rule()
    def driver_wants_no_calls(self):
        self.driver.disable_notification()
        self.call.silent = True

    # -- the device ----------------------------------------------------------------------------------------------------

    @rule(walk=st.booleans())
    def pop(self, walk):
        chain = self.device.pop() if walk else None
        head = self.device.pop_head() if not walk else chain.head_index if chain is not None else -1
        if not self.published:
            assert head == -1
            return
        message = self.published.pop(0)
        assert head == message.token
        self.taken.append(message)
        self.undo.append(message)
        self.taken_at += 1
        self.check(message, chain if walk else self.device.chain(head))

    def check(self, message, chain):
        descriptors = [(d.addr, d.len, d.is_write_only) for d in chain]
        assert descriptors == [(*b, False) for b in message.readable] + [(*b, True) for b in message.writable]
        reader = chain.reader()
        for i, (_, count) in enumerate(message.readable):
            assert reader.read_exact(count)[:4] == struct.pack("<HH", message.number & 0xFFFF, i)

    @precondition(lambda self: self.undo and not self.kick.asleep)
    @rule()
    def go_back(self):
        message = self.undo.pop()
        self.taken.remove(message)
        self.published.insert(0, message)
        self.taken_at -= 1
        self.device.go_to_previous_position()

    @precondition(lambda self: self.taken)
    @rule(which=st.integers(0, 1000), share=st.floats(0, 1))
    def return_one(self, which, share):
        message = self.taken.pop(which % len(self.taken))
        if message in self.undo:  # what was taken before it can still be put back, but not past it
            self.undo = self.undo[self.undo.index(message) + 1 :]
        message.answer = bytes((message.number + i) & 0xFF for i in range(int(message.room * share)))
        self.device.chain(message.token).writer().write_all(message.answer)
        self.device.add_used(message.token, len(message.answer))
        self.returned_at += 1
        self.returned.append(message)

    @rule()
    def ask_call(self):
        wanted = self.call.wanted(self.returned_at)
        assert self.device.needs_notification() is wanted
        if wanted:
            self.calls += 1
            self.call.asleep = False

    @rule()
    def device_arms(self):
        self.kick.event = self.taken_at & 0xFFFF
        self.kick.silent = False
        waiting = self.device.enable_notification()
        assert waiting is bool(self.published)
        self.kick.asleep = not waiting

    @precondition(lambda self: not self.kick.asleep)
    @rule()
    def device_wants_no_kicks(self):
        self.device.disable_notification()
        self.kick.silent = True

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def counts_agree(self):
        if not hasattr(self, "driver"):
            return
        assert self.driver.num_free == self.size - self.descriptors
        assert self.driver.in_flight == len(self.in_flight)
        assert self.driver.used() == len(self.returned)
        assert self.device.available() == len(self.published)
        assert self.device.next_avail == self.taken_at & 0xFFFF
        assert self.device.next_used == self.rig.used == self.returned_at & 0xFFFF
        assert self.driver.last_used == self.reaped_at & 0xFFFF
        assert self.rig.avail == self.published_at & 0xFFFF
        assert self.driver.broken is None
        assert self.device.broken is None

    @invariant()
    def nobody_oversleeps(self):
        """Who sleeps although there is work sleeps only until the other side, which published it, has asked."""
        if not hasattr(self, "driver"):
            return
        if self.kick.asleep and self.kick.asked == self.published_at:
            assert not self.published
        assert self.kicks <= self.published_at - self.rig.start
        assert self.calls <= self.returned_at - self.rig.start

    def teardown(self):
        """Everything can be brought to an end, and then every descriptor is free again."""
        if not hasattr(self, "driver"):
            return
        self.publish()
        while self.published:
            self.pop(walk=True)
        while self.taken:
            self.return_one(which=0, share=1.0)
        while self.returned:
            self.reap()
        assert self.driver.reap() is None
        tokens = set()
        buffer = [(self.rig.buffers, 1)]
        if self.size <= 256:
            while self.driver.num_free:
                tokens.add(self.driver.add(buffer))
            assert tokens == set(range(self.size))


def run(rig, **options):
    class Machine(Halves):
        Rig = rig

    run_state_machine_as_test(
        Machine, settings=settings(deadline=None, suppress_health_check=list(HealthCheck), **options)
    )


def test_both_halves_behave_as_the_model(rig):
    run(rig, max_examples=150, stateful_step_count=60)


@pytest.mark.long
def test_both_halves_behave_as_the_model_for_longer(rig):
    run(rig, max_examples=300, stateful_step_count=120)


# -- long ways round ---------------------------------------------------------------------------------------------------


def lap(r, messages, batch):
    """Send so many one-buffer messages, `batch` at a time, and assert that each arrives once and in order."""
    driver, device = r.driver, r.device
    buffer = [(r.buffers, 4)]
    sent = kicks = 0
    while sent < messages:
        device.enable_notification()
        count = min(batch, messages - sent)
        tokens = [driver.add(buffer, publish=False) for _ in range(count)]
        driver.publish()
        kicks += driver.needs_kick()
        assert [device.pop_head() for _ in range(count)] == tokens
        assert device.pop_head() == -1
        for token in reversed(tokens):
            device.add_used(token, 0)
        assert [driver.reap() for _ in range(count)] == [(token, 0) for token in reversed(tokens)]
        assert driver.reap() is None
        sent += count
    return kicks


@pytest.mark.fault("G02")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_positions_wrap_without_loss_or_reorder(rig, size, event_idx):
    """G02, in short: across 65535 at every size, in batches that do not divide it."""
    r = rig(size, start=65530, event_idx=event_idx)
    batch = min(size, 7)
    messages = 21 if size < 32768 else 7
    assert lap(r, messages, batch) == -(-messages // batch)  # one kick for each batch, no more and no less
    assert r.device.next_avail == (65530 + messages) & 0xFFFF


@pytest.mark.fault("G02")
@pytest.mark.long
@pytest.mark.fault("G02")
@pytest.mark.parametrize("size", SIZES)
def test_ten_times_round_the_circle(rig, size):
    """G02; the interpreted core goes round twice."""
    r = rig(size, start=65530, event_idx=True)
    rounds = 10 if core.kind() == "compiled" else 2
    batch = size if size < 3 else size - size // 3
    lap(r, rounds * 65536, batch)
    assert r.device.next_avail == 65530


@pytest.mark.fault("C09")
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("switch", range(4))
def test_suppression_changes_how_often_one_is_woken_and_nothing_else(rig, event_idx, switch):
    """C09: whichever side asks for silence, the same messages arrive in the same order."""
    r = rig(8, event_idx=event_idx, start=65533)
    driver, device = r.driver, r.device
    if switch & 1:
        device.disable_notification()
    if switch & 2:
        driver.disable_notification()
    arrived, kicks, calls = [], 0, 0
    for number in range(30):
        r.poke(r.buffers, struct.pack("<H", number))
        token = driver.add([(r.buffers, 2)])
        kicks += driver.needs_kick()
        chain = device.pop()
        arrived.append(struct.unpack("<H", chain.reader().read())[0])
        device.add_used(chain.head_index, 0)
        calls += device.needs_notification()
        assert driver.reap() == (token, 0)
    assert arrived == list(range(30))
    assert kicks <= 30
    assert calls <= 30
    if not event_idx:
        assert kicks == (0 if switch & 1 else 30)
        assert calls == (0 if switch & 2 else 30)
