"""Scenarios for the explorer: a device, or a receiver, is killed at any step, and a successor goes on (in-flight area).

Each chain comes back to the driver once; what a successor takes as new was never handled; what was handled may come
again as a replay, and says so. Of a lane, besides: what was done with never comes again.
"""

from __future__ import annotations

from functools import partial

from vqshm_explorer import Scenario
from vqshm_scenarios import BASE, GRAIN, Doorbell, ReceiverKeeper, blank, driver, named, payload, sender

from vqshm.lane.resuming import ResumingInlet
from vqshm.memory import GuestMemory
from vqshm.notify.spin import Pace
from vqshm.ring import SplitLayout
from vqshm.ring.inflight import Inflight, inflight_bytes
from vqshm.ring.split_device import DeviceQueue
from vqshm.ring.tries import Tries, tries_bytes


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


# -- a lane ------------------------------------------------------------------------------------------------------------


def succession(count=2, size=2, *, kills=1, room=2, many=False, limit=0):
    """As `lane`, with a receiver that resumes: it is killed at any step, and a successor goes on.

    `many`: with `recv_many`. `limit`: after so many tries a message is given up. What becomes of each message stands in
    a diary, which is shared memory as well: 0 nothing, 1 it was received, 2 it was done with.
    """
    layout = SplitLayout.at(BASE, size)
    marks = layout.end
    tries = marks + inflight_bytes(size)
    diary = tries + tries_bytes(size)
    area = (diary + count + GRAIN - 1) // GRAIN * GRAIN
    image = bytearray(blank(layout, area - layout.end + room * GRAIN, 0))
    Inflight(GuestMemory([(BASE, image)]), marks, size).begin()
    mortal = partial(
        mortal_receiver, layout=layout, count=count, marks=marks, tries=tries, limit=limit, diary=diary, many=many
    )
    common = {"layout": layout, "event_idx": True, "start": 0, "many": False}

    def check(_values, image):
        left = image[diary - BASE : diary - BASE + count]
        undone = int.from_bytes(image[tries - BASE : tries - BASE + 8], "little")
        assert undone & 0xFFFF == 0, "somebody is being given up still"
        assert undone >> 16 <= count - left.count(2), "more were given up than were not done with"
        assert left.count(0) <= undone >> 16, f"lost: {left.hex()}, and {undone >> 16} were given up"

    return Scenario(
        named("succession", count, size, kills=kills, room=room, many=many, limit=limit),
        BASE,
        bytes(image),
        {"sender": partial(sender, count=count, area=(area, room * GRAIN), **common), "receiver": mortal},
        check,
        kills=kills,
        heirs={"receiver": [mortal] * kills},
    )


def mortal_receiver(world, *, layout, count, marks, tries, limit, diary, many):
    """It asserts that what was done with does not come, and what was received comes only as a replay."""
    inlet = ResumingInlet(
        world.memory,
        layout,
        Doorbell(world, "call"),
        marks,
        tries=Tries(world.memory, tries, layout.size, limit),
        event_idx=True,
        name="inlet",
    )
    inlet.keeper = ReceiverKeeper(world, "kick", inlet)
    inlet.pace = Pace(0)
    inlet.take_over(True, False)
    world.ring("call")  # a sender is told that there is a new receiver, and looks
    inlet.disable_notification()
    received, done = [], inlet.next_used
    while done + len(received) < count:
        messages = inlet.recv_many(count) if many else [inlet.recv()]
        done += len(received)
        for number in received:
            world.write(diary + number, b"\2")
        received = [message[0] - payload(0)[0] for message in messages]
        for number in received:
            before = world.read(diary + number, 1)[0]
            assert before != 2, "it was done with, and comes again"
            assert inlet.replayed or before == 0, "it comes again, and does not say so"
            world.write(diary + number, b"\1")
    inlet.done()
