"""Channel: a region made for messages. Each pair of a sender and a receiver has a lane of its own: a device, one queue.

    with open_channel("jobs", senders=4, receivers=2):     # in a process of its own, for as long as the block lasts
        …                                                  # 8 lanes: s0r0, s0r1, s1r0, … ; with one pair: lane

So there is never a lock around a ring, and who dies takes nobody's lane with it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from vqshm import spec
from vqshm.errors import NotFound, RuleError
from vqshm.host import launch
from vqshm.host.coordination.launcher import START_TIMEOUT
from vqshm.host.system import names
from vqshm.host.system.pages import NO_HINTS
from vqshm.transport import DeviceSpec, QueueSpec
from vqshm.transport.planning import MAX_DEVICES, RESTARTS

if TYPE_CHECKING:
    from vqshm.host.coordination.ground import MemoryKind
    from vqshm.host.coordination.launcher import Launched
    from vqshm.host.system.pages import Hints
    from vqshm.notify.notifier import Kind
    from vqshm.transport import DevicePlan
    from vqshm.transport.planning import Restart

ONLY_LANE: Final = "lane"
_LANE: Final = re.compile(r"s(\d+)r(\d+)")


def open_channel(
    name: str,
    *,
    senders: int = 1,
    receivers: int = 1,
    size: int = 256,
    buffer_bytes: int = 4 << 20,
    notify: Kind = "eventfd",
    memory: MemoryKind = "named",
    hints: Hints = NO_HINTS,
    restart: Restart = "reset",
    max_attempts: int | None = None,
    timeout: float | None = START_TIMEOUT,
) -> Launched:
    """Make a channel, and return when it can be attached to. A context manager; leaving it removes the channel.

    `size`: messages in flight per lane, a power of two. `buffer_bytes`: bytes in flight per lane; no message can be
    larger. `memory`, `hints`: as of `Coordinator`. `restart`: what becomes of a lane when its receiver leaves or dies:
    "reset", its sender hears PeerGone, and `reset` tells how many messages are lost; "resume", it notices nothing but a
    delay, and the next receiver goes on (see `receiver`), at some 100 nanoseconds a message; "fail", the next receiver
    goes on as well, but with what the last one had not taken: the rest it gives up. `max_attempts`: how often a message
    is received before it is given up; None, until it is done; "fail" is "resume" with 1.

    Raises ValueError for more than 64 lanes, and what `launch` raises.
    """
    if restart not in RESTARTS:
        raise ValueError(f"restart is one of {', '.join(RESTARTS)}, not {restart!r}")
    if restart == "fail":
        if max_attempts not in {None, 1}:
            raise ValueError(f"where receivers fail, a message is received once, not {max_attempts} times")
        restart, max_attempts = "resume", 1
    if senders < 1 or receivers < 1 or senders * receivers > MAX_DEVICES:
        raise ValueError(f"a channel has 1 to {MAX_DEVICES} lanes, not {senders} x {receivers}")
    queue = QueueSpec(size, buffer_bytes)
    return launch(
        name,
        [
            DeviceSpec(lane, spec.VQSHM_ID_LANE, (queue,), config_bytes=0, restart=restart, max_attempts=max_attempts)
            for lane in lane_names(senders, receivers)
        ],
        notify=notify,
        memory=memory,
        hints=hints,
        timeout=timeout,
    )


def lane_names(senders: int, receivers: int) -> list[str]:
    """The devices of a channel."""
    if senders == receivers == 1:
        return [ONLY_LANE]
    return [f"s{sender}r{receiver}" for sender in range(senders) for receiver in range(receivers)]


def lanes_of(region: str) -> list[list[str]]:
    """The lanes of an existing channel: one list for each sender, in the order of the receivers.

    Raises NotFound if there is no such region, or it is no channel.
    """
    fd, _, plan = names.open_plan(region)
    fd.close()
    table: dict[int, dict[int, str]] = {}
    for device in plan.devices:
        match = _LANE.fullmatch(device.name)
        if device.device_id != spec.VQSHM_ID_LANE or (match is None and device.name != ONLY_LANE):
            raise NotFound(f"region {region!r} is no channel: it has a device {device.name!r}", name=region)
        sender, receiver = map(int, match.groups()) if match else (0, 0)
        table.setdefault(sender, {})[receiver] = device.name
    return [[row[receiver] for receiver in sorted(row)] for _, row in sorted(table.items())]


def check_is_lane(region: str, device: DevicePlan) -> None:
    """Raise RuleError for a device that is no lane."""
    if device.device_id != spec.VQSHM_ID_LANE or len(device.queues) != 1:
        raise RuleError(f"{region}/{device.name} is of device type {device.device_id:#x}, no lane")
    if device.restart == "fail":
        raise RuleError(
            f"{region}/{device.name} is to fail when its receiver ends; for a lane that is resume, with max_attempts=1"
        )
