"""A receiver that dies at any store has a successor: nothing is lost, what was done stays done, the rest is flagged.

A receiver's windows over the rings and the in-flight area are replaced by a hand that lets it make only so many stores.
What must hold then follows from what its calls had returned, and from nothing that vqshm says of itself.
"""

from __future__ import annotations

import gc
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vqshm_mortal import Killed, MortalMemory

from vqshm.errors import InvalidInflight, InvalidState, NoMessage, NoRoom, PeerViolation, QueueBroken, VqshmError
from vqshm.lane.outlet import Outlet
from vqshm.lane.resuming import ResumingInlet
from vqshm.memory import GuestMemory
from vqshm.ring import SplitLayout
from vqshm.ring.inflight import inflight_bytes

BASE = 0x1_0000
ARENA = 4096

pytestmark = pytest.mark.fault("D01", "D02")


class Bell:
    """Rings nobody."""

    def signal(self):
        pass


class Keeper:
    """Never waits: what is not there is not there in time."""

    def __init__(self):
        self.told = []
        self.inlet = None

    def sleep(self, _deadline, _after=0):
        return False

    lie_down = sleep

    def get_ready(self, _deadline=None):
        raise QueueBroken(f"broken: {self.inlet.broken}")

    def broke(self, error):
        self.told.append(error)

    def show_counts(self):
        pass

    def stalled(self):
        return "nobody waits"


class World:
    """A lane, its sender, and one receiver after the other."""

    def __init__(self, size=8, *, event_idx=True):
        self.layout = SplitLayout.at(BASE, size)
        self.inflight = self.layout.end
        arena = (self.inflight + inflight_bytes(size) + 63) & ~63
        self.bytes = bytearray(arena + ARENA - BASE)
        self.event_idx = event_idx
        memory = GuestMemory([(BASE, self.bytes)])
        self.outlet = Outlet(memory, self.layout, (arena, ARENA), Bell(), Keeper(), event_idx=event_idx)
        self.sent = 0
        self.handed = set()  # numbers that a call returned
        self.done = set()  # numbers that are surely done with
        self.doubtful = set()  # numbers of which the present call says so
        self.maybe = set()  # numbers of which a call that died said so, or did not come to it
        self.new = 0  # the number that the next message has that nobody has taken
        self.be_born(resume=False)

    def be_born(self, *, resume=True, stores=-1):
        """A new receiver process; `stores` as of `MortalMemory.left`."""
        self.memory = MortalMemory([(BASE, self.bytes)])
        self.keeper = Keeper()
        self.inlet = self.keeper.inlet = ResumingInlet(
            self.memory, self.layout, Bell(), self.inflight, keeper=self.keeper, event_idx=self.event_idx
        )
        self.last = []  # numbers of the bytes that the last call returned
        self.loans = []  # (number, loan)
        self.flagged = self.fresh = 0
        if not resume:
            self.inlet.restart(self.event_idx, False)
            return
        self.memory.left = stores
        self.inlet.take_over(self.event_idx, False)

    def send(self, count):
        """As many as there is room for."""
        for _ in range(count):
            self.outlet.reclaim()
            try:
                self.outlet.send(struct.pack("<I", self.sent) * (self.sent % 3 + 1), 0)
            except NoRoom:
                return
            self.sent += 1

    # -- a receiver's calls --------------------------------------------------------------------------------------------

    def _end_of_last(self, act):
        """Do what says that the last bytes are done with."""
        self.doubtful = set(self.last)
        result = act()
        self.done |= self.doubtful
        self.doubtful = set()
        self.last = []
        return result

    def _took(self, messages, *, replayed):
        """Note what a call returned, and that it may have been returned."""
        numbers = [struct.unpack_from("<I", message)[0] for message in messages]
        for number, message in zip(numbers, messages, strict=True):
            assert message == struct.pack("<I", number) * (number % 3 + 1)  # whole
            assert number not in self.done, f"{number} was done with, and comes again"
            assert replayed or number not in self.handed, f"{number} comes again, and is not flagged"
            if replayed:
                assert self.fresh == 0, "what comes again comes first"
                self.flagged += 1
                self.new = max(self.new, number + 1)
            else:
                assert number == self.new, "one was left out"
                self.fresh += 1
                self.new += 1
        self.handed |= set(numbers)
        self.maybe -= set(numbers)
        return numbers

    def recv(self):
        try:
            message = self._end_of_last(lambda: self.inlet.recv(0))
        except NoMessage:
            self._nothing()
            return
        self.last = self._took([message], replayed=self.inlet.replayed)

    def many(self, limit):
        try:
            messages = self._end_of_last(lambda: self.inlet.recv_many(limit, 0))
        except NoMessage:
            self._nothing()
            return
        assert 1 <= len(messages) <= limit
        self.last = self._took(messages, replayed=self.inlet.replayed)

    def view(self):
        try:
            loan = self._end_of_last(lambda: self.inlet.recv_view(0))
        except NoMessage:
            self._nothing()
            return
        (number,) = self._took([bytes(loan.view)], replayed=loan.replayed)
        assert loan.replayed == self.inlet.replayed
        self.loans.append((number, loan))

    def release(self, which):
        if self.loans:
            number, loan = self.loans.pop(which % len(self.loans))
            self.doubtful = {number}
            loan.release()
            self.done.add(number)
            self.doubtful = set()

    def finish(self):
        self._end_of_last(self.inlet.done)

    def _nothing(self):
        """A call found nothing, and said that the last was done with."""
        self.done |= self.doubtful
        self.doubtful = set()
        self.last = []

    def do(self, op):
        name, _, number = op.partition(" ")
        getattr(self, name)(*([int(number)] if number else []))

    # -- death ---------------------------------------------------------------------------------------------------------

    def succeed(self, stores=-1):
        """The receiver is dead: another one takes over."""
        self.maybe |= self.doubtful
        self.doubtful = set()
        self.be_born(stores=stores)

    def drain(self):
        """Nobody dies any more: what is not done comes, and after that nothing."""
        self.memory.left = -1
        must = self.handed - self.done - self.maybe
        may = must | self.maybe | set(range(self.sent)) - self.handed
        came = set()
        while self.inlet.available():
            self.recv()
            came |= set(self.last)
        assert must <= came <= may
        while self.loans:
            self.release(0)
        self.finish()
        assert self.handed >= set(range(self.sent))
        assert self.inlet.available() == 0
        assert self.outlet.reclaim() >= 0
        assert self.outlet.in_flight == 0
        assert self.outlet.arena.free == self.outlet.arena.size


SCRIPTS = {
    "one by one": ["send 5", *["recv"] * 3, "send 3", *["recv"] * 4, "finish", "recv"],
    "many": ["send 8", "many 3", "many 5", "send 4", "many 9", "finish"],
    "views out of order": [
        "send 6",
        "view",
        "view",
        "view",
        "release 1",
        "view",
        "release 2",
        "release 0",
        "release 0",
    ],
    "all mixed": ["send 8", "recv", "view", "many 2", "release 0", "view", "recv", "send 3", "finish", "release 0"],
}


def run(world, script):
    """Do all of it, or as much as there is life for; whether it died."""
    try:
        for op in script:
            world.do(op)
    except Killed:
        return True
    return False


@pytest.mark.parametrize("event_idx", [True, False], ids=["EVENT_IDX", "flags"])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_whatever_store_was_the_last_one_nothing_is_lost_and_nothing_that_was_done_comes_again(script, event_idx):
    for stores in range(1000):
        world = World(event_idx=event_idx)
        world.memory.left = stores
        died = run(world, script)
        world.succeed()
        world.drain()
        if not died:
            assert stores > 15
            return
    pytest.fail("a script that never ends")


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_successor_may_die_at_any_store_of_its_own_too(script):
    for first in range(0, 60, 7):
        for second in range(1000):
            world = World()
            world.memory.left = first
            run(world, script)
            try:
                world.succeed(stores=second)
                died = run(world, ["many 2", "recv", "view", "release 0", "finish"])
            except Killed:
                died = True
            world.succeed()
            world.drain()
            if not died:
                break


OPS = ["send 1", "send 5", "recv", "recv", "many 2", "many 9", "view", "release 0", "release 1", "finish"]


@settings(max_examples=150)
@given(
    st.sampled_from([2, 8]),
    st.lists(st.tuples(st.lists(st.sampled_from(OPS), max_size=25), st.integers(0, 60)), min_size=1, max_size=6),
)
def test_any_work_with_any_deaths_loses_nothing(size, lives):
    world = World(size)
    for number, (script, stores) in enumerate(lives):
        try:
            if number:
                world.succeed(stores=stores)
            else:
                world.memory.left = stores
        except Killed:  # before it was a receiver
            continue
        run(world, script)
    world.succeed()
    world.drain()


# -- when a message is done with ---------------------------------------------------------------------------------------


def used(world):
    """How many messages the sender has back."""
    return struct.unpack_from("<H", world.bytes, world.layout.used_ring + 2 - BASE)[0]


def test_a_message_is_done_with_when_the_next_one_is_asked_for():
    world = World()
    world.send(3)
    world.inlet.recv(0)
    assert used(world) == 0
    world.inlet.recv(0)
    assert used(world) == 1
    world.inlet.recv_many(9, 0)
    assert used(world) == 2
    with pytest.raises(NoMessage):
        world.inlet.recv(0)
    assert used(world) == 3


def test_to_say_so_is_enough():
    world = World()
    world.send(3)
    world.inlet.recv_many(2, 0)
    world.inlet.done()
    assert used(world) == 2
    world.inlet.done()
    assert used(world) == 2


def test_a_view_is_done_with_when_it_is_given_back_and_says_nothing_about_bytes():
    world = World()
    world.send(3)
    first = world.inlet.recv_view(0)
    world.inlet.recv(0)
    first.release()
    assert used(world) == 1
    world.be_born()
    assert world.inlet.recv(0) == struct.pack("<I", 1) * 2
    assert world.inlet.replayed


def test_a_view_that_is_dropped_is_done_with_by_and_by():
    world = World()
    world.send(2)
    assert world.inlet.recv_view(0).view == bytes(4)
    gc.collect()
    world.inlet.recv(0)
    world.inlet.done()
    assert used(world) == 2


def test_a_view_that_is_dropped_unseen_comes_again_and_only_what_a_dead_receiver_took_is_flagged():
    world = World()
    world.send(3)
    world.inlet.recv(0)
    world.be_born()
    world.inlet.recv_view(0)
    gc.collect()
    loan = world.inlet.recv_view(0)
    assert (bytes(loan.view), loan.replayed) == (bytes(4), True)
    world.inlet.recv_view(0)
    gc.collect()
    assert world.inlet.available() == 2
    assert len(world.inlet.recv_many(9, 0)) == 1  # what is taken again comes alone
    assert not world.inlet.replayed
    assert world.inlet.recv(0) == struct.pack("<I", 2) * 3
    loan.release()
    world.inlet.done()
    assert used(world) == 3


def test_what_comes_again_comes_one_by_one_and_in_no_batch():
    world = World()
    world.send(5)
    world.inlet.recv_many(3, 0)
    world.be_born()
    assert world.inlet.available() == 5
    for _ in range(3):
        assert len(world.inlet.recv_many(2, 0)) == 1
        assert world.inlet.replayed
    assert len(world.inlet.recv_many(9, 0)) == 2
    assert not world.inlet.replayed


def test_a_call_that_comes_again_can_be_answered():
    world = World()
    call = world.outlet.start_call(b"question", 8)
    dead = world.inlet.recv_view(0)
    dead.reply(b"half an answer"[:8])
    world.be_born()
    loan = world.inlet.recv_view(0)
    with loan as view:
        assert bytes(view) == b"question"
        assert loan.replayed
        loan.reply(b"answer")
    assert call.answer(0) == b"answer"


def test_a_bad_timeout_is_refused_whatever_comes_again():
    world = World()
    world.send(1)
    world.inlet.recv(0)
    world.be_born()
    for take in (world.inlet.recv, world.inlet.recv_view):
        with pytest.raises(ValueError, match="timeout"):
            take(-1)
    assert world.inlet.recv(0) == bytes(4)


# -- what a dead receiver, or a driver, may leave ----------------------------------------------------------------------


def poke(world, offset, data):
    at = world.inflight + offset - BASE
    world.bytes[at : at + len(data)] = data


LIES = {
    "another version": (8, b"\x02\x00"),
    "another size": (10, b"\x10\x00"),
    "features": (0, b"\x01"),
    "a last batch of too many": (14, b"\x40\x00"),
    "a last batch that names a head outside": (12, b"\x08\x00\xff\xff"),
    "a mark that is none": (16, b"\x02"),
    "a counter that cannot be": (24, b"\xff" * 8),
    "marks of messages that nobody offered": (16 + 16 * 6, b"\x01"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_area_that_cannot_be_breaks_the_lane_by_name(lie):
    world = World()
    world.send(2)
    world.inlet.recv_many(2, 0)
    poke(world, *lie)
    if lie is LIES["marks of messages that nobody offered"]:
        for head in range(3, 8):
            poke(world, 16 + 16 * head, b"\x01" + bytes(7) + bytes([head]))
    with pytest.raises(InvalidInflight) as caught:
        world.be_born()
    assert isinstance(caught.value, PeerViolation)
    assert world.keeper.told == [caught.value]
    assert not world.inlet.ready
    with pytest.raises(QueueBroken):
        world.inlet.recv(0)
    world.layout.zero(world.memory)
    world.inlet.restart(True, False)
    world.outlet.restart()
    world.outlet.ready = True
    world.outlet.send(b"anew")
    assert world.inlet.recv(0) == b"anew"
    assert not world.inlet.replayed


@settings(max_examples=200)
@given(st.binary(min_size=144, max_size=144), st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_whatever_bytes_lie_there_the_outcome_is_our_own_error_or_messages(noise, avail, used_idx, plausible):
    world = World()
    if plausible:  # as far as the header: more than noise would come by
        noise = struct.pack("<QHHHH", 0, 1, 8, noise[0] % 9, used_idx) + bytes(byte & 1 for byte in noise[16:])
    poke(world, 0, noise)
    for ring, idx in ((world.layout.avail_ring, avail), (world.layout.used_ring, used_idx)):
        struct.pack_into("<H", world.bytes, ring + 2 - BASE, idx)
    try:
        world.be_born()
    except VqshmError:
        return
    for _ in range(10):
        try:
            world.inlet.recv(0)
        except (VqshmError, InvalidState):
            break
