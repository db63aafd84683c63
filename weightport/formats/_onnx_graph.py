"""ONNX models as their files hold them: graphs, functions and subgraphs, their nodes and constants.

Promise: opening reads names, operations and inputs by positional reads; the bytes of constants are passed over, so that
a file of gigabytes, also beyond protobuf's 2 GiB, opens in the time its structure takes. Limit: weights that a node
holds as an attribute of another kind (the coefficients of ``ai.onnx.ml``'s operators) are not listed.

Source: onnx/onnx.proto.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from weightport.errors import FormatError
from weightport.formats._onnx_tensor import NAME, Parts, fields_of
from weightport.formats._proto import BYTES, VARINT, Readable, Window, fields, signed, spans
from weightport.tensors import Budget

#: The domains of ONNX's own operators.
OWN = ("", "ai.onnx")
#: Operators that are RNN cells.
CELLS = ("LSTM", "GRU", "RNN")
#: Operators that compute a value from others without mixing its numbers with any.
MOVERS = ("Identity", "Transpose", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Cast", "Split")
# Fields: of ModelProto, GraphProto, FunctionProto, NodeProto, AttributeProto, TrainingInfoProto.
_PRODUCER, GRAPH, _METADATA, _TRAINING, _FUNCTIONS = 2, 7, 14, 20, 25
NODE, INITIALIZER, _INPUT, SPARSE = 1, 5, 11, 15
_FUNCTION_NODE, _FUNCTION_DOMAIN, _OVERLOAD = 7, 10, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _OP, ATTRIBUTE, _DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _TENSOR, _GRAPH, _GRAPHS, _SPARSE = 1, 5, 6, 11, 22
#: AttributeProto's fields of plain values, by the attributes of a Constant node: field, dtype, whether it is a list.
LITERALS = {
    "value_float": (2, "float32", False),
    "value_int": (3, "int64", False),
    "value_string": (4, "object", False),
    "value_floats": (7, "float32", True),
    "value_ints": (8, "int64", True),
    "value_strings": (9, "object", True),
}

# What stands before a graph in an attribute: the keys of these two fields.
_GRAPH_KEYS = (bytes([_GRAPH << 3 | BYTES]), bytes([_GRAPHS << 3 | BYTES]))
# A node up to this size is read whole; a larger one holds a constant or a subgraph.
_SMALL = 16 * 1024
_LONGEST = 1 << 16


@dataclass(slots=True)
class Node:
    """A node. Its attributes, by name, stay in the file."""

    name: str = ""
    op: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that stands in the file.

    Attributes:
        parts: the TensorProto; or the SparseTensorProto, or the AttributeProto, whose name is ``kind``.
        kind: empty, ``sparse``, or a key of :data:`LITERALS`.
        initializer: of a graph, not a Constant node.
        above: the messages that hold it, from the outermost on; the constant's own is not among them.
    """

    body: Body
    value: str
    parts: Parts
    kind: str = ""
    initializer: bool = True
    above: Parts = ()


@dataclass(slots=True, eq=False)
class Body:
    """A graph or a function.

    Attributes:
        scope: stands before the names in it; empty for the main graph.
        outer: the graph that a subgraph stands in, whose values it may use.
        cells: its nodes of :data:`CELLS`.
        movers: where its nodes of :data:`MOVERS` lie; they are many, and only sometimes looked at.
    """

    scope: str
    outer: Body | None = None
    cells: list[Node] = field(default_factory=list)
    movers: list[tuple[int, int]] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    arguments: set[str] = field(default_factory=set)
    labels: Counter[str] = field(default_factory=Counter)

    def title(self, name: str) -> str:
        """The name of something in it, as users see it."""
        return f"{self.scope}/{name}" if self.scope else name

    def label(self, node: Node) -> str:
        """What a node is called, which has no name of its own: its operation, numbered."""
        number = self.labels[node.op]
        self.labels[node.op] += 1
        return f"{node.op}_{number}" if number else node.op


class Model:
    """The ModelProto that is a file's content.

    Attributes:
        producer: who wrote it: ``pytorch``, ``tf2onnx``.
        metadata: the first hundred of its ``metadata_props``.

    Raises:
        FormatError: malformed, or no model with a graph.
    """

    def __init__(self, file: Readable, budget: Budget) -> None:
        self.file, self.budget = file, budget
        self.bodies: list[Body] = []
        self.producer = ""
        self.metadata: dict[str, str] = {}
        graph: list[tuple[int, int]] = []
        functions, trainings = [], []
        for number, wire, value, size in spans(file, 0, file.size):
            if wire == BYTES and number == GRAPH:
                graph.append((value, value + size))
            elif wire == BYTES and number == _PRODUCER:
                self.producer = self._text(value, size)
            elif wire == BYTES and number == _METADATA and size < 1 << 16 and len(self.metadata) < 100:
                pair = {n: (v, s) for n, w, v, s in spans(file, value, value + size) if w == BYTES}
                if 1 in pair and 2 in pair:
                    self.metadata[self._text(*pair[1])] = self._text(*pair[2])
            elif wire == BYTES and number == _FUNCTIONS:
                functions.append((value, value + size))
            elif wire == BYTES and number == _TRAINING:
                trainings.append((value, value + size))
        if not graph:
            raise FormatError(file.path, "is no ONNX model: it has no graph")
        self._graph(tuple(graph), Body(""), ())
        for start, end in functions:
            self._function(start, end)
        for count, (start, end) in enumerate(trainings):
            for number, wire, value, size in spans(file, start, end):
                if wire == BYTES and number in (1, 2):
                    title = f"training_{count}/{'initialization' if number == 1 else 'algorithm'}"
                    self._graph(((value, value + size),), Body(title), ((start, end),))

    # Graphs ----------------------------------------------------------------------------------------------------------

    def _graph(self, parts: Parts, body: Body, above: Parts) -> None:
        self.bodies.append(body)
        self.budget.check("depth", len(above), self.file.path)
        for number, wire, value, size in fields_of(self.file, parts):
            if wire != BYTES:
                continue
            inside = (*above, self._holder(parts, value))
            if number == NODE:
                self._node(body, value, value + size, inside)
            elif number == INITIALIZER:
                name = self._text_of(value, value + size, NAME)
                self._add(body, Constant(body, name, ((value, value + size),), above=inside), value)
            elif number == SPARSE:
                name = self._sparse_name(value, value + size)
                self._add(body, Constant(body, name, ((value, value + size),), "sparse", above=inside), value)
            elif number == _INPUT:
                body.arguments.add(self._text_of(value, value + size, 1))

    @staticmethod
    def _holder(parts: Parts, at: int) -> tuple[int, int]:
        return next(p for p in parts if p[0] <= at <= p[1])

    def _function(self, start: int, end: int) -> None:
        texts = {number: self._text_of(start, end, number) for number in (1, _FUNCTION_DOMAIN, _OVERLOAD)}
        taken = {body.scope for body in self.bodies}
        scope = texts[1].strip("/") or "function"
        for more in (texts[_FUNCTION_DOMAIN], texts[_OVERLOAD]):
            if scope in taken and more:
                scope = f"{scope}.{more}"
        while scope in taken:
            scope += "'"
        body = Body(scope)
        self.bodies.append(body)
        for number, wire, value, size in spans(self.file, start, end):
            if wire == BYTES and number == _FUNCTION_NODE:
                self._node(body, value, value + size, ((start, end),))
            elif wire == BYTES and number == 4:
                body.arguments.add(self._text(value, size))

    def _add(self, body: Body, constant: Constant, at: int) -> None:
        if constant.value in body.constants:
            raise FormatError(self.file.path, f"two constants are named {body.title(constant.value)!r}", offset=at)
        body.constants[constant.value] = constant
        self.budget.spend("tensors", 1, self.file.path)

    # Nodes -----------------------------------------------------------------------------------------------------------

    def _node(self, body: Body, start: int, end: int, above: Parts) -> None:
        self.budget.spend("header_bytes", min(end - start, _SMALL), self.file.path)
        if end - start <= _SMALL:
            op, own, holds = self._skimmed(start, end)
            if own and op in MOVERS:
                body.movers.append((start, end))
            if not holds and not (own and (op in CELLS or op == "Constant")):
                return
        node = self.node(start, end)
        inside = (*above, (start, end))
        if node.op == "Constant" and node.domain in OWN:
            self._constant(body, node, inside)
            return
        if node.op in CELLS and node.domain in OWN:
            body.cells.append(node)
        self._subgraphs(body, node, inside)

    def _skimmed(self, start: int, end: int) -> tuple[str, bool, bool]:
        """A small node's operator, whether it is ONNX's own, and whether an attribute may hold a graph."""
        op, domain, holds = b"", b"", False
        for number, wire, value in fields(self.file.read(start, end - start), self.file.path, start):
            if wire == BYTES and isinstance(value, bytes):
                if number == _OP:
                    op = value
                elif number == _DOMAIN:
                    domain = value
                elif number == ATTRIBUTE:
                    holds = holds or any(key in value for key in _GRAPH_KEYS)
        return op.decode("utf-8", "backslashreplace"), domain.decode("utf-8", "backslashreplace") in OWN, holds

    def node(self, start: int, end: int) -> Node:
        """The node that lies there."""
        file = Window(self.file, start, end) if end - start <= _SMALL else self.file
        node = Node()
        for number, wire, value, size in spans(file, start, end):
            if wire != BYTES:
                continue
            if number == ATTRIBUTE:
                node.attributes[self._text_of(value, value + size, _ATTRIBUTE_NAME, file)] = (value, value + size)
                continue
            if number not in (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _OP, _DOMAIN):
                continue
            text = self._text(value, size, file)
            if number == _NODE_INPUT:
                node.inputs.append(text)
            elif number == _NODE_OUTPUT:
                node.outputs.append(text)
            elif number == _NODE_NAME:
                node.name = "/".join(filter(None, text.split("/")))
            elif number == _OP:
                node.op = text
            else:
                node.domain = text
        return node

    def _constant(self, body: Body, node: Node, above: Parts) -> None:
        if not node.outputs or not node.outputs[0]:
            return
        value = node.outputs[0]
        for name, (start, end) in node.attributes.items():
            inside = (*above, (start, end))
            if name in LITERALS:
                self._add(body, Constant(body, value, ((start, end),), name, False, above), start)
            elif name in ("value", "sparse_value"):
                number = _TENSOR if name == "value" else _SPARSE
                parts = tuple(
                    (at, at + size)
                    for n, wire, at, size in spans(self.file, start, end)
                    if n == number and wire == BYTES
                )
                if parts:
                    kind = "" if name == "value" else "sparse"
                    self._add(body, Constant(body, value, parts, kind, False, inside), start)

    def _subgraphs(self, body: Body, node: Node, above: Parts) -> None:
        label = node.name
        for name, (start, end) in node.attributes.items():
            merged: list[tuple[int, int]] = []
            graphs: list[Parts] = []
            for number, wire, value, size in spans(self.file, start, end):
                if wire == BYTES and number == _GRAPH:
                    merged.append((value, value + size))
                elif wire == BYTES and number == _GRAPHS:
                    graphs.append(((value, value + size),))
            if not merged and not graphs:
                continue
            label = label or body.label(node)
            titles = itertools.chain([name] if merged else [], (f"{name}_{n}" for n in range(len(graphs))))
            for title, parts in zip(titles, [*([tuple(merged)] if merged else []), *graphs], strict=True):
                self._graph(parts, Body(body.title(f"{label}/{title}"), body), (*above, (start, end)))

    # Text ------------------------------------------------------------------------------------------------------------

    def _text(self, start: int, size: int, file: Readable | None = None) -> str:
        if size > _LONGEST:
            raise FormatError(self.file.path, f"a name of {size:,} bytes", offset=start)
        return (file or self.file).read(start, size).decode("utf-8", "backslashreplace")

    def _text_of(self, start: int, end: int, number: int, file: Readable | None = None) -> str:
        """A string field of a message; the last one counts."""
        found = ""
        for field_number, wire, value, size in spans(file or self.file, start, end):
            if field_number == number and wire == BYTES:
                found = self._text(value, size, file)
        return found

    def _sparse_name(self, start: int, end: int) -> str:
        """A sparse tensor is named by its values."""
        found = ""
        for number, wire, value, size in spans(self.file, start, end):
            if number == 1 and wire == BYTES:
                found = self._text_of(value, value + size, NAME) or found
        return found


# Attributes ----------------------------------------------------------------------------------------------------------


def integer(file: Readable, node: Node, name: str, default: int) -> int:
    """An attribute that is an integer."""
    found = default
    for number, wire, value, _ in _attribute(file, node, name):
        if number == 3 and wire == VARINT:
            found = signed(value)
    return found


def text(file: Readable, node: Node, name: str, default: str) -> str:
    """An attribute that is a string."""
    found = default
    for number, wire, value, size in _attribute(file, node, name):
        if number == 4 and wire == BYTES and size <= _LONGEST:
            found = file.read(value, size).decode("utf-8", "backslashreplace")
    return found


def texts(file: Readable, node: Node, name: str) -> list[str]:
    """An attribute that is a list of strings."""
    return [
        file.read(value, size).decode("utf-8", "backslashreplace")
        for number, wire, value, size in _attribute(file, node, name)
        if number == 9 and wire == BYTES and size <= _LONGEST
    ]


def pieces(file: Readable, node: Node, name: str, field_number: int) -> list[tuple[int, int, int]]:
    """The fields of that number in an attribute: ``(wire type, value or offset, size)``."""
    return [(w, v, s) for n, w, v, s in _attribute(file, node, name) if n == field_number]


def _attribute(file: Readable, node: Node, name: str) -> Iterator[tuple[int, int, int, int]]:
    span = node.attributes.get(name)
    return spans(file, *span) if span else iter(())
