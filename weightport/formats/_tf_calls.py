"""Which functions the nodes of a graph name, in whatever attribute, and how to let one name another.

Source: ``NameAttrList`` in tensorflow/core/framework/attr_value.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weightport.formats._message import Field, Message, fields_of
from weightport.formats._proto import BYTES, Memory
from weightport.formats._tf_edit import BodyEdits, map_key
from weightport.formats.tf_graph import Body, GraphDef, Node

# An attribute that names functions is no larger than their names and their own attributes.
_FUNCTION_ATTR = 1 << 20


def function_attrs(graph: GraphDef, node: Node) -> Iterator[tuple[str, int, str]]:
    """Every function that an attribute of a node names: attribute, which of several, function."""
    for found in fields_of(graph.file, node.start, node.end):
        if found.number != 5 or found.wire != BYTES or found.size > _FUNCTION_ATTR:
            continue
        key = map_key(found)
        for number, name in enumerate(_names_in(found)):
            yield key, number, name


def _names_in(entry: Field) -> Iterator[str]:
    """The names of the functions in an entry of the map of attributes."""
    for value in _inside([entry], 2):
        for function in [*_inside([value], 10), *_inside(_inside([value], 1), 9)]:
            name = b""
            for inner in _inside([function], 1):
                name = inner.read()
            yield name.decode("utf-8", "backslashreplace")


def _inside(messages: Iterable[Field], number: int) -> Iterator[Field]:
    for message in messages:
        for found in fields_of(message.file, message.value, message.end):
            if found.number == number and found.wire == BYTES:
                yield found


def call_sites(graph: GraphDef, body: Body) -> Iterator[tuple[str, str, int, str]]:
    """Every use of a function by a node of a body: node, attribute, which of several, function."""
    for node in body.nodes.values():
        if node.op in graph.functions:
            yield node.name, "", 0, node.op
        elif node.op != "Const":
            for attr, number, function in function_attrs(graph, node):
                yield node.name, attr, number, function


def rename_call(graph: GraphDef, edits: BodyEdits, site: tuple[str, str, int], name: str) -> None:
    """Let a caller (node, attribute, which of several) call the function of that name."""
    node, attr, number = site
    edit = edits.edit(node)
    if not attr:
        edit.becomes(name)
        return
    value = edit.attrs.get(attr)
    if value is None:
        (entry,) = [f for f in _inside_node(graph, edit.node) if map_key(f) == attr][-1:]
        content = b"".join(inner.read() for inner in _inside([entry], 2))
    else:
        content = bytes(value)
    edit.attrs[attr] = _renamed(content, number, name, graph.path)


def _inside_node(graph: GraphDef, node: Node) -> Iterator[Field]:
    for found in fields_of(graph.file, node.start, node.end):
        if found.number == 5 and found.wire == BYTES:
            yield found


def _renamed(content: bytes, number: int, name: str, path: str) -> Message:
    """An AttrValue with one function, or a list of them, of which one has another name."""
    file, out, count = Memory(content, path), Message(), 0
    for found in fields_of(file, 0, file.size):
        if found.number == 10:
            out.bytes_field(10, _with_name(found, name))
        elif found.number == 1:
            inner = Message()
            for function in fields_of(file, found.value, found.end):
                if function.number == 9 and function.wire == BYTES:
                    changed = count == number
                    count += 1
                    if changed:
                        inner.bytes_field(9, _with_name(function, name))
                        continue
                inner.copied(function)
            out.bytes_field(1, inner)
        else:
            out.copied(found)
    return out


def _with_name(function: Field, name: str) -> Message:
    out = Message().bytes_field(1, name.encode())
    for found in fields_of(function.file, function.value, function.end):
        if found.number != 1:
            out.copied(found)
    return out
