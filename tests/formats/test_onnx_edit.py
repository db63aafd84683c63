"""Fields of a message that is too large for memory get other payloads; what stands around them is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from weightport.formats._io import ByteFile
from weightport.formats._onnx_edit import Edit
from weightport.formats._proto import located
from weightport.formats._table import put_varint


def field(number: int, payload: bytes, padded: bool = False) -> bytes:
    """A field of bytes; ``padded``, its length takes one byte more than it needs."""
    size = put_varint(len(payload))
    size = bytes([*size[:-1], size[-1] | 0x80, 0]) if padded else size
    return put_varint(number << 3 | 2) + size + payload


INNER = field(1, b"one") + bytes([2 << 3 | 0, 44]) + field(3, b"three" * 30)
MESSAGE = field(7, INNER) + bytes([1 << 3 | 0, 5]) + field(8, b"eight") + field(9, b"")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ByteFile]:
    (tmp_path / "m").write_bytes(MESSAGE)
    with ByteFile(tmp_path / "m") as found:
        yield found


def places(file: ByteFile) -> dict[str, tuple[int, int]]:
    """Where the payloads lie."""
    (_, _, start, size, *_), _, (_, _, eight, _, *_), (_, _, nine, _, *_) = located(file, 0, file.size)
    (_, _, one, _, *_), _, (_, _, three, many, *_) = located(file, start, start + size)
    return {
        "seven": (start, start + size),
        "eight": (eight, eight + 5),
        "nine": (nine, nine),
        "one": (one, one + 3),
        "three": (three, three + many),
    }


def result(edit: Edit) -> bytes:
    found = b"".join(bytes(chunk) for chunk in edit.chunks())
    assert edit.size() == len(found)
    assert b"".join(bytes(chunk) for chunk in edit.chunks()) == found  # as often as they are asked for
    return found


def test_no_change(file: ByteFile) -> None:
    assert result(Edit(file)) == MESSAGE


@pytest.mark.parametrize("payload", [b"", b"ONE", b"longer than it was" * 20])
def test_a_field_inside_another(file: ByteFile, payload: bytes) -> None:
    """Its own length and the length of what holds it are counted anew."""
    edit, at = Edit(file), places(file)
    edit.replace([at["seven"]], at["one"], len(payload), lambda: iter([payload]))
    inner = INNER.replace(field(1, b"one"), field(1, payload))
    assert result(edit) == MESSAGE.replace(field(7, INNER), field(7, inner))


def test_several_fields(file: ByteFile) -> None:
    edit, at = Edit(file), places(file)
    edit.replace([], at["eight"], 4, lambda: iter([b"ei", b"ht"]))
    edit.replace([at["seven"]], at["three"], 1, lambda: iter([b"3"]))
    edit.replace([], at["nine"], 4, lambda: iter([b"nine"]))
    edit.replace([at["seven"]], at["one"], 2, lambda: iter([b"1", b"1"]))
    edit.append(b"tail")
    edit.append(b"end")
    inner = field(1, b"11") + bytes([2 << 3 | 0, 44]) + field(3, b"3")
    assert result(edit) == field(7, inner) + bytes([1 << 3 | 0, 5]) + field(8, b"eiht") + field(9, b"nine") + b"tailend"


def test_fields_that_go(file: ByteFile) -> None:
    edit, at = Edit(file), places(file)
    edit.replace([at["seven"]], at["one"], 1, lambda: iter([b"1"]))
    last, eight = at["nine"][0] - 2, at["eight"]
    edit.drop(last, last + 2)
    edit.drop(eight[0] - 2, eight[1])
    inner = INNER.replace(field(1, b"one"), field(1, b"1"))
    assert result(edit) == field(7, inner) + bytes([1 << 3 | 0, 5])


def test_a_length_that_does_not_change_stays_as_it_is_spelled(tmp_path: Path) -> None:
    message = field(7, field(1, b"one", padded=True), padded=True)
    (tmp_path / "m").write_bytes(message)
    with ByteFile(tmp_path / "m") as file:
        ((_, _, start, size, *_),) = located(file, 0, file.size)
        ((_, _, one, _, *_),) = located(file, start, start + size)
        edit = Edit(file)
        edit.replace([(start, start + size)], (one, one + 3), 3, lambda: iter([b"ONE"]))
        assert result(edit) == message.replace(b"one", b"ONE")


def test_a_number_is_no_field_of_bytes(tmp_path: Path) -> None:
    """The value of a varint may be the offset at which a payload begins."""
    payload = b"x" * 9
    message = bytes([1 << 3 | 0, 4]) + field(2, payload)
    (tmp_path / "m").write_bytes(message)
    with ByteFile(tmp_path / "m") as file:
        edit = Edit(file)
        edit.replace([], (4, 13), 2, lambda: iter([b"ab"]))
        assert result(edit) == bytes([1 << 3 | 0, 4]) + field(2, b"ab")
