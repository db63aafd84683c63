# ruff: noqa: E501 - one case a line
"""Layout tables: what they become, and all the problems of a bad one at once."""

from __future__ import annotations

from typing import Any

import pytest

from weightport.errors import LayoutError
from weightport.layouts import Layout, builtin, find_layout, parse_layout
from weightport.layouts.layout import KIND_GATES

TENSORS = {"W": "wx[input (gate unit)]", "U": "wt[hidden (gate unit)]"}
VECTOR = {"runs": [["wx[(gate unit input)]", "wt[(gate unit hidden)]"]]}


def parsed(table: Any, name: str = "lstm.mine") -> Layout:
    return parse_layout(name, table, "here")


def messages(table: Any, name: str = "lstm.mine") -> list[str]:
    with pytest.raises(LayoutError) as caught:
        parsed(table, name)
    return [str(p) for p in caught.value.problems]


def with_(**more: Any) -> dict[str, Any]:
    return {"tensors": dict(TENSORS), **more}


def named(**more: Any) -> dict[str, Any]:
    return {"tensors": {**TENSORS, **{k.replace("__", "/"): v for k, v in more.items()}}}


# The shipped tables --------------------------------------------------------------------------------------------------


def test_what_ships() -> None:
    for kind, flavours in {
        "lstm": {"scoped-gates", "ifco", "tf1", "tf1-coupled", "keras", "keras1", "keras-cudnn"},
        "gru": {"scoped-gates", "tf1", "keras", "keras1", "keras-cudnn"},
        "rnn": {"scoped-gates", "tf1", "keras", "keras1"},
    }.items():
        assert {f"{kind}.{flavour}" for flavour in flavours} <= set(builtin())


@pytest.mark.parametrize("name", list(builtin()))
def test_each_shipped_table(name: str) -> None:
    layout = builtin()[name]
    assert layout.name == name
    assert layout.kind == name.split(".")[0]
    assert layout.title
    assert layout.source, "where its facts are from"
    if layout.kind not in KIND_GATES:
        return
    assert layout.activation in ("tanh", "relu")
    assert (layout.recurrent_activation is None) == (layout.kind == "rnn")
    assert set(layout.gates) | set(layout.derived) == set(KIND_GATES[layout.kind])
    assert all(form.params >= {"wx", "wt"} for form in layout.forms)
    assert all((form.reset is not None) <= (layout.kind == "gru") for form in layout.forms)
    assert all(form.forget_bias in (0.0, 1.0) for form in layout.forms)


def test_a_form_without_a_bias_is_told_from_one_whose_bias_does_not_fit() -> None:
    assert [form.absent for form in builtin()["gru.keras"].forms[:3]] == [(), (), ("bias",)]
    assert not any(form.absent for form in builtin()["lstm.tf1"].forms)


def test_find_layout() -> None:
    mine = parsed(with_(title="x"))
    assert find_layout("lstm.mine", {"lstm.mine": mine}) is mine
    assert find_layout("lstm.keras") is builtin()["lstm.keras"]
    assert find_layout("lstm.keras", {"lstm.keras": mine}) is mine
    with pytest.raises(LayoutError, match=r"^no layout 'lstm.kera'; closest: 'lstm.keras'"):
        find_layout("lstm.kera")
    with pytest.raises(LayoutError, match=r"^no layout 'zzz'; weightport layouts lists them$"):
        find_layout("zzz")


# What a table becomes ------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    layout = parsed(with_())
    assert (layout.name, layout.kind, layout.gates) == ("lstm.mine", "lstm", ("i", "f", "g", "o"))
    assert (layout.activation, layout.recurrent_activation, layout.inner) == (None, None, "")
    assert (layout.suffixes, layout.uniform) == (False, False)
    (form,) = layout.forms
    assert (form.reset, form.forget_bias, form.cells, form.absent, form.joined) == (None, 0.0, (), (), False)
    assert [row.template for row in form.rows] == ["W", "U"]
    assert parsed(with_(), "gru.mine").gates == ("r", "z", "n")
    assert parsed(with_(), "rnn.mine").gates == ("h",)
    assert parsed(with_(), "mgu.mine").gates == ("h",)


def test_everything_said() -> None:
    layout = parsed(
        {
            "title": "t", "source": "s", "gates": {"i": "in", "f": 1, "~o": "out"}, "derived": {"g": "~i"},
            "activation": "relu", "recurrent_activation": "hard_sigmoid", "fixed": ["forget_bias"], "inner": "cell",
            "directions": {"forward": "", "backward": "_r"}, "suffixes": True, "uniform": True, "forget_bias": 2, "cells": "my_cell", "separator": ".",
            "tensors": {"W{gate}{direction}": "wx[input unit]", "U{GATE}{direction}": "wt[hidden unit]",
                        "b{gate}{direction}?": "bi[unit]"},
        }
    )  # fmt: skip
    assert (layout.gates, dict(layout.gate_names)) == (("i", "f", "o"), {"i": "in", "f": "1", "o": "out"})
    assert (layout.complemented, dict(layout.derived)) == ({"o"}, {"g": "~i"})
    assert (layout.title, layout.source, layout.inner) == ("t", ("s",), "cell")
    assert layout.suffixes is layout.uniform is True
    assert layout.separator == "."
    assert (layout.activation, layout.recurrent_activation, layout.fixed) == ("relu", "hard_sigmoid", {"forget_bias"})
    (form,) = layout.forms
    assert (form.forget_bias, form.cells) == (2.0, ("my_cell",))
    assert [(row.optional, row.per_gate) for row in form.rows] == [(False, True), (False, True), (True, True)]


def test_variants_and_spellings() -> None:
    layout = parsed(
        {
            "tensors": TENSORS,
            "forget_bias": 1.0,
            "variants": [
                {"tensors": {"b": "bi[(gate unit)]"}, "cells": ["one"]},
                {"tensors": {"b": "bi[1 (gate unit)]"}, "forget_bias": 0.5, "cells": ["two"]},
                {},
            ],
            "spellings": [{"W": "kernel", "b": "bias"}, {"U": "V", "cells": ["three"]}],
        }
    )
    assert [(tuple(r.template for r in f.rows), f.cells, f.forget_bias) for f in layout.forms] == [
        (("W", "U", "b"), ("one",), 1.0),
        (("W", "U", "b"), ("two",), 0.5),
        (("W", "U"), (), 1.0),
        (("kernel", "U", "bias"), ("one",), 1.0),
        (("kernel", "U", "bias"), ("two",), 0.5),
        (("W", "V", "b"), ("three",), 1.0),
    ]
    assert [f.absent for f in layout.forms] == [(), (), ("b",), (), (), ()]


def test_a_spelling_may_swap_two_names() -> None:
    layout = parsed({"tensors": TENSORS, "spellings": [{"W": "U", "U": "W"}]})
    assert [tuple(row.template for row in form.rows) for form in layout.forms] == [("W", "U"), ("U", "W")]


def test_resets() -> None:
    layout = parsed({"tensors": TENSORS, "variants": [{"reset": r} for r in ("before", "after", "unknown")]}, "gru.x")
    assert layout.forms[0].reset == "before"
    assert [f.reset for f in parsed({"tensors": TENSORS, "reset": "unknown"}, "gru.x").forms] == [None]


# All problems at once ------------------------------------------------------------------------------------------------


def test_ten_mistakes_are_ten_problems() -> None:
    table = {
        "titel": "x",
        "gates": ["i", "f", "g", "o"],
        "complement": ["z"],
        "gate_names": {"q": "Q"},
        "derived": {"g": "~x"},
        "fixed": ["forget_bais"],
        "forget_bias": "one",
        "directions": {"up": "_u"},
        "suffixes": 1,
        "uniform": "yes",
        "separator": "-",
        "inner": 3,
        "tensors": {"W": "wx[input (gate unit", "U": "wt[hidden unit]", "b": "bi{z}[unit]", "{gat}": "bt[unit]"},
        "variants": [{"forget_bais": 1}],
        "spellings": [{"V": "v"}],
    }
    assert messages(table, "lstm") == [
        "here: the name 'lstm' is not KIND.FLAVOUR; for example lstm.mine",
        "here: unknown key 'titel'; closest: 'title'",
        "here.inner: expected text, found 3",
        "here.derived: g: ~x: expected a gate that is not stored: one that is, or ~ and one",
        "here.complement: no gate 'z'; the gates are i, f, g, o",
        "here.gate_names: no gate 'q'; the gates are i, f, g, o",
        "here.fixed: cannot fix 'forget_bais'; closest: 'forget_bias'",
        "here.directions: expected {forward: TEXT, backward: TEXT}, found {'up': '_u'}",
        "here.separator: expected '/' or '.', found '-'",
        "here.suffixes: expected true or false, found 1",
        "here.uniform: expected true or false, found 'yes'",
        "here.variants[0]: unknown key 'forget_bais'; closest: 'forget_bias'",
        "here.variants[0].forget_bias: expected a number, found 'one'",
        "here.variants[0].tensors.W: 'wx[input (gate unit' is not a term; "
        "expected PARAMETER[AXES] such as 'wx[input (gate unit)]'",
        "here.variants[0].tensors.U: where is the gate: in the name ({gate}), in the shape, or one only ({i})?",
        "here.variants[0].tensors.b: bi has no gate 'z'; its gates are i, f, g, o",
        "here.variants[0].tensors.{gat}: the name '{gat}' has '{gat}'; closest: 'gate'",
        "here.spellings: no tensor 'V' to spell",
    ]


@pytest.mark.parametrize(
    ("table", "problems"),
    [
        (None, ["here: expected a table with gates and tensors, found None"]),
        ([], ["here: expected a table with gates and tensors, found []"]),
        ({}, ["here: the table has no tensors"]),
        ({"tensors": None}, ["here: the table has no tensors"]),
        ({"tensors": []}, ["here.tensors: expected a mapping from tensor name to packing, found []"]),
        ({"tensors": "x"}, ["here.tensors: expected a mapping from tensor name to packing, found 'x'"]),
        (with_(variants=3), ["here.variants: expected a list of mappings, found 3"]),
        (with_(variants={"a": 1}), ["here.variants: expected a list of mappings, found {'a': 1}"]),
        (with_(variants=["x"]), ["here.variants: expected a list of mappings, found ['x']"]),
        (with_(variants=[{"tensors": 3}]), ["here.variants[0].tensors: expected a mapping from tensor name to packing, found 3"]),
        (with_(spellings=["W"]), ["here.spellings: expected a list of mappings, found ['W']"]),
        (with_(spellings=[{"w": "x"}]), ["here.spellings: no tensor 'w' to spell"]),
        (with_(cells=3), ["here.cells: expected a list of texts, found 3"]),
        (with_(source=[1]), ["here.source: expected a list of texts, found [1]"]),
        (with_(complement=4), ["here.complement: expected a list of texts, found 4"]),
        (with_(derived=["i"]), ["here.derived: expected a mapping from text to text, found ['i']"]),
        (with_(gate_names="i"), ["here.gate_names: expected a mapping from text to text, found 'i'"]),
        (with_(directions={"forward": "f", "backward": "f"}), ["here.directions: expected {forward: TEXT, backward: TEXT}, found {'forward': 'f', 'backward': 'f'}"]),
        (with_(forget_bias=True), ["here.forget_bias: expected a number, found True"]),
        (with_(forget_bias=float("nan")), ["here.forget_bias: expected a number, found nan"]),
        (with_(reset="later"), ["here.reset: expected before, after, unknown, found 'later'"]),
        (with_(gates="ifgo"), ["here.gates: expected a list of gates or a mapping gate -> name, found 'ifgo'"]),
        (with_(gates=["i", "i"]), ["here.gates: ['i', 'i'] must name each gate once"]),
        (with_(gates=["~~i", "f", "g", "o"]), ["here.gates: ['~i', 'f', 'g', 'o'] must name each gate once"]),
        (with_(gates={"i": None}), ["here.gates: expected gate -> name, found {'i': None}"]),
        (with_(gates=["i", "f", "g"]), ["here.gates: ['i', 'f', 'g'] are not the gates of a lstm: i, f, g, o"]),
        (with_(gates=["i", "f", "~g", "o"]), ["here.complement: the candidate g has no complement: only gates with a sigmoid have one"]),
        (with_(gates={"i": "a", "f": "b", "g": "a", "o": "c"}), ["here.gates: two gates are called 'a' in names"]),
        ({"tensors": {"W?": TENSORS["W"], "U?": TENSORS["U"]}}, ["here: every tensor is optional: a cell could not be recognised"]),
        (named(**{"": "bi[(gate unit)]"}), ["here.tensors.: a tensor without a name"]),
        (named(b="bi[unit]"), ["here.tensors.b: where is the gate: in the name ({gate}), in the shape, or one only ({i})?"]),
        (named(**{"b{gate}": "bi[(gate unit)]"}), ["here.tensors.b{gate}: the gate stands in the name and in the shape"]),
        (named(**{"P{gate}": "wr[unit hidden]"}), ["here.tensors.P{gate}: the gate stands in the name, but wr has no gates"]),
        (named(**{"b{gate}": ["bi{i f}[unit]", "bt[unit]"]}), ["here.tensors.b{gate}: the gate stands in the name, so every term must hold the same gates"]),
        (named(p="wp{g}[unit]"), ["here.tensors.p: wp has no gate 'g'; its gates are i, f, o"]),
        (named(p="wp[unit]"), ["here.tensors.p: where is the gate: in the name ({gate}), in the shape, or one only ({i})?"]),
        (named(**{"b}": "bi[(gate unit)]"}), ["here.tensors.b}: the name 'b}' has '}'; one of {scope}, {gate}, {GATE}, {layer}, {direction}"]),
        (named(**{"x{scope}": "bi[(gate unit)]"}), ["here.tensors.x{scope}: {scope} must stand at the beginning of 'x{scope}', before other text"]),
        (named(**{"{scope}": "bi[(gate unit)]"}), ["here.tensors.{scope}: {scope} must stand at the beginning of '{scope}', before other text"]),
        (named(**{"b{direction}": "bi[(gate unit)]"}), ["here.tensors.b{direction}: the name 'b{direction}' needs directions: {forward: TEXT, backward: TEXT}"]),
        # Consistency of the whole:
        (named(b="bi[(gate unit)]", c="bi{i}[unit]"), ["here.tensors: bi of gate i is stored 2 times"]),
        ({"tensors": {"W": TENSORS["W"]}}, ["here.tensors: wt of gate i is stored nowhere"]),
        ({"tensors": {"W": "wx{i f g}[input (gate unit)]", "U": TENSORS["U"]}}, ["here.tensors: wx of gate o is stored nowhere"]),
        (with_(spellings=[{"W": "U"}]), ["here.tensors.U: two tensors are called 'U'"]),
        (named(**{"W?": "bi[(gate unit)]"}), ["here.tensors.W: two tensors are called 'W'"]),
        (named(**{"b{layer}": "bi[(gate unit)]"}), ["here.tensors: the layer must stand in the name of every tensor, or in the shape of every one, or nowhere"]),
        (named(b="bi[direction (gate unit)]"), ["here.tensors: the direction must stand in the name of every tensor, or in the shape of every one, or nowhere"]),
        ({"tensors": {"v": VECTOR, "b": "bi[(gate unit)]"}}, ["here.tensors: a vector that holds all layers and directions is the only tensor of its cell"]),
        ({"tensors": {"v{layer}": VECTOR}}, ["here.tensors: a vector that holds all layers and directions is the only tensor of its cell"]),
        ({"variants": [{"tensors": {"v": VECTOR}}, {"tensors": TENSORS}]}, ["here.tensors: one vector holds all layers and directions in every variant, or in none"]),
        ({"tensors": {"W{layer}": "wx[layer input (gate unit)]", "U{layer}": "wt[layer hidden (gate unit)]"}}, ["here.tensors: the layer must stand in the name of every tensor, or in the shape of every one, or nowhere"]),
    ],
)  # fmt: skip
def test_mistakes(table: Any, problems: list[str]) -> None:
    assert messages(table) == problems


@pytest.mark.parametrize("kind", ["gru", "rnn"])
@pytest.mark.parametrize("packing", ["wp[(gate unit)]", "wr[unit hidden]"])
def test_only_an_lstm_has_peepholes_and_a_projection(kind: str, packing: str) -> None:
    found = messages(named(p=packing), f"{kind}.mine")
    assert found == [f"here.tensors.p: a {kind} has no peepholes and no projection"]


@pytest.mark.parametrize(("kind", "candidate"), [("gru", "n"), ("rnn", "h")])
def test_a_candidate_has_no_complement(kind: str, candidate: str) -> None:
    assert len(messages(with_(complement=candidate), f"{kind}.mine")) == 1


# A rule's override of the gates --------------------------------------------------------------------------------------


def gates_of(layout: Layout, number: int = 0) -> dict[str, list[tuple[str, ...] | None]]:
    return {row.template: [t.gates for t in row.packing.terms] for row in layout.forms[number].rows}


def test_with_gates_as_a_list() -> None:
    scoped = builtin()["lstm.scoped-gates"].with_gates(["o", "i", "f", "g"])
    assert scoped.gates == ("o", "i", "f", "g")
    assert scoped.gate_names["i"] == "input_gate"  # the order says nothing of the names
    assert gates_of(builtin()["gru.tf1"].with_gates(["z", "n", "r"])) == {
        "gates/kernel": [("z", "r"), ("z", "r")],
        "gates/bias": [("z", "r")],
        "candidate/kernel": [("n",), ("n",)],
        "candidate/bias": [("n",)],
    }
    assert gates_of(builtin()["lstm.keras-cudnn"].with_gates(["o", "g", "f", "i"]))["kernel"] == [
        ("o",), ("g",), ("f",), ("i",)
    ]  # fmt: skip
    peepholes = gates_of(builtin()["lstm.tf1"].with_gates(["i", "f", "g", "o"]))
    assert (peepholes["w_f_diag"], peepholes["kernel"]) == ([("f",)], [None, None])


def test_with_gates_as_a_mapping() -> None:
    layout = builtin()["lstm.scoped-gates"].with_gates({"i": "in", "f": "keep", "g": "new", "o": "out"})
    assert dict(layout.gate_names) == {"i": "in", "f": "keep", "g": "new", "o": "out"}


def test_with_gates_and_signs() -> None:
    plain = builtin()["gru.keras"]
    assert plain.with_gates(["~z", "r", "n"]).complemented == {"z"}
    mine = parsed(with_(gates=["~z", "r", "n"]), "gru.mine")
    assert mine.with_gates(["r", "z", "n"]).complemented == {"z"}
    assert mine.with_gates(["~r", "z", "n"]).complemented == {"r"}


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (["i", "f", "g"], "layout lstm.keras: gates ['i', 'f', 'g'] are not ['f', 'g', 'i', 'o']"),
        (["i", "f", "g", "g"], "layout lstm.keras: gates: ['i', 'f', 'g', 'g'] must name each gate once"),
        ("ifgo", "layout lstm.keras: gates: expected a list of gates or a mapping gate -> name, found 'ifgo'"),
        (["i", "f", "~g", "o"], "layout lstm.keras: the candidate g has no complement: only gates with a sigmoid have one"),
        ({"i": "a", "f": "a", "g": "b", "o": "c"}, "layout lstm.keras: two gates are called 'a' in names"),
    ],
)  # fmt: skip
def test_bad_overrides(gates: Any, message: str) -> None:
    with pytest.raises(LayoutError) as caught:
        builtin()["lstm.keras"].with_gates(gates)
    assert str(caught.value) == message
