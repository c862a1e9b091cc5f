"""Disk images: what is accepted as one, and moving bytes through system calls that do less than asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vqshm.devices.image import Image
from vqshm.errors import RuleError

MIB = 1 << 20


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(64 * 512))
    return path


@pytest.fixture
def image(path):
    image = Image(path)
    yield image
    image.close()


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("size", [0, 1, 511, 513, 512 * 7 + 1])
def test_a_size_that_is_no_whole_number_of_sectors(tmp_path, size):
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(size))
    before = open_files()
    with pytest.raises(RuleError, match=rf"{size} bytes.*multiple of 512.*truncate -s %512 .*odd\.img"):
        Image(path)
    assert open_files() == before


def test_what_is_no_file(tmp_path):
    before = open_files()
    with pytest.raises(FileNotFoundError):
        Image(tmp_path / "missing.img")
    with pytest.raises(IsADirectoryError):
        Image(tmp_path)
    with pytest.raises(OSError, match="regular file or a block device"):
        Image(tmp_path, read_only=True)
    with pytest.raises(OSError, match="regular file or a block device"):
        Image("/dev/null")
    assert open_files() == before


def test_more_views_than_one_system_call_takes(image, path):
    data = os.urandom(3000)
    image.write(512, [memoryview(data)[i : i + 1] for i in range(3000)])
    assert path.read_bytes()[512:3512] == data
    back = bytearray(3000)
    image.read(512, [memoryview(back)[i : i + 1] for i in range(3000)])
    assert back == data


def test_calls_that_stop_anywhere(image, path, monkeypatch):
    preadv, pwritev = os.preadv, os.pwritev

    def some(views):
        left = 7
        for view in views:
            yield view[:left]
            left -= min(left, len(view))

    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, list(some(views)), offset))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, offset: pwritev(fd, list(some(views)), offset))
    data = memoryview(os.urandom(1024))
    pieces = [data[0:5], data[5:5], data[5:100], data[100:1024]]
    image.write(1024, pieces)
    assert path.read_bytes()[1024:2048] == data
    back = memoryview(bytearray(1024))
    image.read(1024, [back[0:1], back[1:13], back[13:13], back[13:]])
    assert back == data


def test_no_views_are_no_bytes(image):
    image.read(0, [])
    image.write(image.size, [])
    image.zero(image.size, 0, release=True)
    image.discard(image.size, 0)


def test_reading_behind_the_end_fails(image):
    with pytest.raises(OSError, match="ends before byte"):
        image.read(image.size - 512, [memoryview(bytearray(1024))])


@pytest.mark.parametrize("release", [False, True])
def test_many_zeroes(tmp_path, release):
    path = tmp_path / "large.img"
    path.write_bytes(b"\xff" * (20 * MIB))
    image = Image(path)
    image.zero(MIB + 512, 18 * MIB, release=release)
    image.close()
    data = path.read_bytes()
    assert data == b"\xff" * (MIB + 512) + bytes(18 * MIB) + b"\xff" * (MIB - 512)


def test_holes_give_space_back(tmp_path):
    path = tmp_path / "large.img"
    path.write_bytes(b"\xff" * MIB)
    image = Image(path)
    if not image.can_punch:
        pytest.skip("the file system of tmp_path cannot punch holes")
    os.fsync(image.fd)
    before = path.stat().st_blocks
    image.discard(0, MIB // 2)
    halfway = path.stat().st_blocks
    image.zero(MIB // 2, MIB // 2, release=True)
    image.close()
    assert before > halfway > path.stat().st_blocks
    assert path.read_bytes() == bytes(MIB)


def test_where_holes_cannot_be_punched(image, path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(image, "_punch", lambda *_: (_ for _ in ()).throw(OSError("no")))
    image.can_punch = True
    image.discard(0, 512)
    assert path.read_bytes() == before
    image.zero(0, 512, release=True)
    assert path.read_bytes() == bytes(512) + before[512:]


def test_the_probe_changes_nothing(path):
    before = path.read_bytes()
    Image(path).close()
    assert path.read_bytes() == before


def test_a_read_only_image_cannot_be_written(path):
    image = Image(path, read_only=True)
    assert not image.can_punch
    with pytest.raises(OSError, match="Bad file descriptor"):
        image.write(0, [memoryview(bytes(512))])
    image.flush()
    image.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        image.flush()
