"""Ctrl-C, or whatever a signal handler raises, at every bytecode of a device half: done or not done, and it goes on.

Compiled, nothing strikes inside a ring half; so this is about the interpreted core. What must hold is judged by what
the driver half gets back, and by what a successor would read in the in-flight area at the very moment of the strike.
"""

from __future__ import annotations

import contextlib

import pytest
from vqshm_harness import Interrupter

from vqshm import core
from vqshm.errors import InvalidState, UsedIdNotInFlight
from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout, inflight, split_device
from vqshm.ring.inflight import inflight_bytes

pytestmark = [
    pytest.mark.fault("D19"),
    pytest.mark.skipif(core.kind() == "compiled", reason="nothing strikes inside a compiled ring half"),
]

FILES = frozenset([split_device.__file__, inflight.__file__])
BASE = 0x1_0000
SIZE = 8
CHAINS = 3


class World:
    """Both halves in a bytearray; `start`: the position of both rings."""

    def __init__(self, *, marks: bool, event_idx: bool, start: int) -> None:
        self.layout = SplitLayout.at(BASE, SIZE)
        self.area = -(-self.layout.end // 8) * 8
        self.buffers = self.area + inflight_bytes(SIZE)
        self.bytes = bytearray(self.buffers - BASE + 0x1000)
        self.memory = GuestMemory([(BASE, self.bytes)])
        self.config = QueueConfig(self.layout, event_idx=event_idx)
        self.marks = marks
        self.driver = self.config.driver(self.memory)
        self.device = self.config.device(self.memory, inflight=self.area if marks else None)
        self.device.begin()
        for _ in range(start):
            self.driver.add([(self.buffers, 1)])
            self.device.add_used(self.device.pop_head(), 0)
            assert self.driver.reap()
        self.device.needs_notification()

    def offer(self) -> list[int]:
        """Chains of one, two and three buffers; their tokens."""
        tokens = [
            self.driver.add([(self.buffers + 64 * number, 5)] * number, [(self.buffers, 7)]) for number in range(CHAINS)
        ]
        self.driver.enable_notification()
        return tokens

    def check_area(self, tokens: list[int], where: str) -> None:
        """A device that came now would find each chain once: in the used ring, in flight, or still to be taken."""
        if not self.marks:
            return
        copy = GuestMemory([(BASE, bytearray(self.bytes))])
        successor = self.config.device(copy, inflight=self.area)
        used = successor.used_idx()
        returned = (used - self.driver.last_used) & 0xFFFF
        count = successor.resume()
        heads = [successor.replay().head_index for _ in range(count)]
        while (head := successor.pop_head()) >= 0:
            heads.append(head)
        assert heads == tokens[returned:], where


WORLDS = [pytest.param(False, False, id="flags"), pytest.param(True, True, id="marks and event_idx")]


def runs(second: bool):
    """Interrupters at each bytecode, and at some of the repair after it."""
    number = 0
    while True:
        number += 1
        first = Interrupter(number, FILES)
        yield first, Interrupter(1 + number * 7 % 40 if second else 1 << 30, FILES)
        if not first.struck:
            break
    assert number > 100, "hardly anything was traced"


@pytest.mark.parametrize(("marks", "event_idx"), WORLDS)
@pytest.mark.parametrize("take", ["pop", "iterate", "pop_head", "pop_single"])
@pytest.mark.parametrize("second", [False, pytest.param(True, marks=pytest.mark.long)])
def test_an_interrupted_device_half_takes_and_returns_every_chain_once(marks, event_idx, take, second):
    world = World(marks=marks, event_idx=event_idx, start=0)
    for first, again in runs(second):
        device = world.device
        tokens = world.offer()
        taken: list[int] = []
        rung: list[bool] = []
        for interrupter in (first, again, None):
            with interrupter or contextlib.nullcontext():
                if taken and interrupter is not first:  # what was interrupted: once more
                    with contextlib.suppress(InvalidState):  # it was returned
                        device.chain(taken[-1])
                    with contextlib.suppress(UsedIdNotInFlight):
                        device.add_used(taken[-1], 7)
                    rung.append(device.needs_notification())
                go_on(device, take, taken, rung)
            world.check_area(tokens, first.where)
        assert taken == tokens, first.where
        assert any(rung), first.where
        assert [world.driver.reap() for _ in range(CHAINS + 1)] == [*((token, 7) for token in tokens), None]
        world.check_area([], first.where)


def go_on(device, take, taken, rung):
    """Take and return what is there; `taken` and `rung` tell what happened."""
    if take == "iterate":
        for chain in device:
            taken.append(chain.head_index)
            give_back(device, chain.head_index)
            rung.append(device.needs_notification())
        return
    while True:
        if take == "pop":
            chain = device.pop()
            head = -1 if chain is None else chain.head_index
        else:
            head = getattr(device, take)()
        if head < 0:
            return
        taken.append(head)
        give_back(device, head)
        rung.append(device.needs_notification())


def give_back(device, head):
    """Return a chain, and raise if it was returned."""
    device.chain(head)
    device.add_used(head, 7)
