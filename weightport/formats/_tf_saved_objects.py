"""The graph of objects in a SavedModel of TensorFlow 2: which are variables, and variables that become constants.

Promise: an object is matched to its value in the checkpoint as TensorFlow's own loader does, by the names of the edges
from the root; every other object keeps its bytes.

Sources: tensorflow/core/protobuf/saved_object_graph.proto, tensorflow/python/saved_model/{load,save}.py (the loader
gives a ``SavedConstant`` the value of the ``Const`` of that name in the main graph).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from weightport.errors import FormatError
from weightport.formats._message import Field, Message, fields_of
from weightport.formats._proto import BYTES, VARINT, Readable, fields, signed, varint
from weightport.tensors import Budget

#: The field of a MetaGraphDef.
OBJECTS = 7
# Fields of a SavedObjectGraph.
_NODE, _CONCRETE = 1, 2
# Fields of a SavedObject, and of a SavedVariable those that say it is spread over devices.
_CHILD, _SLOT, _VARIABLE, _CONSTANT = 1, 3, 7, 9
_COMPONENTS = 8


@dataclass(slots=True)
class _Object:
    children: list[tuple[str, int]] = field(default_factory=list)
    #: a variable that is one whole
    variable: bool = False


class SavedObjects:
    """The object graph that lies at ``start:end`` of a file."""

    def __init__(self, file: Readable, start: int, end: int, budget: Budget) -> None:
        self._file, self._start, self._end = file, start, end
        self._objects: list[_Object] = []
        #: function -> the objects that it captures, which are its last arguments
        self.bound: dict[str, list[int]] = {}
        for found in fields_of(file, start, end):
            if found.number == _NODE and found.wire == BYTES:
                self._objects.append(_object(found))
                budget.check("tensors", len(self._objects), file.path)
            elif found.number == _CONCRETE and found.wire == BYTES:
                name, bound = _concrete(found)
                self.bound[name] = bound

    def variables(self, checkpoint: list[list[tuple[str, int]]]) -> dict[int, int]:
        """Object of the checkpoint -> variable that it is the value of, given the checkpoint's objects' children."""
        found: dict[int, int] = {}
        seen = {(0, 0)}
        todo = deque(seen if self._objects and checkpoint else ())
        while todo:
            mine, theirs = todo.popleft()
            if self._objects[mine].variable:
                found.setdefault(theirs, mine)
            stored = dict(checkpoint[theirs])
            for name, child in self._objects[mine].children:
                other = stored.get(name)
                if other is not None and 0 <= child < len(self._objects) and (child, other) not in seen:
                    seen.add((child, other))
                    todo.append((child, other))
                    if len(seen) > 4 * (len(self._objects) + len(checkpoint)):
                        raise FormatError(self._file.path, "the objects of the graph are not those of its checkpoint")
        return found

    def message(self, constants: Mapping[int, str]) -> Message:
        """The SavedObjectGraph in which those objects are constants: object -> node of the main graph."""
        out = Message()
        number = 0
        for found in fields_of(self._file, self._start, self._end):
            if found.number != _NODE or found.wire != BYTES:
                out.copied(found)
                continue
            if number in constants:
                out.bytes_field(_NODE, _constant(constants[number]))
            else:
                out.bytes_field(_NODE, _without_slots(found, constants))
            number += 1
        return out


def _object(found: Field) -> _Object:
    made = _Object()
    for inner in fields_of(found.file, found.value, found.end):
        if inner.number == _CHILD and inner.wire == BYTES:
            made.children.append(_child(inner.read(), found.file.path))
        elif inner.number == _VARIABLE and inner.wire == BYTES:
            spread = any(f.number == _COMPONENTS for f in fields_of(inner.file, inner.value, inner.end))
            made.variable = not spread
    return made


def _child(data: bytes, path: object) -> tuple[str, int]:
    name, node = "", 0
    for number, wire, value in fields(data, path):
        if number == 1 and wire == VARINT and isinstance(value, int):
            node = signed(value)
        elif number == 2 and isinstance(value, bytes):
            name = value.decode("utf-8", "backslashreplace")
    return name, node


def _concrete(entry: Field) -> tuple[str, list[int]]:
    name, bound = "", list[int]()
    for found in fields_of(entry.file, entry.value, entry.end):
        if found.number == 1 and found.wire == BYTES:
            name = found.read().decode("utf-8", "backslashreplace")
        elif found.number == 2 and found.wire == BYTES:
            for inner in fields_of(found.file, found.value, found.end):
                if inner.number == 2 and inner.wire == VARINT:
                    bound.append(inner.value)
                elif inner.number == 2 and inner.wire == BYTES:
                    data, at = inner.read(), 0
                    while at < len(data):
                        value, at = varint(data, at, len(data), entry.file.path, inner.value)
                        bound.append(value)
    return name, bound


def _constant(node: str) -> Message:
    return Message().bytes_field(_CONSTANT, Message().bytes_field(1, node.encode()))


def _without_slots(found: Field, gone: Collection[int]) -> Message:
    """An object without the slots that it has for variables that are none any more."""
    out = Message()
    for inner in fields_of(found.file, found.value, found.end):
        if inner.number == _SLOT and inner.wire == BYTES:
            of = [value for number, _, value in fields(inner.read(), found.file.path) if number == 1]
            if of and of[-1] in gone:
                continue
        out.copied(inner)
    return out
