"""TensorFlow's V1 checkpoints - one table, or one table per shard - read without TensorFlow.

Promise: opening reads the list of tensors at the head of each table; a tensor's values, or a part of them, are read
where they lie, after the block that holds them was verified against its checksum, once; values that are missing are an
error, not the last one again as in a graph's constants. A shard that is missing is an error that names it, since each
shard knows only its own tensors. Limit: integers are stored as varints, so that a part of an integer tensor costs
reading the whole.

Sources: tensorflow/core/util/saved_tensor_slice.proto, tensorflow/core/util/tensor_slice_{reader,writer}.cc.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightport.checksums import CRC32C
from weightport.errors import Error, FormatError, TensorNotFound
from weightport.formats import _fs, _slices, _strided, tf_objects, tf_paths
from weightport.formats._io import ByteFile
from weightport.formats._lazy import LazySpecs
from weightport.formats._proto import BYTES, VARINT, Memory, fields, spans
from weightport.formats._table import Block, Table
from weightport.formats._tensorproto import OPAQUE, TensorProtoRef, dtype_of, shape_of
from weightport.formats._tf_beside import GraphBeside
from weightport.tensors import Array, Budget, Index, TensorSpec

# Blocks up to this size are verified when the file is opened, larger ones when a tensor is first read: the head of a
# table may share its block with a tensor of gigabytes.
_VERIFY_AT_OPEN = 4 << 20
# Decompressed blocks that are kept.
_KEPT_BLOCKS = 4


@dataclass(slots=True)
class _Head:
    """One tensor as the heads of the shards describe it."""

    number: int
    shape: tuple[int, ...]
    #: the shard that holds it, and the slice
    slices: list[tuple[int, _slices.Slice]]


class _Shard:
    """One table, and where its values lie."""

    def __init__(self, path: str, budget: Budget) -> None:
        self.file = ByteFile(path)
        try:
            self.table = Table(self.file, budget)
            if not len(self.table):
                raise FormatError(path, "an empty table, no V1 checkpoint")
            self.first = self.table.block(0)
            if self.first.handle.size <= _VERIFY_AT_OPEN:
                self.table.verify(self.first)
            key, offset, size = next(self.first.places(), (b"?", 0, 0))
            if key != b"":
                raise FormatError(path, "no list of tensors: this is a table, but no V1 checkpoint")
            budget.spend("header_bytes", size, path)
            self.head = self.first.data.read(offset, size)
        except FormatError:
            self.file.close()
            raise
        self._lock = threading.Lock()
        self._blocks: dict[int, tuple[Block, dict[bytes, tuple[int, int]]]] = {}

    def value(self, key: bytes) -> tuple[Block, int, int] | None:
        """The verified block that holds a key, and the value's offset and size in the block's data."""
        number = self.table.block_of(key)
        if number is None:
            return None
        with self._lock:
            self.table.verify(self.first)
            held = self._blocks.get(number)
            if held is None:
                block = self.table.block(number)
                self.table.verify(block)
                held = block, {k: (offset, size) for k, offset, size in self.table.places(block)}
                in_memory = [n for n, (b, _) in self._blocks.items() if b.data is not self.file]
                if len(in_memory) >= _KEPT_BLOCKS:
                    del self._blocks[in_memory[0]]
                self._blocks[number] = held
        block, places = held
        return (block, *places[key]) if key in places else None


class V1Source:
    """An open V1 checkpoint.

    Args:
        path: what errors call it: the file, or the prefix of the shards.
        files: the table, or every shard.
        budget: the bounds to keep to.
    """

    format = "tf-checkpoint-v1"

    def __init__(self, path: str, files: Sequence[str], *, budget: Budget | None = None) -> None:
        self.path = path
        self._budget = Budget() if budget is None else budget
        self._graph = GraphBeside(path, self._budget)
        self._closed = False
        self._shards: list[_Shard] = []
        self._stored: dict[str, list[tuple[int, bytes]]] = {}
        self._heads: dict[str, _Head] = {}
        self._specs = LazySpecs(self._stored, self._spec)
        missing = [file for file in files if not _fs.exists(file)]
        if missing:
            raise FormatError(path, f"{len(missing)} of {len(files)} shards missing: {tf_paths.some(missing)}")
        try:
            for number, file in enumerate(files):
                self._shards.append(_Shard(file, self._budget))
                self._read_head(number)
        except FormatError:
            self.close()
            raise

    def _read_head(self, shard: int) -> None:
        path, found = self._shards[shard].file.path, False
        for field, wire, meta in fields(self._shards[shard].head, path):
            if field != 1 or wire != BYTES or not isinstance(meta, bytes):
                continue
            found = True
            for kind, _, tensor in fields(meta, path):
                if kind == 1 and isinstance(tensor, bytes):
                    name = next((v for f, _, v in fields(tensor, path) if f == 1 and isinstance(v, bytes)), b"")
                    self._stored.setdefault(name.decode("utf-8", "backslashreplace"), []).append((shard, tensor))
            self._budget.check("tensors", len(self._stored), path)
        if not found:
            raise FormatError(path, "no list of tensors: this is a table, but no V1 checkpoint")

    def _head(self, name: str) -> _Head:
        head = self._heads.get(name)
        if head is None:
            for shard, data in self._stored[name]:
                part = self._parse_head(shard, data, name)
                if head is None:
                    head = part
                elif (part.number, part.shape) != (head.number, head.shape):
                    raise FormatError(
                        self.path,
                        f"dtype {head.number} of shape {list(head.shape)} in one shard, "
                        f"dtype {part.number} of shape {list(part.shape)} in another",
                        tensor=name,
                    )
                else:
                    head.slices += part.slices
            assert head is not None
            _strided.checked(dtype_of(head.number, self.path, name), head.shape, self._budget, self.path, name)
            self._heads[name] = head
        return head

    def _parse_head(self, shard: int, data: bytes, name: str) -> _Head:
        path = self._shards[shard].file.path
        head = _Head(0, (), [])
        shape: list[int] = []
        for field, wire, value in fields(data, path):
            if field == 2 and isinstance(value, bytes):
                shape += shape_of(Memory(value, path), 0, len(value), name)
            elif field == 3 and wire == VARINT and isinstance(value, int):
                head.number = value - 100 if value > 100 else value
            elif field == 4 and isinstance(value, bytes):
                head.slices.append((shard, _slices.slice_of(value, path)))
        head.shape = tuple(shape)
        return head

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the order of the lists. For strings, ``nbytes`` is what their slices take in the file."""
        return self._specs

    def raw_names(self) -> Mapping[str, str]:
        """Name in the file -> name that :meth:`specs` lists: the same."""
        return {name: name for name in self._stored}

    def _spec(self, name: str) -> TensorSpec:
        head = self._head(name)
        dtype = dtype_of(head.number, self.path, name)
        if dtype.kind == "O" and head.number not in OPAQUE:
            nbytes = sum(self._find(name, shard, cut)[2] for shard, cut in head.slices)
            spec = TensorSpec(dtype, head.shape, nbytes)
        elif dtype.kind == "O":
            spec = TensorSpec(dtype, head.shape, 0)
        else:
            spec = TensorSpec.of(dtype, head.shape)
        role = tf_objects.role_of(name, spec, lambda n: self._head(n).shape if n in self._stored else None)
        return TensorSpec(spec.dtype, spec.shape, spec.nbytes, role)

    def _find(self, name: str, shard: int, cut: _slices.Slice) -> tuple[Block, int, int]:
        key = _slices.slice_key(name.encode("utf-8"), cut)
        found = self._shards[shard].value(key)
        if found is None:
            raise FormatError(self._shards[shard].file.path, f"the data of slice {list(cut)} is not there", tensor=name)
        return found

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or a part of it, put together from its slices."""
        if self._closed:
            raise Error(f"{self.path}: is closed")
        if name not in self._stored:
            raise TensorNotFound(name, self._stored, self.path)
        head = self._head(name)
        if head.number in OPAQUE:
            raise FormatError(self.path, f"a {OPAQUE[head.number]} has no values to read", tensor=name)
        cuts = _strided.bounds(index, head.shape, f"{self.path}: tensor {name!r}")
        boxes = _slices.boxes([cut for _, cut in head.slices], head.shape, self.path, name)
        refs = []
        for (shard, cut), box in zip(head.slices, boxes, strict=True):
            extent = tuple(stop - start for start, stop in box)
            refs.append(self._ref(name, shard, cut, (head.number, extent)))
        if len(refs) == 1:
            return refs[0][1].read(refs[0][0].data, index)
        return _slices.stitch(
            dtype_of(head.number, self.path, name),
            cuts,
            boxes,
            lambda at, inner: refs[at][1].read(refs[at][0].data, inner),
        )

    def _ref(
        self, name: str, shard: int, cut: _slices.Slice, known: tuple[int, tuple[int, ...]]
    ) -> tuple[Block, TensorProtoRef]:
        block, offset, size = self._find(name, shard, cut)
        for field, wire, start, length in spans(block.data, offset, offset + size):
            if field != 2 or wire != BYTES:
                continue
            for kind, inner, at, count in spans(block.data, start, start + length):
                if kind == 3 and inner == BYTES:
                    return block, TensorProtoRef.parse(
                        block.data, at, at + count, name=name, budget=self._budget, known=known
                    )
        raise FormatError(block.data.path, f"slice {list(cut)} holds no data", tensor=name, offset=block.handle.offset)

    def checksum(self, name: str) -> str:  # noqa: ARG002
        """The CRC-32C of the blocks that a tensor lies in."""
        return CRC32C

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the graph in the ``.meta`` file beside it says; a checkpoint itself holds variables only."""
        return self._graph.facts(names)

    def close(self) -> None:
        """Release the file handles."""
        self._closed = True
        self._graph.close()
        for shard in self._shards:
            shard.file.close()

    def __enter__(self) -> V1Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sniff(path: str) -> bool:
    """Whether the path leads to a V1 checkpoint, whole or sharded."""
    try:
        return tf_paths.resolve(path).kind in ("v1", "v1-sharded")
    except Error:
        return False


def open_source(path: str, *, budget: Budget | None = None) -> V1Source:
    """Open the V1 checkpoint that a path leads to; see :func:`weightport.formats.tf_paths.resolve`."""
    found = tf_paths.resolve(path)
    if found.kind not in ("v1", "v1-sharded"):
        raise FormatError(path, f"is no V1 checkpoint but {found.described}")
    return V1Source(found.prefix, found.paths, budget=budget)
