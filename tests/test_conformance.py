"""Every recorded answer of the Rust crate `virtio-queue` is ours, too; and the tool that says so can say otherwise."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vqshm import core

TOOL = Path(__file__).parents[1] / "tools" / "conformance.py"
VECTORS = Path(__file__).parent / "vectors" / "public.jsonl.gz"
COUNT = 1200


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=110
    )


def lines():
    with gzip.open(VECTORS, "rt", encoding="utf-8") as file:
        return file.readlines()


def altered(case):
    """The same scenario with one recorded answer changed."""
    case = json.loads(json.dumps(case))
    answers = case["expected"]["ops"]
    answers[-1] = not answers[-1] if isinstance(answers[-1], bool) else "something else"
    return case


def test_all_recorded_scenarios_pass_on_the_core_that_runs():
    done = run(VECTORS)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert said[-1] == f"{COUNT} passed, 0 failed"
    assert said[-2].startswith(f"core: {core.kind()} ")
    assert done.stderr == ""


def test_a_wrong_answer_fails_by_its_name(tmp_path):
    cases = lines()
    wrong = next(i for i, line in enumerate(cases) if json.loads(line)["name"].startswith("p/session/"))
    case = json.loads(cases[wrong])
    cases[wrong] = json.dumps(altered(case)) + "\n"
    path = tmp_path / "altered.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(cases)
    done = run(path)
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("FAILED")] == [f"FAILED {case['name']}"]
    assert done.stdout.splitlines()[-1] == f"{COUNT - 1} passed, 1 failed"


def test_a_wrong_digest_of_memory_fails(tmp_path):
    case = json.loads(lines()[0])
    case["expected"]["final"]["hash"] = "0" * 16
    path = tmp_path / "digest.jsonl"
    path.write_text(json.dumps(case) + "\n", encoding="utf-8")
    done = run(path, "--verbose")
    assert done.returncode == 1
    assert f"FAILED {case['name']}" in done.stdout
    assert "0000000000000000" in done.stdout


def test_verbose_says_what_differs(tmp_path):
    case = json.loads(next(line for line in lines() if json.loads(line)["expected"]["ops"]))
    path = tmp_path / "altered.jsonl"
    path.write_text(json.dumps(altered(case)) + "\n", encoding="utf-8")
    done = run(path, "--verbose")
    assert done.returncode == 1
    assert f"op {len(case['expected']['ops']) - 1} " in done.stdout


def test_a_group_can_be_chosen():
    expected = sum(json.loads(line)["name"].startswith("p/edge-loop/") for line in lines())
    assert expected
    done = run(VECTORS, "--group", "p/edge-loop/")
    assert done.stdout.splitlines()[-1] == f"{expected} passed, 0 failed"


@pytest.mark.parametrize("arguments", [[], ["/no/such/file"], [VECTORS, "--core", "quantum"]], ids=str)
def test_what_cannot_run_says_so(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_nothing_tested_is_no_success():
    done = run(VECTORS, "--group", "no such group")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 passed, 0 failed"


def test_the_last_line_sums_up_both_cores():
    """The interpreted core always runs; the compiled one where it is installed, and nothing is claimed otherwise."""
    one = run(VECTORS, "--core", "pure", "--group", "p/basic/")
    count = int(one.stdout.splitlines()[-1].split()[0])
    assert one.returncode == 0
    both = run(VECTORS, "--core", "both", "--group", "p/basic/")
    if both.returncode == 2:
        assert "no compiled core here" in both.stderr
        assert both.stdout == ""
        assert core.kind() == "interpreted"
        return
    said = both.stdout.splitlines()
    assert both.returncode == 0
    assert said[-1] == f"{2 * count} passed, 0 failed"
    assert said.count(f"{count} passed, 0 failed") == 2
    assert [line.split()[1] for line in said if line.startswith("core:")] == ["interpreted", "compiled"]


def test_a_failure_on_either_core_is_a_failure(tmp_path):
    case = altered(json.loads(next(line for line in lines() if json.loads(line)["expected"]["ops"])))
    path = tmp_path / "altered.jsonl"
    path.write_text(json.dumps(case) + "\n", encoding="utf-8")
    both = run(path, "--core", "both")
    if both.returncode != 2:
        assert both.returncode == 1
        assert both.stdout.splitlines()[-1] == "0 passed, 2 failed"
    pure = run(path, "--core", "pure")
    assert pure.returncode == 1
    assert pure.stdout.splitlines()[-1] == "0 passed, 1 failed"
