"""What runs in the processes of soak.py, one role each, told what to do by a line of JSON; never run by hand.

Each role prints a line of JSON about every second: how far it is, its memory and descriptors; and one with `done` or
`error` at its end. It leaves by itself when its parent has gone.

A message of the soak is its number (u32), a filling, and the CRC-32 of both. The filling and the length depend on the
block that the message is in; so a message that was left in memory by an earlier one never passes for the one expected.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import mmap
import operator
import os
import random
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from struck_roles import ROLES as STRUCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqshm import Receiver

BLOCK = 512  # messages that are made and checked together
PATTERNS = 64  # fillings and lengths; the blocks go round them
WIDE = 4096  # bytes: the longest message of the last pattern, which has a bit of everything
RESIDUE = 0x2144DF1C  # the CRC-32 of anything with its own CRC-32 behind it
PATIENCE = 5.0  # seconds between two looks whether the parent still lives
PAGE = os.sysconf("SC_PAGE_SIZE")


class Wrong(Exception):
    """Something was lost, doubled, changed or out of order."""


# -- messages ----------------------------------------------------------------------------------------------------------


class Pattern:
    """The lengths and fillings of a block of messages."""

    def __init__(self, number: int, least: int, most: int) -> None:
        pick = random.Random(number)
        self.lengths = [pick.randint(least, most) for _ in range(BLOCK)]
        fillings = [pick.randbytes(length - 8) for length in self.lengths]
        self._parts: list[Any] = list(itertools.chain.from_iterable(zip(range(BLOCK), fillings, strict=True)))
        self._pack = struct.Struct("<" + "".join(f"I{length - 8}s" for length in self.lengths))
        self._split = struct.Struct("".join(f"{length - 4}s" for length in self.lengths))
        self._numbers = struct.Struct("<" + "".join(f"I{length - 4}x" for length in self.lengths))

    def make(self, first: int) -> list[bytes]:
        """The messages whose numbers begin with `first`."""
        self._parts[0::2] = range(first, first + BLOCK)
        bodies = self._split.unpack(self._pack.pack(*self._parts))
        crcs = _CRCS.pack(*map(zlib.crc32, bodies))
        return list(map(operator.add, bodies, _SPLIT_CRCS.unpack(crcs)))

    def check(self, messages: list[bytes], first: int) -> None:
        """Raise Wrong unless these are the messages whose numbers begin with `first`."""
        if (
            list(map(len, messages)) != self.lengths
            or set(map(zlib.crc32, messages)) != {RESIDUE}
            or self._numbers.unpack(b"".join(messages)) != tuple(range(first, first + BLOCK))
        ):
            raise Wrong(self._complaint(messages, first))

    def _complaint(self, messages: list[bytes], first: int) -> str:
        for number, (message, want) in enumerate(zip(messages, self.make(first), strict=True), first):
            if message != want:
                intact = len(message) >= 8 and zlib.crc32(message) == RESIDUE
                said = f"intact, of number {int.from_bytes(message[:4], 'little')}" if intact else "with a wrong CRC"
                return f"message {number}: {len(want)} bytes were sent; {len(message)} bytes came, {said}"
        return f"messages from {first} on differ"


_CRCS = struct.Struct(f"<{BLOCK}I")
_SPLIT_CRCS = struct.Struct("4s" * BLOCK)


def patterns() -> list[Pattern]:
    """All of them: messages of 8 to 64 bytes, and in one block of 64 of up to 4 KiB."""
    return [Pattern(number, 8, 64) for number in range(PATTERNS - 1)] + [Pattern(PATTERNS, 8, WIDE)]


# -- reporting ---------------------------------------------------------------------------------------------------------


class Reporter:
    """Says now and then how far this process is."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._next = 0.0

    def due(self) -> bool:
        """Whether about a second has passed since the last line."""
        return time.monotonic() >= self._next

    def say(self, **facts: Any) -> None:
        """Print a line, with memory and descriptors; leave if there is nobody to read it."""
        self._next = time.monotonic() + 1.0
        if os.getppid() != self._parent:
            sys.exit(3)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        facts |= {"rss": pages * PAGE, "fds": len(os.listdir("/proc/self/fd")) - 1, "cpu": time.process_time()}  # noqa: PTH208 - not a Path per descriptor
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()


# -- roles -------------------------------------------------------------------------------------------------------------


def send(reporter: Reporter, order: dict[str, Any]) -> None:
    """Send `blocks` blocks through the lane of a region, or for so many `seconds`."""
    from vqshm import Sender, core  # noqa: PLC0415 - this role's

    kinds = patterns()
    with Sender.attach(order["region"], timeout=60.0) as sender:
        reporter.say(core=core.kind(), messages=0)
        number, end = 0, time.monotonic() + order.get("seconds", 0)
        while number < order["blocks"] if "blocks" in order else time.monotonic() < end:
            sender.send_many(kinds[number % PATTERNS].make(number * BLOCK))
            number += 1
            if number % PATTERNS == 0 and reporter.due():
                reporter.say(messages=number * BLOCK)
        reporter.say(messages=number * BLOCK, counts=sender.counts, done=True)


def receive(reporter: Reporter, order: dict[str, Any]) -> None:
    """Receive them until `blocks` blocks or all that were sent are there, and check every one."""
    from vqshm import Receiver, core  # noqa: PLC0415 - this role's
    from vqshm.errors import EndOfMessages  # noqa: PLC0415 - likewise

    kinds = patterns()
    with Receiver.attach(order["region"], timeout=60.0) as receiver:
        reporter.say(core=core.kind(), messages=0)
        number = 0
        while number < order.get("blocks", math.inf):
            got = next_block(receiver, reporter, number)
            if not got:
                break
            kinds[number % PATTERNS].check(got, number * BLOCK)
            number += 1
            if number % PATTERNS == 0 and reporter.due():
                reporter.say(messages=number * BLOCK)
        else:
            with contextlib.suppress(EndOfMessages):
                raise Wrong(f"behind the last one came {receiver.recv_many(1, 10 * PATIENCE)}")
        reporter.say(messages=number * BLOCK, counts=receiver.counts, done=True)


def next_block(receiver: Receiver, reporter: Reporter, number: int) -> list[bytes]:
    """Its messages; none behind the last one. Raises Wrong if they end within."""
    from vqshm.errors import EndOfMessages, NoMessage  # noqa: PLC0415 - of the receiver

    got: list[bytes] = []
    while len(got) < BLOCK:
        try:
            got += receiver.recv_many(BLOCK - len(got), PATIENCE)
        except NoMessage:  # the parent judges how long is too long
            reporter.say(messages=number * BLOCK + len(got))
        except EndOfMessages:
            if got:
                raise Wrong(f"message {number * BLOCK + len(got)} did not come, nor any behind it") from None
            break
    return got


RACE_BASE = 0x1_0000  # guest address of the queue for races
RACE_SIZE = 16  # descriptors
TURN = 5_000  # rounds between two looks at the clock


def race(reporter: Reporter, order: dict[str, Any]) -> None:
    """Race `rounds` rounds as driver or device; see vqshm/bench/races.py."""
    from vqshm import core  # noqa: PLC0415 - this role's
    from vqshm.bench import races  # noqa: PLC0415 - likewise
    from vqshm.memory import GuestMemory, Region  # noqa: PLC0415 - likewise
    from vqshm.ring import QueueConfig, SplitLayout  # noqa: PLC0415 - likewise

    shared = mmap.mmap(order["memory"], 0)
    layout = SplitLayout.at(RACE_BASE, RACE_SIZE)
    guest = GuestMemory([(RACE_BASE, memoryview(shared)[races.WORDS :])])
    config = QueueConfig(layout, event_idx=order["event_idx"])
    is_driver = order["side"] == "driver"
    racer = races.Racer(
        Region(shared, 0, races.WORDS),
        races.DRIVER if is_driver else races.DEVICE,
        order["bell"],
        order["ear"],
        order["seed"],
        order["spread"],
    )
    queue: Any = config.driver(guest) if is_driver else config.device(guest)
    turn = TURN if core.kind() == "compiled" else TURN // 50
    done = 0
    while True:
        facts = {"rounds": done, "slept": racer.slept, "notified": racer.notified, "both": racer.both}
        if done == order["rounds"]:
            reporter.say(**facts, done=True)
            return
        if reporter.due():
            reporter.say(**facts, core=core.kind())
        rounds = min(turn, order["rounds"] - done)
        if is_driver:
            racer.drive(queue, layout.end, rounds)
        else:
            racer.serve(queue, rounds)
        done += rounds


ROLES: dict[str, Callable[[Reporter, dict[str, Any]], None]] = {
    "send": send,
    "receive": receive,
    "race": race,
    **STRUCK,
}


def main() -> int:
    reporter = Reporter()
    try:
        ROLES[sys.argv[1]](reporter, json.loads(sys.argv[2]))
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent shall say so
        reporter.say(error=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
