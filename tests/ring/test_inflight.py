"""A device that dies between any two of its stores leaves an in-flight area from which its successor goes on.

Death is an exception out of the n-th store: the device's windows are led word by word through a hand that counts. What
was stored stays, everything else is forgotten, as at a SIGKILL.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vqshm_mortal import Killed, MortalMemory

from vqshm.errors import InvalidInflight, InvalidState, PeerViolation, QueueBroken
from vqshm.memory import GuestMemory
from vqshm.ring import Inflight, QueueConfig, SplitLayout
from vqshm.ring.inflight import inflight_bytes

BASE = 0x1_0000
BUFFERS = 0x8000  # behind BASE

pytestmark = pytest.mark.fault("D01", "D02")


class World:
    """A queue, its driver, and one device process after the other."""

    def __init__(self, size=4, start=0, event_idx=False):
        self.layout = SplitLayout.at(BASE, size)
        self.bytes = bytearray(BUFFERS + 0x1000)
        self.memory = GuestMemory([(BASE, self.bytes)])
        self.config = QueueConfig(self.layout, event_idx=event_idx)
        self.driver = self.config.driver(self.memory)
        self.offered = []  # numbers, as their chains were made available
        self.tokens = {}  # token of the driver → number
        self.done = []  # numbers, as the driver got them back
        self.taken = []  # numbers, as devices began to take them for the first time
        self.returned = []  # numbers in the used ring, seen by the driver or not
        self.chains = {}  # number → chain the present device holds
        self.deaths = 0
        self.device = None
        if start:
            self.driver.seek(start)
            for ring in (self.layout.avail_ring, self.layout.used_ring):
                self.memory.write(ring + 2, struct.pack("<H", start))
        self.start = start
        self.be_born(resume=False)

    @property
    def inflight(self):
        return self.layout.end

    def be_born(self, *, resume=True, stores=-1):
        """A new device process; `stores` as of `MortalMemory.left`."""
        memory = self.mortal = MortalMemory([(BASE, self.bytes)])
        memory.left = stores
        self.chains = {}
        device = self.config.device(memory, inflight=self.inflight)
        if resume:
            device.resume()
        else:
            area = Inflight(memory, self.inflight, self.layout.size)
            area.begin()
            device.seek(self.start, self.start)
            if self.start:
                self.memory.write(self.inflight + 14, struct.pack("<H", self.start))
        self.device = device

    # -- the driver ----------------------------------------------------------------------------------------------------

    def offer(self):
        if self.driver.in_flight < self.layout.size:
            number = len(self.offered)
            self.memory.write(BASE + BUFFERS + 8 * (number % 64), struct.pack("<Q", number))
            self.tokens[self.driver.add([(BASE + BUFFERS + 8 * (number % 64), 8)])] = number
            self.offered.append(number)

    def reap(self):
        """Raises UsedIdNotInFlight if something comes back twice."""
        while (returned := self.driver.reap()) is not None:
            self.done.append(self.tokens.pop(returned[0]))

    # -- the device ----------------------------------------------------------------------------------------------------

    def take(self):
        expected = len(self.taken)
        if expected < len(self.offered):
            self.taken.append(expected)  # begun: whether it was taken, only the area knows
            chain = self.device.pop()
            assert self.number_of(chain) == expected
            assert not chain.replayed
            self.chains[expected] = chain

    @staticmethod
    def number_of(chain):
        return struct.unpack("<Q", chain.reader().read())[0]

    def give(self, which):
        """Return one of those held, in whatever order; not yet shown."""
        if self.chains:
            number = sorted(self.chains)[which % len(self.chains)]
            chain = self.chains.pop(number)
            self.giving = number
            self.device.put_used(chain.head_index, 0)
            self.returned.append(number)

    def publish(self):
        self.device.publish_used()

    # -- death ---------------------------------------------------------------------------------------------------------

    def succeed(self, stores=-1):
        """The device is dead: a new one takes over, and what it is to handle again is what it must be."""
        used = struct.unpack("<H", self.memory.read(self.layout.used_ring + 2, 2))[0]
        published = (used - self.start) & 0xFFFF
        del self.returned[published:]
        assert len(self.returned) == published
        missing = [number for number in self.taken if number not in self.returned]
        self.be_born(stores=stores)
        self.deaths += 1
        if missing and self.device.replays == len(missing) - 1:
            # The last take had not come as far as its mark: that chain is new to the successor, too.
            assert self.taken.pop() == missing.pop()
        assert self.device.replays == len(missing)
        again = []
        while (chain := self.device.replay()) is not None:
            assert chain.replayed
            again.append(self.number_of(chain))
            self.chains[again[-1]] = chain
        assert again == missing  # in the order of taking
        assert self.device.replays == 0

    def finish(self):
        """Nothing dies any more: everything offered comes back, once."""
        self.mortal.left = -1
        while self.taken != self.offered or self.chains:
            self.take()
            self.give(0)
            self.publish()
        self.publish()
        self.reap()
        assert sorted(self.done) == self.offered
        assert not self.tokens
        assert self.driver.in_flight == 0
        # And nothing is left for a successor.
        self.be_born()
        assert self.device.replays == 0
        assert self.device.pop() is None


def step(world, op, which=0):
    if op == "offer":
        world.offer()
    elif op == "reap":
        world.reap()
    elif op == "take":
        world.take()
    elif op == "give":
        world.give(which)
    elif op == "publish":
        world.publish()


IN_ORDER = ["offer", "offer", "take", "give", "publish", "reap", "take", "offer", "give", "publish", "take", "reap"]
BATCHES = [
    *["offer"] * 4,
    *["take"] * 4,
    *["give2", "give2", "publish", "offer"],
    *["reap", "offer", "offer", "take", "take", "give1", "give0", "give1", "publish", "take", "give0"],
]


def parsed(script):
    return [(word.rstrip("0123456789"), int(word[-1]) if word[-1].isdigit() else 0) for word in script]


@pytest.mark.parametrize("start", [0, 65534])
@pytest.mark.parametrize("script", [IN_ORDER, BATCHES], ids=["in order", "batches out of order"])
def test_whatever_store_was_the_last_one_nothing_is_lost_and_nothing_comes_back_twice(script, start):
    stores = total_stores(script, start)
    for last in range(stores + 1):
        world = World(start=start)
        world.mortal.left = last
        for op, which in parsed(script):
            try:
                step(world, op, which)
            except Killed:
                world.succeed()
        assert world.deaths == (last < stores)
        world.finish()


def total_stores(script, start=0):
    world = World(start=start)
    world.mortal.stores = 0
    for op, which in parsed(script):
        step(world, op, which)
    return world.mortal.stores


def test_a_successor_may_die_between_any_two_stores_of_its_own_too():
    """Every pair of deaths, the second one counted from the first store of the successor's `resume`."""
    stores = total_stores(BATCHES)
    for first in range(stores):
        for second in range(30):
            world = World()
            world.mortal.left = first
            for op, which in parsed(BATCHES):
                try:
                    step(world, op, which)
                except Killed:
                    survive(world, second if world.deaths == 0 else -1)
            world.finish()


def survive(world, stores):
    try:
        world.succeed(stores)
    except Killed:
        world.succeed()


OPS = st.one_of(
    st.sampled_from(["offer", "offer", "take", "take", "publish", "reap"]).map(lambda op: (op, 0)),
    st.integers(0, 7).map(lambda which: ("give", which)),
)


@given(
    size=st.sampled_from([1, 2, 8]),
    start=st.sampled_from([0, 65533]),
    script=st.lists(OPS, max_size=60),
    deaths=st.lists(st.integers(0, 40), max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_any_work_with_any_deaths_ends_with_everything_returned_once(size, start, script, deaths):
    world = World(size=size, start=start)
    lives = iter(deaths)
    world.mortal.left = next(lives, -1)
    for op, which in script:
        try:
            step(world, op, which)
        except Killed:
            while True:
                try:
                    world.succeed(next(lives, -1))
                    break
                except Killed:
                    continue
    world.finish()


# -- what is in memory -------------------------------------------------------------------------------------------------


def area(world):
    raw = world.memory.read(world.inflight, inflight_bytes(world.layout.size))
    return struct.unpack("<QHHHH", raw[:16]), list(struct.iter_unpack("<B5sHQ", raw[16:]))


def test_the_layout_is_that_of_vhost_user_for_split_queues():
    world = World(size=4)
    assert inflight_bytes(4) == 16 + 4 * 16
    assert area(world) == ((0, 1, 4, 0, 0), [(0, bytes(5), 0, 0)] * 4)
    for _ in range(3):
        world.offer()
    for _ in range(3):
        world.take()
    header, entries = area(world)
    assert header == (0, 1, 4, 0, 0)
    assert [(mark, counter) for mark, _, _, counter in entries[:3]] == [(1, 0), (1, 1), (1, 2)]
    world.give(2)
    world.give(0)
    header, entries = area(world)
    assert header == (0, 1, 4, 0, 0)  # head 0 was returned last …
    assert entries[0][2] == 2  # … before it head 2 …
    assert entries[2][2] == 0  # … and before that one none
    assert [entry[0] for entry in entries] == [1, 1, 1, 0]
    world.publish()
    header, entries = area(world)
    assert header == (0, 1, 4, 0, 2)
    assert [entry[0] for entry in entries] == [0, 1, 0, 0]
    assert {entry[1] for entry in entries} == {bytes(5)}


def test_a_successor_counts_on_where_the_dead_device_stopped():
    world = World()
    for _ in range(3):
        world.offer()
    world.take()
    world.take()
    world.succeed()
    world.take()
    assert [entry[3] for entry in area(world)[1][:3]] == [0, 1, 2]


def test_a_session_begins_with_nothing_in_flight_whatever_was_there():
    world = World()
    world.memory.write(world.inflight, b"\xff" * inflight_bytes(4))
    world.be_born(resume=False)
    assert area(world) == ((0, 1, 4, 0, 0), [(0, bytes(5), 0, 0)] * 4)


def test_what_is_in_flight_comes_in_the_order_of_taking_not_of_its_heads():
    backwards = 0
    for first in (0, 1):
        world = World()
        world.offer()
        world.offer()
        world.take()
        world.take()
        world.give(first)
        world.give(0)
        world.publish()
        world.reap()
        world.offer()
        world.offer()
        world.take()
        world.take()
        backwards += world.chains[2].head_index > world.chains[3].head_index
        world.succeed()  # looks at the order
        world.finish()
    assert backwards == 1


def test_a_device_that_died_before_it_began_has_a_successor_that_begins():
    world = World()
    world.memory.write(world.inflight, bytes(inflight_bytes(4)))
    world.offer()
    world.be_born()
    assert area(world)[0] == (0, 1, 4, 0, 0)
    world.finish()


def test_going_back_one_position_takes_the_mark_away():
    world = World()
    world.offer()
    world.take()
    world.device.go_to_previous_position()
    assert [entry[0] for entry in area(world)[1]] == [0, 0, 0, 0]
    world.taken.pop()
    world.chains.clear()
    world.finish()


def test_a_successor_cannot_undo_what_it_did_not_take():
    world = World()
    world.offer()
    world.take()
    world.succeed()
    with pytest.raises(InvalidState, match="no chain in flight was taken at position 0"):
        world.device.go_to_previous_position()


def test_a_queue_without_an_area_has_nothing_to_go_on_from():
    world = World()
    with pytest.raises(InvalidState, match="no in-flight area"):
        world.config.device(world.memory).resume()
    assert world.config.device(world.memory).replay() is None


def test_an_area_is_for_strict_policy_and_for_a_queue_of_its_size():
    world = World()
    with pytest.raises(InvalidState, match="strict"):
        world.config.device(world.memory, strict=False, inflight=world.inflight)
    with pytest.raises(InvalidState, match="of its size"):
        type(world.device)(world.memory, world.layout, inflight=Inflight(world.memory, world.inflight, 2))


# -- an area that somebody wrote ---------------------------------------------------------------------------------------


def poke(world, offset, form, *values):
    world.memory.write(world.inflight + offset, struct.pack("<" + form, *values))


def entry(head):
    return 16 + 16 * head


LIES = {
    "another version": lambda w: poke(w, 8, "H", 2),
    "features": lambda w: poke(w, 0, "Q", 1),
    "another size": lambda w: poke(w, 10, "H", 8),
    "nobody has begun, but something was returned": lambda w: poke(w, 8, "H", 0),
    "a last batch of more than the queue": lambda w: poke(w, 14, "H", 0xFFF0),
    "a last batch that begins outside": lambda w: (poke(w, 14, "H", 0), poke(w, 12, "H", 4)),
    "a last batch that leads outside": lambda w: (poke(w, 14, "H", 0xFFFF), poke(w, entry(0) + 6, "H", 0xFFFF)),
    "a last batch that goes round": lambda w: (poke(w, 14, "H", 0xFFFF), poke(w, entry(0) + 6, "H", 0)),
    "a mark that is none": lambda w: poke(w, entry(3), "B", 2),
    "two taken at the same time": lambda w: poke(w, entry(1) + 8, "Q", 2),
    "a counter at its end": lambda w: poke(w, entry(1) + 8, "Q", 2**64 - 1),
    "more in flight than were offered": lambda w: poke(w, entry(3), "BxxxxxHQ", 1, 0, 9),
    "an avail.idx behind": lambda w: w.memory.write(w.layout.avail_ring + 2, struct.pack("<H", 1)),
    "an avail.idx far ahead": lambda w: w.memory.write(w.layout.avail_ring + 2, struct.pack("<H", 100)),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_area_that_cannot_be_breaks_the_queue_with_its_name(lie):
    world = World()
    for _ in range(3):
        world.offer()
    for _ in range(3):
        world.take()
    world.give(0)
    world.publish()  # head 0 came back; 1 and 2 are in flight, as numbers 1 and 2
    lie(world)
    device = world.config.device(world.memory, inflight=world.inflight)
    with pytest.raises(InvalidInflight) as caught:
        device.resume()
    assert isinstance(caught.value, PeerViolation)
    assert caught.value.facts["queue"] == "queue"
    assert str(device.broken) == str(caught.value)
    with pytest.raises(QueueBroken):
        device.pop()
    with pytest.raises(InvalidState):
        device.resume()


def test_padding_is_nobodys_business():
    world = World()
    world.offer()
    world.take()
    poke(world, entry(0) + 1, "5s", b"\xff" * 5)
    world.succeed()
    world.finish()


@given(garbage=st.binary(min_size=inflight_bytes(4), max_size=inflight_bytes(4)), used=st.integers(0, 5))
@settings(max_examples=500, deadline=None)
def test_whatever_bytes_lie_there_the_outcome_is_a_named_error_or_a_bounded_list(garbage, used):
    world = World()
    for _ in range(4):
        world.offer()
    world.memory.write(world.inflight, garbage)
    plausible = bytearray(garbage)
    plausible[:12] = struct.pack("<QHH", 0, 1, 4)
    for image in (garbage, bytes(plausible)):
        world.memory.write(world.inflight, image)
        world.memory.write(world.layout.used_ring + 2, struct.pack("<H", used))
        device = world.config.device(world.memory, inflight=world.inflight)
        try:
            count = device.resume()
        except InvalidInflight:
            assert device.broken is not None
            assert world.memory.read(world.inflight, len(image)) == image  # nothing was changed
            continue
        heads = []
        while (chain := device.replay()) is not None:
            heads.append(chain.head_index)
        assert len(heads) == count == len(set(heads)) <= 4 - used
        assert device.next_avail == used + count


def test_a_driver_that_offers_again_what_it_has_not_got_back_harms_nobody_else():
    """More is given back in one batch than the queue holds; the device's own list stays within bounds."""
    world = World(size=2)
    world.offer()
    world.offer()
    for round_ in range(10):
        head = round_ % 2  # the same one twice in a row would be one and the same return
        world.memory.write(world.layout.avail_ring + 4 + 2 * head, struct.pack("<H", head))
        world.memory.write(world.layout.avail_ring + 2, struct.pack("<H", round_ + 1))
        chain = world.device.pop()
        assert chain.head_index == head
        world.device.put_used(head, 0)
    world.publish()
    assert area(world)[0] == (0, 1, 2, 1, 10)
    assert [entry[0] for entry in area(world)[1]] == [0, 0]
