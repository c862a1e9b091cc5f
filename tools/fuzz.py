"""Coverage-guided fuzzing of what a hostile peer can write: rings, lanes, control frames, manifest, payloads, states.

    pip install 'vqshm[fuzz]'
    python tools/fuzz.py device --seconds 600       one target; `all` takes them in turn, so long each
    python tools/fuzz.py device --keep              and keep what reached new code in tests/fuzz/corpus, minimised
    python tools/fuzz.py device --shake             on the installed core instead, and not guided: see below

The targets are in tools/fuzzing. They run on the sources of this checkout, interpreted, which can be observed; what is
kept is replayed on both cores by the tests. A finding is an error without a name, an assertion of a target, half a
minute for one input (of the clock: a busy machine may take that long for the longest walk of the seed's policy), or
more than 1 GiB of memory; the input that did it is written to the work folder, and its name printed. Exit status 1
then, 2 if atheris is not installed.

Nobody can watch which way an input takes through the compiled core. But the inputs that are known to take all ways can
be changed at random and given to it: that is `--shake`, which begins with the corpus and with what an earlier run left
in the `--work` folder, and is for a core that was built with a sanitizer (tools/sanitize.py --run). The input it is at
stands in the work folder, for whoever finds it dead.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import FrameType

HERE: Final = Path(__file__).resolve().parent
CORPUS: Final = HERE.parent / "tests" / "fuzz" / "corpus"
NAMES: Final = ("device", "driver", "chain", "inlet", "outlet", "control", "manifest", "payload", "saved")
LONGEST: Final = 400  # bytes of an input
MOST_KEPT: Final = 4096  # bytes of the corpus of one target, in all


def run_target(name: str, arguments: list[str]) -> None:
    """Fuzz in this process, which ends with it. The arguments are libFuzzer's."""
    import atheris  # noqa: PLC0415 - an extra, and of this process alone

    sys.path.insert(0, str(HERE))
    with atheris.instrument_imports(include=["vqshm", "fuzzing"]):
        from fuzzing import TARGETS  # noqa: PLC0415 - instrumented

    target = TARGETS[name]

    def one(data: bytes) -> None:
        target(data)

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def call(name: str, *arguments: str, installed: bool = False) -> int:
    """Run libFuzzer on a target, `minimise` or `shake`, in a process of its own: the exit status."""
    environment = dict(os.environ) if installed else {**os.environ, "VQSHM_PURE": "", "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(Path(__file__).resolve()), "--inside", name, *arguments]
    return subprocess.run(command, env=environment, check=False).returncode


def fuzz(name: str, seconds: int, work: Path, *, keep: bool) -> int:
    """Fuzz a target from its corpus on, for so long; the exit status."""
    found = work / name
    found.mkdir(parents=True, exist_ok=True)
    folders = [str(found), *([str(CORPUS / name)] if (CORPUS / name).is_dir() else [])]
    limits = ["-timeout=30", "-rss_limit_mb=1024", f"-max_len={LONGEST}", f"-artifact_prefix={work}/{name}-"]
    status = call(name, *folders, *limits, f"-max_total_time={seconds}", "-print_final_stats=1", "-verbosity=0")
    if status == 0 and keep:
        status = call(name, "--minimise", str(found))
    return 1 if status else 0


def inputs_of(name: str, found: Path) -> set[bytes]:
    """What the corpus holds, and what was found."""
    return {path.read_bytes() for folder in (CORPUS / name, found) if folder.is_dir() for path in folder.iterdir()}


def changed(data: bytes, other: bytes, pick: random.Random) -> bytes:
    """An input after some changes: bytes struck out, put in or overwritten, or the end of another one put on."""
    changed = bytearray(data)
    for _ in range(pick.randint(1, 4)):
        place = pick.randint(0, len(changed))
        kind = pick.randrange(4)
        if kind == 0:
            del changed[place : place + pick.randint(1, 8)]
        elif kind == 1:
            changed[place:place] = pick.randbytes(pick.randint(1, 8))
        elif kind == 2:
            changed[place : place + pick.randint(1, 4)] = pick.choice((b"\0", b"\xff\xff", b"\0\0\0\x80", b"\x7f"))
        else:
            changed[place:] = other[pick.randint(0, len(other)) :]
    return bytes(changed[:LONGEST])


def shake(name: str, seconds: int, work: Path) -> None:
    """Give changed inputs to a target on the core that is installed, for so long. Raises what the target does."""
    sys.path.insert(0, str(HERE))
    from fuzzing import TARGETS  # noqa: PLC0415 - with the vqshm that is installed

    from vqshm import core  # noqa: PLC0415 - likewise

    known = sorted(inputs_of(name, work / name)) or [b""]
    target, pick, count = TARGETS[name], random.Random(), 0
    current = work / f"{name}-current"
    end = time.monotonic() + seconds
    with current.open("wb", buffering=0) as file:
        while time.monotonic() < end:
            data = known[count] if count < len(known) else changed(pick.choice(known), pick.choice(known), pick)
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), data, 0)
            target(data)
            count += 1
    current.unlink()
    print(f"{name}: {count:,} inputs, of {len(known):,} that were known, {core.kind()} core", flush=True)


def minimise(name: str, found: Path) -> None:
    """Make the corpus anew: of it and of what was found, each input that executes a line that none before it does.

    The shortest come first. Runs in a process of its own, as `call` starts it.
    """
    sys.path.insert(0, str(HERE))
    from fuzzing import TARGETS  # noqa: PLC0415 - of the checkout

    seen: set[tuple[str, int]] = set()

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        if "vqshm" not in frame.f_code.co_filename:
            return None
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    corpus, inputs = CORPUS / name, inputs_of(name, found)
    shutil.rmtree(corpus, ignore_errors=True)
    corpus.mkdir(parents=True)
    room, kept = MOST_KEPT, 0
    for data in sorted(inputs, key=lambda data: (len(data), data)):
        before = len(seen)
        sys.settrace(trace)
        try:
            TARGETS[name](data)
        finally:
            sys.settrace(None)
        if len(seen) > before and len(data) <= room:
            (corpus / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
            room -= len(data)
            kept += 1
    print(f"{name}: {kept} of {len(inputs)} inputs kept, {len(seen)} lines", flush=True)


def main() -> int:
    if sys.argv[1:2] == ["--inside"]:
        name, *arguments = sys.argv[2:]
        if arguments[0] == "--minimise":
            minimise(name, Path(arguments[1]))
        elif arguments[0] == "--shake":
            shake(name, int(arguments[1]), Path(arguments[2]))
        else:
            run_target(name, arguments)
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=(*NAMES, "all"))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="keep the corpus that came of it")
    parser.add_argument("--shake", action="store_true", help="the installed core, not guided")
    parser.add_argument("--work", type=Path, help="where findings and the growing corpus lie; else a temporary folder")
    options = parser.parse_args()
    if not options.shake and importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install 'vqshm[fuzz]'", file=sys.stderr)
        return 2
    work = options.work or Path(tempfile.mkdtemp(prefix="vqshm-fuzz-"))
    names = NAMES if options.target == "all" else (options.target,)
    if options.shake:
        work.mkdir(parents=True, exist_ok=True)
        failed = [name for name in names if call(name, "--shake", str(options.seconds), str(work), installed=True)]
    else:
        failed = [name for name in names if fuzz(name, options.seconds, work, keep=options.keep)]
    if failed:
        print(f"found something in {', '.join(failed)}: see {work}", file=sys.stderr)
        return 1
    if options.work is None:
        shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
