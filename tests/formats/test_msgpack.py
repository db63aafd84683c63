"""msgpack, token by token: the msgpack library writes what is read, and reads what is written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from tests.support import need
from weightport.errors import FormatError
from weightport.formats import _msgpack as mp
from weightport.formats._io import ByteFile
from weightport.formats._msgpack import Token, Walker
from weightport.formats._proto import Memory


def token(data: bytes, at: int = 0, stop: int | None = None) -> Token:
    return Walker(Memory(data, "file"), stop).token(at)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x00", Token("int", 0, 1, value=0)),
        (b"\x7f", Token("int", 0, 1, value=127)),
        (b"\xe0", Token("int", 0, 1, value=-32)),
        (b"\xff", Token("int", 0, 1, value=-1)),
        (b"\x80", Token("map", 0, 1, 0)),
        (b"\x82    ", Token("map", 0, 1, 2)),
        (b"\x8f" + b" " * 30, Token("map", 0, 1, 15)),
        (b"\x9f" + b" " * 15, Token("array", 0, 1, 15)),
        (b"\xa0", Token("str", 0, 1, 0)),
        (b"\xbf" + b" " * 31, Token("str", 0, 1, 31)),
        (b"\xc0", Token("nil", 0, 1)),
        (b"\xc2", Token("bool", 0, 1, value=False)),
        (b"\xc3", Token("bool", 0, 1, value=True)),
        (b"\xc4\x02  ", Token("bin", 0, 2, 2)),
        (b"\xc5\x00\x02  ", Token("bin", 0, 3, 2)),
        (b"\xc6\x00\x00\x00\x02  ", Token("bin", 0, 5, 2)),
        (b"\xc7\x02\xff  ", Token("ext", 0, 3, 2, code=-1)),
        (b"\xc8\x00\x02\x07  ", Token("ext", 0, 4, 2, code=7)),
        (b"\xc9\x00\x00\x00\x02\x07  ", Token("ext", 0, 6, 2, code=7)),
        (b"\xca\xc0\x20\x00\x00", Token("float", 0, 5, value=-2.5)),
        (b"\xcb\xc0\x04" + bytes(6), Token("float", 0, 9, value=-2.5)),
        (b"\xcc\xff", Token("int", 0, 2, value=255)),
        (b"\xcd\xff\xfe", Token("int", 0, 3, value=65_534)),
        (b"\xce\xff\xff\xff\xfe", Token("int", 0, 5, value=(1 << 32) - 2)),
        (b"\xcf" + b"\xff" * 8, Token("int", 0, 9, value=(1 << 64) - 1)),
        (b"\xd0\xfe", Token("int", 0, 2, value=-2)),
        (b"\xd1\xff\xfe", Token("int", 0, 3, value=-2)),
        (b"\xd2\xff\xff\xff\xfe", Token("int", 0, 5, value=-2)),
        (b"\xd3" + b"\xff" * 8, Token("int", 0, 9, value=-1)),
        (b"\xd4\xff ", Token("ext", 0, 2, 1, code=-1)),
        (b"\xd5\x01  ", Token("ext", 0, 2, 2, code=1)),
        (b"\xd6\x01" + b" " * 4, Token("ext", 0, 2, 4, code=1)),
        (b"\xd7\x01" + b" " * 8, Token("ext", 0, 2, 8, code=1)),
        (b"\xd8\x01" + b" " * 16, Token("ext", 0, 2, 16, code=1)),
        (b"\xd9\x02  ", Token("str", 0, 2, 2)),
        (b"\xda\x00\x02  ", Token("str", 0, 3, 2)),
        (b"\xdb\x00\x00\x00\x02  ", Token("str", 0, 5, 2)),
        (b"\xdc\x00\x02  ", Token("array", 0, 3, 2)),
        (b"\xdd\x00\x00\x00\x02  ", Token("array", 0, 5, 2)),
        (b"\xde\x00\x02    ", Token("map", 0, 3, 2)),
        (b"\xdf\x00\x00\x00\x02    ", Token("map", 0, 5, 2)),
    ],
)
def test_every_kind_of_token(data: bytes, expected: Token) -> None:
    """At the very end of the data, and one byte short of it."""
    found = token(data)
    assert found == expected
    assert type(found.value) is type(expected.value)
    assert found.end == (found.start if found.kind in ("map", "array") else len(data))
    if len(data) > 1:
        with pytest.raises(FormatError, match="truncated"):
            token(data, stop=len(data) - 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b" \xc1", " at byte 1: no msgpack begins with the byte 0xc1"),
        (b" ", " at byte 1: truncated: the data end here"),
        (b" \xcd\0", " at byte 3: truncated: the data end here"),
        (b" \xdb\xff\xff\xff\xff ", " at byte 1: truncated or corrupt: str of 4,294,967,295, 1 bytes are left"),
        (b" \x93\0\0", " at byte 1: truncated or corrupt: array of 3, 2 bytes are left"),
        (b" \x82\0\0\0", " at byte 1: truncated or corrupt: map of 2, 3 bytes are left"),
    ],
)
def test_what_is_no_token(data: bytes, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        token(data, 1)
    assert str(caught.value) == f"file{message}"


def test_text() -> None:
    walker = Walker(Memory(b" \xa2\xc3\xa9\xa1\xff", "file"))
    assert walker.text(walker.token(1)) == "é"
    with pytest.raises(FormatError) as caught:
        walker.text(walker.token(4))
    assert str(caught.value) == "file at byte 4: a string that is no UTF-8"


def test_neighbours_are_read_along() -> None:
    """One read for what lies together, none for what is passed over; ``read`` says how much it was."""
    data = b"\x01" * 4096 + b"\xc6\0\1\0\0" + bytes(1 << 16) + b"\xcd\x01\x02"
    reads: list[tuple[int, int]] = []

    class Told(Memory):
        def read(self, offset: int, count: int, **options: Any) -> bytes:
            reads.append((offset, count))
            return super().read(offset, count, **options)

    walker = Walker(Told(data, "file"))
    assert [walker.token(at).value for at in (0, 1, 4095, 5, 0)] == [1] * 5
    assert (reads, walker.read) == ([(0, 4096)], 4096)
    large = walker.token(4096)
    assert walker.token(large.end).value == 258
    assert reads[1:] == [(4096, 4096), (len(data) - 3, 3)]
    assert walker.read == 8195
    assert walker.token(0).value == 1
    assert reads[3:] == [(0, 4096)]
    assert walker._bytes(1, 5000) == data[1:5001]
    assert reads[4:] == [(1, 5000)]


SIZES = [0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 255, 256, 65_535, 65_536]


@pytest.mark.parametrize("size", SIZES)
def test_heads_are_the_librarys(size: int) -> None:
    packer = need("msgpack").Packer(autoreset=True)
    assert mp.head(mp.TEXT, size) == packer.pack("x" * size)[: -size or None]
    assert mp.text("x" * size) == packer.pack("x" * size)
    assert mp.head(mp.BINARY, size) == packer.pack(b"x" * size)[: -size or None]
    assert mp.head(mp.ARRAY, size) == packer.pack_array_header(size)
    assert mp.head(mp.MAP, size) == packer.pack_map_header(size)
    for code in (1, -1):
        made = mp.head(mp.EXT, size, code)
        # The library packs no negative codes.
        expected = packer.pack_ext_type(1, b"x" * size)[: -size or None][:-1] + bytes([code & 0xFF])
        assert made == expected
        assert token(made + bytes(size)) == Token("ext", 0, len(made), size, code=code)


@pytest.mark.parametrize("kind", [mp.TEXT, mp.BINARY, mp.ARRAY, mp.MAP, mp.EXT])
def test_more_than_the_format_holds(kind: str) -> None:
    assert mp.head(kind, (1 << 32) - 1)[1:5] == b"\xff\xff\xff\xff"
    with pytest.raises(OverflowError, match=r"^msgpack holds 4,294,967,296 bytes at most, not 4,294,967,296$"):
        mp.head(kind, 1 << 32)


EDGES = [0, 1, 127, 128, 255, 256, 65_535, 65_536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1]
NEGATIVE = [-1, -32, -33, -128, -129, -32_768, -32_769, -(1 << 31), -(1 << 31) - 1, -(1 << 63)]


@pytest.mark.parametrize("value", [*EDGES, *NEGATIVE, True, False, 0.0, -2.5, 1e300, float("inf")])
def test_numbers_are_the_librarys(value: float) -> None:
    assert mp.number(value) == need("msgpack").packb(value)


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1])
def test_numbers_beyond_the_formats(value: int) -> None:
    with pytest.raises(OverflowError, match=rf"^{value} is beyond msgpack's integers$"):
        mp.number(value)


def test_a_range_is_copied_in_pieces() -> None:
    data = bytes(range(256)) * 4
    counts: list[int] = []

    class Told(Memory):
        def read(self, offset: int, count: int, **options: Any) -> bytes:
            counts.append(count)
            return super().read(offset, count, **options)

    out = io.BytesIO()
    mp.copy(Told(data, "file"), 3, 1000, out, 300)
    assert (out.getvalue(), counts) == (data[3:1000], [300, 300, 300, 97])
    mp.copy(Told(data, "file"), 5, 5, out)
    assert counts == [300, 300, 300, 97]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x81\xa1a\x01", True),
        (b"\x81\xa1a", False),
        (b"\x81\xa1a\xc1", False),
        (b"\x80", False),
        (b"\x81\xa0\x01", False),
        (b"\x81\x01\x01", False),
        (b"\x81\xa1\n\x01", False),
        (b"\x81\xa1\xff\x01", False),
        (b"\x91\xa1a", False),
        (b"\xa1a", False),
        (b"\x81\xda\x10\x00" + b"a" * 4096 + b"\x01", True),
        (b"\x81\xda\x10\x01" + b"a" * 4097 + b"\x01", False),
        (b"", False),
    ],
)
def test_told_by_its_first_key(tmp_path: Path, data: bytes, expected: bool) -> None:
    (tmp_path / "x").write_bytes(data)
    assert mp.is_map(str(tmp_path / "x")) is expected
    assert not mp.is_map(str(tmp_path))


def test_a_file_that_was_closed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x01")
    with ByteFile(tmp_path / "x") as file:
        assert Walker(file).token(0).value == 1
