"""TensorFlow's V2 checkpoints, ``prefix.index`` and ``prefix.data-NNNNN-of-NNNNN``, read without TensorFlow.

Promise: opening reads the index only (and the object graph, where there is one, once names are asked for); reading
takes only the byte ranges asked for; every tensor is verified against its checksum - a whole read in the same pass,
the first read of a part by a pass over the tensor, later ones not again. Values that overlap in part are an error once
the first is read. Limit: resource handles and variants are listed, but reading one is an error; data shards are opened
when they are needed, so a missing one shows then, by its name.

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.{h,cc}, tensorflow/core/protobuf/tensor_bundle.proto.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from weightport.checksums import CRC32C, crc32c
from weightport.collecting import no_gc
from weightport.errors import Error, FormatError, TensorNotFound
from weightport.formats import _inside, _slices, _strided, tf_objects, tf_paths
from weightport.formats._apart import Places
from weightport.formats._io import CHUNK, ByteFile
from weightport.formats._lazy import LazySpecs
from weightport.formats._proto import FIXED32, VARINT, Memory, fields, signed, varint
from weightport.formats._table import Table, mask, streamed_crc, unmask
from weightport.formats._tensorproto import OPAQUE, STRING, VARIANT, dtype_of, is_sub_byte, shape_of, sub_byte
from weightport.formats._tf_beside import GraphBeside
from weightport.formats._tf_place import place_of
from weightport.formats._tf_variants import variants
from weightport.tensors import Array, Budget, Checksum, Extent, Index, TensorSpec

#: The newest layout of a bundle that this reader knows (``kTensorBundleVersion``).
VERSION = 1
_MAX_SEEN = 10_000
# An entry of so many bytes has slices, or no good reason: it is not looked through again for each slot of its variable.
_LARGE = 1024

#: (dtype number, stored shape) -> dtype, shape, bytes
_Seen = dict[tuple[int, bytes], tuple[np.dtype[Any], tuple[int, ...], int]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A BundleEntryProto: where a tensor lies, or which slices it is stored in."""

    number: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int
    shard: int
    offset: int
    size: int
    crc: int
    slices: tuple[_slices.Slice, ...]

    @classmethod
    def parse(cls, data: bytes, path: str, name: str, budget: Budget, seen: _Seen) -> Entry:
        """The entry of a tensor, or of a slice's data, with its sizes checked; ``path`` is the index.

        ``seen`` remembers the dtypes and shapes that were checked before: the layers of a model are much alike.
        """
        numbers = {1: 0, 3: 0, 4: 0, 5: 0}
        crc = 0
        shapes: list[bytes] = []
        slices = []
        for field, wire, value in fields(data, path):
            if isinstance(value, bytes):
                if field == 2:
                    shapes.append(value)
                elif field == 7:
                    slices.append(_slices.slice_of(value, path))
            elif wire == VARINT:
                numbers[field] = signed(value)
            elif field == 6 and wire == FIXED32:
                crc = value
        stored = b"".join(shapes)
        known = seen.get((numbers[1], stored))
        if known is None:
            dtype = dtype_of(numbers[1], path, name)
            shape = shape_of(Memory(stored, path), 0, len(stored), name)
            known = dtype, shape, _strided.checked(dtype, shape, budget, path, name)
            if len(seen) < _MAX_SEEN:
                seen[numbers[1], stored] = known
        dtype, shape, nbytes = known
        size = numbers[5]
        if dtype.kind != "O" and not slices and size != nbytes:
            raise FormatError(
                path, f"{size} bytes stored for {dtype.name}{list(shape)}, which needs {nbytes}", tensor=name
            )
        number = numbers[1] - 100 if numbers[1] > 100 else numbers[1]
        return cls(number, dtype, shape, nbytes, numbers[3], numbers[4], size, crc, tuple(slices))

    def spec(self, role: str) -> TensorSpec:
        """The header as the rest of weightport sees it."""
        if self.number in OPAQUE:  # the state of an iterator, ...
            unread = f"a {OPAQUE[self.number]}, which has no values"
            return TensorSpec(self.dtype, self.shape, self.size, "constant", unread)
        nbytes = self.size if self.dtype.kind == "O" else self.nbytes
        return TensorSpec(self.dtype, self.shape, nbytes, role)


class BundleSource:
    """An open V2 checkpoint.

    Args:
        prefix: the path without ``.index``.
        budget: the bounds to keep to.
    """

    format = "tf-checkpoint"

    def __init__(self, prefix: str, *, budget: Budget | None = None) -> None:
        self.path = prefix
        self._index = self.described = f"{prefix}.index"
        self._budget = Budget() if budget is None else budget
        self._graph = GraphBeside(prefix, self._budget)
        self._shards: dict[int, ByteFile] = {}
        self._lock = threading.RLock()
        self._closed = self._apart = False
        self._verified: set[tuple[int, int, int]] = set()
        self._names: dict[str, tuple[bytes, str | None]] | None = None
        self._specs: LazySpecs | None = None
        self._aliases: dict[str, str] = {}
        self._entries: dict[bytes, bytes] = {}
        self._seen: _Seen = {}
        self._shapes: dict[bytes, tuple[int, ...]] = {}
        with ByteFile(self._index) as file, no_gc():
            items = Table(file, self._budget).items()
            key, header = next(items, (None, b""))
            if key != b"":
                raise FormatError(self._index, "no header: this is a table, but no V2 checkpoint's index")
            self._read_header(header)
            self._entries = dict(items)
        self._budget.check("tensors", len(self._entries), self._index)

    def _read_header(self, data: bytes) -> None:
        shards = endianness = consumer = 0
        for number, wire, value in fields(data, self._index):
            if number == 1 and isinstance(value, bytes):
                raise FormatError(self._index, "this is a V1 checkpoint, not the index of a V2 checkpoint")
            if wire == VARINT and isinstance(value, int):
                shards = signed(value) if number == 1 else shards
                endianness = value if number == 2 else endianness
            elif number == 3 and isinstance(value, bytes):
                for field, kind, content in fields(value, self._index):
                    if field == 2 and kind == VARINT and isinstance(content, int):
                        consumer = signed(content)
        if consumer > VERSION:
            raise FormatError(self._index, f"written for readers of version {consumer}, this one knows {VERSION}")
        if shards < 1 or endianness > 1:
            raise FormatError(self._index, f"corrupt header: {shards} data shards, endianness {endianness}")
        self._count, self._big_endian = shards, endianness == 1

    # Names -----------------------------------------------------------------------------------------------------------

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the order of the keys. A spec is decoded when it is asked for."""
        named = self._named()
        with self._lock:
            if self._specs is None:
                self._specs = LazySpecs(named, lambda name: self._spec(name, *named[name]))
            return self._specs

    @property
    def object_based(self) -> bool:
        """Whether it has a graph of objects, as TensorFlow 2 and Keras write it."""
        return tf_objects.GRAPH_KEY.encode() in self._entries

    def objects(self) -> tuple[list[list[tuple[str, int]]], dict[int, str]]:
        """Of an object-based checkpoint: the children of every object, by name; and object -> key of its value."""
        return tf_objects.objects(self._object_graph(), self.path, self._budget)

    def keys_of(self, name: str) -> list[str]:
        """The key in the file of a tensor that :meth:`specs` lists, and those of its copies."""
        own = _text(self._named()[name][0])
        return [own, *(copy for copy, of in self._aliases.items() if of == name)]

    def raw_names(self) -> Mapping[str, str]:
        """Key in the file -> name that :meth:`specs` lists. Copies of a variable map to the variable's name."""
        raw = {_text(key): name for name, (key, _) in self._named().items()}
        return {**raw, **self._aliases}

    def _named(self) -> dict[str, tuple[bytes, str | None]]:
        """Name -> (key, role, or None where the name tells it)."""
        with self._lock:
            if self._names is None:
                # Slices' data stands under keys of its own, which begin with a zero byte.
                keys = [key for key in self._entries if key[0]]
                texts = {_text(key): key for key in keys}
                if len(texts) != len(keys):
                    raise FormatError(self._index, "two tensors have the same name")
                if texts.pop(tf_objects.GRAPH_KEY, None) is None:
                    self._names = {text: (key, None) for text, key in texts.items()}
                else:
                    named, self._aliases = tf_objects.from_graph(
                        self._object_graph(), self.path, list(texts), self._same, self._budget
                    )
                    self._names = {name: (texts[text], role) for name, (text, role) in named.items()}
            return self._names

    def _object_graph(self) -> bytes:
        """The serialized graph; empty, so that tensors keep the names of their keys, if its shard is not there."""
        entry = self._entry(tf_objects.GRAPH_KEY.encode(), tf_objects.GRAPH_KEY)
        if entry.number != STRING or entry.shape:
            raise FormatError(self._index, "is no scalar string", tensor=tf_objects.GRAPH_KEY)
        try:
            self._shard(entry.shard, tf_objects.GRAPH_KEY)
        except FormatError:
            return b""
        self._budget.spend("header_bytes", entry.size, self.path)
        graph = self._read_entry(entry, tf_objects.GRAPH_KEY, None).item()
        assert isinstance(graph, bytes)
        return graph

    def _same(self, a: str, b: str) -> bool:
        first, second = self._entry(a.encode(), a), self._entry(b.encode(), b)
        return not first.slices and (first.number, first.shape, first.size, first.crc, first.slices) == (
            second.number,
            second.shape,
            second.size,
            second.crc,
            second.slices,
        )

    def _entry(self, key: bytes, name: str) -> Entry:
        return Entry.parse(self._entries[key], self._index, name, self._budget, self._seen)

    def _spec(self, name: str, key: bytes, role: str | None) -> TensorSpec:
        entry = self._entry(key, name)
        if entry.slices and entry.dtype.kind == "O":
            parts = [self._slice(key, cut, name).size for cut in entry.slices]
            spec = TensorSpec(entry.dtype, entry.shape, sum(parts), role or "weight")
        else:
            spec = entry.spec(role or "weight")
        if role is None and not spec.unread:
            found = tf_objects.role_of(name, spec, self._shape)
            if found != "weight":
                spec = TensorSpec(spec.dtype, spec.shape, spec.nbytes, found)
        return spec

    def _shape(self, name: str) -> tuple[int, ...] | None:
        found = self._named().get(name)
        if found is None:
            return None
        key = found[0]
        if len(self._entries[key]) < _LARGE:
            return self._entry(key, name).shape
        if key not in self._shapes:
            self._shapes[key] = self._entry(key, name).shape
        return self._shapes[key]

    # Values ----------------------------------------------------------------------------------------------------------

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or a part of it; ``name`` is as in :meth:`specs`, or the key in the file."""
        key = self._key(name)
        return self._read_entry(self._entry(key, name), name, index, key)

    def extent(self, name: str) -> Extent | None:
        """Where a tensor lies that is stored in one piece, as it is in memory, and its checksum."""
        key = self._key(name)
        entry = self._entry(key, name)
        if entry.slices or entry.dtype.kind == "O" or entry.number in OPAQUE or is_sub_byte(entry.dtype):
            return None
        if (self._big_endian and entry.dtype.itemsize > 1) or not entry.size:
            return None
        file = self._shard(entry.shard, name)
        file.check(entry.offset, entry.size, tensor=name)
        checksum = Checksum(CRC32C, unmask(entry.crc), entry.offset, entry.size)
        return Extent(file.path, entry.offset, entry.size, checksum)

    def checksum(self, name: str) -> str:  # noqa: ARG002
        """The CRC-32C that every tensor, and every slice of one, has."""
        return CRC32C

    def stored(self, name: str) -> tuple[int, int, Iterator[bytes]]:
        """Of variants, whose values cannot be read: DataType, checksum (masked), and their bytes as they lie there.

        Raises:
            FormatError: these are none, or are damaged.
        """
        entry = self._entry(self._key(name), name)
        if entry.number != VARIANT or entry.slices:
            raise FormatError(self._index, "is no variant, which could be carried over", tensor=name)
        file = self._shard(entry.shard, name)
        return VARIANT, entry.crc, variants(file, entry.offset, entry.size, prod(entry.shape), entry.crc, name)

    def _key(self, name: str) -> bytes:
        if self._closed:
            raise Error(f"{self.path}: is closed")
        named = self._named()
        self._refuse_overlaps()
        if name in named:
            return named[name][0]
        key = name.encode("utf-8", "surrogatepass")
        if name not in self._aliases and not (key in self._entries and key[:1] != b"\0" and key):
            raise TensorNotFound(name, named, self.path)
        return key

    def _refuse_overlaps(self) -> None:
        """Look through all entries, once."""
        with self._lock:
            if self._apart:
                return
            places = Places(self._shard_path, named=self._name_of)
            for key, data in self._entries.items():
                shard, offset, size = place_of(data)
                places.add(offset, size, key, shard)
            places.check()
            self._apart = True

    def _name_of(self, key: bytes) -> str:
        own = _text(_slices.sliced(key))
        return self.raw_names().get(own, own)

    def _shard_path(self, number: int) -> str:
        return f"{self.path}.data-{number:05d}-of-{self._count:05d}"

    def _read_entry(self, entry: Entry, name: str, index: Index, key: bytes = b"") -> Array:
        if entry.number in OPAQUE:
            raise FormatError(self.path, f"a {OPAQUE[entry.number]} has no values to read", tensor=name)
        cuts = _strided.bounds(index, entry.shape, f"{self.path}: tensor {name!r}")
        if not entry.slices:
            return self._read_stored(entry, name, cuts)
        parts = [self._slice(key, cut, name) for cut in entry.slices]
        boxes = _slices.boxes(entry.slices, entry.shape, self._index, name)
        for part, box in zip(parts, boxes, strict=True):
            extent = tuple(stop - start for start, stop in box)
            if part.shape != extent or part.number != entry.number:
                raise FormatError(
                    self._index,
                    f"a slice is {part.dtype.name}{list(part.shape)}, expected {entry.dtype.name}{list(extent)}",
                    tensor=name,
                )
            self._shard(part.shard, name).check(part.offset, part.size, tensor=name)
        if sum(p.size for p in parts) > sum(self._shard(n, name).size for n in {p.shard for p in parts}):
            raise FormatError(self._index, "its slices claim more bytes than their shards have", tensor=name)
        return _slices.stitch(
            entry.dtype,
            cuts,
            boxes,
            lambda at, inner: self._read_stored(parts[at], name, _strided.bounds(inner, parts[at].shape, name)),
        )

    def _slice(self, key: bytes, cut: _slices.Slice, name: str) -> Entry:
        data = self._entries.get(_slices.slice_key(key, cut))
        if data is None:
            raise FormatError(self._index, f"the data of slice {list(cut)} is not there", tensor=name)
        part = Entry.parse(data, self._index, name, self._budget, self._seen)
        if part.slices:
            raise FormatError(self._index, f"slice {list(cut)} is sliced itself", tensor=name)
        return part

    def _read_stored(self, entry: Entry, name: str, cuts: _strided.Bounds) -> Array:
        file = self._shard(entry.shard, name)
        file.check(entry.offset, entry.size, tensor=name)  # before anything is allocated
        if entry.dtype.kind == "O":
            whole = self._read_strings(file, entry, name)
            return whole if _strided.is_whole(cuts, entry.shape) else whole[_strided.as_slices(cuts)].copy()
        place = (entry.shard, entry.offset, entry.size)
        if _strided.is_whole(cuts, entry.shape):
            out = np.empty(entry.shape, entry.dtype)
            view, crc = _strided.byte_view(out), 0
            for at in range(0, entry.size, CHUNK):
                piece = view[at : at + CHUNK]
                file.read_into(entry.offset + at, piece, tensor=name)
                crc = crc32c(piece, crc)  # while the piece is still in the cache
            self._compare(crc, entry, file, name)
            self._verified.add(place)
            if self._big_endian:
                _strided.swapped(out)
        else:
            if place not in self._verified:
                self._compare(streamed_crc(file, entry.offset, entry.size, name), entry, file, name)
                self._verified.add(place)
            out = _strided.read_part(
                file, entry.offset, entry.dtype, entry.shape, cuts, tensor=name, big_endian=self._big_endian
            )
        return sub_byte(out)

    def _compare(self, crc: int, entry: Entry, file: ByteFile, name: str) -> None:
        if mask(crc) != entry.crc:
            raise FormatError(
                file.path,
                f"corrupt: the checksum of its {entry.size} bytes is {mask(crc):08x}, the index has {entry.crc:08x}",
                tensor=name,
                offset=entry.offset,
            )

    def _read_strings(self, file: ByteFile, entry: Entry, name: str) -> Array:
        """All lengths as varints, a checksum of the lengths, all bytes; the checksum is not over the varints."""
        total = 1
        for dim in entry.shape:
            total *= dim
        if total + 4 > entry.size:
            raise FormatError(file.path, f"{entry.size} bytes for {total} strings", tensor=name, offset=entry.offset)
        data = file.read(entry.offset, entry.size, tensor=name)
        lengths, at = [], 0
        for _ in range(total):
            length, at = varint(data, at, entry.size, file.path, entry.offset)
            lengths.append(length)
        if at + 4 + sum(lengths) != entry.size:
            raise FormatError(
                file.path, "corrupt: the lengths of the strings do not add up", tensor=name, offset=entry.offset
            )
        crc = crc32c(string_lengths(lengths))
        if mask(crc) != int.from_bytes(data[at : at + 4], "little"):
            raise FormatError(
                file.path, "corrupt: the checksum of the strings' lengths", tensor=name, offset=entry.offset + at
            )
        self._compare(crc32c(memoryview(data)[at:], crc), entry, file, name)
        at += 4
        out = np.empty(total, object)
        for n, length in enumerate(lengths):
            out[n] = data[at : at + length]
            at += length
        return out.reshape(entry.shape)

    def _shard(self, number: int, name: str) -> ByteFile:
        if not 0 <= number < self._count:
            raise FormatError(self._index, f"data shard {number} of {self._count}", tensor=name)
        with self._lock:
            if self._closed:
                raise Error(f"{self.path}: is closed")
            file = self._shards.get(number)
            if file is None:
                path = self._shard_path(number)
                try:
                    file = ByteFile(_inside.refuse_outside(path, _inside.folders_of(self._index)))
                except FormatError as error:
                    what = error.problems[0].what
                    raise FormatError(path, f"data shard {number} of {self._count} {what}", tensor=name) from None
                self._shards[number] = file
            return file

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the graph in the ``.meta`` file beside it says; a checkpoint itself holds variables only."""
        return self._graph.facts(names)

    def close(self) -> None:
        """Release the file handles."""
        with self._lock:
            self._closed = True
            self._graph.close()
            for file in self._shards.values():
                file.close()
            self._shards.clear()

    def __enter__(self) -> BundleSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def string_lengths(lengths: Sequence[int]) -> bytes:
    """What the checksum of a string tensor is taken over in place of the varints: 32 bits each, 64 where needed."""
    return b"".join(n.to_bytes(4 if n < 1 << 32 else 8, "little") for n in lengths)


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def sniff(path: str) -> bool:
    """Whether the path leads to a V2 checkpoint (a prefix, a file of it, or a folder with one)."""
    try:
        return tf_paths.resolve(path).kind == "v2"
    except Error:
        return False


def open_source(path: str, *, budget: Budget | None = None) -> BundleSource:
    """Open the V2 checkpoint that a path leads to; see :func:`weightport.formats.tf_paths.resolve`."""
    found = tf_paths.resolve(path)
    if found.kind != "v2":
        raise FormatError(path, f"is no V2 checkpoint but {found.described}")
    return BundleSource(found.prefix, budget=budget)
