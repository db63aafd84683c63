"""FunctionDefs that take values where they took handles, field by field."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.formats._graphdef import graph, node, shape_proto
from tests.formats.test_tf_bundle import bytes_field, number_field
from weightport.formats._proto import Memory
from weightport.formats._tf_edit import GraphEdit
from weightport.formats._tf_function_edit import Returned, rewritten
from weightport.formats.tf_graph import GraphDef


@dataclass(frozen=True)
class Floats:
    """float32 of a shape, in place of a handle."""

    shape: tuple[int, ...] = (2, 3)
    number: int = 1


NEW = number_field(13, 7) + bytes_field(14, b"new")
ODD = number_field(2, 5) + NEW
HANDLE, FLOAT = number_field(3, 20), number_field(3, 1)
ABOUT = bytes_field(7, bytes_field(1, shape_proto([2]))) + b"\x8a\x01\x04full"


def entry(key: bytes, value: bytes) -> bytes:
    """An entry of a map with text for keys."""
    return bytes_field(1, key) + bytes_field(2, value)


def argument(number: int, about: bytes, rest: bytes = b"") -> bytes:
    """What a function says of one of its arguments."""
    return bytes_field(7, number_field(1, number) + bytes_field(2, about) + rest)


def head(name: bytes, *fields: bytes) -> bytes:
    """A signature."""
    return bytes_field(1, bytes_field(1, name) + b"".join(fields))


def arg(name: bytes, rest: bytes, *, result: bool = False) -> bytes:
    return bytes_field(3 if result else 2, bytes_field(1, name) + rest)


NAMED = bytes_field(1, entry(b"_user_specified_name", bytes_field(2, b"w")))
SHAPED = bytes_field(1, entry(b"_output_shapes", bytes_field(1, bytes_field(7, shape_proto([2, 3])))))
TOLD = bytes_field(1, entry(b"_handle_dtypes", number_field(6, 1)))
SHAPES = [bytes_field(7, shape_proto(dims)) for dims in ([], [4], [2, 3])]


def shapes(*listed: bytes, rest: bytes = b"") -> bytes:
    return bytes_field(5, entry(b"_input_shapes", bytes_field(1, b"".join(listed)) + rest) + rest)


#: Before and after, when argument 1 and result 0 are values, and ``r:value:0`` has another name.
CASES: dict[str, tuple[bytes, bytes]] = {
    "its name": (head(b"f", ODD), head(b"g", ODD)),
    "the argument": (
        head(b"f", arg(b"x", HANDLE + ABOUT), arg(b"h", ABOUT + HANDLE + ODD), arg(b"k", HANDLE)),
        head(b"g", arg(b"x", HANDLE + ABOUT), arg(b"h", FLOAT + ODD), arg(b"k", HANDLE)),
    ),
    "the result": (
        head(b"f", arg(b"r", HANDLE + ABOUT, result=True), arg(b"s", HANDLE + ABOUT, result=True)),
        head(b"g", arg(b"r", FLOAT, result=True), arg(b"s", HANDLE + ABOUT, result=True)),
    ),
    "where results come from": (
        bytes_field(4, entry(b"r", b"r:value:0") + NEW) + bytes_field(4, entry(b"s", b"s:value:0")),
        bytes_field(4, entry(b"r", b"r:output:0") + NEW) + bytes_field(4, entry(b"s", b"s:value:0")),
    ),
    "the shapes of the arguments": (shapes(*SHAPES[:2], SHAPES[0]), shapes(SHAPES[0], SHAPES[2], SHAPES[0])),
    "shapes, and what nobody knows": (
        shapes(ODD, SHAPES[0], number_field(7, 1), SHAPES[1], bytes_field(1, b"x"), rest=ODD),
        shapes(ODD, SHAPES[0], number_field(7, 1), SHAPES[2], bytes_field(1, b"x"), rest=ODD),
    ),
    "another attribute": (bytes_field(5, entry(b"_input", ODD)), bytes_field(5, entry(b"_input", ODD))),
    "what is said of the argument": (
        argument(1, TOLD + NAMED + ODD) + argument(0, TOLD) + argument(2, TOLD),
        argument(1, NAMED + SHAPED) + argument(0, TOLD) + argument(2, TOLD),
    ),
    "what is said, and what nobody knows": (
        bytes_field(7, number_field(2, 5) + number_field(1, 1) + ODD + bytes_field(2, TOLD)),
        bytes_field(7, number_field(2, 5) + number_field(1, 1) + ODD + bytes_field(2, SHAPED)),
    ),
    "one that says no number is the first": (
        bytes_field(7, bytes_field(2, TOLD)),
        bytes_field(7, bytes_field(2, TOLD)),
    ),
    "which resources are the same": (
        b"".join(bytes_field(8, number_field(1, n) + number_field(2, 5)) for n in range(3)),
        b"".join(bytes_field(8, number_field(1, n) + number_field(2, 5)) for n in (0, 2)),
    ),
    "a node": (
        bytes_field(3, node("a", "Neg", "x")) + bytes_field(3, node("r", "ReadVariableOp", "h")),
        bytes_field(3, node("a", "Neg", "x")) + bytes_field(3, node("r", "Identity", "h")),
    ),
    "fields of other kinds": (
        number_field(3, 1) + number_field(1, 2) + ODD,
        number_field(3, 1) + number_field(1, 2) + ODD,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_changes_and_what_stays(case: str) -> None:
    before, after = CASES[case]
    name = b"" if case.startswith(("its", "the arg", "the result")) else head(b"f")
    data = graph(functions=[name + before])
    found = GraphDef(Memory(data, "g.pb"), 0, len(data))
    body = found.functions["f"]
    edits = GraphEdit(found).body(body)
    if "r" in body.nodes:
        edits.edit("r").becomes("Identity")
    returned = Returned({0: Floats()}, {"r:value:0": "r:output:0"})
    made = bytes(rewritten(found, edits, "g", {1: Floats()}, returned))
    assert made == (head(b"g") if name else b"") + after
