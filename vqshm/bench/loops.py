"""Loops: the two inner loops that must not measure the interpreter. Compiled where the core is, with loops.pxd.

`serve_chains` is a device's cost per chain in the core alone: take a head, walk its one descriptor, return it, ask
whether to call the driver. No message, no second process, no Python object.

`bounce` is one side of the cache-line probe: two processes hand a word to and fro, which costs what the machine charges
for moving a cache line between their processors, and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqshm.memory import atomic

if TYPE_CHECKING:
    from vqshm.memory.atomic import Region
    from vqshm.ring.split_device import DeviceQueue

_IDX = 2  # where idx stands in the available ring


def serve_chains(queues: list[DeviceQueue], rings: list[Region], rounds: int) -> int:
    """Serve all chains of every queue `rounds` times, the queues in turn; the sum of the bytes that were walked.

    `rings`: their available rings, whose slots name chains of one descriptor each. Refilling one is a single store.
    """
    total = 0
    for _ in range(rounds):
        for place in range(len(queues)):
            queue = queues[place]
            ring = rings[place]
            atomic.store_u16(atomic.span_of(ring), _IDX, (queue.next_avail + queue.size) & 0xFFFF)
            total += serve_available(queue)
    return total


def serve_available(queue: DeviceQueue) -> int:
    """Serve the chains that are there; the sum of the bytes that were walked."""
    total = 0
    head = queue.pop_single()
    while head >= 0:
        if not queue.single:
            raise ValueError("a chain of one buffer was to be served")
        total += queue.length
        queue.add_used(head, 0)
        queue.needs_notification()
        head = queue.pop_single()
    return total


def bounce(word: Region, first: int, count: int, patience: int) -> int:
    """Wait for the odd or even values of a u64 from `first` on, and answer each with the next one; how many were done.

    Ends early where `patience` looks at the word did not show the value waited for.
    """
    want = first
    done = 0
    while done < count:
        looks = patience
        while atomic.load_u64(atomic.span_of(word), 0) != want:
            looks -= 1
            if looks <= 0:
                return done
        atomic.store_u64(atomic.span_of(word), 0, want + 1)
        want += 2
        done += 1
    return done
