"""Zip archives that are laid out first: Python's own reader takes them, whatever their size."""

from __future__ import annotations

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
