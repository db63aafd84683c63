"""TensorFlow's V2 checkpoints, written without TensorFlow: data shards and the index, as TF 1 and 2 read them.

Promise: tensors stream through, a tile at a time; the index is renamed into place last, so that a checkpoint of that
prefix is the old one or the complete new one at any moment. To overwrite one, the data is given shard names that the
old one does not use (``data-00001-of-00002``, of which TensorFlow never opens the other), then the index is swapped,
then the old shards are removed. There is one shard, or, where ``shard_size`` is given, as many as it takes: tensors in
their order, none of them cut, so that one that is larger has a shard of its own. Limit: nothing but index and data is
written, and a file beside the index for ``metadata``: no ``checkpoint`` state file (which would change what is the
latest checkpoint of a folder), no ``.meta``. An index that is a symbolic link is replaced, not written through: its
data could not follow.

With an object-based checkpoint as ``like`` (``tf.train.Checkpoint``, Keras' weights in TensorFlow's format), the
tensors get its keys again and its object graph goes with them, so that what restored that one restores this one. Its
optimizer state and counters are carried over where no values are given for them.

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.cc (``BundleWriter``), tensor_bundle.proto.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import BinaryIO

from weightport.checksums import CRC32C, crc32c
from weightport.errors import Error, Problem, TensorNotFound, closest
from weightport.formats import _beside, _strided, _tiles, tf_bundle
from weightport.formats._io import CHUNK
from weightport.formats._ranged import Place, Ranged
from weightport.formats._table import TableWriter, mask, put_varint
from weightport.formats._temporaries import temporary
from weightport.formats._tensorproto import NUMBERS, STRING
from weightport.formats._tf_bundle_files import Shards, commit
from weightport.formats.tf_bundle import VERSION, string_lengths
from weightport.formats.tf_objects import GRAPH_KEY
from weightport.tensors import Array, Extent, Kept, TensorSpec, Tiles

# Strings' bytes follow all of their lengths: up to this much waits in memory, more in a temporary file. Tensors that
# are carried over from another checkpoint are read in tiles of that size.
_SPOOLED = 4 << 20

#: Writes a tensor's bytes; returns DataType, checksum and size.
Carry = Callable[[BinaryIO], tuple[int, int, int]]
#: dtype number, shape, shard, offset, size, masked checksum
_Entry = tuple[int, tuple[int, ...], int, int, int, int]


@contextlib.contextmanager
def _destination(
    path: str,
    specs: Mapping[str, TensorSpec],
    tiles: Tiles,
    *,
    metadata: Mapping[str, str] | None = None,
    kept: Kept | None = None,
    like: str | None = None,
    shard_size: int | None = None,
) -> Iterator[Place]:
    """Write a checkpoint.

    Args:
        path: the prefix; ``.index`` at its end is left away.
        specs: name -> dtype and shape, in the order in which the values are stored.
        tiles: yields each tensor's consecutive tiles along axis 0.
        metadata: goes into a file beside the index (:mod:`~weightport.formats._beside`).
        kept: what an earlier writer left, to go on with.
        like: a V2 checkpoint. An object-based one gives its keys and its object graph, and its names must be those of
            ``specs``; of any other, what cannot be read is carried over (the state of an iterator).
        shard_size: bytes that a data shard should not pass.

    Raises:
        Error: a dtype or name that a checkpoint cannot hold, values that are not as their spec says, names that are not
            those of ``like``, or a folder that cannot be written to. Nothing was changed.
    """
    prefix = path.removesuffix(".index")
    with contextlib.ExitStack() as stack:
        names = {name: name for name in specs}
        opaque: dict[str, Carry] = {}
        if like is not None:
            model = stack.enter_context(tf_bundle.open_source(like))
            others = {name: spec for name, spec in model.specs().items() if spec.unread}
            specs, tiles, names = _keyed(prefix, specs, tiles, model) or ({**specs, **others}, tiles, names)
            opaque = {key: partial(_carry, model, key) for key, spec in specs.items() if spec.unread}
        yield stack.enter_context(_data(prefix, specs, tiles, names, opaque, shard_size, kept))
    _beside.put(prefix + ".index", metadata)


write = Ranged(_destination)


def final(path: str) -> str:
    """The file that is written last, and that temporaries are named after."""
    return os.path.abspath(path.removesuffix(".index") + ".index")


def adopt(
    path: str,
    specs: Mapping[str, TensorSpec],
    extents: Mapping[str, Extent],
    *,
    link: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint over data that is there already, without reading or copying it: an index, and its shards as
    clones of the files, or with ``link`` as the very files under another name.

    Args:
        path: the prefix.
        specs: name -> dtype and shape.
        extents: where each tensor lies, in files whose every byte is somebody's, with the checksum that goes with it.
        link: share the files. Who writes to one of them in place then changes both checkpoints.
        metadata: see :data:`write`.

    Raises:
        OSError: the file system cannot do that; nothing was changed.
        Error: a dtype or name that a checkpoint cannot hold.
    """
    prefix = path.removesuffix(".index")
    numbers = {name: _number(prefix, name, spec) for name, spec in specs.items()}
    files = {file: n for n, file in enumerate(dict.fromkeys(extent.path for extent in extents.values()))}
    entries: dict[bytes, _Entry] = {}
    for name, spec in specs.items():
        extent = extents[name]
        assert extent.checksum is not None
        crc = mask(extent.checksum.value)
        entries[name.encode()] = (numbers[name], spec.shape, files[extent.path], extent.offset, extent.nbytes, crc)
    with _index(prefix) as (index, made), Shards(made, None) as shards:
        for file in files:
            shards.adopt(file, link=link)
        shards.sync()
        commit(prefix, index, made, shards, lambda *at: _write_index(entries, *at))
    _beside.put(prefix + ".index", metadata)


@contextlib.contextmanager
def _data(
    prefix: str,
    specs: Mapping[str, TensorSpec],
    tiles: Tiles,
    names: Mapping[str, str],
    opaque: Mapping[str, Carry],
    shard_size: int | None,
    kept: Kept | None,
) -> Iterator[Place]:
    """The data shards in the making; the checkpoint appears at the end.

    Args:
        prefix: the checkpoint's.
        specs: by key.
        tiles: by key, of what is written at once: strings, and what has no name.
        names: key -> name, of the tensors that the caller has values for. Two keys of one name share its bytes.
        opaque: by key, of what has no values: writes the bytes of another checkpoint.
        shard_size: bytes that a shard should not pass.
        kept: see :data:`write`.
    """
    numbers = {key: _number(prefix, key, spec) for key, spec in specs.items()}
    folder = os.path.dirname(prefix) or "."
    if not os.path.isdir(folder):
        raise Error(f"{prefix}: cannot be written: no folder {folder!r}")
    try:
        with _index(prefix, kept) as (index, made), Shards(made, shard_size, kept) as shards:
            entries: dict[str, _Entry] = {}
            places: dict[str, tuple[str, int]] = {}
            for key, spec in specs.items():
                size, crc, name = TensorSpec.of(spec.dtype, spec.shape).nbytes, 0, names.get(key)
                if key in opaque:
                    data = shards.room_for(spec.nbytes)
                    shard, at = shards.paths[-1], data.tell()
                    numbers[key], crc, size = opaque[key](data)
                elif name is None or numbers[key] == STRING:
                    data = shards.room_for(spec.nbytes)
                    shard, at = shards.paths[-1], data.tell()
                    size, crc = _write_tensor(data, prefix, key, spec, numbers[key], tiles)
                else:
                    shard, at = places[name] = places.get(name) or shards.reserve(size)
                entries[key] = (numbers[key], spec.shape, shards.paths.index(shard), at, size, crc)
            shards.close()
            out = Place(places, CRC32C)
            yield out
            found = {
                key.encode(): (*entry[:5], mask(out.checksums[names[key]])) if names.get(key) in places else entry
                for key, entry in entries.items()
            }
            shards.sync()
            commit(prefix, index, made, shards, lambda *at: _write_index(found, *at))
    except OSError as error:
        raise Error(f"{prefix}: cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def _index(prefix: str, kept: Kept | None = None) -> Iterator[tuple[BinaryIO, str]]:
    """The index in the making, beside the checkpoint: a link is replaced, since the data could not follow it."""
    with temporary(prefix + ".index", follow=False, kept=kept) as (_, made), open(made, "r+b") as out:
        yield out, made


def _keyed(
    prefix: str, specs: Mapping[str, TensorSpec], tiles: Tiles, model: tf_bundle.BundleSource
) -> tuple[dict[str, TensorSpec], Tiles, dict[str, str]] | None:
    """The tensors under the keys of an object-based checkpoint, with all else that it holds, and which of them have
    which name of ``specs``; None if it is not one."""
    try:
        graph = model.read(GRAPH_KEY)
    except TensorNotFound:
        return None
    theirs = model.specs()
    problems = [
        Problem(prefix, f"{model.path} has no tensor {name!r}", closest(name, theirs))
        for name in specs
        if name not in theirs
    ]
    for name, spec in theirs.items():
        given = specs.get(name)
        if given is None and spec.role == "weight":
            problems.append(Problem(prefix, f"no values for {name!r} of {model.path}", closest(name, specs)))
        elif given is not None and (given.shape, given.dtype) != (spec.shape, spec.dtype):
            problems.append(
                Problem(
                    prefix,
                    f"{name!r} is {given.dtype_name}{list(given.shape)}, "
                    f"in {model.path} {spec.dtype_name}{list(spec.shape)}",
                )
            )
    if problems:
        raise Error(problems)
    names = model.raw_names()

    def keyed(key: str) -> Iterator[Array]:
        if key == GRAPH_KEY:
            return iter([graph])
        return tiles(names[key]) if names[key] in specs else tiles_of(model, names[key], theirs[names[key]])

    found = {key: specs.get(name, theirs[name]) for key, name in names.items()}
    given_names = {key: name for key, name in names.items() if name in specs}
    return {**found, GRAPH_KEY: TensorSpec(graph.dtype, (), len(graph.item()))}, keyed, given_names


def _carry(model: tf_bundle.BundleSource, key: str, data: BinaryIO) -> tuple[int, int, int]:
    """Write what cannot be read as it is stored. Returns DataType, checksum and size."""
    number, checksum, chunks = model.stored(key)
    size = 0
    for chunk in chunks:
        data.write(chunk)
        size += len(chunk)
    return number, checksum, size


def tiles_of(model: tf_bundle.BundleSource, name: str, spec: TensorSpec) -> Iterator[Array]:
    """The values of a tensor of another checkpoint, in tiles along axis 0."""
    if not spec.shape or spec.nbytes <= _SPOOLED:
        yield model.read(name)
        return
    rows = max(1, _SPOOLED * spec.shape[0] // spec.nbytes)
    for at in range(0, spec.shape[0], rows):
        yield model.read(name, (slice(at, min(at + rows, spec.shape[0])),))


def _number(prefix: str, name: str, spec: TensorSpec) -> int:
    """The DataType of a tensor, after checking that a checkpoint can hold it."""
    try:
        key = name.encode()
    except UnicodeEncodeError:
        raise Error(f"{prefix}: tensor {name!r}: the name is no valid text") from None
    if not key or key[0] == 0:
        raise Error(f"{prefix}: tensor {name!r}: a checkpoint cannot hold a tensor of this name")
    if spec.dtype.kind in "OSU":
        return STRING
    number = NUMBERS.get(spec.dtype.name)
    if number is None:
        raise Error(f"{prefix}: tensor {name!r}: a checkpoint cannot hold the dtype {spec.dtype.name}")
    return number


def _write_tensor(
    data: BinaryIO, prefix: str, name: str, spec: TensorSpec, number: int, tiles: Tiles
) -> tuple[int, int]:
    """Stored bytes and checksum."""
    if number == STRING:
        return _write_strings(data, prefix, name, spec, tiles)
    crc = size = 0
    for tile in _tiles.checked(prefix, name, spec, tiles):
        view = _strided.byte_view(tile) if tile.size else memoryview(b"")
        for at in range(0, len(view), CHUNK):
            piece = view[at : at + CHUNK]
            crc = crc32c(piece, crc)
            data.write(piece)
        size += len(view)
    return size, mask(crc)


def _write_strings(data: BinaryIO, prefix: str, name: str, spec: TensorSpec, tiles: Tiles) -> tuple[int, int]:
    lengths: list[int] = []
    with tempfile.SpooledTemporaryFile(_SPOOLED) as waiting:
        for tile in _tiles.checked(prefix, name, spec, tiles):
            for value in tile.reshape(-1).tolist():
                raw = value.encode() if isinstance(value, str) else value
                if not isinstance(raw, bytes):
                    raise Error(f"{prefix}: tensor {name!r}: {type(value).__name__} where a string was expected")
                lengths.append(len(raw))
                waiting.write(raw)
        crc = crc32c(string_lengths(lengths))
        head = b"".join(map(put_varint, lengths))
        check = mask(crc).to_bytes(4, "little")
        crc = crc32c(check, crc)
        data.write(head + check)
        waiting.seek(0)
        while piece := waiting.read(CHUNK):
            crc = crc32c(piece, crc)
            data.write(piece)
    return len(head) + 4 + sum(lengths), mask(crc)


def _write_index(entries: Mapping[bytes, _Entry], index: BinaryIO, shards: int, first: int) -> None:
    table = TableWriter(index)
    # BundleHeaderProto: num_shards, little endian (0, so absent), version {producer: 1}.
    table.add(b"", _varint_field(1, shards) + _bytes_field(3, _varint_field(1, VERSION)))
    for key in sorted(entries):
        number, shape, shard, offset, size, crc = entries[key]
        dims = b"".join(_bytes_field(2, _varint_field(1, dim)) for dim in shape)
        table.add(
            key,
            _varint_field(1, number)
            + _bytes_field(2, dims)
            + _varint_field(3, first + shard)
            + _varint_field(4, offset)
            + _varint_field(5, size)
            + (b"\x35" + crc.to_bytes(4, "little") if crc else b""),
        )
    table.finish()


def _varint_field(number: int, value: int) -> bytes:
    return bytes([number << 3]) + put_varint(value) if value else b""


def _bytes_field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + put_varint(len(value)) + value
