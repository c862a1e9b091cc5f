"""Trips: there and back."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING, Any

from vqshm.bench import messages as content
from vqshm.bench.messages import Corrupt

if TYPE_CHECKING:
    from vqshm.bench.roles.base import Peers, Plan, Role

WARM = 200  # round trips that do not count
MOST = 400_000  # round trips that are remembered


def ask(peers: Peers, index: int, plan: Plan) -> Role:
    """Send a message through the first transport, get it back through the second one, and note how long it took."""
    there, back = peers
    send, recv, release = there.sender(index), back.receiver(index), back.release
    pool = content.pool(there.size)

    def exchange(message: bytes) -> bytes:
        send(message)
        answer = recv()
        answer = answer if type(answer) is bytes else bytes(answer)
        release()
        return answer

    yield {}
    yield _round_trips(_plainly(send, recv) if back.mode == "single" else exchange, pool, plan)
    send(content.end(there.size, 0))
    there.flush()
    yield {}


def _plainly(send: Callable[[Any], Any], recv: Callable[[], Any]) -> Callable[[bytes], Any]:
    def exchange(message: bytes) -> Any:
        send(message)
        return recv()

    return exchange


def answer(peers: Peers, index: int, plan: Plan) -> Role:  # noqa: ARG001 - every role is called alike
    """Send back what comes, until the end comes. The step is over at once; the answers go on behind it."""
    there, back = peers
    recv, release = there.receiver(index), there.release
    send, view = back.sender(index), there.mode == "view"
    yield {}
    while True:
        message = recv()
        if content.is_end(message):
            break
        send(message)
        if view:
            del message
            release()
    yield {}


def call(peers: Peers, index: int, plan: Plan) -> Role:
    """As `ask`, by request and response over one chain."""
    peer: Any = peers[0]
    exchange = peer.caller(index)
    yield {}
    yield _round_trips(exchange, content.pool(peer.size), plan)
    peer.close()  # which ends the server
    yield {}


def serve(peers: Peers, index: int, plan: Plan) -> Role:  # noqa: ARG001 - every role is called alike
    """Answer each call with what came, until the caller leaves."""
    peer: Any = peers[0]
    answer_all = peer.server(index)
    yield {}
    answer_all()
    yield {}


def _round_trips(exchange: Callable[[bytes], Any], pool: list[bytes], plan: Plan) -> dict[str, Any]:
    now = time.perf_counter_ns
    following = cycle(pool).__next__
    times: list[int] = []
    note = times.append
    for _ in range(WARM):
        message = following()
        if exchange(message) != message:
            raise Corrupt("the answer is not the question")
    cpu, end = time.process_time(), now() + int(plan["seconds"] * 1e9)
    after = 0
    while after < end and len(times) < MOST:
        message = following()
        before = now()
        answered = exchange(message)
        after = now()
        if answered != message:
            raise Corrupt("the answer is not the question")
        note(after - before)
    cpu = time.process_time() - cpu
    times.sort()
    last = len(times) - 1
    quantiles = {name: times[int(last * part)] / 1e3 for name, part in QUANTILES}
    return {**quantiles, "trips": len(times), "cpu": cpu, "histogram": histogram(times)}


QUANTILES = (("min", 0.0), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0))


def histogram(times: list[int]) -> list[list[float]]:
    """[upper bound in microseconds, how many] for nanoseconds in ascending order; four bars for each doubling."""
    bars: list[list[float]] = []
    bound = 2.0**5
    for nanoseconds in times:
        if nanoseconds > bound or not bars:
            while nanoseconds > bound:
                bound *= 2**0.25
            bars.append([bound / 1e3, 0])
        bars[-1][1] += 1
    return bars
