"""Writes Flax' msgpack files, which ``flax.serialization.msgpack_restore`` and ``from_bytes`` load.

Promise: one rename after fsync; the same input gives the same bytes, those that ``msgpack_serialize`` gives for the
same tree; arrays above Flax' limit are stored in its chunks. Like a TARGET, all of it that is no array is repeated
(empty states, text, lists), and a native number stays one. Limits: no dtypes but numbers; ``metadata`` goes into a
file beside it.

Source: flax/serialization.py (``_ndarray_to_bytes``, ``_chunk``, ``MAX_CHUNK_SIZE``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from weightport.errors import Error
from weightport.formats import _beside, _strided, _tiles
from weightport.formats import _msgpack as mp
from weightport.formats._msgpack import ARRAY, BINARY, EXT, MAP
from weightport.formats._temporaries import atomic_file
from weightport.formats.flax_msgpack import CHUNKED, COMPLEX, NDARRAY, FlaxSource, dtype_of
from weightport.tensors import TensorSpec, Tiles

#: Flax' bound on one array, in bytes.
MAX_CHUNK = 1 << 30


def write(
    path: str,
    specs: Mapping[str, TensorSpec],
    tiles: Tiles,
    *,
    metadata: Mapping[str, str] | None = None,
    like: str | None = None,
) -> None:
    """Write a msgpack file: maps nested by the names' parts, or the tree of ``like`` with these values.

    Args:
        path: where to.
        specs: name -> spec; a name is its keys, joined by ``/``.
        tiles: their values.
        metadata: goes into a file beside it (:mod:`~weightport.formats._beside`).
        like: a msgpack file whose tree is repeated; its tensors have these names.

    Raises:
        Error: a dtype that the format cannot hold, a name that is both a tensor and a scope, or values that are not as
            their spec says.
    """
    with _tree(path, specs, like) as tree, atomic_file(path) as out:
        if isinstance(tree, FlaxSource):
            _write_like(path, specs, tiles, tree, out)
        else:
            _write_tree(path, tree, specs, tiles, out)
    _beside.put(path, metadata)


def check(path: str, specs: Mapping[str, TensorSpec], *, like: str | None = None) -> None:
    """Raise what :func:`write` would, as far as the values play no role."""
    with _tree(path, specs, like):
        pass


@contextmanager
def _tree(path: str, specs: Mapping[str, TensorSpec], like: str | None) -> Iterator[FlaxSource | dict[str, Any]]:
    """What the file is made by: the TARGET whose tree is repeated, or the names as maps."""
    for name, spec in specs.items():
        if spec.dtype.kind in "OSU" or dtype_of(spec.dtype.name) != spec.dtype:
            what = "strings" if spec.dtype.kind in "OSU" else f"the dtype {spec.dtype.name}"
            raise Error(f"{path}: tensor {name!r}: Flax' msgpack cannot hold {what}")
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise Error(f"{path}: the name {name!r} is no valid text") from None
    if like is not None:
        with FlaxSource(like) as old:
            if set(specs) <= set(old.entries):
                yield old
                return
    yield _nested(path, specs)


def _write_like(path: str, specs: Mapping[str, TensorSpec], tiles: Tiles, old: FlaxSource, out: BinaryIO) -> None:
    at = 0
    for name, entry in sorted(old.entries.items(), key=lambda item: item[1].start):
        if name not in specs:
            continue
        mp.copy(old.file, at, entry.start, out)
        spec = specs[name]
        if entry.native is None or (spec.dtype, spec.shape) != (entry.spec.dtype, entry.spec.shape):
            _write_array(path, name, spec, tiles, out)
        else:
            (tile,) = _tiles.checked(path, name, spec, tiles)
            out.write(_number(tile.item()))
        at = entry.stop
    mp.copy(old.file, at, old.file.size, out)


def _nested(path: str, specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """The names as maps in maps; a tensor is its name."""
    tree: dict[str, Any] = {}
    for name in specs:
        *above, leaf = name.split("/")
        at = tree
        for depth, key in enumerate(above):
            at = at.setdefault(key, {})
            if isinstance(at, str):
                raise Error(f"{path}: {'/'.join(above[: depth + 1])!r} is a tensor, and {name!r} would stand below it")
        if leaf in at:
            raise Error(f"{path}: {name!r} is a tensor, and other tensors would stand below it")
        at[leaf] = name
    return tree


def _write_tree(path: str, tree: Any, specs: Mapping[str, TensorSpec], tiles: Tiles, out: BinaryIO) -> None:
    if isinstance(tree, str):
        _write_array(path, tree, specs[tree], tiles, out)
        return
    out.write(mp.head(MAP, len(tree)))
    for key, value in tree.items():
        out.write(mp.text(key))
        _write_tree(path, value, specs, tiles, out)


def _write_array(path: str, name: str, spec: TensorSpec, tiles: Tiles, out: BinaryIO) -> None:
    nbytes = TensorSpec.of(spec.dtype, spec.shape).nbytes
    data = _bytes(path, name, spec, tiles)
    if nbytes <= MAX_CHUNK:
        out.write(_array_head(spec.shape, spec.dtype.name, nbytes))
        for piece in data:
            out.write(piece)
        return
    size = max(1, MAX_CHUNK // spec.dtype.itemsize) * spec.dtype.itemsize
    out.write(mp.head(MAP, 3) + mp.text(CHUNKED) + mp.number(True))
    out.write(mp.text("shape") + mp.head(MAP, len(spec.shape)))
    for axis, dim in enumerate(spec.shape):
        out.write(mp.text(str(axis)) + mp.number(dim))
    out.write(mp.text("chunks") + mp.head(MAP, -(-nbytes // size)))
    left = 0
    number = 0
    for piece in data:
        while len(piece):
            if not left:
                left = min(size, nbytes - number * size)
                shape = (left // spec.dtype.itemsize,)
                out.write(mp.text(str(number)) + _array_head(shape, spec.dtype.name, left))
                number += 1
            part = piece[:left]
            out.write(part)
            piece, left = piece[len(part) :], left - len(part)


def _bytes(path: str, name: str, spec: TensorSpec, tiles: Tiles) -> Iterator[memoryview]:
    for tile in _tiles.checked(path, name, spec, tiles):
        if tile.size:
            yield _strided.byte_view(tile if np.little_endian else _strided.swapped(tile.copy()))


def _array_head(shape: tuple[int, ...], dtype: str, nbytes: int) -> bytes:
    """All of an array but its bytes: ``ext(NDARRAY, [shape, dtype's name, bytes])``."""
    inside = mp.head(ARRAY, 3) + mp.head(ARRAY, len(shape)) + b"".join(mp.number(dim) for dim in shape)
    inside += mp.text(dtype) + mp.head(BINARY, nbytes)
    return mp.head(EXT, len(inside) + nbytes, NDARRAY) + inside


def _number(value: Any) -> bytes:
    if isinstance(value, complex):
        inside = mp.head(ARRAY, 2) + mp.number(value.real) + mp.number(value.imag)
        return mp.head(EXT, len(inside), COMPLEX) + inside
    return mp.number(value)
