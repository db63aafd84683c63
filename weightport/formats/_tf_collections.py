"""What a MetaGraphDef says beside its graph: variables in collections, and names that others go by.

Promise: variables that became constants leave every collection of variables; all other entries stay as they are.

Sources: tensorflow/core/protobuf/meta_graph.proto, tensorflow/core/framework/variable.proto.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from weightport.errors import FormatError
from weightport.formats._message import Field, Message, fields_of
from weightport.formats._proto import BYTES, Readable, fields

# Fields of a MetaGraphDef.
GRAPH, SAVER, COLLECTION = 2, 3, 4
# Fields of a VariableDef.
_NAME, _INITIALIZER, _INITIAL_VALUE = 1, 2, 6
# The list of a CollectionDef that is looked into, and the field of its items.
_BYTES, _ITEM = 2, 1


def initializers(file: Readable, start: int, end: int) -> dict[str, str]:
    """Node of a variable -> the operation that initializes it, as the collections of a MetaGraphDef say."""
    found: dict[str, str] = {}
    for entry in _entries(file, start, end):
        for _, items in _lists(entry, _BYTES):
            for item in items:
                texts = _variable(item)
                if texts is not None:
                    found.setdefault(_node(texts[_NAME]), _node(texts[_INITIALIZER]))
    return found


class Surroundings:
    """The fields of a MetaGraphDef other than its graph, as they are after variables became constants.

    Args:
        file, start, end: where the MetaGraphDef lies.
        gone: nodes of variables that are constants now.
        initial: node of a variable -> the node of its new initial value.
    """

    def __init__(self, file: Readable, start: int, end: int, gone: Collection[str], initial: Mapping[str, str]) -> None:
        self._gone, self._initial = gone, initial
        self._fields: list[tuple[int, Message | None]] = []
        for found in fields_of(file, start, end):
            if found.wire == BYTES and found.number == GRAPH:
                self._fields.append((GRAPH, None))
            elif found.wire == BYTES and found.number == COLLECTION:
                entry = self._collection(found)
                if entry is not None:
                    self._fields.append((COLLECTION, Message().bytes_field(COLLECTION, entry)))
            else:
                self._fields.append((found.number, Message().copied(found)))
        self._names = b"".join(bytes(m) for number, m in self._fields if m is not None and number > GRAPH)

    def names(self, node: str) -> bool:
        """Whether a node may be spoken of: its name stands there, in whatever field."""
        return node.encode() in self._names

    def message(self, graph: Message, *, saver: bool, other: Mapping[int, Message] | None = None) -> Message:
        """The MetaGraphDef with that graph; ``saver`` is whether there is something left to save.

        ``other`` are further fields that have another content.
        """
        out = Message()
        for number, message in self._fields:
            if message is None:
                out.bytes_field(number, graph)
            elif other is not None and number in other:
                out.bytes_field(number, other[number])
            elif saver or number != SAVER:
                out.add(message)
        return out

    def _collection(self, entry: Field) -> Message | None:
        """An entry of the map; None for a collection that has become empty."""
        if not any(True for _ in _lists(entry, _BYTES)):
            return Message().add(entry.content)
        out = Message()
        for found in fields_of(entry.file, entry.value, entry.end):
            if found.number != 2 or found.wire != BYTES:
                out.copied(found)
                continue
            collection = Message()
            for inner in fields_of(found.file, found.value, found.end):
                if inner.number != _BYTES or inner.wire != BYTES:
                    collection.copied(inner)
                    continue
                items = [self._item(item) for item in fields_of(inner.file, inner.value, inner.end)]
                if items and all(item is None for item in items):
                    return None
                left = Message()
                for item in items:
                    left.add(item or b"")
                collection.bytes_field(_BYTES, left)
            out.bytes_field(2, collection)
        return out

    def _item(self, item: Field) -> Message | None:
        """An item with its key; None for a variable that is gone."""
        texts = _variable(item) if item.number == _ITEM and item.wire == BYTES else None
        node = _node(texts[_NAME]) if texts is not None else ""
        if texts is not None and node in self._gone:
            return None
        if texts is None or node not in self._initial:
            return Message().copied(item)
        out = Message()
        for found in fields_of(item.file, item.value, item.end):
            if found.number != _INITIAL_VALUE:
                out.copied(found)
        return Message().bytes_field(_ITEM, out.bytes_field(_INITIAL_VALUE, f"{self._initial[node]}:0".encode()))


def _entries(file: Readable, start: int, end: int) -> Iterator[Field]:
    for found in fields_of(file, start, end):
        if found.number == COLLECTION and found.wire == BYTES:
            yield found


def _lists(entry: Field, number: int) -> Iterator[tuple[Field, list[Field]]]:
    """The lists of one kind in a collection, each with its items."""
    for value in fields_of(entry.file, entry.value, entry.end):
        if value.number == 2 and value.wire == BYTES:
            for inner in fields_of(value.file, value.value, value.end):
                if inner.number == number and inner.wire == BYTES:
                    items = fields_of(inner.file, inner.value, inner.end)
                    yield inner, [item for item in items if item.number == _ITEM and item.wire == BYTES]


def _variable(item: Field) -> dict[int, str] | None:
    """The texts of a VariableDef; None for what is none."""
    texts: dict[int, str] = {}
    data = item.read()
    try:
        for number, _, value in fields(data, item.file.path):
            if isinstance(value, bytes) and number in (_NAME, _INITIALIZER, _INITIAL_VALUE):
                texts[number] = value.decode("utf-8", "backslashreplace")
    except FormatError:
        return None  # the items of a collection are whatever their owner stores
    return texts if ":" in texts.get(_NAME, "") and texts.get(_INITIALIZER) else None


def _node(tensor: str) -> str:
    return tensor.rpartition(":")[0] or tensor
