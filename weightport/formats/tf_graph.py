"""TensorFlow graphs as their files hold them: nodes, inputs and attributes of the main graph and of its functions.

Promise: opening reads the names, operations and inputs of the nodes by positional reads; the bytes of constants are
passed over, so that a file of gigabytes opens in the time its structure takes. Nothing is executed, nothing imported.
Limit: the functions of graphs before TensorFlow 0.12 (``FunctionDef.node``) are not looked into; text is held in
memory whole (:mod:`~weightport.formats.tf_pbtxt`).

Sources: tensorflow/core/framework/{graph,node_def,attr_value,function,op_def}.proto, tensorflow/core/protobuf/
{meta_graph,saved_model}.proto.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from weightport.errors import FormatError
from weightport.formats import tf_pbtxt
from weightport.formats._io import ByteFile
from weightport.formats._proto import BYTES, FIXED32, VARINT, Memory, Readable, fields, signed, spans, varint
from weightport.formats._tensorproto import TensorProtoRef
from weightport.tensors import Budget

Opened = TypeVar("Opened")
#: Operations that hold a variable, whose value is not in the graph.
VARIABLES = {"Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable"}

# A node up to this size is read whole; a larger one holds a constant that is passed over.
_SMALL = 16 * 1024
_OP = re.compile(rb"[A-Za-z_][A-Za-z0-9_.>\\/-]*")
# Fields that are looked at before a file is said to be something else.
_LOOK = 64


@dataclass(slots=True)
class Node:
    """A node: its attributes and a constant's values stay in the file, at ``start:end``."""

    name: str
    op: str
    inputs: list[str]
    start: int
    end: int


@dataclass(slots=True)
class Body:
    """The main graph (its name is empty) or a function: its arguments by name, and the inputs that are its results."""

    name: str
    nodes: dict[str, Node] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    #: of a function: its place in the file
    start: int = 0
    end: int = 0

    def title(self, node: str) -> str:
        """A node's name as users see it: a function's stand under the function's name."""
        return f"{self.name}/{node}" if self.name else node


@dataclass(frozen=True, slots=True)
class Attr:
    """An AttrValue: which of its fields is set, and the number, or the byte range of what is no number."""

    field: int
    value: int
    size: int


class GraphDef:
    """The graph that lies at ``start:end`` of a file."""

    def __init__(self, file: Readable, start: int, end: int, *, budget: Budget | None = None) -> None:
        self.file, self.path = file, file.path
        self.budget = Budget() if budget is None else budget
        self.main = Body("")
        self.functions: dict[str, Body] = {}
        self._refs: dict[int, TensorProtoRef] = {}
        for number, wire, value, size in spans(file, start, end):
            if number == 1 and wire == BYTES:
                self._add(self.main, value, size)
            elif number == 2 and wire == BYTES:
                for inner, kind, at, length in spans(file, value, value + size):
                    if inner == 1 and kind == BYTES:
                        self._add_function(at, length)

    def bodies(self) -> Iterator[Body]:
        """The main graph, then the functions."""
        yield self.main
        yield from self.functions.values()

    def _add(self, body: Body, start: int, size: int) -> None:
        node = _node(self.file, start, size)
        if node.name in body.nodes:
            raise FormatError(self.path, f"two nodes are named {body.title(node.name)!r}", offset=start)
        body.nodes[node.name] = node
        self.budget.spend("header_bytes", min(size, _SMALL), self.path)

    def _add_function(self, start: int, size: int) -> None:
        body = Body("", start=start, end=start + size)
        returned: dict[str, str] = {}
        for number, wire, value, length in spans(self.file, start, start + size):
            if number == 1 and wire == BYTES:
                for inner, kind, at, extent in spans(self.file, value, value + length):
                    if inner == 1 and kind == BYTES:
                        body.name = text(self.file, at, extent)
                    elif inner == 2 and kind == BYTES:
                        body.arguments.append(_first_text(self.file, at, extent))
                    elif inner == 3 and kind == BYTES:
                        body.results.append(_first_text(self.file, at, extent))
            elif number == 3 and wire == BYTES:
                self._add(body, value, length)
            elif number == 4 and wire == BYTES:
                pair = {
                    n: text(self.file, at, e) for n, w, at, e in spans(self.file, value, value + length) if w == BYTES
                }
                returned[pair.get(1, "")] = pair.get(2, "")
        body.results = [returned.get(name, "") for name in body.results]
        if body.name in self.functions:
            raise FormatError(self.path, f"two functions are named {body.name!r}", offset=start)
        self.functions[body.name] = body

    # Attributes ------------------------------------------------------------------------------------------------------

    def attr(self, node: Node, key: str) -> Attr | None:
        """An attribute of a node; the last one of that name counts."""
        found = None
        wanted = key.encode()
        for number, wire, value, size in spans(self.file, node.start, node.end):
            if number != 5 or wire != BYTES:
                continue
            matches, content = False, None
            for inner, kind, at, length in spans(self.file, value, value + size):
                if inner == 1 and kind == BYTES:
                    matches = length == len(wanted) and self.file.read(at, length) == wanted
                elif inner == 2 and kind == BYTES:
                    content = (at, length)
            if matches and content:
                found = None
                for inner, kind, at, length in spans(self.file, content[0], sum(content)):
                    if kind in (VARINT, FIXED32, BYTES):
                        found = Attr(inner, at, length)
        return found

    def attr_number(self, node: Node, key: str) -> int | None:
        """An attribute that is an integer, a dtype or a truth value."""
        found = self.attr(node, key)
        return signed(found.value) if found and found.field in (3, 5, 6) else None

    def attr_float(self, node: Node, key: str) -> float | None:
        """An attribute that is a float."""
        found = self.attr(node, key)
        if found is None or found.field != 4:
            return None
        value: float = struct.unpack("<f", found.value.to_bytes(8, "little")[:4])[0]
        return value

    def attr_text(self, node: Node, key: str) -> str | None:
        """An attribute that is a string."""
        found = self.attr(node, key)
        return text(self.file, found.value, found.size) if found and found.field == 2 else None

    def attr_shape(self, node: Node, key: str) -> tuple[int, ...] | None:
        """An attribute that is a shape; None where a dimension or the rank is not known."""
        found = self.attr(node, key)
        if found is None or found.field != 7:
            return None
        shape = []
        for number, wire, value, size in spans(self.file, found.value, found.value + found.size):
            if number == 2 and wire == BYTES:
                dims = [signed(v) for n, w, v, _ in spans(self.file, value, value + size) if n == 1 and w == VARINT]
                shape.append(dims[-1] if dims else 0)
            elif number == 3 and value:
                return None
        return None if any(dim < 0 for dim in shape) else tuple(shape)

    def callees(self, node: Node) -> dict[str, str]:
        """The functions that a node's attributes name: attribute -> function."""
        found = {}
        for number, wire, value, size in spans(self.file, node.start, node.end):
            if number != 5 or wire != BYTES or size > _SMALL:
                continue
            key, name = "", ""
            for inner, kind, content in fields(self.file.read(value, size), self.path):
                if inner == 1 and isinstance(content, bytes):
                    key = content.decode("utf-8", "backslashreplace")
                elif inner == 2 and kind == BYTES and isinstance(content, bytes):
                    for which, _, func in fields(content, self.path):
                        if which == 10 and isinstance(func, bytes):
                            name = _first_text(Memory(func, self.path), 0, len(func))
            if name in self.functions:
                found[key] = name
        return found

    def const(self, node: Node, title: str) -> TensorProtoRef:
        """Where the values of a Const lie."""
        ref = self._refs.get(node.start)
        if ref is None:
            found = self.attr(node, "value")
            if found is None or found.field != 8:
                raise FormatError(self.path, "a constant without a value", tensor=title, offset=node.start)
            start, end = found.value, found.value + found.size
            ref = TensorProtoRef.parse(self.file, start, end, name=title, budget=self.budget)
            self._refs[node.start] = ref
        return ref


def reference(name: str) -> tuple[str, int]:
    """Node and output of an input: ``a``, ``a:1``, or in a function ``a:output:1``. Control inputs are not for here."""
    node, colon, rest = name.partition(":")
    if not colon:
        return node, 0
    number = rest.rpartition(":")[2]
    return node, int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0


def text(file: Readable, start: int, size: int) -> str:
    """A string field; what is no UTF-8 is escaped. Names beyond 64 KiB are no names."""
    if size > 1 << 16:
        raise FormatError(file.path, f"a name of {size:,} bytes", offset=start)
    return file.read(start, size).decode("utf-8", "backslashreplace")


def _first_text(file: Readable, start: int, size: int) -> str:
    found = ""
    for number, wire, value, length in spans(file, start, start + size):
        if number == 1 and wire == BYTES:
            found = text(file, value, length)
    return found


def _node(file: Readable, start: int, size: int) -> Node:
    name, op = b"", b""
    inputs: list[str] = []
    if size > _SMALL:
        for number, wire, value, length in spans(file, start, start + size):
            if wire == BYTES and number in (1, 2, 3):
                content = text(file, value, length)
                if number == 1:
                    name = content.encode()
                elif number == 2:
                    op = content.encode()
                else:
                    inputs.append(content)
        return Node(name.decode(), op.decode(), inputs, start, start + size)
    # Graphs have a hundred thousand nodes, nearly all of them small: only the three fields that are needed are cut out.
    data = file.read(start, size)
    position = 0
    while position < size:
        at = position
        key = data[position]
        position += 1
        if key >= 0x80:
            key, position = varint(data, at, size, file.path, start)
        wire = key & 7
        if wire == BYTES:
            if position < size and data[position] < 0x80:
                length = data[position]
                position += 1
            else:
                length, position = varint(data, position, size, file.path, start)
            after = position + length
            if key == 10:
                name = data[position:after]
            elif key == 18:
                op = data[position:after]
            elif key == 26:
                inputs.append(data[position:after].decode("utf-8", "backslashreplace"))
            position = after
        elif wire == VARINT:
            _, position = varint(data, position, size, file.path, start)
        elif wire in (1, FIXED32):
            position += 8 if wire == 1 else 4
        else:
            raise FormatError(file.path, f"unknown wire type {wire}", offset=start + at)
        if position > size or not key >> 3:
            raise FormatError(file.path, "a node is cut off or corrupt", offset=start + at)
    decoded = name.decode("utf-8", "backslashreplace")
    return Node(decoded, op.decode("utf-8", "backslashreplace"), inputs, start, start + size)


# Which message a file is -------------------------------------------------------------------------------------------


def kind_of(file: Readable) -> str | None:
    """``GraphDef``, ``MetaGraphDef`` or ``SavedModel``, told by the first fields; None for anything else."""
    try:
        return _kind(file, 0, file.size)
    except FormatError:
        return None


def _kind(file: Readable, start: int, end: int, depth: int = 0) -> str | None:
    for count, (number, wire, value, size) in enumerate(spans(file, start, end)):
        if count >= _LOOK or depth > 2:
            return None
        if number == 1 and wire == VARINT and depth == 0 and count == 0 and value < 1 << 31:
            continue  # SavedModel.saved_model_schema_version
        if number == 1 and wire == BYTES:
            if count == 0 and _is_node(file, value, size):
                return "GraphDef"
            if count == 0:
                continue  # MetaGraphDef.meta_info_def
            return None
        if number == 2 and wire == BYTES:
            # A SavedModel's MetaGraphDef, a MetaGraphDef's GraphDef, or the library of a GraphDef without nodes.
            inner = _kind(file, value, value + size, depth + 1) if size else None
            if inner == "MetaGraphDef" and depth == 0:
                return "SavedModel"
            if inner == "GraphDef":
                return "MetaGraphDef"
            if inner is None and count == 0 and _is_library(file, value, size):
                return "GraphDef"
            return None
        if count == 0 and number == 4 and wire == BYTES and size < 64 and depth == 0:
            return None
    return None


def _is_node(file: Readable, start: int, size: int) -> bool:
    """A NodeDef: a name, and an operation that looks like one."""
    name = False
    for count, (number, wire, value, length) in enumerate(spans(file, start, start + size)):
        if number == 1 and wire == BYTES and 0 < length < 4096:
            name = True
        elif number == 2 and wire == BYTES and 0 < length < 512:
            return name and _OP.fullmatch(file.read(value, length)) is not None
        elif count > 2 or wire != BYTES:
            return False
    return False


def _is_library(file: Readable, start: int, size: int) -> bool:
    for number, wire, value, length in spans(file, start, start + size):
        if number != 1 or wire != BYTES:
            return False
        for inner, kind, at, extent in spans(file, value, value + length):
            if inner == 3 and kind == BYTES:
                return _is_node(file, at, extent)
            if inner == 1 and kind == BYTES and extent:
                continue
            return False
    return False


def open_message(path: str, *, budget: Budget | None = None) -> tuple[str, Readable, ByteFile]:
    """The kind of message that a ``.pb`` or ``.pbtxt`` file holds, and its bytes; text becomes binary in memory.

    Returns:
        the kind, what to read from, and the open file (to close).

    Raises:
        FormatError: it is neither.
    """
    budget = Budget() if budget is None else budget
    file = ByteFile(path)
    try:
        kind = kind_of(file)
        if kind is not None:
            return kind, file, file
        kind = tf_pbtxt.kind_of(file)
        if kind is not None:
            budget.spend("header_bytes", file.size, path)
            data = tf_pbtxt.parse(file.read(0, file.size), kind, path, budget)
            return kind, Memory(data, path), file
        raise FormatError(path, "is no TensorFlow graph: neither GraphDef, MetaGraphDef nor SavedModel")
    except BaseException:
        file.close()
        raise


def opened(path: str, kind: str, make: Callable[..., Opened], *, budget: Budget | None = None) -> Opened:
    """What ``make(path, message, handle, budget=budget)`` makes of a file that holds a message of that kind.

    Raises:
        FormatError: it holds another, or is malformed.
    """
    found, file, handle = open_message(path, budget=budget)
    try:
        if found != kind:
            raise FormatError(path, f"is a {found}, not a {kind}")
        return make(path, file, handle, budget=budget)
    except BaseException:
        handle.close()
        raise


def sniff_kind(path: str) -> str | None:
    """The kind of message that a file holds, by its first bytes; None for anything else, or no file at all."""
    try:
        with ByteFile(path) as file:
            return kind_of(file) or tf_pbtxt.kind_of(file)
    except FormatError:
        return None
