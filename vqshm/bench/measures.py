"""Measures: what is measured, and how one sample of it is taken. Every figure is a cost: less is better."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from vqshm.bench.harness import Job, Stage, busy_seconds, cpu_seconds
from vqshm.bench.messages import Corrupt, depth_for
from vqshm.bench.peers import OURS, Eventfd, Peer

FAN: Final = 4  # senders or receivers on the many side
SETTLED: Final = 0.05  # seconds after which whoever waits should be asleep

_SIZES: Final = (64, 1 << 10, 1 << 16, 1 << 20)
_RINGS: Final = (8, 32, 128, 512, 2048, 8192, 32768)
_QUEUES: Final = (1, 4, 16, 64)


@dataclass(frozen=True)
class Settings:
    """How long, and against whom."""

    seconds: float = 0.5  # of each sample
    rounds: int = 5
    quick: bool = False
    others: tuple[type[Peer], ...] = ()


@dataclass(frozen=True)
class Case:
    """One thing that is measured once in every round. Those of one group take turns and are compared."""

    measure: str
    group: str
    mode: str
    size: int  # of a message in bytes; in `growth`, of what grows
    peer: type[Peer] | None = None  # None: no transport, the core alone

    @property
    def name(self) -> str:
        """Who it is, in tables."""
        return self.peer.name if self.peer else "vqshm"

    @property
    def ours(self) -> bool:
        """Whether it is vqshm's."""
        return self.peer is None or self.peer.group == "vqshm"


Facts = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """A table."""

    name: str
    title: str
    unit: str
    cases: Callable[[Settings], list[Case]]
    take: Callable[[Case, Settings], Facts]  # "value" is the figure; raises whatever went wrong
    rivals: dict[str, tuple[str, ...]] = field(default_factory=dict)  # our mode → modes of others it is compared with


# -- how a sample is taken ---------------------------------------------------------------------------------------------


def _sample(
    peers: Sequence[Peer], jobs: Sequence[Job], seconds: float, body: Callable[[Stage], Any] = Stage.run
) -> tuple[Any, Facts]:
    """What `body` makes of the stage, and what was noted around it."""
    with contextlib.ExitStack() as exits:
        for peer in peers:
            exits.callback(peer.tear_down)
            peer.set_up()
        stage = exits.enter_context(Stage(jobs, seconds))
        two = len(jobs) > 1 and not any(peer.environment for peer in peers)  # an interpreted probe says nothing
        before = stage.probe() if two else None
        helpers = [pid for peer in peers for pid in peer.pids()]
        with _strangers(stage, helpers) as facts:
            results = body(stage)
        facts["probe"] = [before, stage.probe()] if two else []
    return results, facts


@contextlib.contextmanager
def _strangers(stage: Stage, helpers: list[int]) -> Iterator[Facts]:
    """Notes the share of one processor that went to processes which are not ours."""

    def spent() -> tuple[float, float, float]:
        ours = stage.cpu() + sum(map(cpu_seconds, helpers))
        return time.monotonic(), busy_seconds(), ours + time.process_time()

    facts: Facts = {}
    begin, busy, own = spent()
    yield facts
    end, busy_then, own_then = spent()
    facts["strangers"] = max(0.0, (busy_then - busy) - (own_then - own)) / max(end - begin, 1e-3)


def _pair(peers: tuple[Peer, ...], roles: tuple[str, str], plan: Facts) -> list[Job]:
    return [Job(role, peers, 0, plan) for role in roles]


def _peer(case: Case, size: int, *, senders: int = 1, receivers: int = 1, depth: int = 0) -> Peer:
    assert case.peer is not None  # noqa: S101 - only `core` and a part of `growth` have none
    return case.peer(size, depth or depth_for(size), senders, receivers)


# -- the core alone ----------------------------------------------------------------------------------------------------


def _take_core(case: Case, settings: Settings, *, size: int = 256, queues: int = 1) -> Facts:
    plan = {"seconds": settings.seconds, "size": size, "queues": queues}
    (result,), facts = _sample([], [Job("serve_core", (), 0, plan)], settings.seconds)
    return {**facts, "value": result["nanoseconds"], **result, "case": case.mode}


def _core_cases(_settings: Settings) -> list[Case]:
    return [Case("core", "one queue of 256", "pop, walk 1, add_used, needs_notification", 64)]


# -- one way -----------------------------------------------------------------------------------------------------------


def _take_oneway(case: Case, settings: Settings) -> Facts:
    peer = _peer(case, case.size)
    jobs = _pair((peer,), ("send_pool", "receive_pool"), {"seconds": settings.seconds})
    (sent, came), facts = _sample([peer], jobs, settings.seconds)
    return {**facts, "value": came["nanoseconds"], **_flow(sent, came)}


def _flow(sent: Facts, came: Facts) -> Facts:
    """What both sides tell of a stream of messages."""
    return {
        "messages": came["received"],
        "cpu_ns": (sent["cpu"] + came["cpu"]) / max(1, came["received"]) * 1e9,
        "sender": sent.get("counts", {}),
        "receiver": came.get("counts", {}),
    }


def _oneway_cases(settings: Settings) -> list[Case]:
    sizes = _SIZES[::2] if settings.quick else _SIZES
    return [
        Case("oneway", size_words(size), peer.mode, size, peer) for size in sizes for peer in _who("oneway", settings)
    ]


def _take_kicks(case: Case, settings: Settings) -> Facts:
    facts = _take_oneway(case, settings)
    counts = facts["sender"]
    return {**facts, "value": counts["kicks"] / counts["messages"] * 1000}


def _kicks_cases(settings: Settings) -> list[Case]:
    return [Case("kicks", "64 B, under load", peer.mode, 64, peer) for peer in _who("kicks", settings)]


def _interpreted_cases(settings: Settings) -> list[Case]:
    return [Case("interpreted", "64 B", peer.mode, 64, peer) for peer in _who("interpreted", settings)]


# -- there and back ----------------------------------------------------------------------------------------------------


def _take_roundtrip(case: Case, settings: Settings) -> Facts:
    if case.mode == "call":
        peers, roles = [_peer(case, case.size, depth=64)], ("call", "serve")
    else:
        peers, roles = [_peer(case, case.size, depth=64) for _ in range(2)], ("ask", "answer")
    jobs = _pair(tuple(peers), roles, {"seconds": settings.seconds})
    result, facts = _sample(peers, jobs, settings.seconds, _there_and_back)
    return {**facts, "value": result["p50"], **result}


def _there_and_back(stage: Stage) -> Facts:
    stage.step(0, 1)
    (result,) = stage.results(0)
    stage.step(0)  # which ends the other one's step
    stage.results(0, 1)
    return result


def _roundtrip_cases(settings: Settings) -> list[Case]:
    cases = []
    for peer in _who("roundtrip", settings):
        mode = "ping-pong" if peer.mode == "single" else f"ping-pong {peer.mode}"
        cases.append(Case("roundtrip", "64 B", mode, 64, peer))
    return [*cases, Case("roundtrip", "64 B", "call", 64, OURS[0])]


# -- many to one, one to many ------------------------------------------------------------------------------------------


def _take_fanin(case: Case, settings: Settings) -> Facts:
    peer = _peer(case, case.size, senders=FAN)
    plan = {"seconds": settings.seconds}
    jobs = [*(Job("send_pool", (peer,), index, plan) for index in range(FAN)), Job("gather", (peer,), 0, plan)]
    results, facts = _sample([peer], jobs, settings.seconds)
    return {**facts, "value": results[-1]["nanoseconds"], "messages": results[-1]["received"]}


def _fanin_cases(settings: Settings) -> list[Case]:
    return [Case("fanin", "1 KiB", "4 to 1", 1024, peer) for peer in _who("fanin", settings)]


def _take_fanout(case: Case, settings: Settings) -> Facts:
    peer = _peer(case, case.size, receivers=FAN)
    everything = peer.fan_out == "broadcast"
    # In a broadcast one end reaches everybody; and where a receiver hears that the sender has left, none is needed.
    ends = min(1, peer.fan_ends) if everything else peer.fan_ends
    plan = {"seconds": settings.seconds, "ends": ends, "fan_out": peer.fan_out}
    jobs = [
        Job("send_pool", (peer,), 0, plan),
        *(Job("take_share", (peer,), index, plan) for index in range(FAN)),
    ]
    (sent, *shares), facts = _sample([peer], jobs, settings.seconds)
    total, got = sent["sent"], [sum(share["got"]) for share in shares]
    each = [sum(places) for places in zip(*(share["got"] for share in shares), strict=True)]
    times = FAN if everything else 1
    if any(count * len(each) != total * times for count in each) or (everything and set(got) != {total}):
        raise Corrupt(f"{total} messages were sent, {got} came")
    start = min(share["start"] for share in shares if share["start"])
    done = max(share["done"] for share in shares)
    return {**facts, "value": (done - start) / total * 1e9, "messages": total, "shares": got}


def _fanout_cases(settings: Settings) -> list[Case]:
    return [Case("fanout", "1 KiB", f"1 to 4, {peer.fan_out}", 1024, peer) for peer in _who("fanout", settings)]


# -- objects -----------------------------------------------------------------------------------------------------------


def _take_objects(case: Case, settings: Settings) -> Facts:
    peer = _peer(case, 512)
    jobs = _pair((peer,), ("send_objects", "receive_objects"), {"seconds": settings.seconds})
    (sent, came), facts = _sample([peer], jobs, settings.seconds)
    return {**facts, "value": came["nanoseconds"], **_flow(sent, came)}


def _objects_cases(settings: Settings) -> list[Case]:
    return [Case("objects", "dicts of 5 items, pickled", "single", 0, peer) for peer in _who("objects", settings)]


# -- sleeping and waking -----------------------------------------------------------------------------------------------


def _take_idle(case: Case, settings: Settings) -> Facts:
    peer = _peer(case, case.size, depth=64)
    seconds = max(0.2, min(1.0, 2 * settings.seconds))
    jobs = _pair((peer,), ("send_one", "receive_one"), {})

    def wait(stage: Stage) -> Facts:
        stage.run()
        stage.step(1)
        time.sleep(SETTLED)
        before = [stage.cpu(0), stage.cpu(1)]
        begin = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - begin
        sender, receiver = (
            (after - used) / took * 1e3 for after, used in zip((stage.cpu(0), stage.cpu(1)), before, strict=True)
        )
        stage.step(0)
        stage.results(0, 1)
        return {"value": sender + receiver, "sender": sender, "receiver": receiver}

    result, facts = _sample([peer], jobs, seconds, wait)
    return {**facts, **result}


def _idle_cases(settings: Settings) -> list[Case]:
    return [Case("idle", "sender and receiver, both waiting", "single", 64, peer) for peer in _who("idle", settings)]


def _take_wakeup(case: Case, settings: Settings) -> Facts:
    peer = _peer(case, case.size, depth=64)
    gap = 0.02
    wakes = max(8, int(settings.seconds / gap))
    jobs = _pair((peer,), ("send_seldom", "receive_seldom"), {"gap": gap, "wakes": wakes})
    (sent, came), facts = _sample([peer], jobs, settings.seconds + wakes * gap)
    took = sorted(
        (then - when) * 1e6 for when, then in zip(sent["times"][2:], came["times"][2:], strict=True)
    )  # the first two teach a pace that is learned
    return {**facts, "value": statistics.median(took), "min": took[0], "max": took[-1], "wakes": len(took)}


def _wakeup_cases(settings: Settings) -> list[Case]:
    group = "from sleep of 20 ms"
    cases = [Case("wakeup", group, "single", 64, peer) for peer in _who("wakeup", settings)]
    return [Case("wakeup", group, "no message", 64, Eventfd), *cases]


# -- growth ------------------------------------------------------------------------------------------------------------

_GROWS: Final = {
    "core": "the core, per chain, by ring size",
    "cores": "the core, per chain, by queues of 256",
    "ring": "messages of 64 B, by ring size",
    "lanes": "messages of 64 B, by lanes into one receiver",
}


def _take_growth(case: Case, settings: Settings) -> Facts:
    if case.mode == "core":
        return _take_core(case, settings, size=case.size)
    if case.mode == "cores":
        return _take_core(case, settings, queues=case.size)
    if case.mode == "ring":
        peer: Any = _peer(case, 64, depth=min(case.size, 4096))
        peer.ring = case.size
        jobs = _pair((peer,), ("send_pool", "receive_pool"), {"seconds": settings.seconds})
        (sent, came), facts = _sample([peer], jobs, settings.seconds)
        return {**facts, "value": came["nanoseconds"], **_flow(sent, came)}
    peer = _peer(case, 64, senders=case.size, depth=256)
    jobs = _pair((peer,), ("send_round", "gather"), {"seconds": settings.seconds})
    (sent, came), facts = _sample([peer], jobs, settings.seconds)
    return {**facts, "value": came["nanoseconds"], **_flow(sent, came)}


def _growth_cases(settings: Settings) -> list[Case]:
    rings = _RINGS[::3] if settings.quick else _RINGS
    queues = _QUEUES[::3] if settings.quick else _QUEUES
    batch = next(peer for peer in OURS if peer.mode == "batch")
    return [
        *(Case("growth", _GROWS["core"], "core", size) for size in rings),
        *(Case("growth", _GROWS["cores"], "cores", count) for count in queues),
        *(Case("growth", _GROWS["ring"], "ring", size, batch) for size in rings),
        *(Case("growth", _GROWS["lanes"], "lanes", count, OURS[0]) for count in queues),
    ]


# -- the table ---------------------------------------------------------------------------------------------------------


def _who(measure: str, settings: Settings) -> list[type[Peer]]:
    return [peer for peer in (*OURS, *settings.others) if measure in peer.takes]


def size_words(size: int) -> str:
    """64 B, 1 KiB, 1 MiB."""
    if size >= 1 << 20:
        return f"{size >> 20} MiB"
    return f"{size >> 10} KiB" if size >= 1 << 10 else f"{size} B"


_TRIPS: Final = ("ping-pong", "ping-pong view")

MEASURES: Final = {
    measure.name: measure
    for measure in (
        Measure("core", "Core loop, one process", "ns/chain", _core_cases, _take_core),
        Measure(
            "oneway",
            "One way, two processes",
            "ns/message",
            _oneway_cases,
            _take_oneway,
            {"reserve": ("reserve", "view")},
        ),
        Measure(
            "roundtrip",
            "There and back, two processes",
            "µs",
            _roundtrip_cases,
            _take_roundtrip,
            {"ping-pong": _TRIPS, "call": _TRIPS},
        ),
        Measure("fanin", "Fan-in, four senders", "ns/message", _fanin_cases, _take_fanin),
        Measure("fanout", "Fan-out, four receivers", "ns/message", _fanout_cases, _take_fanout),
        Measure("objects", "Objects, two processes", "ns/object", _objects_cases, _take_objects),
        Measure("idle", "Idle", "CPU ms/s", _idle_cases, _take_idle),
        Measure("wakeup", "Waking a sleeper", "µs", _wakeup_cases, _take_wakeup, {"single": ("single", "no message")}),
        Measure("kicks", "Kicks", "kicks/1000 messages", _kicks_cases, _take_kicks),
        Measure("growth", "Growth", "ns", _growth_cases, _take_growth),
        Measure("interpreted", "Interpreted core, two processes", "ns/message", _interpreted_cases, _take_oneway),
    )
}
