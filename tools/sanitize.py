"""Runs tests on a core that was compiled with a sanitizer of gcc: who steps out of bounds, or into what C leaves open.

    python tools/sanitize.py address                AddressSanitizer: memory that is not ours
    python tools/sanitize.py undefined              UndefinedBehaviorSanitizer: overflow, shifts, alignment
    python tools/sanitize.py both                   the two at once
    python tools/sanitize.py thread                 ThreadSanitizer: two threads at the same bytes, and no order
    python tools/sanitize.py both tests/ring        only these tests; what begins with - goes to pytest, behind a --
    python tools/sanitize.py both --prove           no tests, only the proof below
    python tools/sanitize.py both --run tools/fuzz.py all --shake    no tests, but this program, with all behind it

Builds a wheel of this checkout in a temporary folder and puts it before what is installed; nothing else changes. The
processes that tests start run that build, too. The first finding ends the process that made it, and is printed at the
end. Tests that such a build cannot pass are named in UNFIT, each with the reason; they are left out, and that is said.
Leaks are not looked for: CPython keeps what it has at its end, and descriptors, names and memory have tests of their
own.

Before the tests comes a proof that they would fail: the seam of the core is built once more from a copy with a misstep
in it (MISSTEPS), and the sanitizer must report that.

ThreadSanitizer sees the threads of one process only, and needs an interpreter that lets two of them run at once and
was itself built for it; that one has to run this tool:

    ./configure --disable-gil --with-thread-sanitizer     in the sources of CPython 3.13 or later

What it reports is collected; a report is ours if one of the two accesses was made by the core. CPython has races of its
own, which are only counted. Where the processes' own memory is laid out at random so widely that the sanitizer cannot
start, `setarch -R` in front of the command helps.

Exit status: pytest's, or the program's; 1 for a race of ours, 2 if it could not run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COMMON = "-fno-omit-frame-pointer -fno-sanitize-recover=all -g1 -O1"
WRAP = "-fno-wrapv -fstrict-overflow"  # CPython's own flags let integers wrap, and nobody would look
FLAGS = {
    "address": f"-fsanitize=address {COMMON}",
    "undefined": f"-fsanitize=undefined {WRAP} {COMMON}",
    "both": f"-fsanitize=address,undefined {WRAP} {COMMON}",
    "thread": f"-fsanitize=thread {COMMON}",
}
LIBRARIES = {"address": ("libasan.so",), "undefined": ("libubsan.so",), "both": ("libasan.so", "libubsan.so")}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}
TESTS = {
    "thread": ("tests/ring/test_threads.py", "tests/lane/test_threads.py", "tests/ring/test_sync.py"),
    "": ("tests/memory", "tests/ring", "tests/lane", "tests/spec", "tests/notify", "tests/test_conformance.py"),
}
UNFIT = {  # tests that what AddressSanitizer does makes fail, and nothing of ours
    "tests/host/coordination/test_coordinator.py::test_bombs_of_msgpack_do_not_make_the_coordinator_grow": (
        "memory that is given back is kept for a while, to see who still uses it"
    ),
    "tests/tools/test_soak.py::test_a_short_soak_is_clean_and_says_so_in_json_too": (
        "it must not grow, and does: memory that is given back is kept for a while"
    ),
    "tests/host/system/test_pages.py::test_locked_pages_are_locked": "mlock does nothing, and says it succeeded",
    "tests/demo/test_ends.py::test_killed_with_json": "it handles SIGSEGV itself: nobody dies of that signal",
}
SEAM = ("atomic.pxd", "atomic.pyx", "atomic.h")  # in vqshm/memory; it can be compiled by itself


class Misstep(NamedTuple):
    """What is done to the seam, by whom it is stepped on then, and what the sanitizer has to say."""

    file: str
    find: str
    replace: str
    code: str
    report: str


MISSTEPS = {
    "address": Misstep(  # the check of bounds is a few bytes too generous
        "atomic.pyx",
        "self.span.end16 = max(0, length - 1)",
        "self.span.end16 = length + 64",
        "atomic.load_u16(atomic.Region(bytearray(64)), 72)",
        "heap-buffer-overflow",
    ),
    "undefined": Misstep(  # what is compared may overflow
        "atomic.pyx",
        "if count < 0 or offset < 0 or offset > region.size - count:",
        "if count < 0 or offset < 0 or offset + count > region.size:",
        "atomic.Region(bytearray(64)).read(2**63 - 1, 2)",
        "signed integer overflow",
    ),
    "thread": Misstep(  # what is published may be seen before what was written ahead of it
        "atomic.h",
        "(uint##bits##_t *)(void *)p, v, __ATOMIC_RELEASE",
        "(uint##bits##_t *)(void *)p, v, __ATOMIC_RELAXED",
        """
import threading

shared = bytearray(64)
ours, theirs = atomic.Region(shared), atomic.Region(shared)


def publish():
    for number in range(1, 3000):  # often: where the interpreter happens to order the two, nothing is seen
        atomic.put_u32(theirs, 8, number)
        atomic.store_u16(theirs, 0, number)
        while atomic.load_u16(theirs, 16) != number:
            pass


thread = threading.Thread(target=publish)
thread.start()
for number in range(1, 3000):
    while atomic.load_u16(ours, 0) != number:
        pass
    atomic.get_u32(ours, 8)
    atomic.store_u16(ours, 16, number)
thread.join()
""",
        "data race",
    ),
}


class CannotRun(Exception):
    """There is no such sanitizer here, or it sees nothing; the message says why."""


def libraries(sanitizer: str) -> list[str]:
    """The run-time libraries of a sanitizer, to be loaded before all else. Raises CannotRun."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise CannotRun("there is no gcc")
    if sanitizer == "thread":
        if not sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise CannotRun(f"{sys.executable} runs one thread at a time: ThreadSanitizer would find nothing")
        if "--with-thread-sanitizer" not in str(sysconfig.get_config_var("CONFIG_ARGS")):
            raise CannotRun(f"{sys.executable} was not built with --with-thread-sanitizer")
        return []  # the interpreter has it
    paths = []
    for name in LIBRARIES[sanitizer]:
        said = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = Path(said.stdout.strip())
        if not path.is_absolute():
            raise CannotRun(f"gcc has no {name}")
        paths.append(str(path.resolve()))
    return paths


def build(sanitizer: str, source: Path, folder: Path) -> None:
    """Compile and install a checkout into `folder`. Raises CannotRun."""
    here = all(importlib.util.find_spec(name) for name in ("hatchling", "Cython", "setuptools"))
    options = ["-q", "--no-deps", "--no-input", *(["--no-build-isolation"] if here else [])]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, f"--target={folder}", str(source)],
        env={**os.environ, "VQSHM_BUILD": "compiled", "VQSHM_BUILD_CFLAGS": FLAGS[sanitizer], "CC": "gcc"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CannotRun(f"the core cannot be built so: {(done.stdout + done.stderr).strip()[-2000:]}")


def environment(sanitizer: str, folder: Path) -> dict[str, str]:
    """In which Python finds that build, and the sanitizer is loaded before all else. Raises CannotRun."""
    surroundings = {**os.environ, "PYTHONPATH": str(folder), "VQSHM_EXPECT_CORE": "compiled"}
    surroundings["VQSHM_PURE"] = ""
    for name, options in OPTIONS.items():  # to a file each: what pytest has captured is lost with its process
        surroundings[name] = f"{options}:log_path={folder}/found"
    if needed := libraries(sanitizer):
        surroundings["LD_PRELOAD"] = " ".join(needed)
        surroundings["PYTHONMALLOC"] = "malloc"  # or objects lie in arenas, which are one piece each for a sanitizer
    else:
        surroundings["TSAN_OPTIONS"] = f"log_path={folder}/race:exitcode=0:history_size=4"
        surroundings["PYTHON_GIL"] = "0"  # or the first module that does not know better turns it on
    return surroundings


def plant(misstep: Misstep, folder: Path) -> Path:
    """A checkout in `folder` that compiles nothing but the seam, with the misstep in it. Raises CannotRun."""
    shutil.copytree(
        ROOT / "vqshm", folder / "vqshm", ignore=shutil.ignore_patterns("*.pyx", "*.pxd", "*.so", "__pycache__")
    )
    (folder / "tools").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "tools/build_hook.py", *(f"vqshm/memory/{n}" for n in SEAM)):
        shutil.copy(ROOT / name, folder / name)
    place = folder / "vqshm" / "memory" / misstep.file
    text = place.read_text(encoding="utf-8")
    if text.count(misstep.find) != 1:
        raise CannotRun(f"{misstep.file} does not hold {misstep.find!r} once: MISSTEPS must follow the source")
    place.write_text(text.replace(misstep.find, misstep.replace), encoding="utf-8")
    return folder


def prove(sanitizer: str) -> None:
    """Raise CannotRun unless the sanitizer reports each misstep in the compiled core that it is there for."""
    for kind in ("address", "undefined") if sanitizer == "both" else (sanitizer,):
        misstep = MISSTEPS[kind]
        with tempfile.TemporaryDirectory(prefix="vqshm-sanitize-") as work:
            source, folder = Path(work) / "source", Path(work) / "built"
            surroundings = environment(sanitizer, folder)
            build(sanitizer, plant(misstep, source), folder)
            code = f"from vqshm.memory import atomic\nassert atomic.__file__.endswith('.so')\n{misstep.code}"
            command = [sys.executable, "-P", "-c", code]
            done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
            said = done.stderr + "".join([*found(folder), *ours(folder)[0]])
        if misstep.report not in said:
            raise CannotRun(
                f"{kind}: a misstep in the core goes unseen, which should be a {misstep.report}: {said[-500:]}"
            )
        print(f"{kind}: a misstep in the core is seen: {misstep.report}", flush=True)


def found(folder: Path) -> list[str]:
    """What AddressSanitizer and UndefinedBehaviorSanitizer have written into `folder`."""
    return [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("found.*"))]


def ours(folder: Path) -> tuple[list[str], int]:
    """What ThreadSanitizer has written into `folder`: the races of the core, each once; and how many others."""
    races: dict[str, str] = {}
    others = 0
    for path in sorted(folder.glob("race.*")):
        for report in re.findall(
            r"^WARNING: ThreadSanitizer: .*?^SUMMARY: [^\n]*\n", path.read_text(), re.MULTILINE | re.DOTALL
        ):
            accesses = re.findall(
                r"^  (?:Previous )?(?:atomic )?(?:read|write) of size.*?(?=^$)",
                report,
                re.MULTILINE | re.DOTALL | re.IGNORECASE,
            )
            if any(by_the_core(access) for access in accesses):
                races.setdefault(report.rpartition("SUMMARY: ")[2], report)
            else:
                others += 1
    return list(races.values()), others


def by_the_core(access: str) -> bool:
    """Whether the innermost function, but for those that copy memory, is one of ours."""
    frames = [line for line in access.splitlines() if re.match(r"\s+#\d", line)]
    innermost = next((line for line in frames if not re.search(r"#\d+ (memcpy|memmove|memset|memcmp)\b", line)), "")
    return re.search(r" (c/)?vqshm/", innermost) is not None  # as the build hook calls what it compiles


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sanitizer", choices=FLAGS)
    parser.add_argument("tests", nargs="*", help="what to give to pytest")
    parser.add_argument("--run", nargs=argparse.REMAINDER, metavar="PROGRAM", help="run this one instead of pytest")
    parser.add_argument("--prove", action="store_true", help="only prove that it sees what it is for")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vqshm-sanitize-") as work:
        folder = Path(work)
        try:
            surroundings = environment(options.sanitizer, folder)
            prove(options.sanitizer)
            if options.prove:
                return 0
            build(options.sanitizer, ROOT, folder)
        except CannotRun as reason:
            print(reason, file=sys.stderr)
            return 2
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += options.tests or TESTS.get(options.sanitizer, TESTS[""])
        if options.sanitizer in {"address", "both"} and not options.run:
            for test, why in UNFIT.items():
                print(f"left out: {test}: {why}", flush=True)
                command += ["--deselect", test]
        if options.run:
            command = [sys.executable, "-P", *options.run]
        status = subprocess.run(command, cwd=ROOT, env=surroundings, check=False).returncode
        for report in found(folder):
            print(report)
            status = status or 1
        if options.sanitizer == "thread":
            races, others = ours(folder)
            print(*races, f"{len(races)} races of the core; CPython's own: {others} reports", sep="\n")
            status = status or bool(races)
        return status


if __name__ == "__main__":
    sys.exit(main())
