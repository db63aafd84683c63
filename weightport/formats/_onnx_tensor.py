"""ONNX's TensorProto in each of its encodings: raw bytes, typed fields, or a byte range of another file.

Promise: dtype, shape and sizes are checked before anything is allocated; raw bytes, also those of other files, stay
where they are until they, or a part of them, are read. Limit: six-bit floats, segments, and types that are newer than
this table have a spec but cannot be read.

Sources: onnx/onnx.proto (TensorProto), onnx/numpy_helper.py (``to_array``: which field holds which type, how four and
two bits are packed). As protobuf defines it, the last value of a field counts, repeated fields add up, packed or not,
and the parts of a message that occurs several times are one message.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from weightport.errors import FormatError
from weightport.formats import _strided, _subbyte
from weightport.formats._onnx_external import External, ExternalFiles
from weightport.formats._proto import BYTES, FIXED32, FIXED64, VARINT, Readable, signed, spans
from weightport.formats._subbyte import BITS, unpacked
from weightport.formats._tensorproto import packed_varints
from weightport.tensors import Array, Budget, Index, TensorSpec, dtype_named

#: TensorProto.DataType -> numpy's or ml_dtypes' name.
DTYPES: dict[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "object",  # STRING
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1fn",
    24: "float8_e8m0fnu",
    25: "uint2",
    26: "int2",
}
STRING = 8
#: Types that are known and not read.
_PACKED = {27: "FLOAT6E2M3", 28: "FLOAT6E3M2"}
# Fields of TensorProto.
DIMS, DATA_TYPE, SEGMENT, NAME, RAW, EXTERNAL, LOCATION = 1, 2, 3, 8, 9, 13, 14
_FLOAT, _INT32, _STRINGS, _INT64, _DOUBLE, _UINT64 = 4, 5, 6, 7, 10, 11
#: The fields that hold values or say where they are.
VALUES = frozenset({_FLOAT, _INT32, _STRINGS, _INT64, RAW, _DOUBLE, _UINT64, EXTERNAL, LOCATION})
_HERE = VALUES - {EXTERNAL, LOCATION}
_FIELD_OF = {
    **dict.fromkeys(("float32", "complex64"), _FLOAT),
    **dict.fromkeys(("float64", "complex128"), _DOUBLE),
    **dict.fromkeys(("uint32", "uint64"), _UINT64),
    "int64": _INT64,
}
_FIXED = {_FLOAT: ("<f4", FIXED32), _DOUBLE: ("<f8", FIXED64)}

#: The byte ranges that a message lies in: more than one where it occurs several times.
Parts = tuple[tuple[int, int], ...]


def fields_of(file: Readable, parts: Parts) -> Iterator[tuple[int, int, int, int]]:
    """Every field of a message, see :func:`~weightport.formats._proto.spans`."""
    for start, end in parts:
        yield from spans(file, start, end)


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a TensorProto's values lie. Holds none.

    Attributes:
        title: the tensor, as errors name it.
        number: its DataType.
        raw: ``(offset, size)`` of ``raw_data``, or None.
        external: where in another file the values lie, or None.
        unread: why the values cannot be read, or empty.
        parts: the message.
    """

    title: str
    number: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int
    raw: tuple[int, int] | None
    external: External | None
    unread: str
    parts: Parts

    @classmethod
    def parse(cls, file: Readable, parts: Parts, *, title: str, budget: Budget) -> TensorRef:
        """The header of a tensor. No values are read.

        Raises:
            FormatError: a shape that no array can have, or sizes that do not fit it.
        """
        number, place, strings = 0, 0, 0
        shape: list[int] = []
        raw: tuple[int, int] | None = None
        entries: dict[str, str] = {}
        unread = ""
        held: set[int] = set()
        for field, wire, value, size in fields_of(file, parts):
            if field in _HERE and (size or wire != BYTES):
                held.add(field)
            if field == DIMS:
                _dims(file, wire, value, size, shape, title, budget)
            elif field == DATA_TYPE and wire == VARINT:
                number = signed(value)
            elif field == SEGMENT:
                unread = "a segment of a tensor"
            elif field == RAW and wire == BYTES:
                raw = (value, size)
            elif field == _STRINGS and wire == BYTES:
                strings += size
            elif field == EXTERNAL and wire == BYTES:
                key, text = entry(file, value, size, title)
                entries[key] = text
            elif field == LOCATION and wire == VARINT:
                place = value
        if number not in DTYPES:
            unread = f"of the type {_PACKED.get(number, number)}"
        dtype = np.dtype(object) if unread else dtype_named(DTYPES[number])
        nbytes = _strided.checked(dtype, tuple(shape), budget, file.path, title)
        if number == STRING:
            nbytes = strings
        found = cls(title, number, dtype, tuple(shape), nbytes, raw, None, unread, parts)
        if unread:
            return found
        if len(held) + (place == 1) > 1:
            what = "its values stand in more than one place, which need not be the same"
            raise FormatError(file.path, what, tensor=title, offset=parts[0][0])
        if place == 1:
            external = External.of(entries, found.stored, file.path, title)
            return cls(title, number, dtype, tuple(shape), nbytes, None, external, "", parts)
        if raw and raw[1] != found.stored:
            what = f"{raw[1]} bytes of raw data for {dtype.name}{shape}, which needs {found.stored}"
            raise FormatError(file.path, what, tensor=title, offset=raw[0])
        return found

    @property
    def stored(self) -> int:
        """Bytes that the values take where they are stored raw."""
        return _subbyte.nbytes(self.dtype, self.shape) if self.number != STRING else self.nbytes

    def spec(self, role: str) -> TensorSpec:
        """The header as the rest of weightport sees it."""
        return TensorSpec(self.dtype, self.shape, self.nbytes, role, unread=self.unread)

    def read(self, file: Readable, others: ExternalFiles, index: Index = None) -> Array:
        """The values, or the part that ``index`` cuts out, as a new array. Typed fields are decoded whole."""
        if self.unread:
            raise FormatError(file.path, f"cannot be read: {self.unread}", tensor=self.title)
        cuts = _strided.bounds(index, self.shape, f"{file.path}: tensor {self.title!r}")
        if self.number == STRING:
            return part(self._strings(file), cuts)
        source, offset = file, self.raw[0] if self.raw else -1
        if self.external is not None:
            source, offset = others.open(self.external, self.title)
        if offset < 0:
            return part(self._typed(file), cuts)
        return _subbyte.read_part(source, offset, self.dtype, self.shape, cuts, tensor=self.title)

    def _typed(self, file: Readable) -> Array:
        total = prod(self.shape)
        field = _FIELD_OF.get(self.dtype.name, _INT32)
        pieces = [(w, v, s) for f, w, v, s in fields_of(file, self.parts) if f == field]
        if field in _FIXED:
            values = floats(file, pieces, field, self.title)
            if values.nbytes % self.dtype.itemsize:
                what = f"{values.size} numbers for {self.dtype.name}, of which each takes two"
                raise FormatError(file.path, what, tensor=self.title, offset=self.parts[0][0])
            values = values.astype(values.dtype.newbyteorder("="), copy=False).view(self.dtype)
        else:
            numbers = integers(file, pieces, total, self.title)
            values = self._from_integers(numbers, total)
        if values.size != total:
            what = f"{values.size} values for the shape {list(self.shape)}"
            raise FormatError(file.path, what, tensor=self.title, offset=self.parts[0][0])
        return np.array(values.reshape(self.shape), order="C")

    def _from_integers(self, numbers: Array, total: int) -> Array:
        """Varints to the dtype: cut to its width, or the bits of a float, or packed elements."""
        name = self.dtype.name
        if name == "bool":
            return np.not_equal(numbers, 0)
        if name in BITS:
            values = unpacked(numbers.astype(np.uint8), BITS[name]).view(self.dtype)
            each = 8 // BITS[name]
            return values[:total] if values.size - total < each else values
        return numbers.astype(f"u{self.dtype.itemsize}").view(self.dtype)

    def _strings(self, file: Readable) -> Array:
        total = prod(self.shape)
        texts = (
            file.read(value, size, tensor=self.title)
            for field, wire, value, size in fields_of(file, self.parts)
            if field == _STRINGS and wire == BYTES
        )
        found = list(itertools.islice(texts, total + 1))
        if len(found) != total:
            what = f"{len(found)} strings for the shape {list(self.shape)}"
            raise FormatError(file.path, what, tensor=self.title, offset=self.parts[0][0])
        out = np.empty(total, object)
        out[:] = found
        return out.reshape(self.shape)


def _dims(file: Readable, wire: int, value: int, size: int, shape: list[int], title: str, budget: Budget) -> None:
    if wire == VARINT:
        shape.append(signed(value))
    elif wire == BYTES:
        budget.check("rank", size // 10, file.path, tensor=title)  # a number takes at most ten bytes
        for numbers in packed_varints(file, value, size, title):
            shape.extend(signed(int(n)) for n in numbers)
    budget.check("rank", len(shape), file.path, tensor=title)


def entry(file: Readable, start: int, size: int, title: str) -> tuple[str, str]:
    """A StringStringEntryProto."""
    pair = {1: "", 2: ""}
    for field, wire, value, length in spans(file, start, start + size):
        if wire == BYTES and field in pair:
            if length > 1 << 16:
                raise FormatError(file.path, f"an entry of {length:,} bytes", tensor=title, offset=value)
            pair[field] = file.read(value, length).decode("utf-8", "backslashreplace")
    return pair[1], pair[2]


def part(whole: Array, cuts: _strided.Bounds) -> Array:
    """What the bounds cut out of an array that is nobody else's."""
    return whole if _strided.is_whole(cuts, whole.shape) else np.array(whole[_strided.as_slices(cuts)], order="C")


def floats(file: Readable, pieces: Sequence[tuple[int, int, int]], field: int, title: str) -> Array:
    """The values of a repeated float (or with a field of doubles, double) field."""
    stored, loose = _FIXED[field]
    unit = np.dtype(stored).itemsize
    raw = b"".join(
        file.read(value, size, tensor=title) if wire == BYTES else value.to_bytes(unit, "little")
        for wire, value, size in pieces
        if wire in (BYTES, loose)
    )
    if len(raw) % unit:
        raise FormatError(file.path, f"{len(raw)} bytes are no whole number of {unit}-byte values", tensor=title)
    return np.frombuffer(raw, stored)


def integers(file: Readable, pieces: Sequence[tuple[int, int, int]], limit: int, title: str) -> Array:
    """The values of a repeated integer field, unsigned; not many more than ``limit``."""
    parts: list[Array] = []
    loose: list[int] = []
    seen = 0
    for wire, value, size in pieces:
        if wire == VARINT:
            loose.append(value)
            seen += 1
        elif wire == BYTES:
            if loose:
                parts.append(np.array(loose, np.uint64))
                loose = []
            for numbers in packed_varints(file, value, size, title):
                parts.append(numbers)
                seen += numbers.size
                if seen > limit:
                    break
        if seen > limit:
            break
    if loose:
        parts.append(np.array(loose, np.uint64))
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)
