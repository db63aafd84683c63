"""Collections of a MetaGraphDef: variables that became constants leave them, all else stays as it is."""

from __future__ import annotations

from tests.formats.test_tf_bundle import bytes_field, number_field
from weightport.formats._message import Message
from weightport.formats._proto import Memory
from weightport.formats._tf_collections import Surroundings, initializers


def collection(name: bytes, *lists: bytes) -> bytes:
    return bytes_field(4, bytes_field(1, name) + b"".join(bytes_field(2, items) for items in lists))


def items(*values: bytes) -> bytes:
    """A list of bytes in a CollectionDef."""
    return bytes_field(2, b"".join(bytes_field(1, value) for value in values))


def variable(name: str, initial: str = "") -> bytes:
    out = bytes_field(1, f"{name}:0".encode()) + bytes_field(2, f"{name}/Assign:0".encode()) + number_field(7, 1)
    return out + (bytes_field(6, initial.encode()) if initial else b"")


NODES = bytes_field(1, bytes_field(1, b"a node"))
BROKEN = b"\x0a\x09"
NO_VARIABLE = bytes_field(1, b"no output") + bytes_field(2, b"x")
META = [
    bytes_field(1, b"info"),
    bytes_field(2, b"the graph"),
    bytes_field(3, b"saver"),
    collection(b"variables", items(variable("a"), variable("b", "b/init:0"), BROKEN, NO_VARIABLE)),
    collection(b"gone", items(variable("a"))),
    collection(b"mixed", NODES + items(variable("a"), variable("c")), number_field(9, 1) + NODES),
    collection(b"nodes", NODES),
    collection(b"empty", items()),
    number_field(9, 5),
]


def surroundings(gone: set[str], initial: dict[str, str]) -> Surroundings:
    data = b"".join(META)
    return Surroundings(Memory(b"." + data, "f"), 1, 1 + len(data), gone, initial)


def test_nothing_changes() -> None:
    made = surroundings(set(), {}).message(Message(b"the graph"), saver=True)
    assert bytes(made) == b"".join(META)


def test_variables_that_are_gone() -> None:
    found = surroundings({"a"}, {"b": "b/new", "a": "unused"})
    expected = list(META)
    expected[1] = bytes_field(2, b"new graph")
    expected[3] = collection(b"variables", items(variable("b", "b/new:0"), BROKEN, NO_VARIABLE))
    expected[4] = b""
    expected[5] = collection(b"mixed", NODES + items(variable("c")), number_field(9, 1) + NODES)
    assert bytes(found.message(Message(b"new graph"), saver=True)) == b"".join(expected)
    expected[2] = b""
    expected[8] = bytes_field(9, b"other")
    other = {9: Message(b"other")}
    assert bytes(found.message(Message(b"new graph"), saver=False, other=other)) == b"".join(expected)


def test_initializers() -> None:
    data = b"".join(META)
    assert initializers(Memory(data, "f"), 0, len(data)) == {"a": "a/Assign", "b": "b/Assign", "c": "c/Assign"}


def test_which_nodes_are_spoken_of() -> None:
    found = surroundings({"a"}, {"b": "b/new"})
    assert [found.names(node) for node in ("b", "b/new", "c/Assign", "a node", "saver")] == [True] * 5
    assert [found.names(node) for node in ("the graph", "a/Assign", "b/init", "none")] == [False] * 4


def test_fields_that_are_no_items() -> None:
    """Of a list of bytes the items are the first field; whatever else stands there, stays."""
    other = bytes_field(2, variable("a")) + number_field(1, 7)
    entry = bytes_field(2, bytes_field(2, other + bytes_field(1, variable("c"))))
    data = bytes_field(4, bytes_field(1, b"variables") + entry)
    made = Surroundings(Memory(data, "f"), 0, len(data), {"a"}, {}).message(Message(), saver=True)
    assert bytes(made) == data
    assert initializers(Memory(data, "f"), 0, len(data)) == {"c": "c/Assign"}
    none = bytes_field(5, data) + number_field(4, 7)  # no collections
    assert initializers(Memory(none, "f"), 0, len(none)) == {}
