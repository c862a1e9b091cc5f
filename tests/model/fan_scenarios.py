"""Scenarios for the explorer: the real fans, which wait for several lanes at once: three sides, very few messages.

A fan-out goes by the clock. A side that is explored must do the same after the same answers, so it has a time of its
own, which passes by a fixed `step` whenever somebody looks at it: by a short one, where every receiver is found quick,
or by one longer than a turn, where none is. What is right must be so with both.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial
from types import SimpleNamespace
from unittest import mock

from vqshm_explorer import Scenario
from vqshm_scenarios import BASE, GRAIN, Doorbell, Ears, Role, blank, named, payload, receiver, sender

from vqshm.lane.inlet import Inlet
from vqshm.lane.outlet import Outlet
from vqshm.message.fan import Fanin, Fanout, base, turns
from vqshm.message.fan.in_lane import InLane
from vqshm.message.fan.out_lane import OutLane
from vqshm.notify.spin import Pace
from vqshm.ring import SplitLayout

QUICK, SLOW = 1_000, turns.TENURE + 1  # nanoseconds
TICK = 4_000_000  # nanoseconds, as of a kernel of 250 ticks a second


def two_lanes(size, start=0):
    """The layouts of two lanes and their arenas, and the bytes of both at rest."""
    lanes, images, at = [], [], BASE
    for _ in range(2):
        layout = SplitLayout.at(at, size)
        area = (layout.end + GRAIN - 1) // GRAIN * GRAIN
        end = area + size * GRAIN
        image = bytearray(blank(SplitLayout.at(BASE, size), 0, start))
        images.append(image.ljust(end - at, b"\0"))
        lanes.append((layout, (area, size * GRAIN)))
        at = end
    return lanes, b"".join(images)


def fan_in(count=1, size=1, *, event_idx=True):
    """Two senders send `count` messages each; one fan-in receives them, asleep on both lanes at once."""
    lanes, image = two_lanes(size)
    common = {"event_idx": event_idx, "count": count}
    sides = {
        f"sender {n}": partial(
            sender, layout=layout, area=area, start=0, many=False, bells=("kick", f"call {n}"), **common
        )
        for n, (layout, area) in enumerate(lanes)
    }
    sides["fan-in"] = partial(gatherer, lanes=lanes, **common)
    return Scenario(named("fan-in", count, size, flags=not event_idx), BASE, image, sides)


def fan_out(count=2, size=1, *, mode="share", event_idx=True, step=QUICK):
    """A fan-out sends `count` empty messages to two receivers and flushes, asleep on both lanes at once."""
    lanes, image = two_lanes(size)
    sides = {"fan-out": partial(spreader, lanes=lanes, count=count, mode=mode, event_idx=event_idx, step=step)}
    for n, (layout, _) in enumerate(lanes):
        sides[f"receiver {n}"] = partial(taker, layout=layout, bell=f"kick {n}", event_idx=event_idx)
    waiting = frozenset({"receiver 0", "receiver 1"})  # they do not know how many messages there are
    name = named(f"fan-out {mode}", count, size, flags=not event_idx, slow=step > QUICK)
    return Scenario(name, BASE, image, sides, may_sleep=waiting)


class Clock:
    """Time that is told by how often somebody looked at it."""

    def __init__(self, step):
        self.at, self.step = 0, step

    def now(self):
        self.at += self.step
        return self.at

    def tick(self):
        return self.at // TICK

    @contextlib.contextmanager
    def ruling(self):
        """While this holds, it is the clock of fans."""
        with (
            mock.patch.object(turns, "spin", self),
            mock.patch.object(base, "time", SimpleNamespace(monotonic_ns=self.now)),
        ):
            yield


class In(InLane):
    """A lane of a fan-in without its process."""

    lane, region, peer = "lane", "fan", None

    def __init__(self, inlet):
        self._inlet, self._device, self._pid = inlet, Role(), os.getpid()

    def show_counts(self):
        pass


class Out(OutLane):
    """A lane of a fan-out without its process."""

    lane, region, peer, pid = "lane", "fan", None, 0
    _shown = 0

    def __init__(self, outlet):
        self.outlet = self._outlet = outlet
        self.driver = self._driver = Role()

    def show_counts(self):
        pass


def ready(fan):
    """The fan, which looks but once before it sleeps."""
    fan._pace = Pace(0)
    fan._check_usable = lambda: None
    return fan


def gatherer(world, *, lanes, event_idx, count):
    ins = []
    for n, (layout, _) in enumerate(lanes):
        inlet = Inlet(world.memory, layout, Doorbell(world, f"call {n}"), event_idx=event_idx, name=f"inlet {n}")
        inlet.disable_notification()
        ins.append(In(inlet))
    with mock.patch.object(base, "Ears", return_value=Ears(world, "kick")):
        fan = ready(Fanin(ins))
    got = sorted(fan.recv() for _ in range(2 * count))
    assert got == sorted(payload(number) for number in range(count) for _ in lanes), f"received {got}"
    for lane in ins:
        lane.tell()


def spreader(world, *, step, **kinds):
    with Clock(step).ruling():
        spread(world, **kinds)


def spread(world, *, lanes, event_idx, count, mode):
    outs = []
    for n, (layout, area) in enumerate(lanes):
        outlet = Outlet(
            world.memory, layout, area, Doorbell(world, f"kick {n}"), event_idx=event_idx, name=f"outlet {n}"
        )
        outlet.disable_notification()
        outs.append(Out(outlet))
    with mock.patch.object(base, "Ears", return_value=Ears(world, "call")):
        fan = ready(Fanout(outs, mode=mode))
    for _ in range(count):
        fan.send(b"")
    fan.flush()
    sent = [lane.outlet.messages for lane in outs]
    assert sum(sent) == count if mode == "share" else sent == [count, count]
    assert all(lane.outlet.in_flight == 0 and lane.outlet.arena.out == 0 for lane in outs)


def taker(world, *, layout, event_idx, bell):
    receiver(world, layout=layout, event_idx=event_idx, count=None, start=0, many=False, held=1, bells=(bell, "call"))
