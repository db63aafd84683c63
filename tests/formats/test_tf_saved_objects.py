"""The objects of a SavedModel of TensorFlow 2, by hand: which are variables, and which become constants."""

from __future__ import annotations

from tests.formats.test_tf_bundle import bytes_field, number_field
from tests.support import says
from weightport.errors import BudgetExceeded, FormatError
from weightport.formats._proto import Memory
from weightport.formats._tf_saved_objects import SavedObjects
from weightport.tensors import Budget

VARIABLE = bytes_field(7, b"")
SPREAD = bytes_field(7, bytes_field(8, b""))


def child(name: str, node: int) -> bytes:
    return bytes_field(1, number_field(9, 1) + number_field(1, node) + bytes_field(2, name.encode()))


def slot(of: int) -> bytes:
    return bytes_field(3, number_field(1, of) + bytes_field(2, b"m"))


def saved(data: bytes, budget: Budget | None = None) -> SavedObjects:
    return SavedObjects(Memory(b"." + data, "f"), 1, 1 + len(data), budget or Budget())


def objects(*nodes: bytes) -> bytes:
    return b"".join(bytes_field(1, node) for node in nodes)


def test_objects_are_found_by_the_names_of_the_edges() -> None:
    nodes = [
        child("a", 1) + child("b", 2) + child("c", 3) + child("gone", 9) + child("back", 0) + bytes_field(9, b"x"),
        VARIABLE,
        child("a", 1) + number_field(1, 5),
        SPREAD,
    ]
    found = saved(number_field(9, 1) + objects(*nodes))
    # The variable is found on two ways, as two objects of the checkpoint; others are not here.
    theirs = [[("a", 2), ("b", 1), ("c", 3), ("gone", 4), ("back", 0)], [("a", 4)], [], [], []]
    assert found.variables(theirs) == {2: 1, 4: 1}
    assert found.variables([]) == {}
    assert saved(b"").variables(theirs) == {}


def test_what_functions_capture() -> None:
    packed = bytes_field(2, bytes_field(2, b"\x01\x82\x01") + bytes_field(3, b"x") + number_field(2, 7))
    data = bytes_field(2, bytes_field(1, b"f") + packed + number_field(3, 1)) + bytes_field(2, bytes_field(1, b"g"))
    assert saved(data).bound == {"f": [1, 130, 7], "g": []}
    with says(FormatError, "f at byte 10: malformed varint"):
        saved(bytes_field(2, bytes_field(1, b"f") + bytes_field(2, bytes_field(2, b"\x80"))))


def test_objects_that_are_not_those_of_the_checkpoint() -> None:
    """Two circles of different lengths: each object of one would be each of the other."""
    mine = objects(*(child("n", (n + 1) % 11) for n in range(11)))
    theirs = [[("n", (n + 1) % 13)] for n in range(13)]
    with says(FormatError, "f: the objects of the graph are not those of its checkpoint"):
        saved(mine).variables(theirs)


def test_so_many_objects() -> None:
    data = objects(b"", b"", b"")
    saved(data, Budget(tensors=3))
    with says(BudgetExceeded, "f: tensors: 3 asked for, at most 2 allowed"):
        saved(data, Budget(tensors=2))


def test_constants_in_their_place() -> None:
    nodes = [child("a", 1) + slot(1) + slot(2) + slot(0)[:-3] + bytes_field(2, b"m"), VARIABLE, VARIABLE]
    nodes[0] = child("a", 1) + slot(1) + slot(2)
    data = number_field(9, 1) + objects(*nodes) + bytes_field(2, bytes_field(1, b"f"))
    expected = objects(child("a", 1) + slot(2), bytes_field(9, bytes_field(1, b"node")), VARIABLE)
    assert bytes(saved(data).message({1: "node"})) == number_field(9, 1) + expected + bytes_field(
        2, bytes_field(1, b"f")
    )
    assert bytes(saved(data).message({})) == data
