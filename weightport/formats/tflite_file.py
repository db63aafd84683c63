"""TensorFlow Lite models: the constants of their graphs as tensors, read without TensorFlow.

Promise: opening reads the tables, not the buffers; a tensor, or a part of it, is read where it lies, also beyond 2 GB,
where the buffers stand outside of the FlatBuffer. Names are the tensors' own; those of further graphs (the bodies of
control flow) stand below the graph's name. Quantized tensors are read as the integers they are stored as, and their
specs say what these stand for. Tensors share all of their bytes or none: else the model is not opened. Limit: sparse
tensors, blockwise quantization and values in other files are listed and cannot be read; the format has no checksums,
and stores no RNN cell that a layout knows.

Weights are told from the arithmetic's constants by their type: integers of 32 and 64 bits, unless quantized, truth
values and text are sizes, indices and conditions, and so are scalars.

Sources: tensorflow/lite/schema/schema.fbs, tensorflow/lite/string_util.h.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from weightport.errors import FormatError, TensorNotFound
from weightport.formats import _strided, _subbyte
from weightport.formats._apart import Places
from weightport.formats._flatbuffer import FlatBuffer, Table
from weightport.formats._io import ByteFile
from weightport.formats._lazy import LazySpecs
from weightport.formats._quantized import Affine
from weightport.tensors import Array, Budget, Extent, Index, TensorSpec, dtype_named

IDENTIFIER = b"TFL3"
#: TensorType -> numpy's or ml_dtypes' name.
DTYPES: dict[int, str] = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    5: "object",  # STRING
    6: "bool",
    7: "int16",
    8: "complex64",
    9: "int8",
    10: "float64",
    11: "complex128",
    12: "uint64",
    15: "uint32",
    16: "uint16",
    17: "int4",
    18: "bfloat16",
    19: "int2",
    20: "uint4",
}
_STRING = 5
_NOT_WEIGHTS = {"int32", "int64", "uint32", "uint64", "bool", "object"}
# Fields of Model, SubGraph, Tensor, Buffer, QuantizationParameters.
_SUBGRAPHS, _BUFFERS = 2, 4
_TENSORS, _GRAPH_NAME = 0, 4
_SHAPE, _TYPE, _BUFFER, _NAME, _QUANTIZATION, _SPARSITY, _EXTERNAL = 0, 1, 2, 3, 4, 6, 10
_DATA, _OFFSET, _SIZE = 0, 1, 2
_SCALE, _ZERO, _DETAILS, _AXIS = 2, 3, 4, 6


@dataclass(frozen=True, slots=True)
class _Place:
    """A constant: its Tensor table, and where its bytes lie."""

    table: int
    offset: int
    size: int


class TfliteSource:
    """An open ``.tflite`` model."""

    format = "tflite"

    def __init__(self, path: str, *, budget: Budget | None = None) -> None:
        self.path = path
        self._budget = budget or Budget()
        self._places: dict[str, _Place] = {}
        self._again: dict[str, int] = {}
        self._file = ByteFile(path)
        try:
            if self._file.size < 8 or self._file.read(4, 4) != IDENTIFIER:
                raise FormatError(path, "is no TensorFlow Lite model: it has no TFL3 at byte 4")
            self._buffer = FlatBuffer(self._file)
            self._read_tables()
        except BaseException:
            self._file.close()
            raise
        self._specs = LazySpecs(self._places, self._spec)

    def _read_tables(self) -> None:
        model = self._buffer.root()
        buffers, buffer_count = model.tables(_BUFFERS)
        graphs, graph_count = model.tables(_SUBGRAPHS)
        scopes: set[str] = set()
        for number in range(graph_count):
            graph = model.element(graphs, number)
            scope = "" if not number else graph.text(_GRAPH_NAME).strip("/") or f"subgraph_{number}"
            while number and scope in scopes:
                scope += "'"
                self._budget.name(len(scope), self._file.size, self.path)
            scopes.add(scope)
            tensors, count = graph.tables(_TENSORS)
            for index in range(count):
                self._budget.spend("header_bytes", 4, self.path)
                tensor = graph.element(tensors, index)
                place = self._place(model, tensor, buffers, buffer_count)
                if place is None:
                    continue
                own = tensor.text(_NAME) or f"tensor_{index}"
                name = f"{scope}/{own}" if scope else own
                if name in self._places:  # the format does not forbid it
                    name = self._another(name)
                self._budget.name(len(name), self._file.size, self.path)
                self._places[name] = place
                self._budget.check("tensors", len(self._places), self.path)
        apart = Places(self.path)
        for name, place in self._places.items():
            apart.add(place.offset, place.size, name)
        apart.check()

    def _another(self, name: str) -> str:
        """The name for a further tensor of a name that is taken: with a stroke, two, three ..."""
        strokes = self._again.get(name, 1)
        while (another := name + "'" * strokes) in self._places:
            strokes += 1
        self._again[name] = strokes + 1
        return another

    def _place(self, model: Table, tensor: Table, buffers: int, count: int) -> _Place | None:
        """Where a tensor's bytes lie; None if it has none: what is computed has not."""
        index = tensor.number(_BUFFER, 4)
        if tensor.number(_EXTERNAL, 4):
            return _Place(tensor.at, -1, 0)
        if index >= count:
            if count or index:
                raise FormatError(self.path, f"no buffer {index} in a model of {count}", offset=tensor.at)
            return None
        buffer = model.element(buffers, index)
        offset, size = buffer.vector(_DATA, 1)
        if not size:
            offset, size = buffer.number(_OFFSET, 8), buffer.number(_SIZE, 8)
            if offset <= 1:
                return None
        return _Place(tensor.at, offset, size) if size else None

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec of every constant, in the file's order. What is no weight has the role ``constant``."""
        return self._specs

    def _spec(self, name: str) -> TensorSpec:
        place = self._places[name]
        tensor = Table(self._buffer, place.table)
        begin, rank = tensor.vector(_SHAPE, 4)
        self._budget.check("rank", rank, self.path, tensor=name)
        shape = tuple(self._buffer.number(begin + 4 * axis, 4, signed=True) for axis in range(rank))
        number = tensor.number(_TYPE, 1)
        unread = "" if number in DTYPES else f"of the type {number}"
        if place.offset < 0:
            unread = "in another file"
        if tensor.field(_SPARSITY) is not None:
            unread = "a sparse tensor"
        dtype = np.dtype(object) if unread else dtype_named(DTYPES[number])
        nbytes = _strided.checked(dtype, shape, self._budget, self.path, name)
        if unread:
            return TensorSpec(dtype, shape, place.size, unread=unread)
        if number == _STRING:
            return TensorSpec(dtype, shape, place.size, "constant")
        stored = _subbyte.nbytes(dtype, shape)
        if stored != place.size:
            what = f"{place.size} bytes for {dtype.name}{list(shape)}, which needs {stored}"
            raise FormatError(self.path, what, tensor=name, offset=place.offset)
        spec = self._quantized(name, tensor, TensorSpec(dtype, shape, nbytes))
        arithmetic = spec.quantized is None and not spec.unread and (dtype.name in _NOT_WEIGHTS or not shape)
        return replace(spec, role="constant") if arithmetic else spec

    def _quantized(self, name: str, tensor: Table, spec: TensorSpec) -> TensorSpec:
        """The spec with what its QuantizationParameters say."""
        found = tensor.table(_QUANTIZATION)
        if found is None:
            return spec
        scales, count = found.vector(_SCALE, 4)
        if found.number(_DETAILS, 1):
            return replace(spec, unread="quantized in blocks")
        if not count:
            return spec
        axis = found.number(_AXIS, 4, signed=True)
        zeros, zero_count = found.vector(_ZERO, 8)
        along = count == 1 or (0 <= axis < len(spec.shape) and count == spec.shape[axis])
        if not along or zero_count not in (0, 1, count):
            what = f"{count} scales and {zero_count} zero points along axis {axis} of {list(spec.shape)}"
            raise FormatError(self.path, what, tensor=name, offset=scales)
        scale = np.frombuffer(self._file.read(scales, 4 * count), "<f4")
        zero = np.frombuffer(self._file.read(zeros, 8 * zero_count), "<i8") if zero_count else np.zeros(1, np.int64)
        return replace(spec, quantized=Affine(spec.shape, tuple(scale.tolist()), tuple(zero.tolist()), axis))

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out, as it is stored."""
        if name not in self._places:
            raise TensorNotFound(name, self._places, self.path)
        spec, place = self._specs[name], self._places[name]
        if spec.unread:
            raise FormatError(self.path, f"cannot be read: {spec.unread}", tensor=name)
        cuts = _strided.bounds(index, spec.shape, f"{self.path}: tensor {name!r}")
        if spec.dtype.kind == "O":
            whole = self._strings(name, place, spec.shape)
            return np.array(whole[_strided.as_slices(cuts)], object).reshape(_strided.counts(cuts))
        return _subbyte.read_part(self._file, place.offset, spec.dtype, spec.shape, cuts, tensor=name)

    def _strings(self, name: str, place: _Place, shape: tuple[int, ...]) -> Array:
        """A count, the offsets of the strings and of their end, the bytes."""
        data = self._file.read(place.offset, place.size, tensor=name)
        total = prod(shape)
        if len(data) < 4 * (total + 2) or int.from_bytes(data[:4], "little") != total:
            what = f"{len(data)} bytes of strings for the shape {list(shape)}"
            raise FormatError(self.path, what, tensor=name, offset=place.offset)
        ends = np.frombuffer(data, "<i4", total + 1, 4).tolist()
        if ends[0] < 4 * (total + 2) or sorted(ends) != ends or ends[-1] > len(data):
            raise FormatError(self.path, "the offsets of its strings are in disorder", tensor=name, offset=place.offset)
        out = np.empty(total, object)
        out[:] = [data[a:b] for a, b in itertools.pairwise(ends)]
        return out.reshape(shape)

    def extent(self, name: str) -> Extent | None:
        """Where a tensor lies; None for text, and for what is packed or cannot be read.

        Raises:
            TensorNotFound: no such name.
            FormatError: the file is too short.
        """
        if name not in self._places:
            raise TensorNotFound(name, self._places, self.path)
        spec, place = self._specs[name], self._places[name]
        if spec.unread or spec.dtype.kind == "O" or spec.dtype.name in _subbyte.BITS:
            return None
        self._file.check(place.offset, spec.nbytes, tensor=name)
        return Extent(self.path, place.offset, spec.nbytes)

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing."""
        return {}

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> TfliteSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sniff(path: str) -> bool:
    """Whether the file has the identifier of TensorFlow Lite."""
    try:
        with ByteFile(path) as file:
            return file.size >= 8 and file.read(4, 4) == IDENTIFIER
    except FormatError:
        return False


def open_source(path: str, *, budget: Budget | None = None) -> TfliteSource:
    """Open a ``.tflite`` model.

    Raises:
        FormatError: truncated, malformed, or no TensorFlow Lite model.
    """
    return TfliteSource(path, budget=budget)
