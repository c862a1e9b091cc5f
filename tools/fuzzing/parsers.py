"""What reads bytes of somebody else: control messages, the manifest, payloads, saved states."""

from __future__ import annotations

from typing import Any

import msgpack

from fuzzing.feed import Feed, Script
from vqshm.errors import MissingExtra, PeerViolation, ProtocolError, RuleError
from vqshm.memory import Region
from vqshm.message import payload as payloads
from vqshm.ring import Queue, QueueState
from vqshm.transport import DeviceSpec, QueueSpec, messages, plan, read_header, read_manifest, write_manifest
from vqshm.transport.saved import pack_state, unpack_state

PLAN = plan([DeviceSpec("echo", 0x7601, (QueueSpec(16, 4096),)), DeviceSpec("net", 1, (QueueSpec(8, 1),) * 2)])


def control(data: bytes) -> list[str]:
    """A frame of the control channel: any bytes, or any body in a good header; and what was taken, sent back."""
    feed, script = Feed(data), Script()
    framed, fds = feed.upto(3), feed.pick((0, 0, 0, 1, 2, 254))
    body = feed.rest()
    frame = len(body).to_bytes(4, "little") + bytes((1, 0, fds & 0xFF, 0)) + body if framed else body
    taken = script.attempt("decode", lambda: messages.decode(frame, fds))
    if isinstance(taken, Exception):
        assert type(taken) is ProtocolError, "an error of another kind"
        assert len(str(taken)) < 1000, "an error that repeats what was sent"
        return script.lines
    again = messages.encode(taken, fds)
    assert messages.decode(again, fds) == taken, "a message that does not survive"
    return [*script.lines, repr(sorted(taken.items()))]


def manifest(data: bytes) -> list[str]:
    """The first page of a region: a good one with changes."""
    feed, script = Feed(data), Script()
    memory = bytearray(PLAN.total_bytes)
    write_manifest(Region(memory), PLAN, name="cam0", pid=4711, start_time=2**40, notify="eventfd")
    image = memory[: PLAN.manifest_bytes]
    size = feed.pick((PLAN.total_bytes, PLAN.total_bytes, PLAN.total_bytes - 4096, 0, feed.number(8)))
    while feed.more:
        at = feed.number(2) % (len(image) - 8)
        count = feed.pick((1, 2, 4, 8))
        image[at : at + count] = feed.take(count)
    found = script.attempt("manifest", lambda: read_manifest(image, size))
    if not isinstance(found, Exception):
        assert found.total_bytes == size, "a plan of another size"
        header: Any = script.attempt("header", lambda: read_header(image, size))
        again = bytearray(found.manifest_bytes)
        write_manifest(Region(again), found, **header._asdict())
        end = 128 + 64 * len(found.devices) + 16 * len(found.queues)
        assert again[:end] == image[:end], "a manifest that means something else"
    return script.lines


def payload(data: bytes) -> list[str]:
    """The payload of a message, decoded as a copy and in place."""
    script = Script()
    for name in ("decode", "in place"):
        try:
            found = payloads.decode(data) if name == "decode" else payloads.decode_in_place(memoryview(data))
        except (ProtocolError, MissingExtra) as error:  # the second: a table came, and there is no Arrow
            script.lines.append(f"{name}: {error}")
        else:
            script.lines.append(f"{name}: {type(found).__name__}")
    return script.lines


def saved(data: bytes) -> list[str]:
    """A saved queue state: any bytes, or fields packed by us."""
    feed, script = Feed(data), Script()
    if feed.upto(1):
        values: dict[str, Any] = {}
        for name in QueueState.__dataclass_fields__:
            values[name] = feed.pick((0, 1, True, False, 256, feed.number(2), feed.number(8) & ~15, -1, "x", None))
        if feed.upto(7) == 7:
            values.popitem()
        data = msgpack.packb({"vqshm": feed.pick((1, 1, 1, 2)), "queue": values})
    else:
        data = feed.rest()

    def restore() -> str:
        state = unpack_state(data)
        queue = Queue.from_state(state)
        assert queue.state() == state, "a state that changes"
        assert unpack_state(pack_state(state)) == state
        return str(state)

    found = script.attempt("restore", restore)
    assert not isinstance(found, Exception) or isinstance(found, ValueError | RuleError | PeerViolation)
    return script.lines
