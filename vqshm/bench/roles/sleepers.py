"""Sleepers: one message now and then, to somebody who waits for it."""

from __future__ import annotations

import time

from vqshm.bench import messages as content
from vqshm.bench.messages import Corrupt
from vqshm.bench.roles.base import Peers, Plan, Role, clock


def send_one(peers: Peers, index: int, plan: Plan) -> Role:  # noqa: ARG001 - every role is called alike
    """Send one message in each step."""
    peer = peers[0]
    message = content.pool(peer.size)[0]
    send = peer.sender(index)
    yield {}
    while True:
        send(message)
        peer.flush()
        yield {}


def receive_one(peers: Peers, index: int, plan: Plan) -> Role:  # noqa: ARG001 - every role is called alike
    """Receive one message in each step."""
    peer = peers[0]
    want = content.pool(peer.size)[0]
    recv = peer.receiver(index)
    yield {}
    while True:
        if recv() != want:
            raise Corrupt("the message is not the one sent")
        yield {}


def send_seldom(peers: Peers, index: int, plan: Plan) -> Role:
    """Send a message to somebody who sleeps, several times; when each of them was sent."""
    peer = peers[0]
    pool = content.pool(peer.size)
    send = peer.sender(index)
    yield {}
    times = []
    for number in range(plan["wakes"]):
        time.sleep(plan["gap"])  # what is measured is waking from sleep
        times.append(clock())
        send(pool[number % len(pool)])
    peer.flush()
    yield {"times": times}


def receive_seldom(peers: Peers, index: int, plan: Plan) -> Role:
    """Receive them; when each of them came."""
    peer = peers[0]
    pool = content.pool(peer.size)
    recv = peer.receiver(index)
    carries = peer.group != "eventfd"
    yield {}
    times = []
    for number in range(plan["wakes"]):
        message = recv()
        times.append(clock())
        if carries and message != pool[number % len(pool)]:
            raise Corrupt(f"message {number} is not the one sent")
    yield {"times": times}
