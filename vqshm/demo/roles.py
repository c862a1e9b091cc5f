"""Roles: what the device process and the driver process of the demo run.

    python -m vqshm.demo.roles device REGION '{"level": 1}'
    python -m vqshm.demo.roles driver REGION '{"file": …, "block_size": …, "event_idx": …, "indirect": …}'

Each says on standard output what happens, one JSON object in a line: `ready`, `progress` (the driver), then `result` or
`error`. The driver stays attached until its standard input ends, so that the ring can be looked at. What a terminal
sends to all its processes (Ctrl-C, hang-up) is for the parent, who ends them. Without a parent they end, too: the
coordinator goes with it, then the device, then the driver.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from vqshm import core
from vqshm.demo.stream import stream_file
from vqshm.devices import ZBlock
from vqshm.errors import CoordinatorGone, VqshmError
from vqshm.host import Device, Driver
from vqshm.transport import features

START_TIMEOUT: Final = 30.0  # seconds
TELL_EVERY: Final = 0.05  # seconds between two messages about progress


def device(region: str, *, level: int) -> None:
    """Serve until the region closes, then tell what was counted."""
    handler = ZBlock(level)
    with Device.attach(region, config=handler.config, timeout=START_TIMEOUT) as role:
        say("ready", core=core.kind(), pid=os.getpid())
        with contextlib.suppress(CoordinatorGone):  # it was faster than we
            role.serve(handler)
        counters = [role.manifest.queue(plan.index).device.snapshot() for plan in role.plan.queues]
        say("result", counters=counters, unanswered=handler.unanswered)


def driver(region: str, *, file: str, block_size: int, event_idx: bool, indirect: bool) -> None:
    """Stream the file, tell what came back, and wait until nobody looks at the ring any more."""
    with (
        open(file, "rb") as source,  # noqa: PTH123 - the name may be any string
        Driver.attach(region, event_idx=event_idx, indirect=indirect, timeout=START_TIMEOUT) as role,
    ):
        say("ready", core=core.kind(), pid=os.getpid(), features=features.names(role.features), notify=role.notify)
        done = stream_file(role, source, block_size, progress=_Progress())
        say(
            "result",
            bytes=done.bytes,
            chains=done.chains,
            compressed=done.compressed,
            seconds=done.seconds,
            sha256=done.sha256,
            most_in_flight=done.most_in_flight,
            overtaken=done.overtaken,
            p50=done.round_trips.percentile(50),
            p99=done.round_trips.percentile(99),
            counters=[port.counts for port in role.ports],
            sizes=[port.queue.size for port in role.ports],
        )
        sys.stdin.buffer.read()


ROLES: Final[dict[str, Callable[..., None]]] = {"device": device, "driver": driver}


def say(event: str, **facts: Any) -> None:
    """Tell the parent. If it is gone, there is nobody to work for, and the process ends."""
    try:
        sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)


class _Progress:
    """Tells how far the driver is, a few times in a second."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last >= TELL_EVERY:
            self._last = now
            say("progress", bytes=done)


def main() -> None:
    """Run the role that the command line names."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    role, region, options = sys.argv[1:]
    try:
        ROLES[role](region, **json.loads(options))
    except (VqshmError, OSError, MemoryError) as error:
        say("error", kind=type(error).__name__, message=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
