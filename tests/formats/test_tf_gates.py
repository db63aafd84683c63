"""Gates in a dataflow: numbers, clipping, activations of several operations, and sums taken apart."""

from __future__ import annotations

import numpy as np
import pytest

from tests.formats._graphdef import const, graph, node, weights
from weightport.formats import _tf_gates
from weightport.formats._proto import Memory
from weightport.formats._tf_dataflow import Flow, Value
from weightport.formats._tf_gates import Gates, Terms
from weightport.formats.tf_graph import GraphDef

PRODUCT = node("p", "MatMul", "x", "kernel/read")


class Made:
    """The gates of a graph's kernel and bias, by the names of nodes."""

    def __init__(self, *nodes: bytes) -> None:
        data = graph(*weights(), PRODUCT, *nodes)
        self.flow = Flow(GraphDef(Memory(data, "g.pb"), 0, len(data)))
        self.gates = Gates(self.flow, {self.at("kernel"), self.at("bias")}, set())

    def at(self, name: str) -> Value:
        return self.flow.places["", name][0], 0

    def name(self, value: Value) -> str:
        found = self.flow.nodes[value[0]]
        assert found is not None
        return found.name

    def number(self, name: str) -> float | None:
        return self.gates.number(self.at(name))

    def clipped(self, name: str) -> tuple[float, float, str] | None:
        found = self.gates.clipped(self.at(name))
        return found and (found[0], found[1], self.name(found[2]))

    def activation(self, name: str) -> tuple[str, str] | None:
        found = self.gates.activation(self.at(name))
        return found and (found[0], self.name(found[1]))

    def gate(self, name: str) -> tuple[str, str, bool] | None:
        found = self.gates.gate(self.at(name))
        return found and (found.name, self.name(found.before), found.complement)

    def terms(self, name: str) -> Terms:
        return self.gates.terms(self.at(name))


def test_numbers() -> None:
    made = Made(
        const("two", 2.0),
        const("same", np.full(3, 0.7, np.float32)),
        const("varied", np.array([1, 2], np.float32)),
        const("integer", np.array(3)),
        const("text", np.array([b"a"], object)),
        const("nothing", np.zeros(0, np.float32)),
        const("largest", np.ones(1 << 14, np.float32)),
        const("larger", np.ones((1 << 14) + 1, np.float32)),
        node("fill", "Fill", "x", "two"),
        node("fill x", "Fill", "two", "x"),
        node("bare fill", "Fill", "x"),
    )
    assert {name: made.number(name) for name in ("two", "same", "integer", "largest", "fill")} == {
        "two": 2.0,
        "same": 0.7,
        "integer": 3.0,
        "largest": 1.0,
        "fill": 2.0,
    }
    for name in ("varied", "text", "nothing", "larger", "fill x", "bare fill", "x", "kernel"):
        assert made.number(name) is None


def test_clipping() -> None:
    made = Made(
        const("low", -1.0),
        const("high", 2.0),
        node("both", "ClipByValue", "p", "low", "high"),
        node("open", "ClipByValue", "p", "x", "high"),
        node("cut off", "ClipByValue", "p"),
        node("top", "Minimum", "p", "high"),
        node("top first", "Minimum", "high", "p"),
        node("two", "Maximum", "top", "low"),
        node("two first", "Maximum", "low", "top first"),
        node("top twice", "Minimum", "top", "high"),
        node("unknown", "Maximum", "top", "x"),
        node("other", "Relu", "top"),
    )
    assert made.clipped("both") == made.clipped("two") == made.clipped("two first") == (-1, 2, "p")
    for name in ("open", "cut off", "top", "top twice", "unknown", "other"):
        assert made.clipped(name) is None


def hard_sigmoid(slope: float, shift: float, low: float = 0.0, high: float = 1.0) -> list[bytes]:
    return [
        const("slope", slope),
        const("shift", shift),
        const("low", low),
        const("high", high),
        node("scaled", "Mul", "slope", "p"),
        node("shifted", "AddV2", "scaled", "shift"),
        node("y", "ClipByValue", "shifted", "low", "high"),
    ]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node("y", "Tanh", "p")], ("tanh", "p")),
        ([node("y", "Tanh")], None),
        ([node("y", "Neg", "p")], None),
        (hard_sigmoid(0.2, 0.5), ("hard_sigmoid", "p")),
        (hard_sigmoid(0.3, 0.5), None),
        (hard_sigmoid(0.2, 0.4), None),
        (hard_sigmoid(0.2, 0.5, low=-1.0), None),
        (hard_sigmoid(0.2, 0.5, high=2.0), None),
        ([const("l", 0.0), const("h", 1.0), node("y", "ClipByValue", "p", "l", "h")], None),
    ],
)
def test_activations(nodes: list[bytes], expected: tuple[str, str] | None) -> None:
    assert Made(*nodes).activation("y") == expected


@pytest.mark.parametrize(
    ("op", "inputs", "factor", "known"),
    [
        ("Mul", ("r", "f"), 1 / 6, True),
        ("Mul", ("f", "r"), 1 / 6, True),
        ("RealDiv", ("r", "f"), 6.0, True),
        ("RealDiv", ("f", "r"), 6.0, False),
        ("Mul", ("r", "f"), 6.0, False),
        ("RealDiv", ("r", "f"), 5.0, False),
        ("RealDiv", ("r", "f"), 0.0, False),
        ("Mul", ("r", "x"), 6.0, False),
        ("Mul", ("r",), 6.0, False),
    ],
)
def test_the_hard_sigmoid_of_keras_3(op: str, inputs: tuple[str, ...], factor: float, known: bool) -> None:
    nodes = [const("three", 3.0), const("f", factor), node("s", "AddV2", "p", "three"), node("r", "Relu6", "s")]
    assert Made(*nodes, node("y", op, *inputs)).activation("y") == (("hard_sigmoid_6", "p") if known else None)


def reshaped(count: int) -> list[bytes]:
    return [node(f"r{n + 1}", "Reshape", f"r{n}" if n else "s", "x") for n in range(count)]


def test_gates_and_one_minus_them() -> None:
    made = Made(
        const("one f", 1.0),
        const("two", 2.0),
        node("s", "Sigmoid", "p"),
        node("minus", "Sub", "one f", "s"),
        node("from two", "Sub", "two", "s"),
        node("minus twice", "Sub", "one f", "minus"),
        node("minus x", "Sub", "one f", "x"),
        node("minus nothing", "Sub", "one f"),
        node("of x", "Sigmoid", "x"),
        *reshaped(20),
    )
    assert made.gate("s") == made.gate("r19") == ("sigmoid", "p", False)
    assert made.gate("minus") == ("sigmoid", "p", True)
    for name in ("r20", "from two", "minus twice", "minus x", "minus nothing", "of x", "p"):
        assert made.gate(name) is None


def test_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(
        const("half", 0.5),
        const("two", 2.0),
        const("zero", 0.0),
        const("any", np.array([1, 2], np.float32)),
        node("q", "MatMul", "x", "kernel/read"),
        node("sum", "AddN", "p", "q", "half", "bias/read", "x"),
        node("less", "Sub", "sum", "two"),
        node("odd", "Sub", "sum"),
        node("part", "Split", "one", "less"),
        node("more", "Add", "part", "two"),
        node("zero part", "Split", "one", "zero"),
        node("zeros", "Add", "zero part", "half"),
        node("unknown", "Add", "p", "any"),
    )
    found = made.terms("less")
    assert (found.constant, found.shared, found.unknown) == (-1.5, False, False)
    assert {made.name(v) for v in found.products} == {"p", "q"}
    assert [made.name(v) for v in found.others] == ["x"]
    found = made.terms("more")
    assert (found.constant, found.shared) == (0.5, True), "what is added before the split is added to every part"
    assert (made.terms("zeros").constant, made.terms("zeros").shared) == (0.5, False)
    assert made.terms("unknown").unknown
    assert [made.name(v) for v in made.terms("odd").others] == ["odd"]
    for most, unknown in ((9, False), (8, True)):
        monkeypatch.setattr(_tf_gates, "_MAX_TERMS", most)
        assert made.terms("less").unknown == unknown


@pytest.mark.parametrize(("op", "at"), [(op, at) for op, at in _tf_gates.PARTS.items()])
def test_what_is_added_before_parts_are_taken_is_added_to_all(op: str, at: int) -> None:
    several = op in ("Split", "SplitV", "StridedSlice", "Slice", "Unpack")
    inputs = ["one"] * at + ["less"]
    made = Made(
        const("two", 2.0),
        node("less", "Sub", "p", "two"),
        node("part", op, *inputs),
        node("more", "Add", "part", "two"),
    )
    found = made.terms("more")
    assert (found.constant, found.shared) == (0.0, several)
    assert {made.name(v) for v in found.products} == {"p"}
