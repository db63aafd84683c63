"""Arrays of numpy and archives of PyTorch and Keras that lie about members, sizes, headers, storages and shapes."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from tests.formats._torch import pickled, tensor_pickle
from tests.formats.test_npz import PLAIN, npy
from tests.formats.test_torch_legacy import HEAD, VALUES, legacy, root
from tests.hostile.malformed import Family, Files

NPZ = Family("npz", "m.npz")
NPY = Family("npy", "m.npy")
TORCH = Family("torch", "m.pt")
LEGACY = Family("torch before 1.6", "m.bin")
KERAS = Family("keras", "m.keras")
FAMILIES = (NPZ, NPY, TORCH, LEGACY, KERAS)

DIRECTORY, LOCAL = b"PK\1\2", b"PK\3\4"
#: Where fields stand in a record of the directory, and in a member's own head.
_IN_DIRECTORY = {"flags": 8, "method": 10, "crc": 16, "packed": 20, "size": 24, "disk": 34, "offset": 42}
_IN_HEAD = {"flags": 6, "method": 8, "crc": 14, "packed": 18, "size": 22, "name": 26}
_WIDE = {"crc", "packed", "size", "offset"}


def array(values: np.ndarray) -> bytes:
    """What ``np.save`` writes."""
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


W = array(np.arange(4, dtype=np.float32))


def archive(*members: tuple[str, bytes], deflated: bool = False, **said: str) -> bytes:
    """A zip archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as made:
        made.comment = said.get("comment", "").encode()
        for name, content in members:
            made.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED)
    return out.getvalue()


def lying(
    content: bytes = W,
    *,
    deflated: bool = False,
    directory: Mapping[str, int] | None = None,
    head: Mapping[str, int] | None = None,
) -> Callable[[], bytes]:
    """An archive of one member ``w.npy`` whose directory or head says something else."""

    def made() -> bytes:
        data = bytearray(archive(("w.npy", content), deflated=deflated))
        for fields, begin, told in (
            (_IN_DIRECTORY, data.rindex(DIRECTORY), directory), (_IN_HEAD, data.index(LOCAL), head)
        ):  # fmt: skip
            for key, value in (told or {}).items():
                struct.pack_into("<I" if key in _WIDE else "<H", data, begin + fields[key], value)
        return bytes(data)

    return made


def end(**said: int) -> Callable[[], bytes]:
    """An archive whose end of the directory says something else."""
    places = {"disk": (4, "<H"), "here": (8, "<H"), "count": (10, "<H"), "size": (12, "<I"), "offset": (16, "<I")}

    def made() -> bytes:
        data = bytearray(archive(("w.npy", W)))
        for key, value in said.items():
            at, code = places[key]
            struct.pack_into(code, data, len(data) - 22 + at, value)
        return bytes(data)

    return made


def wide(**said: int) -> Callable[[], bytes]:
    """An archive whose directory is described by a record of zip64 that says something else."""

    def made() -> bytes:
        data = archive(("w.npy", W))
        start, size = data.rindex(DIRECTORY), len(data) - 22 - data.rindex(DIRECTORY)
        told = {"count": 1, "size": size, "offset": start, **said}
        record = b"PK\6\6" + struct.pack(
            "<QHHIIQQQQ", 44, 45, 45, 0, 0, told["count"], told["count"], told["size"], told["offset"]
        )
        locator = b"PK\6\7" + struct.pack("<IQI", 0, said.get("record", len(data) - 22), 1)
        last = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        return data[:-22] + record + locator + last

    return made


def twice(first: str, second: str) -> bytes:
    """Two members, the second of which has another name in its own head."""
    data = archive(("w.npy", W), ("v.npy", W))
    at = data.rindex(LOCAL)
    return data[:at] + data[at:].replace(first.encode(), second.encode(), 1)


def overlapping() -> bytes:
    """A directory that lists one member under two names."""
    data = archive(("w.npy", W))
    start = data.rindex(DIRECTORY)
    record = data[start : len(data) - 22]
    last = struct.pack("<HHHHIIH", 0, 0, 2, 2, 2 * len(record), start, 0)
    return data[:start] + record + record.replace(b"w.npy", b"v.npy") + b"PK\5\6" + last


def bomb() -> bytes:
    """A header of 64 MB in 64 kB."""
    return archive(("w.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 26) + b" " * (1 << 26)), deflated=True)


# Zip archives ---------------------------------------------------------------------------------------------------------

NPZ.add("cut off before the directory", lambda: archive(("w.npy", W))[:-30])
NPZ.add(
    "more members than there are",
    end(count=2, here=2),
)
NPZ.add(
    "fewer members than there are",
    end(count=0, here=0),
)
NPZ.add(
    "a directory beyond the file",
    end(offset=1 << 30),
)
NPZ.add("a directory of 4 GB", end(size=0xFFFFFFF0))
NPZ.add(
    "2**40 members",
    wide(count=1 << 40),
)
NPZ.add(
    "a directory at 2**62",
    wide(offset=1 << 62),
)
NPZ.add("a directory of 2**62", wide(size=1 << 62))
NPZ.add(
    "a member beyond the file",
    lying(directory={"offset": 1 << 30}),
)
NPZ.add(
    "a member in the middle of another",
    lying(directory={"offset": 3}),
)
NPZ.add(
    "two sizes",
    lying(head={"size": 3, "packed": 3}),
)
NPZ.add(
    "a size beyond the file",
    lying(directory={"size": 1 << 30, "packed": 1 << 30}),
)
NPZ.add(
    "stored in another size",
    lying(directory={"size": 8}),
)
NPZ.add(
    "deflated to 4 GB, it says",
    lying(deflated=True, directory={"size": 0xFFFFFFF0}),
)
NPZ.add(
    "deflated to less, both say",
    lying(deflated=True, directory={"size": 40}, head={"size": 40}),
)
NPZ.add(
    "another checksum",
    lying(directory={"crc": 1}, head={"crc": 1}),
)
NPZ.add(
    "two checksums",
    lying(directory={"crc": 1}),
)
NPZ.add(
    "an unknown method",
    lying(directory={"method": 99}, head={"method": 99}),
)
NPZ.add(
    "two methods",
    lying(head={"method": 8}),
)
NPZ.add("encrypted", lying(directory={"flags": 1}, head={"flags": 1}))
NPZ.add(
    "deflated data that is none",
    lying(b"x" * 40, directory={"method": 8}, head={"method": 8}),
)
NPZ.add(
    "two names",
    lambda: twice("v.npy", "x.npy"),
)
NPZ.add(
    "a name twice",
    lambda: archive(("w.npy", W), ("v.npy", W)).replace(b"v.npy", b"w.npy"),
)
NPZ.add(
    "one member under two names",
    overlapping,
)
NPZ.add("a name that leads out", lambda: archive(("../../w.npy", W)))
NPZ.add(
    "a header of 64 MB in 64 kB",
    bomb,
)
NPZ.add(
    "a member that is no array",
    lambda: archive(("w.npy", b"not an array")),
)

# Headers of numpy -----------------------------------------------------------------------------------------------------


def header(text: str, data: bytes = bytes(16), version: int = 1) -> Callable[[], bytes]:
    return lambda: npy(text, data, version)


def shaped(shape: str, data: bytes = bytes(16)) -> Callable[[], bytes]:
    return header("{'descr': '<f4', " + PLAIN + shape + "}\n", data)


NPY.add(
    "a header beyond the file",
    lambda: b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31),
)
NPY.add(
    "the version 9",
    header("{'descr': '<f4', " + PLAIN + "(4,)}\n", version=9),
)
NPY.add(
    "a header that is a call",
    header("__import__('os').system('true')\n"),
)
NPY.add(
    "a header that is a list",
    header("[1, 2]\n"),
)
NPY.add(
    "brackets without end",
    header("(" * 5000 + "\n"),
)
NPY.add(
    "no shape",
    header("{'descr': '<f4', 'fortran_order': False}\n"),
)
NPY.add(
    "one key more",
    header("{'descr': '<f4', 'x': 1, " + PLAIN + "(4,)}\n"),
)
NPY.add("a shape that is text", shaped("'4'"))
NPY.add("a shape of floats", shaped("(4.0,)"))
NPY.add("a negative dimension", shaped("(-4,)"))
NPY.add(
    "a dimension of 5,000 digits",
    shaped("(" + "9" * 5000 + ",)"),
)
NPY.add(
    "a shape that overflows 64 bits",
    shaped(f"({1 << 32}, {1 << 32})"),
)
NPY.add("65 axes", shaped("(" + "1, " * 65 + ")", bytes(4)))
NPY.add(
    "more bytes than the shape",
    shaped("(4,)", bytes(20)),
)
NPY.add(
    "fewer bytes than the shape",
    shaped("(4,)", bytes(12)),
)
NPY.add(
    "a dtype that is a pickle",
    header("{'descr': '|O', " + PLAIN + "(1,)}\n", pickle.dumps([1])),
)
NPY.add(
    "a dtype that is none",
    header("{'descr': '<q9', " + PLAIN + "(4,)}\n"),
)
NPY.add(
    "a dtype of terabytes",
    header("{'descr': '|S1099511627776', " + PLAIN + "(4,)}\n"),
)
NPY.add(
    "a structured dtype in itself",
    header("{'descr': [('a', [('b', '<f4')])], " + PLAIN + "(4,)}\n"),
)
NPY.add(
    "an order that is no order",
    header("{'descr': '<f4', 'fortran_order': 2, 'shape': (4,)}\n"),
)

# Archives of PyTorch --------------------------------------------------------------------------------------------------

SIXTEEN = {"0": bytes(16)}


def held(tensor: bytes, storages: Mapping[str, bytes] | None = None, **members: bytes) -> Callable[[], bytes]:
    """A state dict of one tensor ``w``."""
    return lambda: pickled(root(w=tensor), SIXTEEN if storages is None else storages, **members)


def number(value: int) -> bytes:
    """It as a pickle has it: four bytes, or as many as it takes."""
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


TORCH.add(
    "no pickle",
    lambda: archive(("archive/data/0", bytes(16))),
)
TORCH.add(
    "two pickles",
    lambda: archive(
        *(
            (f"{n}/{name}", content)
            for n in "ab"
            for name, content in (("data.pkl", root(w=tensor_pickle())), ("data/0", VALUES))
        )
    ),
)
TORCH.add("an empty pickle", lambda: pickled(b""))
TORCH.add(
    "a pickle that never stops",
    lambda: pickled(b"\x80\x02N"),
)
TORCH.add("nothing on the stack", lambda: pickled(b"\x80\x02."))
TORCH.add(
    "an unknown opcode",
    lambda: pickled(b"\x80\x02\xff."),
)
TORCH.add(
    "a string of 4 GB",
    lambda: pickled(b"\x80\x02X\xf0\xff\xff\xff."),
)
TORCH.add(
    "a memo that is not there",
    lambda: pickled(b"\x80\x02h\x07."),
)
TORCH.add("a place of the memo at 2**31", lambda: pickled(b"\x80\x02Nr\xff\xff\xff\x7f."))
TORCH.add(
    "a negative count of bytes",
    lambda: pickled(b"\x80\x02\x8b\xff\xff\xff\xff."),
)
TORCH.add(
    "a number of a billion digits",
    lambda: pickled(b"\x80\x02\x8b\xf0\xff\xff\x7f" + bytes(64) + b"."),
)
TORCH.add(
    "a mark that is not there",
    lambda: pickled(b"\x80\x02t."),
)
TORCH.add("lists in lists that double, fifty times", lambda: pickled(b"]q\0" + b"0](h\0h\0eq\0" * 50 + b"."))
TORCH.add(
    "tensors in lists that double, fifty times",
    lambda: pickled(tensor_pickle() + b"q\0" + b"0](h\0h\0eq\0" * 50 + b".", SIXTEEN),
)
TORCH.add(
    "a hundred levels",
    lambda: pickled(tensor_pickle() + b"\x85" * 100 + b".", SIXTEEN),
)
TORCH.add("a list that holds itself", lambda: pickled(b"]q\0(h\0" + tensor_pickle() + b"e.", SIXTEEN))
TORCH.add("a storage that is not there", held(tensor_pickle("7")))
TORCH.add("a storage that leads out", held(tensor_pickle("../../x")))
TORCH.add(
    "a storage of another size",
    held(tensor_pickle(numel=5)),
)
TORCH.add(
    "a storage of minus one",
    held(tensor_pickle(numel=-1)),
)
TORCH.add(
    "a tensor beyond its storage",
    held(tensor_pickle(shape=b"K\5\x85")),
)
TORCH.add(
    "an offset beyond its storage",
    held(tensor_pickle(offset=4)),
)
TORCH.add("a negative offset", held(tensor_pickle(offset=-1)))
TORCH.add(
    "a negative dimension",
    held(tensor_pickle(shape=number(-4) + b"\x85")),
)
TORCH.add(
    "a negative stride",
    held(tensor_pickle(stride=number(-1) + b"\x85")),
)
TORCH.add(
    "a stride of 2**62",
    held(tensor_pickle(stride=number(1 << 62) + b"\x85")),
)
TORCH.add(
    "a shape that overflows 64 bits",
    held(tensor_pickle(shape=number(1 << 40) + number(1 << 40) + b"\x86", stride=b"K\0K\0\x86")),
)
TORCH.add(
    "a terabyte of one value",
    held(tensor_pickle(shape=number(1 << 38) + b"\x85", stride=b"K\0\x85")),
)
TORCH.add(
    "strides of another rank",
    held(tensor_pickle(stride=b"K\1K\1\x86")),
)
TORCH.add(
    "65 axes",
    held(tensor_pickle(shape=b"(" + b"K\1" * 65 + b"t", stride=b"(" + b"K\1" * 65 + b"t")),
)
TORCH.add("an unknown order of bytes", held(tensor_pickle(), byteorder=b"middle"))
TORCH.add(
    "two tensors of one name",
    lambda: pickled(
        b"}(X\1\0\0\0a}X\1\0\0\0b" + tensor_pickle() + b"sX\3\0\0\0a.b" + tensor_pickle(shape=b"K\2\x85") + b"u.",
        SIXTEEN,
    ),
)

LEGACY.add(
    "another protocol",
    lambda: legacy(root(w=tensor_pickle()), ["0"], VALUES).replace(pickle.dumps(1001, 2), pickle.dumps(1007, 2)),
)
LEGACY.add("cut off behind the objects", lambda: HEAD + root(w=tensor_pickle()))
LEGACY.add(
    "cut off in the values",
    lambda: legacy(root(w=tensor_pickle()), ["0"], VALUES)[:-1],
)
LEGACY.add(
    "keys that are no list",
    lambda: legacy(root(w=tensor_pickle()), 5, VALUES),
)
LEGACY.add(
    "a key that is not there",
    lambda: legacy(root(w=tensor_pickle("3")), ["0"], VALUES),
)
LEGACY.add(
    "a key twice",
    lambda: legacy(root(w=tensor_pickle()), ["0", "0"], VALUES, VALUES),
)
LEGACY.add(
    "values of another count",
    lambda: legacy(root(w=tensor_pickle()), ["0"], VALUES[:8]),
)

# Archives of Keras ----------------------------------------------------------------------------------------------------

CONFIG = json.dumps({"class_name": "Sequential", "config": {"layers": []}}).encode()


def keras(config: bytes = CONFIG, **members: bytes) -> Callable[[], Files]:
    named = {
        "metadata.json": b'{"keras_version": "3.0.0"}',
        "config.json": config,
        **{name.replace("_h5", ".h5").replace("_", "."): content for name, content in members.items()},
    }
    return lambda: {"m.keras": archive(*named.items())}


KERAS.add(
    "no weights",
    keras(),
)
KERAS.add(
    "weights that are no HDF5",
    keras(model_weights_h5=b"x" * 600),
)
KERAS.add(
    "weights that end behind the signature",
    keras(model_weights_h5=b"\x89HDF\r\n\x1a\n"),
)
KERAS.add("a config that is no JSON", keras(b"{", model_weights_h5=b"x" * 600))
KERAS.add("a config of brackets without end", keras(b"[" * 100_000, model_weights_h5=b"x" * 600))
KERAS.add("a config that is no text", keras(b"\xff\xfe", model_weights_h5=b"x" * 600))
KERAS.add(
    "a config with a key twice",
    keras(b'{"a": 1, "a": 2}', model_weights_h5=b"x" * 600),
)
