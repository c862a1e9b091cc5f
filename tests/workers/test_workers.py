"""The worker programs: what they do together in processes of their own, and how they end."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

import vqshm
from vqshm.view.snapshot import take

ROOT = Path(__file__).parents[2]
PATIENCE = 60  # seconds
PROGRAMS = sorted(path.stem for path in (ROOT / "workers").glob("*_d*.py"))
DEVICES = [name for name in PROGRAMS if name.endswith("_device")]
NEEDS = {"blk_device": ["disk.img"], "checksum_driver": ["/dev/null"], "zblock_driver": ["/dev/null"]}


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(4 << 10) * 256)
    return path


# -- what they do ----------------------------------------------------------------------------------------------------


def test_echo(region):
    region.start("echo_device", "echo0").ready()
    assert region.run("echo_driver", "echo0", "hällo") == "hällo"
    said = region.run("echo_driver", "echo0", "--count", "500", "--size", "1000")
    assert said.startswith("500 messages of 1000 bytes came back unchanged")


def test_echo_of_messages_that_fill_the_buffers(region):
    region.start("echo_device", "echo0").ready()
    assert "20 messages" in region.run("echo_driver", "echo0", "--count", "20", "--size", str(300 << 10))


def test_checksum(region, tmp_path):
    region.start("checksum_device", "checksum0").ready()
    small, empty, large = tmp_path / "small", tmp_path / "empty", tmp_path / "large"
    small.write_bytes(b"some data")
    empty.write_bytes(b"")
    large.write_bytes(os.urandom(300 << 10))
    said = region.run("checksum_driver", "checksum0", small, empty, large).splitlines()
    assert said[0] == f"{hashlib.sha256(b'some data').hexdigest()}  {small}"
    assert said[1] == f"{hashlib.sha256().hexdigest()}  {empty}"
    data = large.read_bytes()
    blocks = [hashlib.sha256(data[at : at + (256 << 10)]).digest() for at in (0, 256 << 10)]
    assert said[2] == f"{hashlib.sha256(b''.join(blocks)).hexdigest()}  {large}"


@pytest.mark.parametrize("size", [0, 1, 65536, 1_000_001])
def test_zblock(region, tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes((os.urandom(50) + bytes(50)) * (size // 100) + bytes(size % 100))
    region.start("zblock_device", "zblock0", "--level", "6").ready()
    said = region.run("zblock_driver", "zblock0", path)
    blocks = -(-size // 65536)
    assert re.fullmatch(rf".*/file: {blocks} blocks, {size} bytes -> \d+ \(.*%\), all verified, in .* s", said)


def test_blk(region, image):
    before = image.read_bytes()
    region.start("blk_device", "blk0", image).ready()
    said = region.run("blk_driver", "blk0")
    assert said.startswith(f"disk.img: {1 << 20} bytes read, written, verified, restored")
    assert f"CRC-32 {zlib.crc32(before):#010x}" in said
    assert image.read_bytes() == before


@pytest.mark.long
def test_blk_with_16_mib(region, image):
    image.write_bytes(os.urandom(16 << 20))
    before = image.read_bytes()
    device = region.start("blk_device", "blk0", image).ready()
    assert f"{16 << 20} bytes read, written, verified, restored" in region.run("blk_driver", "blk0")
    assert image.read_bytes() == before
    assert "requests failed: 0" in device.end(signal.SIGTERM)[1]


@pytest.mark.parametrize("side", ["device", "driver"])
def test_blk_read_only(region, image, side):
    before = image.read_bytes()
    option = ["--read-only"]
    region.start("blk_device", "blk0", image, *(option if side == "device" else [])).ready()
    said = region.run("blk_driver", "blk0", *(option if side == "driver" else []))
    assert f"{1 << 20} bytes read, CRC" in said
    assert image.read_bytes() == before


def until_answers_come(region):
    """Its first device, echo0, has returned something."""
    deadline = time.monotonic() + PATIENCE
    while not take(region.name).devices[0].queues[0].ring.used_idx:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_device_serves_one_driver_after_the_other_even_if_one_is_killed(region):
    device = region.start("echo_device", "echo0").ready()
    victim = region.start("echo_driver", "echo0", "--count", "100000000")
    until_answers_come(region)
    assert victim.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert region.run("echo_driver", "echo0", "still there?") == "still there?"
    assert device.process.poll() is None


# -- how they end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", PROGRAMS)
def test_an_unknown_region_is_one_line(program, image, worker):
    needs = [str(image) if need == "disk.img" else need for need in NEEDS.get(worker, [])]
    code, out, err = program(worker, *needs, "--region", "no-such-region")
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"{worker}: .*no-such-region.*", err)


@pytest.mark.parametrize("worker", DEVICES)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_device_is_asked_to_end(region, image, worker, number, code):
    needs = [image] if worker == "blk_device" else []
    device = region.start(worker, worker.replace("_device", "0"), *needs).ready()
    ended, out, err = device.end(number)
    assert (ended, err) == (code, "")
    assert re.fullmatch(rf"{region.name}/.* ends.*", out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_driver_is_asked_to_end(region, number, code):
    region.start("echo_device", "echo0").ready()
    driver = region.start("echo_driver", "echo0", "--count", "100000000")
    until_answers_come(region)
    assert driver.end(number) == (code, "", "")


@pytest.mark.parametrize("worker", DEVICES)
def test_the_region_closes(region, image, worker):
    needs = [image] if worker == "blk_device" else []
    device = region.start(worker, worker.replace("_device", "0"), *needs).ready()
    region.close()
    code, out, err = device.end()
    assert (code, err) == (0, "")
    assert "ends" in out


def test_a_role_that_is_taken(region):
    region.start("echo_device", "echo0").ready()
    code, _, err = region.start("echo_device", "echo0").end()
    assert code == 1
    assert re.fullmatch(r"echo_device: .*", err)


def test_a_device_that_must_be_named(region):
    code, _, err = region.start("echo_device", None).end()
    assert code == 1
    assert re.fullmatch(r"echo_device: .*echo0, checksum0, zblock0, blk0", err)


@pytest.mark.parametrize(
    ("size", "says"),
    [(None, "No such file"), (0, "0 bytes"), (513, "513 bytes, a disk has .* multiple of 512")],
)
def test_an_image_that_is_none(region, tmp_path, size, says):
    path = tmp_path / "odd.img"
    if size is not None:
        path.write_bytes(bytes(size))
    code, out, err = region.start("blk_device", "blk0", path).end()
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"blk_device: .*{says}.*", err)


def test_a_message_larger_than_the_buffers(region):
    region.start("echo_device", "echo0").ready()
    code, out, err = region.start("echo_driver", "echo0", "--size", str(3 << 20)).end()
    assert (code, out) == (1, "")
    assert re.fullmatch(r"echo_driver: no .* contiguous bytes.*", err)


# -- how they are written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", PROGRAMS)
def test_a_worker_is_short_and_uses_the_public_face(worker):
    text = (ROOT / "workers" / f"{worker}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    modules = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    rooms = {tuple(name.split(".")[:2]) for name in modules if name.partition(".")[0] == "vqshm"}
    assert rooms <= {("vqshm",), ("vqshm", "errors"), ("vqshm", "devices")}


def test_started_as_modules_they_find_the_vqshm_that_is_tested():
    """The checkout, first on the path as `python -m` puts it there, does not hide what is installed."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import workers, vqshm; print(vqshm.__file__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert Path(said.stdout.strip()) == Path(vqshm.__file__)


def test_started_as_modules_they_run():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, "-m", "workers.blk_device", "--help"]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "--read-only" in said.stdout
