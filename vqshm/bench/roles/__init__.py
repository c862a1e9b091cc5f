"""Roles: what the measuring processes do, each a generator: open, then a step, then another one (see `harness`).

    streams    one way            fans       many to one, one to many       trips    there and back
    sleepers   now and then       alone      the core without a second process

The loops stand there in full, one per mode: a call or a branch more per message would be measured, too.
"""

from vqshm.bench.roles.alone import serve_core
from vqshm.bench.roles.fans import gather, take_share
from vqshm.bench.roles.sleepers import receive_one, receive_seldom, send_one, send_seldom
from vqshm.bench.roles.streams import receive_objects, receive_pool, send_objects, send_pool, send_round
from vqshm.bench.roles.trips import answer, ask, call, serve

__all__ = [
    "answer",
    "ask",
    "call",
    "gather",
    "receive_objects",
    "receive_one",
    "receive_pool",
    "receive_seldom",
    "send_objects",
    "send_one",
    "send_pool",
    "send_round",
    "send_seldom",
    "serve",
    "serve_core",
    "take_share",
]
