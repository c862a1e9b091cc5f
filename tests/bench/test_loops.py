"""The loops do what their figure claims."""

from __future__ import annotations

import pytest

from vqshm.bench import harness, loops
from vqshm.bench.roles.alone import build_queues
from vqshm.errors import QueueBroken, VqshmError
from vqshm.memory import atomic
from vqshm.memory.atomic import Region


@pytest.fixture
def word():
    return Region(bytearray(64))


def test_two_sides_hand_the_word_to_and_fro(word):
    for turn in range(5):
        assert loops.bounce(word, 2 * turn, 1, 10) == 1
        assert loops.bounce(word, 2 * turn + 1, 1, 10) == 1
    assert atomic.load_u64(word, 0) == 10


def test_who_is_not_answered_gives_up_and_can_go_on(word):
    assert loops.bounce(word, 0, 3, 10) == 1  # nobody answers
    assert loops.bounce(word, 2, 2, 10) == 0
    atomic.store_u64(word, 0, 2)
    assert loops.bounce(word, 2, 1, 10) == 1


def test_a_probe_that_meets_nobody_says_so(word, monkeypatch):
    monkeypatch.setattr(harness, "_PROBE_LIMIT", 0.01)
    assert harness.probe(word, 1) is None


def test_the_core_loop_passes_many_times_around(word):
    queues, rings = build_queues(256, 1)
    assert loops.serve_chains(queues, rings, 300) == 300 * 256 * 64  # the position wraps at 65,536
    assert queues[0].next_used == 300 * 256 & 0xFFFF


def test_the_core_loop_keeps_the_checks():
    queues, rings = build_queues(8, 1)
    rings[0].write(4, (9).to_bytes(2, "little"))  # a head that the queue does not have
    with pytest.raises(VqshmError):
        loops.serve_chains(queues, rings, 1)
    with pytest.raises(QueueBroken):
        loops.serve_chains(queues, rings, 1)
