"""Coverage-guided fuzzing of what a hostile peer can write: rings, lanes, control frames, manifest, payloads, states.

    pip install 'vqshm[fuzz]'
    python tools/fuzz.py device --seconds 600       one target; `all` takes them in turn, so long each
    python tools/fuzz.py device --keep              and keep what reached new code in tests/fuzz/corpus, minimised

The targets are in tools/fuzzing. They run on the sources of this checkout, interpreted, which can be observed; what is
kept is replayed on both cores by the tests. A finding is an error without a name, an assertion of a target, ten seconds
for one input, or more than 1 GiB of memory; the input that did it is written to the work folder, and its name printed.
Exit status 1 then, 2 if atheris is not installed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
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


def call(name: str, *arguments: str) -> int:
    """Run libFuzzer on a target, or `minimise`, in a process of its own: the exit status."""
    environment = {**os.environ, "VQSHM_PURE": "", "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(Path(__file__).resolve()), "--inside", name, *arguments]
    return subprocess.run(command, env=environment, check=False).returncode


def fuzz(name: str, seconds: int, work: Path, *, keep: bool) -> int:
    """Fuzz a target from its corpus on, for so long; the exit status."""
    found = work / name
    found.mkdir(parents=True, exist_ok=True)
    folders = [str(found), *([str(CORPUS / name)] if (CORPUS / name).is_dir() else [])]
    limits = ["-timeout=10", "-rss_limit_mb=1024", f"-max_len={LONGEST}", f"-artifact_prefix={work}/{name}-"]
    status = call(name, *folders, *limits, f"-max_total_time={seconds}", "-print_final_stats=1", "-verbosity=0")
    if status == 0 and keep:
        status = call(name, "--minimise", str(found))
    return 1 if status else 0


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

    corpus = CORPUS / name
    inputs = {path.read_bytes() for folder in (corpus, found) if folder.is_dir() for path in folder.iterdir()}
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
        else:
            run_target(name, arguments)
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=(*NAMES, "all"))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="keep the corpus that came of it")
    parser.add_argument("--work", type=Path, help="where findings and the growing corpus lie; else a temporary folder")
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install 'vqshm[fuzz]'", file=sys.stderr)
        return 2
    work = options.work or Path(tempfile.mkdtemp(prefix="vqshm-fuzz-"))
    names = NAMES if options.target == "all" else (options.target,)
    failed = [name for name in names if fuzz(name, options.seconds, work, keep=options.keep)]
    if failed:
        print(f"found something in {', '.join(failed)}: see {work}", file=sys.stderr)
        return 1
    if options.work is None:
        shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
