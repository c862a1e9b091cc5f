#!/usr/bin/env python3
"""Runs recorded scenarios against our queue and compares every answer with the one `virtio-queue` gave.

    python tools/conformance.py FILE.jsonl[.gz] … [--core pure|compiled|both] [--group PREFIX] [--verbose]

A file has one JSON object per line: a memory map, a queue configuration, a list of operations, and what the Rust crate
answered. Our queue runs in seed policy. Prints the names that fail and the closing line `N passed, M failed`; with
`--core both` each core closes with such a line, and a last one sums them up. Exit status 1 if any failed, 2 if it could
not run.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

try:
    import vqshm
except ModuleNotFoundError:  # not installed: run the checkout this file lies in, interpreted
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    import vqshm

from vqshm.errors import InvalidMaxSize, ShortBuffer, VqshmError
from vqshm.memory import GuestMemory
from vqshm.ring import Descriptor, DescriptorChain, PackedDescriptor, Queue, QueueState

MANY_DESCRIPTORS = 40
MANY_HEADS = 64


class Player:
    """One scenario: its memory, its queue, and one method per operation."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        self.buffers = [(start, bytearray(size)) for start, size in scenario["regions"]]
        self.memory = GuestMemory(self.buffers)
        for address, data in scenario["writes"]:
            self.memory.write(address, bytes.fromhex(data))
        self.held: dict[str, Any] = {}
        config = scenario["queue"]
        self.queue = Queue(config["max_size"])
        self.queue.set_size(config["size"])
        for area, setter in (
            ("desc", self.queue.set_desc_table_address),
            ("avail", self.queue.set_avail_ring_address),
            ("used", self.queue.set_used_ring_address),
        ):
            setter(config[area] & 0xFFFF_FFFF, config[area] >> 32)
        self.queue.set_event_idx(config["event_idx"])
        self.queue.set_next_avail(config["next_avail"])
        self.queue.set_next_used(config["next_used"])
        self.queue.set_ready(config["ready"])

    def play(self, op: list[Any]) -> Any:
        """The answer to one operation, in the form of the file."""
        name, *args = op
        try:
            answer = getattr(self, f"op_{name}")(*args)
        except VqshmError as error:
            return {"err": _name(error)}
        return "ok" if answer is None else answer

    def final(self) -> dict[str, Any]:
        """Digest of all memory and both positions."""
        digest = hashlib.sha256()
        for _, buffer in self.buffers:
            digest.update(buffer)
        digest.update(struct.pack("<HH", self.queue.next_avail, self.queue.next_used))
        return {
            "hash": digest.hexdigest()[:16],
            "next_avail": self.queue.next_avail,
            "next_used": self.queue.next_used,
        }

    # -- state and configuration ---------------------------------------------------------------------------------------

    def op_is_valid(self) -> bool:
        return self.queue.is_valid(self.memory)

    def op_set_size(self, size: int) -> int:
        self.queue.set_size(size)
        return self.queue.size

    def op_try_set_size(self, size: int) -> None:
        self.queue.try_set_size(size)

    def op_set_desc_table_address(self, low: int | None, high: int | None) -> int:
        self.queue.set_desc_table_address(low, high)
        return self.queue.desc_table

    def op_set_avail_ring_address(self, low: int | None, high: int | None) -> int:
        self.queue.set_avail_ring_address(low, high)
        return self.queue.avail_ring

    def op_set_used_ring_address(self, low: int | None, high: int | None) -> int:
        self.queue.set_used_ring_address(low, high)
        return self.queue.used_ring

    def op_try_set_desc_table_address(self, address: int) -> None:
        self.queue.try_set_desc_table_address(address)

    def op_try_set_avail_ring_address(self, address: int) -> None:
        self.queue.try_set_avail_ring_address(address)

    def op_try_set_used_ring_address(self, address: int) -> None:
        self.queue.try_set_used_ring_address(address)

    def op_set_ready(self, ready: bool) -> None:  # noqa: FBT001 - positional in the file
        self.queue.set_ready(ready)

    def op_set_event_idx(self, enabled: bool) -> None:  # noqa: FBT001 - positional in the file
        self.queue.set_event_idx(enabled)

    def op_set_next_avail(self, position: int) -> None:
        self.queue.set_next_avail(position)

    def op_set_next_used(self, position: int) -> None:
        self.queue.set_next_used(position)

    def op_go_to_previous_position(self) -> int:
        self.queue.go_to_previous_position()
        return self.queue.next_avail

    def op_reset(self) -> None:
        self.queue.reset()

    def op_state(self) -> dict[str, Any]:
        return self.queue.state().as_map()

    def op_load_state(self, values: dict[str, Any]) -> None:
        self.queue = Queue.from_state(QueueState.from_map(values))

    def op_roundtrip(self) -> None:
        self.op_load_state(self.op_state())

    # -- rings ---------------------------------------------------------------------------------------------------------

    def op_avail_idx(self) -> int:
        return self.queue.avail_idx(self.memory)

    def op_used_idx(self) -> int:
        return self.queue.used_idx(self.memory)

    def _popped(self, kind: str) -> Any:
        chain = self.queue.pop_descriptor_chain(self.memory)
        return _Null if chain is None else {"head": chain.head_index, **_listing(_only(chain, kind))}

    def op_pop(self) -> Any:
        return self._popped("all")

    def op_pop_readable(self) -> Any:
        return self._popped("readable")

    def op_pop_writable(self) -> Any:
        return self._popped("writable")

    def op_hold(self, slot: str) -> Any:
        chain = self.queue.pop_descriptor_chain(self.memory)
        if chain is None:
            return _Null
        self.held[slot] = chain.walk()
        return chain.head_index

    def op_next(self, slot: str) -> Any:
        if slot not in self.held:
            return "no-chain"
        descriptor = next(self.held[slot], None)
        return _Null if descriptor is None else _fields(descriptor)

    def op_dup(self, slot: str, target: str) -> Any:
        if slot not in self.held:
            return "no-chain"
        self.held[target] = self.held[slot].copy()
        return None

    def _rest(self, slot: str, kind: str) -> Any:
        return _listing(_only(self.held.pop(slot), kind)) if slot in self.held else "no-chain"

    def op_rest(self, slot: str) -> Any:
        return self._rest(slot, "all")

    def op_rest_readable(self, slot: str) -> Any:
        return self._rest(slot, "readable")

    def op_rest_writable(self, slot: str) -> Any:
        return self._rest(slot, "writable")

    def op_iter_all(self) -> list[Any]:
        return [_chain(chain) for chain in self.queue.iter(self.memory)]

    def op_iter_heads(self) -> Any:
        iterator = self.queue.iter(self.memory)
        heads = list(iter(iterator.next_head, -1))
        if len(heads) <= MANY_HEADS:
            return heads
        return {"count": len(heads), "digest": _digest(struct.pack(f"<{len(heads)}H", *heads))}

    def op_iter(self, steps: list[list[Any]]) -> list[Any]:
        iterator = self.queue.iter(self.memory)
        answers: list[Any] = []
        for name, *args in steps:
            answer: Any = None
            if name == "next":
                chain = next(iterator, None)
                answer = None if chain is None else _chain(chain)
            elif name == "head":
                head = iterator.next_head()
                answer = None if head < 0 else head
            elif name == "back":
                self.queue.go_to_previous_position()
            elif name == "write":
                answer = self.play(["write", *args])
            answers.append(answer)
        return answers

    def op_add_used(self, head: int, written: int) -> None:
        self.queue.add_used(self.memory, head, written)

    def op_enable_notification(self) -> bool:
        return self.queue.enable_notification(self.memory)

    def op_disable_notification(self) -> None:
        self.queue.disable_notification(self.memory)

    def op_needs_notification(self) -> bool:
        return self.queue.needs_notification(self.memory)

    # -- streams -------------------------------------------------------------------------------------------------------

    def _stream(self, make: str, done: str, steps: list[list[Any]]) -> Any:
        chain = self.queue.pop_descriptor_chain(self.memory)
        if chain is None:
            return _Null
        try:
            parts = [getattr(chain, make)()]
        except VqshmError:
            return {"head": chain.head_index, "err": "GuestMemoryError"}
        available = parts[0].available_bytes
        active = 0
        answers: list[Any] = []
        for name, *args in steps:
            part = parts[active]
            try:
                if name == "stat":
                    answer: Any = [part.available_bytes, getattr(part, done)]
                elif name == "split":
                    parts.append(part.split_at(args[0]))
                    answer = len(parts) - 1
                elif name == "use":
                    answer = None if args[0] < len(parts) else "no-part"
                    active = args[0] if answer is None else active
                elif name in {"read", "read_exact"}:
                    answer = getattr(part, name)(args[0]).hex()
                else:
                    answer = getattr(part, name)(bytes.fromhex(args[0]))
                    answer = "ok" if answer is None else answer
            except ShortBuffer:
                answer = {"err": "UnexpectedEof" if name == "read_exact" else "WriteZero"}
            except VqshmError as error:
                answer = {"err": _name(error)}
            answers.append(answer)
        return {"head": chain.head_index, "avail": available, "steps": answers}

    def op_reader(self, steps: list[list[Any]]) -> Any:
        return self._stream("reader", "bytes_read", steps)

    def op_writer(self, steps: list[list[Any]]) -> Any:
        return self._stream("writer", "bytes_written", steps)

    # -- the rest ------------------------------------------------------------------------------------------------------

    def op_write(self, address: int, data: str) -> None:
        self.memory.write(address, bytes.fromhex(data))

    def op_read(self, address: int, count: int) -> str:
        return self.memory.read(address, count).hex()

    def op_desc(self, data: str) -> dict[str, Any]:
        d = Descriptor.from_bytes(bytes.fromhex(data))
        return {"addr": d.addr, "len": d.len, "flags": d.flags, "next": d.next, **_bits(d)}

    def op_packed_desc(self, data: str) -> dict[str, Any]:
        d = PackedDescriptor.from_bytes(bytes.fromhex(data))
        return {**d._asdict(), **_bits(d)}


class _Null:
    """An answer that is JSON null, where None already means "ok"."""


def _name(error: VqshmError) -> str:
    return type(error).__name__


def _bits(d: Descriptor | PackedDescriptor) -> dict[str, bool]:
    return {"write": d.is_write_only, "has_next": d.has_next, "indirect": d.refers_to_indirect_table}


def _fields(d: Descriptor) -> list[int]:
    return [d.addr, d.len, d.flags, d.next]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _only(descriptors: Iterable[Descriptor], kind: str) -> list[Descriptor]:
    return [d for d in descriptors if kind == "all" or d.is_write_only == (kind == "writable")]


def _listing(descriptors: list[Descriptor]) -> dict[str, Any]:
    fields = [_fields(d) for d in descriptors]
    if len(fields) <= MANY_DESCRIPTORS:
        return {"descs": fields}
    digest = _digest(b"".join(d.to_bytes() for d in descriptors))
    return {"count": len(fields), "first": fields[:4], "last": fields[-4:], "digest": digest}


def _chain(chain: DescriptorChain) -> dict[str, Any]:
    return {"head": chain.head_index, **_listing(list(chain))}


def run(scenario: dict[str, Any]) -> dict[str, Any]:
    """Everything our queue answers to a scenario."""
    try:
        player = Player(scenario)
    except InvalidMaxSize:
        return {"init": {"err": "InvalidMaxSize"}, "ops": [], "final": None}
    answers = [player.play(op) for op in scenario["ops"]]
    return {"init": "ok", "ops": [None if a is _Null else a for a in answers], "final": player.final()}


def load(path: Path) -> Iterator[dict[str, Any]]:
    """The scenarios of a file, gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def first_difference(case: dict[str, Any], got: dict[str, Any]) -> str:
    """Where our answers leave the recorded ones, in a line."""
    want = case["expected"]
    for i, (w, g) in enumerate(zip(want["ops"], got["ops"], strict=False)):
        if w != g:
            op = json.dumps(case["scenario"]["ops"][i])[:120]
            return f"op {i} {op}: want {json.dumps(w)[:160]}, got {json.dumps(g)[:160]}"
    return f"want init {want['init']} final {want['final']}, got init {got['init']} final {got['final']}"


def play_files(paths: list[Path], group: str, *, verbose: bool) -> int:
    """Run all, print what fails and the closing line; the exit status."""
    passed = failed = 0
    for path in paths:
        for case in load(path):
            if group not in case["name"]:
                continue
            got = run(case["scenario"])
            if json.dumps(got, sort_keys=True) == json.dumps(case["expected"], sort_keys=True):  # true is not 1
                passed += 1
            else:
                failed += 1
                print(f"FAILED {case['name']}" + (f"  {first_difference(case, got)}" if verbose else ""))
    print(f"core: {vqshm.core.kind()} ({vqshm.core.reason()})")
    print(_closing_line(passed, failed))
    return 1 if failed or not passed else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--core", choices=("pure", "compiled", "both"), help="default: the core that is installed")
    parser.add_argument("--group", default="", help="only scenarios whose name contains this")
    parser.add_argument("--verbose", action="store_true", help="say where the answers differ")
    args = parser.parse_args()
    for path in args.files:
        if not path.is_file():
            parser.error(f"no such file: {path}")
    if args.core is None:
        return play_files(args.files, args.group, verbose=args.verbose)
    cores = ("pure", "compiled") if args.core == "both" else (args.core,)
    if "compiled" in cores and (missing := _no_compiled_core()):
        print(f"no compiled core here ({missing})", file=sys.stderr)
        return 2
    outcomes = [_in_fresh_interpreter(core, args) for core in cores]
    if len(outcomes) > 1:
        print("both cores together:")
        print(_closing_line(sum(o.passed for o in outcomes), sum(o.failed for o in outcomes)))
    return max(o.status for o in outcomes)


class Outcome(NamedTuple):
    """What one run came to."""

    status: int
    passed: int = 0
    failed: int = 0


def _environment(core: str) -> dict[str, str]:
    return {**os.environ, "VQSHM_PURE": "1" if core == "pure" else "0"}


def _no_compiled_core() -> str:
    """Why there is no compiled core; empty if there is one."""
    probe = subprocess.run(
        [sys.executable, "-c", "import vqshm.core as c; print(c.kind(), c.reason(), sep=': ')"],
        env=_environment("compiled"),
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.stdout.startswith("compiled"):
        return ""
    return probe.stdout.strip() or probe.stderr.strip().rpartition("\n")[2] or "no answer"


def _in_fresh_interpreter(core: str, args: argparse.Namespace) -> Outcome:
    """The core is chosen when vqshm is imported, so each gets an interpreter of its own."""
    command = [sys.executable, __file__, *map(str, args.files), "--group", args.group, *["--verbose"] * args.verbose]
    last = ""
    with subprocess.Popen(command, env=_environment(core), stdout=subprocess.PIPE, text=True) as child:
        for last in child.stdout or ():
            print(last, end="", flush=True)
    counts = re.fullmatch(_closing_line(r"(\d+)", r"(\d+)"), last.strip())
    if child.returncode not in (0, 1) or counts is None:
        print(f"the {core} core ended with status {child.returncode} and no closing line", file=sys.stderr)
        return Outcome(2)
    return Outcome(child.returncode, int(counts[1]), int(counts[2]))


def _closing_line(passed: object, failed: object) -> str:
    return f"{passed} passed, {failed} failed"


if __name__ == "__main__":
    sys.exit(main())
