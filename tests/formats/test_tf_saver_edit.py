"""Savers without the variables that became constants, on graphs written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.formats._graphdef import const, graph, node
from tests.formats.test_tf_bundle import bytes_field
from tests.support import says
from weightport.errors import FormatError
from weightport.formats._proto import Memory
from weightport.formats._tf_edit import GraphEdit, attr_types
from weightport.formats._tf_saver_edit import forget, prune, saves
from weightport.formats.tf_graph import GraphDef

Shown = dict[str, str]


def parsed(data: bytes) -> GraphDef:
    return GraphDef(Memory(data, "g.pb"), 0, len(data))


def types(*numbers: int) -> bytes:
    return bytes_field(1, bytes_field(6, bytes(numbers)))


def texts(name: str, *values: str) -> bytes:
    return const(name, np.array([v.encode() for v in values], object))


def shown(edit: GraphEdit) -> Shown:
    """Every node in a line: operation, inputs, the texts of a constant, the types of what is saved or restored."""
    data = bytes(edit.message(0, edit.graph.file.size))
    made = parsed(data)
    found: Shown = {}
    for name, n in made.main.nodes.items():
        line = " ".join([n.op, *n.inputs])
        if n.op == "Const":
            line += f" {made.const(n, name).read(made.file).tolist()}"
        listed = attr_types(made, n, "T" if n.op == "Save" else "dtypes")
        count = made.attr_number(n, "N")
        found[name] = line + (f" {listed}" if listed else "") + (f" N={count}" if count is not None else "")
    return found


def forgotten(*nodes: bytes, gone: str = "v") -> tuple[list[str], Shown]:
    """What may not be needed any more, and the nodes that are others now."""
    edit = GraphEdit(parsed(graph(*nodes)))
    before = shown(edit)
    left = forget(edit, set(gone.split()))
    after = shown(edit)
    return left, {name: line for name, line in after.items() if before.get(name) != line}


V, W = node("v", "VarHandleOp"), node("w", "VariableV2")
READ = node("v/read", "ReadVariableOp", "v")
PREFIX, NAMES, CUTS = texts("prefix", "p"), texts("names", "v", "w"), texts("cuts", "", "")


def save(*inputs: str, numbers: tuple[int, ...] = (1, 3)) -> bytes:
    return node("save", "SaveV2", "prefix", "names", "cuts", *inputs, dtypes=types(*numbers))


SAVED: dict[str, tuple[list[bytes], list[str], Shown]] = {
    "one of two": (
        [V, W, READ, PREFIX, NAMES, CUTS, save("v/read", "w", "^w")],
        [],
        {"names": "Const [b'w']", "cuts": "Const [b'']", "save": "SaveV2 prefix names cuts w ^w [3]"},
    ),
    "all that there is": (
        [V, READ, PREFIX, texts("names", "v"), texts("cuts", ""), save("v/read", "^w", numbers=(1,)), W],
        ["prefix", "names", "cuts"],
        {"save": "NoOp ^w"},
    ),
    "none of them": ([V, W, PREFIX, NAMES, CUTS, save("w", "w")], [], {}),
    "names that are computed": (
        [V, W, PREFIX, node("names", "Pack", "prefix"), CUTS, save("v", "w")],
        [],
        {},
    ),
    "fewer names than tensors": ([V, W, PREFIX, texts("names", "v"), CUTS, save("v", "w")], [], {}),
    "names that are numbers": ([V, W, PREFIX, const("names", np.array([1, 2])), CUTS, save("v", "w")], [], {}),
    "the old operation, which has no slices": (
        [V, W, PREFIX, NAMES, node("save", "Save", "prefix", "names", "w", "v", T=types(3, 1))],
        [],
        {"names": "Const [b'v']", "save": "Save prefix names w [3]"},
    ),
    "one that is read through too many nodes": (
        [
            V,
            W,
            *(node(f"i{n}", "Identity", f"i{n - 1}" if n else "v") for n in range(64)),
            PREFIX,
            NAMES,
            CUTS,
            save("i63", "w"),
        ],
        [],
        {},
    ),
    "an identity of nothing": ([V, node("i", "Identity"), PREFIX, NAMES, CUTS, save("i", "i")], [], {}),
}


@pytest.mark.parametrize("case", SAVED)
def test_saved(case: str) -> None:
    nodes, left, changed = SAVED[case]
    assert forgotten(*nodes) == (left, changed)


def test_too_few_types() -> None:
    nodes = [V, W, PREFIX, NAMES, CUTS]
    with says(
        FormatError, f"g.pb at byte {len(graph(*nodes)) + 2}: the save operation 'save' has 1 types for 2 tensors"
    ):
        forgotten(*nodes, save("v", "w", numbers=(1,)))


def restore(*inputs: str, name: str = "restore", numbers: tuple[int, ...] = (1, 3, 9)) -> bytes:
    return node(name, "RestoreV2", *inputs, dtypes=types(*numbers))


R = [PREFIX, texts("names", "u", "v", "w"), texts("cuts", "a", "b", "c")]
TAKERS = [node("set_u", "Assign", "w", "restore"), node("set_w", "Assign", "w", "restore:2", "^restore:1")]
GONE = node("set_v", "AssignVariableOp", "v", "restore:1")

RESTORED: dict[str, tuple[list[bytes], Shown]] = {
    "the one in the middle": (
        [*R, restore("prefix", "names", "cuts", "^w"), *TAKERS, GONE, W],
        {
            "names": "Const [b'u', b'w']",
            "cuts": "Const [b'a', b'c']",
            "restore": "RestoreV2 prefix names cuts ^w [1, 9]",
            "set_w": "Assign w restore:1 ^restore:1",
        },
    ),
    "the first": (
        [
            *R,
            restore("prefix", "names", "cuts"),
            node("set_v", "Assign", "v", "restore"),
            *TAKERS[1:],
            node("x", "Neg", "restore:1", "restore:2"),
        ],
        {
            "names": "Const [b'v', b'w']",
            "cuts": "Const [b'b', b'c']",
            "restore": "RestoreV2 prefix names cuts [3, 9]",
            "set_w": "Assign w restore:1 ^restore:1",
            "x": "Neg restore restore:1",
        },
    ),
    "more inputs than there should be": (
        [*R, restore("prefix", "names", "cuts", "w", "v"), *TAKERS, GONE],
        {
            "names": "Const [b'u', b'w']",
            "cuts": "Const [b'a', b'c']",
            "restore": "RestoreV2 prefix names cuts w v [1, 9]",
            "set_w": "Assign w restore:1 ^restore:1",
        },
    ),
    "what nobody ever took": ([*R, restore("prefix", "names", "cuts"), *TAKERS], {}),
    "names that others use, too": (
        [*R, restore("prefix", "names", "cuts"), *TAKERS, GONE, node("x", "Identity", "names")],
        {
            "names/left": "Const [b'u', b'w']",
            "cuts": "Const [b'a', b'c']",
            "restore": "RestoreV2 prefix names/left cuts [1, 9]",
            "set_w": "Assign w restore:1 ^restore:1",
        },
    ),
    "slices that are computed": (
        [*R[:2], node("cuts", "Pack", "prefix"), restore("prefix", "names", "cuts"), *TAKERS, GONE],
        {},
    ),
    "too few slices": ([*R[:2], texts("cuts", "a", "b"), restore("prefix", "names", "cuts"), *TAKERS, GONE], {}),
    "too few inputs": ([*R, restore("prefix", "names"), *TAKERS, GONE], {}),
    "nothing is left": (
        [*R, restore("prefix", "names", "cuts", numbers=(1,)), node("set_v", "Assign", "v", "restore")],
        {},
    ),
}


@pytest.mark.parametrize("case", RESTORED)
def test_restored(case: str) -> None:
    """``set_v`` does nothing any more, as when its variable became a constant."""
    nodes, changed = RESTORED[case]
    edit = GraphEdit(parsed(graph(*nodes)))
    if "set_v" in edit.main.body.nodes:
        edit.main.edit("set_v").becomes("NoOp", [], bare=True)
    before = shown(edit)
    assert forget(edit, {"v"}) == []
    after = shown(edit)
    assert {name: line for name, line in after.items() if before.get(name) != line} == changed


def shards(*packed: str, merge: bytes | None = None, op: str = "Pack") -> list[bytes]:
    """A shard of which nothing is left, and what merges it with others."""
    return [
        V,
        PREFIX,
        texts("names", "v"),
        texts("cuts", ""),
        save("v", numbers=(1,)),
        texts("other", "o"),
        node("pack", op, *packed, N=len(packed)),
        merge or node("merge", "MergeV2Checkpoints", "pack", "other", "^save"),
    ]


MERGED: dict[str, tuple[list[bytes], Shown]] = {
    "two shards": (shards("prefix", "other", "^v"), {"pack": "Pack other ^v N=1"}),
    "the only one": (shards("prefix", "^v"), {"merge": "NoOp ^save"}),
    "others": (shards("other", "other"), {}),
    "shards that are computed": (shards("prefix", "other", op="ConcatV2"), {}),
    "a second one": (
        [node("early", "MergeV2Checkpoints", "nowhere"), *shards("other", "prefix")],
        {"pack": "Pack other N=1"},
    ),
    "the only one of a merge that says more": (
        shards("prefix", merge=node("merge", "MergeV2Checkpoints", "pack", "other", N=3)),
        {"merge": "NoOp"},
    ),
    "a merge of nothing": (shards("prefix", merge=node("merge", "MergeV2Checkpoints", "^pack")), {}),
}


@pytest.mark.parametrize("case", MERGED)
def test_merged(case: str) -> None:
    nodes, changed = MERGED[case]
    assert forgotten(*nodes) == (["prefix", "names", "cuts"], {"save": "NoOp", **changed})


def test_how_many_save() -> None:
    edit = GraphEdit(parsed(graph(V, W, PREFIX, NAMES, CUTS, save("v", "w"), node("other", "Save", "prefix", "names"))))
    assert saves(edit) == 2
    edit.main.edit("save").becomes("NoOp")
    edit.main.removed.add("other")
    assert saves(edit) == 0


def test_what_nobody_needs_any_more() -> None:
    """A chain goes up to what others take, feed, pin or keep values in; a node that waits is a user, too."""
    nodes = [
        V,
        node("fed", "PlaceholderWithDefault", "zero"),
        const("zero", 0.0),
        const("shared", 0.0),
        const("pinned", 0.0),
        const("own", 0.0),
        const("waited", 0.0),
        node("a", "Add", "v", "fed"),
        node("b", "Add", "shared:0", "pinned"),
        node("c", "Pack", "a:0", "b", "own", "own", "^waited"),
        node("taken", "Neg", "c"),
        node("other", "Neg", "shared", "^waited"),
    ]
    edit = GraphEdit(parsed(graph(*nodes)))
    prune(edit, ["c", "nowhere"], lambda name: name == "pinned")
    assert not edit.main.removed, "it is taken"
    prune(edit, ["taken", "taken", "shared", "v", "pinned"], lambda name: name == "pinned")
    assert edit.main.removed == {"taken", "c", "a", "b", "own"}
    prune(edit, ["other"], lambda _: False)
    assert edit.main.removed == {"taken", "c", "a", "b", "own", "other", "shared", "waited"}, "nothing waits any more"
