from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.formats._onnx import written
from tests.support import need
from weightport.formats import onnx_file

ROLES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def held(name: str, shape: tuple[int, ...], seed: int = 0) -> Any:
    return need("onnx").numpy_helper.from_array(np.random.default_rng(seed).normal(size=shape).astype("f4"), name)


def weights(op: str, names: tuple[str, ...], units: int = 2, size: int = 3, directions: int = 1) -> list[Any]:
    """Initializers of those names for W, R and B."""
    gates = ROLES[op] * units
    shapes = [(directions, gates, size), (directions, gates, units), (directions, 2 * gates)]
    return [held(n, s, k) for k, (n, s) in enumerate(zip(names, shapes, strict=False))]


def rnn(op: str, inputs: tuple[str, ...], name: str = "", **attributes: Any) -> Any:
    return need("onnx").helper.make_node(op, ["x", *inputs], ["y"], name=name, **attributes)


def model(folder: Path, nodes: list[Any], initializers: list[Any]) -> str:
    helper = need("onnx").helper
    return written(folder, helper.make_model(helper.make_graph(nodes, "g", [], [], initializers)))


def cells(path: str) -> list[tuple[str, str, int, tuple[str, ...]]]:
    with wp.open(path) as source:
        return [(c.scope, c.layout.name, c.layers, c.directions) for c in source.cells()]


def names(path: str) -> list[str]:
    with onnx_file.open_source(path) as source:
        return list(source.specs())


def facts(path: str) -> dict[str, Any]:
    """Of the only cell."""
    with wp.open(path) as source:
        (cell,) = source.cells()
        return dict(source.facts(cell.names))


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ROLES)
def test_a_cell_is_named_after_its_node(op: str, tmp_path: Path) -> None:
    own = ("onnx::A_1", "onnx::A_2", "onnx::A_3")
    path = model(tmp_path, [rnn(op, own, "/encoder/rnn")], [*weights(op, own), held("w", (2, 2))])
    assert names(path) == ["encoder/rnn/W", "encoder/rnn/R", "encoder/rnn/B", "w"]
    assert cells(path) == [("encoder/rnn", f"{op.lower()}.onnx", 1, ("forward",))]
    with wp.open(path) as source:
        assert source.aliases == dict(zip(own, names(path), strict=False))
        assert np.array_equal(source.read("onnx::A_2"), source.read("encoder/rnn/R"))


def test_own_names_lead_to_the_tensors_in_mappings(tmp_path: Path) -> None:
    own = ("onnx::A_1", "onnx::A_2", "onnx::A_3")
    path = model(tmp_path, [rnn("LSTM", own, "/l")], weights("LSTM", own))
    rules = [{"from": "onnx::A_1", "to": "a"}, {"from": ["onnx::A_2", "l/R"], "to": "b", "concat": 0}]
    mapping = {"weightport": 1, "rules": rules, "ignore": ["onnx::A_3"]}
    plan = wp.plan(path, None, mapping)
    assert plan.problems == ()
    assert plan.source == {"l/W": "moved", "l/R": "moved", "l/B": "ignored"}
    assert plan.outcomes[0].sources == ("l/W",)
    there = wp.plan(path, path, {"weightport": 1, "rules": [{"from": "l/{x}", "to": "l/{x}"}]})
    assert there.problems == ()
    rules = [{"from": "l/W", "to": "onnx::A_1"}]
    left = {"ignore": ["l/R", "l/B"], "keep": ["onnx::A_2", "onnx::A_3"]}
    plan = wp.plan(path, path, {"weightport": 1, "rules": rules, **left})
    assert plan.problems == ()
    assert plan.target == {"l/W": "moved", "l/R": "kept", "l/B": "kept"}


@pytest.mark.parametrize(
    ("given", "node", "expected"),
    [
        (("W", "R", "B"), "", ["W", "R", "B"]),
        (("net/W", "net/R", "net/B"), "", ["net/W", "net/R", "net/B"]),
        (("net/W", "net/R", "net/B"), "n", ["net/W", "net/R", "net/B"]),
        (("W", "R", "B"), "n", ["n/W", "n/R", "n/B"]),
        (("net.W", "net.R", "net.B"), "n", ["n/W", "n/R", "n/B"]),
        (("net/W", "other/R", "B"), "", ["LSTM/W", "LSTM/R", "LSTM/B"]),
        (("a", "b"), "", ["LSTM/W", "LSTM/R"]),
        (("a", "a"), "n", ["a"]),  # one tensor cannot have two names
        (("a", "", ""), "n", ["a"]),
    ],
)
def test_names(given: tuple[str, ...], node: str, expected: list[str], tmp_path: Path) -> None:
    kept = [w for w in weights("LSTM", given) if w.name]
    path = model(tmp_path, [rnn("LSTM", given, node)], list({w.name: w for w in kept}.values()))
    assert names(path) == expected


def test_weights_in_constant_nodes(tmp_path: Path) -> None:
    onnx = need("onnx")
    nodes = [onnx.helper.make_node("Constant", [], [w.name], value=w) for w in weights("GRU", ("a", "b"))]
    nodes.append(onnx.helper.make_node("Constant", [], ["zeros"], value=held("", (1, 2))))
    made = onnx.helper.make_model(onnx.helper.make_graph([*nodes, rnn("GRU", ("a", "b"), "n")], "g", [], [], []))
    made.producer_name = "pytorch"
    with onnx_file.open_source(written(tmp_path, made)) as source:
        assert {n: s.role for n, s in source.specs().items()} == {"n/W": "weight", "n/R": "weight", "zeros": "constant"}


def test_nodes_of_one_name_and_shared_weights(tmp_path: Path) -> None:
    one, two, three = (("a", "b"), ("c", "d"), ("e", "f"))
    nodes = [rnn("GRU", one, "n"), rnn("GRU", two, "n"), rnn("GRU", one, "again"), rnn("GRU", three)]
    path = model(tmp_path, nodes, [w for pair in (one, two, three) for w in weights("GRU", pair)])
    assert names(path) == ["n/W", "n/R", "n_1/W", "n_1/R", "GRU/W", "GRU/R"]


def test_a_name_that_is_taken_leaves_the_cell_its_own(tmp_path: Path) -> None:
    path = model(tmp_path, [rnn("GRU", ("a", "b"), "n")], [*weights("GRU", ("a", "b")), held("n/W", (1,))])
    assert names(path) == ["a", "b", "n/W"]
    assert cells(path) == []


def test_through_identities_and_into_subgraphs(tmp_path: Path) -> None:
    helper = need("onnx").helper
    inner = helper.make_graph([rnn("GRU", ("w", "r"), "n")], "b", [], [], weights("GRU", ("w",)))
    nodes = [
        helper.make_node("Identity", ["r0"], ["r"]),
        helper.make_node("Loop", ["k"], ["z"], name="loop", body=inner),
    ]
    path = model(tmp_path, nodes, [weights("GRU", ("w", "r0"))[1]])
    assert names(path) == ["loop/body/n/R", "loop/body/n/W"]
    assert cells(path) == [("loop/body/n", "gru.onnx", 1, ("forward",))]


def test_what_is_computed_is_no_cell_and_still_told(tmp_path: Path) -> None:
    helper = need("onnx").helper
    nodes = [
        helper.make_node("Unsqueeze", ["rnn.weight_ih_l0", "axes"], ["w"]),
        helper.make_node("Unsqueeze", ["rnn.weight_hh_l0", "axes"], ["r"]),
        rnn("RNN", ("w", "r"), "/rnn/RNN", activations=["Relu"]),
    ]
    kept = [held("rnn.weight_ih_l0", (2, 3)), held("rnn.weight_hh_l0", (2, 2))]
    kept.append(need("onnx").numpy_helper.from_array(np.array([0]), "/axes"))
    path = model(tmp_path, nodes, kept)
    assert cells(path) == [("rnn", "rnn.torch", 1, ("forward",))]
    assert facts(path) == {"activation": "relu"}


def test_what_is_computed_outside_of_a_subgraph(tmp_path: Path) -> None:
    """The way back leads out of the branch, and ends where the graph is fed."""
    helper = need("onnx").helper
    inner = [
        helper.make_node("Unsqueeze", ["w0", "fed"], ["w"]),
        rnn("RNN", ("w", "r"), "/rnn/RNN", activations=["Relu"]),
    ]
    nodes = [
        helper.make_node("Unsqueeze", ["rnn.weight_ih_l0", "axes"], ["w0"]),
        helper.make_node("Add", ["fed", "rnn.weight_hh_l0"], ["r"]),
        helper.make_node("If", ["fed"], ["z"], name="if", then_branch=helper.make_graph(inner, "b", [], [])),
    ]
    kept = [held("rnn.weight_ih_l0", (2, 3)), held("rnn.weight_hh_l0", (2, 2))]
    path = model(tmp_path, nodes, kept)
    with wp.open(path) as source:
        # What is added to something is not what the cell computes with.
        assert dict(source.facts(["rnn.weight_ih_l0"])) == {"activation": "relu"}
        assert dict(source.facts(["rnn.weight_hh_l0"])) == {}


def test_stacks(tmp_path: Path) -> None:
    """As PyTorch's exporter numbers the nodes of a module; only where each takes what the one before it gives."""
    first, second = ("a", "b", "c"), ("d", "e", "f")
    for size, layers in ((4, [2]), (5, [1, 1])):
        nodes = [rnn("LSTM", first, "/m/LSTM", direction="bidirectional")]
        nodes.append(rnn("LSTM", second, "/m/LSTM_1", direction="bidirectional"))
        kept = [*weights("LSTM", first, directions=2), *weights("LSTM", second, size=size, directions=2)]
        found = cells(model(tmp_path, nodes, kept))
        assert [c[2] for c in found] == layers
        assert found[0][0] == ("m" if size == 4 else "m/LSTM")
        assert found[0][3] == ("forward", "backward")


# Facts ---------------------------------------------------------------------------------------------------------------

SIGMOID = {"recurrent_activation": "sigmoid", "activation": "tanh"}


@pytest.mark.parametrize(
    ("op", "attributes", "expected"),
    [
        ("LSTM", {}, SIGMOID),
        ("LSTM", {"direction": "reverse"}, {**SIGMOID, "go_backwards": True}),
        ("LSTM", {"activations": ["HardSigmoid", "Relu", "relu"]},
         {"recurrent_activation": "hard_sigmoid", "activation": "relu"}),
        ("LSTM",
         {"activations": ["HardSigmoid", "Tanh", "Tanh"], "activation_alpha": [1 / 6], "activation_beta": [0.5]},
         {"recurrent_activation": "hard_sigmoid_6", "activation": "tanh"}),
        ("LSTM", {"activations": ["Sigmoid", "LeakyRelu", "LeakyRelu"], "activation_alpha": [0.3, 0.3]},
         {"recurrent_activation": "sigmoid", "activation": "leakyrelu(0.3)"}),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]},
         {"recurrent_activation": "sigmoid", "activation": "relu",
          "variant": "has the activation tanh for its candidate and relu for its output"}),
        ("LSTM", {"input_forget": 1}, {**SIGMOID, "variant": "has coupled input and forget gates (input_forget)"}),
        ("LSTM", {"clip": 3.0, "input_forget": 1},
         {**SIGMOID, "variant": "has coupled input and forget gates (input_forget) and clips what its activations "
                                "take to 3"}),
        ("GRU", {}, {**SIGMOID, "reset_after": False}),
        ("GRU", {"linear_before_reset": 1}, {**SIGMOID, "reset_after": True}),
        ("RNN", {"activations": ["Affine"], "activation_alpha": [1.0], "activation_beta": [0.0]},
         {"activation": "linear"}),
        ("RNN", {"activations": ["ScaledTanh"]}, {"activation": "scaledtanh"}),
        ("RNN", {"activations": ["Elu"]}, {"activation": "elu"}),
        ("RNN", {"activations": ["Tanh", "Tanh"]}, {"variant": "has 2 activations"}),
    ],
)  # fmt: skip
def test_facts(op: str, attributes: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    path = model(tmp_path, [rnn(op, ("a", "b", "c"), "n", **attributes)], weights(op, ("a", "b", "c")))
    assert facts(path) == expected


def test_facts_of_two_directions(tmp_path: Path) -> None:
    def said(activations: list[str]) -> dict[str, Any]:
        node = rnn("RNN", ("a", "b"), "n", direction="bidirectional", activations=activations)
        return facts(model(tmp_path, [node], weights("RNN", ("a", "b"), directions=2)))

    assert said(["Relu", "Relu"]) == {"activation": "relu"}
    assert said(["Relu", "Tanh"]) == {"variant": "has other activations in each direction (relu, tanh)"}


def test_facts_on_which_two_nodes_do_not_agree(tmp_path: Path) -> None:
    nodes = [rnn("GRU", ("a", "b"), "n"), rnn("GRU", ("a", "b"), "m", linear_before_reset=1)]
    assert facts(model(tmp_path, nodes, weights("GRU", ("a", "b")))) == SIGMOID


def test_a_variant_is_another_function(tmp_path: Path) -> None:
    path = model(tmp_path, [rnn("LSTM", ("a", "b"), "n", input_forget=1)], weights("LSTM", ("a", "b")))
    rule = {"from": {"layout": "lstm.onnx", "scope": "n"}, "to": {"layout": "lstm.keras", "scope": "n"}}
    with pytest.raises(wp.PlanError) as caught:
        wp.transfer(path, None, {"weightport": 1, "rules": [rule]}, out=tmp_path / "o.npz")
    assert str(caught.value) == (
        "rules[0]: n -> n: the source's cell has coupled input and forget gates (input_forget): another function"
    )
    plain = model(tmp_path / "..", [rnn("LSTM", ("a", "b"), "n")], weights("LSTM", ("a", "b")))
    both = {"weightport": 1, "rules": [{"from": rule["from"], "to": rule["from"]}]}
    assert "the target's cell has coupled" in str(wp.plan(plain, path, both).problems[0])
    assert wp.plan(path, path, both).problems == ()
    wp.transfer(path, path, both, out=tmp_path / "o.onnx")
    proof = wp.verify(path, tmp_path / "o.onnx", both)
    assert proof.equal
    assert proof.notes == ("rules[0]: n -> n: the cell has coupled input and forget gates (input_forget): "
                           "values compared only",)  # fmt: skip


def test_identities_have_an_end(tmp_path: Path) -> None:
    """A weight behind 63 of them is found; behind more, or in a circle, the cell has its own names."""
    for count, found in ((62, True), (64, False)):
        chain = [need("onnx").helper.make_node("Identity", [f"w{n + 1}"], [f"w{n}"]) for n in range(count)]
        nodes = [*chain, rnn("LSTM", ("w0", "r"), "cell")]
        w, r = weights("LSTM", (f"w{count}", "r"))
        path = model(tmp_path, nodes, [w, r])
        assert ("cell/W" in names(path)) is found
    circle = [need("onnx").helper.make_node("Identity", [a], [b]) for a, b in (("x", "y"), ("y", "x"))]
    path = model(tmp_path, [*circle, rnn("LSTM", ("x", "r"), "cell")], weights("LSTM", ("w", "r")))
    assert names(path) == ["w", "r"]
    with onnx_file.open_source(path) as source:
        assert source.facts(["w"]) == {}
        assert source.facts(["r"]) == {"activation": "tanh", "recurrent_activation": "sigmoid"}
