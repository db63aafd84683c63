"""Protobuf's wire format, field by field: what a message holds, and what a damaged one is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import says
from weightport.errors import FormatError
from weightport.formats._io import ByteFile
from weightport.formats._proto import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    Memory,
    Window,
    fields,
    located,
    signed,
    spans,
    varint,
)
from weightport.formats._table import put_varint

# 1: the varint 5, 2: "abc", 3: a fixed32, 4: a fixed64, 300: the varint 300, 5: nothing.
MESSAGE = bytes.fromhex("0805 1203616263 1d04030201 210807060504030201 e012ac02 2a00".replace(" ", ""))
FIELDS: list[tuple[int, int, int | bytes]] = [
    (1, VARINT, 5),
    (2, BYTES, b"abc"),
    (3, FIXED32, 0x01020304),
    (4, FIXED64, 0x0102030405060708),
    (300, VARINT, 300),
    (5, BYTES, b""),
]


def test_fields_of_a_message_in_memory() -> None:
    assert list(fields(MESSAGE, "f")) == FIELDS
    assert list(fields(memoryview(MESSAGE), "f")) == FIELDS
    assert list(fields(b"", "f")) == []


def test_where_the_fields_of_a_file_lie() -> None:
    file = Memory(b"xx" + MESSAGE + b"\xff", "f")
    assert list(located(file, 2, 2 + len(MESSAGE))) == [
        (1, VARINT, 5, 0, 2, 4),
        (2, BYTES, 6, 3, 4, 9),
        (3, FIXED32, 0x01020304, 0, 9, 14),
        (4, FIXED64, 0x0102030405060708, 0, 14, 23),
        (300, VARINT, 300, 0, 23, 27),
        (5, BYTES, 29, 0, 27, 29),
    ]
    assert list(spans(file, 2, 9)) == [(1, VARINT, 5, 0), (2, BYTES, 6, 3)]


@pytest.mark.parametrize("last", [b"\x1d\1\2\3\4", b"\x21\1\2\3\4\5\6\7\x08", b"\x0a\2ab", b"\x08\x7f"])
def test_the_last_field_may_end_where_the_message_ends(last: bytes) -> None:
    assert len(list(fields(MESSAGE + last, "f"))) == 7
    assert len(list(spans(Memory(MESSAGE + last, "f"), 0, len(MESSAGE + last)))) == 7


class Counted(Memory):
    """Counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "f")
        self.asked: list[tuple[int, int]] = []

    def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes:
        self.asked.append((offset, count))
        return super().read(offset, count, tensor=tensor)


def test_payloads_are_passed_over_and_small_fields_are_read_together() -> None:
    big = b"\x0a" + put_varint(1 << 20) + bytes(1 << 20)
    file = Counted(big + b"\x08\x01" * 5000)
    found = list(spans(file, 0, file.size))
    assert found == [(1, BYTES, 4, 1 << 20)] + [(1, VARINT, 1, 0)] * 5000
    assert file.asked[:2] == [(0, 4096), (4 + (1 << 20), 4096)]
    # A window is read again once less than a key and a size fit into what is left of it.
    assert [o - (4 + (1 << 20)) for o, _ in file.asked[1:]] == [0, 4074, 8148]
    assert sum(n for _, n in file.asked) == 4096 + 4096 + 4096 + (10_000 - 8148)
    assert file.asked[-1] == (4 + (1 << 20) + 8148, 10_000 - 8148)


def test_a_field_across_the_edge_of_a_window() -> None:
    # Keys and sizes as long as they can be, so that each of many comes to lie across an edge.
    field = b"\x0a" + b"\x83\x80\x80\x80\x80\x80\x80\x80\x80\x00" + b"abc"
    file = Memory(field * 1000, "f")
    assert [(at, size) for _, _, at, size in spans(file, 0, file.size)] == [(14 * n + 11, 3) for n in range(1000)]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x08\x01\x00\x01", "f at byte 2: field number 0"),
        (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01\x01", "f at byte 0: malformed varint"),
        (b"\x08\x01\x80", "f at byte 2: malformed varint"),
        (b"\x08\x01\x08", "f at byte 3: malformed varint"),
        (b"\x08\x01\x08\x80", "f at byte 3: malformed varint"),
        (b"\x08\x01\x0a\x80", "f at byte 3: malformed varint"),
        (b"\x08\x01\x0a\x02x", "f at byte 2: a field of 2 bytes in 1 that are left"),
        (b"\x08\x01\x0a\x80\x01x", "f at byte 2: a field of 128 bytes in 1 that are left"),
        (b"\x08\x01\x0d\1\2\3", "f at byte 2: a fixed-size field is cut off"),
        (b"\x08\x01\x09\1\2\3\4\5\6\7", "f at byte 2: a fixed-size field is cut off"),
        (b"\x08\x01\x0b", "f at byte 2: unknown wire type 3"),
        (b"\x08\x01\x0c", "f at byte 2: unknown wire type 4"),
        (b"\x08\x01\x0f", "f at byte 2: unknown wire type 7"),
    ],
)
def test_damaged(data: bytes, what: str) -> None:
    with says(FormatError, what):
        list(fields(data, "f"))
    with says(FormatError, what):
        list(located(Memory(data, "f"), 0, len(data)))
    # The same at another place in a file: the offsets are the file's.
    at = int(what.split()[3].rstrip(":"))
    with says(FormatError, what.replace(f"byte {at}:", f"byte {at + 10}:")):
        list(fields(data, "f", 10))
    with says(FormatError, what.replace(f"byte {at}:", f"byte {at + 10}:")):
        list(located(Memory(b"y" * 10 + data + b"\0" * 40, "f"), 10, 10 + len(data)))


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"\x00", 0),
        (b"\x7f", 127),
        (b"\x80\x01", 128),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", (1 << 64) - 1),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", (1 << 64) - 1),  # bits beyond 64 are dropped, as protobuf does
        (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 0),
    ],
)
def test_varint(data: bytes, value: int) -> None:
    assert varint(b"x" + data + b"y", 1, 2 + len(data), "f") == (value, 1 + len(data))
    assert varint(data, 0, len(data), "f") == (value, len(data))
    with says(FormatError, "f at byte 101: malformed varint"):
        varint(b"x" + data, 1, len(data), "f", 100)


def test_a_varint_has_at_most_ten_bytes() -> None:
    with says(FormatError, "f at byte 0: malformed varint"):
        varint(b"\x80" * 10 + b"\x00", 0, 11, "f")


@given(st.integers(0, (1 << 64) - 1))
def test_varints_are_written_and_read(value: int) -> None:
    data = put_varint(value)
    assert varint(data, 0, len(data), "f") == (value, len(data))
    assert len(data) == max(1, -(-value.bit_length() // 7))


def test_signed() -> None:
    assert [signed(n) for n in (0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)] == [0, 1, (1 << 63) - 1, -(1 << 63), -1]


def window(path: Path) -> Window:
    (path / "f").write_bytes(b"..0123456789..")
    with ByteFile(path / "f") as file:
        return Window(file, 2, 12)


def memory(path: Path) -> Memory:
    return Memory(b"..0123456789", path / "f")


@pytest.mark.parametrize("make", [window, memory])
def test_readable(make: Callable[[Path], Any], tmp_path: Path) -> None:
    file = make(tmp_path)
    assert file.path == str(tmp_path / "f")
    assert file.size == 12
    assert file.read(2, 10) == b"0123456789"
    assert file.read(4, 3) == b"234"
    assert file.read(12, 0) == b""
    into = bytearray(3)
    file.read_into(9, memoryview(into))
    assert into == b"789"
    for offset, count in ((2, 11), (12, 1), (13, 0), (3, -1), (-1, 1)):
        what = f"{count} bytes asked for at {offset} of 12"
        with says(FormatError, f"{file.path}: tensor 'a/w': {what}"):
            file.check(offset, count, tensor="a/w")
        with says(FormatError, f"{file.path}: tensor 'a/w': {what}"):
            file.read(offset, count, tensor="a/w")
    with says(FormatError, f"{file.path}: tensor 'a/w': 3 bytes asked for at 10 of 12"):
        file.read_into(10, memoryview(into), tensor="a/w")


def test_a_memory_begins_at_0_a_window_where_it_was_cut(tmp_path: Path) -> None:
    assert memory(tmp_path).read(0, 2) == b".."
    memory(tmp_path).check(0, 12)
    window(tmp_path).check(2, 10)
    with says(FormatError, f"{tmp_path / 'f'}: 2 bytes asked for at 1 of 12"):
        window(tmp_path).read(1, 2)
