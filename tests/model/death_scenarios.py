"""Scenarios for the explorer: the device of a queue is killed at any step, and a successor goes on (in-flight area).

Each chain comes back to the driver once; what a successor takes as new was never handled; what was handled may come
again as a replay, and says so.
"""

from __future__ import annotations

from functools import partial

from vqshm_explorer import Scenario
from vqshm_scenarios import BASE, blank, driver, named

from vqshm.memory import GuestMemory
from vqshm.ring import SplitLayout
from vqshm.ring.inflight import Inflight, inflight_bytes
from vqshm.ring.split_device import DeviceQueue


def resumption(count=2, size=2, *, kills=1, batch=1, lazy=False, together=False):
    """As `exchange`, of chains to read and to write; the device is killed at any step, and a successor resumes.

    `together`: the device takes what it finds before it handles any; `lazy`: and returns it in one go, the last first.
    """
    layout = SplitLayout.at(BASE, size)
    buffers = layout.end
    area = (buffers + 2 * size + 7) & ~7
    image = bytearray(blank(layout, area - buffers + inflight_bytes(size), 0))
    Inflight(GuestMemory([(BASE, image)]), area, size).begin()
    common = {"layout": layout, "event_idx": True, "count": count}
    mortal = partial(mortal_device, area=area, lazy=lazy, together=together, **common)
    return Scenario(
        named("resumption", count, size, kills=kills, batch=batch, lazy=lazy, together=together),
        BASE,
        bytes(image),
        {"driver": partial(driver, start=0, batch=batch, after=1, pairs=True, **common), "device": mortal},
        kills=kills,
        heirs={"device": [mortal] * kills},
    )


def mortal_device(world, *, layout, event_idx, count, area, lazy, together):
    """It asserts that what it takes as new was never handled before: the handler's answer would be there."""
    inflight = Inflight(world.memory, area, layout.size)
    queue = DeviceQueue(world.memory, layout, event_idx=event_idx, inflight=inflight, name="device")
    queue.resume()
    world.ring("call")  # a driver is told that there is a new device, and looks
    while queue.next_used != count:
        held = []
        while (chain := queue.replay() or queue.pop()) is not None:
            held.append(chain)
            if not together:
                break
        for chain in held:
            (question,), (answer,) = chain.readable(), chain.writable()
            number = world.read(question.addr, 1)[0]
            before = world.read(answer.addr, 1)[0]
            assert chain.replayed or before != number + 8, "handled before, and not said to be"
            world.write(answer.addr, bytes([number + 8]))
            if not lazy:
                queue.add_used(chain.head_index, 1)
        if lazy and held:
            for chain in reversed(held):
                queue.put_used(chain.head_index, 1)
            queue.publish_used()
        if held and queue.needs_notification():
            world.ring("call")
        if not held and not queue.enable_notification():
            world.wait("kick")
