"""What tools/gates/instructions.py counts the instructions of: one load each, run under callgrind and never by hand.

A load does `count` operations between `meter.start()` and `meter.stop()`; what it does outside is not counted. Both
call `getppid`, at which callgrind writes down what it has counted so far and starts again. Every load is run some times
to warm up (the interpreter rewrites its code while it runs), then with a count and with twice that count.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import TYPE_CHECKING

from vqshm import core
from vqshm.bench import loops
from vqshm.lane.inlet import Inlet
from vqshm.lane.outlet import Outlet
from vqshm.lane.resuming import ResumingInlet
from vqshm.memory import GuestMemory
from vqshm.ring import QueueConfig, SplitLayout
from vqshm.ring.inflight import inflight_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from vqshm.ring import DeviceQueue, DriverQueue

    Load: TypeAlias = Callable[["Meter", int], None]

BASE = 0x1_0000
SIZE = 2048  # descriptors
ARENA = 1 << 22  # bytes
COUNT = 512  # operations, and then twice as many
WARM = (COUNT // 8,) * 8


class Meter:
    """Remembers what each of callgrind's parts is about: "" for what does not count."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.label = ""

    def start(self) -> None:
        self.parts.append("")
        os.getppid()

    def stop(self) -> None:
        self.parts.append(self.label)
        os.getppid()


def make_queue(size: int = SIZE) -> tuple[DriverQueue, DeviceQueue, GuestMemory, SplitLayout]:
    """Both halves of a queue in a bytearray, with EVENT_IDX, and 64 KiB behind it."""
    layout = SplitLayout.at(BASE, size)
    memory = GuestMemory([(BASE, bytearray(layout.end - BASE + 0x1_0000))])
    config = QueueConfig(layout, event_idx=True, indirect=False)
    return config.driver(memory), config.device(memory), memory, layout


def core_loop() -> Load:
    """One chain of one descriptor in the core alone: take the head, walk, return, ask whether to notify."""
    size = COUNT // 8
    driver, device, memory, layout = make_queue(size)
    for _ in range(size):
        driver.add([(layout.end, 64)], publish=False)
    ring = memory.window(layout.avail_ring, 6 + 2 * size, 2)

    def run(meter: Meter, count: int) -> None:
        meter.start()
        loops.serve_chains([device], [ring], count // size)
        meter.stop()

    return run


def offer() -> Load:
    """`add` one buffer and publish it, `needs_kick`."""
    driver, device, _, layout = make_queue()
    buffers = [(layout.end, 64)]

    def run(meter: Meter, count: int) -> None:
        meter.start()
        for _ in range(count):
            driver.add(buffers)
            driver.needs_kick()
        meter.stop()
        for _ in range(count):
            device.add_used(device.pop_head(), 0)
            driver.reap()

    return run


def reap() -> Load:
    """`reap` one buffer."""
    driver, device, _, layout = make_queue()
    buffers = [(layout.end, 64)]

    def run(meter: Meter, count: int) -> None:
        for _ in range(count):
            driver.add(buffers)
            device.add_used(device.pop_head(), 0)
        meter.start()
        for _ in range(count):
            driver.reap()
        meter.stop()

    return run


def serve() -> Load:
    """`pop` a chain of one descriptor, iterate it, `add_used`, `needs_notification`: the device in plain Python."""
    driver, device, _, layout = make_queue()
    buffers = [(layout.end, 64)]

    def run(meter: Meter, count: int) -> None:
        for _ in range(count):
            driver.add(buffers)
        meter.start()
        for _ in range(count):
            chain = device.pop()
            if chain is not None:
                for _ in chain:
                    pass
                device.add_used(chain.head_index, 0)
                device.needs_notification()
        meter.stop()
        for _ in range(count):
            driver.reap()

    return run


class Nobody:
    """Rings no bell and keeps no lane: with both ends in one thread, nobody ever waits."""

    def signal(self) -> None:
        """No other process sleeps."""

    def show_counts(self) -> None:
        """Nobody watches."""


def make_lane() -> tuple[Outlet, Inlet]:
    """Both ends of a lane in a bytearray."""
    layout = SplitLayout.at(BASE, 256)
    memory = GuestMemory([(BASE, bytearray(layout.end - BASE + ARENA))])
    nobody: Any = Nobody()
    return Outlet(memory, layout, (layout.end, ARENA), nobody, nobody), Inlet(memory, layout, nobody, nobody)


def one_by_one(outlet: Outlet, inlet: Inlet) -> Load:
    """Messages of 64 bytes, each received before the next is sent."""
    message = bytes(64)

    def run(meter: Meter, count: int) -> None:
        meter.start()
        for _ in range(count):
            outlet.send(message)
            inlet.recv()
        meter.stop()

    return run


def single() -> Load:
    """`send` and `recv` of 64 bytes."""
    return one_by_one(*make_lane())


def resumable() -> Load:
    """`send` and `recv` of 64 bytes where receivers resume."""
    layout = SplitLayout.at(BASE, 256)
    area = layout.end + inflight_bytes(256)
    memory = GuestMemory([(BASE, bytearray(area - BASE + ARENA))])
    nobody: Any = Nobody()
    outlet = Outlet(memory, layout, (area, ARENA), nobody, nobody)
    inlet = ResumingInlet(memory, layout, nobody, layout.end, keeper=nobody)
    inlet.restart(event_idx=True, indirect=True)
    return one_by_one(outlet, inlet)


def batch() -> Load:
    """One of the 32 messages of 64 bytes that one `send_many` and one `recv_many` carry."""
    outlet, inlet = make_lane()
    messages = [bytes(64)] * 32

    def run(meter: Meter, count: int) -> None:
        meter.start()
        for _ in range(count // 32):
            outlet.send_many(messages)
            inlet.recv_many(32)
        meter.stop()

    return run


def in_place() -> Load:
    """`reserve` and `recv_view` of 64 KiB, of which nobody touches a byte."""
    outlet, inlet = make_lane()

    def run(meter: Meter, count: int) -> None:
        meter.start()
        for _ in range(count):
            with outlet.reserve(1 << 16):
                pass
            with inlet.recv_view():
                pass
        meter.stop()

    return run


def answered() -> Load:
    """A call of 64 bytes, served with an answer of as many."""
    outlet, inlet = make_lane()
    message = bytes(64)

    def run(meter: Meter, count: int) -> None:
        meter.start()
        for _ in range(count):
            call = outlet.start_call(message, 64)
            loan = inlet.recv_view()
            with loan as view:
                loan.reply(view)
            call.answer()
        meter.stop()

    return run


LOADS: dict[str, Callable[[], Load]] = {
    "core loop": core_loop,
    "offer a buffer": offer,
    "reap a buffer": reap,
    "serve a chain": serve,
    "send, recv 64 B": single,
    "the same, resuming": resumable,
    "the same, 32 at once": batch,
    "reserve, recv_view 64 KiB": in_place,
    "call and answer of 64 B": answered,
}


def main() -> None:
    if core.kind() != "compiled":
        raise SystemExit(f"the core that runs is the {core.kind()} one: {core.reason()}")
    gc.disable()  # when it runs depends on everything that was allocated before
    meter = Meter()
    for name, make in LOADS.items():
        run = make()
        for count in WARM:
            run(meter, count)
        for times in (1, 2):
            meter.label = f"{name}/{times}"
            run(meter, times * COUNT)
        meter.label = ""
    json.dump({"count": COUNT, "parts": meter.parts}, sys.stdout)


if __name__ == "__main__":
    main()
