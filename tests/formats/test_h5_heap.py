"""The global heap of HDF5 files, byte by byte: what HDF5 would follow is looked at first."""

from __future__ import annotations

import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from weightport.errors import BudgetExceeded, FormatError
from weightport.formats._h5_heap import Heap
from weightport.formats._proto import Memory
from weightport.tensors import Budget

UNDEFINED = (1 << 64) - 1


def heap(path: Path, data: bytes, base: int = 0, budget: Budget | None = None) -> Heap:
    return Heap(Memory(data, path), base, budget or Budget())


def collection(*objects: tuple[int, bytes], free: int | None = None, size: int | None = None) -> bytes:
    body = b""
    for index, content in objects:
        body += struct.pack("<HHIQ", index, 1, 0, len(content)) + content + bytes(-len(content) % 8)
    if free is not None:
        body += struct.pack("<HHIQ", 0, 0, 0, free) + bytes(free - 16 if free > 16 else 0)
    whole = 16 + len(body) if size is None else size
    return b"GCOL\1\0\0\0" + struct.pack("<Q", whole) + body


def reference(length: int, address: int, index: int) -> bytes:
    return struct.pack("<IQI", length, address, index)


def refused(path: Path, data: bytes, *references: bytes, base: int = 0) -> str:
    """What is wrong with the last of several runs of references."""
    found = heap(path, data, base)
    for one in references[:-1]:
        found.check_values(one, "the tensor 'w'")
    with pytest.raises(FormatError) as caught:
        found.check_values(references[-1], "the tensor 'w'")
    return str(caught.value).removeprefix(str(path))


DATA = bytes(8) + collection((1, b"hello"), (2, b"longer than 8"), free=32)


def test_values_that_are_held(tmp_path: Path) -> None:
    found = heap(tmp_path / "x", DATA)
    found.check_values(reference(5, 8, 1) + reference(13, 8, 2), "w")
    found.check_values(reference(0, 8, 1) + reference(9, 0, 1) + reference(9, UNDEFINED, 1), "w")
    found = heap(tmp_path / "x", bytes(512) + DATA, 512)
    found.check_values(reference(3, 8, 2), "w")


@pytest.mark.parametrize(
    ("one", "count"),
    [(reference(6, 8, 1), 6), (reference(1, 8, 3), 1), (reference(1, 8, 0), 1)],
)
def test_values_that_are_not_held(tmp_path: Path, one: bytes, count: int) -> None:
    what = f"corrupt: the tensor 'w' refers to {count} bytes that the heap does not hold"
    assert refused(tmp_path / "x", DATA, one) == f" at byte 8: {what}"
    assert refused(tmp_path / "x", bytes(16) + DATA, one, base=16) == f" at byte 24: {what}"


def test_values_that_share_their_bytes(tmp_path: Path) -> None:
    what = " at byte 8: corrupt: the tensor 'w' refers to 5 bytes that the heap does not hold"
    assert refused(tmp_path / "x", DATA, reference(5, 8, 1) * 2) == what
    assert refused(tmp_path / "x", DATA, reference(4, 8, 1), reference(5, 8, 1)) == what


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (bytes(8) + b"GCOX\1\0\0\0" + struct.pack("<Q", 16), 8),
        (bytes(8) + b"GCOL\2\0\0\0" + struct.pack("<Q", 16), 8),
        (bytes(8) + collection(size=17), 8),
        (bytes(8) + b"GCOL\1\0\0", 8),
        (bytes(4), 4),
    ],
)
def test_heaps_that_are_none(tmp_path: Path, data: bytes, at: int) -> None:
    message = f" at byte {at}: corrupt: the tensor 'w' refers to a heap that is none"
    assert refused(tmp_path / "x", data, reference(1, 8, 1)) == message


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (collection((1, b"hello"), (1, b"again"), free=16), 48),
        (collection((1, b"hello"), size=16 + 23) + b"        ", 24),
        (collection(free=15), 24),
        (collection(free=0), 24),
        (collection((1, b"a"), free=40, size=16 + 24 + 16) + bytes(99), 48),
    ],
    ids=["an index twice", "an object beyond its end", "free space of 15", "of none", "beyond its end"],
)
def test_heaps_that_are_no_chain(tmp_path: Path, data: bytes, at: int) -> None:
    message = f" at byte {at}: corrupt: the heap that the tensor 'w' refers to is no chain"
    assert refused(tmp_path / "x", bytes(8) + data, reference(1, 8, 1)) == message


def test_heaps_that_end_where_they_may(tmp_path: Path) -> None:
    """An object up to the very end, free space of just its header, and less than a header left over."""
    for data in (collection((1, b"12345678")), collection((1, b"1"), free=16), collection((1, b"1")) + b""):
        heap(tmp_path / "x", bytes(8) + data).check_values(reference(1, 8, 1), "w")
    data = collection((1, b"1"), size=16 + 24 + 15) + bytes(15)
    heap(tmp_path / "x", bytes(8) + data).check_values(reference(1, 8, 1), "w")


def test_a_heap_is_walked_once_and_within_the_budget(tmp_path: Path) -> None:
    data = bytes(8) + collection(*[(n, b"1") for n in range(1, 11)])
    found = heap(tmp_path / "x", data, budget=Budget(header_bytes=160))
    for n in range(1, 11):
        found.check_values(reference(1, 8, n), "w")
    with pytest.raises(BudgetExceeded, match="header bytes: 160 asked for, at most 159 allowed"):
        heap(tmp_path / "x", data, budget=Budget(header_bytes=159)).check_values(reference(1, 8, 1), "w")


# -- attributes -----------------------------------------------------------------------------------------------------


def header(*messages: tuple[int, bytes], size: int | None = None) -> bytes:
    """An object header of version 1 at the beginning of the file; the heap stands at 1024."""
    body = b"".join(struct.pack("<HHI", kind, len(content), 0) + content for kind, content in messages)
    return struct.pack("<BBHIII", 1, 0, len(messages), 1, len(body) if size is None else size, 0) + body


def attribute(version: int, name: str, values: bytes, kind: int = 9, flags: int = 0) -> bytes:
    raw = name.encode() + b"\0"
    parts = [raw, bytes([0x10 | kind]) + bytes(7), b"\1" * 8]
    if version == 1:
        parts = [part + bytes(-len(part) % 8) for part in parts]
    head = struct.pack("<BBHHH", version, flags, len(raw), 8, 8) + (b"\0" if version == 3 else b"")
    return head + b"".join(parts) + values


BAD, GOOD = reference(6, 1024, 1), reference(5, 1024, 1)
NOT_HELD = " at byte 1024: corrupt: '/' refers to 6 bytes that the heap does not hold"


def attribute_refused(path: Path, head: bytes, name: str = "name", at: int = 0, base: int = 0) -> str | None:
    """What is wrong with an attribute, None if nothing is."""
    data = bytes(base) + head.ljust(1024, b"\0") + collection((1, b"hello"))
    found = heap(path, data, base)
    try:
        found.check_attribute(at, name, "'/'")
    except FormatError as error:
        return str(error).removeprefix(str(path))
    return None


@pytest.mark.parametrize("version", [1, 2, 3])
def test_the_references_of_an_attribute(tmp_path: Path, version: int) -> None:
    path = tmp_path / "x"
    for name in ("name", "é", "sixteen letters.", "a longer one than that"):
        assert attribute_refused(path, header((12, attribute(version, name, GOOD)))) is None
        assert attribute_refused(path, header((12, attribute(version, name, BAD))), name) == NOT_HELD
        assert attribute_refused(path, header((12, attribute(version, name, GOOD + BAD))), name) == NOT_HELD
        assert attribute_refused(path, header((12, attribute(version, name, BAD))), name + "x") is None
    shifted = header((12, attribute(version, "name", BAD)))
    assert attribute_refused(path, shifted, base=512) == NOT_HELD.replace("1024", "1536")
    shared = header((12, attribute(version, "name", GOOD * 2)))
    assert attribute_refused(path, shared) == NOT_HELD.replace("6 bytes", "5 bytes")


def test_whether_an_attribute_stands_there(tmp_path: Path) -> None:
    for kind in (9, 3):
        head = header((12, attribute(1, "name", GOOD, kind=kind))).ljust(1024, b"\0")
        found = heap(tmp_path / "x", head + collection((1, b"hello")))
        assert found.check_attribute(0, "name", "'/'") is True
        assert found.check_attribute(0, "other", "'/'") is False


def test_a_type_that_is_none(tmp_path: Path) -> None:
    """Of values of variable length there are lists and text."""
    path = tmp_path / "x"
    raw = bytearray(attribute(2, "name", BAD))
    for kind, expected in ((0, NOT_HELD), (1, NOT_HELD), (2, " at byte 37: corrupt: '/' is of no known type")):
        raw[8 + 5 + 1] = kind
        assert attribute_refused(path, header((12, bytes(raw)))) == expected


def test_attributes_that_hold_no_references(tmp_path: Path) -> None:
    path = tmp_path / "x"
    other = (12, attribute(1, "other", GOOD))
    assert attribute_refused(path, header((12, attribute(1, "name", BAD, kind=3)))) is None
    assert attribute_refused(path, header((12, attribute(1, "name", BAD, flags=1)))) is None
    assert attribute_refused(path, header((11, attribute(1, "name", BAD)))) is None
    assert attribute_refused(path, header((12, bytes(7)), other, (12, attribute(3, "name", BAD)))) == NOT_HELD
    assert attribute_refused(path, header((12, attribute(2, "name", BAD[:15])))) is None
    short = struct.pack("<BBHHH", 2, 0, 5, 8, 8) + b"name\0"
    assert attribute_refused(path, header((12, short))) is None
    twice = header((12, attribute(2, "name", GOOD)), (12, attribute(2, "name", BAD)))
    assert attribute_refused(path, twice) is None  # the first is the one


def test_headers_of_another_version_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x"
    head = header((12, attribute(1, "name", BAD)))
    assert attribute_refused(path, b"\2" + head[1:]) is None
    end = 1024 + len(collection((1, b"hello")))
    assert attribute_refused(path, head, at=end - 15) is None
    assert attribute_refused(path, bytes(8) + head, at=8) == NOT_HELD


def test_headers_in_several_pieces(tmp_path: Path) -> None:
    path = tmp_path / "x"
    block = struct.pack("<HHI", 12, len(attribute(1, "name", BAD)), 0) + attribute(1, "name", BAD)
    more = (16, struct.pack("<QQ", 512, len(block)))
    first = header((12, attribute(1, "other", GOOD)), more).ljust(512, b"\0")
    assert attribute_refused(path, first + block) == NOT_HELD
    assert attribute_refused(path, first + block, base=256) == NOT_HELD.replace("1024", "1280")
    # A circle, one that leaves the file, one that is cut short.
    circle = (16, struct.pack("<QQ", 16, 24))
    for found in (header(circle), header(circle, (12, attribute(1, "name", BAD)))):
        assert attribute_refused(path, found) == " at byte 24: corrupt: an object's header continues in a circle"
    assert attribute_refused(path, header((16, struct.pack("<QQ", 1000, 1 << 60)))) is None
    assert attribute_refused(path, header((16, bytes(15)), (12, attribute(1, "name", BAD)))) == NOT_HELD
    # A message that is longer than the header.
    assert attribute_refused(path, header((12, attribute(1, "name", BAD)), size=40)) is None
    beyond = attribute_refused(path, header(size=5000))
    assert beyond == ": 5000 bytes asked for at 16 of 1064"


def newer(*messages: tuple[int, bytes], flags: int = 0, size: int | None = None) -> bytes:
    """An object header of version 2: its fields by its flags, its messages with their order where bit 2 is set."""
    order = b"\x07\x00" if flags & 4 else b""
    body = b"".join(struct.pack("<BHB", kind, len(raw), 0) + order + raw for kind, raw in messages)
    wide = 1 << (flags & 3)
    optional = (b"\xee" * 16 if flags & 0x20 else b"") + (b"\xdd" * 4 if flags & 0x10 else b"")
    length = (len(body) if size is None else size).to_bytes(wide, "little")
    return b"OHDR\2" + bytes([flags]) + optional + length + body


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 4, 0x10, 0x20, 0x37])
def test_newer_headers(tmp_path: Path, flags: int) -> None:
    path = tmp_path / "x"
    size = None if flags & 3 else 200  # of one byte
    other, bad = (12, attribute(3, "other", GOOD)), (12, attribute(3, "name", BAD))
    assert attribute_refused(path, newer(other, bad, flags=flags)) == NOT_HELD
    assert attribute_refused(path, newer(other, bad, flags=flags, size=size)) == NOT_HELD
    assert attribute_refused(path, newer(other, (12, attribute(3, "name", GOOD)), flags=flags)) is None
    assert attribute_refused(path, newer(bad, flags=flags), base=512) == NOT_HELD.replace("1024", "1536")
    whole = newer(other, bad, flags=flags)
    assert attribute_refused(path, newer(other, bad, flags=flags, size=len(whole) - 60)) is None
    assert attribute_refused(path, whole.replace(b"OHDR", b"OHDX")) is None


@pytest.mark.parametrize("flags", [0, 5])
def test_newer_headers_in_several_pieces(tmp_path: Path, flags: int) -> None:
    path = tmp_path / "x"
    order = b"\x07\x00" if flags & 4 else b""
    raw = attribute(3, "name", BAD)
    block = b"OCHK" + struct.pack("<BHB", 12, len(raw), 0) + order + raw + b"sums"
    first = newer((16, struct.pack("<QQ", 512, len(block))), (12, attribute(3, "other", GOOD)), flags=flags)
    assert attribute_refused(path, first.ljust(512, b"\0") + block) == NOT_HELD
    # Without the checksum behind it, the message is longer than its block.
    first = newer((16, struct.pack("<QQ", 512, len(block) - 1)), flags=flags)
    assert attribute_refused(path, first.ljust(512, b"\0") + block) is None


def test_as_h5py_writes_them(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="earliest") as file:
        file.attrs["names"] = ["one", "two", ""]
        file.attrs["number"] = np.arange(3)
        at = h5py.h5o.get_info(file.id).addr
    raw = (tmp_path / "a.h5").read_bytes()
    heap(tmp_path / "b.h5", raw).check_attribute(at, "names", "'/'")
    start = raw.index(struct.pack("<IQ", 3, raw.index(b"GCOL")))
    changed = raw[:start] + struct.pack("<I", 9) + raw[start + 4 :]
    with pytest.raises(FormatError, match="'/' refers to 9 bytes that the heap does not hold"):
        heap(tmp_path / "b.h5", changed).check_attribute(at, "names", "'/'")
    heap(tmp_path / "b.h5", changed).check_attribute(at, "number", "'/'")
