"""Streams: messages one way, in every mode, and objects."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vqshm.bench import messages as content
from vqshm.bench.messages import Corrupt
from vqshm.bench.roles.base import Peers, Plan, Role, clock

if TYPE_CHECKING:
    from vqshm.bench.peers.base import Peer


def send_pool(peers: Peers, index: int, plan: Plan) -> Role:
    """Send the pool again and again for `plan["seconds"]`, then the end."""
    peer = peers[0]
    pool = content.pool(peer.size, index)
    send = peer.sender(index)
    units: list[Any] = list(pool)
    if peer.mode == "batch":
        units = content.batches(pool)
    elif peer.mode == "reserve":
        units = [message[:16] for message in pool]
    in_a_turn = content.BATCH * len(units) if peer.mode == "batch" else len(units)
    yield {}
    cpu, end, sent = time.process_time(), clock() + plan["seconds"], 0
    while clock() < end:
        for unit in units:
            send(unit)
        sent += in_a_turn
    last = content.end(peer.size, sent, index)
    for _ in range(plan.get("ends", 1)):
        send([last] if peer.mode == "batch" else last[:16] if peer.mode == "reserve" else last)
    peer.flush()
    result = {"sent": sent, "cpu": time.process_time() - cpu, "counts": peer.counts()}
    if not plan.get("ends", 1):
        peer.close()  # it is the end that tells receivers that all has been sent
    yield result


def send_round(peers: Peers, index: int, plan: Plan) -> Role:  # noqa: ARG001 - every role is called alike
    """As `send_pool`, from one process into each of several lanes in turn, each with a pool and an end of its own."""
    peer = peers[0]
    lanes = range(peer.senders)
    sends = [peer.sender(lane) for lane in lanes]
    turn = list(zip(*(content.pool(peer.size, lane) for lane in lanes), strict=True))
    yield {}
    cpu, end, sent = time.process_time(), clock() + plan["seconds"], 0
    while clock() < end:
        for units in turn:
            for send, unit in zip(sends, units, strict=True):
                send(unit)
        sent += len(turn)
    for lane in lanes:
        sends[lane](content.end(peer.size, sent, lane))
    peer.flush()
    yield {"sent": sent * peer.senders, "cpu": time.process_time() - cpu, "counts": peer.counts()}


def receive_pool(peers: Peers, index: int, plan: Plan) -> Role:  # noqa: ARG001 - every role is called alike
    """Receive and check until the end; the nanoseconds per message, without the first turn of the pool."""
    peer = peers[0]
    recv = peer.receiver(index)
    loop = {"single": _receive_bytes, "batch": _receive_lists}.get(peer.mode, _receive_views)
    yield {}
    cpu = time.process_time()
    counted, seconds, total = loop(peer, recv)
    if counted <= 0:
        raise Corrupt(f"only {total} messages came: too few to measure")
    yield {
        "received": total,
        "nanoseconds": seconds / counted * 1e9,
        "cpu": time.process_time() - cpu,
        "counts": peer.counts(),
    }


Counted = tuple[int, float, int]  # messages in the time that counts, that time in seconds, messages in all


def _receive_bytes(peer: Peer, recv: Callable[[], Any]) -> Counted:
    pool = content.pool(peer.size)
    small = peer.size <= content.SMALL
    first, rest = pool[0], pool[1:]
    matches = content.matches
    total = turns = counted_from = 0
    start = 0.0
    while True:
        message = recv()
        if message != first if small else not matches(message, first, full=False):
            break
        if small:
            for want in rest:
                if recv() != want:
                    raise Corrupt(f"a message behind number {total} is not the one sent")
        else:
            turns += 1
            for want in rest:
                if not matches(recv(), want, full=want is pool[-1] and turns % 8 == 1):
                    raise Corrupt(f"a message behind number {total} is not the one sent")
        total += len(pool)
        if not counted_from:
            start, counted_from = clock(), total
    seconds = clock() - start
    _check_total(message, total)
    return total - counted_from, seconds, total


def _receive_lists(peer: Peer, recv: Callable[[], Any]) -> Counted:
    pool = content.pool(peer.size)
    small, many = peer.size <= content.SMALL, len(pool)
    expected = pool * (1 + -(-4096 // many))  # a list of any length is a slice of it
    matches = content.matches
    total = counted_from = 0
    start = 0.0
    while True:
        got = recv()
        place = total % many
        want = expected[place : place + len(got)]
        if got != want if small else not all(map(_matches_stamps, got, want)):
            break
        if not small and total % (64 * many) == 0 and not matches(got[0], want[0], full=True):
            raise Corrupt(f"message {total} is not the one sent")
        total += len(got)
        if not counted_from:
            start, counted_from = clock(), total
    seconds = clock() - start
    if got[:-1] != want[: len(got) - 1]:
        raise Corrupt(f"a message behind number {total} is not the one sent")
    total += len(got) - 1
    _check_total(got[-1], total)
    return total - counted_from, seconds, total


def _matches_stamps(message: Any, want: bytes) -> bool:
    return content.matches(message, want, full=False)


def _receive_views(peer: Peer, recv: Callable[[], Any]) -> Counted:
    pool = content.pool(peer.size)
    head, release, tail = content.HEAD.unpack_from, peer.release, peer.size - 8
    stamps = [head(message) for message in pool]
    large, filled = peer.size > content.SMALL, peer.mode == "view"
    total = turns = counted_from = 0
    start = 0.0
    while True:
        for stamp in stamps:
            view = recv()
            if head(view) != stamp or (large and head(view, tail) != stamp):
                break
            if filled and stamp is stamps[-1] and turns % 8 == 0 and bytes(view) != pool[-1]:
                raise Corrupt(f"a message behind number {total} is not the one sent")
            del view
            release()
        else:
            turns += 1
            total += len(pool)
            if not counted_from:
                start, counted_from = clock(), total
            continue
        break
    seconds = clock() - start
    if stamp is not stamps[0]:
        raise Corrupt(f"a message behind number {total} is not the one sent")
    last = bytes(view[:16])
    del view
    release()
    _check_total(last, total)
    return total - counted_from, seconds, total


def _check_total(last: Any, total: int) -> None:
    sent = content.announced(last, total)
    if sent != total:
        raise Corrupt(f"{sent} messages were sent, {total} came")


def send_objects(peers: Peers, index: int, plan: Plan) -> Role:
    """Send small dicts for `plan["seconds"]`, then their number."""
    peer = peers[0]
    things = content.objects()
    send = peer.object_sender(index)
    yield {}
    cpu, end, sent = time.process_time(), clock() + plan["seconds"], 0
    while clock() < end:
        for thing in things:
            send(thing)
        sent += len(things)
    send({"id": -1, "total": sent})
    peer.flush()
    yield {"sent": sent, "cpu": time.process_time() - cpu}


def receive_objects(peers: Peers, index: int, plan: Plan) -> Role:  # noqa: ARG001 - every role is called alike
    """Receive them: the order of all, the whole content of one in each turn, and the number in the end."""
    peer = peers[0]
    things = content.objects()
    first, rest = things[0], [thing["id"] for thing in things[1:]]
    recv = peer.object_receiver(index)
    yield {}
    cpu, start, total, counted_from = time.process_time(), 0.0, 0, 0
    while (thing := recv()) == first:
        for number in rest:
            thing = recv()
            if thing["id"] != number:
                raise Corrupt(f"object {thing['id']} came where {number} was due")
        if thing != things[-1]:
            raise Corrupt(f"object {thing['id']} has another content than was sent")
        total += len(things)
        if not counted_from:
            start, counted_from = clock(), total
    seconds = clock() - start
    if thing.get("total") != total or total == counted_from:
        raise Corrupt(f"{total} objects came; behind them: {thing}")
    nanoseconds = seconds / (total - counted_from) * 1e9
    yield {"received": total, "nanoseconds": nanoseconds, "cpu": time.process_time() - cpu}
