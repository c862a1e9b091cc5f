r"""vqshm as a peer of another benchmark, one that loads adapters with `--plugin` and calls its base class `Peer`.

    python ipc_bench.py run --plugin tools/ipc_peer.py --peers 'vqshm|mp\.' --scenario thr,lat,idle,fanin,fanout,obj

Flavours: "vqshm" (one call per message), "vqshm [batch]", "vqshm [view]" (looked at in place), "vqshm [reserve]"
(written in place, too), "vqshm [broadcast]" (fan-out, each receiver gets each message). What they do with vqshm is what
`vqshm bench` does; this file only speaks that benchmark's dialect.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqshm.bench.peers.ours import Vqshm, VqshmBatch, VqshmBroadcast, VqshmView

MODULE = "ipc_peer"

# The benchmark names a plugin's module as it likes; but children that are started by spawn must find the adapter's
# class before they have loaded any plugin, by the name of a file on the import path that they inherit.
_HERE = str(Path(__file__).resolve().parent)
if _HERE not in sys.path:
    sys.path.append(_HERE)
sys.modules.setdefault(MODULE, sys.modules[__name__])

_bench: Any = sys.modules.get("ipc_bench") or importlib.import_module("ipc_bench")


class VqshmPeer(_bench.Peer):  # type: ignore[misc]
    name = "vqshm"
    wait = "hybrid"
    scen = frozenset({"thr", "lat", "idle", "obj", "fanin", "fanout"})
    note = "split virtqueues in POSIX shared memory; looks for a while, then sleeps on an eventfd"
    fanout_ends = 64  # which lane an end message takes is not for the sender to say
    kind: type[Vqshm] = Vqshm
    end: Vqshm

    def setup(self) -> None:
        self.end = self.kind(self.size, self.depth, self.n_tx, self.n_rx)
        self.end.set_up()

    def teardown(self) -> None:
        self.end.tear_down()

    def extra_pids(self) -> list[int]:
        return self.end.pids()

    def tx(self, i: int) -> Callable[[Any], Any]:
        return self.end.sender(i)

    def rx(self, i: int) -> Any:
        return self.end.receiver(i)

    def flush(self) -> None:
        self.end.flush()

    def close(self) -> None:
        self.end.close()


class VqshmBatchPeer(VqshmPeer):
    name = "vqshm [batch]"
    mode = "batch"
    scen = frozenset({"thr"})
    kind = VqshmBatch


class VqshmViewPeer(VqshmPeer):
    name = "vqshm [view]"
    mode = "view"
    scen = frozenset({"thr", "lat"})
    kind = VqshmView

    def rx(self, i: int) -> Any:
        return self.end.receiver(i), self.end.release


class VqshmReservePeer(VqshmViewPeer):
    name = "vqshm [reserve]"

    def tx(self, i: int) -> Callable[[Any], Any]:
        reserve = self.end.sending(i).reserve

        def send(payload: Any) -> None:
            with reserve(len(payload)) as room:
                room[:] = payload

        return send


class VqshmBroadcastPeer(VqshmPeer):
    name = "vqshm [broadcast]"
    scen = frozenset({"fanout"})
    fanout_kind = "bcast"
    fanout_ends = 1
    kind = VqshmBroadcast


for flavour in (VqshmPeer, VqshmBatchPeer, VqshmViewPeer, VqshmReservePeer, VqshmBroadcastPeer):
    flavour.__module__ = MODULE
    _bench.peer(flavour)
