"""The walker of GraphDefs: what it finds, and that damage is an error."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats._graphdef import attr, const, function, graph, meta_graph, node, saved_model, shape_proto, write
from tests.formats._mutated import mutated
from tests.formats.test_tf_bundle import bytes_field, number_field
from tests.support import fixture
from weightport.errors import Error, FormatError
from weightport.formats import tf_graph
from weightport.formats._proto import Memory
from weightport.tensors import Budget

QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


def parsed(data: bytes, budget: Budget | None = None) -> tf_graph.GraphDef:
    return tf_graph.GraphDef(Memory(data, "g.pb"), 0, len(data), budget=budget)


def test_nodes_and_functions() -> None:
    inner = function("f", ["a", "b"], {"out": "s:z:0", "same": "a"}, [node("s", "Add", "a", "b"), const("k", 2.0)])
    found = parsed(graph(const("x", 1.0), node("call", "PartitionedCall", "x", "^x", f="f"), functions=[inner]))
    assert list(found.main.nodes) == ["x", "call"]
    assert found.main.nodes["call"].inputs == ["x", "^x"]
    assert found.callees(found.main.nodes["call"]) == {"f": "f"}
    assert found.callees(found.main.nodes["x"]) == {}
    body = found.functions["f"]
    assert (body.arguments, body.results, list(body.nodes)) == (["a", "b"], ["s:z:0", "a"], ["s", "k"])
    assert body.title("k") == "f/k"
    assert found.main.title("x") == "x"
    assert [b.name for b in found.bodies()] == ["", "f"]


def test_attributes() -> None:
    shape = bytes_field(7, shape_proto((2, 3)))
    open_shape = bytes_field(7, bytes_field(2, number_field(1, -1)))
    no_rank = bytes_field(7, number_field(3, 1))
    data = node(
        "n", "Op", i=7, f=0.5, t=number_field(6, 1), s=bytes_field(2, b"text"), a=shape, o=open_shape, r=no_rank
    )
    found = parsed(graph(data + attr("i", number_field(3, -2))))
    n = found.main.nodes["n"]
    assert found.attr_number(n, "i") == -2  # the last one counts
    assert found.attr_number(n, "t") == 1
    assert found.attr_number(n, "f") is None
    assert found.attr_float(n, "f") == 0.5
    assert found.attr_float(n, "i") is None
    assert found.attr_text(n, "s") == "text"
    assert found.attr_text(n, "f") is None
    assert found.attr_shape(n, "a") == (2, 3)
    assert found.attr_shape(n, "o") is found.attr_shape(n, "r") is found.attr_shape(n, "missing") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a", ("a", 0)), ("a:2", ("a", 2)), ("a:out:3", ("a", 3)), ("a:out:x", ("a", 0)), ("a:" + "9" * 20, ("a", 0))],
)
def test_references(name: str, expected: tuple[str, int]) -> None:
    assert tf_graph.reference(name) == expected


def test_large_nodes_are_passed_over() -> None:
    class Watched(Memory):
        asked = 0

        def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes:
            self.asked += count
            return super().read(offset, count, tensor=tensor)

    values = np.arange(1 << 20, dtype=np.float32)
    data = graph(const("big", values, "^first"), const("first", 1.0))
    file = Watched(data, "g.pb")
    found = tf_graph.GraphDef(file, 0, len(data))
    assert found.main.nodes["big"].inputs == ["^first"]
    assert file.asked < 100_000
    ref = found.const(found.main.nodes["big"], "big")
    assert ref.read(file, (slice(10, 12),)).tolist() == [10, 11]
    assert file.asked < 200_000
    assert found.const(found.main.nodes["big"], "big") is ref


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (graph(const("a", 1.0), const("a", 2.0)), "two nodes are named 'a'"),
        (graph(functions=[function("f", [], {}, [const("a", 1.0), const("a", 2.0)])]), "two nodes are named '.*a'"),
        (graph(functions=[function("f", [], {}, []), function("f", [], {}, [])]), "two functions are named 'f'"),
        (bytes_field(1, b"\x0a\x7f"), "a node is cut off or corrupt"),
        (bytes_field(1, b"\x0b"), "unknown wire type 3"),
        (bytes_field(1, b"\x05\0\0\0\0"), "a node is cut off or corrupt"),
        (bytes_field(1, b"\x80"), "malformed varint"),
        (graph(node("n" * 70_000, "Const")), "a name of 70,000 bytes"),
        (b"\x0a\x7f", "a field of 127 bytes in 0 that are left"),
    ],
)
def test_malformed(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=f"^g.pb.*: {message}"):
        parsed(data)


@pytest.mark.parametrize("large", [False, True])
def test_fields_that_are_not_needed_are_passed_over(large: bool) -> None:
    """Whatever their type and number, before, between and behind those that are."""
    varint, fixed64, fixed32, text = b"\x20\xac\x02", b"\x39" + b"\x0a" * 8, b"\x3d" + b"\x0a" * 4, b"\x42\x03abc"
    far = b"\xa2\x06\x02\x0a\x01" + b"\xa0\x06\x01"  # of number 100
    parts = [bytes_field(1, b"n"), bytes_field(2, b"Op"), bytes_field(3, b"a"), bytes_field(3, b"x" * 200)]
    filling = bytes_field(14, b"." * (20_000 if large else 1))
    made = b"".join(other + part for other, part in zip([varint, fixed64, fixed32, far], parts, strict=True))
    (found,) = parsed(bytes_field(1, made + text + filling + fixed64 + fixed32)).main.nodes.values()
    assert (found.name, found.op, found.inputs) == ("n", "Op", ["a", "x" * 200])


def test_constants_without_values() -> None:
    found = parsed(graph(node("a", "Const"), node("b", "Const", value=3)))
    for name in "ab":
        with pytest.raises(FormatError, match=f"^g.pb: tensor '{name}' at byte .*: a constant without a value"):
            found.const(found.main.nodes[name], name)


def test_budget() -> None:
    data = graph(*(const(f"c{n}", 1.0) for n in range(100)))
    with pytest.raises(FormatError, match="header bytes"):
        parsed(data, Budget(header_bytes=500))


def test_kinds(tmp_path: Path) -> None:
    a_graph = graph(const("a", 1.0))
    only_library = graph(functions=[function("f", [], {}, [const("a", 1.0)])])
    kinds = {
        "GraphDef": [a_graph, only_library],
        "MetaGraphDef": [meta_graph(a_graph, "serve"), meta_graph(only_library), bytes_field(2, a_graph)],
        "SavedModel": [Path(saved_model(tmp_path / "s", meta_graph(a_graph)), "saved_model.pb").read_bytes()],
    }
    for kind, files in kinds.items():
        for data in files:
            path = write(tmp_path / "m", data)
            assert tf_graph.sniff_kind(path) == kind
            assert tf_graph.open_message(path)[0] == kind
    for data in (b"", b"\x08\x07\x12\x07pytorch\x1a\x05", b"hello", b"\x0a\x02\x08\x01", b"PK\3\4", bytes(100)):
        path = write(tmp_path / "m", data)
        assert tf_graph.sniff_kind(path) is None
        with pytest.raises(FormatError, match="is no TensorFlow graph: neither GraphDef, MetaGraphDef nor SavedModel"):
            tf_graph.open_message(path)
    assert tf_graph.sniff_kind(str(tmp_path / "nothing")) is None


@given(st.data())
@QUICK
def test_mutations(draw: st.DataObject) -> None:
    inner = function("f", ["a"], {"out": "s:z:0"}, [node("s", "Add", "a", "a"), const("k", 2.0)])
    big = const("big", np.zeros(5000, np.float32))
    data = mutated(draw, graph(const("x", 1.0), big, node("call", "PartitionedCall", "x", f="f"), functions=[inner]))
    tf_graph.kind_of(Memory(data, "g"))
    with contextlib.suppress(Error):
        found = parsed(data)
        for body in found.bodies():
            for n in body.nodes.values():
                with contextlib.suppress(Error):
                    found.callees(n)
                with contextlib.suppress(Error):
                    found.const(n, n.name).read(found.file)
                for key in ("value", "f", ""):
                    with contextlib.suppress(Error):
                        found.attr_shape(n, key)
                        found.attr_float(n, key)


@given(st.binary(max_size=80))
@QUICK
def test_any_bytes(data: bytes) -> None:
    tf_graph.kind_of(Memory(data, "g"))
    with contextlib.suppress(Error):
        parsed(data)


NODE = bytes_field(1, b"n") + bytes_field(2, b"NoOp")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (bytes_field(1, NODE), "GraphDef"),
        (bytes_field(1, bytes_field(1, b"n") + bytes_field(3, b"x") + bytes_field(2, b"NoOp")), "GraphDef"),
        (bytes_field(1, bytes_field(1, b"n")), None),
        (bytes_field(1, bytes_field(2, b"NoOp")), None),
        (bytes_field(1, bytes_field(1, b"") + bytes_field(2, b"NoOp")), None),
        (bytes_field(1, bytes_field(1, b"n" * 4096) + bytes_field(2, b"NoOp")), None),
        (bytes_field(1, bytes_field(1, b"n") + bytes_field(2, b"No Op")), None),
        (bytes_field(1, bytes_field(1, b"n") + bytes_field(2, b"A" * 512)), None),
        (bytes_field(1, bytes_field(1, b"n") + number_field(3, 1) + bytes_field(2, b"NoOp")), None),
        (bytes_field(1, bytes_field(1, b"n") + bytes_field(3, b"x") * 3 + bytes_field(2, b"NoOp")), None),
        (bytes_field(1, b""), None),
        (bytes_field(1, b"") + bytes_field(1, NODE), None),
        (bytes_field(9, b"") + bytes_field(1, NODE), None),
        (bytes_field(9, b"") + bytes_field(2, graph(NODE)), "MetaGraphDef"),
        (number_field(9, 1) * 100 + bytes_field(2, graph(NODE)), None),
        (meta_graph(graph(NODE)), "MetaGraphDef"),
        (bytes_field(2, bytes_field(2, graph(NODE))), "SavedModel"),
        (number_field(1, 1) + bytes_field(2, meta_graph(graph(NODE))), "SavedModel"),
        (number_field(1, 1) * 2 + bytes_field(2, meta_graph(graph(NODE))), "SavedModel"),
        (number_field(1, 1 << 31) + bytes_field(2, meta_graph(graph(NODE))), "SavedModel"),
        (bytes_field(2, bytes_field(2, meta_graph(graph(NODE)))), None),
        (bytes_field(2, b""), None),
        (bytes_field(4, bytes(63)) + bytes_field(2, graph(NODE)), None),
        (bytes_field(4, bytes(64)) + bytes_field(2, graph(NODE)), "MetaGraphDef"),
        (graph(functions=[function("f", [], {}, [NODE])]), "GraphDef"),
        (bytes_field(2, bytes_field(1, bytes_field(3, b"n"))), None),
        (bytes_field(2, bytes_field(1, bytes_field(1, b"f"))), None),
        (bytes_field(2, bytes_field(1, bytes_field(1, b"") + bytes_field(3, NODE))), None),
        (bytes_field(2, bytes_field(1, bytes_field(2, b"x") + bytes_field(3, NODE))), None),
        (bytes_field(2, number_field(1, 1)), None),
        (bytes_field(9, b"") + graph(functions=[function("f", [], {}, [NODE])]), None),
        (b"\x0b", None),
        (b"", None),
    ],
)
def test_kinds_by_their_first_fields(data: bytes, kind: str | None) -> None:
    assert tf_graph.kind_of(Memory(data, "f")) == kind


def test_attributes_that_hold_more_than_is_known() -> None:
    entry = number_field(9, 1) + bytes_field(1, b"a") + bytes_field(9, b"x")
    eight = b"\x09" + bytes(8)
    shape = number_field(9, 1) + bytes_field(2, number_field(1, 2)) + bytes_field(2, b"") + number_field(3, 0)
    call = number_field(9, 1) + bytes_field(10, number_field(9, 1) + bytes_field(1, b"f"))
    data = bytes_field(1, b"n") + bytes_field(2, b"Op") + number_field(5, 1)
    data += bytes_field(5, entry + bytes_field(2, number_field(3, 7) + eight))
    data += bytes_field(5, bytes_field(1, b"s") + bytes_field(2, bytes_field(7, shape)))
    data += bytes_field(5, number_field(2, 1) + bytes_field(1, b"c") + bytes_field(2, call))
    data += bytes_field(5, bytes_field(1, b"none"))
    signature = bytes_field(1, bytes_field(1, b"f") + bytes_field(9, b"x"))
    library = number_field(2, 1) + bytes_field(1, signature + number_field(5, 1) + bytes_field(4, number_field(1, 1)))
    found = parsed(number_field(9, 1) + graph(data) + bytes_field(2, library))
    n = found.main.nodes["n"]
    assert found.attr_number(n, "a") == 7
    assert found.attr_shape(n, "s") == (2, 0)
    assert found.attr(n, "none") is None
    assert found.callees(n) == {"c": "f"}


def test_a_real_graph() -> None:
    path = fixture("b_cells/basic_lstm_fb1").path("frozen")
    kind, file, handle = tf_graph.open_message(path)
    assert kind == "GraphDef"
    found = tf_graph.GraphDef(file, 0, file.size)
    assert found.main.nodes["rnn/basic_lstm_cell/kernel"].op == "Const"
    assert found.main.nodes["rnn/basic_lstm_cell/kernel/read"].inputs == ["rnn/basic_lstm_cell/kernel"]
    handle.close()
