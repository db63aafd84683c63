"""ONNX models: their initializers and Constant nodes as tensors, read without the onnx package.

Promise: opening reads the model's structure, not its values; a tensor, or a part of it, is read where it lies, in this
file or beneath its folder, in every encoding of the format; nothing is executed. What feeds an LSTM, GRU or RNN node is
named after the node, see :mod:`~weightport.formats._onnx_cells`; its own name leads to it too. A tensor inside a
subgraph is ``NODE/ATTRIBUTE/NAME``, inside a function ``FUNCTION/NAME``. Limit: sparse tensors are listed and cannot be
read; text has the type ``object``.

Weights are told from the arithmetic's constants by their type: integers of 32 and 64 bits, truth values and text are
sizes, indices and conditions; and so are single numbers that stand in a Constant node, or are integers, or scalars.
PyTorch's exporter leaves the literals of the arithmetic, and nothing else, in Constant nodes: in its files, these are
constants, unless an RNN node takes them for weights, and a scalar among the initializers is a weight.

The format has no checksums but those of external data, which are verified. What lies beside the model shares all of
its bytes or none: an overlap is an error once the first such tensor is read.

Source: onnx/onnx.proto.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from weightport.errors import Error, FormatError, TensorNotFound
from weightport.formats import _strided
from weightport.formats._apart import Places
from weightport.formats._io import ByteFile
from weightport.formats._lazy import LazySpecs
from weightport.formats._onnx_cells import Cells
from weightport.formats._onnx_external import ExternalFiles
from weightport.formats._onnx_graph import GRAPH, LITERALS, Constant, Model
from weightport.formats._onnx_tensor import STRING, TensorRef, fields_of, floats, integers, part
from weightport.formats._proto import BYTES, FIXED32, VARINT, signed, spans
from weightport.formats._subbyte import BITS
from weightport.tensors import Array, Budget, Extent, Index, TensorSpec

_NOT_WEIGHTS = {"int32", "int64", "bool", "object"}
# The fields of a ModelProto, and of a GraphProto, with their wire types.
_MODEL = {**dict.fromkeys((1, 5), VARINT), **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES)}
_IN_GRAPH = {1, 2, 5, 10, 11, 12, 13, 14, 15, 16}
_LOOK = 64


class OnnxSource:
    """An open ONNX model.

    Attributes:
        constants: name -> where the value lies.
        aliases: the file's own name of a tensor -> the name that it is listed under, where these differ.
    """

    format = "onnx"

    def __init__(self, path: str, *, budget: Budget | None = None) -> None:
        self.path = path
        self.budget = budget or Budget()
        self.file = ByteFile(path)
        self.others = ExternalFiles(path, self._refuse_overlaps)
        self._closed = False
        self._refs: dict[str, TensorRef] = {}
        self.constants: dict[str, Constant] = {}
        self.aliases: dict[str, str] = {}
        try:
            self.model = Model(self.file, self.budget)
            self.metadata = self.model.metadata
            self._cells = Cells(self.model)
            self._name()
        except BaseException:
            self.file.close()
            raise
        self._specs = LazySpecs(self.constants, self._spec)

    def _name(self) -> None:
        named = self._cells.names()
        self._cell_weights = named.keys()
        plain = []
        for body in self.model.bodies:
            for value, constant in body.constants.items():
                own = body.title(value)
                name = named.get((id(body), value), own)
                while name in self.constants:  # a value that is named like another's scope and name
                    name += "'"
                self.budget.name(len(name), self.file.size, self.path)
                self.constants[name] = constant
                plain.append((own, name))
        self.aliases = {own: name for own, name in plain if own not in self.constants}

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the file's order. What is no weight has the role ``constant``."""
        return self._specs

    def ref(self, name: str) -> TensorRef:
        """Where the values of a listed tensor lie, which must be neither sparse nor a literal."""
        found = self._refs.get(name)
        if found is None:
            parts = self.constants[name].parts
            found = self._refs[name] = TensorRef.parse(self.file, parts, title=name, budget=self.budget)
        return found

    def _spec(self, name: str) -> TensorSpec:
        constant = self.constants[name]
        if constant.kind == "sparse":
            return self._sparse(name, constant)
        if constant.kind:
            value = self._literal(name, constant)
            nbytes = value.nbytes if value.dtype != object else sum(map(len, value.reshape(-1)))
            spec = TensorSpec(value.dtype, value.shape, nbytes)
        else:
            spec = self.ref(name).spec("weight")
        if spec.unread or not self._arithmetic(constant, spec):
            return spec
        return TensorSpec(spec.dtype, spec.shape, spec.nbytes, "constant")

    def _arithmetic(self, constant: Constant, spec: TensorSpec) -> bool:
        """Whether a value is a size, an index or a literal, and no weight."""
        if spec.dtype.name in _NOT_WEIGHTS:
            return True
        pytorch = self.model.producer == "pytorch"
        if not constant.initializer:
            weight = (id(constant.body), constant.value) in self._cell_weights
            return not weight and (pytorch or prod(spec.shape) == 1)
        return not spec.shape and (spec.dtype.kind in "iu" or not pytorch)

    def _sparse(self, name: str, constant: Constant) -> TensorSpec:
        values: list[tuple[int, int]] = []
        shape: list[int] = []
        for number, wire, value, size in fields_of(self.file, constant.parts):
            if number == 1 and wire == BYTES:
                values.append((value, value + size))
            elif number == 3:
                shape += integers(self.file, [(wire, value, size)], self.budget.rank, name).tolist()
        ref = TensorRef.parse(self.file, tuple(values), title=name, budget=self.budget)
        dims = tuple(signed(dim) for dim in shape)
        _strided.checked(ref.dtype, dims, self.budget, self.path, name)
        return TensorSpec(ref.dtype, dims, ref.nbytes, unread="a sparse tensor")

    def _literal(self, name: str, constant: Constant) -> Array:
        """The value of a Constant node that is a plain number, a text, or a list of them."""
        field, dtype, several = LITERALS[constant.kind]
        found = [(w, v, s) for n, w, v, s in fields_of(self.file, constant.parts) if n == field]
        values: Array
        if dtype == "object":
            texts = [self.file.read(v, s, tensor=name) for w, v, s in found if w == BYTES]
            values = np.empty(len(texts), object)
            values[:] = texts
        elif dtype == "int64":
            values = integers(self.file, found, self.file.size, name).view(np.int64)
        else:
            pieces = found if several else [p for p in found if p[0] == FIXED32]
            values = floats(self.file, pieces, 4, name).astype(np.float32)
        if several:
            return values
        if not values.size:
            values = np.array([b"" if dtype == "object" else 0], dtype)
        return np.array(values[-1], dtype)

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out; a tensor's own name in the file does as well."""
        if self._closed:
            raise Error(f"{self.path}: is closed")
        name = name if name in self.constants else self.aliases.get(name, name)
        if name not in self.constants:
            raise TensorNotFound(name, self.constants, self.path)
        constant = self.constants[name]
        if constant.kind == "sparse":
            raise FormatError(self.path, "cannot be read: a sparse tensor", tensor=name)
        if constant.kind:
            value = self._literal(name, constant)
            return part(value, _strided.bounds(index, value.shape, f"{self.path}: tensor {name!r}"))
        return self.ref(name).read(self.file, self.others, index)

    def _refuse_overlaps(self) -> None:
        """Of all that lies beside the model."""
        locations: dict[str, int] = {}
        folder = os.path.dirname(self.path)
        places = Places(lambda number: os.path.join(folder, list(locations)[number]))
        for name, constant in self.constants.items():
            with contextlib.suppress(FormatError):  # which is an error of its own when it is read
                external = None if constant.kind else self.ref(name).external
                if external is not None:
                    location = posixpath.normpath(external.location.replace("\\", "/"))
                    file = locations.setdefault(location, len(locations))
                    places.add(external.offset, external.size, name, file)
        places.check()

    def extent(self, name: str) -> Extent | None:
        """Where a tensor's raw bytes lie; None if it has none, or if a checksum is to be verified before they are used.

        Raises:
            TensorNotFound: no such name.
            FormatError: the file is too short, or the one beside it is missing.
        """
        name = self.aliases.get(name, name)
        if name not in self.constants:
            raise TensorNotFound(name, self.constants, self.path)
        if self.constants[name].kind:
            return None
        ref = self.ref(name)
        plain = not ref.unread and ref.number != STRING and ref.dtype.name not in BITS
        if ref.external is not None and plain and not ref.external.checksum:
            file, offset = self.others.open(ref.external, name)
            return Extent(file.path, offset, ref.nbytes)
        return Extent(self.path, ref.raw[0], ref.nbytes) if ref.raw is not None and plain else None

    def checksum(self, name: str) -> str:
        """``sha1`` of what lies in a file beside the model and has a checksum."""
        constant = self.constants.get(self.aliases.get(name, name))
        external = None if constant is None or constant.kind else self.ref(self.aliases.get(name, name)).external
        return "sha1" if external is not None and external.checksum else ""

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the LSTM, GRU or RNN node that computes with these tensors says."""
        if self._closed:
            raise Error(f"{self.path}: is closed")
        places = [(id(c.body), c.value) for n in names if (c := self.constants.get(self.aliases.get(n, n)))]
        return self._cells.facts(places) if len(places) == len(names) else {}

    def files(self) -> list[str]:
        """The files of external data, in the order of their names.

        Raises:
            FormatError: one is not there, or leads out of the model's folder.
        """
        found = set()
        for name, constant in self.constants.items():
            if not constant.kind and (external := self.ref(name).external):
                found.add(self.others.beside(external.location, name))
        return sorted(found)

    def close(self) -> None:
        """Release the file handles."""
        self._closed = True
        self.others.close()
        self.file.close()

    def __enter__(self) -> OnnxSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sniff(path: str) -> bool:
    """Whether a file is a ModelProto: its fields are one's, with a version and a graph that has a graph's fields."""
    try:
        with ByteFile(path) as file:
            version, graph = False, None
            for number, wire, value, size in spans(file, 0, file.size):
                if _MODEL.get(number, wire) != wire:  # fields of a newer version may be there
                    return False
                version = version or number == 1
                if number == GRAPH and graph is None:
                    graph = (value, value + size)
            if graph is None or not version:
                return False
            known = False
            for number, wire, _, _ in itertools.islice(spans(file, *graph), _LOOK):
                if number in _IN_GRAPH and wire != BYTES:
                    return False
                known = known or number in _IN_GRAPH
            return known
    except FormatError:
        return False


def open_source(path: str, *, budget: Budget | None = None) -> OnnxSource:
    """Open an ONNX model.

    Raises:
        FormatError: truncated, malformed, or no ONNX model.
    """
    return OnnxSource(path, budget=budget)
