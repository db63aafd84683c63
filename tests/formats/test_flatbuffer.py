"""FlatBuffers by position: fields that are there, that are not, and offsets that lead out of the file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from weightport.errors import FormatError
from weightport.formats._flatbuffer import FlatBuffer, Table
from weightport.formats._io import ByteFile


@contextmanager
def opened(path: Path, data: bytes) -> Iterator[FlatBuffer]:
    path.write_bytes(data)
    with ByteFile(path) as file:
        yield FlatBuffer(file)


def table(*fields: bytes | None) -> bytes:
    """A file of one table, its vtable before it; what fields refer to comes behind it."""
    size, offsets, inline = 4, [], b""
    for field in fields:
        offsets.append(0 if field is None else size + len(inline))
        inline += field or b""
    vtable = struct.pack(f"<HH{len(offsets)}H", 4 + 2 * len(offsets), size + len(inline), *offsets)
    return struct.pack("<I", 4 + len(vtable)) + vtable + struct.pack("<i", len(vtable)) + inline


def message(path: Path, data: bytes, act: Callable[[Table], object]) -> str:
    with pytest.raises(FormatError) as caught, opened(path, data) as buffer:
        act(buffer.root())
    return str(caught.value).removeprefix(str(path))


def test_fields_that_are_numbers(tmp_path: Path) -> None:
    data = table(b"\xfe\xff", None, b"\xff\1\0\0", b"\7")
    with opened(tmp_path / "x", data) as buffer:
        root = buffer.root()
        assert (root.at, root.buffer, buffer.path) == (16, buffer, str(tmp_path / "x"))
        assert (root.field(0), root.field(1), root.field(2), root.field(3), root.field(4)) == (20, None, 22, 26, None)
        assert (root.number(0, 2), root.number(0, 2, signed=True)) == (65_534, -2)
        assert (root.number(1, 2), root.number(1, 2, 5), root.number(9, 4, -1)) == (0, 5, -1)
        assert (root.number(2, 4), root.number(3, 1)) == (511, 7)


def test_tables_vectors_and_text(tmp_path: Path) -> None:
    data = bytearray(table(bytes(4), bytes(4), bytes(4), bytes(4), None))
    base, start = len(data), 18
    inner = table(b"\5")  # 4 bytes that lead to it, its vtable, and the table at 10
    data += inner
    for number, at in enumerate((base + 10, base + 15, base + 23, base + 31)):
        place = start + 4 + 4 * number
        data[place : place + 4] = struct.pack("<I", at - place)
    data += struct.pack("<I4s", 3, b"\1\2\3\0")
    data += struct.pack("<Ii", 1, base + 10 - (base + 27))
    data += struct.pack("<I", 3) + b"a\xffb"
    with opened(tmp_path / "x", bytes(data)) as buffer:
        root = buffer.root()
        found = root.table(0)
        assert found is not None
        assert (found.at, found.number(0, 1)) == (base + 10, 5)
        assert root.table(4) is None
        assert root.vector(1, 1) == (base + 19, 3)
        assert root.vector(4, 1) == (0, 0)
        assert root.text(3) == "a\\xffb"
        assert root.text(3, 3) == "a\\xffb"
        assert root.text(4) == ""
        with pytest.raises(FormatError) as caught:
            root.text(3, 2)
        assert str(caught.value) == f"{tmp_path / 'x'} at byte {base + 35}: a name of 3 bytes"


def test_a_vector_of_tables(tmp_path: Path) -> None:
    data = bytearray(table(bytes(4)))
    at = len(data)
    data[14:18] = struct.pack("<I", at - 14)
    data += struct.pack("<III", 2, 0, 0)
    for number, value in enumerate((b"\5", b"\6")):
        place = at + 4 + 4 * number
        data[place : place + 4] = struct.pack("<I", len(data) + 10 - place)
        data += table(value)
    with opened(tmp_path / "x", bytes(data)) as buffer:
        begin, count = buffer.root().tables(0)
        assert (begin, count) == (at + 4, 2)
        assert [buffer.root().element(begin, index).number(0, 1) for index in range(2)] == [5, 6]


@pytest.mark.parametrize(
    ("vtable", "fits"),
    [((4, 4), True), ((3, 4), False), ((5, 4), False), ((2, 4), False), ((4, 3), False), ((0, 0), False)],
)
def test_tables_of_no_size(tmp_path: Path, vtable: tuple[int, int], fits: bool) -> None:
    data = struct.pack("<IHHii", 8, *vtable, 4, 0)
    if fits:
        with opened(tmp_path / "x", data) as buffer:
            assert buffer.root().field(0) is None
    else:
        assert message(tmp_path / "x", data, lambda root: root) == " at byte 8: malformed table"


def test_a_field_outside_of_its_table(tmp_path: Path) -> None:
    for offset, fits in ((7, True), (8, False), (200, False)):
        data = struct.pack("<IHHHHii", 12, 8, 8, 0, offset, 8, 0) + bytes(8)
        if fits:
            with opened(tmp_path / "x", data) as buffer:
                assert buffer.root().field(1) == 19
        else:
            expected = " at byte 12: field 1 lies outside its table"
            assert message(tmp_path / "x", data, lambda root: root.field(1)) == expected


def test_what_lies_outside_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    whole = table(bytes(4), b"\x03\0\0\0")
    size = len(whole)

    def vector(root: Table) -> None:
        root.vector(1, 2)

    # At 20 stands the number 3: a vector there begins at 23, and its count is the four bytes before the end.
    data = whole + b"\0" + struct.pack("<I", 0) + bytes(4)
    data = data[:20] + struct.pack("<I", size - 20) + struct.pack("<I", 3) + b"12345"
    asked = f"bytes {size + 4}..{size + 10} asked for, the file has {size + 9}"
    assert message(path, data, vector) == f" at byte {size + 4}: truncated or corrupt: {asked}"
    with opened(path, data + b"6") as buffer:
        assert buffer.root().vector(1, 2) == (size + 4, 3)
    data = struct.pack("<Ii", 4, 100) + bytes(8)
    assert message(path, data, vector) == " at byte 0: truncated or corrupt: bytes -96..-92 asked for, the file has 16"
    assert message(path, b"\xff\0\0\0", vector) == (
        " at byte 4: truncated or corrupt: bytes 255..259 asked for, the file has 4"
    )


def test_neighbours_are_read_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 256
    with opened(tmp_path / "x", data) as buffer:
        reads = []
        read = buffer.file.read
        monkeypatch.setattr(buffer.file, "read", lambda at, count: reads.append((at, count)) or read(at, count))
        assert [buffer.bytes(at, 3) for at in (5, 8, 5, 16_386)] == [data[at : at + 3] for at in (5, 8, 5, 16_386)]
        assert reads == [(5, 16_384)]
        assert buffer.bytes(16_387, 3) == data[16_387:16_390]
        assert buffer.bytes(4, 1) == b"\4"
        assert buffer.bytes(65_530, 6) == data[65_530:]
        assert buffer.bytes(1, 20_000) == data[1:20_001]
        assert reads[1:] == [(16_387, 16_384), (4, 16_384), (65_530, 6), (1, 20_000)]
        assert (buffer.number(1, 2), buffer.follow(1)) == (0x0201, 1 + 0x04030201)
