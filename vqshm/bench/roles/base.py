"""Base: what all roles share."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqshm.bench.peers.base import Peer

Role = Generator[dict[str, Any], None, None]
Peers = tuple["Peer", ...]
Plan = dict[str, Any]

clock = time.perf_counter  # of the whole machine: what one process notes, another one can compare
