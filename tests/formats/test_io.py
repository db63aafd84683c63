"""Bytes by position, and files that appear whole: whatever shrinks, fails, is full, or is written by two at once."""

from __future__ import annotations

import errno
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import says
from weightport.errors import Error, FormatError
from weightport.formats._io import CHUNK, ByteFile, Stream

DATA = bytes(range(200))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ByteFile]:
    (tmp_path / "f").write_bytes(DATA)
    with ByteFile(tmp_path / "f") as opened:
        yield opened


# Reading ------------------------------------------------------------------------------------------------------------


def test_reads(file: ByteFile, tmp_path: Path) -> None:
    assert file.path == str(tmp_path / "f")
    assert file.size == 200
    assert file.read(0, 200) == DATA
    assert file.read(199, 1) == b"\xc7"
    assert file.read(200, 0) == b""
    into = bytearray(3)
    file.read_into(197, memoryview(into))
    assert into == DATA[197:]
    assert os.fstat(file.fileno()).st_size == 200


@pytest.mark.parametrize(
    ("offset", "count", "at"), [(0, 201, 0), (200, 1, 200), (201, 0, 200), (-1, 2, 0), (5, -1, 5), (1 << 70, 1, 200)]
)
def test_outside_of_the_file(file: ByteFile, offset: int, count: int, at: int) -> None:
    what = f"truncated or corrupt: bytes {offset}..{offset + count} asked for, the file has 200"
    with says(FormatError, f"{file.path}: tensor 't' at byte {at}: {what}"):
        file.check(offset, count, tensor="t")
    with says(FormatError, f"{file.path}: tensor 't' at byte {at}: {what}"):
        file.read(offset, count, tensor="t")
    with says(FormatError, f"{file.path}: tensor 't' at byte {at}: {what}"):
        next(file.chunks(offset, count, tensor="t"))
    with says(FormatError, f"{file.path}: tensor 't' at byte {at}: {what}"):
        file.copy_to(-1, 0, offset, count, tensor="t")
    what = "truncated or corrupt: bytes 190..201 asked for, the file has 200"
    with says(FormatError, f"{file.path}: tensor 't' at byte 190: {what}"):
        file.read_into(190, memoryview(bytearray(11)), tensor="t")


def test_closed(file: ByteFile) -> None:
    file.close()
    file.close()
    with says(Error, f"{file.path}: is closed"):
        file.read(0, 1)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/dev/fd"))
    for path in (tmp_path, tmp_path / "pipe"):
        with says(FormatError, f"{path}: is not a regular file"):
            ByteFile(path)
    with says(FormatError, f"{tmp_path / 'none'}: cannot be opened: No such file or directory"):
        ByteFile(tmp_path / "none")
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(FormatError, match=r"cannot be opened: no file can have this name$"):
        ByteFile(name)


def test_as_a_file_object(file: ByteFile) -> None:
    stream = Stream(file)
    assert (stream.readable(), stream.seekable(), stream.writable()) == (True, True, False)
    whole = file.read(0, file.size)
    assert (stream.read(5), stream.tell()) == (whole[:5], 5)
    assert (stream.seek(-3, io.SEEK_END), stream.read()) == (file.size - 3, whole[-3:])
    assert (stream.seek(2), stream.seek(3, io.SEEK_CUR), stream.read(1)) == (2, 5, whole[5:6])
    assert (stream.seek(100, io.SEEK_END), stream.read(9)) == (file.size + 100, b"")


def test_a_program_that_is_started_does_not_get_the_file(file: ByteFile) -> None:
    assert not os.get_inheritable(file.fileno())


def test_a_file_that_shrinks(file: ByteFile) -> None:
    os.truncate(file.path, 150)
    what = "the file shrank while it was read"
    with says(FormatError, f"{file.path}: tensor 't' at byte 150: {what}"):
        file.read(100, 60, tensor="t")
    with says(FormatError, f"{file.path}: tensor 't' at byte 150: {what}"):
        file.read_into(100, memoryview(bytearray(60)), tensor="t")
    with says(FormatError, f"{file.path}: tensor 't' at byte 150: {what}"):
        list(file.chunks(100, 60, tensor="t"))
    with says(FormatError, f"{file.path}: tensor 't' at byte 150: {what}"):
        file.read_rows([0, 130], np.zeros((2, 30), np.uint8), None, tensor="t")


def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system reads and writes at most 7 bytes at a time, as it may."""
    pread, preadv, copy = os.pread, os.preadv, getattr(os, "copy_file_range", None)
    monkeypatch.setattr(os, "pread", lambda fd, count, at: pread(fd, min(count, 7), at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [memoryview(views[0])[:7]], at))
    if copy is not None:
        monkeypatch.setattr(os, "copy_file_range", lambda a, b, n, at, to: copy(a, b, min(n, 7), at, to))


def test_a_system_that_reads_less_than_asked_for(file: ByteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch)
    assert file.read(3, 100) == DATA[3:103]
    into = bytearray(100)
    file.read_into(3, memoryview(into))
    assert into == DATA[3:103]
    rows = np.zeros((2, 50), np.uint8)
    for chunk in (50, 20):
        rows[:] = 0
        assert file.read_rows([150, 10], rows, zlib.crc32, chunk) == [zlib.crc32(DATA[150:]), zlib.crc32(DATA[10:60])]
        assert rows.tobytes() == DATA[150:200] + DATA[10:60]


def test_rows(file: ByteFile) -> None:
    rows = np.zeros((3, 4), np.uint8)
    found = file.read_rows([196, 0, 7], rows, zlib.crc32)
    assert rows.tobytes() == DATA[196:200] + DATA[:4] + DATA[7:11]
    assert found == [zlib.crc32(DATA[at : at + 4]) for at in (196, 0, 7)]
    assert file.read_rows([196, 0, 7], rows, None) == [0, 0, 0]
    what = "truncated or corrupt: bytes 3..201 asked for, the file has 200"
    with says(FormatError, f"{file.path}: tensor 't' at byte 3: {what}"):
        file.read_rows([3, 197], np.zeros((2, 4), np.uint8), None, tensor="t")


def test_chunks(tmp_path: Path) -> None:
    data = os.urandom(CHUNK * 2 + 5)
    (tmp_path / "f").write_bytes(data)
    with ByteFile(tmp_path / "f") as file:
        pieces = list(file.chunks(2, len(data) - 2))
        assert [len(p) for p in pieces] == [CHUNK, CHUNK, 3]
        assert b"".join(pieces) == data[2:]
        assert list(file.chunks(5, 0)) == []


# Copies inside the system -------------------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    with open(tmp_path / "to", "w+b") as handle:
        handle.write(b"." * 20)
        handle.flush()
        yield handle.fileno()


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="only Linux has it")
class TestCopies:
    def test_a_range(self, file: ByteFile, target: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        short(monkeypatch)
        assert file.copy_to(target, 5, 100, 30)
        assert (tmp_path / "to").read_bytes() == b"....." + DATA[100:130]

    def test_the_file_shrinks(self, file: ByteFile, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
        short(monkeypatch)
        os.truncate(file.path, 110)
        with says(FormatError, f"{file.path}: tensor 't' at byte 110: the file shrank while it was read"):
            file.copy_to(target, 0, 100, 30, tensor="t")

    @pytest.mark.parametrize("code", ["EXDEV", "ENOSYS", "EINVAL", "EOPNOTSUPP", "EPERM", "EBADF"])
    def test_what_the_system_cannot(
        self, code: str, file: ByteFile, target: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no(*_: Any) -> int:
            raise OSError(getattr(errno, code), "no")

        monkeypatch.setattr(os, "copy_file_range", no)
        assert file.copy_to(target, 0, 0, 10) is False

    def test_what_fails_fails(self, file: ByteFile, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def no(*_: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "copy_file_range", no)
        with pytest.raises(OSError, match="No space left on device"):
            file.copy_to(target, 0, 0, 10)

    def test_a_system_without_it(self, file: ByteFile, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "copy_file_range")
        assert file.copy_to(target, 0, 0, 10) is False
