"""Fans: many to one, one to many."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

from vqshm.bench import messages as content
from vqshm.bench.messages import Corrupt
from vqshm.bench.roles.base import Peers, Plan, Role, clock


def gather(peers: Peers, index: int, plan: Plan) -> Role:  # noqa: ARG001 - every role is called alike
    """Receive from several senders until each one has sent its end."""
    peer = peers[0]
    recv = peer.receiver(index)
    pools = [content.pool(peer.size, producer) for producer in range(peer.senders)]
    followings = [cycle(pool).__next__ for pool in pools]
    received = [0] * peer.senders
    ended: set[int] = set()
    yield {}
    cpu, start, done, counted = time.process_time(), 0.0, 0.0, 0
    while len(ended) < peer.senders:
        message = recv()
        producer = message[4]
        if producer < peer.senders and message == followings[producer]():
            received[producer] += 1
            start = start or clock()
            continue
        if not done:  # while all are sending, it counts
            done, counted = clock(), sum(received)
        if content.announced(message, received[producer]) != received[producer]:
            raise Corrupt(f"sender {producer} sent another number than the {received[producer]} messages that came")
        ended.add(producer)
    nanoseconds = (done - start) / max(1, counted - 1) * 1e9
    yield {"received": sum(received), "nanoseconds": nanoseconds, "cpu": time.process_time() - cpu}


def take_share(peers: Peers, index: int, plan: Plan) -> Role:
    """Receive what one of several receivers gets, until the end; then go on emptying the transport."""
    peer = peers[0]
    recv = peer.receiver(index)
    pool = content.pool(peer.size)
    got = [0] * len(pool)
    yield {}
    cpu, start, last = time.process_time(), 0.0, -1
    everything = plan["fan_out"] == "broadcast"
    message: Any
    for message in _until_end(recv):
        place = message[0]
        if place >= len(pool) or message != pool[place]:
            break
        if everything and place != (last + 1) % len(pool):
            raise Corrupt(f"message {place} of the pool came behind {last}")
        last = place
        got[place] += 1
        start = start or clock()
    else:
        message = None
    done = clock()
    total = None if message is None else content.announced(message, sum(got))
    if plan["ends"] > peer.receivers:  # they come without an order: whoever has seen one must not block the others
        peer.in_use = True
        threading.Thread(target=_empty, args=(recv,), daemon=True).start()
    yield {"got": got, "start": start, "done": done, "total": total, "cpu": time.process_time() - cpu}


def _until_end(recv: Callable[[], Any]) -> Iterator[Any]:
    while True:
        try:
            message = recv()
        except EOFError:  # the sender has left, and all has been read
            return
        yield message


def _empty(recv: Callable[[], Any]) -> None:
    with contextlib.suppress(Exception):
        while True:
            recv()
