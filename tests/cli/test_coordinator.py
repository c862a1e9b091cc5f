"""`vqshm coordinator` as a real process: what it says, whom it sees, and that nothing stays when it ends."""

from __future__ import annotations

import signal

import pytest

from vqshm.view.snapshot import take

ECHO = "from vqshm import Device; from vqshm.devices import Echo; Device.attach('{}').serve(Echo())"
TALK = (
    "from vqshm import Driver; driver = Driver.attach('{}', timeout=60); print(driver.request(b'hello', 64).decode());"
    "driver.close()"
)


def test_it_says_what_it_made_and_what_to_type_next(serve, name):
    running = serve("--device", "zblock", "--device", "echo:e", "--queues", "2", "--queue-size", "16")
    text = running.seen
    assert f"region {name}  " in text
    assert f"{name}.sock" in text
    assert [line.split()[:5] for line in text.splitlines() if line.startswith(("zblock0", "e "))] == [
        ["zblock0", "0x7603", "0", "16", "0x40000000"],
        ["e", "0x7601", "0", "16", "0x40802000"],
    ]
    assert f"python -m workers.zblock_device --region {name} --device zblock0" in text
    assert f"python -m workers.echo_driver hello --region {name} --device e" in text
    assert f"vqshm stat {name} --watch" in text
    assert "\x1b" not in text


def test_the_default_needs_no_options(vqshm, run):
    if "demo" in run("ls").stdout:
        pytest.skip("somebody serves a region named demo")
    running = vqshm("coordinator")
    assert "python -m workers.zblock_device\n" in running.until("Serving.")
    assert running.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("notify", ["eventfd", "semaphore"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_a_signal_ends_it_and_nothing_stays(serve, left, name, notify, number, code):
    running = serve("--notify", notify, "--device", "echo")
    assert left()
    assert running.end(number) == code
    assert left() == []
    assert running.errors == ""
    assert running.seen.endswith(f"region {name} removed\n")


def test_two_signals_at_once_change_nothing(serve, left):
    running = serve("--device", "echo")
    running.send(signal.SIGINT)
    assert running.end(signal.SIGTERM) in {0, 130, -signal.SIGTERM}
    assert left() == []


def test_it_tells_who_comes_and_goes(serve, start, name):
    running = serve("--device", "echo")
    device = start("-c", ECHO.format(name))
    running.until(f"echo0 device attached: process {device.process.pid} python")
    driver = start("-c", TALK.format(name))
    running.until(f"echo0 driver attached: process {driver.process.pid} python")
    running.until("echo0 live: INDIRECT_DESC, EVENT_IDX, VERSION_1")
    assert driver.end() == 0
    assert driver.seen == "hello\n"
    running.until(f"echo0 driver left: process {driver.process.pid}")
    running.until("echo0 reset")
    device.end(signal.SIGKILL)
    running.until(f"echo0 device left: process {device.process.pid}")
    assert running.end(signal.SIGINT) == 130


def test_a_device_that_dies_while_it_is_used_is_told(serve, start, name):
    running = serve("--device", "echo")
    device = start("-c", ECHO.format(name))
    driver = start("-c", f"from vqshm import Driver; d = Driver.attach('{name}', timeout=60); d.park([], 60)")
    running.until("echo0 live")
    device.end(signal.SIGKILL)
    running.until("echo0 needs_reset: ")
    driver.end(signal.SIGKILL)


def test_it_says_how_often_a_chain_is_handed_out(serve, name):
    running = serve("--device", "echo", "--restart", "resume", "--max-attempts", "3")
    (device,) = take(name).devices
    assert (device.restart, device.max_attempts) == ("resume", 3)
    assert running.end(signal.SIGINT) == 130


def test_a_reader_that_leaves_leaves_no_region(serve, start, name, left):
    running = serve("--device", "echo")
    running.process.stdout.close()
    device = start("-c", ECHO.format(name))  # the coordinator wants to tell, and nobody listens
    assert running.process.wait(60) == 1
    device.end(signal.SIGTERM)
    assert left() == []


def test_a_name_in_use_is_left_alone(serve, run, name, left):
    running = serve("--device", "echo")
    before = left()
    result = run("coordinator", name)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: region {name!r} exists and process {running.process.pid} owns it")
    assert left() == before
    assert running.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--queue-size", "100"], 1, "error: queue size 100 is no power of two"),
        (["--queues", "200"], 1, "error: with eventfd a device has at most 126 queues"),
        (["--device", "echo:x", "--device", "blk:x"], 1, "error: each device needs a name of its own: x"),
        (["--device", "echo:X"], 1, "error: 'X' is no name"),
        (["--buffer-bytes", "100T"], 1, "error: buffer_bytes must be 1 to"),
        (["--device", "floppy"], 2, "there is no device 'floppy', only: zblock, echo, checksum, blk"),
        (["--buffer-bytes", "4X"], 2, "'4X' is no size"),
        (["--buffer-bytes", "0"], 2, "'0' is no size"),
        (["--notify", "smoke"], 2, "'smoke' is not one of"),
        (["--max-attempts", "3"], 2, "--max-attempts needs it"),
        (["--restart", "resume", "--max-attempts", "0"], 2, "0 is not in the range"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(run, name, left, options, code, words):
    result = run("coordinator", name, *options)
    assert result.exit_code == code
    assert words in result.stderr
    assert left() == []


def test_an_impossible_region_name(run):
    result = run("coordinator", "No")
    assert (result.exit_code, result.stderr.splitlines()[0][:23]) == (1, "error: 'No' is no name:")


def test_names_are_numbered_where_none_is_given():
    from vqshm.cli.coordinator import Wanted, _named

    wanted = [Wanted("echo", ""), Wanted("echo", "echo0"), Wanted("blk", ""), Wanted("echo", "")]
    assert [device.name for device in _named(wanted)] == ["echo1", "echo0", "blk0", "echo2"]


def test_a_region_in_sealed_memory_is_listed_looked_into_and_cleaned(serve, run, name, left):
    running = serve("--device", "echo", "--memory", "memfd", "--lock")
    assert "sealed memory (memfd)" in running.seen
    assert left() == [f"{name}.memfd", f"{name}.sock"]  # nothing in /dev/shm
    assert name in run("ls").stdout
    assert "echo0" in run("stat", name).stdout
    running.end(signal.SIGKILL)
    assert f"removed {name}: its coordinator has ended" in run("clean", name).stdout
    assert name not in run("ls").stdout
