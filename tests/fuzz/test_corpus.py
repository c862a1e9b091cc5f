"""What fuzzing has found worth keeping is replayed on whichever core runs; and the fuzzer itself runs where it can."""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vqshm import core

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).with_name("corpus")
TOOL = ROOT / "tools" / "fuzz.py"
NAMES = ("device", "driver", "chain", "inlet", "outlet", "control", "manifest", "payload", "saved")


@pytest.fixture(scope="module")
def targets():
    """The targets of tools/fuzzing, which is no installed package."""
    pytest.importorskip("numpy")
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from fuzzing import TARGETS
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return TARGETS


def test_there_is_a_corpus_for_every_target_and_for_nothing_else(targets):
    assert tuple(targets) == NAMES
    assert {path.name for path in CORPUS.iterdir()} == set(NAMES)
    for name in NAMES:
        assert 0 < sum(path.stat().st_size for path in (CORPUS / name).iterdir()) <= 4096


@pytest.mark.fault("A32", "H08")
@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_reaches_no_error_without_a_name(targets, name):
    said = [targets[name](path.read_bytes()) for path in sorted((CORPUS / name).iterdir())]
    assert all(said)
    kinds = {re.sub(r"\d+", "0", line.partition(": ")[2][:40]) for lines in said for line in lines}
    assert len(kinds) >= 2, "inputs that all do the same prove little"


@pytest.mark.fault("A32")
@pytest.mark.parametrize("name", NAMES)
def test_changed_inputs_reach_no_error_without_a_name(targets, name):
    """A few of what the fuzzer would try: bytes of the corpus changed, and inputs of it joined."""
    pick = random.Random(name)
    corpus = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    for _ in range(150):
        data = bytearray(pick.choice(corpus) + pick.choice(corpus))
        for _ in range(pick.randint(0, 4)):
            data[pick.randrange(len(data))] = pick.getrandbits(8)
        targets[name](bytes(data[: pick.randint(1, len(data))]))


def test_a_target_that_breaks_its_promise_is_noticed(targets, monkeypatch):
    """The free list below is broken on purpose; the target of the driver half says so."""
    from fuzzing import rings

    queue = rings.QueueConfig

    class Forgetful:
        def __init__(self, *args, **kwargs):
            self.config = queue(*args, **kwargs)

        def driver(self, *args, **kwargs):
            half = self.config.driver(*args, **kwargs)
            return Losing(half)

    class Losing:
        """Says that one descriptor less is free than there is."""

        def __init__(self, half):
            self.half = half

        def __getattr__(self, name):
            value = getattr(self.half, name)
            return value - 1 if name == "num_free" else value

    monkeypatch.setattr(rings, "QueueConfig", Forgetful)
    with pytest.raises(AssertionError, match="descriptors are lost"):
        targets["driver"](b"\x03\x00\x00")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (vqshm[fuzz])")
@pytest.mark.skipif(core.kind() == "compiled", reason="what is fuzzed is the interpreted core")
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_fuzzing_for_some_seconds_finds_nothing(name, tmp_path):
    done = subprocess.run(
        [sys.executable, str(TOOL), name, "--seconds", "5", "--work", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Instrumenting vqshm." in done.stderr
    assert int(re.search(r"number_of_executed_units: (\d+)", done.stderr)[1]) > 50


@pytest.mark.skipif(importlib.util.find_spec("atheris") is not None, reason="it is installed")
def test_without_atheris_it_says_what_to_install():
    done = subprocess.run([sys.executable, str(TOOL), "all"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'vqshm[fuzz]'" in done.stderr


def test_changed_inputs_run_on_the_core_that_is_installed(tmp_path):
    command = [sys.executable, str(TOOL), "inlet", "--shake", "--seconds", "1", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    count, known = re.search(r"inlet: ([\d,]+) inputs, of (\d+) that were known", done.stdout).groups()
    assert int(count.replace(",", "")) > int(known) == len(list((CORPUS / "inlet").iterdir()))
    assert core.kind() in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_input_that_breaks_a_core_is_left(load_tool, monkeypatch, tmp_path):
    seen = []

    def target(data):
        seen.append(data)
        assert len(seen) < 500

    monkeypatch.setattr(sys, "path", [*sys.path])  # it puts its folder there
    monkeypatch.setitem(sys.modules, "fuzzing", SimpleNamespace(TARGETS={"device": target}))
    with pytest.raises(AssertionError):
        load_tool("fuzz").shake("device", 60, tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [seen[-1]]
    assert {path.read_bytes() for path in (CORPUS / "device").iterdir()} < set(seen)
    assert len(set(seen)) > 250
    assert max(map(len, seen)) <= 400
