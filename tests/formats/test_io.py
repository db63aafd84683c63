"""Bytes by position, and files that appear whole: whatever shrinks, fails, is full, or is written by two at once."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import says
from weightport.errors import Error, FormatError
from weightport.formats import _io
from weightport.formats._io import CHUNK, ByteFile, atomic_file, atomic_path, atomic_set, fsync_folder, locked_folder

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
    file.read_rows([150, 10], rows, None)
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


# Writing ------------------------------------------------------------------------------------------------------------


def fill(path: Path, data: bytes) -> None:
    with atomic_file(path) as out:
        out.write(data)


def left(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_new_file_has_the_mode_that_the_umask_says(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        fill(tmp_path / "f", b"new")
    finally:
        assert os.umask(umask) == 0o027
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    assert (tmp_path / "f").read_bytes() == b"new"
    assert left(tmp_path) == ["f"]


def test_an_old_file_keeps_its_mode_and_its_links(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "f").write_bytes(b"old")
    (tmp_path / "there" / "f").chmod(0o604)
    (tmp_path / "link").symlink_to("there/f")
    fill(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "f").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "there" / "f").stat().st_mode) == 0o604
    assert left(tmp_path) == ["link", "there"]
    assert left(tmp_path / "there") == ["f"]


def test_it_is_the_old_file_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with atomic_path(tmp_path / "f") as temporary:
        Path(temporary).write_bytes(b"new")
        assert (tmp_path / "f").read_bytes() == b"old"
        assert os.path.dirname(temporary) == str(tmp_path)
        name = os.path.basename(temporary)
        assert name.startswith(".f.")
        assert name.endswith(".weightport-tmp")
    assert (tmp_path / "f").read_bytes() == b"new"


def test_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are durable before the name, and the name before anybody is told."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    fill(tmp_path / "f", b"new")
    assert done == ["file", "rename", "folder"]
    done.clear()
    fsync_folder(tmp_path)
    assert done == ["folder"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with says(Error, f"{tmp_path}: is a directory, not a file to write"):
        fill(tmp_path, b"")
    with says(Error, f"{tmp_path / 'no' / 'f'}: cannot be written: No such file or directory"):
        fill(tmp_path / "no" / "f", b"")
    assert left(tmp_path) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with says(Error, f"{tmp_path / 'f'}: cannot be written: No space left on device"), atomic_file(tmp_path / "f"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with says(Error, f"{tmp_path / 'f'}: cannot be written: of its own making"), atomic_file(tmp_path / "f"):
        raise OSError("of its own making")
    with pytest.raises(KeyError), atomic_file(tmp_path / "f"):
        raise KeyError

    def no(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", no)
    with says(Error, f"{tmp_path / 'f'}: cannot be written: Input/output error"):
        fill(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert left(tmp_path) == ["f"]


def test_what_cannot_be_cleaned_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(_io, "_remove_stale", no)
    fill(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    mine = ".f(1).abc_12.weightport-tmp"
    others = [
        ".f1.abc.weightport-tmp",
        ".f(1).a-b.weightport-tmp",
        "f(1).abc.weightport-tmp",
        ".f(1).abc.weightport-tmpx",
    ]
    for name in (mine, *others):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / ".f(1).link.weightport-tmp").symlink_to("elsewhere")
    fill(tmp_path / "f(1)", b"new")
    assert left(tmp_path) == sorted(["f(1)", "elsewhere", ".f(1).link.weightport-tmp", *others])


def test_what_somebody_writes_is_left_alone(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "f") as first:
        Path(first).write_bytes(b"first")
        with open(first, "rb") as handle:
            assert not _io.try_lock(handle.fileno())
        fill(tmp_path / "f", b"second")
        assert Path(first).exists()
        assert (tmp_path / "f").read_bytes() == b"second"
    assert (tmp_path / "f").read_bytes() == b"first"
    assert left(tmp_path) == ["f"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no)
    (tmp_path / ".f.abc.weightport-tmp").write_bytes(b"left")
    fill(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert left(tmp_path) == [".f.abc.weightport-tmp", "f"], "nobody can tell whether it is still written"


def test_one_writer_at_a_time_in_a_folder(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        with locked_folder(tmp_path):
            assert not _io.try_lock(handle)
        assert _io.try_lock(handle)
    finally:
        os.close(handle)


# Several files ------------------------------------------------------------------------------------------------------


def write_set(folder: Path, part: str) -> None:
    def stale(name: str) -> bool:
        assert (folder / "set").read_bytes() == part.encode(), "asked after the file was committed"
        return name != part

    with atomic_set(folder / "set", r"p\d+", stale) as out:
        fill(folder / part, b"part")
        out.write(part.encode())


def test_parts_of_the_old_model_are_removed(tmp_path: Path) -> None:
    for name in ("p1", "p22", "other", "p3x", "xp3"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".p9.abc.weightport-tmp").write_bytes(b"")
    (tmp_path / ".set.abc.weightport-tmp").write_bytes(b"")
    (tmp_path / "p5").mkdir()
    write_set(tmp_path, "p4")
    assert left(tmp_path) == ["other", "p3x", "p4", "p5", "set", "xp3"]


@pytest.mark.parametrize("busy", ["set", "p7"])
def test_parts_stay_while_somebody_is_at_work(busy: str, tmp_path: Path) -> None:
    (tmp_path / "p1").write_bytes(b"")
    with atomic_path(tmp_path / busy):
        write_set(tmp_path, "p4")
        assert {"p1", "p4", "set"} < set(left(tmp_path))
    write_set(tmp_path, "p4")
    assert left(tmp_path) == ["p4", "set"]


def test_a_set_that_fails_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "p1").write_bytes(b"")
    with pytest.raises(KeyError), atomic_set(tmp_path / "set", r"p\d+", lambda _: True):
        raise KeyError
    assert left(tmp_path) == ["p1"]
