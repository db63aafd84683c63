"""Zip archives that are laid out first: Python's own reader takes them, whatever their size."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from weightport.formats._zipwrite import ALIGNED, Archive


def made(path: Path, members: dict[str, int | bytes], checksums: dict[str, int], comment: bytes = b"") -> Archive:
    archive = Archive(members, comment)
    with path.open("w+b") as out:
        archive.begin(out)
    with path.open("r+b") as out:
        archive.finish(out, checksums)
    return archive


def test_members_known_and_not(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    members: dict[str, int | bytes] = {"a/known": b"hello", "a/later": 7, "a/empty": 0, "a/né": b"x" * 100}
    archive = Archive(members, b"comment")
    with path.open("w+b") as out:
        archive.begin(out)
        out.seek(archive.offsets["a/later"])
        out.write(b"content")
        archive.finish(out, {"a/later": zlib.crc32(b"content"), "a/empty": 0})
    assert all(at % ALIGNED == 0 for at in archive.offsets.values())
    with zipfile.ZipFile(path) as found:
        assert found.testzip() is None
        assert found.comment == b"comment"
        assert {n: found.read(n) for n in found.namelist()} == {
            "a/known": b"hello", "a/later": b"content", "a/empty": b"", "a/né": b"x" * 100,
        }  # fmt: skip
        assert {info.date_time for info in found.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_golden_bytes(tmp_path: Path) -> None:
    made(tmp_path / "a.zip", {"a": b"hello", "é": 2}, {"é": 0xAABBCCDD}, b"note")
    crc = zlib.crc32(b"hello").to_bytes(4, "little")
    plain = b"\x14\0" + b"\0\0" + b"\0\0" + b"\0\0\x21\0"
    text = b"\x14\0" + b"\0\x08" + b"\0\0" + b"\0\0\x21\0"
    first = crc + b"\5\0\0\0" * 2 + b"\1\0"
    second = b"\xdd\xcc\xbb\xaa" + b"\2\0\0\0" * 2 + b"\2\0"
    content = b"PK\3\4" + plain + first + b"\x21\0" + b"a" + b"FB\x1d\0" + b"Z" * 29 + b"hello"
    content += b"PK\3\4" + text + second + b"\x1b\0" + "é".encode() + b"FB\x17\0" + b"Z" * 23 + b"\0\0"
    directory = b"PK\1\2\x14\3" + plain + first + bytes(10) + b"\x80\x01" + bytes(4) + b"a"
    directory += b"PK\1\2\x14\3" + text + second + bytes(10) + b"\x80\x01" + b"\x45\0\0\0" + "é".encode()
    end = b"PK\5\6" + bytes(4) + b"\2\0\2\0" + b"\x5f\0\0\0" + b"\x82\0\0\0" + b"\4\0note"
    found = (tmp_path / "a.zip").read_bytes()
    assert found == content + directory + end
    assert Archive({"a": 0})._comment == b""


LIMIT = (1 << 32) - 1
"""What 32 bits cannot say any more: it stands for "see the extra field"."""


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 70])
def test_sizes_and_places_around_4_gib(tmp_path: Path, size: int) -> None:
    """Field by field, since readers differ in which they look at."""
    path = tmp_path / "a.zip"
    large = size >= LIMIT
    archive = made(path, {"a": size, "b": 1}, {"a": 7, "b": 9}, b"note")
    with path.open("rb") as out:
        head = out.read(30 + 1 + 64)
        out.seek(archive.offsets["b"] + 1)
        rest = out.read()
    packed = struct.pack("<QQ", size, size)
    extra = b"\1\0\x10\0" + packed if large else b""
    padding = archive.offsets["a"] - 31 - len(extra) - 4
    assert archive.offsets["a"] == 64
    sizes = struct.pack("<II", *[min(size, LIMIT)] * 2)
    version = b"\x2d\0" if large else b"\x14\0"
    date = b"\0\0\x21\0"
    lengths = struct.pack("<HH", 1, len(extra) + 4 + padding)
    assert head[:64] == (
        b"PK\3\4" + version + bytes(4) + date + struct.pack("<I", 7) + sizes + lengths
        + b"a" + extra + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    )  # fmt: skip
    at = 64 + size
    assert archive.offsets["b"] == at + 35 + -(at + 35) % 64
    record = b"PK\1\2" + version[:1] + b"\3" + version + bytes(4) + date + struct.pack("<I", 7) + sizes
    record += struct.pack("<HHHHHII", 1, len(extra), 0, 0, 0, 0o600 << 16, 0) + b"a" + extra
    far = struct.pack("<HHQ", 1, 8, at) if at >= LIMIT else b""
    version = b"\x2d\0" if far else b"\x14\0"
    record += b"PK\1\2" + version[:1] + b"\3" + version + bytes(4) + date + struct.pack("<III", 9, 1, 1)
    record += struct.pack("<HHHHHII", 1, len(far), 0, 0, 0, 0o600 << 16, min(at, LIMIT)) + b"b" + far
    end = archive.offsets["b"] + 1
    last = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 0x032D, 45, 0, 0, 2, 2, len(record), end)
    last += struct.pack("<4sIQI", b"PK\6\7", 0, end + len(record), 1)
    last += struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 2, 2, len(record), LIMIT, 4) + b"note"
    assert rest == record + last


@pytest.mark.parametrize("start", [LIMIT - 1, LIMIT])
def test_a_directory_that_begins_around_4_gib(tmp_path: Path, start: int) -> None:
    made(tmp_path / "a.zip", {"a": start - 64}, {"a": 0})
    with (tmp_path / "a.zip").open("rb") as out:
        out.seek(start)
        rest = out.read()
    assert (b"PK\6\6" in rest) == (start == LIMIT)


@pytest.mark.parametrize("count", [65_534, 65_535])
def test_numbers_of_members_around_what_the_end_record_can_count(tmp_path: Path, count: int) -> None:
    made(tmp_path / "a.zip", {f"{n:x}": b"" for n in range(count)}, {})
    raw = (tmp_path / "a.zip").read_bytes()
    assert raw[-14:-10] == struct.pack("<HH", count, count)
    assert (raw[-22 - 20 : -22 - 16] == b"PK\6\7") == (count == 65_535)


def test_the_file_ends_where_the_content_does(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"old" * 1000)
    archive = Archive({"a": 3})
    with path.open("r+b") as out:
        archive.begin(out)
    assert path.stat().st_size == 67


def test_content_of_another_checksum_is_not_taken(tmp_path: Path) -> None:
    made(tmp_path / "a.zip", {"a": 3}, {"a": 1})
    with zipfile.ZipFile(tmp_path / "a.zip") as found, pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
        found.read("a")


def test_members_beyond_4_gib(tmp_path: Path) -> None:
    large = 5 << 30  # a hole, that takes no room
    path = tmp_path / "a.zip"
    archive = made(path, {"small": b"1", "large": large, "after": b"22"}, {"large": 0})
    with zipfile.ZipFile(path) as found:
        assert [(i.filename, i.file_size, i.compress_size) for i in found.infolist()] == [
            ("small", 1, 1), ("large", large, large), ("after", 2, 2),
        ]  # fmt: skip
        assert found.read("after") == b"22"
        with found.open("large") as member:
            assert member.read(3) == b"\0\0\0"
    assert archive.offsets["after"] > large


def test_more_members_than_the_old_end_record_can_count(tmp_path: Path) -> None:
    members: dict[str, int | bytes] = {str(number): b"" for number in range(70_000)}
    made(tmp_path / "a.zip", members, {})
    with zipfile.ZipFile(tmp_path / "a.zip") as found:
        assert found.namelist() == list(members)
