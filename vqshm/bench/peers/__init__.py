"""Peers: an adapter for each way to move a message between Python processes.

    base        what an adapter is
    ours        vqshm            standard   the standard library
    packages    pyzmq, faster-fifo, hyperq, tachyon-ipc             iceoryx    iceoryx2

A package that is not installed is skipped by name; one that fails makes a row that says why.
"""

from __future__ import annotations

from vqshm.bench.peers.base import Mode, Peer
from vqshm.bench.peers.iceoryx import ICEORYX
from vqshm.bench.peers.ours import OURS
from vqshm.bench.peers.packages import PACKAGES
from vqshm.bench.peers.standard import STANDARD, Eventfd

__all__ = ["OTHERS", "OURS", "Eventfd", "Mode", "Peer", "groups"]

OTHERS: tuple[type[Peer], ...] = (*STANDARD, *PACKAGES, *ICEORYX)


def groups() -> list[str]:
    """What `--vs` understands."""
    return list(dict.fromkeys(peer.group for peer in OTHERS))
