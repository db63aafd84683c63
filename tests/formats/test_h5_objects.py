"""What HDF5 reads when it opens a file, a group or a dataset, byte by byte: it is looked at first."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import weightport as wp
from tests.support import says
from weightport.errors import BudgetExceeded, FormatError
from weightport.formats._h5_objects import Objects, messages
from weightport.formats._io import ByteFile
from weightport.formats._proto import Memory
from weightport.tensors import Budget

ENDLESS = "corrupt: the free space of a group's names is a list without end"
UNDEFINED = (1 << 64) - 1


def written(path: Path, userblock: int = 0, **options: Any) -> bytearray:
    """A file with a group in a group; from the inner one, every other name was deleted."""
    with h5py.File(path, "w", userblock_size=userblock, **options) as file:
        inner = file.create_group("outer").create_group("inner")
        for n in range(12):
            inner[f"a long name {n}"] = np.arange(n)
        for n in range(0, 12, 2):
            del inner[f"a long name {n}"]
    return bytearray(path.read_bytes())


def heaps(data: bytes) -> list[int]:
    """Where the local heaps are."""
    return [n for n in range(len(data)) if data[n : n + 8] == b"HEAP\0\0\0\0"]


def free_list(data: bytes, heap: int, base: int = 0) -> list[int]:
    """Where the pieces of free space of a heap are."""
    size, free, start = struct.unpack_from("<QQQ", data, heap + 8)
    found = []
    while free != 1:
        assert free < size
        found.append(base + start + free)
        (free,) = struct.unpack_from("<Q", data, base + start + free)
    return found


def refused(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        wp.open(path)
    return str(caught.value)


def test_free_space_as_hdf5_leaves_it(tmp_path: Path) -> None:
    data = written(tmp_path / "m.h5")
    assert max(len(free_list(data, heap)) for heap in heaps(data)) > 3
    with wp.open(tmp_path / "m.h5") as source:
        assert list(source.specs()) == [f"outer/inner/a long name {n}" for n in (1, 11, 3, 5, 7, 9)]


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("back", [0, -1])
def test_free_space_in_a_circle(tmp_path: Path, userblock: int, which: int, back: int) -> None:
    path = tmp_path / "m.h5"
    data = written(path, userblock)
    heap = heaps(data)[which]
    pieces = free_list(data, heap, userblock)
    (start,) = struct.unpack_from("<Q", data, heap + 24)
    struct.pack_into("<Q", data, pieces[-1], pieces[back] - start - userblock)
    path.write_bytes(data)
    # The list is followed as many times as a heap of its size can have pieces.
    size = struct.unpack_from("<Q", data, heap + 8)[0]
    circle = pieces if back == 0 else pieces[-1:]
    last = circle[(size // 16) % len(circle)] if back == 0 else circle[0]
    assert refused(path) == f"{path} at byte {last}: {ENDLESS}"


def test_the_heap_that_only_the_superblock_knows(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    data = written(path)
    at = heaps(data)[0]
    size, _, start = struct.unpack_from("<QQQ", data, at + 8)
    copy = len(data)
    data += data[at : at + 32] + data[start : start + size]
    struct.pack_into("<QQ", data, copy + 16, 0, copy + 32)
    struct.pack_into("<Q", data, copy + 32, 0)
    assert struct.unpack_from("<I", data, 72) == (1,)
    struct.pack_into("<Q", data, 88, copy)
    with pytest.raises(FormatError) as caught:
        Objects(Memory(bytes(data), path), 0, Budget()).check_root()
    assert str(caught.value) == f"{path} at byte {copy + 32}: {ENDLESS}"


def test_the_heap_of_external_files(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_external(b"elsewhere", 0, 8)
        space = h5py.h5s.create_simple((2,))
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist)
    assert "external storage: its values lie in another file" in refused(path)
    data = bytearray(path.read_bytes())
    heap = heaps(data)[-1]
    (start,) = struct.unpack_from("<Q", data, heap + 24)
    struct.pack_into("<Q", data, heap + 16, 8)
    struct.pack_into("<Q", data, start + 8, 8)
    path.write_bytes(data)
    assert refused(path) == f"{path} at byte {start + 8}: {ENDLESS}"


@pytest.mark.parametrize(("libver", "expected"), [("earliest", {-1, 6}), ("latest", {-1})])
def test_what_is_left_to_hdf5(tmp_path: Path, libver: str, expected: set[int]) -> None:
    """Each byte of the superblock and of every heap's head: it is refused, or HDF5 finds the same as before."""
    path = tmp_path / "m.h5"
    data = written(path, libver=libver)
    places = [n for heap in heaps(data) for n in range(heap, heap + 32)] + list(range(8, 96))
    ends = set()
    for at in places:
        damaged = bytearray(data)
        damaged[at] ^= 0x81  # newer superblocks have a checksum
        path.write_bytes(damaged)
        try:
            with wp.open(path) as source:
                ends.add(len(list(source.specs())))
        except FormatError:
            ends.add(-1)
    assert ends == expected


@pytest.mark.parametrize(("libver", "at"), [("earliest", 13), ("earliest", 14), ("latest", 9), ("latest", 10)])
def test_addresses_of_another_size(tmp_path: Path, libver: str, at: int) -> None:
    path = tmp_path / "m.h5"
    data = written(path, libver=libver)
    data[at] = 4
    path.write_bytes(data)
    first = 13 if libver == "earliest" else 9
    address, size = data[first : first + 2]
    what = f"addresses of {address} and sizes of {size} bytes: only those of 8 are read"
    assert refused(path) == f"{path} at byte {first}: {what}"


def test_a_header_that_continues_in_itself(tmp_path: Path) -> None:
    body = struct.pack("<HHIQQ", 0x10, 16, 0, 16, 24)
    data = struct.pack("<BxHIIxxxx", 1, 1, 1, len(body)) + body
    with pytest.raises(FormatError) as caught:
        list(messages(Memory(data, tmp_path / "x"), 0, 0))
    assert str(caught.value) == f"{tmp_path / 'x'} at byte 24: corrupt: an object's header continues in a circle"
    # Beyond the end, HDF5 finds it itself.
    body = struct.pack("<HHIQQ", 0x10, 16, 0, 40, 1)
    data = struct.pack("<BxHIIxxxx", 1, 1, 1, len(body)) + body
    assert list(messages(Memory(data, tmp_path / "x"), 0, 0)) == []


def test_each_object_and_heap_is_looked_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    data = written(path)
    spent = {}
    for times in (1, 2):
        budget = Budget()
        with ByteFile(path) as file:
            objects = Objects(file, 0, budget)
            for _ in range(times):
                objects.check_root()
        spent[times] = budget._spent["header_bytes"]
    assert spent[1] == spent[2] > 8
    with pytest.raises(BudgetExceeded, match="header bytes"):
        Objects(Memory(bytes(data), path), 0, Budget(header_bytes=spent[1] - 1)).check_root()


def symbols(heap: bytes, at: int, size: int = 512) -> bytes:
    """A header, at 0, of a group whose heap is there."""
    message = struct.pack("<QQ", UNDEFINED, at)
    body = struct.pack("<HHI", 0x11, len(message), 0) + message
    header = struct.pack("<BxHIIxxxx", 1, 1, 1, len(body)) + body
    return (header.ljust(at, b"\0") + heap).ljust(size, b"\0")


def heap(size: int, free: int, data: int, mark: bytes = b"HEAP\0") -> bytes:
    return mark.ljust(8, b"\0") + struct.pack("<QQQ", size, free, data)


#: Free space in a circle at 256, in a segment of 64 bytes.
CIRCLE = struct.pack("<QQ", 8, 16)


def circle(head: bytes, at: int, size: int = 512) -> bytes:
    data = bytearray(symbols(head, at, size))
    data[264:280] = CIRCLE
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        circle(heap(64, 8, 256, b"HEAX\0"), 128),  # no heap
        circle(heap(64, 8, 256, b"HEAP\1"), 128),  # of another version
        circle(heap(64, 8, 1 << 40), 128),  # its names are beyond the file
        circle(heap(257, 8, 256), 128),  # they end beyond it
        circle(heap((1 << 64) - 8, 8, 256), 128),
        circle(heap(64, 56, 256), 128),  # the free space does
        circle(heap(64, 1, 256), 128),  # there is none
        symbols(heap(64, 8, 256)[:31], 481, 512),  # the heap itself does
        symbols(b"", 512, 512),
        symbols(b"", 500, 512),
    ],
)
def test_heaps_that_are_left_to_hdf5(tmp_path: Path, data: bytes) -> None:
    Objects(Memory(data, tmp_path / "x"), 0, Budget()).check(0)


@pytest.mark.parametrize(("at", "size"), [(128, 512), (480, 512), (128, 320)])
def test_a_heap_anywhere(tmp_path: Path, at: int, size: int) -> None:
    """Also where it, or its names, are the last of the file."""
    data = circle(heap(64, 8, 256), at, size)
    with pytest.raises(FormatError) as caught:
        Objects(Memory(data, tmp_path / "x"), 0, Budget()).check(0)
    assert str(caught.value) == f"{tmp_path / 'x'} at byte 264: {ENDLESS}"


def test_headers_that_share_their_bytes(tmp_path: Path) -> None:
    """Each of many headers spans all those behind it: to walk them all would take time by the square of the file."""
    one = struct.pack("<BxHII", 1, 1, 1, 0)
    data = bytearray((one + bytes(4)) * 100)
    for n in range(100):  # its messages, of nothing, are what follows: 16 bytes each
        struct.pack_into("<I", data, 16 * n + 8, 16 * (99 - n))
    objects = Objects(Memory(bytes(data), tmp_path / "x"), 0, Budget())
    for n in range(39):
        objects.check(16 * n)
    with pytest.raises(FormatError) as caught:
        objects.check(16 * 39)
    what = "corrupt: the headers of several objects share their bytes"
    assert str(caught.value) == f"{tmp_path / 'x'} at byte 624: {what}"


def test_what_is_no_hdf5_is_left_to_it(tmp_path: Path) -> None:
    for size in (0, 9, 20, 60, 95):
        Objects(Memory(bytes(size), tmp_path / "x"), 0, Budget()).check_root()
    data = bytearray(written(tmp_path / "m.h5"))
    struct.pack_into("<QQ", data, 64, UNDEFINED, 0)  # no root at all
    Objects(Memory(bytes(data), tmp_path / "x"), 0, Budget()).check_root()


@pytest.mark.parametrize(
    ("raw", "chunked", "axes"),
    [
        (bytes([1, 3, 2, 0, 0, 0, 0, 0]), True, 3),
        (bytes([2, 1, 2, 0, 0, 0, 0, 0]), True, 1),
        (bytes([2, 1, 1, 0, 0, 0, 0, 0]), False, 1),
        (bytes([3, 2, 3, 0, 0, 0, 0, 0]), True, 3),
        (bytes([3, 2, 1, 2, 2, 2, 2, 2]), True, 1),
        (bytes([3, 1, 2, 1, 0, 0, 0, 0]), False, 2),
        (bytes([4, 2, 0, 3, 1, 0, 0, 0]), True, 3),
        (bytes([4, 2, 2, 1, 1, 0, 0, 0]), True, 1),
        (bytes([4, 1, 2, 1, 1, 0, 0, 0]), False, 1),
    ],
)
def test_axes_of_chunks_in_every_version(tmp_path: Path, raw: bytes, chunked: bool, axes: int) -> None:
    """By version, the kind of storage and the number of axes stand at other places; by one axis HDF5 would divide."""
    objects = Objects(Memory(bytes(600), tmp_path / "x"), 512, Budget())
    expected: Any = contextlib.nullcontext()
    if chunked and axes < 2:
        expected = says(FormatError, f"{tmp_path}/x at byte 519: corrupt: the chunks of a dataset have no axes")
    with expected:
        objects._check_message(8, raw, 7)
