"""Nearly right files for the fuzzers: changed inside their frames, with checksums that fit.

Promise: :func:`mutated` is a function of the random generator and the file alone. The checksums of SSTables' blocks,
of zip members, of HDF5's metadata and of OCDBT's nodes are made right again after most changes, because a reader that
stops at a checksum is not tested behind it. Limit: checksums of values (a checkpoint's data, ONNX's external data) are
not: what lies behind those is only values.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from random import Random

import crc32c
from mutants import Mutator, msgpack, npy, other, pickle, plain, protobuf, safetensors, text

from weightport.formats._io import ByteFile
from weightport.formats._table import Table, TableWriter, mask
from weightport.tensors import Budget

#: A mutant that is larger than this, or twice what it came from, is cut: the corpus grows from mutants, and must not
#: grow without end.
LARGEST = 2_000

# -- SSTables of TensorFlow --------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _items(data: bytes) -> dict[bytes, bytes] | None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
        Path(file.name).write_bytes(data)
        try:
            with ByteFile(file.name) as opened:
                return dict(Table(opened, Budget(header_bytes=1 << 20)).items())
        except Exception:  # a mutant that is no table any more, however that shows
            return None


def table(rng: Random, data: bytes) -> bytes:
    """The entries of a table, written anew; or a block's bytes under a checksum that fits them."""
    items = _items(data)
    if not items or rng.random() < 0.2:
        return _block(rng, data)
    made = dict(items)
    key = rng.choice(list(made))
    how = rng.randrange(10)
    if how < 7:
        made[key] = protobuf(rng, made[key])
    elif how == 7:
        made[plain(rng, key)] = made[key] if rng.random() < 0.5 else made.pop(key)
    elif how == 8:
        del made[key]
    else:
        made[key] = made[rng.choice(list(made))]
    out = io.BytesIO()
    writer = TableWriter(out, block_size=rng.choice((1, 64, 1 << 18)), compress=rng.random() < 0.2)
    for name in sorted(made):
        writer.add(name, made[name])
    writer.finish()
    return out.getvalue()


def _block(rng: Random, data: bytes) -> bytes:
    """One block, found by where the next one begins: they lie one after the other, each with type and checksum."""
    bounds = _blocks(data)
    if not bounds:
        return plain(rng, data)
    start, size = bounds[rng.randrange(len(bounds))]
    new = plain(rng, data[start : start + size + 1])
    new = new[: size + 1].ljust(size + 1, b"\0")  # the handles still fit
    return data[:start] + new + mask(crc32c.crc32c(new)).to_bytes(4, "little") + data[start + size + 5 :]


@lru_cache(maxsize=512)
def _blocks(data: bytes) -> list[tuple[int, int]]:
    found, start = [], 0
    for at in range(1, len(data) - 4):
        known = int.from_bytes(data[at : at + 4], "little")
        if at > start + 4 and mask(crc32c.crc32c(data[start:at])) == known:
            found.append((start, at - 1 - start))
            start = at + 4
    return found


# -- zip archives ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _members(data: bytes) -> list[tuple[str, bool, bytes]] | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [(i.filename, i.compress_type == 8, archive.read(i)) for i in archive.infolist()]
    except Exception:  # a mutant that is no archive any more: zipfile raises what it likes
        return None


def archive(rng: Random, data: bytes) -> bytes:
    """A member's content under a checksum that fits, a member lost, doubled or renamed, or fields of its headers."""
    members = _members(data)
    if not members or rng.random() < 0.15:
        start = max(0, data.find(b"PK\1\2"))
        return data[:start] + plain(rng, data[start:])
    made = list(members)
    at, how = rng.randrange(len(made)), rng.randrange(10)
    name, packed, content = made[at]
    if how < 7:
        # Small parts, the ones that have a structure, more often than the values.
        at = max(range(len(made)), key=lambda n: (made[n][0].endswith(_STRUCTURED), rng.random()))
        at = at if rng.random() < 0.8 else rng.randrange(len(made))
        name, packed, content = made[at]
        made[at] = (name, packed, _of_name(name)(rng, content))
    elif how == 7:
        made[at] = (name, not packed, content)
    elif how == 8:
        del made[at]
    else:
        other = plain(rng, name.encode()).decode("utf-8", "replace") if rng.random() < 0.5 else name
        made.insert(at, (other, packed, content))
    return _zipped(rng, made)


_STRUCTURED = (".pkl", ".npy", ".json", ".h5")


def _zipped(rng: Random, members: list[tuple[str, bool, bytes]]) -> bytes:
    body, directory = [], []
    offset = 0
    broken = rng.randrange(len(members)) if members and rng.random() < 0.15 else -1
    for number, (title, packed, content) in enumerate(members):
        name = title.encode()[:65535]
        stored = zlib.compress(content, 1)[2:-4] if packed else content
        fields = [20, 0x800, 8 if packed else 0, 0, 33, zlib.crc32(content), len(stored), len(content), len(name), 0]
        if number == broken:
            which = rng.randrange(len(fields))
            wide = 4 if which in (5, 6, 7) else 2
            fields[which] = other(rng, fields[which]) % (1 << 8 * wide)
        head = struct.pack("<HHHHHLLLHH", *fields)
        body.append(b"PK\3\4" + head + name + stored)
        directory.append(b"PK\1\2\x14\3" + head + struct.pack("<HHHLL", 0, 0, 0, 0, offset) + name)
        offset += len(body[-1])
    listed = b"".join(directory)
    end = struct.pack("<HHHHLLH", 0, 0, len(members), len(members), len(listed), offset, 0)
    return b"".join(body) + listed + b"PK\5\6" + end


# -- HDF5 --------------------------------------------------------------------------------------------------------------


def _rotated(value: int, by: int) -> int:
    return (value << by | value >> 32 - by) & 0xFFFFFFFF


def lookup3(data: bytes) -> int:
    """Jenkins' checksum of HDF5's metadata (H5checksum.c, H5_checksum_lookup3 with an initial value of 0)."""
    most = 0xFFFFFFFF
    a: int
    b: int
    c: int
    a = b = c = (0xDEADBEEF + len(data)) & most
    if not data:
        return c
    last = (len(data) - 1) // 12 * 12  # the last twelve bytes or fewer are mixed in another way
    for x, y, z in struct.iter_unpack("<III", data[:last]):
        a, b, c = a + x & most, b + y & most, c + z & most
        for turn in (4, 6, 8, 16, 19, 4):
            a, c = (a - c & most) ^ _rotated(c, turn), c + b & most
            a, b, c = b, c, a
    x, y, z = struct.unpack("<III", data[last:].ljust(12, b"\0"))
    a, b, c = a + x & most, b + y & most, c + z & most
    for turn in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _rotated(b, turn) & most
        a, b, c = b, c, a
    return b


@lru_cache(maxsize=256)
def _checked(data: bytes) -> list[tuple[int, int]]:
    """Where HDF5's metadata with a checksum begin and where it stands: the superblock of 1.10, and object headers."""
    found = []
    if data[:8] == b"\x89HDF\r\n\x1a\n" and len(data) > 48 and data[8] in (2, 3):
        found.append((0, 44))
    for sign in (b"OHDR", b"OCHK", b"FRHP", b"FHDB", b"BTHD", b"BTLF", b"FSHD", b"FAHD", b"FADB", b"EAHD", b"EAIB"):
        at = data.find(sign)
        while at >= 0:
            end = _end(data, at, sign)
            if end is not None:
                found.append((at, end))
            at = data.find(sign, at + 4)
    return found


def _end(data: bytes, at: int, sign: bytes) -> int | None:
    """Where the checksum of a structure stands: where what its size would be says, or the first place where it fits."""
    if sign == b"OHDR" and at + 8 < len(data):
        flags = data[at + 5]
        start = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        wide = 1 << (flags & 3)
        end = start + wide + int.from_bytes(data[start : start + wide], "little")
        return end if end + 4 <= len(data) else None
    for end in range(at + 8, min(at + 160, len(data) - 3)):
        if lookup3(data[at:end]) == int.from_bytes(data[end : end + 4], "little"):
            return end
    return None


def hdf5(rng: Random, data: bytes) -> bytes:
    """Bytes of a structure that has a checksum, and that made right; or of any other."""
    places = _checked(data)
    if not places or rng.random() < 0.25:
        return plain(rng, data)
    start, end = places[rng.randrange(len(places))]
    new = plain(rng, data[start + 4 : end])[: end - start - 4].ljust(end - start - 4, b"\0")
    new = data[start : start + 4] + new
    return data[:start] + new + lookup3(new).to_bytes(4, "little") + data[end + 4 :]


# -- which file is what ------------------------------------------------------------------------------------------------


def ocdbt(rng: Random, data: bytes) -> bytes:
    """A manifest or a node of OCDBT: its CRC-32C stands in its last four bytes."""
    new = plain(rng, data[:-4])
    return new + crc32c.crc32c(new).to_bytes(4, "little")


_BY_NAME: tuple[tuple[str, Mutator], ...] = (
    (".npy", npy),
    (".pkl", pickle),
    (".json", text),
    (".pbtxt", text),
    ("_METADATA", text),
    (".zarray", text),
    (".ocdbt", ocdbt),
    (".h5", hdf5),
    ("m.bin", hdf5),
    (".msgpack", msgpack),
    (".index", table),
    (".pb", protobuf),
    (".meta", protobuf),
    (".onnx", protobuf),
    (".safetensors", safetensors),
    (".npz", archive),
    (".keras", archive),
    (".pt2", archive),
    (".bin", archive),
)


def _of_name(name: str) -> Mutator:
    return next((mutator for ending, mutator in _BY_NAME if name.endswith(ending)), plain)


def mutator_of(reader: str, name: str, data: bytes) -> Mutator:
    """What knows the structure of a file of that name, that a reader is given."""
    if reader == "tf-checkpoint-v1":
        return table
    if name.endswith(".pt"):
        return archive if data[:2] == b"PK" else pickle
    return _of_name(name)


def mutated(rng: Random, reader: str, name: str, data: bytes) -> bytes:
    """The file with one to three changes."""
    size, kind = len(data), rng.random()
    if kind < 0.9:
        data = mutator_of(reader, name, data)(rng, data)
    while kind > 0.8:
        data, kind = plain(rng, data), rng.random()
    return data[: max(LARGEST, size + size // 4)]
