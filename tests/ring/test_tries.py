"""A chain that kills whoever handles it is given up after so many tries; at whatever store its devices die.

A device's windows are led word by word through a hand that counts, as in `test_inflight`; besides, some chains are
poison: whoever has one handed out dies of it. What must hold follows from what was handed out, and came back.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vqshm_mortal import Killed, MortalMemory

from vqshm.errors import InvalidInflight, PeerViolation, VqshmError
from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout
from vqshm.ring.inflight import inflight_bytes
from vqshm.ring.tries import Tries, Undone, tries_bytes

BASE = 0x1_0000
BUFFERS = 0x1000  # behind BASE
SIZE = 4

pytestmark = pytest.mark.fault("D01", "D02")


class World:
    """A queue, its driver, and one device process after the other; `poison`: numbers of chains that kill."""

    def __init__(self, limit, poison=()):
        self.layout = SplitLayout.at(BASE, SIZE)
        self.area = self.layout.end + inflight_bytes(SIZE)
        self.bytes = bytearray(BUFFERS + 0x100)
        self.memory = GuestMemory([(BASE, self.bytes)])
        self.config = QueueConfig(self.layout, event_idx=True)
        self.driver = self.config.driver(self.memory)
        self.seen = Undone(self.memory, self.area, SIZE)
        self.limit, self.poison = limit, poison
        self.offered = 0
        self.tokens = {}  # token of the driver → number
        self.done, self.undone = [], []  # numbers, as they came back
        self.begun = {}  # number → lives that may have tried it
        self.handed = {}  # number → the `attempts` with which it was handed out
        self.life = 0
        self.mortal = MortalMemory([(BASE, self.bytes)])
        self.device = self.make_device()
        self.device.begin()

    def make_device(self):
        tries = Tries(self.mortal, self.area, SIZE, self.limit)
        return self.config.device(self.mortal, inflight=self.layout.end, tries=tries)

    # -- the driver ----------------------------------------------------------------------------------------------------

    def offer(self, count):
        for _ in range(count):
            token = self.driver.next_head
            self.seen.clear(token)
            at = BASE + BUFFERS + 8 * (self.offered % SIZE)
            self.memory.write(at, struct.pack("<Q", self.offered))
            assert self.driver.add([(at, 8)]) == token
            self.tokens[token] = self.offered
            self.offered += 1

    def reap(self):
        """Raises UsedIdNotInFlight if something comes back twice."""
        while (returned := self.driver.reap()) is not None:
            number = self.tokens.pop(returned[0])
            (self.undone if self.seen.says(returned[0]) else self.done).append(number)

    # -- the device ----------------------------------------------------------------------------------------------------

    def live(self, stores=-1, *, ahead=1):
        """A device process, until it finds nothing more to do, or dies: then it just does nothing more.

        It takes `ahead` chains at a time.
        """
        self.mortal = MortalMemory([(BASE, self.bytes)])
        self.mortal.left = stores
        self.life += 1
        try:
            self.device = self.make_device()
            self.device.resume()
            self.again = self.in_flight()
            while True:
                chains = [chain for chain in (self.take() for _ in range(ahead)) if chain is not None]
                if not chains:
                    return
                if any(self.number_of(chain) in self.poison for chain in chains):
                    return
                for chain in chains:
                    self.device.add_used(chain.head_index, 0)
        except Killed:
            pass

    def in_flight(self):
        """The numbers of what is marked, in the order of taking."""
        entries = self.memory.read(self.layout.end + 16, 16 * SIZE)
        marked = [(counter, head) for head, (mark, counter) in enumerate(struct.iter_unpack("<B7xQ", entries)) if mark]
        return [self.tokens[head] for _, head in sorted(marked)]

    def take(self):
        number = self.again.pop(0) if self.again else self.device.next_avail
        if number < self.offered:
            self.begun.setdefault(number, set()).add(self.life)  # perhaps: it may die before that is written down
        chain = self.device.replay() or self.device.pop()
        if chain is not None:
            assert self.number_of(chain) == number, "out of order"
            tries = self.handed.setdefault(number, [])
            assert chain.attempts > (tries[-1] if tries else 0), "a try was not counted"
            assert chain.attempts <= len(self.begun[number]), "more tries than there were"
            tries.append(chain.attempts)
        return chain

    @staticmethod
    def number_of(chain):
        return struct.unpack("<Q", chain.reader().read())[0]

    # -- the end -------------------------------------------------------------------------------------------------------

    def finish(self, ahead=1):
        """Nobody dies any more but of poison: everything comes back, once, and what was given up is told."""
        for _ in range((self.limit + 1) * (len(self.poison) + 1) + SIZE):
            self.live(ahead=ahead)
        self.reap()
        assert sorted(self.done + self.undone) == list(range(self.offered))
        assert not self.tokens
        assert self.seen.count == self.device.undone == len(self.undone)
        for number in self.undone:
            assert len(self.begun[number]) >= self.limit
        for number, tries in self.handed.items():
            assert not self.limit or tries[-1] <= self.limit
            assert number in self.undone or number not in self.poison
        entries = self.memory.read(self.area + 8, tries_bytes(SIZE) - 8)
        assert not any(tries for tries, _ in struct.iter_unpack("<HH", entries)), "what was returned is forgotten"


SCRIPTS = {"one by one": 1, "all at once": SIZE}
POISONS = {"harmless": (), "the first is poison": (0,), "two are": (1, 3), "all are": (0, 1, 2, 3)}


@pytest.mark.parametrize("limit", [0, 1, 3])
@pytest.mark.parametrize("ahead", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
def test_whatever_store_was_the_last_one_each_comes_back_once_and_is_tried_no_more_often(poison, ahead, limit):
    deaths = 0
    for before in range(limit + 2):  # lives that end by poison only
        died, stores = True, 0
        while died:
            world = World(limit, poison if limit else ())
            world.offer(SIZE)
            for left in (*[-1] * before, stores):
                world.live(left, ahead=ahead)
            died = world.mortal.left == 0
            deaths += died
            stores += 1
            world.reap()
            world.offer(SIZE - len(world.tokens))
            world.finish(ahead)
    assert deaths > 20


@settings(max_examples=200)
@given(
    st.sampled_from([0, 1, 2, 4]),
    st.frozensets(st.integers(0, 11), max_size=4),
    st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 60), st.integers(1, SIZE)), max_size=8),
)
def test_any_lives_lose_nothing_and_try_nothing_too_often(limit, poison, lives):
    world = World(limit, poison if limit else ())
    for offers, stores, ahead in lives:
        world.reap()
        world.offer(min(offers, SIZE - len(world.tokens)))
        world.live(stores, ahead=ahead)
    world.finish()


def test_a_chain_that_kills_is_handed_out_as_often_as_may_be_and_then_comes_back_undone():
    world = World(3, poison=(1,))
    world.offer(3)
    for _ in range(4):
        world.live()
    world.reap()
    assert (world.done, world.undone) == ([0, 2], [1])
    assert world.handed == {0: [1], 1: [1, 2, 3], 2: [1]}
    world.finish()


def test_those_that_were_taken_with_it_do_not_suffer_for_it():
    world = World(2, poison=(0,))
    world.offer(SIZE)
    world.live(ahead=SIZE)  # takes all of them, and dies of the first
    world.live()  # dies of it again
    world.live()
    world.reap()
    assert (world.undone, world.done) == ([0], [1, 2, 3])
    assert world.handed[0] == [1, 2]
    assert world.handed[3] == [1, 2]  # each was tried once more


def test_without_a_limit_it_comes_for_ever_and_says_how_often():
    world = World(0, poison=(0,))
    world.offer(1)
    for _ in range(7):
        world.live()
    assert world.handed == {0: [1, 2, 3, 4, 5, 6, 7]}
    world.poison = ()
    world.finish()


def test_tries_are_counted_as_far_as_the_word_goes():
    world = World(0, poison=(0,))
    world.offer(1)
    world.live()
    world.memory.write(world.area + 8, b"\xff\xff")
    world.device = world.make_device()
    world.device.resume()
    assert world.device.replay().attempts == 0x10000


def test_what_an_earlier_chain_of_that_descriptor_was_tried_is_not_held_against_the_next():
    """Alone in a queue each has the same descriptor."""
    world = World(2)
    for number in range(3):
        world.offer(1)
        world.poison = (number,)
        world.live()
        world.poison = ()
        world.live()
        world.reap()
    assert (world.done, world.undone) == ([0, 1, 2], [])


def test_nor_in_one_life_on_the_same_descriptor():
    world = World(0, poison=(0,))
    world.offer(1)
    world.live()
    world.device = world.make_device()
    world.device.resume()
    world.device.add_used(world.device.replay().head_index, 0)
    world.reap()
    world.offer(1)
    assert world.device.pop().attempts == 1
    world.device = world.make_device()
    world.device.resume()
    assert world.device.replay().attempts == 2


def test_without_an_area_of_tries_chains_come_again_all_the_same():
    world = World(1)
    plain = world.config.device(world.memory, inflight=world.layout.end)
    plain.begin()
    world.offer(1)
    plain.pop()
    plain = world.config.device(world.memory, inflight=world.layout.end)
    assert plain.resume() == 1
    assert plain.replay().attempts == 2
    assert (plain.undone, plain.given_up) == (0, 0)


# -- what a driver, or a dead device, may leave ------------------------------------------------------------------------


def test_a_head_that_no_queue_has_breaks_it_by_name():
    world = World(1)
    world.offer(1)
    world.device.pop()
    world.memory.write(world.area, struct.pack("<Q", 1 << 16 | SIZE + 1))
    world.device = world.make_device()
    with pytest.raises(InvalidInflight, match="head 4 of 4") as caught:
        world.device.resume()
    assert isinstance(caught.value, PeerViolation)


@settings(max_examples=200)
@given(st.binary(min_size=tries_bytes(SIZE), max_size=tries_bytes(SIZE)), st.integers(0, 3), st.booleans())
def test_whatever_bytes_lie_there_each_chain_comes_back_or_the_queue_is_broken_by_name(noise, limit, plausible):
    world = World(limit)
    world.offer(SIZE)
    for _ in range(3):
        world.device.pop()
    noise = bytes([noise[0] % (SIZE + 2), 0]) + noise[2:] if plausible else noise
    world.memory.write(world.area, noise)
    world.device = world.make_device()
    try:
        again = world.device.resume()
    except VqshmError:
        return
    assert again + world.device.given_up == 3
    while (chain := world.device.replay() or world.device.pop()) is not None:
        assert 1 <= chain.attempts <= 0x10000
        world.device.add_used(chain.head_index, 0)
    world.reap()
    assert len(world.done) + len(world.undone) == SIZE
