"""Alone: the core without a second process."""

from __future__ import annotations

import struct
from typing import Any

from vqshm.bench.messages import Corrupt
from vqshm.bench.roles.base import Peers, Plan, Role, clock


def serve_core(peers: Peers, index: int, plan: Plan) -> Role:  # noqa: ARG001 - every role is called alike
    """Run the device's half alone, over queues in a bytearray; the nanoseconds per chain."""
    from vqshm import core  # noqa: PLC0415 - this role's
    from vqshm.bench import loops  # noqa: PLC0415 - likewise

    queues, rings = build_queues(plan["size"], plan["queues"])
    chains = plan["size"] * plan["queues"]
    yield {}
    times: list[float] = []
    rounds = 1
    budget = plan["seconds"]
    begin = clock()
    while (spent := clock() - begin) < budget or len(times) < 3:
        before = clock()
        walked = loops.serve_chains(queues, rings, rounds)
        took = clock() - before
        if walked != BUFFER * chains * rounds:
            raise Corrupt(f"{walked} bytes were walked in {rounds} rounds of {chains} chains")
        if took < budget / 20 and spent < budget:
            rounds *= 2  # still learning how many make a fair piece of the time
            times.clear()
        times.append(took / (chains * rounds) * 1e9)
    times.sort()
    yield {"nanoseconds": times[len(times) // 2], "best": times[0], "core": core.kind()}


BUFFER = 64  # bytes of each chain


def build_queues(size: int, count: int) -> tuple[list[Any], list[Any]]:
    """Device halves of `count` queues of `size`, and their available rings, each slot naming a chain of one buffer."""
    from vqshm.memory import GuestMemory  # noqa: PLC0415 - as above
    from vqshm.ring import DeviceQueue, SplitLayout  # noqa: PLC0415 - as above
    from vqshm.ring.layout import RING, avail_ring_bytes, desc_table_bytes, used_event_offset  # noqa: PLC0415 - as above

    layouts = [SplitLayout.at(0x1000, size)]
    while len(layouts) < count:
        layouts.append(SplitLayout.at(layouts[-1].end, size))
    buffers = layouts[-1].end
    memory = GuestMemory([(0x1000, bytearray(buffers + BUFFER * size - 0x1000))])
    queues, rings = [], []
    for layout in layouts:
        for place in range(size):
            memory.write(layout.desc_table + 16 * place, _DESCRIPTOR.pack(buffers + BUFFER * place, BUFFER, 0, 0))
            memory.write(layout.avail_ring + RING + 2 * place, place.to_bytes(2, "little"))
        memory.write(layout.avail_ring + used_event_offset(size), b"\xff\xff")
        assert desc_table_bytes(size) == 16 * size  # noqa: S101 - what the line above relies on
        queues.append(DeviceQueue(memory, layout, event_idx=True))
        rings.append(memory.window(layout.avail_ring, avail_ring_bytes(size), 2))
    return queues, rings


_DESCRIPTOR = struct.Struct("<QIHH")
