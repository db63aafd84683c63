"""A graph with some of its nodes and functions changed; all else keeps its bytes and its place."""

from __future__ import annotations

from tests.formats._graphdef import attr, const, function, graph, node
from tests.formats.test_tf_bundle import bytes_field, number_field
from weightport.formats import _tf_edit
from weightport.formats._message import Message, fields_of
from weightport.formats._proto import Memory
from weightport.formats._tf_calls import call_sites, function_attrs, rename_call
from weightport.formats._tf_edit import GraphEdit, attr_types, map_key, rebuilt, type_value
from weightport.formats.tf_graph import GraphDef


def parsed(data: bytes) -> GraphDef:
    return GraphDef(Memory(data, "g.pb"), 0, len(data))


def edited(edit: GraphEdit) -> GraphDef:
    return parsed(bytes(edit.message(0, edit.graph.file.size)))


def calling(*names: str) -> bytes:
    """An AttrValue that is a list of functions."""
    inner = b"".join(bytes_field(9, bytes_field(1, n.encode()) + bytes_field(2, b"")) for n in names)
    return bytes_field(1, number_field(3, 7) + inner)


F = function("f", ["a"], {"out": "a"}, [node("inside", "Neg", "a")])
G = function("g", ["a"], {"out": "a"}, [])
DATA = graph(
    const("c", 1.0),
    node("call", "PartitionedCall", "c", f="f"),
    node("direct", "f", "c"),
    node("several", "Case", "c", branches=calling("f", "g", "f")),
    functions=[F, G],
)


def test_nothing_changes() -> None:
    edit = GraphEdit(parsed(DATA))
    assert bytes(edit.message(0, len(DATA))) == DATA
    versions = number_field(3, 1) + bytes_field(4, b"v")
    edit = GraphEdit(parsed(versions + DATA))
    assert bytes(edit.message(0, len(versions + DATA))) == versions + DATA


def test_new_nodes_follow_the_old_ones() -> None:
    edit = GraphEdit(parsed(DATA))
    names = []
    for _ in range(2):
        names.append(edit.fresh("c"))
        edit.add_node(names[-1], "Neg", inputs=("call", "^c"), device="/cpu:0", attrs={"T": type_value(1), "no": None})
    assert names == ["c_1", "c_2"]
    found = edited(edit)
    assert list(found.main.nodes) == ["c", "call", "direct", "several", "c_1", "c_2"]
    assert found.main.nodes["c_2"].inputs == ["call", "^c"]
    assert found.attr_number(found.main.nodes["c_2"], "T") == 1
    assert b"\x22\x06/cpu:0" in bytes(edit.message(0, len(DATA)))


def test_a_changed_node_keeps_what_is_not_spoken_of() -> None:
    full_type = bytes_field(7, b"\x08\x05")
    data = node("n", "Op", "x", i=7, f=0.5) + attr("gone", number_field(3, 1)) + full_type + bytes_field(4, b"/cpu:0")
    found = parsed(graph(data, const("x", 1.0)))
    edits = GraphEdit(found).main
    edit = edits.edit("n")
    assert edits.edit("n") is edit
    assert bytes(rebuilt(found, edit)) == data
    edit.becomes("Other", ["y", "^x"], {"i": type_value(1), "gone": None, "new": type_value(2), "never": None})
    assert (edits.op("n"), edits.inputs("n")) == ("Other", ["y", "^x"])
    made = parsed(graph(bytes(rebuilt(found, edit))))
    n = made.main.nodes["n"]
    assert (n.op, n.inputs) == ("Other", ["y", "^x"])
    assert (made.attr_number(n, "i"), made.attr_float(n, "f"), made.attr_number(n, "new")) == (1, 0.5, 2)
    assert made.attr(n, "gone") is None
    text = bytes(rebuilt(found, edit))
    assert bytes_field(4, b"/cpu:0") in text
    assert full_type not in text, "it was another operation's"
    edit.becomes("Other", bare=True)
    bare = parsed(graph(bytes(rebuilt(found, edit))))
    assert bare.attr(bare.main.nodes["n"], "f") is None
    assert bare.attr_number(bare.main.nodes["n"], "new") == 2


def test_a_node_without_an_operation_gets_one() -> None:
    found = parsed(graph(bytes_field(1, b"n")))
    edit = GraphEdit(found).main.edit("n")
    edit.becomes("NoOp")
    assert bytes(rebuilt(found, edit)) == bytes_field(1, b"n") + bytes_field(2, b"NoOp")


def test_what_is_gone_is_nobody_s_input() -> None:
    edit = GraphEdit(parsed(DATA))
    main = edit.main
    assert main.users() == {"c": ["call", "direct", "several"]}
    main.removed.add("direct")
    assert (main.op("direct"), main.inputs("direct"), main.op("nowhere")) == ("", [], "")
    main.edit("call").becomes("Neg", ["several:1", "^c"])
    assert main.users() == {"several": ["call"], "c": ["call", "several"]}
    assert list(edited(edit).main.nodes) == ["c", "call", "several"]


def test_functions_change_and_are_copied() -> None:
    found = parsed(DATA)
    edit = GraphEdit(found)
    body = found.functions["f"]
    edit.body(body).edit("inside").becomes("Abs")
    copy = edit.variant(body)
    copy.edit("inside").becomes("Sign", ["b"])
    assert (edit.body(body).op("inside"), edit.body(body).inputs("inside")) == ("Abs", ["a"])
    assert (copy.op("inside"), copy.inputs("inside")) == ("Sign", ["b"])
    edit.functions["g"] = Message(function("h", [], {}, []))
    edit.new_functions.append(Message(function("k", [], {}, [])))
    made = edited(edit)
    assert list(made.functions) == ["f", "h", "k"]
    assert made.functions["f"].nodes["inside"].op == "Abs"
    # A second library, which no writer writes, is changed as the first; what is new is in one of them.
    edit.graph = parsed(DATA + bytes_field(2, bytes_field(2, b"gradient")))
    assert list(edited(edit).functions) == ["f", "h", "k"]


def test_calls_are_renamed() -> None:
    found = parsed(DATA)
    sites = list(call_sites(found, found.main))
    assert sites == [
        ("call", "f", 0, "f"),
        ("direct", "", 0, "f"),
        ("several", "branches", 0, "f"),
        ("several", "branches", 1, "g"),
        ("several", "branches", 2, "f"),
    ]
    edit = GraphEdit(found)
    for count, (node_name, attr_name, number, _) in enumerate(sites):
        if count != 2:
            rename_call(found, edit.main, (node_name, attr_name, number), f"new{count}")
    made = edited(edit)
    assert made.main.nodes["direct"].op == "new1"
    names = {n.name: [name for _, _, name in function_attrs(made, n)] for n in made.main.nodes.values()}
    assert names == {"c": [], "call": ["new0"], "direct": [], "several": ["f", "new3", "new4"]}
    # The attributes of the functions, and what else the list holds, stay.
    assert bytes_field(9, bytes_field(1, b"new3") + bytes_field(2, b"")) in bytes(edit.message(0, len(DATA)))
    assert number_field(3, 7) + bytes_field(9, bytes_field(1, b"f")) not in bytes(edit.message(0, len(DATA)))
    assert bytes_field(9, bytes_field(1, b"f") + bytes_field(2, b"")) in bytes(edit.message(0, len(DATA)))


def test_calls_of_attributes_that_hold_more_than_is_known() -> None:
    odd = number_field(9, 1) + bytes_field(10, number_field(9, 1) + bytes_field(1, b"f"))
    data = graph(node("n", "Op", f=odd, big=bytes_field(2, bytes(1 << 20))), functions=[F])
    found = parsed(data)
    assert list(function_attrs(found, found.main.nodes["n"])) == [("f", 0, "f")]
    edit = GraphEdit(found)
    rename_call(found, edit.main, ("n", "f", 0), "g")
    rename_call(found, edit.main, ("n", "f", 0), "h")
    assert bytes(edit.main.edit("n").attrs["f"] or b"") == (
        number_field(9, 1) + bytes_field(10, bytes_field(1, b"h") + number_field(9, 1))
    )


def test_the_key_of_an_entry() -> None:
    def key(data: bytes) -> str:
        (found,) = fields_of(Memory(bytes_field(5, data), "f"), 0, len(bytes_field(5, data)))
        return map_key(found)

    assert key(number_field(1, 3) + bytes_field(2, b"x") + bytes_field(1, b"k")) == "k"
    assert key(bytes_field(2, b"x")) == ""


def test_types() -> None:
    entry = number_field(6, 1) + bytes_field(6, b"\x03\x81\x01") + number_field(3, 9) + number_field(6, 9)
    found = parsed(graph(node("n", "Op", T=bytes_field(1, entry), one=number_field(6, 1))))
    n = found.main.nodes["n"]
    assert attr_types(found, n, "T") == [1, 3, 129, 9]
    assert attr_types(found, n, "one") == attr_types(found, n, "none") == []
    assert bytes(_tf_edit.types_value([1, 200])) == bytes_field(1, bytes_field(6, b"\x01\xc8\x01"))
    assert bytes(_tf_edit.types_value([])) == bytes_field(1, b"")
    assert bytes(_tf_edit.shapes_value([(), (2, 0)])) == bytes_field(
        1, bytes_field(7, b"") + bytes_field(7, bytes_field(2, b"\x08\x02") + bytes_field(2, b""))
    )
