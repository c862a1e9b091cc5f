"""Scenarios for the explorer: the real halves of a queue and the real ends of a lane, in a ring of two or four.

What is asserted here is what must hold in every order: each chain arrives once, in order and whole; at the end
everything is free again; nobody is woken who did not ask.
"""

from __future__ import annotations

from functools import partial

from vqshm_explorer import Scenario

from vqshm.lane.inlet import Inlet
from vqshm.lane.outlet import Outlet
from vqshm.memory import atomic
from vqshm.message.receiver import Receiver
from vqshm.message.sender import Sender
from vqshm.notify.spin import Pace
from vqshm.notify.wait import Block, Deadline
from vqshm.ring import SplitLayout
from vqshm.ring.split_device import DeviceQueue
from vqshm.ring.split_driver import DriverQueue

BASE = 0x1000
FOREVER = Deadline(None)


def blank(layout, room, start):
    """The bytes of a queue at rest at position `start`, and of `room` bytes behind it."""
    image = bytearray(layout.end + room - BASE)
    for ring in (layout.avail_ring, layout.used_ring):
        image[ring - BASE + 2 : ring - BASE + 4] = start.to_bytes(2, "little")
    return bytes(image)


def named(what, count, size, **options):
    """A name that tells what is not as usual."""
    said = [name if value is True else f"{name} {value}" for name, value in options.items() if value]
    return ", ".join([f"{what} {count} in {size}", *said])


def payload(number):
    return bytes([0xA0 + number])


def assert_idle(queue):
    """Nothing is in flight, and the free list is a permutation of the descriptors."""
    assert queue.in_flight == 0
    assert queue.num_free == queue.size
    seen, index = [], queue._free
    for _ in range(queue.size):
        seen.append(index)
        index = queue._link[index]
    assert sorted(seen) == list(range(queue.size)), f"the free list is {seen}"


# -- a queue -----------------------------------------------------------------------------------------------------------


def exchange(count=2, size=2, *, event_idx=True, start=0, batch=1, after=1, lazy=False, spurious=0, pairs=False):
    """The driver offers `count` chains, the device returns each; both sleep whenever there is nothing to do.

    `batch`: so many chains per publish, and per kick. `after`: the driver asks to be called for so many. `lazy`: the
    device returns in one go what it found, the last first. `pairs`: chains of two buffers, one to read, one to write;
    else they have one, to read and to write in turn.
    """
    layout = SplitLayout.at(BASE, size)
    common = {"layout": layout, "event_idx": event_idx, "count": count, "start": start, "pairs": pairs}

    def check(values, _image):
        for rung, armed in ((values["driver"][0], values["device"][1]), (values["device"][0], values["driver"][1])):
            assert rung <= armed + 1 or not event_idx, f"rung {rung} times for {armed} wishes"

    return Scenario(
        named(
            "exchange",
            count,
            size,
            flags=not event_idx,
            start=start,
            batch=batch > 1 and batch,
            pairs=pairs,
            after=after > 1 and after,
            lazy=lazy,
            spurious=spurious,
        ),
        BASE,
        blank(layout, 2 * size, start),
        {
            "driver": partial(driver, batch=batch, after=after, **common),
            "device": partial(device, lazy=lazy, **common),
        },
        check,
        spurious,
    )


class Sleeper:
    """One who waits as `vqshm.notify.wait.Block` does, and counts its wishes."""

    def __init__(self, world, bell, queue, work, arm):
        self.world, self.bell, self.queue, self.work = world, bell, queue, work
        self.wish = arm
        self.wishes = 0

    def arm(self):
        self.wishes += 1
        return self.wish()

    def sleep_until_work(self):
        Block().wait(lambda: self.work() > 0, self.arm, lambda _seconds: self.world.wait(self.bell), FOREVER)
        self.queue.disable_notification()


def driver(world, *, layout, event_idx, count, start, batch, after, pairs):
    queue = DriverQueue(world.memory, layout, event_idx=event_idx, name="driver")
    queue.seek(start)
    queue.disable_notification()
    sleeper = Sleeper(world, "call", queue, queue.used, lambda: queue.enable_notification(after))
    free = [layout.end + 2 * i for i in range(layout.size)]
    out = {}  # token -> (number, address)
    sent = back = kicks = 0
    while back < count:
        shown = 0
        while sent < count and queue.num_free > pairs and shown < batch:
            address = free.pop()
            readable, writable = [(address, 1)], [(address + 1, 1)]
            if pairs or not sent & 1:
                world.write(address, payload(sent))
            if not pairs:
                readable, writable = ([], writable) if sent & 1 else (readable, [])
            token = queue.add(readable, writable, publish=False)
            assert token not in out, "a token was handed out twice"
            out[token] = sent, address
            sent, shown = sent + 1, shown + 1
        if shown:
            queue.publish()
            if queue.needs_kick():
                kicks += 1
                world.ring("kick")
        if sent < count and queue.num_free > pairs:
            continue
        sleeper.sleep_until_work()
        while (used := queue.reap()) is not None:
            token, written = used
            number, address = out.pop(token)
            assert written == (1 if pairs else number & 1)
            if written:
                assert world.read(address + 1, 1) == payload(number + 8), f"answer {number} is not whole"
            free.append(address)
            back += 1
    assert not out
    assert_idle(queue)
    return kicks, sleeper.wishes


def device(world, *, layout, event_idx, count, start, lazy, pairs):
    queue = DeviceQueue(world.memory, layout, event_idx=event_idx, name="device")
    queue.seek(start, start)
    queue.disable_notification()
    sleeper = Sleeper(world, "kick", queue, queue.available, queue.enable_notification)
    number = calls = 0
    while number < count:
        sleeper.sleep_until_work()
        done = []
        while (chain := queue.pop()) is not None:
            if pairs or not number & 1:
                (piece,) = chain.readable()
                assert world.read(piece.addr, piece.len) == payload(number), f"chain {number} is not whole"
            if pairs or number & 1:
                (piece,) = chain.writable()
                world.write(piece.addr, payload(number + 8))
            done.append((chain.head_index, 1 if pairs else number & 1))
            number += 1
            if not lazy:
                queue.add_used(*done.pop())
                if queue.needs_notification():
                    calls += 1
                    world.ring("call")
        if lazy:
            for head, written in reversed(done):
                queue.put_used(head, written)
            queue.publish_used()
            if queue.needs_notification():
                calls += 1
                world.ring("call")
    return calls, sleeper.wishes


# -- a lane ------------------------------------------------------------------------------------------------------------

GRAIN = 64  # bytes of the arena that a small message takes


def lane(count=3, size=2, *, event_idx=True, start=0, held=2, room=2, many=False, bed=True):
    """A sender sends `count` messages through an arena for `room`, the receiver receives them; both sleep as they do.

    `held`: how many messages the receiver gives back before it shows that. `many`: with `send_many` and `recv_many`.
    `bed`: whether the receiver has one; else it sleeps as with semaphores, or where an event loop watches.
    """
    layout = SplitLayout.at(BASE, size)
    area = (layout.end + GRAIN - 1) // GRAIN * GRAIN
    common = {"layout": layout, "event_idx": event_idx, "count": count, "start": start, "many": many}
    return Scenario(
        named("lane", count, size, flags=not event_idx, start=start, held=held, room=room, many=many, bedless=not bed),
        BASE,
        blank(layout, area - layout.end + room * GRAIN, start),
        {
            "sender": partial(sender, area=(area, room * GRAIN), **common),
            "receiver": partial(receiver, held=held, bed=bed, **common),
        },
    )


class Doorbell:
    def __init__(self, world, name):
        self.world, self.name = world, name

    def signal(self):
        self.world.ring(self.name)


class Bed:
    """As the kernel's. What has rung is silenced when it is heard, so before one asks to be woken again."""

    def __init__(self, world, bell):
        self.world, self.bell = world, bell
        self.timed = False

    def make(self, seconds):
        self.timed = seconds is not None

    def doze(self, region, offset, old):
        self.world.wait(self.bell, timed=self.timed)
        return atomic.load_u16(region, offset) != old


class Ears:
    """What the ends of a lane sleep on, as far as a doorbell goes."""

    given_out = False

    def __init__(self, world, bell):
        self.world, self.bell = world, bell
        self.bed = Bed(world, bell)

    def may_glance(self):
        return False

    def listen(self, seconds):
        self.world.wait(self.bell, timed=seconds is not None)
        return True

    def remember_work(self):
        pass


class Role:
    """The other process lives, and nothing is heard of it."""

    leaving = peer_gone = False
    running = True
    peer = None

    def hear(self):
        pass

    check = raise_spoilt = hear

    def sleep_limit(self, seconds):
        return seconds


class Keeper:
    """A sender or receiver without its process."""

    def __init__(self, world, bell, end):
        self._ears = Ears(world, bell)
        self._driver = self._device = Role()
        self._outlet = self._inlet = end

    def _remember_work(self):
        return True

    def show_counts(self):
        pass


class SenderKeeper(Keeper):
    sleep = Sender.sleep


class ReceiverKeeper(Keeper):
    sleep = Receiver.sleep
    lie_down = Receiver.lie_down
    get_up = Receiver.get_up
    _look_around = Receiver._look_around


def sender(world, *, layout, event_idx, count, start, many, area, bells=("kick", "call")):
    outlet = Outlet(world.memory, layout, area, Doorbell(world, bells[0]), event_idx=event_idx, name="outlet")
    world.bases[outlet._window] = area[0]
    outlet.keeper = SenderKeeper(world, bells[1], outlet)
    outlet.pace = Pace(0)
    outlet.seek(start)
    outlet.disable_notification()
    messages = [payload(number) for number in range(count)]
    if many:
        outlet.send_many(messages)
    else:
        for message in messages:
            outlet.send(message)
    while outlet.in_flight:
        if not outlet.reclaim() and outlet.in_flight:
            outlet.keeper.sleep(FOREVER, outlet.in_flight)
    assert outlet.arena.out == 0
    assert_idle(outlet)


def receiver(world, *, layout, event_idx, count, start, many, held, bed=True, bells=("kick", "call")):
    """It receives `count` messages, or what comes, for ever (None)."""
    inlet = Inlet(world.memory, layout, Doorbell(world, bells[1]), event_idx=event_idx, name="inlet")
    inlet._most_held = held
    inlet.keeper = ReceiverKeeper(world, bells[0], inlet)
    if not bed:
        inlet.keeper._ears.bed = None
    inlet.pace = Pace(0)
    inlet.seek(start, start)
    inlet.disable_notification()
    got = []
    while count is None or len(got) < count:
        if many:
            got += inlet.recv_many(count)
        else:
            got.append(inlet.recv())
    assert got == [payload(number) for number in range(count)], f"received {got}"
    inlet.tell()
    assert inlet.lent == 0
