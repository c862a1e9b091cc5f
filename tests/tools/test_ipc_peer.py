"""The adapter for another benchmark speaks its dialect: here is a small benchmark that speaks it, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "ipc_peer.py"

BENCH = """
import importlib.util, multiprocessing, sys

CTX = multiprocessing.get_context("spawn")
PEERS = {}

class Peer:
    name, mode, fanout_kind = "?", "bytes", "work"
    def __init__(self, size, depth, n_tx=1, n_rx=1, tag="x"):
        self.size, self.depth, self.n_tx, self.n_rx, self.tag = size, depth, n_tx, n_rx, tag
    def obj_tx(self, i):
        import pickle
        send = self.tx(i)
        return lambda o: send(pickle.dumps(o))

def peer(cls):
    PEERS[cls.name] = cls
    return cls

def load_plugin(path):
    spec = importlib.util.spec_from_file_location("some_plugin", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.modules.setdefault("ipc_bench", sys.modules[__name__])
    spec.loader.exec_module(module)

MESSAGES = [bytes([n]) * 100 for n in range(50)]

def child(peer, role, plugin, pipe):
    load_plugin(plugin)
    if role == "tx":
        send = peer.tx(0)
        if peer.mode == "batch":
            send(MESSAGES)
        else:
            for message in MESSAGES:
                send(message)
        peer.flush()
    else:
        got = []
        recv = peer.rx(0)
        recv, release = recv if peer.mode == "view" else (recv, lambda: None)
        while len(got) < len(MESSAGES):
            got += [bytes(m) for m in recv()] if peer.mode == "batch" else [bytes(recv())]
            release()
        pipe.send(got)
    pipe.recv()
    peer.close()

if __name__ == "__main__":
    sys.modules.setdefault("ipc_bench", sys.modules["__main__"])
    load_plugin(sys.argv[1])
    end = PEERS[sys.argv[2]](100, 16)
    end.setup()
    pairs = [CTX.Pipe() for _ in range(2)]
    children = [
        CTX.Process(target=child, args=(end, role, sys.argv[1], theirs), daemon=True)
        for role, (_, theirs) in zip(("rx", "tx"), pairs)
    ]
    for process in children:
        process.start()
    assert pairs[0][0].poll(60), "nothing came"
    assert pairs[0][0].recv() == MESSAGES
    for ours, _ in pairs:
        ours.send("bye")
    for process in children:
        process.join(60)
        assert process.exitcode == 0
    end.teardown()
    print(sorted(PEERS), end.extra_pids())
"""


@pytest.fixture
def bench(tmp_path):
    script = tmp_path / "ipc_bench.py"
    script.write_text(BENCH)

    def run(flavour: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(script), str(TOOL), flavour],
            env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run


@pytest.mark.parametrize("flavour", ["vqshm", "vqshm [batch]", "vqshm [view]", "vqshm [reserve]"])
def test_messages_arrive_in_every_flavour(bench, flavour):
    result = bench(flavour)
    assert result.returncode == 0, result.stderr
    names = "['vqshm', 'vqshm [batch]', 'vqshm [broadcast]', 'vqshm [reserve]', 'vqshm [view]'] []"
    assert result.stdout.strip() == names
