"""Which file is streamed, and which files cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vqshm.demo import source
from vqshm.demo.source import ENOUGH, UnfitFile, check_file, default_file


def test_the_default_is_a_large_file_of_this_python():
    path = default_file()
    assert path.is_absolute()
    assert check_file(path) == path.stat().st_size >= ENOUGH
    assert path.name.startswith(("python", "libpython"))


def test_a_small_interpreter_gives_way_to_the_largest_mapped_file(tmp_path, monkeypatch):
    small, large = tmp_path / "python3", tmp_path / "libsomething.so"
    small.write_bytes(bytes(1000))
    large.write_bytes(bytes(2000))
    monkeypatch.setattr(source.sys, "executable", str(small))
    monkeypatch.setattr(source, "_mapped", lambda: [large, tmp_path / "deleted"])
    assert default_file() == large


def test_no_readable_file_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(source.sys, "executable", str(tmp_path / "gone"))
    monkeypatch.setattr(source, "_mapped", list)
    with pytest.raises(UnfitFile, match="name a FILE"):
        default_file()


def test_mapped_files_exist():
    assert any(path.exists() for path in source._mapped())


def test_the_size_of_a_good_file(tmp_path):
    path = tmp_path / "good"
    path.write_bytes(b"12345")
    assert check_file(path) == 5


def unfit(path: Path) -> str:
    with pytest.raises(UnfitFile) as caught:
        check_file(path)
    words = str(caught.value)
    assert "\n" not in words
    return words


def test_files_that_cannot_be_streamed(tmp_path):
    empty, pipe = tmp_path / "empty", tmp_path / "pipe"
    empty.touch()
    os.mkfifo(pipe)
    assert unfit(empty) == f"cannot stream {empty}: it is empty"
    assert unfit(tmp_path) == f"cannot stream {tmp_path}: it is a directory"
    assert unfit(pipe) == f"cannot stream {pipe}: it is not a regular file"
    assert unfit(Path("/dev/zero")) == "cannot stream /dev/zero: it is not a regular file"
    assert unfit(tmp_path / "no") == f"cannot read {tmp_path / 'no'}: No such file or directory"
    assert unfit(empty / "no") == f"cannot read {empty / 'no'}: Not a directory"
    assert "null" in unfit(Path("a\0b"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_must_not_be_read(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"secret")
    path.chmod(0)
    assert unfit(path) == f"cannot read {path}: Permission denied"
