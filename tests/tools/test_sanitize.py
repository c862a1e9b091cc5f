"""The compiled core, built with a sanitizer, works on memory that somebody else rewrites, and steps nowhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vqshm import core

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "sanitize.py"
HOSTILE = (
    "tests/ring/test_mutation.py",
    "tests/ring/test_hostile_driver.py",
    "tests/ring/test_hostile_device.py",
    "tests/lane/test_hostile.py",
    "tests/memory/test_atomic.py",
    "tests/fuzz",
)
compiled = pytest.mark.skipif(core.kind() != "compiled", reason="the other core has nothing to sanitize")


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], cwd=ROOT, capture_output=True, text=True, check=False, **environment
    )


def passed(done):
    """What it said. Skips where there is no such sanitizer, but not where there is one that sees nothing."""
    if done.returncode == 2 and "gcc" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


@pytest.mark.long
@pytest.mark.fault("A20", "H06")
@pytest.mark.timeout(900)  # it compiles everything
@compiled
def test_hostile_memory_makes_a_sanitized_core_step_nowhere_and_a_misstep_in_it_would_be_seen():
    said = passed(run("both", *HOSTILE))
    assert "failed" not in said
    assert "address: a misstep in the core is seen: heap-buffer-overflow" in said
    assert "undefined: a misstep in the core is seen: signed integer overflow" in said


@pytest.mark.long
@pytest.mark.fault("H06")
@pytest.mark.timeout(900)
@compiled
def test_two_threads_at_one_queue_race_nowhere_and_a_store_without_order_would_be_seen():
    done = run("thread")
    if done.returncode == 2 and ("one thread at a time" in done.stderr or "not built with" in done.stderr):
        pytest.skip(done.stderr.strip())
    assert "thread: a misstep in the core is seen: data race" in passed(done)


def test_what_threadsanitizer_says_of_the_core_is_told_from_what_it_says_of_the_interpreter(load_tool, tmp_path):
    sanitize = load_tool("sanitize")
    frame = "    #{} {} {} ({}+0x1)\n"
    core = frame.format(0, "vq_get_u16", "c/vqshm/memory/atomic.h:29", "atomic.so")
    copied = frame.format(0, "memcpy", "tsan.h:1", "python3") + frame.format(
        1, "fill", "c/vqshm/lane/inlet.c:7", "inlet.so"
    )
    python = frame.format(0, "Py_INCREF", "../Include/object.h:3", "python3") + core.replace("#0", "#1")

    def report(first, second, summary):
        return (
            "==================\nWARNING: ThreadSanitizer: data race (pid=1)\n"
            f"  Read of size 2 at 0x7 by main thread:\n{first}\n"
            f"  Previous write of size 2 at 0x7 by thread T1:\n{second}\n"
            f"SUMMARY: ThreadSanitizer: data race {summary}\n==================\n"
        )

    (tmp_path / "race.1").write_text(report(core, python, "a") + report(python, python, "b") + report(core, core, "a"))
    (tmp_path / "race.2").write_text(report(python, copied, "c"))
    races, others = sanitize.ours(tmp_path)
    assert [race.rpartition("data race ")[2].strip() for race in races] == ["a", "c"]
    assert others == 1


def test_what_cannot_pass_on_such_a_build_is_there_and_has_a_reason(load_tool):
    for test, reason in load_tool("sanitize").UNFIT.items():
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")
        assert len(reason) > 20


@pytest.mark.parametrize("arguments", [["address"], ["both", "--run", "tools/fuzz.py", "all", "--shake"]])
def test_without_a_compiler_it_says_so(tmp_path, arguments):
    done = run(*arguments, env={"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert "there is no gcc" in done.stderr
