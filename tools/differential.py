"""Do the interpreted core, the compiled core and the Rust crate `virtio-queue` judge rings alike: a comparison.

    python tools/differential.py --rings 1e6

Each ring is a row of random decisions (tools/fuzzing): what stands in the rings, what is taken, returned, sent,
received, and when. Every answer, every error with its message, and all memory in the end are compared between the two
cores; where they differ, the first line that does is printed with the number of the ring, which `--first` begins with.
Then both cores answer the recorded scenarios (tools/conformance.py), which hold what `virtio-queue` said.

Exit status 1 if anything differed, 2 if there is no compiled core to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).resolve().parent
VECTORS: Final = HERE.parent / "tests" / "vectors" / "public.jsonl.gz"
KINDS: Final = ("device", "driver", "chain", "inlet", "outlet")  # the rings take turns
BATCH: Final = 500
MOST_SHOWN: Final = 10


# -- in a worker -------------------------------------------------------------------------------------------------------


def ring(number: int) -> tuple[str, bytes]:
    """What ring `number` is: its target, and the decisions."""
    pick = random.Random(number)
    return KINDS[number % len(KINDS)], pick.randbytes(pick.randrange(16, 128))


def answers(number: int) -> list[str]:
    """What this core does with it; with the error that nobody promised, if there is one."""
    from fuzzing import TARGETS  # noqa: PLC0415 - the parent does without

    kind, data = ring(number)
    try:
        return TARGETS[kind](data)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return [f"BAD {type(error).__name__}: {error}"]


def work() -> None:
    """Answer orders: [first, count] with a digest of so many rings and those that are bad; [number] with all lines."""
    from vqshm import core  # noqa: PLC0415 - the parent does without

    print(json.dumps(core.kind()), flush=True)
    for line in sys.stdin:
        first, *count = json.loads(line)
        if not count:
            print(json.dumps(answers(first)), flush=True)
            continue
        digest, bad = hashlib.blake2b(), []
        for number in range(first, first + count[0]):
            lines = answers(number)
            digest.update("\n".join(lines).encode())
            if lines and lines[-1].startswith("BAD"):
                bad.append(number)
        print(json.dumps([digest.hexdigest(), bad]), flush=True)


# -- in the parent -----------------------------------------------------------------------------------------------------


class Worker:
    """A process that runs one core."""

    def __init__(self, pure: str) -> None:
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--work"],
            env={**os.environ, "VQSHM_PURE": pure, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.core = self.answer()

    def ask(self, *order: int) -> None:
        assert self.process.stdin is not None  # noqa: S101 - it was asked for
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None  # noqa: S101 - it was asked for
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with status {self.process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def both_cores() -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        workers.extend(map(Worker, ("1", "")))
        yield workers
    finally:
        for worker in workers:
            worker.end()


def compare(workers: list[Worker], first: int, count: int) -> Iterator[str]:
    """The differences between the answers to so many rings."""
    found = ask_all(workers, first, count)
    if found[0] == found[1] and not found[0][1]:
        return
    for number in range(first, first + count):
        left, right = ask_all(workers, number)
        if left and left[-1].startswith("BAD"):
            yield f"ring {number} ({ring(number)[0]}): {left[-1]}"
        elif left != right:
            pair = next((pair for pair in zip(left, right, strict=False) if pair[0] != pair[1]), (left[-1], right[-1]))
            yield f"ring {number} ({ring(number)[0]}):\n  interpreted  {pair[0]}\n  compiled     {pair[1]}"


def ask_all(workers: list[Worker], *order: int) -> list[Any]:
    for worker in workers:
        worker.ask(*order)
    return [worker.answer() for worker in workers]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rings", type=float, default=10_000, metavar="N", help="how many, e.g. 1e6")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the number of the first one")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work()
        return 0
    start, shown, wrong, done, count = time.monotonic(), time.monotonic(), 0, 0, int(options.rings)
    with both_cores() as workers:
        if workers[1].core != "compiled":
            print("there is no compiled core here", file=sys.stderr)
            return 2
        while done < count and wrong < MOST_SHOWN:
            batch = min(BATCH, count - done)
            for difference in compare(workers, options.first + done, batch):
                print(difference, flush=True)
                wrong += 1
            done += batch
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                print(f"{shown - start:7.0f} s  {done:,} of {count:,} rings, {wrong} differ", flush=True)
    print(f"{done:,} rings in {time.monotonic() - start:.0f} s: {wrong} differ between the two cores", flush=True)
    recorded = subprocess.run(
        [sys.executable, str(HERE / "conformance.py"), str(VECTORS), "--core", "both"], check=False
    ).returncode
    return 1 if wrong or recorded else 0


if __name__ == "__main__":
    sys.exit(main())
