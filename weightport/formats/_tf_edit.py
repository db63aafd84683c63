"""A GraphDef with some of its nodes and functions changed; everything else stays as it stands in the file.

Promise: a node that is not changed keeps its bytes and its place; a changed one keeps its name, its device and the
attributes that are not spoken of. New nodes and functions come last. Nothing is checked here about what a change means.

Sources: tensorflow/core/framework/{graph,node_def,attr_value,function,op_def,tensor}.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from weightport.formats._message import Field, Message, fields_of
from weightport.formats._proto import BYTES, VARINT, fields, varint
from weightport.formats._table import put_varint
from weightport.formats.tf_graph import Body, GraphDef, Node, reference

#: An AttrValue, or None for an attribute that goes.
Attrs = dict[str, Message | None]


@dataclass(slots=True)
class Edit:
    """What becomes of a node.

    Attributes:
        attrs: AttrValues that are put in place of others or added.
        bare: no other attributes than those are left.
    """

    node: Node
    op: str
    inputs: list[str]
    attrs: Attrs = field(default_factory=dict)
    bare: bool = False

    def becomes(
        self,
        op: str,
        inputs: list[str] | None = None,
        attrs: Mapping[str, Message | None] | None = None,
        *,
        bare: bool = False,
    ) -> None:
        """Another operation under the same name."""
        self.op = op
        self.inputs = self.inputs if inputs is None else inputs
        self.attrs.update(attrs or {})
        self.bare = self.bare or bare


class BodyEdits:
    """The changes to the nodes of one body."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.edits: dict[str, Edit] = {}
        self.removed: set[str] = set()
        self._at = {node.start: node for node in body.nodes.values()}

    def edit(self, name: str) -> Edit:
        """The changes to a node, to add to."""
        found = self.edits.get(name)
        if found is None:
            node = self.body.nodes[name]
            found = self.edits[name] = Edit(node, node.op, list(node.inputs))
        return found

    def op(self, name: str) -> str:
        """The operation that a node is by now; empty for one that is gone, or is an argument."""
        if name in self.removed or name not in self.body.nodes:
            return ""
        found = self.edits.get(name)
        return self.body.nodes[name].op if found is None else found.op

    def inputs(self, name: str) -> list[str]:
        """The inputs that a node has by now."""
        if name in self.removed:
            return []
        found = self.edits.get(name)
        return self.body.nodes[name].inputs if found is None else found.inputs

    def nodes(self, graph: GraphDef, number: int, found: Field, message: Message) -> None:
        """Append the node of a field ``number`` as it is now."""
        node = self._at.get(found.value)
        if node is None or node.name in self.removed:
            return
        changed = self.edits.get(node.name)
        if changed is None:
            message.copied(found)
        else:
            message.bytes_field(number, rebuilt(graph, changed))

    def users(self) -> dict[str, list[str]]:
        """Node -> the nodes that take something of it or wait for it, as they are by now."""
        found: dict[str, list[str]] = {}
        for name in self.body.nodes:
            for given in self.inputs(name):
                found.setdefault(reference(given.removeprefix("^"))[0], []).append(name)
        return found


class GraphEdit:
    """A graph that is being changed."""

    def __init__(self, graph: GraphDef) -> None:
        self.graph = graph
        self.main = BodyEdits(graph.main)
        self._bodies: dict[str, BodyEdits] = {"": self.main}
        #: function -> what stands in its place
        self.functions: dict[str, Message] = {}
        self.new_functions: list[Message] = []
        self._new: dict[str, Message] = {}

    def body(self, body: Body) -> BodyEdits:
        """The changes to a body, to add to."""
        return self._bodies.setdefault(body.name, BodyEdits(body))

    def variant(self, body: Body) -> BodyEdits:
        """The changes to a function as a copy, to add to."""
        made = BodyEdits(body)
        for name, edit in self.body(body).edits.items():
            made.edits[name] = replace(edit, inputs=list(edit.inputs), attrs=dict(edit.attrs))
        return made

    def fresh(self, name: str) -> str:
        """A name of a node that is not taken."""
        made, count = name, 0
        while made in self.graph.main.nodes or made in self._new:
            count += 1
            made = f"{name}_{count}"
        return made

    def add_node(self, name: str, op: str, *, inputs: tuple[str, ...] = (), device: str = "", attrs: Attrs) -> None:
        """A new node at the end of the main graph."""
        message = Message().bytes_field(1, name.encode()).bytes_field(2, op.encode())
        for given in inputs:
            message.bytes_field(3, given.encode())
        if device:
            message.bytes_field(4, device.encode())
        self._new[name] = _with_attrs(message, attrs)

    def message(self, start: int, end: int) -> Message:
        """The GraphDef that lies at ``start:end``, as it is now."""
        out = Message()
        library = False
        everything = list(fields_of(self.graph.file, start, end))
        last = max((n for n, f in enumerate(everything) if f.number == 1 and f.wire == BYTES), default=-1)
        for count, found in enumerate(everything):
            if found.number == 1 and found.wire == BYTES:
                self.main.nodes(self.graph, 1, found, out)
            elif found.number == 2 and found.wire == BYTES and self._changes_functions():
                out.bytes_field(2, self._library(found, new=not library))
                library = True
            else:
                out.copied(found)
            if count == last:
                for node in self._new.values():
                    out.bytes_field(1, node)
        return out

    def _changes_functions(self) -> bool:
        return bool(self.functions or self.new_functions or len(self._bodies) > 1)

    def _library(self, found: Field, *, new: bool) -> Message:
        out = Message()
        functions = {body.start: name for name, body in self.graph.functions.items()}
        for inner in fields_of(found.file, found.value, found.end):
            name = functions.get(inner.value) if inner.number == 1 and inner.wire == BYTES else None
            if name in self.functions:
                out.bytes_field(1, self.functions[name])
            elif name in self._bodies:
                out.bytes_field(1, self._function(self._bodies[name]))
            else:
                out.copied(inner)
        for function in self.new_functions if new else ():
            out.bytes_field(1, function)
        return out

    def _function(self, edits: BodyEdits) -> Message:
        """A FunctionDef of which only nodes changed."""
        out = Message()
        for found in fields_of(self.graph.file, edits.body.start, edits.body.end):
            if found.number == 3 and found.wire == BYTES:
                edits.nodes(self.graph, 3, found, out)
            else:
                out.copied(found)
        return out


def rebuilt(graph: GraphDef, edit: Edit) -> Message:
    """A changed node's NodeDef."""
    out = Message()
    wrote_inputs = False
    attrs = dict(edit.attrs)
    changed = edit.op != edit.node.op
    for found in fields_of(graph.file, edit.node.start, edit.node.end):
        if found.number == 2:
            out.bytes_field(2, edit.op.encode())
            for given in edit.inputs:
                out.bytes_field(3, given.encode())
            wrote_inputs = True
        elif found.number == 3:
            continue
        elif found.number == 5 and found.wire == BYTES:
            key = map_key(found)
            if key in attrs:
                value = attrs.pop(key)
                if value is not None:
                    out.bytes_field(5, Message().bytes_field(1, key.encode()).bytes_field(2, value))
            elif not edit.bare:
                out.copied(found)
        elif found.number == 7 and changed:
            continue  # the full type of another operation's output
        else:
            out.copied(found)
    if not wrote_inputs:
        out.bytes_field(2, edit.op.encode())
    return _with_attrs(out, attrs)


def _with_attrs(message: Message, attrs: Mapping[str, Message | None]) -> Message:
    for key, value in attrs.items():
        if value is not None:
            message.bytes_field(5, Message().bytes_field(1, key.encode()).bytes_field(2, value))
    return message


def map_key(found: Field) -> str:
    """The key of an entry of a map with text for keys."""
    for inner in fields_of(found.file, found.value, found.end):
        if inner.number == 1 and inner.wire == BYTES:
            return inner.read().decode("utf-8", "backslashreplace")
    return ""


# AttrValues ----------------------------------------------------------------------------------------------------------


def type_value(number: int) -> Message:
    """An attribute that is a dtype."""
    return Message().number_field(6, number)


def number_value(number: int) -> Message:
    """An attribute that is an integer."""
    return Message().number_field(3, number)


def shape_proto(shape: tuple[int, ...]) -> Message:
    """A TensorShapeProto."""
    out = Message()
    for dim in shape:
        out.bytes_field(2, Message().number_field(1, dim) if dim else Message())
    return out


def shapes_value(shapes: list[tuple[int, ...]]) -> Message:
    """An attribute that is a list of shapes."""
    inner = Message()
    for shape in shapes:
        inner.bytes_field(7, shape_proto(shape))
    return Message().bytes_field(1, inner)


def tensor_value(number: int, shape: tuple[int, ...], content: Message) -> Message:
    """An attribute that is a tensor; ``content`` are the fields of its values."""
    proto = Message().number_field(1, number).bytes_field(2, shape_proto(shape)).add(content)
    return Message().bytes_field(8, proto)


def strings_value(values: list[bytes]) -> Message:
    """An attribute that is a vector of strings, as a tensor."""
    content = Message()
    for value in values:
        content.bytes_field(8, value)
    return tensor_value(7, (len(values),), content)


def const_true() -> Attrs:
    """The attributes of a constant that is true."""
    return {"dtype": type_value(10), "value": tensor_value(10, (), Message().bytes_field(11, b"\1"))}


def types_value(numbers: list[int]) -> Message:
    """An attribute that is a list of dtypes."""
    return Message().bytes_field(1, Message().bytes_field(6, b"".join(map(put_varint, numbers))) if numbers else b"")


def attr_types(graph: GraphDef, node: Node, key: str) -> list[int]:
    """The dtypes of an attribute that is a list of them."""
    numbers: list[int] = []
    found = graph.attr(node, key)
    if found is None or found.field != 1:
        return numbers
    for number, wire, value in fields(graph.file.read(found.value, found.size), graph.path, found.value):
        if number == 6 and wire == VARINT and isinstance(value, int):
            numbers.append(value)
        elif number == 6 and isinstance(value, bytes):
            numbers.extend(_packed(value, graph.path))
    return numbers


def _packed(data: bytes, path: object) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = varint(data, position, len(data), path)
        yield value
