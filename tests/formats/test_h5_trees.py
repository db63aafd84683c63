"""The B-trees of HDF5 files, node by node: what HDF5 would follow is looked at first."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import weightport as wp
from weightport.errors import FormatError
from weightport.formats import keras_h5
from weightport.formats._h5_isolated import IsolatedH5Source
from weightport.formats._h5_objects import Crashes, Objects
from weightport.formats._h5_trees import Trees
from weightport.formats._io import ByteFile
from weightport.formats._proto import Memory
from weightport.tensors import Budget

DISORDER = "corrupt: a tree of it leads back, or its levels are in disorder"
CIRCLE = "corrupt: the nodes of a tree of it are in a circle, or belong to another"


def written(path: Path, **options: Any) -> bytearray:
    """A group whose names are a tree of two levels, and a dataset whose chunks are."""
    with h5py.File(path, "w", **options) as file:
        group = file.create_group("g")
        for n in range(1000):
            group[f"{n:03}"] = np.int8(n % 100)
        file.create_dataset("x", data=np.arange(400, dtype="<f4").reshape(200, 2), chunks=(1, 2))
    return bytearray(path.read_bytes())


def nodes(data: bytes, kind: int, level: int) -> list[int]:
    """Where the nodes of trees of names (0) or chunks (1) are, of a level."""
    mark = b"TREE" + bytes([kind, level])
    found = [n for n in range(len(data)) if data[n : n + 6] == mark]
    assert found
    return found


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        wp.open(path)
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize("userblock", [0, 512])
def test_trees_as_hdf5_writes_them(tmp_path: Path, userblock: int) -> None:
    data = written(tmp_path / "m.h5", userblock_size=userblock)
    for kind in (0, 1):
        assert len(nodes(data, kind, 1)) >= 1
        assert len(nodes(data, kind, 0)) > 3
    with wp.open(tmp_path / "m.h5") as source:
        assert len(source.specs()) == 1001
        assert source.read("x").tolist() == np.arange(400.0).reshape(200, 2).tolist()


def children(data: bytes, kind: int, root: int) -> list[int]:
    """Where the children of a node stand, as places in the file of their addresses."""
    key = 8 if not kind else 8 + 8 * 3
    (count,) = struct.unpack_from("<H", data, root + 6)
    return [root + 24 + key + n * (key + 8) for n in range(count)]


@pytest.mark.parametrize("kind", [0, 1])
def test_a_tree_that_leads_back(tmp_path: Path, kind: int) -> None:
    sound = written(tmp_path / "m.h5")
    root = next(n for n in nodes(sound, kind, 1) if kind or len(children(sound, 0, n)) > 3)
    leaf = struct.unpack_from("<Q", sound, children(sound, kind, root)[0])[0]
    for new, named in ((root, root), (leaf, leaf)):  # itself, and one child twice
        data = bytearray(sound)
        struct.pack_into("<Q", data, children(data, kind, root)[2], new)
        assert refused(tmp_path / "m.h5", data) == f" at byte {named}: {DISORDER}"


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("level", [0, 2, 255])
def test_levels_in_disorder(tmp_path: Path, kind: int, level: int) -> None:
    data = written(tmp_path / "m.h5")
    root = next(n for n in nodes(data, kind, 1) if kind or len(children(data, 0, n)) > 3)
    (leaf,) = struct.unpack_from("<Q", data, children(data, kind, root)[1])
    data[root + 5 if level else leaf + 5] = level or 1
    (first,) = struct.unpack_from("<Q", data, children(data, kind, root)[0])
    assert refused(tmp_path / "m.h5", data) == f" at byte {first if level else leaf}: {DISORDER}"


@pytest.mark.parametrize("kind", [0, 1])
def test_neighbours_in_a_circle(tmp_path: Path, kind: int) -> None:
    sound = written(tmp_path / "m.h5")
    root = next(n for n in nodes(sound, kind, 1) if kind or len(children(sound, 0, n)) > 3)
    leaves = [struct.unpack_from("<Q", sound, n)[0] for n in children(sound, kind, root)]
    assert [struct.unpack_from("<Q", sound, n + 16)[0] for n in leaves[:-1]] == leaves[1:]
    for at, new in (
        (leaves[-1], leaves[0]),
        (leaves[1], leaves[1]),
        (root, leaves[0]),
        (root, root),
        (leaves[0], root),
    ):
        data = bytearray(sound)
        struct.pack_into("<Q", data, at + 16, new)
        place = leaves[-1] if new == leaves[0] and at == leaves[-1] else at
        assert refused(tmp_path / "m.h5", data) == f" at byte {place}: {CIRCLE}"


def named(file: h5py.File) -> None:
    for n in range(20):
        file[f"g/{n}"] = 1.0


def attributed(file: h5py.File) -> None:
    file["x"] = 1.0
    for n in range(20):
        file["x"].attrs[f"a{n}"] = n


def chunked(file: h5py.File) -> None:
    file.create_dataset("x", data=np.zeros((4, 4)), chunks=(2, 2), maxshape=(None, None))


def ordered(file: h5py.File) -> None:
    file.create_group("g", track_order=True)
    named(file)


@pytest.mark.parametrize("fill", [named, ordered, attributed, chunked])
def test_newer_structures_are_read_in_a_process_of_their_own(tmp_path: Path, fill: Callable[[h5py.File], None]) -> None:
    """HDF5 1.14 crashes where a bit of them is flipped: then it is that process which is lost."""
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", libver="latest") as file:
        fill(file)
    sound = path.read_bytes()
    with keras_h5.open_source(str(path)) as source:
        assert isinstance(source, IsolatedH5Source)
        names = list(source.specs())
        assert all(source.read(name).size for name in names)
    ends = []
    places = [n for n in range(len(sound)) if sound[n : n + 4] in (b"BTHD", b"BTLF", b"FRHP", b"FHDB")]
    assert len(places) > 1 or fill is chunked
    for at in places:
        data = bytearray(sound)
        data[at + 12] ^= 1
        path.write_bytes(data)
        try:
            with wp.open(path) as source:
                for name in source.specs():
                    source.read(name)
        except FormatError as error:
            ends.append(str(error).removeprefix(str(path)))
    assert any("process" in end or "corrupt" in end for end in ends), ends


@pytest.mark.parametrize("libver", ["earliest", "v108", "v110", "latest"])
def test_what_keras_writes_needs_no_process(tmp_path: Path, libver: str) -> None:
    """Few names to a group, few attributes to an object: those stand in the headers of either format."""
    with h5py.File(tmp_path / "m.h5", "w", libver=libver) as file:
        for n in range(8):
            file[f"layers/dense_{n}/vars/0"] = np.ones((2, 2))
            file[f"layers/dense_{n}"].attrs["name"] = "kernel"
        file.create_dataset("x", data=np.zeros((4, 4)), chunks=(1, 1), compression="gzip")
    with keras_h5.open_source(str(tmp_path / "m.h5")) as source:
        assert type(source) is keras_h5.KerasH5Source


def test_layouts_of_older_versions(tmp_path: Path) -> None:
    """Version 1 and 2 of the message have the tree's address elsewhere."""
    tree = b"TREE\1\1" + struct.pack("<HQQ", 1, (1 << 64) - 1, (1 << 64) - 1) + bytes(32) + struct.pack("<Q", 512)
    for layout in (
        struct.pack("<BBB5xQIII", 1, 3, 2, 512, 1, 2, 4),
        struct.pack("<BBB5xQIII", 2, 3, 2, 512, 1, 2, 4),
        struct.pack("<BBBQIII", 3, 2, 3, 512, 1, 2, 4),
    ):
        body = struct.pack("<HHI", 8, len(layout), 0) + layout
        header = struct.pack("<BxHIIxxxx", 1, 1, 1, len(body)) + body
        data = header.ljust(512, b"\0") + tree.ljust(100, b"\0")
        with pytest.raises(FormatError) as caught:
            Objects(Memory(data, tmp_path / "x"), 0, Budget()).check(0)
        assert str(caught.value) == f"{tmp_path / 'x'} at byte 512: {DISORDER}"


def test_datasets_of_one_axis(tmp_path: Path) -> None:
    """Their chunks have two: that of the dataset, and the bytes of a value."""
    for libver in ("earliest", "v110", "latest"):
        with h5py.File(tmp_path / "m.h5", "w", libver=libver) as file:
            file.create_dataset("x", data=np.arange(6.0), chunks=(2,), compression="gzip")
        with keras_h5.open_source(str(tmp_path / "m.h5")) as source:
            assert source.read("x").tolist() == [0, 1, 2, 3, 4, 5]


def test_a_layout_that_ends_before_its_index(tmp_path: Path) -> None:
    layout = struct.pack("<BBBBBBB", 4, 2, 0, 2, 1, 2, 4)
    body = struct.pack("<HHI", 8, len(layout), 0) + layout
    data = struct.pack("<BxHIIxxxx", 1, 1, 1, len(body)) + body
    Objects(Memory(data, tmp_path / "x"), 0, Budget()).check(0)


def tree(level: int, entries: int, *children: int, right: int = (1 << 64) - 1) -> bytes:
    """A node of a tree of names."""
    node = b"TREE\0" + bytes([level]) + struct.pack("<HQQ", entries, (1 << 64) - 1, right)
    return node + b"".join(struct.pack("<QQ", 0, child) for child in children)


def test_nodes_where_the_file_ends(tmp_path: Path) -> None:
    """A node that begins before the end and is not all there is none; one that ends with the file is."""

    def check(data: bytes) -> None:
        Trees(Memory(data, tmp_path / "x"), 0, Budget()).check(0, 8)

    root, leaf = tree(1, 1, 40), tree(0, 0)
    check(root + leaf)
    check(root + leaf[:-1])
    check(tree(1, 1, 41) + b"\0" + leaf)  # of nothing but its head
    with pytest.raises(FormatError, match=CIRCLE):
        check(root + tree(0, 0, right=40))
    with pytest.raises(FormatError, match=DISORDER):
        check(tree(1, 2, 1000, 56) + tree(1, 0))  # behind a child that is none
    check(tree(1, 2, 40)[:40] + leaf[:15])  # more entries than there are bytes: no child is known
    check(root + b"NONE" + tree(0, 0, right=40)[4:])  # without the mark of a node


@pytest.mark.parametrize(("libver", "axes"), [("earliest", 0), ("earliest", 1), ("v110", 0), ("v110", 1)])
def test_chunks_without_axes(tmp_path: Path, libver: str, axes: int) -> None:
    """HDF5 1.14 divides by the number of values that they have."""
    with h5py.File(tmp_path / "m.h5", "w", libver=libver) as file:
        file.create_dataset("x", data=np.zeros((4, 4)), chunks=(2, 2), compression="gzip")
    data = bytearray((tmp_path / "m.h5").read_bytes())
    layout = data.index(b"\3\2\3" if libver == "earliest" else b"\4\2\0\3")
    data[layout + (2 if libver == "earliest" else 3)] = axes
    with h5py.File(tmp_path / "m.h5") as file:
        address = h5py.h5o.get_info(file["x"].id).addr
    with pytest.raises(FormatError) as caught:
        Objects(Memory(bytes(data), tmp_path / "x"), 0, Budget()).check(address)
    assert str(caught.value) == f"{tmp_path / 'x'} at byte {address}: corrupt: the chunks of a dataset have no axes"


def test_what_is_no_tree_is_left_to_hdf5(tmp_path: Path) -> None:
    sound = written(tmp_path / "m.h5")
    root = next(n for n in nodes(sound, 0, 1) if len(children(sound, 0, n)) > 3)
    for at, code, new in ((root, "I", 0), (root + 6, "H", 0xFFFF), (children(sound, 0, root)[0], "Q", 1 << 40)):
        data = bytearray(sound)
        struct.pack_into("<" + code, data, at, new)
        assert ": corrupt: " in refused(tmp_path / "m.h5", data)


def test_a_process_that_may_be_lost_looks_at_all(tmp_path: Path) -> None:
    for fill in (named, attributed, chunked):
        with h5py.File(tmp_path / "m.h5", "w", libver="latest") as file:
            fill(file)
            addresses = [h5py.h5o.get_info(file.id).addr, *(h5py.h5o.get_info(file[name].id).addr for name in file)]
        for alone in (False, True):
            with ByteFile(tmp_path / "m.h5") as opened:
                objects = Objects(opened, 0, Budget(), alone=alone)
                found = []
                for address in addresses:
                    try:
                        objects.check(address)
                    except Crashes:
                        found.append(address)
                assert len(found) == (0 if alone else 1)
