"""ONNX models, written from another one: the same model with other values in its initializers and constants.

Promise: names, types, shapes and everything that is no value stay byte for byte what they are; values stream through; a
value that lies raw in the file is put in its place, any other encoding becomes raw bytes. The destination is the old
model or the complete new one: data in another file is written first, under a name that is not in use, the model that
refers to it is renamed into place last, and data that only the model before it used is removed after that. Limit: an
ONNX model is more than its weights, so none can be written without one to begin with. What a killed run left beside
the model is removed by the next one.

A model beyond protobuf's 2 GiB, or one whose values lie in other files, gets all of that data in one file beside it,
``MODEL.onnx.data``, aligned for mapping into memory; with a checksum where the model had any.

Sources: onnx/onnx.proto (``external_data``), onnx/external_data_helper.py, onnx/checker.cc.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import BinaryIO

import numpy as np

from weightport.errors import Error, FormatError, Problem, closest
from weightport.formats import _strided, _tiles
from weightport.formats._onnx_edit import Chunks, Edit
from weightport.formats._onnx_graph import LITERALS, Constant
from weightport.formats._onnx_tensor import EXTERNAL, LOCATION, RAW, STRING, VALUES, TensorRef
from weightport.formats._proto import BYTES, FIXED32, VARINT, located
from weightport.formats._subbyte import BITS, packed
from weightport.formats._table import put_varint
from weightport.formats._temporaries import atomic_set, fsync_folder, mode_of
from weightport.formats.onnx_file import OnnxSource, sniff
from weightport.tensors import TensorSpec, Tiles

#: What protobuf can carry in one message.
LIMIT = (1 << 31) - 1
# Values below this stay in a model that gets too large; data above it is aligned to pages.
_SMALL, _LARGE, _PAGE, _ALIGNED = 1024, 1 << 20, 4096, 64
_METADATA, _STRING_VALUE = 14, 4


def write(
    path: str,
    specs: Mapping[str, TensorSpec],
    tiles: Tiles,
    *,
    metadata: Mapping[str, str] | None = None,
    kept: Collection[str] = (),
    like: str | None = None,
    limit: int = LIMIT,
) -> None:
    """Write a model.

    Args:
        path: the destination.
        specs: name -> dtype and shape, which must be those of ``like``; what is not in it keeps its values.
        tiles: yields each tensor's consecutive tiles along axis 0.
        metadata: becomes ``metadata_props``.
        kept: those of ``specs`` that keep their values too; they are not asked for.
        like: the ONNX model to begin with.
        limit: bytes of a model above which values go into a file beside it.

    Raises:
        Error: no model to begin with, names or shapes that are not its, or values that are not as their spec says.
            Nothing was changed.
    """
    with _opened(path, like) as model:
        given = [name for name in specs if name not in kept]
        _check(path, model, specs, given)
        _Job(path, model, specs, tiles, given, metadata or {}, limit).run()


def check(path: str, specs: Mapping[str, TensorSpec], *, kept: Collection[str] = (), like: str | None = None) -> None:
    """Raise what :func:`write` would, as far as the values play no role."""
    with _opened(path, like) as model:
        _check(path, model, specs, [name for name in specs if name not in kept])


def _opened(path: str, like: str | None) -> OnnxSource:
    if like is None:
        what = "an ONNX model is more than its weights: it is written from one"
        raise Error(Problem(path, what, "give as TARGET the .onnx whose weights are to be replaced"))
    return OnnxSource(like)


def _check(path: str, model: OnnxSource, specs: Mapping[str, TensorSpec], given: Iterable[str]) -> None:
    theirs = model.specs()
    problems = []
    for name in given:
        if name not in theirs:
            problems.append(Problem(path, f"{model.path} has no tensor {name!r}", closest(name, theirs)))
            continue
        spec, own = specs[name], theirs[name]
        if (spec.dtype.name, spec.shape) != (own.dtype.name, own.shape):
            what = f"{name!r} is {spec.dtype_name}{list(spec.shape)}, "
            problems.append(Problem(path, f"{what}in {model.path} {own.dtype_name}{list(own.shape)}"))
        elif own.unread:
            problems.append(Problem(path, f"{name!r} of {model.path} cannot be replaced: {own.unread}"))
    if problems:
        raise Error(problems)


class _Job:
    """One model to write."""

    def __init__(
        self,
        path: str,
        model: OnnxSource,
        specs: Mapping[str, TensorSpec],
        tiles: Tiles,
        given: Collection[str],
        metadata: Mapping[str, str],
        limit: int,
    ) -> None:
        self.path, self.model, self.specs, self.tiles = path, model, specs, tiles
        self.given, self.metadata, self.limit = dict.fromkeys(given), metadata, limit
        self.beside: str | None = None

    def run(self) -> None:
        """Write it."""
        base = re.escape(os.path.basename(os.path.realpath(self.path)))
        try:
            with atomic_set(self.path, rf"{base}(?:\.\d+)?\.data", lambda name: name not in _data(self.path)) as out:
                self._write(out)
        except BaseException:
            if self.beside is not None and os.path.basename(self.beside) not in _data(self.path):
                with contextlib.suppress(OSError):
                    os.unlink(self.beside)
            raise

    def _write(self, out: BinaryIO) -> None:
        outside = [
            name
            for name, constant in self.model.constants.items()
            if not constant.kind and not self.model.specs()[name].unread and self.model.ref(name).external
        ]
        edit = self._edit({})
        if edit.size() > self.limit:
            outside = self._movable(outside)
        if not outside:
            self._put(edit, out)
            return
        with self._data_file() as (data, location):
            digest = hashlib.sha1(usedforsecurity=False) if self._has_checksum(outside) else None
            places = {}
            for name in outside:
                ref = self.model.ref(name)
                start = data.tell()
                pad = -start % (_PAGE if ref.stored >= _LARGE else _ALIGNED)
                for chunk in (bytes(pad), *self._raw(name)):
                    data.write(chunk)
                    if digest is not None:
                        digest.update(chunk)
                places[name] = {"location": location, "offset": str(start + pad), "length": str(ref.stored)}
            data.flush()
            os.fsync(data.fileno())
            fsync_folder(os.path.dirname(os.path.realpath(self.path)))
            if digest is not None:
                for entries in places.values():
                    entries["checksum"] = digest.hexdigest()
            edit = self._edit(places)
            if edit.size() > self.limit:
                what = f"the model takes {edit.size():,} bytes without the values that can lie beside it"
                raise Error(f"{self.path}: {what}; protobuf holds {self.limit:,}")
            self._put(edit, out)

    def _movable(self, outside: Collection[str]) -> list[str]:
        """What goes into another file where all of it is too much for one: the initializers of the main graph, which
        every runtime looks for there."""
        moved = set(outside)
        for name, constant in self.model.constants.items():
            main = constant.initializer and not constant.body.scope
            if main and not constant.kind and not self.model.specs()[name].unread:
                ref = self.model.ref(name)
                if ref.number != STRING and ref.stored >= _SMALL:
                    moved.add(name)
        return [name for name in self.model.constants if name in moved]

    def _has_checksum(self, names: Iterable[str]) -> bool:
        found = (self.model.ref(name).external for name in names)
        return any(external is not None and external.checksum for external in found)

    def _put(self, edit: Edit, out: BinaryIO) -> None:
        for chunk in edit.chunks():
            out.write(chunk)

    @contextlib.contextmanager
    def _data_file(self) -> Iterator[tuple[BinaryIO, str]]:
        """A new file beside the destination, under a name that nobody uses."""
        final = os.path.realpath(self.path)
        number = 0
        while True:
            file = f"{final}.{number}.data" if number else f"{final}.data"
            try:
                data = open(file, "xb")  # noqa: SIM115
                break
            except FileExistsError:
                number += 1
            except OSError as error:
                raise Error(f"{self.path}: cannot be written: {error.strerror}") from None
        self.beside = file
        try:
            beside = (os.path.join(os.path.dirname(final), name) for name in _data(final))
            os.chmod(file, mode_of(final, *beside))
            with data:
                yield data, os.path.basename(file)
        except OSError as error:
            raise Error(f"{self.path}: cannot be written: {error.strerror or error}") from error

    # Edits -----------------------------------------------------------------------------------------------------------

    def _edit(self, places: Mapping[str, Mapping[str, str]]) -> Edit:
        """Everything that changes in the model's own file.

        Args:
            places: name -> the entries that say where in another file the values lie.
        """
        edit = Edit(self.model.file)
        for name, constant in self.model.constants.items():
            if name in places:
                self._message(edit, constant, *_referring(places[name]))
            elif constant.kind:
                if name in self.given:
                    self._literal(edit, name, constant)
            elif name in self.given:
                self._tensor(edit, name, constant)
        if self.metadata:
            self._annotate(edit)
        return edit

    def _tensor(self, edit: Edit, name: str, constant: Constant) -> None:
        ref = self.model.ref(name)
        if ref.external is not None:
            return  # it gets a place in another file
        if ref.raw is not None:
            holder = next(p for p in ref.parts if p[0] <= ref.raw[0] <= p[1])
            start, size = ref.raw
            edit.replace((*constant.above, holder), (start, start + size), size, lambda: self._raw(name))
        elif ref.number == STRING:
            data = b"".join(_bytes_field(6, value) for value in self._texts(name))
            self._message(edit, constant, len(data), lambda: [data])
        else:
            head = put_varint(RAW << 3 | BYTES) + put_varint(ref.stored)
            self._message(edit, constant, len(head) + ref.stored, lambda: _joined([head], self._raw(name)))

    def _message(self, edit: Edit, constant: Constant, size: int, values: Chunks) -> None:
        """The tensor's message with other values: of what it has, all but the values stays."""
        *others, last = constant.parts
        for part in others:
            kept = self._without(part, VALUES)
            edit.replace(constant.above, part, len(kept), lambda kept=kept: [kept])  # type: ignore[misc]
        rest = self._without(last, VALUES)
        edit.replace(constant.above, last, len(rest) + size, lambda: _joined([rest], values()))

    def _without(self, part: tuple[int, int], numbers: Collection[int]) -> bytes:
        file = self.model.file
        return b"".join(
            file.read(began, end - began) for n, _, _, _, began, end in located(file, *part) if n not in numbers
        )

    def _literal(self, edit: Edit, name: str, constant: Constant) -> None:
        """The attribute of a Constant node that is a plain value."""
        number, dtype, _ = LITERALS[constant.kind]
        if dtype == "object":
            data = b"".join(_bytes_field(number, value) for value in self._texts(name))
        else:
            found = [np.asarray(t).reshape(-1) for t in _tiles.checked(self.path, name, self.specs[name], self.tiles)]
            values = np.concatenate(found) if found else np.empty(0, dtype)
            if dtype == "float32":
                key = put_varint(number << 3 | FIXED32)
                data = b"".join(key + value.tobytes() for value in values.astype("<f4"))
            else:
                key = put_varint(number << 3 | VARINT)
                data = b"".join(key + put_varint(value % (1 << 64)) for value in values.tolist())
        rest = self._without(constant.parts[-1], {number})
        edit.replace(constant.above, constant.parts[-1], len(rest) + len(data), lambda: [rest, data])

    def _annotate(self, edit: Edit) -> None:
        keys = {key.encode() for key in self.metadata}
        file = self.model.file
        for number, wire, start, size, began, end in located(file, 0, file.size):
            if number == _METADATA and wire == BYTES and size < 1 << 16:
                pair = {n: file.read(v, s) for n, w, v, s, _, _ in located(file, start, start + size) if w == BYTES}
                if pair.get(1) in keys:
                    edit.drop(began, end)
        for key, value in self.metadata.items():
            pair_bytes = _bytes_field(1, key.encode()) + _bytes_field(2, value.encode("utf-8", "backslashreplace"))
            edit.append(_bytes_field(_METADATA, pair_bytes))

    # Values ----------------------------------------------------------------------------------------------------------

    def _texts(self, name: str) -> list[bytes]:
        parts = _tiles.encoded(self.path, name, self.specs[name], self.tiles)
        return [value for _, values in parts for value in values]

    def _raw(self, name: str) -> Iterator[bytes | memoryview]:
        """A tensor's values as raw bytes: the new ones, or as they are in the model."""
        ref = self.model.ref(name)
        if name not in self.given:
            if ref.external is not None:
                file, offset = self.model.others.open(ref.external, name)
                yield from file.chunks(offset, ref.stored, tensor=name)
            elif ref.raw is not None:
                yield from self.model.file.chunks(*ref.raw, tensor=name)
            else:
                yield _flat(self.model.read(name), ref)
            return
        left = np.empty(0, ref.dtype)
        each = 8 // BITS[ref.dtype.name] if ref.dtype.name in BITS else 1
        for tile in _tiles.checked(self.path, name, self.specs[name], self.tiles):
            flat = np.concatenate([left, tile.reshape(-1)]) if left.size else tile.reshape(-1)
            whole = flat.size // each * each
            left = flat[whole:]
            if whole:
                yield _flat(flat[:whole], ref)
        if left.size:
            yield _flat(left, ref)


def _flat(values: np.ndarray, ref: TensorRef) -> memoryview:
    return _strided.byte_view(packed(values.reshape(-1)) if ref.dtype.name in BITS else values)


def _joined(first: Iterable[bytes], rest: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    yield from first
    yield from rest


def _bytes_field(number: int, data: bytes) -> bytes:
    return put_varint(number << 3 | BYTES) + put_varint(len(data)) + data


def _referring(entries: Mapping[str, str]) -> tuple[int, Chunks]:
    """The fields that say where the values lie."""
    pairs = (_bytes_field(1, k.encode()) + _bytes_field(2, v.encode()) for k, v in entries.items())
    data = b"".join(_bytes_field(EXTERNAL, pair) for pair in pairs)
    data += put_varint(LOCATION << 3 | VARINT) + put_varint(1)
    return len(data), lambda: [data]


def _data(path: str) -> set[str]:
    """The names of the files beside a model that it refers to."""
    final = os.path.realpath(path)
    if not os.path.isfile(final) or not sniff(final):
        return set()
    try:
        with OnnxSource(final) as model:
            files = model.files()
    except FormatError:
        return set()
    return {os.path.basename(f) for f in files}
