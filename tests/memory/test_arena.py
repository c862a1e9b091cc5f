"""The arena for messages: nothing overlaps, nothing is lost, and what fits by its own rule is never refused.

That holds whatever interrupts it, at any bytecode.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vqshm_harness import Interrupter

from vqshm import core
from vqshm.errors import VqshmError
from vqshm.memory import arena as arena_module
from vqshm.memory.arena import GRAIN, Arena


def lines(count):
    """Bytes in whole cache lines."""
    return -(-count // GRAIN) * GRAIN


class Model:
    """The same rule over plain intervals: behind the youngest, else at the start; the start again when empty."""

    def __init__(self, size, slots):
        self.size = size // GRAIN * GRAIN
        self.slots = slots
        self.out = []  # [first, end, number, given back], the oldest first

    def room(self, count):
        """Where it must go, or -1."""
        need = lines(count)
        if len(self.out) == self.slots or count < 1:
            return -1
        if not self.out:
            return 0 if need <= self.size else -1
        oldest, youngest = self.out[0][0], self.out[-1][1]
        if youngest > oldest:  # free: behind the youngest to the end, and in front of the oldest
            if need <= self.size - youngest:
                return youngest
            return 0 if need <= oldest else -1
        return youngest if need <= oldest - youngest else -1  # free: between the two only

    def give(self, ticket):
        for message in self.out:
            if message[2] == ticket:
                message[3] = True
        while self.out and self.out[0][3]:
            self.out.pop(0)


# The end that the third message left out is free again when the second one, in front of it, is not.
LEFT_OUT = [("take", 129), ("take", 1), ("give", 0), ("take", 129), ("give", 0), ("take", 1), ("take", 1)]


@settings(max_examples=200)
@given(
    st.integers(GRAIN, 3000),
    st.sampled_from([1, 2, 8, 64]),
    st.lists(st.tuples(st.sampled_from(["take", "take", "give", "clear"]), st.integers(0, 3200)), max_size=120),
)
@example(320, 8, LEFT_OUT)
def test_it_does_what_a_plain_list_of_intervals_does(size, slots, plan):
    arena, model = Arena(size, slots), Model(size, slots)
    live = []
    for act, number in plan:
        if act == "take":
            count = number if number < 1000 else number % 200
            expected = model.room(count)
            offset = arena.take(count)
            assert offset == expected
            if offset >= 0:
                for first, end, _, _ in model.out:
                    assert offset + lines(count) <= first or end <= offset
                assert offset % GRAIN == 0
                assert offset + count <= arena.size
                model.out.append([offset, offset + lines(count), arena.ticket, False])
                assert arena.ticket not in live
                live.append(arena.ticket)
        elif act == "give" and live:
            ticket = live.pop(number % len(live))
            arena.give(ticket)
            model.give(ticket)
        elif act == "clear" and number < 300:
            arena.clear()
            model.out.clear()
            live.clear()
        assert arena.out == len(model.out)
        assert 0 <= arena.free <= arena.size
        held = sum(end - first for first, end, _, _ in model.out)
        assert arena.size - arena.free >= held
        if not live:
            assert (arena.out, arena.free) == (0, arena.size)
        assert arena.oldest()[0] == (model.out[0][2] if model.out else -1)


@pytest.mark.parametrize("size", [64, 65, 127, 128, 4096, 1 << 20])
@pytest.mark.parametrize("slots", [1, 2, 32768])
def test_a_message_may_be_as_large_as_the_whole_arena_whatever_came_before(size, slots):
    arena = Arena(size, slots)
    assert arena.size == size // GRAIN * GRAIN
    for count in (1, 64, arena.size // 2 + 1, 1):
        if arena.take(count) >= 0:
            arena.give(arena.ticket)
        assert arena.take(arena.size) == 0
        assert arena.free == 0
        assert arena.take(1) == -1
        arena.give(arena.ticket)
        assert arena.free == arena.size
        assert arena.take(arena.size + 1) == -1


def test_there_is_a_number_for_each_message():
    arena = Arena(1 << 16, 4)
    tickets = []
    for _ in range(4):
        assert arena.take(1) >= 0
        tickets.append(arena.ticket)
    assert tickets == [1, 2, 3, 4]
    assert arena.take(1) == -1
    arena.give(tickets[1])
    assert arena.take(1) == -1  # the oldest is still out
    arena.give(tickets[0])
    assert arena.out == 2
    assert arena.take(1) >= 0


def test_what_was_given_back_early_waits_for_the_oldest():
    arena = Arena(256, 4)
    tickets = []
    for _ in range(4):
        arena.take(64)
        tickets.append(arena.ticket)
    for ticket in tickets[:0:-1]:
        arena.give(ticket)
        assert (arena.free, arena.out) == (0, 4)
    assert arena.oldest() == (tickets[0], 64)
    arena.give(tickets[0])
    assert (arena.free, arena.out, arena.oldest()) == (256, 0, (-1, 0))


@pytest.mark.parametrize("count", [0, -1, -64, -(2**62), 2**31, 2**62, 2**63 - 65, 2**63 - 64, 2**63 - 1])
def test_a_count_that_cannot_be_is_refused_and_changes_nothing(count):
    arena = Arena(4096, 8)
    arena.take(100)
    assert arena.take(count) == -1
    assert (arena.out, arena.free, arena.ticket) == (1, 4096 - 128, 1)


@pytest.mark.parametrize("ticket", [-1, 0, 2, 8, 9, 5_000_000, -5_000_000, -(2**62), 2**62])
def test_what_is_not_out_cannot_be_given_back(ticket):
    arena = Arena(4096, 8)
    arena.take(100)
    with pytest.raises(VqshmError):
        arena.give(ticket)
    assert (arena.out, arena.free) == (1, 4096 - 128)
    arena.give(1)
    with pytest.raises(VqshmError):
        arena.give(1)


def test_nothing_is_given_back_twice():
    arena = Arena(4096, 8)
    arena.take(100)
    arena.take(100)
    arena.give(2)
    with pytest.raises(VqshmError):
        arena.give(2)
    arena.give(1)
    assert (arena.out, arena.free) == (0, 4096)


def test_a_number_is_never_used_again():
    """So that whoever is late, or comes from before it was cleared, takes nobody's room away."""
    arena = Arena(256, 2)
    for ticket in range(1, 50):
        arena.take(64)
        arena.take(64)
        assert arena.ticket == 2 * ticket
        if ticket % 2:
            arena.clear()
        else:
            arena.give(2 * ticket - 1)
            arena.give(2 * ticket)
        assert not any(arena.is_out(number) for number in range(-2, 2 * ticket + 3))


def test_what_nobody_owns_is_given_back():
    arena = Arena(1024, 8)
    for _ in range(6):
        arena.take(64)
    arena.give(3)
    for slots in (0, 7, 9):
        with pytest.raises(ValueError, match="8 slots"):
            arena.keep(bytearray(slots))
    arena.keep(bytearray([0, 0, 1, 1, 0, 1, 0, 0]))
    assert [number for number in range(1, 7) if arena.is_out(number)] == [2, 5]
    assert (arena.out, arena.oldest()) == (5, (2, 64))


@pytest.mark.fault("D19")
@pytest.mark.skipif(core.kind() == "compiled", reason="nothing strikes inside a compiled arena")
def test_an_interrupted_arena_took_or_gave_back_a_message_or_did_not():
    files, number = frozenset([arena_module.__file__]), 0
    while True:
        number += 1
        arena = Arena(320, 4)
        live, before, after = [], {}, {}
        interrupter = Interrupter(number, files)
        with interrupter:
            for act, which in [*LEFT_OUT, ("give", 1), ("give", 1), ("take", 60), ("give", 0), ("give", 0)]:
                before = {ticket: arena.is_out(ticket) for ticket in range(1, arena.ticket + 1)}
                if act == "take":
                    if arena.take(which) >= 0:
                        live.append(arena.ticket)
                elif live:
                    arena.give(live.pop(which % len(live)))
        after = {ticket: arena.is_out(ticket) for ticket in range(1, arena.ticket + 1)}
        assert sum(before.get(ticket, False) != after[ticket] for ticket in after) <= 1, interrupter.where
        for ticket, out in after.items():
            if out:
                arena.give(ticket)
        assert (arena.out, arena.free) == (0, 320), interrupter.where
        assert arena.take(320) == 0
        if not interrupter.struck:
            break
    assert number > 100


@pytest.mark.parametrize(("size", "slots"), [(0, 8), (63, 8), (-64, 8), (64, 0), (64, 3), (64, -1), (64, 6)])
def test_an_arena_needs_a_line_and_a_power_of_two_of_slots(size, slots):
    with pytest.raises(ValueError, match="no arena"):
        Arena(size, slots)


@pytest.mark.parametrize("wrong", [None, "64", 1.5, object()], ids=repr)
def test_arguments_are_whole_numbers(wrong):
    arena = Arena(4096, 8)
    with pytest.raises((TypeError, ValueError)):
        Arena(wrong, 8)
    with pytest.raises((TypeError, VqshmError)):
        arena.take(wrong)
    with pytest.raises((TypeError, VqshmError)):
        arena.give(wrong)
    assert (arena.out, arena.free) == (0, 4096)
