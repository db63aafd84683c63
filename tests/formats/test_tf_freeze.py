"""What becomes of the uses of a variable that is a constant, in graphs written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.formats._graphdef import const, function, graph, node, shape_proto, write
from tests.formats.test_tf_bundle import bytes_field, number_field
from tests.formats.test_tf_graph_write import put
from tests.support import says
from weightport.errors import Error, RefusedError
from weightport.formats import tf_graph_write
from weightport.formats._message import MOST_BYTES
from weightport.formats._proto import Memory
from weightport.formats._tf_calls import function_attrs
from weightport.formats._tf_edit import attr_types
from weightport.formats.tf_graph import GraphDef
from weightport.tensors import TensorSpec

FLOAT = number_field(6, 1)
HANDLE = bytes_field(1, bytes_field(6, b"\x14"))
VALUE = np.float32([1, 2])


def variable(name: str, op: str = "VarHandleOp") -> bytes:
    return node(name, op, dtype=FLOAT, shape=bytes_field(7, shape_proto([2])))


def frozen(path: Path, *nodes: bytes, functions: list[bytes] | None = None) -> GraphDef:
    """The graph in which ``v`` is a constant."""
    like = write(path / "g.pb", graph(*nodes, functions=functions or []))
    data = Path(put(path / "out.pb", like, {"v": VALUE}, {"v"})).read_bytes()
    return GraphDef(Memory(data, "out.pb"), 0, len(data))


def lines(made: GraphDef) -> dict[str, str]:
    return {name: " ".join([n.op, *n.inputs]) for name, n in made.main.nodes.items()}


@pytest.mark.parametrize(("length", "falls_away"), [(62, True), (63, False)])
def test_what_is_restored_is_followed_so_far(tmp_path: Path, length: int, falls_away: bool) -> None:
    nodes = [variable("v"), const("p", np.array(b"p", object)), node("restore", "RestoreV2", "p", "p", "p")]
    nodes += [node(f"i{n}", "Identity", f"i{n - 1}" if n else "restore") for n in range(length + 1)]
    nodes.append(node("set", "AssignVariableOp", "v", f"i{length}"))
    if falls_away:
        assert lines(frozen(tmp_path, *nodes))["set"] == "NoOp"
        return
    told = "AssignVariableOp 'set' writes it; make it an initial value, or take a graph without that operation"
    with says(Error, f"variable 'v': cannot become a constant: {told}"):
        frozen(tmp_path, *nodes)


@pytest.mark.parametrize("way", [["Identity"], ["Neg", "restore"], ["Placeholder"]])
def test_what_is_not_restored(tmp_path: Path, way: list[str]) -> None:
    nodes = [variable("v"), node("restore", "RestoreV2"), node("x", *way), node("set", "AssignVariableOp", "v", "x")]
    told = "AssignVariableOp 'set' writes it; make it an initial value, or take a graph without that operation"
    with says(Error, f"variable 'v': cannot become a constant: {told}"):
        frozen(tmp_path, *nodes)


def test_a_reference_that_comes_on_two_ways(tmp_path: Path) -> None:
    nodes = [
        variable("v", "VariableV2"),
        node("merge", "RefMerge", "v", "v"),
        node("switch", "RefSwitch", "merge", "which"),
        node("y", "Identity", "switch:1", T=FLOAT),
        node("which", "Placeholder"),
    ]
    found = lines(frozen(tmp_path, *nodes))
    assert (found["merge"], found["switch"], found["y"]) == ("Merge v v", "Switch merge which", "Identity switch:1")


def test_a_copy_of_a_function_whose_name_is_taken(tmp_path: Path) -> None:
    """One call gets the constant, another one a handle that is left."""
    body = [node("r", "ReadVariableOp", "a", dtype=FLOAT)]
    functions = [function("f", ["a"], {"o": "r:value:0"}, body), function("f_pretrained_0", [], {}, [])]
    calls = [
        node("mine", "PartitionedCall", "v", f="f", Tin=HANDLE),
        node("theirs", "PartitionedCall", "w", f="f", Tin=HANDLE),
    ]
    made = frozen(tmp_path, variable("v"), variable("w"), *calls, functions=functions)
    assert list(made.functions) == ["f", "f_pretrained_0", "f_pretrained_0_"]
    called = {name: [f for _, _, f in function_attrs(made, made.main.nodes[name])] for name in ("mine", "theirs")}
    assert called == {"mine": ["f_pretrained_0_"], "theirs": ["f"]}
    assert made.functions["f"].nodes["r"].op == "ReadVariableOp"
    assert made.functions["f_pretrained_0_"].nodes["r"].op == "Identity"
    assert [attr_types(made, made.main.nodes[name], "Tin") for name in ("mine", "theirs")] == [[1], [20]]


def test_a_call_that_says_no_types(tmp_path: Path) -> None:
    body = function("f", ["a"], {"o": "r:value:0"}, [node("r", "ReadVariableOp", "a", dtype=FLOAT)])
    made = frozen(tmp_path, variable("v"), node("call", "PartitionedCall", "v", f="f"), functions=[body])
    call = made.main.nodes["call"]
    found = made.attr(call, "Tin")
    assert (call.op, call.inputs, attr_types(made, call, "Tin")) == ("PartitionedCall", ["v"], [])
    assert found is not None
    assert found.size == 0


# The dry run ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_refuses_what_writing_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = {"v": TensorSpec.of("float32", (2,))}
    good = write(tmp_path / "good.pb", graph(variable("v"), node("y", "ReadVariableOp", "v", dtype=FLOAT)))
    bad = write(tmp_path / "bad.pb", graph(variable("v"), node("y", "Mystery", "v")))
    out = str(tmp_path / "out.pb")
    tf_graph_write.check(out, specs, like=good, constants={"v"})
    tf_graph_write.check(out, specs, like=bad, constants={"v"}, kept={"v"})
    told = "variable 'v': cannot become a constant: Mystery 'y' uses it in a way that is no read"
    with says(Error, f"{told}; make it an initial value"):
        tf_graph_write.check(out, specs, like=bad, constants={"v"})
    assert MOST_BYTES > 50
    monkeypatch.setattr(tf_graph_write, "MOST_BYTES", 50)
    with pytest.raises(RefusedError, match=r"out\.pb: would be \d+ bytes, and protobuf reads at most 2 GiB of a graph"):
        tf_graph_write.check(out, specs, like=good, constants={"v"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pb", "good.pb"]


def test_a_dry_run_with_texts(tmp_path: Path) -> None:
    """Their lengths are not known yet: they count as empty."""
    like = write(tmp_path / "g.pb", graph(const("v", np.array([b"a", b"b"], object))))
    specs = {"v": TensorSpec(np.dtype(object), (2,), 0)}
    tf_graph_write.check(str(tmp_path / "out.pb"), specs, like=like)
    assert [p.name for p in tmp_path.iterdir()] == ["g.pb"]
