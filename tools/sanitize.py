"""Runs tests on a core that was compiled with a sanitizer of gcc: who steps out of bounds, or into what C leaves open.

    python tools/sanitize.py address                AddressSanitizer: memory that is not ours
    python tools/sanitize.py undefined              UndefinedBehaviorSanitizer: overflow, shifts, alignment
    python tools/sanitize.py both                   the two at once
    python tools/sanitize.py both tests/ring        only these tests; what begins with - goes to pytest, behind a --

Builds a wheel of this checkout in a temporary folder and puts it before what is installed; nothing else changes. The
first finding ends the test that made it, and is printed. Leaks are not looked for: CPython keeps what it has at its
end, and descriptors, names and memory have tests of their own. ThreadSanitizer needs an interpreter that was built for
it (a free-threaded one, to find anything), and is not offered. Exit status: pytest's; 2 if it could not run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMON = "-fno-omit-frame-pointer -fno-sanitize-recover=all -g1 -O1"
FLAGS = {
    "address": f"-fsanitize=address {COMMON}",
    "undefined": f"-fsanitize=undefined {COMMON}",
    "both": f"-fsanitize=address,undefined {COMMON}",
}
LIBRARIES = {"address": ("libasan.so",), "undefined": ("libubsan.so",), "both": ("libasan.so", "libubsan.so")}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}
MISSTEP = """
import ctypes
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
place = ctypes.c_void_p(c.malloc(64))
c.free(place)
c.memset(place, 1, 8)
"""
TESTS = ("tests/memory", "tests/ring", "tests/lane", "tests/spec", "tests/notify", "tests/test_conformance.py")


class CannotRun(Exception):
    """There is no such sanitizer here; the message says why."""


def libraries(sanitizer: str) -> list[str]:
    """The run-time libraries of a sanitizer. Raises CannotRun."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise CannotRun("there is no gcc")
    found = []
    for name in LIBRARIES[sanitizer]:
        said = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = Path(said.stdout.strip())
        if not path.is_absolute():
            raise CannotRun(f"gcc has no {name}")
        found.append(str(path.resolve()))
    return found


def build(sanitizer: str, folder: Path) -> None:
    """Compile and install this checkout into `folder`. Raises CannotRun."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-input", f"--target={folder}", str(ROOT)],
        env={**os.environ, "VQSHM_BUILD": "compiled", "VQSHM_BUILD_CFLAGS": FLAGS[sanitizer], "CC": "gcc"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CannotRun(f"the core cannot be built so: {(done.stdout + done.stderr).strip()[-2000:]}")


def environment(sanitizer: str, folder: Path) -> dict[str, str]:
    """In which Python finds that build, and the sanitizer is loaded before all else."""
    return {
        **os.environ,
        **OPTIONS,
        "LD_PRELOAD": " ".join(libraries(sanitizer)),
        "PYTHONPATH": str(folder),
        "PYTHONMALLOC": "malloc",  # or objects lie in arenas, which the sanitizer takes for one piece each
        "VQSHM_EXPECT_CORE": "compiled",
        "VQSHM_PURE": "",
    }


def prove(surroundings: dict[str, str]) -> None:
    """Step where nobody may, and raise CannotRun unless AddressSanitizer says so."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", MISSTEP], env=surroundings, capture_output=True, text=True, check=False
    )
    if "heap-use-after-free" not in done.stderr:
        raise CannotRun(f"AddressSanitizer is loaded, but sees nothing: {done.stderr[-500:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sanitizer", choices=FLAGS)
    parser.add_argument("tests", nargs="*", default=TESTS, help="what to give to pytest")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vqshm-sanitize-") as folder:
        try:
            surroundings = environment(options.sanitizer, Path(folder))
            if options.sanitizer != "undefined":
                prove(surroundings)
            build(options.sanitizer, Path(folder))
        except CannotRun as reason:
            print(reason, file=sys.stderr)
            return 2
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *options.tests]
        return subprocess.run(command, cwd=ROOT, env=surroundings, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
