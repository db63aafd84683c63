"""The tensors of a graph alone: variables with what weightport gave them to start from, and constants."""

from __future__ import annotations

import numpy as np
import pytest

from tests.formats._graphdef import const, graph, node
from tests.formats.test_tf_variables import texts, variable
from tests.support import says
from weightport.errors import FormatError, TensorNotFound
from weightport.formats._proto import Memory
from weightport.formats._tf_tensors import GraphTensors
from weightport.formats.tf_graph import GraphDef

WHOLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def of(*nodes: bytes, plain: bool = True) -> GraphTensors:
    data = graph(*nodes)
    return GraphTensors(GraphDef(Memory(data, "f"), 0, len(data)), plain=plain, hint="they are elsewhere")


def given(name: str, value: np.ndarray, initial: str = "Initializer/pretrained", op: str = "VariableV2") -> list[bytes]:
    """A variable, and the initial value that weightport gave it."""
    start = f"{name}/{initial}"
    assign = "AssignVariableOp" if op == "VarHandleOp" else "Assign"
    return [
        variable(name, value.shape, op=op),
        const(start, value),
        node(f"{name}/Assign", assign, name, start),
    ]


def saved(*parts: str) -> list[bytes]:
    """The save operation of a variable in parts."""
    cuts = [f"4 3 {start},{size}:-" for start, size in ((0, 1), (1, 3))]
    save = node("s", "SaveV2", "p", "names", "cuts", *parts)
    return [texts("names", *["v"] * len(parts)), texts("cuts", *cuts[: len(parts)]), save]


@pytest.mark.parametrize("op", ["VariableV2", "VarHandleOp"])
@pytest.mark.parametrize("initial", ["Initializer/pretrained", "Initializer/pretrained_12"])
def test_an_initial_value(op: str, initial: str) -> None:
    found = of(*given("a", WHOLE, initial, op), variable("b", (4, 3)))
    assert found.read("a").tolist() == WHOLE.tolist()
    assert found.read("a", (slice(1, 3), slice(0, 2))).tolist() == WHOLE[1:3, :2].tolist()
    with says(FormatError, "f: tensor 'b': is a variable, whose value is not in a graph; they are elsewhere"):
        found.read("b")


@pytest.mark.parametrize(
    "initial",
    [
        "Initializer/pretrained_",
        "Initializer/pretrained_x",
        "Initializer/zeros",
        "pretrained",
        "x/Initializer/pretrained",
    ],
)
def test_another_initial_value(initial: str) -> None:
    with pytest.raises(FormatError, match="whose value is not in a graph"):
        of(*given("a", WHOLE, initial)).read("a")


def test_what_assigns_nothing() -> None:
    start = const("a/Initializer/pretrained", WHOLE)
    for assign in (
        node("a/Assign", "Assign", "a"),
        node("a/Assign", "Assign", "a", "none"),
        node("a/Assign", "Assign", "none", "a/Initializer/pretrained"),
        node("a/Assign", "Add", "a", "a/Initializer/pretrained"),
        node("a/Assign", "Assign", "other", "a/Initializer/pretrained"),
    ):
        with pytest.raises(FormatError, match="whose value is not in a graph"):
            of(variable("a", (4, 3)), start, node("other", "Identity", "a"), assign).read("a")
    passed = node("a/Initializer/pretrained", "Identity", "zeros")
    nodes = [variable("a", (4, 3)), const("zeros", WHOLE), passed]
    with pytest.raises(FormatError, match="whose value is not in a graph"):
        of(*nodes, node("a/Assign", "Assign", "a", "a/Initializer/pretrained")).read("a")


def test_an_initial_value_in_parts() -> None:
    parts = [*given("v/part_0", WHOLE[:1]), *given("v/part_1", WHOLE[1:])]
    found = of(*parts, *saved("v/part_0", "v/part_1"))
    assert found.specs()["v"].shape == (4, 3)
    for index in (
        None,
        (slice(0, 2), slice(1, 2)),
        (slice(1, 4, 2),),
        (slice(0, 4, 3), slice(0, 3, 2)),
        (slice(2, 2),),
    ):
        assert found.read("v", index).tolist() == WHOLE[index or ()].tolist()
    one = of(*given("v/part_0", WHOLE[:1]), variable("v/part_1", (3, 3)), *saved("v/part_0", "v/part_1"))
    with says(FormatError, "f: tensor 'v': is a variable, whose value is not in a graph; they are elsewhere"):
        one.read("v")


@pytest.mark.parametrize("value", [WHOLE[:2], WHOLE.astype(np.float64), WHOLE.reshape(3, 4)])
def test_an_initial_value_that_does_not_fit(value: np.ndarray) -> None:
    nodes = [variable("a", (4, 3)), const("a/Initializer/pretrained", value)]
    found = of(*nodes, node("a/Assign", "Assign", "a", "a/Initializer/pretrained"))
    said = (
        rf"^f: tensor 'a' at byte \d+: its initial value is {value.dtype.name}\[{value.shape[0]}, {value.shape[1]}\]$"
    )
    with pytest.raises(FormatError, match=said):
        found.read("a")


def test_constants_beside_variables() -> None:
    nodes = [variable("a", (2,)), const("w", WHOLE), node("w/read", "Identity", "w"), const("k", np.float32([1, 2]))]
    found = of(*nodes)
    assert list(found.specs()) == ["a", "w", "k"]
    assert {name: spec.role for name, spec in found.specs().items()} == {"a": "weight", "w": "weight", "k": "constant"}
    assert list(found.constants) == ["w", "k"]
    assert found.read("w", (slice(0, 1),)).tolist() == WHOLE[:1].tolist()
    assert found.places(["w"]) == ({("", "w")}, {("", "a")})
    assert found.places(["a"]) == ({("", "a")}, {("", "w")})
    few = of(*nodes, plain=False)
    assert list(few.specs()) == ["a", "w"]
    assert list(few.constants) == ["w"]
    with pytest.raises(TensorNotFound, match="'b'"):
        found.read("b")


def test_a_constant_of_a_variables_name() -> None:
    """A checkpoint has the variable ``b`` under the constant's name."""
    nodes = [variable("b", (2,)), const("w", WHOLE), node("w/read", "Identity", "w")]
    found = of(*nodes, texts("names", "w"), texts("cuts", ""), node("s", "SaveV2", "p", "names", "cuts", "b"))
    assert {name: spec.shape for name, spec in found.specs().items() if spec.role == "weight"} == {
        "w": (2,),
        "w'": (4, 3),
    }
    assert found.read("w'").tolist() == WHOLE.tolist()
    with pytest.raises(FormatError, match="'w': is a variable"):
        found.read("w")
