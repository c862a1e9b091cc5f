"""The long run: very many messages between two processes, every one checked; very many races to sleep; or all at once.

    python tools/pressure/soak.py --messages 1e9    a lane in batches: number and CRC-32 of each message, memory and
                                                    descriptors of all three processes sampled, and required to stay
                                                    flat
    python tools/pressure/soak.py --races 1e8       a queue with two eventfds: each side goes to sleep at a random
                                                    moment around the one at which the other side publishes; no
                                                    wake-up may be lost
    python tools/pressure/soak.py --mixed 480       for so many minutes, the messages, and beside them kill loops, one
                                                    after the other, in all their modes, each with a seed of its own
    python tools/pressure/soak.py --interrupt 1e4   a lane and a device, by both doorbells: so many exceptions of a
                                                    signal's handler in the calls of one end, and as many as come in
                                                    the other's; nothing may be lost or come twice

Prints progress, then a table; `--json FILE` writes the same with all samples. Exit status 1 if anything was lost,
changed, out of order, or grew; 130 after Ctrl-C. Nothing is left behind. The processes are those of soak_roles.py,
struck_roles.py and kill_loop.py.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import mmap
import os
import platform
import selectors
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from vqshm import DeviceSpec, QueueSpec, core, launch, open_channel
from vqshm.bench import races
from vqshm.host.coordination.launcher import same_python
from vqshm.memory import Region
from vqshm.notify.notifier import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROLES = Path(__file__).with_name("soak_roles.py")
KILL_LOOP = Path(__file__).with_name("kill_loop.py")
KILLS = 200  # in one loop
MODES = tuple(
    itertools.product(("requests", "messages"), ("reset", "resume"), ("eventfd", "semaphore"))
)  # of the loops
BLOCK = 512  # messages; as in soak_roles.py
GROWTH = 1 << 20  # bytes that a process may grow by after its first tenth
MOST = 4_000_000_000  # messages: their numbers have 32 bits
PAGE = os.sysconf("SC_PAGE_SIZE")


class Failed(Exception):
    """The run found something; the message says what."""


class Worker:
    """One of the processes, and what it has said."""

    def __init__(self, role: str, order: dict[str, Any], fds: Sequence[int] = ()) -> None:
        command, environment = same_python()
        self.role = role
        self.process = subprocess.Popen(
            [*command, str(ROLES), role, json.dumps(order)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=fds,
            start_new_session=True,  # Ctrl-C is the parent's, who ends all of them
        )
        self.samples: list[dict[str, Any]] = []
        self._unread = b""

    @property
    def last(self) -> dict[str, Any]:
        """What it said last."""
        return self.samples[-1] if self.samples else {}

    def read(self) -> bool:
        """Take in what it says; False when it has ended. Raises Failed for an error it reports."""
        assert self.process.stdout is not None  # noqa: S101 - it was asked for
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self.samples.append(json.loads(line))
            if "error" in self.last:
                raise Failed(f"{self.role}: {self.last['error']}")
        return bool(data)

    def end(self) -> None:
        """End it, and wait until it has."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None  # noqa: S101 - it was asked for
        self.process.stdout.close()


@contextlib.contextmanager
def working(workers: list[Worker]) -> Iterator[list[Worker]]:
    """End all of them in the end, however it comes."""
    try:
        yield workers
    finally:
        for worker in workers:
            worker.end()


def follow(workers: list[Worker], what: str, goal: str, patience: float) -> Iterator[float]:
    """Read what they say until all are done, and yield about every second; print progress to `goal` now and then.

    Raises Failed if one fails, ends early, or if nothing moves for `patience` seconds (of ours: who is stopped and
    continued with all the others has not waited).
    """
    start, shown, idle, seen = time.monotonic(), 0.0, 0.0, 0
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            assert worker.process.stdout is not None  # noqa: S101 - it was asked for
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        while selector.get_map():
            for key, _ in selector.select(1.0):
                if not key.data.read():
                    selector.unregister(key.fileobj)
                    if not key.data.last.get("done"):
                        raise Failed(f"{key.data.role} ended early, with status {key.data.process.wait()}")
            count = sum(worker.last.get(what, 0) for worker in workers)
            idle = 0.0 if count > seen else idle + 1.0
            seen = count
            if idle > patience:
                raise Stalled(f"nothing moved for {patience:.0f} s")
            spent = time.monotonic() - start
            yield spent
            if spent - shown >= 10:
                shown = spent
                done = min(worker.last.get(what, 0) for worker in workers)
                print(f"{spent:7.0f} s  {done:>13,} {what} of {goal}, {done / spent:,.0f} a second", flush=True)


class Stalled(Failed):
    """Nothing moves any more."""


# -- messages ----------------------------------------------------------------------------------------------------------


def soak(messages: int, patience: float) -> dict[str, Any]:
    """Send and check so many messages (rounded up to whole blocks); the figures. Raises Failed."""
    blocks = -(-messages // BLOCK)
    return flow({"blocks": blocks}, f"{blocks * BLOCK:,}", patience)


def flow(order: dict[str, Any], goal: str, patience: float, beside: Killer | None = None) -> dict[str, Any]:
    """Send and check messages as long as `order` says, with kill loops `beside` them; the figures. Raises Failed."""
    name = f"soak-{os.getpid()}"
    with open_channel(name) as channel:
        order |= {"region": name}
        with working([Worker("receive", order), Worker("send", order)]) as workers:
            coordinator: list[dict[str, Any]] = []
            spent = 0.0
            for spent in follow(workers, "messages", goal, patience):
                coordinator.append(look_at(channel.pid))
                if beside is not None:
                    beside.go_on(spent)
    samples = {"coordinator": coordinator} | {worker.role: worker.samples for worker in workers}
    figures = {role: growth(found) for role, found in samples.items()}
    wrong = [f"{role}: {complaint}" for role, found in figures.items() if (complaint := found.get("complaint"))]
    received, sent = (worker.last["messages"] for worker in workers)
    if received != sent:
        wrong.append(f"{sent:,} messages were sent, and {received:,} received")
    return {
        "messages": received,
        "seconds": round(spent, 1),
        "processes": figures,
        "counts": {worker.role: worker.last["counts"] for worker in workers},
        "wrong": wrong,
        "samples": samples,
    }


def look_at(pid: int) -> dict[str, Any]:
    """Memory and descriptors of another process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return {"rss": pages * PAGE, "fds": len(os.listdir(f"/proc/{pid}/fd"))}  # noqa: PTH208 - not a Path per descriptor


def growth(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """What became of memory and descriptors, once a tenth of the samples (and the first two) are over."""
    warm = samples[max(2, len(samples) // 10) :]
    if len(warm) < 2:
        return {"samples": len(samples), "complaint": "" if samples else "no sample was taken"}
    rss, fds = [sample["rss"] for sample in warm], [sample["fds"] for sample in warm]
    found: dict[str, Any] = {
        "samples": len(samples),
        "rss_first": rss[0],
        "rss_last": rss[-1],
        "rss_least": min(rss),
        "rss_most": max(rss),
        "fds_least": min(fds),
        "fds_most": max(fds),
    }
    if max(rss) - rss[0] > GROWTH:
        found["complaint"] = f"it grew from {rss[0] >> 10:,} to {max(rss) >> 10:,} KiB"
    elif max(fds) > fds[0]:
        found["complaint"] = f"it had {fds[0]} descriptors, and then {max(fds)}"
    return found


def table(result: dict[str, Any]) -> list[str]:
    """The figures for people."""
    lines = [f"{'process':<12} {'RSS first':>12} {'last':>10} {'least':>10} {'most':>10} KiB   descriptors"]
    for role, found in result["processes"].items():
        if "rss_first" in found:
            rss = [f"{found[key] >> 10:,}" for key in ("rss_first", "rss_last", "rss_least", "rss_most")]
            fds = f"{found['fds_least']}..{found['fds_most']}"
            lines.append(f"{role:<12} {rss[0]:>12} {rss[1]:>10} {rss[2]:>10} {rss[3]:>10}       {fds}")
    for role, counts in result["counts"].items():
        lines.append(f"{role:<12} " + ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in counts.items()))
    seconds, messages = result["seconds"], result["messages"]
    lines.append(f"{messages:,} messages in {seconds:,.0f} s, {seconds / messages * 1e9:,.0f} ns each, all checked")
    return lines


# -- mixed -------------------------------------------------------------------------------------------------------------


class Killer:
    """Kill loops, one after the other: each in the next mode, with the next seed. A context manager."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds  # none begins later
        self.figures: list[dict[str, Any]] = []
        self._process: subprocess.Popen[str] | None = None

    def go_on(self, spent: float) -> None:
        """Look after the one that runs; begin the next when it is its turn. Raises Failed if one found something."""
        if self._process is None and spent < self.seconds:
            what, restart, notify = MODES[len(self.figures) % len(MODES)]
            options = ["--kills", str(KILLS), "--seed", str(1 + len(self.figures)), "--restart", restart]
            options += ["--notify", notify, *(["--lane"] if what == "messages" else [])]
            self._process = subprocess.Popen(
                [sys.executable, str(KILL_LOOP), *options, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # as the workers
            )
        elif self._process is not None and self._process.poll() is not None:
            self.finish()

    def finish(self) -> None:
        """Wait for the one that runs, and take its figures. Raises Failed."""
        if self._process is not None:
            said, complaint = self._process.communicate()
            status, self._process = self._process.returncode, None
            if status:
                raise Failed(f"kill loop {len(self.figures) + 1} ended with {status}: {complaint}")
            self.figures.append(json.loads(said))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what runs; its processes see that, and leave."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.communicate()


def mixed(minutes: float, patience: float) -> dict[str, Any]:
    """Messages for so long, and kill loops beside them; the figures. Raises Failed."""
    with Killer(60 * minutes) as killer:
        result = flow({"seconds": 60 * minutes}, f"{60 * minutes:,.0f} s", patience, killer)
        killer.finish()
    return result | {"loops": killer.figures}


def loop_table(loops: list[dict[str, Any]]) -> Iterator[str]:
    """The figures of the kill loops for people, by mode."""
    for what, restart, notify in MODES:
        mine = [loop for loop in loops if what in loop and (loop["restart"], loop["notify"]) == (restart, notify)]
        kills = sum(sum(loop["kills"].values()) for loop in mine)
        count = sum(loop[what] for loop in mine)
        if mine:
            yield f"{len(mine)} kill loops, {restart}, {notify}: {kills:,} kills, {count:,} {what}, each rule held"


# -- interrupted -------------------------------------------------------------------------------------------------------

STRUCK = {"messages": ("struck_receive", "struck_send"), "requests": ("struck_serve", "struck_ask")}


def interrupt(strikes: int, patience: float, what: Sequence[str] = tuple(STRUCK)) -> dict[str, Any]:
    """Strike so many calls of each who sends or asks; the figures. Raises Failed."""
    modes = {}
    bells: tuple[Kind, ...] = get_args(Kind)
    for each, notify in itertools.product(what, bells):
        name = f"struck-{os.getpid()}"
        order = {"region": name, "strikes": strikes}
        devices = [DeviceSpec("echo0", 0x7601, (QueueSpec(64, 1 << 18),))]
        place = open_channel(name, notify=notify) if each == "messages" else launch(name, devices, notify=notify)
        with (
            place,
            working([Worker(role, order | {"seed": seed}) for seed, role in enumerate(STRUCK[each])]) as workers,
        ):
            for spent in follow(workers, "strikes", f"{strikes:,} of {each}, {notify}", patience):  # noqa: B007
                pass
            theirs, ours = (worker.last for worker in workers)
            modes[f"{each}, {notify}"] = {
                "seconds": round(spent, 1),
                each: ours["messages"],
                "strikes": ours["strikes"],
                "strikes_there": theirs["strikes"],
                "counts": ours["counts"],
            }
            wrong = [
                f"{worker.role}: it had {worker.samples[0]['fds']} descriptors, and then {worker.last['fds']}"
                for worker in workers
                if len(worker.samples) > 2 and worker.last["fds"] > worker.samples[1]["fds"]
            ]
            if wrong:
                raise Failed("; ".join(wrong))
    return {"modes": modes}


def interrupt_table(result: dict[str, Any]) -> Iterator[str]:
    """The figures for people."""
    for mode, figures in result["modes"].items():
        count = figures[mode.partition(",")[0]]
        yield (
            f"{mode:<20} {figures['strikes']:>9,} and {figures['strikes_there']:,} calls were interrupted, {count:,} "
            f"{mode.partition(',')[0]} right, in {figures['seconds']:,.0f} s"
        )


# -- races -------------------------------------------------------------------------------------------------------------


def race(count: int, patience: float, spread: int) -> dict[str, Any]:
    """So many races, half of them with EVENT_IDX and half with flags, one each way in a round. Raises Failed."""
    rounds = -(-count // 4)
    modes = {}
    for mode, event_idx in (("EVENT_IDX", True), ("flags", False)):
        modes[mode] = race_in(mode, rounds, patience, {"event_idx": event_idx, "spread": spread})
    return {"races": 4 * rounds, "seconds": round(sum(m["seconds"] for m in modes.values()), 1), "modes": modes}


def race_in(mode: str, rounds: int, patience: float, order: dict[str, Any]) -> dict[str, Any]:
    """The figures of so many rounds in one mode."""
    print(f"{mode}: {rounds:,} rounds", flush=True)
    memory, kick, call = os.memfd_create("races"), os.eventfd(0), os.eventfd(0)
    try:
        os.ftruncate(memory, 1 << 16)
        order |= {"memory": memory, "rounds": rounds}
        sides = [
            Worker("race", order | {"side": "device", "bell": call, "ear": kick, "seed": 2}, (memory, kick, call)),
            Worker("race", order | {"side": "driver", "bell": kick, "ear": call, "seed": 3}, (memory, kick, call)),
        ]
        spent = 0.0
        with working(sides) as workers:
            try:
                for spent in follow(workers, "rounds", f"{rounds:,}", patience):  # noqa: B007 - the last one counts
                    pass
            except Stalled as stalled:
                with mmap.mmap(memory, races.WORDS) as shared:
                    raise Failed(f"{mode}: {stalled}: {races.where(Region(shared))}") from None
    finally:
        for fd in (memory, kick, call):
            os.close(fd)
    kinds = ("slept", "notified", "both")
    return {"seconds": round(spent, 1)} | {
        side: {kind: worker.last[kind] for kind in kinds}
        for side, worker in zip(("device", "driver"), workers, strict=True)
    }


def race_table(result: dict[str, Any]) -> list[str]:
    """The figures for people."""
    lines = [f"{'mode':<10} {'side':<8} {'slept':>14} {'notified':>14} {'each saw the other':>20}"]
    lines += [
        f"{mode:<10} {side:<8} {figures[side]['slept']:>14,} {figures[side]['notified']:>14,} "
        f"{figures[side]['both']:>20,}"
        for mode, figures in result["modes"].items()
        for side in ("driver", "device")
    ]
    return [*lines, f"{result['races']:,} races in {result['seconds']:,.0f} s, no wake-up lost"]


# -- the command -------------------------------------------------------------------------------------------------------


def whole(text: str) -> int:
    """A number such as 1e9."""
    number = int(float(text))
    if not 0 < number <= MOST:
        raise argparse.ArgumentTypeError(f"1 to {MOST:,}, not {text}")
    return number


def run(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """What was asked for: the figures, and the same for people. Raises Failed."""
    if options.races:
        result = race(options.races, options.patience, options.spread)
        return result, race_table(result)
    if options.interrupt:
        result = interrupt(options.interrupt, options.patience)
        return result, list(interrupt_table(result))
    if options.mixed:
        result = mixed(options.mixed, options.patience)
        return result, [*loop_table(result["loops"]), *table(result)]
    result = soak(options.messages, options.patience)
    return result, table(result)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=whole, metavar="N", help="messages to send, e.g. 1e9")
    parser.add_argument("--races", type=whole, metavar="N", help="races to sleep, e.g. 1e8")
    parser.add_argument("--mixed", type=float, metavar="MINUTES", help="messages and kill loops for so long")
    parser.add_argument("--interrupt", type=whole, metavar="N", help="exceptions in calls, e.g. 1e4")
    parser.add_argument("--spread", type=int, default=400, help="the pauses of a race: 0 to so many looks at a word")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds without any progress that are too many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if [bool(options.messages), bool(options.races), bool(options.mixed), bool(options.interrupt)].count(True) != 1:
        parser.error("either --messages N or --races N or --mixed MINUTES or --interrupt N")
    started = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        result, lines = run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Failed as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    print(*lines, sep="\n")
    for wrong in result.get("wrong", ()):
        print(f"FAILED: {wrong}", file=sys.stderr)
    if options.json:
        facts = {"started": started, "core": core.kind(), "python": platform.python_version(), **result}
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 1 if result.get("wrong") else 0


if __name__ == "__main__":
    sys.exit(main())
