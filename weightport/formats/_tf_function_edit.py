"""A FunctionDef that takes values where it took handles.

Promise: arguments, results and nodes that are not concerned stay as they are; of what the definition says about a
handle - its dtypes and shapes, which of them are the same resource - nothing is left.

Sources: tensorflow/core/framework/{function,op_def}.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from weightport.formats._message import Field, Message, fields_of
from weightport.formats._proto import BYTES, VARINT
from weightport.formats._tf_edit import BodyEdits, map_key, shape_proto, shapes_value
from weightport.formats.tf_graph import GraphDef

# Fields of a FunctionDef.
_SIGNATURE, _NODE, _RET, _ATTR, _ARG_ATTR, _RESOURCE_IDS = 1, 3, 4, 5, 7, 8
# Fields of an OpDef.
_NAME, _INPUT, _OUTPUT = 1, 2, 3
# Fields of an ArgDef: type, handle_data, experimental_full_type.
_TYPE, _HANDLE_DATA, _FULL_TYPE = 3, 7, 17
#: What an argument is called by who wrote the function; all else that is said of a handle is not true of a value.
_KEPT_ARG_ATTRS = ("_user_specified_name",)


class Value(Protocol):
    """What comes instead of a handle."""

    @property
    def number(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Returned:
    """The results that are values now, by their number; and outputs inside the function that have another name."""

    results: Mapping[int, Value]
    renamed: Mapping[str, str]


def rewritten(
    graph: GraphDef, edits: BodyEdits, name: str, arguments: Mapping[int, Value], returned: Returned
) -> Message:
    """The FunctionDef.

    Args:
        graph: where the function lies.
        edits: the changes to its nodes.
        name: what it is called from now on.
        arguments: number of an argument -> the value that it takes now.
        returned: its results.
    """
    out = Message()
    body = edits.body
    for found in fields_of(graph.file, body.start, body.end):
        if found.wire != BYTES:
            out.copied(found)
        elif found.number == _SIGNATURE:
            out.bytes_field(_SIGNATURE, _signature(found, name, arguments, returned.results))
        elif found.number == _NODE:
            edits.nodes(graph, _NODE, found, out)
        elif found.number == _RET:
            out.bytes_field(_RET, _ret(found, returned.renamed))
        elif found.number == _ATTR and map_key(found) == "_input_shapes":
            out.bytes_field(_ATTR, _input_shapes(found, arguments))
        elif found.number == _ARG_ATTR and _number_key(found) in arguments:
            out.bytes_field(_ARG_ATTR, _arg_attr(found, arguments[_number_key(found)]))
        elif found.number != _RESOURCE_IDS or _number_key(found) not in arguments:
            out.copied(found)
    return out


def _signature(signature: Field, name: str, arguments: Mapping[int, Value], results: Mapping[int, Value]) -> Message:
    out = Message()
    inputs = outputs = 0
    for found in fields_of(signature.file, signature.value, signature.end):
        if found.number == _NAME:
            out.bytes_field(_NAME, name.encode())
        elif found.number == _INPUT and found.wire == BYTES:
            out.bytes_field(_INPUT, _arg(found, arguments.get(inputs)))
            inputs += 1
        elif found.number == _OUTPUT and found.wire == BYTES:
            out.bytes_field(_OUTPUT, _arg(found, results.get(outputs)))
            outputs += 1
        else:
            out.copied(found)
    return out


def _arg(arg: Field, value: Value | None) -> Message:
    out = Message()
    for found in fields_of(arg.file, arg.value, arg.end):
        if value is None or found.number not in (_TYPE, _HANDLE_DATA, _FULL_TYPE):
            out.copied(found)
        elif found.number == _TYPE:
            out.number_field(_TYPE, value.number)
    return out


def _ret(entry: Field, renamed: Mapping[str, str]) -> Message:
    out = Message()
    for found in fields_of(entry.file, entry.value, entry.end):
        if found.number == 2 and found.wire == BYTES:
            text = found.read().decode("utf-8", "backslashreplace")
            out.bytes_field(2, renamed.get(text, text).encode())
        else:
            out.copied(found)
    return out


def _input_shapes(entry: Field, arguments: Mapping[int, Value]) -> Message:
    """The shapes of the arguments: that of a handle is none of a value."""
    out = Message()
    for found in fields_of(entry.file, entry.value, entry.end):
        if found.number != 2 or found.wire != BYTES:
            out.copied(found)
            continue
        value = Message()
        for inner in fields_of(found.file, found.value, found.end):
            if inner.number != 1 or inner.wire != BYTES:
                value.copied(inner)
                continue
            shapes, count = Message(), 0
            for shape in fields_of(inner.file, inner.value, inner.end):
                if shape.number != 7 or shape.wire != BYTES:
                    shapes.copied(shape)
                    continue
                if count in arguments:
                    shapes.bytes_field(7, shape_proto(arguments[count].shape))
                else:
                    shapes.copied(shape)
                count += 1
            value.bytes_field(1, shapes)
        out.bytes_field(2, value)
    return out


def _number_key(entry: Field) -> int:
    for found in fields_of(entry.file, entry.value, entry.end):
        if found.number == 1 and found.wire == VARINT:
            return found.value
    return 0


def _arg_attr(entry: Field, value: Value) -> Message:
    """What is said about an argument: its name stays, its shape is the value's."""
    out = Message()
    for found in fields_of(entry.file, entry.value, entry.end):
        if found.number != 2 or found.wire != BYTES:
            out.copied(found)
            continue
        attrs = Message()
        for attr in fields_of(found.file, found.value, found.end):
            if attr.number == 1 and attr.wire == BYTES and map_key(attr) in _KEPT_ARG_ATTRS:
                attrs.copied(attr)
        attrs.bytes_field(1, Message().bytes_field(1, b"_output_shapes").bytes_field(2, shapes_value([value.shape])))
        out.bytes_field(2, attrs)
    return out
