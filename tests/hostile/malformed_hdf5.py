"""HDF5 files, plain and of Keras, that lie about their structures, datasets, chunks and names."""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from tests.hostile.malformed import Family

HDF5 = Family("hdf5", "m.h5")
KERAS = Family("keras-h5", "m.weights.h5")
LEGACY = Family("keras-h5 of Keras 2", "m.h5")
FAMILIES = (HDF5, KERAS, LEGACY)

Fill = Callable[[h5py.File], Any]
Patch = Callable[[bytearray], None]


def file(fill: Fill, *patches: Patch, **options: Any) -> Callable[[], bytes]:
    """What h5py writes, with some bytes changed."""

    def made() -> bytes:
        out = io.BytesIO()
        with h5py.File(out, "w", **options) as opened:
            fill(opened)
        data = bytearray(out.getvalue())
        for patch in patches:
            patch(data)
        return bytes(data)

    return made


def put(at: int, code: str, *values: int) -> Patch:
    """Numbers at a place."""
    return lambda data: struct.pack_into("<" + code, data, at, *values)


def at(mark: bytes, offset: int, code: str, *values: int, which: int = 0) -> Patch:
    """Numbers at a place behind the first (or another) occurrence of something."""

    def patch(data: bytearray) -> None:
        place = -1
        for _ in range(which + 1):
            place = data.index(mark, place + 1)
        struct.pack_into("<" + code, data, place + offset, *values)

    return patch


def cut(size: int) -> Patch:
    """The first bytes only."""

    def patch(data: bytearray) -> None:
        del data[size:]

    return patch


def x(opened: h5py.File) -> None:
    """A contiguous dataset in a group."""
    opened["g/x"] = np.arange(24, dtype="<f4").reshape(4, 6)


def chunked(**options: Any) -> Fill:
    def fill(opened: h5py.File) -> None:
        opened.create_dataset("x", data=np.arange(24, dtype="<f4").reshape(4, 6), chunks=(2, 3), **options)

    return fill


def texts(opened: h5py.File) -> None:
    opened.create_dataset("x", data=["a", "bc"], dtype=h5py.string_dtype())


def newer(opened: h5py.File) -> None:
    """A group whose names are in a tree of version 2."""
    opened.create_group("g", track_order=True)
    for n in range(20):
        opened[f"g/{n}"] = 1.0


def own_child(data: bytearray) -> None:
    """The tree of the chunks is below itself."""
    tree = data.index(b"TREE", data.index(b"TREE") + 1)
    data[tree + 5] = 1
    struct.pack_into("<Q", data, tree + 24 + 32, tree)


def place_of_values(address: int) -> Patch:
    """Where the contiguous values of 96 bytes are, in a layout message of version 3."""

    def patch(data: bytearray) -> None:
        found = re.search(rb"\x03\x01.{8}\x60\0{7}", data, re.DOTALL)
        assert found
        struct.pack_into("<Q", data, found.start() + 2, address)

    return patch


def same_chunk(data: bytearray) -> None:
    """The tree of the chunks (keys of 32 bytes) has the first one's place for the second, too."""
    tree = data.index(b"TREE", data.index(b"TREE") + 1)
    data[tree + 24 + 72 : tree + 24 + 80] = data[tree + 24 + 32 : tree + 24 + 40]


def pair(opened: h5py.File) -> None:
    """Two datasets of 96 bytes, which follow each other."""
    opened["v"] = np.zeros(24, "<f4")
    opened["w"] = np.ones(24, "<f4")


def elsewhere(by: int) -> Patch:
    """The second one's values are so many bytes behind the first's."""

    def patch(data: bytearray) -> None:
        first, second = re.finditer(rb"\x03\x01(.{8})\x60\0{7}", data, re.DOTALL)
        struct.pack_into("<Q", data, second.start(1), int.from_bytes(first[1], "little") + by)

    return patch


def long_string(data: bytearray) -> None:
    """The first reference to the heap of strings is to 4 GB."""
    struct.pack_into("<I", data, data.index(struct.pack("<Q", data.index(b"GCOL"))) - 4, 0xFFFFFFF0)


#: The dataspace message of (4, 6): version, rank, flags, reserved; then the dimensions.
SPACE = struct.pack("<BBB5xQQ", 1, 2, 1, 4, 6)
#: A datatype message of <f4.
FLOAT = b"\x11\x20\x1f\0\4\0\0\0"
#: The chunked layout of version 3: class, rank + 1.
LAYOUT = b"\3\2\3"

# Structures -----------------------------------------------------------------------------------------------------------

HDF5.add("a signature and no more", lambda: b"\x89HDF\r\n\x1a\n")
HDF5.add("cut in half", file(x, cut(1100)))
HDF5.add(
    "the last byte is missing",
    file(x, lambda data: data.__delitem__(-1)),
)
HDF5.add(
    "a superblock of version 9",
    file(x, put(8, "B", 9)),
)
HDF5.add(
    "addresses of 4 bytes",
    file(x, put(13, "B", 4)),
)
HDF5.add(
    "addresses of 3 bytes",
    file(x, put(13, "B", 3)),
)
HDF5.add("a root beyond the file", file(x, put(64, "Q", 1 << 40)))
HDF5.add("a root at the superblock", file(x, put(64, "Q", 0)))
HDF5.add(
    "a file that ends at 2**60, it says",
    file(x, put(40, "Q", 1 << 60)),
)
HDF5.add("a header of version 7", file(x, put(96, "B", 7)))
HDF5.add(
    "a header of 4 GB",
    file(x, put(104, "I", 0xFFFFFFF8)),
)
HDF5.add("a tree that is none", file(x, at(b"TREE", 0, "I", 0)))
HDF5.add("a tree of 65,535 entries", file(x, at(b"TREE", 6, "H", 0xFFFF)))
HDF5.add(
    "a tree that is its own child",
    file(x, at(b"TREE", 5, "B", 1), at(b"TREE", 32, "Q", 136)),
)
HDF5.add("names beyond their heap", file(x, at(b"SNOD", 8, "Q", 1 << 20)))
HDF5.add("65,535 names in a node", file(x, at(b"SNOD", 6, "H", 0xFFFF)))
HDF5.add("a heap that is none", file(x, at(b"HEAP", 0, "I", 0)))
HDF5.add("a heap of 2**60 bytes", file(x, at(b"HEAP", 8, "Q", 1 << 60)))
HDF5.add("a heap beyond the file", file(x, at(b"HEAP", 24, "Q", 1 << 40)))
HDF5.add(
    "free space that is a circle",
    file(
        x,
        at(b"HEAP", 16, "Q", 8),
        lambda data: struct.pack_into("<Q", data, struct.unpack_from("<Q", data, data.index(b"HEAP") + 24)[0] + 8, 8),
    ),
)
HDF5.add(
    "a group that is in itself",
    file(lambda opened: opened.create_group("g").__setitem__("up", opened["g"])),
)
HDF5.add(
    "a newer superblock with another checksum",
    file(x, put(44, "I", 0), libver="latest"),
)
HDF5.add("a newer header with another checksum", file(x, at(b"OHDR", 8, "B", 7), libver="latest"))

# Datasets -------------------------------------------------------------------------------------------------------------

HDF5.add("33 axes", file(x, at(SPACE, 1, "B", 33)))
HDF5.add("a dataspace of version 9", file(x, at(SPACE, 0, "B", 9)))
HDF5.add("a terabyte", file(x, at(SPACE, 8, "QQQ", 1 << 38, 6, 1 << 38)))
HDF5.add("a shape that overflows 64 bits", file(x, at(SPACE, 8, "QQQQ", *[1 << 62] * 4)))
HDF5.add("more than there may be", file(x, at(SPACE, 8, "Q", 5)))
HDF5.add(
    "more values than are stored",
    file(x, at(SPACE, 8, "QQQ", 5, 6, 5)),
)
HDF5.add("a class of types that nobody has", file(x, at(FLOAT, 0, "B", 0x1E)))
HDF5.add("values of no bytes", file(x, at(FLOAT, 4, "I", 0)))
HDF5.add("values of 4 GB each", file(x, at(FLOAT, 4, "I", 0xFFFFFFFF)))
HDF5.add("a mantissa beyond the value", file(x, at(FLOAT, 8 + 7, "B", 60)))
HDF5.add("datasets that overlap", file(pair, elsewhere(48)))
HDF5.add("two datasets of the same bytes", file(pair, elsewhere(0)))
HDF5.add("a chunk twice", file(chunked(), same_chunk))
HDF5.add("values beyond the file", file(x, place_of_values(1 << 40)))
HDF5.add("values that end beyond the file", file(x, place_of_values(2500)))
HDF5.add("chunks of no values", file(chunked(), at(LAYOUT, 11, "I", 0)))
HDF5.add("chunks of 2**32 values", file(chunked(), at(LAYOUT, 11, "I", 0xFFFFFFFF)))
HDF5.add("chunks of three axes", file(chunked(), at(LAYOUT, 2, "B", 4)))
HDF5.add(
    "a chunk of 4 GB",
    file(chunked(compression="gzip"), at(b"TREE", 24, "I", 0xFFFFFFFF, which=1)),
)
HDF5.add("a chunk beyond the file", file(chunked(compression="gzip"), at(b"TREE", 24 + 32, "Q", 1 << 40, which=1)))
HDF5.add("a chunk that is not deflated", file(chunked(compression="gzip"), at(b"\x78\x5e", 0, "H", 0)))
HDF5.add(
    "a tree of chunks that is its own child",
    file(chunked(), own_child),
)
HDF5.add(
    "nodes of a tree in a circle",
    file(chunked(), lambda data: at(b"TREE", 16, "Q", data.index(b"TREE", data.index(b"TREE") + 1), which=1)(data)),
)
HDF5.add(
    "a newer tree of 65,535 levels",
    file(newer, at(b"BTHD", 12, "H", 0xFFFF), libver="latest"),
)
HDF5.add(
    "another fletcher32",
    file(chunked(fletcher32=True), lambda data: data.__setitem__(-1, data[-1] ^ 1)),
)
HDF5.add(
    "a string of 4 GB",
    file(texts, long_string),
)
HDF5.add(
    "strings in a heap that is none",
    file(texts, at(b"GCOL", 0, "I", 0)),
)
HDF5.add(
    "strings in a heap that is no chain",
    file(texts, at(b"GCOL", 24, "Q", 1 << 40)),
)
HDF5.add(
    "references",
    file(lambda opened: opened.create_dataset("x", data=opened.ref, dtype=h5py.ref_dtype)),
)
HDF5.add(
    "a compound",
    file(lambda opened: opened.create_dataset("x", data=np.zeros(2, "<i4,<f4"))),
)

# Keras ----------------------------------------------------------------------------------------------------------------


def layers(opened: h5py.File, names: list[str], weights: dict[str, list[str]]) -> None:
    """The attributes by which Keras 2 finds its weights."""
    opened.attrs["layer_names"] = [name.encode() for name in names]
    for layer, found in weights.items():
        opened.require_group(layer).attrs["weight_names"] = [name.encode() for name in found]


def legacy(fill: Fill) -> Callable[[], bytes]:
    def whole(opened: h5py.File) -> None:
        opened["dense/dense/kernel:0"] = np.ones((2, 2), "<f4")
        layers(opened, ["dense"], {"dense": ["dense/kernel:0"]})
        fill(opened)

    return file(whole)


def config(text: bytes) -> Fill:
    return lambda opened: opened.attrs.__setitem__("model_config", text)


LEGACY.add(
    "a layer that is not there",
    legacy(lambda o: layers(o, ["dense", "more"], {})),
)
LEGACY.add(
    "a weight that is not there",
    legacy(lambda o: layers(o, ["dense"], {"dense": ["dense/bias:0"]})),
)
LEGACY.add(
    "a weight that is a group",
    legacy(lambda o: layers(o, ["dense"], {"dense": ["dense"]})),
)
LEGACY.add(
    "a weight twice",
    legacy(lambda o: layers(o, ["dense"], {"dense": ["dense/kernel:0"] * 2})),
)
LEGACY.add(
    "a layer twice",
    legacy(lambda o: layers(o, ["dense", "dense"], {})),
)
LEGACY.add(
    "layers that are numbers",
    legacy(lambda o: o.attrs.__setitem__("layer_names", [1, 2])),
)
LEGACY.add(
    "weights that lead out",
    legacy(lambda o: layers(o, ["dense"], {"dense": ["../../x"]})),
)
LEGACY.add("a config that is no JSON", legacy(config(b"{")))
LEGACY.add("a config of brackets without end", legacy(config(b"[" * 50_000)))
LEGACY.add(
    "a config that is a list",
    legacy(config(json.dumps([1]).encode())),
)
KERAS.add(
    "a variable without values",
    file(lambda o: o.__setitem__("layers/dense/vars/0", h5py.Empty("f4"))),
)
