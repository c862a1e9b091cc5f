"""Mutants: one protection taken out of the real source of the rings, for as long as a `with` block lasts."""

from __future__ import annotations
import __future__

import contextlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vqshm_death_scenarios import resumption, succession
from vqshm_fan_scenarios import fan_in, fan_out
from vqshm_scenarios import ReceiverKeeper, exchange, lane

from vqshm.lane.inlet import Inlet
from vqshm.lane.outlet import Outlet
from vqshm.lane.resuming import ResumingInlet
from vqshm.message.fan import Fanin, Fanout
from vqshm.notify.wait import Block
from vqshm.ring import split_device, split_driver
from vqshm.ring.inflight import Inflight
from vqshm.ring.split_device import DeviceQueue
from vqshm.ring.split_driver import DriverQueue
from vqshm.ring.tries import Tries


@dataclass(frozen=True)
class Mutant:
    """`owner.name` with each `old` replaced by `new`, and the scenario in which that must be noticed."""

    what: str
    owner: Any
    name: str
    edits: tuple[tuple[str, str], ...]
    scenario: Callable[[], Any] = field(repr=False)
    model: str = "tso"
    limits: dict[str, int] = field(default_factory=dict)  # of the exploration

    @contextlib.contextmanager
    def planted(self):
        """While this holds, the mutant runs."""
        function = getattr(self.owner, self.name)
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in self.edits:
            if source.count(old) != 1:
                raise LookupError(f"{self.what}: {old!r} stands {source.count(old)} times in {self.name}")
            source = source.replace(old, new)
        found: dict[str, Any] = {}
        code = compile(source, self.what, "exec", __future__.annotations.compiler_flag, dont_inherit=True)
        exec(code, function.__globals__, found)
        setattr(self.owner, self.name, found[self.name])
        try:
            yield
        finally:
            setattr(self.owner, self.name, function)


flags = partial(exchange, event_idx=False)
crowded = partial(exchange, 2, batch=2, lazy=True)
wrapping = partial(exchange, 2, start=0xFFFF, batch=2, lazy=True)
full = partial(lane, 3, held=1, room=1)
many = partial(lane, 3, many=True)

followed = partial(succession, 2)
LITTLE = {"preemptions": 1}
dying = partial(resumption, 2, 4, batch=2, lazy=True, together=True)

FENCE = (("atomic.fence()", "pass"),)
ARM_BLINDLY = (("return self.used() >= after", "return False"),)
ARM_LATE = (
    ("after = max(", "seen = self.used()\n    after = max("),
    ("return self.used() >= after", "return seen >= after"),
)
DEVICE_LOOK = "return atomic.load_u16(self._avail, _IDX) != self.next_avail"
DEVICE_ARM_BLINDLY = ((DEVICE_LOOK, "return False"),)
DEVICE_ARM_LATE = (
    ("if self.event_idx:", "seen = atomic.load_u16(self._avail, _IDX)\n    if self.event_idx:"),
    (DEVICE_LOOK, "return seen != self.next_avail"),
)
ASK = "(new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF"
EQUALITY = ((ASK, "new == (event + 1) & 0xFFFF"),)
PUT_HEAD = "atomic.put_u16(self._avail, _RING + 2 * (self._avail_idx & self._mask), head)"
SHOW_NEXT = "atomic.store_u16(self._avail, _IDX, (self._avail_idx + 1) & 0xFFFF)"
FILL = "last = self._fill_chain(readable, writable)"
CLEAR = "atomic.store_u16(self._area, _LAST_BATCH_HEAD, head)"
GIVE_FIRST = """self._fetch(head)
    self._return(head, 0)
    self.tell()
    data = atomic.copy(self._bytes, self.addr - self._low, self.length)"""
GIVE = "offset = _RING + 8 * (self.next_used & self._mask)"
LOOK_FIRST = "if self.last_used == self._used_seen and self._look_used() == 0:"
ELEMENT = "atomic.get_u32(self._used, _RING + 8 * (self.last_used & self._mask))"
HEAD = "atomic.load_u16(self._avail, _RING + 2 * (self.next_avail & self._mask))"

MUTANTS = [
    # C02: without a fence
    Mutant("driver: no fence before asking", DriverQueue, "needs_kick", FENCE, exchange),
    Mutant("driver, flags: no fence before asking", DriverQueue, "needs_kick", FENCE, flags),
    Mutant("driver: no fence after arming", DriverQueue, "enable_notification", FENCE, exchange),
    Mutant("driver, flags: no fence after arming", DriverQueue, "enable_notification", FENCE, flags),
    Mutant("device: no fence before asking", DeviceQueue, "_is_wanted", FENCE, exchange),
    Mutant("device, flags: no fence before asking", DeviceQueue, "_is_wanted", FENCE, flags),
    Mutant("device: no fence after arming", DeviceQueue, "enable_notification", FENCE, exchange),
    Mutant("device, flags: no fence after arming", DeviceQueue, "enable_notification", FENCE, flags),
    Mutant("outlet: no fence before asking", DriverQueue, "publish_and_ask", FENCE, lane),
    Mutant("inlet: no fence before asking", DeviceQueue, "_is_wanted", FENCE, lane),
    # C03: without a second look
    Mutant("driver: no look after arming", DriverQueue, "enable_notification", ARM_BLINDLY, exchange),
    Mutant("driver, flags: no look after arming", DriverQueue, "enable_notification", ARM_BLINDLY, flags),
    Mutant("driver: looks before arming", DriverQueue, "enable_notification", ARM_LATE, exchange),
    Mutant("device: no look after arming", DeviceQueue, "enable_notification", DEVICE_ARM_BLINDLY, exchange),
    Mutant("device, flags: no look", DeviceQueue, "enable_notification", DEVICE_ARM_BLINDLY, flags),
    Mutant("device: looks before arming", DeviceQueue, "enable_notification", DEVICE_ARM_LATE, exchange),
    Mutant("outlet: no look after arming", DriverQueue, "enable_notification", ARM_BLINDLY, lane),
    Mutant("inlet: no look after arming", DeviceQueue, "enable_notification", DEVICE_ARM_BLINDLY, lane),
    Mutant("waiting: sleeps without arming", Block, "wait", (("if not arm():", "if True:"),), exchange),
    Mutant(
        "receiver: sleeps without arming",
        ReceiverKeeper,
        "sleep",
        (("inlet.available() or inlet.enable_notification()", "inlet.available()"),),
        partial(lane, bed=False),
    ),
    Mutant(
        "receiver: lies down without arming",
        ReceiverKeeper,
        "lie_down",
        (("inlet.available() or inlet.enable_notification()", "inlet.available()"),),
        lane,
    ),
    # whether to wake
    Mutant("driver: compares for equality", split_driver, "need_event", EQUALITY, crowded),
    Mutant("device: compares for equality", split_device, "need_event", EQUALITY, crowded),
    Mutant("driver: compares without wrapping", split_driver, "need_event", ((ASK, "old <= event < new"),), wrapping),
    Mutant("device: compares without wrapping", split_device, "need_event", ((ASK, "old <= event < new"),), wrapping),
    Mutant("driver: wakes always", split_driver, "need_event", ((ASK, "True"),), exchange),
    Mutant("device: wakes always", split_device, "need_event", ((ASK, "True"),), exchange),
    Mutant(
        "outlet: forgets all but the last published",
        DriverQueue,
        "publish_and_ask",
        (("new, old)", "new, (new - 1) & 0xFFFF)"),),
        many,
    ),
    # the order of publishing
    Mutant("driver: idx before ring", DriverQueue, "_offer", ((PUT_HEAD, f"{SHOW_NEXT}; {PUT_HEAD}"),), exchange),
    Mutant(
        "driver: idx and ring before descriptor",
        DriverQueue,
        "add",
        ((FILL, f"{PUT_HEAD}; {SHOW_NEXT}; {FILL}"),),
        exchange,
    ),
    Mutant(
        "device: idx before element",
        DeviceQueue,
        "_return",
        ((GIVE, f"{GIVE}; atomic.store_u16(self._used, _IDX, (self.next_used + 1) & 0xFFFF)"),),
        exchange,
    ),
    Mutant(
        "device: head before idx",
        DeviceQueue,
        "_claim",
        (
            (
                "if self.strict and",
                f"early = {HEAD}\n    if self.strict and",
            ),
            ("return self._claim_seen()", "self._claim_seen(); return early"),
        ),
        exchange,
    ),
    Mutant(
        "driver: element before idx",
        DriverQueue,
        "_peek",
        (
            (LOOK_FIRST, f"early = {ELEMENT}\n    {LOOK_FIRST}"),
            ("head = atomic.get_u32(self._used, offset)", "head = early"),
        ),
        partial(exchange, lazy=True),
    ),
    Mutant(
        "inlet: asks before it shows",
        Inlet,
        "tell",
        (
            ("self._publish()", "pass"),
            ("self.calls_suppressed += 1", "self.calls_suppressed += 1\n    self._publish()"),
        ),
        lane,
    ),
    # who owns what
    Mutant(
        "driver: a chain of two is freed as one",
        DriverQueue,
        "_accept",
        (("self.num_free += self._parts[head]", "self.num_free += 1"),),
        partial(exchange, pairs=True),
    ),
    Mutant(
        "driver: the free list loses what comes back late",
        DriverQueue,
        "_accept",
        (("self._link[self._last[head]] = self._free", "self._link[self._last[head]] = 0"),),
        partial(exchange, 2, 4, batch=2, lazy=True),
    ),
    Mutant(
        "inlet: gives back, then copies",
        Inlet,
        "recv",
        (
            ("data = self._copy_message(head)", GIVE_FIRST),
            ("if self._pass_on(head, len(data)):", "if False:"),
        ),
        full,
    ),
    Mutant(
        "inlet: waits without telling",
        Inlet,
        "_wait_long",
        (
            ("self.tell()\n        if self.pace", "if self.pace"),
            ("self.tell()\n        if self.keeper", "if self.keeper"),
        ),
        partial(lane, 3, held=4),
    ),
    Mutant(
        "outlet: waits without showing",
        Outlet,
        "_start_waiting",
        (("self._published != self._avail_idx", "False"),),
        many,
    ),
    # those who wait for several lanes
    Mutant(
        "fan-out: flush asks no lane behind one that is late",
        Fanout,
        "flush",
        (("not sum(", "not any("),),
        partial(fan_out, 1, mode="broadcast"),
        "sc",
        {"preemptions": 1},
    ),
    Mutant(
        "fan-out: arms one lane only",
        Fanout,
        "_sleep_until",
        (("for lane in lanes])", "for lane in lanes[:1]])"),),
        partial(fan_out, 1, mode="broadcast", event_idx=False),
        "sc",
        {"preemptions": 1},
    ),
    Mutant(
        "share: flush asks no lane behind one that is late",
        Fanout,
        "flush",
        (("not sum(", "not any("),),
        partial(fan_out, 2),
        "sc",
        {"preemptions": 1},
    ),
    Mutant(
        "share: arms one lane only",
        Fanout,
        "_sleep_until",
        (("for lane in lanes])", "for lane in lanes[:1]])"),),
        partial(fan_out, 2, event_idx=False),
        "sc",
        {"preemptions": 1},
    ),
    Mutant(
        "fan-in: arms one lane only",
        Fanin,
        "_sleep_for_lane",
        (("each.arm() for each in self._every]", "each.arm() for each in self._every[:1]]"),),
        partial(fan_in, event_idx=False),
        "sc",
        {"preemptions": 1},
    ),
    Mutant(
        "fan-in: no look after arming",
        Fanin,
        "_sleep_for_lane",
        (("if any([each.arm() for each in self._every])", "if not [each.arm() for each in self._every]"),),
        partial(fan_in, event_idx=False),
        "sc",
        {"preemptions": 1},
    ),
    # those who die
    Mutant(
        "in-flight: the mark is never set",
        Inflight,
        "take",
        (("atomic.store_u16(self._area, at, 1)", "pass"),),
        dying,
        "sc",
    ),
    Mutant(
        "in-flight: marks are cleared before used.idx",
        Inflight,
        "give",
        ((CLEAR, f"{CLEAR}\n        atomic.store_u16(self._area, _ENTRIES + 16 * head, 0)"),),
        dying,
        "sc",
    ),
    Mutant(
        "in-flight: a successor does not settle", Inflight, "_last_batch", (("return batch", "return []"),), dying, "sc"
    ),
    Mutant(
        "in-flight: batches are not linked",
        Inflight,
        "give",
        (("+ _NEXT, self._last)", "+ _NEXT, head)"),),
        dying,
        "sc",
    ),
    Mutant(
        "resuming inlet: gives back what it received at once",
        ResumingInlet,
        "recv",
        (("self._last = heads", "self._return(head, 0)\n    self._publish()"),),
        followed,
        "sc",
        LITTLE,
    ),
    Mutant(
        "resuming inlet: is never done",
        ResumingInlet,
        "_begin",
        (("self.done()", "pass"),),
        partial(succession, 3),
        "sc",
        {"preemptions": 0},
    ),
    Mutant(
        "resuming inlet: no look after arming",
        DeviceQueue,
        "enable_notification",
        DEVICE_ARM_BLINDLY,
        partial(succession, 2, room=1),
        "sc",
        LITTLE,
    ),
    Mutant(
        "resuming inlet: the mark is never set",
        Inflight,
        "take",
        (("atomic.store_u16(self._area, at, 1)", "pass"),),
        followed,
        "sc",
        LITTLE,
    ),
    Mutant(
        "resuming inlet: marks are cleared before used.idx",
        Inflight,
        "give",
        ((CLEAR, f"{CLEAR}\n        atomic.store_u16(self._area, _ENTRIES + 16 * head, 0)"),),
        followed,
        "sc",
        LITTLE,
    ),
    Mutant(
        "resuming inlet: what comes again is not flagged",
        ResumingInlet,
        "_next_head",
        (("self.attempts = self._tried.get(head, 1)", "self.attempts = 1"),),
        followed,
        "sc",
        LITTLE,
    ),
    Mutant(
        "tries: what is given up is not counted",
        Tries,
        "give_up",
        (("self.undone = (self.undone + 1) & _COUNTED", "pass"),),
        partial(succession, 1, limit=1),
        "sc",
    ),
    Mutant(
        "tries: a successor counts it again",
        Tries,
        "resume",
        (("self._giving = giving", "self._giving = -1"),),
        partial(succession, 1, limit=1, kills=2),
        "sc",
    ),
    # what release and acquire are for (x86 does it unasked)
    Mutant("driver: idx without release", DriverQueue, "publish", (("store_u16", "put_u16"),), exchange, "c11"),
    Mutant("device: idx without release", DeviceQueue, "_publish", (("store_u16", "put_u16"),), exchange, "c11"),
    Mutant("driver: idx without acquire", DriverQueue, "_look_used", (("load_u16", "get_u16"),), exchange, "c11"),
    Mutant("device: idx without acquire", DeviceQueue, "_look", (("load_u16", "get_u16"),), exchange, "c11"),
    Mutant(
        "outlet: idx without release",
        DriverQueue,
        "publish_and_ask",
        (("store_u16(self._avail, _IDX", "put_u16(self._avail, _IDX"),),
        lane,
        "c11",
    ),
]
