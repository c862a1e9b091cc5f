"""A lane whose other side breaks the rules: a named error, told to whom it concerns, then a broken lane."""

from __future__ import annotations

import contextlib
import gc
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqshm import errors
from vqshm.errors import PeerViolation, QueueBroken, VqshmError

WRITE, NEXT, INDIRECT = 2, 1, 4
TAKES = {
    "recv": lambda r: r.inlet.recv(0),
    "recv_many": lambda r: r.inlet.recv_many(9, 0),
    "recv_view": lambda r: r.inlet.recv_view(0),
    "iteration": lambda r: next(iter(r.inlet)),
}


def chain(*descriptors, table=None, heads=(0,)):
    """A driver that writes these (offset in the area, or address; length; flags; next) and offers the heads."""

    def act(r):
        for i, (addr, length, flags, following) in enumerate(descriptors):
            where = r.area + addr if addr < 4096 else addr
            r.poke_desc(i, where, length, flags, following, table=None if table is None else r.area + table)
        if table is not None:
            r.poke_desc(0, r.area + table, 16 * len(descriptors), INDIRECT)
        r.offer(*heads)

    return act


FAR = 1 << 40
DRIVERS = {
    "A14 an address outside": (chain((FAR, 5, 0, 0)), errors.GuestMemory),
    "A13 an address that wraps": (chain((2**64 - 2, 5, 0, 0)), errors.AddressOverflow),
    "A14 an end outside": (chain((4000, 97, 0, 0)), errors.GuestMemory),
    "A14 4 GiB": (chain((0, 2**32 - 1, 0, 0)), errors.GuestMemory),
    "A16 4 GiB in pieces": (chain((0, 4096, NEXT, 1), (0, 2**32 - 4096, 0, 0)), errors.ChainTooLong),
    "A14 a second piece outside": (chain((0, 5, NEXT, 1), (FAR, 5, 0, 0)), errors.GuestMemory),
    "A14 room for the answer outside": (chain((0, 5, NEXT, 1), (FAR, 5, WRITE, 0)), errors.GuestMemory),
    "A14 an end of room for the answer outside": (chain((0, 5, NEXT, 1), (4000, 97, WRITE, 0)), errors.GuestMemory),
    "A13 room for the answer that wraps": (chain((0, 5, NEXT, 1), (2**64 - 2, 5, WRITE, 0)), errors.AddressOverflow),
    "A14 a question outside": (chain((FAR, 5, NEXT, 1), (8, 5, WRITE, 0)), errors.GuestMemory),
    "A03 a loop of one": (chain((0, 5, NEXT, 0)), errors.DescriptorLoop),
    "A03 a loop of two": (chain((0, 5, NEXT, 1), (0, 5, NEXT, 0)), errors.DescriptorLoop),
    "A02 a next outside": (chain((0, 5, NEXT, 8)), errors.InvalidDescriptorIndex),
    "A02 a next far outside": (chain((0, 5, NEXT, 0xFFFF)), errors.InvalidDescriptorIndex),
    "A11 writable first": (chain((0, 5, WRITE | NEXT, 1), (8, 5, 0, 0)), errors.InvalidChain),
    "A01 a head outside": (chain(heads=(8,)), errors.InvalidDescriptorIndex),
    "A01 a head far outside": (chain(heads=(0xFFFF,)), errors.InvalidDescriptorIndex),
    "A14 an indirect table outside": (chain((FAR, 16, INDIRECT, 0)), errors.GuestMemory),
    "A06 an indirect table of 17 bytes": (chain((0, 17, INDIRECT, 0)), errors.InvalidIndirectDescriptorTable),
    "A06 an indirect table of none": (chain((0, 0, INDIRECT, 0)), errors.InvalidIndirectDescriptorTable),
    "A05 a table in a table": (chain((0, 16, INDIRECT, 0), table=1024), errors.InvalidIndirectDescriptor),
    "A04 a loop in a table": (chain((0, 1, NEXT, 1), (0, 1, NEXT, 0), table=1024), errors.DescriptorLoop),
    "A08 a table and a next": (chain((0, 16, INDIRECT | NEXT, 1)), errors.InvalidIndirectDescriptor),
    "A17 avail.idx far ahead": (lambda r: r.poke_idx(avail=9), errors.InvalidAvailRingIndex),
    "A17 avail.idx moved back": (lambda r: r.poke_idx(avail=0xFFFF), errors.InvalidAvailRingIndex),
}


def marked(cases):
    """A parameter for each case: its name begins with its row in the list of faults."""
    return [pytest.param(*case, marks=pytest.mark.fault(name.split()[0]), id=name) for name, case in cases.items()]


def assert_broken(r, violation):
    assert isinstance(violation, PeerViolation)
    assert (type(r.inlet.broken), str(r.inlet.broken)) == (type(violation), str(violation))
    assert r.into.told == [violation]
    for take in TAKES.values():
        with pytest.raises(QueueBroken):
            take(r)
    assert r.into.told == [violation]
    r.inlet.tell()  # as whoever closes does
    assert r.used == 0


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
@pytest.mark.parametrize(("driver", "error"), marked(DRIVERS))
def test_a_driver_that_breaks_a_rule_is_named_and_the_lane_is_broken(lane, take, driver, error):
    r = lane()
    driver(r)
    with pytest.raises(error) as caught:
        take(r)
    violation = caught.value
    del caught
    gc.collect()
    assert_broken(r, violation)
    r.layout.zero(r.memory)
    r.inlet.restart(event_idx=True, indirect=False)
    r.outlet.restart()
    r.outlet.send(b"after")
    assert r.drain() == [b"after"]
    r.assert_at_rest()


@pytest.mark.fault("A14")
@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
@pytest.mark.parametrize("question", [(FAR, 5), (4000, 97)], ids=["far", "end"])
def test_a_question_outside_is_a_violation_behind_a_good_message_too(lane, take, question):
    """Then the region in which messages lie is known already, and the room for the answer lies in it."""
    r = lane()
    r.outlet.send(b"good")
    assert r.drain() == [b"good"]
    where = r.area + question[0] if question[0] < 4096 else question[0]
    r.poke_desc(0, where, question[1], NEXT, 1)
    r.poke_desc(1, r.area + 8, 5, WRITE)
    r.offer(0)
    with pytest.raises(errors.GuestMemory) as caught:
        take(r)
    assert isinstance(caught.value, PeerViolation)
    assert r.into.told == [caught.value]


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_an_indirect_table_that_was_not_negotiated_is_a_violation(lane, take):
    r = lane(indirect=False)
    chain((0, 5, 0, 0), table=1024)(r)
    with pytest.raises(errors.InvalidIndirectDescriptor) as caught:
        take(r)
    assert_broken(r, caught.value)


@pytest.mark.fault("A26")
def test_a_message_that_is_offered_twice_while_it_is_lent_is_a_violation(lane):
    r = lane()
    chain((0, 5, 0, 0), heads=(0, 0))(r)
    loan = r.inlet.recv_view(0)
    view = loan.view
    with pytest.raises(errors.InvalidChain, match="again") as caught:
        r.inlet.recv(0)
    assert view == bytes(5)  # what was lent is still there
    assert_broken(r, caught.value)
    with pytest.raises(errors.InvalidState):
        loan.reply(b"")
    loan.release()
    assert r.inlet.lent == 0
    assert r.used == 0


@pytest.mark.fault("A20")
def test_a_descriptor_that_changes_while_the_message_is_lent_changes_nothing(lane):
    r = lane()
    chain((0, 5, NEXT, 1), (64, 5, WRITE, 0))(r)
    loan = r.inlet.recv_view(0)
    chain((FAR, 2**31, NEXT, 1), (FAR, 2**31, WRITE, 0), heads=())(r)
    assert loan.view == bytes(5)
    loan.reply(b"12345")
    loan.release()
    r.inlet.tell()
    assert r.peek(r.area + 64, 5) == b"12345"
    assert r.peek(r.layout.used_ring + 4, 8) == struct.pack("<II", 0, 5)


@pytest.mark.fault("A16", "A26")
@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_a_message_that_names_the_same_memory_often_is_refused_before_it_is_copied(lane, take):
    """The specification allows such a chain; but it would make us allocate what nobody has."""
    r = lane(8)
    r.inlet.limit = 4096
    chain(*((0, 4096, NEXT, i + 1) for i in range(7)), (0, 4096, 0, 0))(r)
    tracemalloc.start()
    try:
        with pytest.raises(errors.ChainTooLong, match="32768 bytes to read, 4096 are the limit") as caught:
            take(r)
        assert tracemalloc.get_traced_memory()[1] < 30_000
    finally:
        tracemalloc.stop()
    assert_broken(r, caught.value)


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_limit_holds_for_messages_of_one_piece_and_of_several(lane, take, pieces):
    for count, refused in ((100, False), (101, True)):
        r = lane()
        r.inlet.limit = 100
        chain((0, 50, NEXT, 1), (64, count - 50, 0, 0))(r) if pieces == 2 else chain((0, count, 0, 0))(r)
        if refused:
            with pytest.raises(errors.ChainTooLong) as caught:
                take(r)
            assert_broken(r, caught.value)
        else:
            take(r)
            assert r.inlet.broken is None


@pytest.mark.fault("A16", "A26")
def test_many_messages_that_name_the_same_memory_are_received_a_few_at_a_time(lane):
    """So that a queue full of them is never more than two of them in our memory."""
    r = lane(8)
    r.inlet.limit = 4096
    for head in range(8):
        r.poke_desc(head, r.area, 3000)
        r.offer(head)
    got = []
    while r.inlet.available():
        got.append(r.inlet.recv_many(100, 0))
        assert sum(map(len, got[-1])) < 2 * 4096
    assert [len(message) for batch in got for message in batch] == [3000] * 8
    assert r.inlet.broken is None


# -- a hostile device --------------------------------------------------------------------------------------------------

DEVICES = {
    "B01 an id outside": (lambda r: r.give_back(8), errors.InvalidUsedId),
    "B01 an id far outside": (lambda r: r.give_back(2**32 - 1), errors.InvalidUsedId),
    "B02 an id that is not in flight": (lambda r: r.give_back(5), errors.UsedIdNotInFlight),
    "B04 an id twice": (lambda r: [r.give_back(0), r.give_back(0)], errors.UsedIdNotInFlight),
    "B08 used.idx ahead": (lambda r: r.poke_idx(used=4), errors.InvalidUsedRingIndex),
    "B08 used.idx moved back": (lambda r: r.poke_idx(used=0xFFFF), errors.InvalidUsedRingIndex),
    "A30 bytes written to a message": (lambda r: r.give_back(0, 1), errors.InvalidUsedLength),
    "A30 4 GiB written": (lambda r: r.give_back(0, 2**32 - 1), errors.InvalidUsedLength),
    "A30 more written than the empty message has room for": (lambda r: r.give_back(2, 2), errors.InvalidUsedLength),
}
OFFERS = {
    "reclaim": lambda r: r.outlet.reclaim(),
    "send": lambda r: r.outlet.send(b"x" * 3000, 0),
    "send_many": lambda r: r.outlet.send_many([b"x" * 3000] * 3, 0),
    "reserve": lambda r: r.outlet.reserve(3000, 0),
    "call": lambda r: r.outlet.call(b"x", 3000, 0),
    "call that waits for its answer": lambda r: r.outlet.call(b"x", 3, 0),
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize(("device", "error"), marked(DEVICES))
def test_a_device_that_breaks_a_rule_is_named_and_the_lane_is_broken(lane, offer, device, error):
    r = lane()
    r.outlet.send_many([b"a" * 1500, b"b" * 1000, b""])
    if offer is OFFERS["call that waits for its answer"] and device is DEVICES["B08 used.idx ahead"][0]:
        r.poke_idx(used=5)  # one more is in flight then
    else:
        device(r)
    with pytest.raises(error) as caught:
        offer(r)
    assert isinstance(caught.value, PeerViolation)
    assert (type(r.outlet.broken), str(r.outlet.broken)) == (type(caught.value), str(caught.value))
    assert not r.outlet.ready
    for again in OFFERS.values():
        with pytest.raises(QueueBroken):
            again(r)
    r.layout.zero(r.memory)
    r.outlet.restart()
    r.outlet.ready = True
    r.inlet.restart(event_idx=True, indirect=False)
    r.assert_at_rest()
    r.outlet.send(b"x" * 4096, 0)
    assert r.drain() == [b"x" * 4096]


@pytest.mark.fault("A30")
@pytest.mark.parametrize("written", [4, 2**31, 2**32 - 1])
def test_an_answer_longer_than_its_room_is_a_violation(lane, written):
    r = lane()
    r.out.meanwhile = lambda: r.give_back(0, written)
    with pytest.raises(errors.InvalidUsedLength):
        r.outlet.call(b"q", 3)
    assert r.outlet.broken is not None


@pytest.mark.fault("B08")
def test_a_device_that_takes_back_its_used_idx_does_not_keep_a_sender_busy(lane):
    """It shows that something came back, and then it did not: as often as it likes, but not past the deadline."""
    r = lane(2)
    r.outlet.send_many([b"a", b"b"])
    for _ in range(5):
        r.poke_idx(used=1)
        r.poke_idx(used=0)
        with pytest.raises(errors.NoRoom):
            r.outlet.send(b"c", 0)


# -- whatever it is ----------------------------------------------------------------------------------------------------


def steps():
    either = st.sampled_from([*TAKES, *OFFERS, "send small", "release", "drop", "tell", "restart"])
    poke = st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=8))
    word = st.tuples(st.sampled_from(["avail", "used"]), st.integers(-2, 3))
    return st.lists(st.one_of(either, poke, word), max_size=40)


def do(r, step, loans):  # noqa: C901 - one branch for each step
    if step in TAKES:
        got = TAKES[step](r)
        if step == "recv_view":
            loans.append(got)
            bytes(got.view)
    elif step in OFFERS:
        got = OFFERS[step](r)
        if step == "reserve":
            got.commit(5)
    elif step == "send small":
        r.outlet.send(b"abc", 0)
    elif step == "release" and loans:
        loan = loans.pop()
        if loan.room:
            loan.reply(b"x")
        loan.release()
    elif step == "drop" and loans:
        loans.pop(0)
    elif step == "tell":
        r.inlet.tell()
    elif step == "restart":
        r.layout.zero(r.memory)
        r.outlet.restart()
        r.outlet.ready = True
        r.inlet.restart(event_idx=True, indirect=True)


@settings(max_examples=300)
@given(steps(), st.booleans())
def test_random_bytes_in_the_rings_bring_nothing_but_our_own_errors(lane, plan, event_idx):
    r = lane(8, 4096, event_idx=event_idx)
    loans = []
    ring_bytes = r.area - r.layout.desc_table
    for step in plan:
        if isinstance(step, tuple) and isinstance(step[0], int):
            at = step[0] % (ring_bytes - 8)
            r.poke(r.layout.desc_table + at, step[1])
        elif isinstance(step, tuple):
            name, by = step
            r.poke_idx(**{name: getattr(r, name) + by})
        else:
            with contextlib.suppress(VqshmError):
                do(r, step, loans)
    assert r.outlet.num_free <= 8
    assert 0 <= r.outlet.arena.free <= r.outlet.arena.size
    do(r, "restart", loans)
    loans.clear()
    r.outlet.send(b"x" * 4096, 0)
    assert r.drain() == [b"x" * 4096]
    r.assert_at_rest()


@settings(max_examples=100)
@given(st.binary(min_size=520, max_size=520), st.integers(0, 9))
def test_rings_full_of_noise_bring_nothing_but_our_own_errors(lane, noise, ahead):
    r = lane()
    r.poke(r.layout.desc_table, noise[: r.area - r.layout.desc_table])
    r.poke_idx(avail=ahead, used=ahead)
    for plan in (TAKES, OFFERS):
        for act in plan.values():
            with contextlib.suppress(VqshmError):
                act(r)
