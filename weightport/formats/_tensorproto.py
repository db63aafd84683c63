"""TensorFlow's TensorProto, in every encoding that its writers use, read from a span of a file without copying it.

Promise: shape, dtype and sizes are checked before anything is allocated; a big ``tensor_content`` stays in the file
until it, or a part of it, is read. Limit: resource handles and variants have a spec but cannot be read.

Sources: tensorflow/core/framework/tensor.proto, types.proto, tensor_shape.proto; the meaning of typed fields (the last
value repeats, none means zeros) follows ``FromProtoField`` in tensorflow/core/framework/tensor.cc. More values than the
shape has elements, which TensorFlow cuts off silently, is an error here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from weightport.errors import BudgetExceeded, FormatError
from weightport.formats import _strided
from weightport.formats._proto import BYTES, FIXED32, FIXED64, VARINT, Memory, Readable, signed, spans, varint
from weightport.tensors import Array, Budget, Index, TensorSpec, dtype_named

#: DataType number -> numpy's or ml_dtypes' name. Quantized integers are read as the integers they are stored as.
DTYPES: dict[int, str] = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "object",  # DT_STRING
    8: "complex64",
    9: "int64",
    10: "bool",
    11: "int8",  # DT_QINT8
    12: "uint8",  # DT_QUINT8
    13: "int32",  # DT_QINT32
    14: "bfloat16",
    15: "int16",  # DT_QINT16
    16: "uint16",  # DT_QUINT16
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    26: "float8_e4m3fnuz",
    27: "float8_e4m3b11fnuz",
    28: "float8_e5m2fnuz",
    29: "int4",
    30: "uint4",
    31: "int2",
    32: "uint2",
    33: "float4_e2m1fn",
}
STRING = 7
#: What can be stored but is no array of values.
OPAQUE: dict[int, str] = {20: "resource handle", 21: "variant"}
VARIANT = 21
#: numpy's or ml_dtypes' name -> the DataType that stores it.
NUMBERS: dict[str, int] = {name: number for number, name in DTYPES.items() if number not in (11, 12, 13, 15, 16)}

# Field number -> how its values are stored: a fixed-size dtype, "varint" or "bytes".
_FIXED = {5: "<f4", 6: "<f8", 9: "<c8", 12: "<c16"}
# The field that holds the values of a dtype.
_FIELD_OF = {
    **dict.fromkeys(("int32", "uint8", "int16", "int8", "uint16", "int4", "uint4", "int2", "uint2"), 7),
    **dict.fromkeys(("float16", "bfloat16"), 13),
    "float32": 5,
    "float64": 6,
    "object": 8,
    "complex64": 9,
    "int64": 10,
    "bool": 11,
    "complex128": 12,
    "uint32": 16,
    "uint64": 17,
}
_CONTENT, _FLOAT8, _STRING_VAL = 4, 18, 8
# Values beyond what the file holds (a repeated last value) are bounded: 2 GiB, what protobuf itself can carry.
SPLAT_BYTES = 1 << 31
# Four- and two-bit numbers are stored one to a byte.
_SUB_BYTE = {"int4", "uint4", "int2", "uint2"}
_CHUNK = 1 << 18

#: ``(wire type, value or offset, size)`` of one value field.
_Piece = tuple[int, int, int]


def dtype_of(number: int, path: object, tensor: str | None = None) -> np.dtype[Any]:
    """The dtype of a DataType number; opaque ones are ``object`` too. Reference types are the types they refer to."""
    number = number - 100 if number > 100 else number
    if number in OPAQUE:
        return np.dtype(object)
    try:
        return dtype_named(DTYPES[number])
    except (KeyError, TypeError):
        raise FormatError(path, f"unknown dtype number {number}", tensor=tensor) from None


def shape_of(file: Readable, start: int, end: int, name: str) -> tuple[int, ...]:
    """The dimensions of a TensorShapeProto. An unknown rank or dimension is no shape of a stored tensor."""
    shape = []
    for number, wire, value, size in spans(file, start, end):
        if number == 2 and wire == BYTES:
            dim = 0
            for field, kind, content, _ in spans(file, value, value + size):
                if field == 1 and kind == VARINT:
                    dim = signed(content)
            shape.append(dim)
        elif number == 3 and wire == VARINT and value:
            raise FormatError(file.path, "a stored tensor of unknown rank", tensor=name, offset=start)
    return tuple(shape)


@dataclass(frozen=True, slots=True)
class TensorProtoRef:
    """Where a TensorProto's values lie. Holds no values; ``read`` takes the file again.

    Attributes:
        name: the tensor, as errors name it.
        number: DataType number (reference types reduced).
        dtype: of the values in memory.
        shape: checked against the budget.
        content: ``(offset, size)`` of ``tensor_content``, or None.
        start, end: the whole message's byte range, which typed values are read from.
        budget: the bounds that reading keeps to.
        repeats: whether the last value stands for all that are missing, as in a graph's constants.
    """

    name: str
    number: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int
    content: tuple[int, int] | None
    start: int
    end: int
    budget: Budget
    repeats: bool = True

    @classmethod
    def parse(
        cls,
        file: Readable,
        start: int,
        end: int,
        *,
        name: str,
        budget: Budget | None = None,
        known: tuple[int, tuple[int, ...]] | None = None,
    ) -> TensorProtoRef:
        """The header of the TensorProto that lies at ``start:end`` of a file. No values are read.

        ``known`` is a dtype number and shape that stand elsewhere, as for the data of a V1 checkpoint, which repeat
        neither; a dtype that is repeated must be the same. Of those, none may be missing: TensorFlow writes them all.
        """
        budget = Budget() if budget is None else budget
        number, strings = 0, 0
        dims: list[int] = []
        content: tuple[int, int] | None = None
        for field, wire, value, size in spans(file, start, end):
            if field == 1 and wire == VARINT:
                number = value - 100 if value > 100 else value
            elif field == 2 and wire == BYTES:
                dims += shape_of(file, value, value + size, name)
            elif field == _CONTENT and wire == BYTES and size:
                content = (value, size)
            elif field == _STRING_VAL and wire == BYTES:
                strings += size
        shape = tuple(dims)
        if known:
            if number not in (0, known[0]):
                raise FormatError(file.path, f"dtype number {number}, expected {known[0]}", tensor=name, offset=start)
            number, shape = known
        dtype = dtype_of(number, file.path, name)
        nbytes = _strided.checked(dtype, shape, budget, file.path, name)
        if known and prod(shape) > end - start:  # before anything is allocated: each value has a byte or more
            what = f"{end - start} bytes for {prod(shape)} elements"
            raise FormatError(file.path, what, tensor=name, offset=start)
        if dtype.kind == "O":
            nbytes = content[1] if content else strings
        elif content and content[1] != nbytes:
            raise FormatError(
                file.path,
                f"{content[1]} bytes of content for {dtype.name}{list(shape)}, which needs {nbytes}",
                tensor=name,
                offset=content[0],
            )
        return cls(name, number, dtype, shape, nbytes, content, start, end, budget, known is None)

    @property
    def spec(self) -> TensorSpec:
        """The header as the rest of weightport sees it."""
        return TensorSpec(self.dtype, self.shape, self.nbytes)

    def read(self, file: Readable, index: Index = None) -> Array:
        """The values, or the part that ``index`` cuts out, as a new array. Only ``content`` is read in part."""
        if self.number in OPAQUE:
            raise FormatError(file.path, f"a {OPAQUE[self.number]} has no values to read", tensor=self.name)
        cuts = _strided.bounds(index, self.shape, f"{file.path}: tensor {self.name!r}")
        if self.dtype.kind == "O":
            return _part(self._strings(file), cuts)
        if self.content:
            out = _strided.read_part(file, self.content[0], self.dtype, self.shape, cuts, tensor=self.name)
            return sub_byte(out)
        field = _FIELD_OF.get(self.dtype.name, _FLOAT8)
        pieces = [(w, v, s) for f, w, v, s in spans(file, self.start, self.end) if f == field]
        total = prod(self.shape)
        if field in _FIXED and len(pieces) == 1 and pieces[0][0] == BYTES and pieces[0][2] == self.nbytes:
            return _strided.read_part(file, pieces[0][1], self.dtype, self.shape, cuts, tensor=self.name)
        values = self._values(file, field, pieces, total)
        self._check_count(file, values.size, total)
        if values.size < total:
            fill = values[-1] if values.size else np.zeros((), self.dtype)[()]
            if values.size <= 1:  # one value for all: only the part is made
                self._check_splat(file, prod(_strided.counts(cuts)))
                return np.full(_strided.counts(cuts), fill, self.dtype)
            self._check_splat(file, total)
            whole = np.empty(total, self.dtype)
            whole[: values.size] = values
            whole[values.size :] = fill
            values = whole
        return _part(values.reshape(self.shape), cuts)

    def _check_count(self, file: Readable, count: int, total: int) -> None:
        if count > total or (count < total and not self.repeats):
            raise FormatError(file.path, f"{count} values for {total} elements", tensor=self.name, offset=self.start)

    def _check_splat(self, file: Readable, elements: int) -> None:
        size = elements * self.dtype.itemsize
        limit = min(SPLAT_BYTES, self.budget.tensor_bytes)
        if size > limit:
            raise BudgetExceeded(
                file.path, f"a repeated value of {size:,} bytes, at most {limit:,} allowed", tensor=self.name
            )

    def _values(self, file: Readable, field: int, pieces: list[_Piece], total: int) -> Array:
        """The values that a typed field really holds, in the dtype of the tensor; at most one more than ``total``."""
        parts: list[Array] = []
        seen = 0
        for part in self._decoded(file, field, pieces):
            parts.append(part)
            seen += part.size
            if seen > total:
                break
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def _decoded(self, file: Readable, field: int, pieces: list[_Piece]) -> Iterator[Array]:
        if field == _FLOAT8:
            for wire, offset, size in pieces[-1:]:  # not repeated: the last one counts
                if wire == BYTES:
                    yield np.frombuffer(file.read(offset, size, tensor=self.name), self.dtype)
            return
        if field in _FIXED:
            yield from self._fixed(file, np.dtype(_FIXED[field]), pieces)
            return
        loose: list[int] = []
        for wire, value, size in pieces:
            if wire == VARINT:
                loose.append(value)
            elif wire == BYTES:
                if loose:
                    yield self._from_varints(np.array(loose, np.uint64))
                    loose = []
                for numbers in packed_varints(file, value, size, self.name):
                    yield self._from_varints(numbers)
        if loose:
            yield self._from_varints(np.array(loose, np.uint64))

    def _fixed(self, file: Readable, stored: np.dtype[Any], pieces: list[_Piece]) -> Iterator[Array]:
        # Complex values are a pair of numbers, each a field value of its own.
        unit = stored.itemsize // (2 if stored.kind == "c" else 1)
        wanted = FIXED32 if unit == 4 else FIXED64
        raw = b"".join(
            file.read(value, size, tensor=self.name) if wire == BYTES else value.to_bytes(unit, "little")
            for wire, value, size in pieces
            if wire in (BYTES, wanted)
        )
        if len(raw) % stored.itemsize:
            raise FormatError(
                file.path,
                f"{len(raw)} bytes of typed values are no whole number of {self.dtype.name}",
                tensor=self.name,
                offset=self.start,
            )
        if raw:
            yield np.frombuffer(raw, stored).astype(self.dtype, copy=False)

    def _from_varints(self, numbers: Array) -> Array:
        """Varints to the dtype: two's complement cut to its width, or the bits of a 16-bit float."""
        kind = self.dtype.name
        if kind == "bool":
            return np.not_equal(numbers, 0)
        if kind in _SUB_BYTE:
            return sub_byte(numbers.astype(np.uint8).view(self.dtype))
        return numbers.astype(f"u{self.dtype.itemsize}").view(self.dtype)

    def _strings(self, file: Readable) -> Array:
        total = prod(self.shape)
        found: list[bytes] = []
        if self.content:
            found = _string_list(file, *self.content, total, self.name)
        else:
            for field, wire, value, size in spans(file, self.start, self.end):
                if field == _STRING_VAL and wire == BYTES:
                    found.append(file.read(value, size, tensor=self.name))
        self._check_count(file, len(found), total)
        self._check_splat(file, total if len(found) < total else 0)
        out = np.full(total, found[-1] if found else b"", object)
        out[: len(found)] = found
        return out.reshape(self.shape)


def header(data: bytes, path: object, *, name: str, budget: Budget | None = None) -> TensorProtoRef:
    """The header of a TensorProto held in memory (read it with ``ref.read(Memory(data, path))``)."""
    return TensorProtoRef.parse(Memory(data, path), 0, len(data), name=name, budget=budget)


def decode(data: bytes, path: object, *, name: str, budget: Budget | None = None) -> Array:
    """The values of a TensorProto held in memory."""
    return header(data, path, name=name, budget=budget).read(Memory(data, path))


def _part(whole: Array, cuts: _strided.Bounds) -> Array:
    return whole if _strided.is_whole(cuts, whole.shape) else whole[_strided.as_slices(cuts)].copy()


@functools.lru_cache(maxsize=64)
def is_sub_byte(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype has fewer bits than a byte."""
    return dtype.name in _SUB_BYTE


def sub_byte(array: Array) -> Array:
    """Four- and two-bit numbers keep only their own bits, whatever the rest of the byte holds (as ml_dtypes does)."""
    name = array.dtype.name
    if name not in _SUB_BYTE:
        return array
    kept: Array = (np.array(array).view(np.uint8) & np.uint8((1 << int(name[-1])) - 1)).view(array.dtype)
    return kept


def packed_varints(file: Readable, offset: int, size: int, name: str) -> Iterator[Array]:
    """A packed field's unsigned 64-bit numbers, decoded a chunk at a time."""
    end = offset + size
    while offset < end:
        raw = np.frombuffer(file.read(offset, min(_CHUNK, end - offset), tensor=name), np.uint8)
        ends = np.flatnonzero(raw < 0x80)
        starts = np.empty_like(ends)
        starts[:1] = 0
        starts[1:] = ends[:-1] + 1
        lengths = ends - starts + 1
        if not ends.size or lengths.max() > 10:
            raise FormatError(file.path, "malformed varint", tensor=name, offset=offset)
        numbers = np.zeros(ends.size, np.uint64)
        for place in range(int(lengths.max())):
            longer = lengths > place
            bits = (raw[starts[longer] + place] & 0x7F).astype(np.uint64)
            numbers[longer] |= bits << np.uint64(7 * place)
        yield numbers
        offset += int(ends[-1]) + 1


def _string_list(file: Readable, offset: int, size: int, total: int, name: str) -> list[bytes]:
    """``port::DecodeStringList``: all lengths as varints, then all bytes."""
    data = file.read(offset, size, tensor=name)
    if total > size:  # each length takes a byte
        raise FormatError(file.path, f"{size} bytes of content for {total} strings", tensor=name, offset=offset)
    lengths, position = [], 0
    for _ in range(total):
        length, position = varint(data, position, size, file.path, offset)
        lengths.append(length)
    if position + sum(lengths) != size:
        raise FormatError(file.path, "the lengths of the strings do not add up", tensor=name, offset=offset)
    found = []
    for length in lengths:
        found.append(data[position : position + length])
        position += length
    return found
