"""``layouts`` and ``schema``."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from tests.cli.command import weightport
from tests.cli.test_transfer import MAPPING, TEN
from weightport.layouts import builtin, parse_layout
from weightport.layouts.notation import parse_packing

LISTED = {"name", "title", "kind", "gates", "sources"}
SHOWN = LISTED | {
    "gate_names", "complemented", "derived", "parameters", "forget_gates", "activation", "recurrent_activation",
    "fixed", "inner", "directions", "forms", "conversions",
}  # fmt: skip


@pytest.mark.parametrize("arguments", [["layouts"], ["layouts", "list"]])
def test_the_list(arguments: list[str]) -> None:
    lines = weightport(*arguments).out.splitlines()
    assert [line.split()[0] for line in lines] == list(builtin())
    plain = [" ".join(line.split()) for line in lines]
    assert any(line.startswith("lstm.tf1 i g f o TensorFlow 1: BasicLSTMCell") for line in plain)
    document = weightport(*arguments, "--json").json
    assert set(document) == {"layouts"}
    assert all(set(layout) == LISTED for layout in document["layouts"])
    assert [layout["name"] for layout in document["layouts"]] == list(builtin())


@pytest.mark.parametrize("name", list(builtin()))
def test_one(name: str) -> None:
    found = weightport("layouts", "show", name, "--json").json
    assert set(found) == SHOWN
    layout = builtin()[name]
    assert len(found["forms"]) == len(layout.forms)
    for shown, form in zip(found["forms"], layout.forms, strict=True):
        assert set(shown) == {"reset", "forget_bias", "cells", "tensors"}
        rows = {row.template: row for row in form.rows}
        assert set(shown["tensors"]) == set(rows)
        for template, tensor in shown["tensors"].items():
            assert parse_packing(tensor["packing"], template, layout.parameters) == rows[template].packing
            assert tensor["optional"] == rows[template].optional
    text = weightport("layouts", "show", name).out
    assert text.startswith(f"{name}: {layout.title}\n")
    for form in layout.forms:
        for row in form.rows:
            assert f"    {row.template}" in text
    for source in layout.source:
        assert f"  source: {source}\n" in text


def test_the_text_of_one() -> None:
    assert weightport("layouts", "show", "lstm.keras").out.splitlines() == [
        "lstm.keras: Keras 2 and 3: LSTM, LSTMCell",
        "  gates, as stored: i input, f forget, g candidate, o output",
        "  activation: tanh, unless the file or the mapping says otherwise",
        "  recurrent activation: sigmoid, unless the file or the mapping says otherwise",
        "  a scope lstm_cell may stand between the layer's scope and its tensors",
        "  several cells in one scope: _1, _2 at the end of the names",
        "  form 1 of 2: no forget bias added at run time",
        "    kernel            wx[input (gate unit)]",
        "    recurrent_kernel  wt[hidden (gate unit)]",
        "    bias?             bi[(gate unit)]",
        "  form 2 of 2: no forget bias added at run time",
        "    cell/vars/0   wx[input (gate unit)]",
        "    cell/vars/1   wt[hidden (gate unit)]",
        "    cell/vars/2?  bi[(gate unit)]",
        "  a cell may lack the tensors with a question mark",
        "  lstm.keras moves to",
        "    bijective: lstm.coreml; lstm.flax; lstm.scoped-gates; lstm.ifco; lstm.keras1; lstm.equinox",
        "    exact: lstm.cudnn-opaque; lstm.haiku; lstm.tf1; lstm.keras-cudnn; lstm.mxnet; lstm.onnx; lstm.tf1-group; "
        "lstm.torch; lstm.paddle; lstm.paddle-layers",
        "    conditional, exact only where the recurrent weights are zero off their diagonals: indy_lstm.tf1",
        "    refused, since the target's gate i follows from its gate f, the source's is free: lstm.tf1-coupled",
        "  to lstm.keras move",
        "    bijective: lstm.coreml; lstm.flax; lstm.scoped-gates; lstm.ifco; lstm.keras1; lstm.equinox",
        "    exact: lstm.cudnn-opaque; lstm.haiku; lstm.tf1; lstm.tf1-coupled; lstm.keras-cudnn; lstm.mxnet; "
        "lstm.onnx; indy_lstm.tf1; lstm.tf1-group; lstm.torch; lstm.paddle; lstm.paddle-layers",
        "    conditional with an output projection, exact only where the output projection is the identity: lstm.tf1; "
        "lstm.tf1-coupled; lstm.mxnet; lstm.tf1-group; lstm.torch; lstm.paddle; lstm.paddle-layers",
        "    conditional with peepholes, exact only where the peepholes are all zero: lstm.coreml; lstm.tf1; "
        "lstm.tf1-coupled; lstm.onnx",
        "  source: keras/src/layers/rnn/lstm.py (LSTMCell.build, LSTMCell.call)",
        "  source: tf_keras/src/layers/rnn/lstm.py",
    ]


def test_what_it_moves_to_and_from() -> None:
    """The classes of the pairs; the page of conversions is made of the same."""
    found = weightport("layouts", "show", "gru.flax", "--json").json["conversions"]
    assert all(set(pair) == {"from", "to", "reset", "with", "class", "condition", "reason"} for pair in found)
    assert all("gru.flax" in (pair["from"], pair["to"]) for pair in found)
    assert {pair["class"] for pair in found} == {"bijective", "exact", "conditional", "refused"}
    conditions = {(p["from"], p["condition"]) for p in found if p["to"] == "gru.flax" and p["class"] == "conditional"}
    assert ("gru.torch", "exact where the candidate's recurrent bias is all zero") in conditions
    assert all(bool(p["condition"]) == (p["class"] == "conditional") for p in found)
    assert all(bool(p["reason"]) == (p["class"] == "refused") for p in found)
    assert weightport("layouts", "show", "attention.tf1", "--json").json["conversions"] == []


def test_what_is_shown_can_be_written_into_a_mapping() -> None:
    shown = weightport("layouts", "show", "gru.keras-cudnn", "--json").json
    tensors = {name: tensor["packing"] for name, tensor in shown["forms"][0]["tensors"].items()}
    own = parse_layout("gru.mine", {"gates": shown["gates"], "reset": "after", "tensors": tensors}, "mine")
    assert own.forms[0].rows == builtin()["gru.keras-cudnn"].forms[0].rows
    shown = weightport("layouts", "show", "minimal.tf1", "--json").json
    tensors = {name: tensor["packing"] for name, tensor in shown["forms"][0]["tensors"].items()}
    keys = {key: shown[key] for key in ("gates", "parameters")}
    own = parse_layout("minimal.mine", {**keys, "tensors": tensors}, "mine")
    assert own.forms[0].rows == builtin()["minimal.tf1"].forms[0].rows
    assert own.parameters == builtin()["minimal.tf1"].parameters


def test_the_text_of_one_with_parameters_of_its_own() -> None:
    lines = weightport("layouts", "show", "ugrnn.tf1").out.splitlines()
    assert "  tensors: forget bias 1 added at run time to g; in scopes ugrnn_cell" in lines
    lines = weightport("layouts", "show", "phased_lstm.tf1").out.splitlines()
    own = "wc [gate unit' unit], period [unit], phase [unit], ratio_on [unit]"
    assert f"  parameters of its own: {own}" in lines


def test_a_misspelt_name() -> None:
    ran = weightport("layouts", "show", "lstm.kers", code=1)
    assert ran.told[0].startswith("no layout 'lstm.kers'; closest: 'lstm.keras'")
    document = weightport("layouts", "show", "lstm.kers", "--json", code=1).json
    assert set(document) == {"problems"}


def test_the_schema_accepts_what_is_right_and_not_what_is_wrong() -> None:
    printed = weightport("schema").out
    schema = json.loads(printed)
    assert schema == weightport("schema", "--json").json
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    checker = validator(schema)
    assert list(checker.iter_errors(yaml.safe_load(MAPPING))) == []
    assert list(checker.iter_errors(yaml.safe_load(TEN)))
