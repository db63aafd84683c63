"""Flax' msgpack files: ``flax.serialization.to_bytes``, the checkpoints of ``flax.training``, ``flax_model.msgpack``.

Promise: the tree is walked where it lies, no array is read before it is asked for, and then by its byte ranges; arrays
that Flax stored in chunks are whole again. Writing streams; a tree of arrays gives the very bytes that
``msgpack_serialize`` gives for it, and one written like a TARGET repeats all that is no array, such as empty states.
Limits: the format has no checksum, so a flipped bit in a value cannot be seen; text and nil are no tensors and are not
listed; arrays in the other byte order cannot be told (Flax does not store it).

Sources: flax/serialization.py (``_MsgpackExtType``, ``_ndarray_to_bytes``, ``_chunk``, ``MAX_CHUNK_SIZE``); the format
of msgpack itself is in :mod:`weightport.formats._msgpack`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightport.errors import FormatError, TensorNotFound
from weightport.formats import _fs, _jax_paths, _strided
from weightport.formats._io import ByteFile
from weightport.formats._jax_names import unboxed, with_roles
from weightport.formats._msgpack import ARRAY, BINARY, BOOL, EXT, FLOAT, INT, MAP, NIL, TEXT, Token, Walker, is_map
from weightport.tensors import Array, Budget, Extent, Index, TensorSpec, dtype_named

#: Flax' ext types.
NDARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
# A map's keys are short; the dtype's name in an array is shorter.
_MAX_KEY, _MAX_DTYPE, _MAX_TEXT = 1 << 20, 64, 1 << 12


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        spec: its header.
        start: the first byte of its token.
        stop: the byte after it.
        runs: ``(offset, bytes)`` of its values, in order; none of a native number.
        native: the number that the file has instead of an array.
    """

    spec: TensorSpec
    start: int
    stop: int
    runs: tuple[tuple[int, int], ...] = ()
    native: complex | None = None


class FlaxSource:
    """An open msgpack file. A tensor is named by its keys, joined by ``/``; members of lists by their index."""

    format = "flax-msgpack"

    def __init__(self, path: str, *, budget: Budget | None = None) -> None:
        self.path = _jax_paths.resolve(path).path
        self._budget = budget or Budget()
        self.entries: dict[str, Entry] = {}
        #: Short texts, which are no tensors.
        self.texts: dict[str, str] = {}
        self.file = ByteFile(self.path)
        try:
            self._walker = Walker(self.file)
            self._nodes = 0
            top = self._walker.token(0)
            if top.kind not in (MAP, ARRAY):
                raise FormatError(self.path, f"no tree of Flax: it begins with {top.kind}", offset=0)
            end = self._value(0, (), 0)
            if end != self.file.size:
                raise FormatError(self.path, f"{self.file.size - end:,} bytes follow the tree", offset=end)
            names = unboxed(self.entries)
            self.entries = {names[stored]: entry for stored, entry in self.entries.items()}
            self._specs = with_roles({name: entry.spec for name, entry in self.entries.items()})
        except BaseException:
            self.file.close()
            raise

    # The walk ---------------------------------------------------------------------------------------------------------

    def _value(self, at: int, keys: tuple[str, ...], depth: int) -> int:
        """Take one value in, and give the byte after it."""
        self._budget.check("depth", depth, self.path)
        self._nodes += 1
        self._budget.check("tensors", self._nodes, self.path)
        token = self._walker.token(at)
        if self._walker.read > 1 << 16:
            self._budget.spend("header_bytes", self._walker.read, self.path)
            self._walker.read = 0
        if token.kind == MAP:
            return self._map(token, keys, depth)
        if token.kind == ARRAY:
            end = token.end
            for number in range(token.size):
                end = self._value(end, (*keys, str(number)), depth + 1)
            return end
        name = "/".join(keys)
        self._budget.name(len(name), self.file.size, self.path)
        if token.kind == EXT and token.code in (NDARRAY, SCALAR):
            spec, run = self._ndarray(token, name)
            self._add(name, Entry(spec, token.at, token.end, (run,)))
        elif token.kind == EXT and token.code == COMPLEX:
            self._add(name, Entry(TensorSpec.of("complex128", ()), token.at, token.end, native=self._complex(token)))
        elif token.kind in (INT, FLOAT, BOOL):
            self._add(name, _number(token))
        elif token.kind == TEXT and token.size <= _MAX_TEXT:
            self.texts[name] = self._walker.text(token)
        elif token.kind not in (TEXT, NIL):
            what = f"ext of type {token.code}" if token.kind == EXT else "bytes"
            self._add(name, Entry(TensorSpec(np.dtype(object), (), 0, unread=f"{what}, not of Flax"), at, token.end))
        return token.end

    def _map(self, token: Token, keys: tuple[str, ...], depth: int) -> int:
        seen: set[str] = set()
        end = token.end
        for _ in range(token.size):
            at = end
            head = self._walker.token(at)
            if head.kind not in (TEXT, INT) or head.size > _MAX_KEY:
                raise FormatError(self.path, f"a key that is {head.kind}, not a short text", offset=at)
            key = self._walker.text(head) if head.kind == TEXT else str(head.value)
            if key in seen:
                raise FormatError(self.path, f"the key {key!r} stands twice in one map", offset=at)
            seen.add(key)
            if key == CHUNKED:
                if len(seen) > 1:
                    raise FormatError(self.path, "a chunked array that does not begin as one", offset=token.at)
                return self._chunked(token, head.end, keys)
            end = self._value(head.end, (*keys, key), depth + 1)
        return end

    def _add(self, name: str, entry: Entry) -> None:
        if name in self.entries:
            raise FormatError(self.path, "another tensor has the same name", tensor=name, offset=entry.start)
        self.entries[name] = entry

    def _ndarray(self, token: Token, name: str) -> tuple[TensorSpec, tuple[int, int]]:
        """The header of an array: ``(shape, dtype's name, bytes)``, msgpack inside the ext."""

        def wrong(what: str) -> FormatError:
            return FormatError(self.path, what, tensor=name, offset=token.at)

        inside = Walker(self.file, token.end)
        inside.window, inside._base = self._walker.window, self._walker._base
        triple = inside.token(token.start)
        dims = inside.token(triple.end) if triple.kind == ARRAY and triple.size == 3 else triple
        if triple.kind != ARRAY or triple.size != 3 or dims.kind != ARRAY:
            raise wrong("its array is no shape, dtype and bytes")
        self._budget.check("rank", dims.size, self.path, tensor=name)
        shape, at = [], dims.end
        for _ in range(dims.size):
            dim = inside.token(at)
            if dim.kind != INT or dim.value < 0:
                raise wrong("its shape is no list of sizes")
            shape.append(int(dim.value))
            at = dim.end
        code = inside.token(at)
        data = inside.token(code.end)
        if code.kind not in (TEXT, BINARY) or code.size > _MAX_DTYPE or data.kind not in (TEXT, BINARY):
            raise wrong("its array is no shape, dtype and bytes")
        if data.end != token.end:
            raise wrong(f"its bytes end at {data.end:,}, its array at {token.end:,}")
        label = self.file.read(code.start, code.size).decode("ascii", "replace")
        dtype = dtype_of(label)
        if dtype is None:
            raise wrong(f"the dtype {label!r} is unknown")
        nbytes = _strided.checked(dtype, tuple(shape), self._budget, self.path, name)
        if nbytes != data.size:
            raise wrong(f"{dtype.name} of shape {shape} takes {nbytes:,} bytes, it has {data.size:,}")
        return TensorSpec(dtype, tuple(shape), nbytes), (data.start, data.size)

    def _chunked(self, token: Token, at: int, keys: tuple[str, ...]) -> int:
        """An array in chunks: ``{CHUNKED: true, shape: {0: ..}, chunks: {0: flat array, ..}}``."""
        name = "/".join(keys)
        self._budget.name(len(name), self.file.size, self.path)

        def wrong(what: str) -> FormatError:
            return FormatError(self.path, what, tensor=name, offset=token.at)

        walker = self._walker
        flag = walker.token(at)
        if token.size != 3 or flag.kind != BOOL or not flag.value:
            raise wrong("its chunks are no flag, shape and chunks")
        parts: dict[str, list[Token]] = {}
        at = flag.end
        for _ in range(2):
            key = walker.token(at)
            label = walker.text(key) if key.kind == TEXT and key.size < _MAX_DTYPE else ""
            members = walker.token(key.end)
            if label not in ("shape", "chunks") or label in parts or members.kind != MAP:
                raise wrong("its chunks are no flag, shape and chunks")
            self._budget.check("rank" if label == "shape" else "tensors", members.size, self.path, tensor=name)
            parts[label], at = [], members.end
            for number in range(members.size):
                key = walker.token(at)
                if key.kind != TEXT or key.size > 20 or walker.text(key) != str(number):
                    raise wrong(f"its {label} are not numbered")
                member = walker.token(key.end)
                if member.kind != (INT if label == "shape" else EXT):
                    raise wrong(f"its {label} are no {'sizes' if label == 'shape' else 'arrays'}")
                parts[label].append(member)
                at = member.end
        shape = tuple(int(member.value) for member in parts["shape"])
        found = [self._ndarray(chunk, name) for chunk in parts["chunks"]]
        if min(shape, default=0) < 0 or not found or any(len(spec.shape) != 1 for spec, _ in found):
            raise wrong("its shape is no list of sizes, or its chunks are not flat")
        dtype = found[0][0].dtype
        nbytes = _strided.checked(dtype, shape, self._budget, self.path, name)
        total = sum(spec.nbytes for spec, _ in found)
        if any(spec.dtype != dtype for spec, _ in found) or total != nbytes:
            raise wrong(f"{dtype.name} of shape {list(shape)} takes {nbytes:,} bytes, its chunks have {total:,}")
        spec = TensorSpec(dtype, shape, nbytes)
        self._add(name, Entry(spec, token.at, at, tuple(run for _, run in found)))
        return at

    def _complex(self, token: Token) -> complex:
        inside = Walker(self.file, token.end)
        pair = inside.token(token.start)
        if pair.kind == ARRAY and pair.size == 2:
            real = inside.token(pair.end)
            imaginary = inside.token(real.end)
            if {real.kind, imaginary.kind} <= {INT, FLOAT} and imaginary.end == token.end:
                return complex(real.value, imaginary.value)
        raise FormatError(self.path, "a complex number that is no pair of numbers", offset=token.at)

    # Source -----------------------------------------------------------------------------------------------------------

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the file's order."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out; only its byte ranges are read."""
        entry = self.entries.get(name)
        if entry is None:
            raise TensorNotFound(name, self.entries, self.path)
        spec = entry.spec
        if spec.unread:
            raise FormatError(self.path, f"is {spec.unread}", tensor=name, offset=entry.start)
        cuts = _strided.bounds(index, spec.shape, f"{self.path}: tensor {name!r}")
        if entry.native is not None:
            self.file.check(entry.start, entry.stop - entry.start, tensor=name)
            return np.array(entry.native, spec.dtype)
        data = self.file if len(entry.runs) == 1 else _Runs(self.file, entry.runs)
        start = entry.runs[0][0] if len(entry.runs) == 1 else 0
        return _strided.read_part(data, start, spec.dtype, spec.shape, cuts, tensor=name)

    def extent(self, name: str) -> Extent | None:
        """Where a tensor lies, if it is one array; there is no checksum."""
        entry = self.entries.get(name)
        if entry is None:
            raise TensorNotFound(name, self.entries, self.path)
        if len(entry.runs) != 1 or sys.byteorder != "little":
            return None
        return Extent(self.path, *entry.runs[0])

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing: a tree of arrays records no cells."""
        return {}

    def close(self) -> None:
        """Release the file."""
        self.file.close()

    def __enter__(self) -> FlaxSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Runs:
    """Several byte ranges of a file, read as if they were one."""

    def __init__(self, file: ByteFile, runs: Sequence[tuple[int, int]]) -> None:
        self._file, self._runs = file, runs
        self.path, self.size = file.path, sum(count for _, count in runs)

    def _spans(self, offset: int, count: int) -> Iterator[tuple[int, int]]:
        for start, size in self._runs:
            if offset < size and count:
                taken = min(count, size - offset)
                yield start + offset, taken
                offset, count = offset + taken, count - taken
            offset -= size

    def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes:
        return b"".join(self._file.read(at, size, tensor=tensor) for at, size in self._spans(offset, count))

    def read_into(self, offset: int, buffer: memoryview, *, tensor: str | None = None) -> None:
        done = 0
        for at, size in self._spans(offset, len(buffer)):
            self._file.read_into(at, buffer[done : done + size], tensor=tensor)
            done += size

    def check(self, offset: int, count: int, *, tensor: str | None = None) -> None:
        for at, size in self._spans(offset, count):
            self._file.check(at, size, tensor=tensor)


def _number(token: Token) -> Entry:
    kinds = {BOOL: "bool", FLOAT: "float64", INT: "uint64" if token.value >= 1 << 63 else "int64"}
    return Entry(TensorSpec.of(kinds[token.kind], ()), token.at, token.end, native=token.value)


def dtype_of(name: str) -> np.dtype[Any] | None:
    """The dtype of that name, if arrays of it lie in the format as they lie in memory."""
    try:
        dtype = dtype_named(name)
    except (TypeError, ValueError):
        return None
    fixed = dtype.name == name and not dtype.hasobject and dtype.kind not in "OSUMm" and dtype.names is None
    return dtype if fixed and dtype.itemsize else None


def sniff(path: str) -> bool:
    """Whether the file is a map of msgpack whose first key is a text, or the folder one of such files. Never raises."""
    if not _fs.isdir(path):
        return is_map(path)
    try:
        found = _jax_paths.find(path)
    except FormatError:
        return False
    return found is not None and found.kind == "flax-msgpack"


def open_source(path: str, *, budget: Budget | None = None) -> FlaxSource:
    """Open a msgpack file of Flax, or the latest checkpoint in a folder of them.

    Raises:
        FormatError: truncated, corrupt, or no msgpack.
    """
    return FlaxSource(path, budget=budget)
