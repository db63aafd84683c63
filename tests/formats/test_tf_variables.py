"""Variables of a graph as a checkpoint has them: by the save operations, else by the nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.formats._graphdef import const, graph, node, shape_proto
from tests.formats.test_tf_bundle import bytes_field, number_field
from tests.support import says
from weightport.errors import BudgetExceeded, FormatError
from weightport.formats._proto import Memory
from weightport.formats._tf_variables import GraphVariables, Variable
from weightport.formats.tf_graph import GraphDef
from weightport.tensors import Budget


def variable(
    name: str, shape: tuple[int, ...] | None = (2, 3), number: int | None = 1, op: str = "VariableV2"
) -> bytes:
    attrs: dict[str, Any] = {} if number is None else {"dtype": number_field(6, number)}
    attrs |= {} if shape is None else {"shape": bytes_field(7, shape_proto(shape))}
    return node(name, op, **attrs)


def of(*nodes: bytes, left: bool = True, budget: Budget | None = None) -> GraphVariables:
    data = graph(*nodes)
    return GraphVariables(GraphDef(Memory(data, "f"), 0, len(data), budget=budget), left=left)


def texts(name: str, *values: str) -> bytes:
    return const(name, np.array([value.encode() for value in values], object))


def named(found: GraphVariables) -> dict[str, tuple[list[str], tuple[int, ...] | None, list[str]]]:
    return {name: (v.nodes, v.shape, v.cuts) for name, v in found.named.items()}


SHAPED = "the save operation 's' has {} names and {} slices for {} tensors"


def test_without_a_saver_every_variable_is_its_node() -> None:
    nodes = [variable("b", op="VarHandleOp"), node("x", "Identity", "b"), variable("a"), variable("c", op="Variable")]
    nodes += [variable("d", op="AutoReloadVariable"), const("e", 1.0)]
    assert named(of(*nodes)) == {name: ([name], None, [""]) for name in "bacd"}
    assert of(*nodes, left=False).named == {}


def test_variables_by_their_saved_names() -> None:
    nodes = [variable("a"), variable("b"), node("a/read", "Identity", "a"), node("far", "ReadVariableOp", "a/read:0")]
    nodes += [node("sum", "Add", "a", "b"), texts("names", "A", "B", "SUM", "GONE"), texts("cuts", "", "", "", "")]
    save = node("s", "SaveV2", "prefix", "names:0", "cuts", "far", "b:0", "sum", "none", "^control")
    assert named(of(*nodes, save)) == {"A": (["a"], None, [""]), "B": (["b"], None, [""]), "SUM": (["sum"], None, [""])}
    sharded = node("s", "SaveSlices", "prefix", "names", "cuts", "far", "b", "sum", "none")
    assert named(of(*nodes, sharded)) == named(of(*nodes, save))
    old = node("s", "Save", "prefix", "names", "far", "b", "sum", "none")
    assert named(of(*nodes, old)) == named(of(*nodes, save))


def test_a_variable_in_slices() -> None:
    nodes = [variable("v/part_0", (2, 4)), variable("v/part_1", (1, 4)), texts("names", "v", "v", "v")]
    nodes += [texts("cuts", "3 4 0,2:-", "3 4 2,1:-", "3 4 0,2:-"), node("again", "Identity", "v/part_0")]
    save = node("s", "SaveV2", "prefix", "names", "cuts", "v/part_0", "v/part_1", "again")
    found = of(*nodes, save)
    assert named(found) == {"v": (["v/part_0", "v/part_1"], (3, 4), ["3 4 0,2:-", "3 4 2,1:-"])}
    assert found.specs["v"].shape == (3, 4)
    whole = found.named["v"]
    assert [whole.box(part, "f", "v") for part in (0, 1)] == [((0, 2), (0, 4)), ((2, 3), (0, 4))]


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (("SaveV2", "prefix", "names", "cuts", "a"), SHAPED.format(2, 2, 1)),
        (("SaveV2", "prefix", "names", "one", "a", "b"), SHAPED.format(2, 1, 2)),
        (("SaveV2", "prefix", "one", "cuts", "a", "b"), SHAPED.format(1, 2, 2)),
        (("SaveV2", "prefix", "names"), SHAPED.format(2, 0, 0)),
        (("SaveV2", "prefix", "none", "cuts", "a", "b"), SHAPED.format(0, 2, 2)),
        (("SaveV2", "prefix", "a", "cuts", "a", "b"), SHAPED.format(0, 2, 2)),
        (("SaveV2", "prefix", "number", "cuts", "a", "b"), "the save operation 's' has no names"),
        (("Save", "prefix", "names", "a"), SHAPED.format(2, 2, 1)),
    ],
)
def test_savers_that_do_not_fit(save: tuple[str, ...], said: str) -> None:
    nodes = [variable("a"), variable("b"), texts("names", "A", "B"), texts("cuts", "", ""), texts("one", "")]
    nodes += [const("number", 1.0)]
    at = len(graph(*nodes)) + 2
    with says(FormatError, f"f at byte {at}: {said}"):
        _ = of(*nodes, node("s", *save)).named
    assert of(*nodes, node("s", "SaveV2")).named.keys() == {"a", "b"}  # it saves nothing


@pytest.mark.parametrize("cut", ["3 x 0,2:-", "3 -4 0,2:-", "3 4.0 0,2", "3  0,2", "\u0663 0,2", "9" * 20 + " -"])
def test_a_shape_that_is_none(cut: str) -> None:
    nodes = [variable("a"), texts("names", "A"), texts("cuts", cut), node("s", "SaveV2", "p", "names", "cuts", "a")]
    with says(FormatError, f"f: tensor 'A': {cut!r} is no shape and slice"):
        _ = of(*nodes).named


@pytest.mark.parametrize(
    ("cut", "box"),
    [
        ("3 4 0,2:-", ((0, 2), (0, 4))),
        ("3 4 -:-", ((0, 3), (0, 4))),
        ("3 4 1,2:3,1", ((1, 3), (3, 4))),
        ("3 4 3,0:0,4", ((3, 3), (0, 4))),
        ("3 4 1,3:-", None),
        ("3 4 0,2", None),
        ("3 4 0,2:-:-", None),
        ("3 4 0:-", None),
        ("3 4 ,2:-", None),
        ("3 4 0,:-", None),
        ("3 4 -1,2:-", None),
        ("3 4 0,x:-", None),
        ("3 4 0,\u0662:-", None),
        ("3 4 " + "0" * 20 + ",2:-", None),
        ("3 4 " + "0" * 19 + ",2:-", ((0, 2), (0, 4))),
        ("x" * 100, None),
    ],
)
def test_boxes(cut: str, box: tuple[tuple[int, int], ...] | None) -> None:
    found = Variable(["whole", "part"], (3, 4), ["", cut])
    assert found.box(0, "f", "t") is None
    assert Variable(["part"], None, [cut]).box(0, "f", "t") is None
    if box is not None:
        assert found.box(1, "f", "t") == box
        return
    with says(FormatError, f"f: tensor 't': {cut[:80]!r} is no shape and slice"):
        found.box(1, "f", "t")


def test_reads_are_followed_so_far() -> None:
    def read(length: int) -> GraphVariables:
        chain = [node(f"i{n}", "Identity", f"i{n - 1}" if n else "a") for n in range(length)]
        save = node("s", "SaveV2", "p", "names", "cuts", f"i{length - 1}")
        return of(variable("a"), *chain, texts("names", "A"), texts("cuts", ""), save)

    assert named(read(63)) == {"A": (["a"], None, [""])}
    assert named(read(64)) == {"a": (["a"], None, [""])}  # nothing that is saved is a variable
    alone = [variable("a"), node("i", "Identity"), texts("names", "A"), texts("cuts", "")]
    assert named(of(*alone, node("s", "SaveV2", "p", "names", "cuts", "i"))) == {"A": (["i"], None, [""])}


def test_specs() -> None:
    unknown = "a variable whose type and shape the graph does not say"
    found = of(
        variable("a", (2, 3), 2),
        variable("scalar", (), 3),
        variable("text", (5,), 7),
        variable("untyped", (2,), None),
        variable("shapeless", None, 1),
        node("t", "VariableV2", T=number_field(6, 9), shape=bytes_field(7, shape_proto((4,)))),
        variable("a/Adam", (2, 3), 2),
        variable("global_step", (), 9),
    ).specs
    told = {name: (s.dtype.name, s.shape, s.nbytes, s.role, s.unread) for name, s in found.items()}
    assert told == {
        "a": ("float64", (2, 3), 48, "weight", ""),
        "scalar": ("int32", (), 4, "weight", ""),
        "text": ("object", (5,), 0, "weight", ""),
        "untyped": ("object", (), 0, "constant", unknown),
        "shapeless": ("object", (), 0, "constant", unknown),
        "t": ("int64", (4,), 32, "weight", ""),
        "a/Adam": ("float64", (2, 3), 48, "slot", ""),
        "global_step": ("int64", (), 8, "counter", ""),
    }


def test_bounds() -> None:
    nodes = [variable("a"), variable("b")]
    assert len(of(*nodes, budget=Budget(tensors=2)).named) == 2
    with says(BudgetExceeded, "f: tensors: 2 asked for, at most 1 allowed"):
        _ = of(*nodes, budget=Budget(tensors=1)).named
    with says(BudgetExceeded, "f: tensor 'a': tensor bytes: 24 asked for, at most 23 allowed"):
        _ = of(*nodes, budget=Budget(tensor_bytes=23)).specs["a"]
    with pytest.raises(FormatError, match=r"^f: tensor 'a': "):
        _ = of(variable("a", (2,), 99)).specs["a"]
