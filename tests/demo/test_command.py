"""`vqshm demo`: what it prints, what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import subprocess
import sys

import pytest
from click.testing import CliRunner

from vqshm import core
from vqshm.demo.command import demo as command
from vqshm.demo.report import duration, size
from vqshm.demo.run import DemoFailed, Options, Outcome, _check
from vqshm.demo.source import default_file

MB = 1 << 20


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "file.bin"
    generator = random.Random(1)
    path.write_bytes(b"".join(generator.randbytes(500) + bytes(500) for _ in range(1500)) + b"the end")
    return path


def digest(path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def test_without_arguments_it_streams_a_file_of_this_python(run_demo):
    done = run_demo()
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    path = default_file()
    said = done.stdout
    assert said.startswith(f"{path.name}, this Python's own: ")
    assert re.findall(r"^  (coordinator|device|driver) +process \d+ ", said, re.MULTILINE) == [
        "coordinator",
        "device",
        "driver",
    ]
    names = ["bytes", "chains", "throughput", "round trip", "kicks", "calls", "ring wraps", "core", "notifier"]
    assert re.findall(r"^  (\w+(?:[ -]\w+)?) {2,}(?!process)\S", said, re.MULTILINE) == [*names, "features", "SHA-256"]
    assert f"{path.stat().st_size:,} there" in said
    assert digest(path) in said
    assert f"{core.kind()} in all three processes" in said
    assert "Queue 0 in shared memory" in said
    assert "no chain in flight: the queue is empty" in said
    assert said.endswith("Every byte arrived, in order. SHA-256 is the same there and back.\n")
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("notify", ["eventfd", "semaphore"])
@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "no-event-idx"])
@pytest.mark.parametrize("indirect", [True, False], ids=["indirect", "no-indirect"])
@pytest.mark.parametrize("queues", [1, 3])
def test_every_way_to_stream_it(run_demo, file, notify, event_idx, indirect, queues):
    done = run_demo(
        file,
        "--json",
        f"--notify={notify}",
        f"--queues={queues}",
        "--event-idx" if event_idx else "--no-event-idx",
        "--indirect" if indirect else "--no-indirect",
        "--queue-size=8",
        "--block-size=16K",
        "--level=2",
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    facts = json.loads(done.stdout)
    assert facts["ok"] is True
    assert facts["file"] == str(file)
    assert facts["bytes"] == 1_500_007
    assert facts["sha256"] == digest(file)
    assert facts["chains"] == 92
    assert facts["descriptors_per_chain"] == 4
    assert 0 < facts["compressed_bytes"] < 1_000_000
    assert facts["ratio"] == facts["compressed_bytes"] / facts["bytes"]
    assert facts["mb_per_second"] == pytest.approx(1.500007 / facts["seconds"])
    assert 0 < facts["round_trip_seconds"]["p50"] <= facts["round_trip_seconds"]["p99"]
    assert facts["most_in_flight"] <= queues * (8 if indirect else 2)
    assert facts["kicks"]["sent"] >= queues
    # Whoever returns a chain asks whether to call; whoever offers a batch, whether to kick.
    assert facts["calls"]["sent"] + facts["calls"]["suppressed"] == 92
    assert facts["calls"]["sent"] >= 1
    assert facts["ring_wraps"] == {1: 11, 3: 9}[queues]
    assert (facts["queues"], facts["queue_size"], facts["block_size"], facts["level"]) == (queues, 8, 16384, 2)
    assert facts["notify"] == notify
    wanted = {"VIRTIO_F_VERSION_1"}
    wanted |= {"VIRTIO_F_EVENT_IDX"} if event_idx else set()
    wanted |= {"VIRTIO_F_INDIRECT_DESC"} if indirect else set()
    assert set(facts["features"]) == wanted
    assert facts["cores"] == dict.fromkeys(("coordinator", "device", "driver"), core.kind())


def test_a_file_of_one_byte(run_demo, tmp_path):
    path = tmp_path / "[bold]one[red]"  # a name is no markup
    path.write_bytes(b"1")
    done = run_demo(path)
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout.replace("\n", "")
    assert "1 there" in done.stdout


def test_several_queues_are_drawn_the_first_in_full(run_demo, file):
    done = run_demo(file, "--queues", 2, "--block-size", "50k")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("Queue 0 in shared memory")[1].split("Queue 1 in shared memory")
    assert "descriptor table" in first
    assert "descriptor table" not in second


def test_it_prints_on_any_terminal(run_demo, file):
    done = run_demo(file, PYTHONIOENCODING="ascii", COLUMNS="40")
    assert done.returncode == 0, done.stderr
    assert "Every byte arrived" in done.stdout


def test_the_core_of_all_three_is_the_one_asked_for(run_demo, file):
    done = run_demo(file, "--json", VQSHM_PURE="1")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["cores"].values()) == {"interpreted"}


# -- refused, before any process is started ----------------------------------------------------------------------------


@pytest.fixture
def no_process(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("as_json", [False, True])
def test_a_file_that_cannot_be_streamed(tmp_path, as_json):
    empty, pipe = tmp_path / "empty", tmp_path / "pipe"
    empty.touch()
    os.mkfifo(pipe)
    for path, words in {
        empty: "it is empty",
        tmp_path: "it is a directory",
        pipe: "it is not a regular file",
        tmp_path / "missing": "No such file or directory",
    }.items():
        done = CliRunner().invoke(command, [str(path), *(["--json"] if as_json else [])])
        assert done.exit_code == 1
        assert done.stderr.startswith("error: cannot ")
        assert done.stderr.endswith(f"{words}\n")
        assert str(path) in done.stderr
        assert done.stderr.count("\n") == 1
        if as_json:
            facts = json.loads(done.stdout)
            assert facts["ok"] is False
            assert f"error: {facts['error']}\n" == done.stderr
        else:
            assert not done.stdout


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--queue-size", "12"],
        ["--queue-size", "2"],
        ["--queue-size", "65536"],
        ["--queue-size", "-8"],
        ["--queue-size", "\u0662"],
        ["--queues", "0"],
        ["--queues", "17"],
        ["--block-size", "0"],
        ["--block-size", "17M"],
        ["--block-size", "1.5K"],
        ["--block-size", "1G"],
        ["--block-size", "KM"],
        ["--block-size", ""],
        ["--block-size", "-1"],
        ["--level", "0"],
        ["--level", "10"],
        ["--notify", "pigeon"],
        ["--unknown"],
        ["one", "two"],
    ],
    ids=" ".join,
)
def test_options_that_cannot_be(arguments):
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert "Error: " in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("text", "count"), [("4096", 4096), ("64K", 65536), ("64kib", 65536), ("1m", MB), ("16MiB", 16 * MB), ("7b", 7)]
)
def test_block_sizes(text, count):
    (option,) = (option for option in command.params if option.name == "block_size")
    assert option.type.convert(text, None, None) == count


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_region_that_is_too_large_is_one_clear_line(run_demo, file):
    limit = 64 * MB

    def small_files() -> None:  # posix_fallocate in /dev/shm obeys it as if the file system were full
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-m", "vqshm", "demo", str(file), "--queues=4", "--block-size=16M"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        preexec_fn=small_files,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: region 'demo-")
    assert done.stderr.count("\n") == 1


def outcome(**changes):
    driver = {"bytes": 10, "chains": 3, **changes}
    device = {"unanswered": changes.get("unanswered", 0), "counters": [{"used": 1}, {"used": 2}]}
    return Outcome(Options(file="it", file_size=10), "demo-1", driver=driver, device=device)


def test_what_does_not_fit_together_is_a_failure():
    _check(outcome())
    with pytest.raises(DemoFailed, match="it had 10 bytes and changed meanwhile: 9 were read"):
        _check(outcome(bytes=9))
    with pytest.raises(DemoFailed, match="got 4 chains back, the device returned 3"):
        _check(outcome(chains=4))
    with pytest.raises(DemoFailed, match="1 of them unanswered"):
        _check(outcome(unanswered=1))


def test_units():
    assert [size(count) for count in (1, 1023, 1024, 65536, 1.5 * MB, 3 << 30, 5000 << 30)] == [
        "1 bytes",
        "1,023 bytes",
        "1 KiB",
        "64 KiB",
        "1.5 MiB",
        "3 GiB",
        "5,000 GiB",
    ]
    assert [duration(seconds) for seconds in (12, 0.25, 0.00012, 1e-8)] == ["12 s", "250 ms", "120 µs", "0.01 µs"]


# -- long --------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_gigabyte_takes_no_more_memory_than_a_megabyte(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as opened:
        opened.truncate(1 << 30)
    arguments = ["-m", "vqshm", "demo", str(path), "--json", "--block-size=1M"]
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE) as process:
        facts = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)  # of the demo and of its processes: the largest
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert facts["bytes"] == 1 << 30
    assert usage.ru_maxrss < 150_000  # KiB
