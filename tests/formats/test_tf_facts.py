"""What graphs say about their cells: the fixtures against their descriptions, graphs by hand, and TensorFlow's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats._graphdef import const, function, graph, lstm_nodes, node, weights, write
from tests.formats.test_tf_bundle import bytes_field
from tests.support import Fixture, fixtures, need
from weightport.formats import _tf_dataflow, _tf_facts, detect, tf_frozen
from weightport.formats._proto import Memory
from weightport.formats.tf_graph import GraphDef
from weightport.tensors import Source

KEYS = ("forget_bias", "activation", "recurrent_activation", "cell_clip", "proj_clip", "reset_after")
CASES = [(f, k) for f in fixtures() for k in ("frozen", "frozen_text", "saved_model", "meta_graph") if k in f.files]
CASES = [(f, k) for f, k in CASES if "cell" in f.doc]
# The parts of a cell's names that stand below its scope.
_INNER = re.compile(
    r"(/(gates|candidate|projection|Linear|input_gate|forget_gate|memory_cell|output_gate"
    r"|input|forget|output|state|transform))?/[^/]+"
)
LSTM = {
    "forget_bias": 1.0, "activation": "tanh", "recurrent_activation": "sigmoid", "gates": ["i", "g", "f", "o"],
}  # fmt: skip
#: What the descriptions of the fixtures call an LSTM's candidate.
CANDIDATE = {"j": "g", "c": "g"}


def cells(source: Source) -> dict[str, list[str]]:
    """Scope -> weights of what may be a cell."""
    found: dict[str, list[str]] = {}
    for name, spec in source.specs().items():
        match = re.fullmatch(rf"(.*?){_INNER.pattern}", name)
        if spec.role == "weight" and match and not name.startswith(("softmax", "model/embedding")):
            found.setdefault(match[1], []).append(name)
    return found


@pytest.mark.parametrize(("model", "kind"), CASES, ids=lambda v: str(v))
def test_fixtures(model: Fixture, kind: str) -> None:
    expected = {key: model.doc[key] for key in KEYS if model.doc.get(key) is not None}
    # What the descriptions leave unsaid, since it is the cell's only way.
    if "LSTM" in model.doc["cell"]:
        expected = {"activation": "tanh", "recurrent_activation": "sigmoid", **expected}
    if model.doc["cell"].endswith("GRUCell"):
        expected["reset_after"] = False
    if model.doc["cell"].endswith("BasicRNNCell"):
        expected["gates"] = ["h"]
    order = [CANDIDATE.get(gate["gate"], gate["gate"]) for gate in model.doc.get("gate_order", ())]
    order = order or ([*LSTM["gates"]] if model.name.endswith("partitioned") else [])
    # Without one split, or with something between it and the gates, the order is not told.
    if len(order) == 4 and not any(part in model.name for part in ("seed", "layer_norm", "impl1")):
        expected["gates"] = order
    with detect.open_source(model.path(kind)) as source:  # type: ignore[attr-defined]
        found = cells(source)
        assert found
        for names in found.values():
            assert source.facts(names) == expected
            assert source.facts(names[::-1]) == expected
        assert source.facts([]) == {}


def facts(data: bytes, *names: str) -> dict[str, Any]:
    graph_def = GraphDef(Memory(data, "g.pb"), 0, len(data))
    all_weights = {("", n.name) for n in graph_def.main.nodes.values() if n.op == "Const" and "/" not in n.name}
    own = {("", name) for name in names or ("kernel", "bias")}
    known = {place for place in all_weights if place[1] in ("kernel", "bias", "other")}
    return _tf_facts.GraphFacts(graph_def).of(own, known - own)


def without(key: str) -> dict[str, Any]:
    return {k: value for k, value in LSTM.items() if k != key}


STATES = [node("h", "Placeholder"), node("c", "Placeholder")]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, LSTM),
        ({"forget_bias": 0.7}, {**LSTM, "forget_bias": 0.7}),
        ({"forget_bias": None}, {**LSTM, "forget_bias": 0.0}),
        ({"clip": 2.5}, {**LSTM, "cell_clip": 2.5}),
        ({"act": "Relu"}, {**LSTM, "activation": "relu"}),
        # Where the candidate is told from the input gate by nothing, the gates have no order.
        ({"act": "Sigmoid"}, {**without("gates"), "activation": "sigmoid"}),
        ({"gate": "Tanh"}, {**without("gates"), "recurrent_activation": "tanh"}),
        # The candidate's activation is not the output's: there is no one activation to tell.
        ({"out_act": "Relu"}, without("activation")),
    ],
)
def test_one_step(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert facts(graph(*weights(), *STATES, *lstm_nodes(**changes))) == expected


def replaced(nodes: list[bytes], name: str, *new: bytes) -> list[bytes]:
    kept = [n for n in nodes if not n.startswith(node(name, "")[: 2 + len(name)])]
    assert len(kept) == len(nodes) - 1
    return [*kept, *new]


@pytest.mark.parametrize(
    ("name", "new", "forget_bias"),
    [
        # A constant that every gate is given is no forget bias, and neither is one that is not the same throughout.
        ("z", [node("zz", "BiasAdd", "product", "bias/read"), const("all", 1.0), node("z", "Add", "zz", "all")], None),
        ("forget_bias", [const("forget_bias", np.array([1, 2], np.float32))], None),
        ("forget_bias", [const("forget_bias", np.array([1.5, 1.5], np.float32))], 1.5),
        ("forget_bias", [const("half", 0.5), node("s", "Placeholder"), node("forget_bias", "Fill", "s", "half")], 0.5),
        ("biased", [node("biased", "Sub", "split:2", "forget_bias")], -1.0),
        ("biased", [const("b", 2.0), node("b1", "Add", "split:2", "b"), node("biased", "Add", "forget_bias", "b1")], 3),
        # A weight is no constant, a placeholder may be anything.
        ("forget_bias", [const("other", np.ones(2, np.float32)), node("forget_bias", "Identity", "other")], 0.0),
        ("forget_bias", [node("forget_bias", "Placeholder")], None),
    ],
)
def test_forget_bias_is_what_is_added_to_the_forget_gate(
    name: str, new: list[bytes], forget_bias: float | None
) -> None:
    found = facts(graph(*weights(), *STATES, *replaced(lstm_nodes(), name, *new)))
    told = without("gates") if forget_bias == -1 else LSTM  # what is taken away, the order is not looked for in
    assert found == {k: v for k, v in told.items() if k != "forget_bias"} | (
        {} if forget_bias is None else {"forget_bias": forget_bias}
    )


def test_names_say_nothing() -> None:
    """The same cell with every node renamed, and one whose names promise what it does not do."""
    data = graph(*weights(), *STATES, *lstm_nodes(forget_bias=0.25))
    for n, name in enumerate((b"forget_bias", b"split", b"biased", b"act_c", b"product")):
        data = data.replace(name, b"%d" % n * len(name))
    assert facts(data) == {**LSTM, "forget_bias": 0.25}
    nodes = [const("lstm/forget_bias", 1.0), node("lstm/Sigmoid", "Sigmoid", "x"), node("lstm/Tanh", "Tanh", "x")]
    assert facts(graph(*weights(), *nodes, node("lstm/MatMul", "MatMul", "x", "kernel/read"))) == {}


def test_no_cell() -> None:
    dense = [node("m", "MatMul", "x", "kernel/read"), node("y", "BiasAdd", "m", "bias/read"), node("r", "Relu", "y")]
    assert facts(graph(*weights(), *dense)) == {}
    assert facts(graph(*weights())) == {}
    assert facts(graph(*weights(), *dense), "nothing") == {}


def test_two_uses_that_do_not_agree() -> None:
    arguments = ["x", "h", "c", "kernel/read", "bias/read", "one"]
    again = function("again", arguments, {"out": "h2:z:0"}, lstm_nodes(forget_bias=2.0))
    call = node("again", "PartitionedCall", *arguments, f="again")
    data = graph(*weights(), *STATES, *lstm_nodes(), call, functions=[again])
    assert facts(data) == without("forget_bias")


def reordered(parts: dict[str, int]) -> list[bytes]:
    """The step with its gates on other parts of the split."""
    nodes = lstm_nodes(forget_bias=None)
    for gate, part in parts.items():
        nodes = replaced(nodes, gate, node(gate, "Tanh" if gate == "g" else "Sigmoid", f"split:{part}"))
    return nodes


@pytest.mark.parametrize(
    ("parts", "gates"),
    [
        ({"i": 0, "g": 1, "f": 2, "o": 3}, ["i", "g", "f", "o"]),
        ({"i": 0, "g": 2, "f": 1, "o": 3}, ["i", "f", "g", "o"]),
        ({"i": 3, "g": 2, "f": 1, "o": 0}, ["o", "f", "g", "i"]),
        ({"i": 0, "g": 1, "f": 2, "o": 4}, None),
        ({"i": 0, "g": 1, "f": 2, "o": 2}, None),
    ],
)
def test_the_order_of_the_gates_is_that_of_their_parts(parts: dict[str, int], gates: list[str] | None) -> None:
    assert facts(graph(*weights(), *STATES, *reordered(parts))).get("gates") == gates


def test_gates_of_two_splits_have_no_order() -> None:
    nodes = replaced(lstm_nodes(), "o", node("again", "Split", "one", "z"), node("o", "Sigmoid", "again:3"))
    assert facts(graph(*weights(), *STATES, *nodes)) == without("gates")
    nodes = replaced(
        lstm_nodes(), "o", const("two", 2.0), node("o2", "Mul", "split:3", "two"), node("o", "Sigmoid", "o2")
    )
    assert facts(graph(*weights(), *STATES, *nodes)) == without("gates")


def in_loop(nodes: list[bytes]) -> list[bytes]:
    """A loop as TensorFlow 1 writes it around a step."""
    found = [node("h0", "Placeholder"), node("c0", "Placeholder"), node("go", "Placeholder")]
    for state in "hc":
        found += [
            node(f"enter_{state}", "Enter", f"{state}0"),
            node(f"merge_{state}", "Merge", f"enter_{state}", f"next_{state}"),
            node(f"switch_{state}", "Switch", f"merge_{state}", "cond"),
            node(state, "Identity", f"switch_{state}:1"),
            node(f"next_{state}", "NextIteration", f"{state}2"),
            node(f"exit_{state}", "Exit", f"switch_{state}"),
        ]
    return [*found, node("cond", "LoopCond", "go"), *nodes]


def test_loops_of_both_kinds() -> None:
    assert facts(graph(*weights(), *in_loop(lstm_nodes(clip=3.0)))) == {**LSTM, "cell_clip": 3.0}
    body = function(
        "body",
        ["h", "c", "x", "k", "b", "one"],
        {"h_out": "h2:z:0", "c_out": "c2:output:0", "x_": "x", "k_": "k", "b_": "b", "one_": "one"},
        lstm_nodes(forget_bias=0.5, kernel="k", bias="b"),
    )
    loop = node("loop", "While", "h", "c", "x", "kernel/read", "bias/read", "one", cond="none", body="body")
    assert facts(graph(*weights(), *STATES, loop, functions=[body])) == {**LSTM, "forget_bias": 0.5}


@pytest.mark.parametrize(
    ("op", "attrs", "expected"),
    [
        ("LSTMBlockCell", {"forget_bias": 0.5, "cell_clip": -1.0}, {**LSTM, "forget_bias": 0.5}),
        ("LSTMBlockCell", {}, {**LSTM, "cell_clip": 3.0}),  # what is at its default may be left out
        ("BlockLSTM", {"forget_bias": 0.7, "cell_clip": 0.0}, {**LSTM, "forget_bias": 0.7}),
        ("BlockLSTMV2", {}, {**LSTM, "forget_bias": 0.0, "gates": ["i", "f", "g", "o"]}),
        ("GRUBlockCell", {}, {"activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": False}),
        ("CudnnRNN", {"rnn_mode": b"\x12\x03gru"}, {"activation": "tanh", "recurrent_activation": "sigmoid"}),
        ("CudnnRNNV3", {}, {**without("gates"), "forget_bias": 0.0}),
        ("CudnnRNNV2", {"rnn_mode": b"\x12\x08rnn_relu"}, {"activation": "relu"}),
    ],
)
def test_fused_operations(op: str, attrs: dict[str, Any], expected: dict[str, Any]) -> None:
    data = graph(*weights(), node("fused", op, "x", "kernel/read", "bias/read", **attrs))
    if op == "CudnnRNN":
        expected = {**expected, "reset_after": True}
    assert facts(data) == expected


# Hostile graphs ------------------------------------------------------------------------------------------------------

OPS = [
    "Identity",
    "Add",
    "Mul",
    "Sub",
    "Sigmoid",
    "Tanh",
    "MatMul",
    "Merge",
    "Switch",
    "Enter",
    "NextIteration",
    "Split",
]
OPS += [
    "ConcatV2",
    "While",
    "If",
    "PartitionedCall",
    "Maximum",
    "Minimum",
    "Relu6",
    "IdentityN",
    "f",
    "Const",
    "BiasAdd",
]


@given(st.lists(st.tuples(st.sampled_from(OPS), st.lists(st.integers(-2, 20), max_size=4)), max_size=20))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_graph_ends(shape: list[tuple[str, list[int]]]) -> None:
    nodes = []
    for n, (op, inputs) in enumerate(shape):
        names = [f"n{i % len(shape)}:{i % 3}" if i >= 0 else ("kernel/read", "a:out:1")[i] for i in inputs]
        nodes.append(node(f"n{n}", op, *names, f="f", body="f", then_branch="f", else_branch="g"))
    inner = function("f", ["a", "b"], {"o": "n0:o:1", "p": "a"}, nodes)
    assert isinstance(facts(graph(*weights(), *nodes, functions=[inner])), dict)


def test_long_cycles_and_chains_end() -> None:
    count = 20_000
    chain = [node(f"n{n}", "Identity", f"n{(n + 1) % count}") for n in range(count)]
    merges = [node(f"m{n}", "Merge", "kernel/read", f"n{n}") for n in range(count)]
    sums = [node("s0", "MatMul", "x", "kernel/read")]
    sums += [node(f"s{n}", "Add", f"s{n - 1}", f"s{n - 1}") for n in range(1, 5000)]
    assert facts(graph(*weights(), *chain, *merges, *sums, node("g", "Sigmoid", "s4999"))) == {}


@pytest.mark.parametrize(
    ("attrs", "cudnn"),
    [
        ({}, ["lstm", 1]),
        ({"direction": b"\x12\x0dbidirectional"}, ["lstm", 2]),
        ({"rnn_mode": b"\x12\x03gru", "direction": b"\x12\x0eunidirectional"}, ["gru", 1]),
        ({"rnn_mode": b"\x12\x08rnn_tanh"}, ["rnn", 1]),
    ],
)
def test_a_vector_that_is_given_to_cudnn(attrs: dict[str, Any], cudnn: list[Any]) -> None:
    given = graph(*weights(), *STATES, node("fused", "CudnnRNN", "x", "h", "c", "kernel/read", **attrs))
    assert facts(given, "kernel")["cudnn"] == cudnn
    # What is only made of the weights is not theirs.
    made = graph(*weights(), *STATES, node("flat", "Reshape", "kernel/read", "one"),
                 node("fused", "CudnnRNN", "x", "h", "c", "flat", **attrs))  # fmt: skip
    assert "cudnn" not in facts(made, "kernel")


def test_a_graph_beyond_the_bounds_has_no_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = graph(*weights(), *STATES, *lstm_nodes())
    source = tf_frozen.open_source(write(tmp_path / "g.pb", data))
    assert source.facts(["kernel", "bias"]) == LSTM
    monkeypatch.setattr(_tf_dataflow, "MAX_NODES", 10)
    source = tf_frozen.open_source(write(tmp_path / "g.pb", data))
    assert source.facts(["kernel", "bias"]) == source.facts(["kernel"]) == {}


def test_results_and_inputs_that_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of many results, called many times, and one whose node has many inputs: few bytes, many links."""
    many = {f"r{n}": "x" for n in range(40)}
    results = function("f", ["x"], many, [])
    inputs = function("f", ["x"], {"r": "n"}, [node("n", "AddN", *["x"] * 39)])
    for called in (results, inputs):
        data = graph(*(node(f"n{n}", "f", "a") for n in range(10)), node("a", "Placeholder"), functions=[called])
        parsed = GraphDef(Memory(data, "g.pb"), 0, len(data))
        links = _tf_dataflow.Flow(parsed)._links
        assert links == 10 + 10 * 40
        monkeypatch.setattr(_tf_dataflow, "MAX_LINKS", links - 1)
        with pytest.raises(_tf_dataflow.TooComplex):
            _tf_dataflow.Flow(parsed)
        monkeypatch.setattr(_tf_dataflow, "MAX_LINKS", links)
        _tf_dataflow.Flow(parsed)


# Against TensorFlow ---------------------------------------------------------------------------------------------------


def keras_layers() -> dict[str, tuple[Callable[[Any], Any], dict[str, Any]]]:
    """Layers of the legacy Keras, and what is to be found of each."""
    lstm = {**LSTM, "forget_bias": 0.0, "gates": ["i", "f", "g", "o"]}
    gru = {"reset_after": True, "activation": "tanh", "recurrent_activation": "sigmoid"}
    return {
        "lstm": (lambda k: k.LSTM(4, return_sequences=True), lstm),
        "lstm relu": (lambda k: k.LSTM(4, activation="relu"), {**lstm, "activation": "relu"}),
        "lstm linear": (lambda k: k.LSTM(4, activation="linear"), {**lstm, "activation": "linear"}),
        "lstm split": (
            lambda k: k.LSTM(4, implementation=1, recurrent_activation="hard_sigmoid"),
            {**without("gates"), "forget_bias": 0.0, "recurrent_activation": "hard_sigmoid"},
        ),
        "lstm unrolled": (
            lambda k: k.LSTM(4, unroll=True, activation="softsign"),
            {**lstm, "activation": "softsign"},
        ),
        "gru": (lambda k: k.GRU(4), gru),
        "gru before": (lambda k: k.GRU(4, reset_after=False), {**gru, "reset_after": False}),
        "gru split": (lambda k: k.GRU(4, implementation=1, activation="elu"), {**gru, "activation": "elu"}),
        "gru before unrolled": (
            lambda k: k.GRU(4, reset_after=False, unroll=True, recurrent_activation="hard_sigmoid"),
            {**gru, "reset_after": False, "recurrent_activation": "hard_sigmoid"},
        ),
        "rnn": (lambda k: k.SimpleRNN(4, activation="relu"), {"activation": "relu", "gates": ["h"]}),
        "rnn unrolled": (lambda k: k.SimpleRNN(4, unroll=True), {"activation": "tanh", "gates": ["h"]}),
    }


@pytest.mark.parametrize("name", keras_layers())
@pytest.mark.filterwarnings("ignore")
def test_legacy_keras(name: str, tmp_path: Path) -> None:
    tf, keras = need("tensorflow"), need("tf_keras")
    convert = need("tensorflow.python.framework.convert_to_constants").convert_variables_to_constants_v2
    make, expected = keras_layers()[name]
    model = keras.Sequential([keras.Input((5, 3)), make(keras.layers)])
    values = sorted(w.numpy().tobytes() for w in model.weights)
    concrete = tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec((2, 5, 3)))
    for lower in (False, True):
        frozen = convert(concrete, lower_control_flow=lower).graph.as_graph_def()
        with tf_frozen.open_source(write(tmp_path / "g.pb", frozen.SerializeToString())) as source:
            names = [n for n, spec in source.specs().items() if spec.role == "weight"]
            assert sorted(source.read(n).tobytes() for n in names) == values
            assert source.facts(names) == expected
    model.save(str(tmp_path / "saved"), save_format="tf")
    with detect.open_source(tmp_path / "saved") as source:  # type: ignore[attr-defined]
        names = [n for n, spec in source.specs().items() if spec.role == "weight"]
        assert {n.removesuffix(":0") for n in (w.name for w in model.weights)} == set(names)
        assert source.facts(names) == expected


@pytest.mark.parametrize("activation", ["sigmoid", "hard_sigmoid"])
@pytest.mark.filterwarnings("ignore")
def test_keras_3(activation: str, tmp_path: Path) -> None:
    keras = need("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras exports SavedModels with TensorFlow only")
    layers = keras.layers
    model = keras.Sequential([keras.Input((5, 3)), layers.LSTM(4, recurrent_activation=activation, name="cell")])
    model.export(str(tmp_path / "saved"), verbose=False)
    with detect.open_source(tmp_path / "saved") as source:  # type: ignore[attr-defined]
        names = [n for n, spec in source.specs().items() if spec.role == "weight" and "/cell/" in n]
        assert len(names) == 3
        found = source.facts(names)
    told = {"sigmoid": "sigmoid", "hard_sigmoid": "hard_sigmoid_6"}[activation]
    order = ["i", "f", "g", "o"]
    assert found == {"forget_bias": 0.0, "activation": "tanh", "recurrent_activation": told, "gates": order}


TF1_CELLS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "basic": ("BasicLSTMCell", {"forget_bias": 0.7}, {**LSTM, "forget_bias": 0.7}),
    "peepholes": ("LSTMCell", {"use_peepholes": True, "forget_bias": 2.5}, {**LSTM, "forget_bias": 2.5}),
    "clipped": (
        "LSTMCell",
        {"use_peepholes": True, "cell_clip": 3.5, "num_proj": 3, "proj_clip": 1.25},
        {**LSTM, "cell_clip": 3.5, "proj_clip": 1.25},
    ),
    "gru": ("GRUCell", {}, {"activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": False}),
    "rnn": ("BasicRNNCell", {}, {"activation": "tanh", "gates": ["h"]}),
}


@pytest.mark.parametrize("name", TF1_CELLS)
@pytest.mark.parametrize("kind", ["while", "while_v2", "sequence_length", "static"])
@pytest.mark.filterwarnings("ignore")
def test_cells_of_tensorflow_1(name: str, kind: str, tmp_path: Path) -> None:
    tf = need("tensorflow").compat.v1
    legacy_cells = need("tf_keras.src.layers.rnn.legacy_cells")  # where tf.nn.rnn_cell lives, whichever Keras rules
    cell_class, options, expected = TF1_CELLS[name]
    v2 = need("tensorflow.python.ops.control_flow_util").ENABLE_CONTROL_FLOW_V2
    (tf.enable_control_flow_v2 if kind == "while_v2" else tf.disable_control_flow_v2)()
    try:
        with tf.Graph().as_default() as built, tf.variable_scope("s", use_resource=kind == "while_v2"):
            x = tf.placeholder(tf.float32, (2, 5, 3), "x")
            cell = getattr(legacy_cells, cell_class)(4, **options)
            if kind == "static":
                outputs, _ = tf.nn.static_rnn(cell, tf.unstack(x, axis=1), dtype=tf.float32)
            else:
                lengths = [3, 5] if kind == "sequence_length" else None
                outputs, _ = tf.nn.dynamic_rnn(cell, x, dtype=tf.float32, sequence_length=lengths)
            result = tf.identity(outputs[-1], "out")
            names = [v.op.name for v in tf.global_variables()]
            with tf.Session() as session:
                session.run(tf.global_variables_initializer())
                definition = tf.graph_util.convert_variables_to_constants(
                    session, built.as_graph_def(), [result.op.name]
                )
                tf.train.Saver().save(session, str(tmp_path / "model"))
    finally:
        (tf.enable_control_flow_v2 if v2 else tf.disable_control_flow_v2)()
    with tf_frozen.open_source(write(tmp_path / "g.pb", definition.SerializeToString())) as source:
        assert {n for n, spec in source.specs().items() if spec.role == "weight"} == set(names)
        assert source.facts(names) == expected
        values = {n: source.read(n).tobytes() for n in names}
    with detect.open_source(tmp_path / "model.meta") as source:  # type: ignore[attr-defined]
        assert source.facts(names) == expected
        assert {n: source.read(n).tobytes() for n in names} == values


# Cells that are none, or told in part -------------------------------------------------------------------------------

GATES = [
    node("z", "MatMul", "x", "kernel/read"),
    node("split", "Split", "one", "z"),
    node("f", "Sigmoid", "split"),
    node("i", "Sigmoid", "split:1"),
    node("g", "Tanh", "split:2"),
    node("o", "Sigmoid", "split:3"),
    const("1", 1.0),
    node("1-f", "Sub", "1", "f"),
]


def update(kept: tuple[str, str], new: tuple[str, str]) -> list[bytes]:
    return [node("kept", "Mul", *kept), node("new", "Mul", *new), node("c1", "Add", "kept", "new")]


def test_an_lstm_with_coupled_gates() -> None:
    output = [node("act", "Tanh", "c1"), node("h1", "Mul", "o", "act")]
    found = facts(graph(*weights(), *STATES, *GATES, *update(("f", "c"), ("1-f", "g")), *output))
    assert found == {"recurrent_activation": "sigmoid", "activation": "tanh"}


def test_a_ugrnn() -> None:
    """Its one gate updates the state; there is no reset gate."""
    found = facts(graph(*weights(), *STATES, *GATES, *update(("f", "c"), ("1-f", "g"))))
    assert found == {"recurrent_activation": "sigmoid", "activation": "tanh"}


def test_products_of_what_is_no_gate_are_no_reset() -> None:
    nodes = [n for n in GATES if not n.startswith(node("g", "")[:3])]
    nodes += [node("xx", "Mul", "x", "h"), node("before", "Add", "split:2", "xx"), node("g", "Tanh", "before")]
    found = facts(graph(*weights(), *STATES, *nodes, *update(("f", "c"), ("1-f", "g"))))
    assert found == {"recurrent_activation": "sigmoid", "activation": "tanh"}


@pytest.mark.parametrize(
    ("kept", "new"),
    [
        (("f", "c"), ("i", "x")),  # a candidate that is nothing
        (("h", "c"), ("i", "g")),  # a state that nothing gates
        (("1-f", "c"), ("i", "g")),  # the complement of another gate than the one that is added
    ],
)
def test_sums_of_products_that_are_no_state(kept: tuple[str, str], new: tuple[str, str]) -> None:
    assert facts(graph(*weights(), *STATES, *GATES, *update(kept, new))) == {}


def test_gates_that_activations_do_not_tell_apart() -> None:
    """Both factors are activated as the forget gate is not: which is the input gate is not told."""
    nodes = [n for n in GATES if not n.startswith(node("i", "")[:3])]
    output = [node("act", "Relu", "c1"), node("h1", "Mul", "o", "act")]
    tanh, relu = node("i", "Tanh", "split:1"), node("i", "Relu", "split:1")
    for other in (tanh, relu):
        assert facts(graph(*weights(), *STATES, *nodes, other, *update(("f", "c"), ("i", "g")), *output)) == {}


def test_a_split_that_is_too_far_away() -> None:
    def chained(count: int) -> dict[str, Any]:
        nodes = [n for n in GATES if not n.startswith(node("i", "")[:3])]
        nodes += [node(f"s{n + 1}", "AddN", f"s{n}" if n else "split:1") for n in range(count)]
        nodes += [node("i", "Sigmoid", f"s{count}"), node("act", "Tanh", "c1"), node("h1", "Mul", "o", "act")]
        return facts(graph(*weights(), *STATES, *nodes, *update(("f", "c"), ("i", "g"))))

    assert chained(19).get("gates") == ["f", "i", "g", "o"]
    assert chained(20) == {k: v for k, v in chained(19).items() if k != "gates"}


def test_a_mode_of_cudnn_that_is_not_known() -> None:
    for mode, known in ((b"rnn_tanh", {"activation": "tanh"}), (b"rnn_abs", {})):
        call = node("y", "CudnnRNN", "x", "h", "c", "kernel/read", rnn_mode=bytes_field(2, mode))
        found = facts(graph(*weights(), *STATES, call))
        found.pop("cudnn", None)
        assert found == known


def test_weights_that_a_branch_returns() -> None:
    """The choice between two values is no operation of the graph."""
    same = function("same", ["w"], {"out": "w"}, [])
    other = function("other", ["w"], {"out": "n:y:0"}, [node("n", "Neg", "w")])
    choice = node("choice", "If", "x", "kernel/read", then_branch="same", else_branch="other")
    assert facts(graph(*weights(), *STATES, choice, node("m", "MatMul", "x", "choice"), functions=[same, other])) == {}


def test_a_graph_that_is_too_large_has_no_saved_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    data = graph(*weights())
    for most, known in ((6, {"kernel", "bias"}), (5, set())):
        monkeypatch.setattr(_tf_dataflow, "MAX_NODES", most)
        made = _tf_facts.GraphFacts(GraphDef(Memory(data, "g.pb"), 0, len(data)))
        assert made.saved() == {}
        assert bool(made._made) == bool(known)


def test_a_plain_cell_of_other_weights() -> None:
    """An activation whose product multiplies what other weights made of their own activation."""
    other = const("other", np.ones((3, 3), np.float32))
    nodes = [
        other,
        node("other/read", "Identity", "other"),
        node("first", "MatMul", "x", "other/read"),
        node("earlier", "Tanh", "first"),
        node("product", "MatMul", "earlier", "kernel/read"),
        node("later", "Tanh", "product"),
    ]
    assert facts(graph(*weights(), *nodes), "kernel") == {}
    assert facts(graph(*weights(), *nodes), "kernel", "other") == {}
    twice = [node("first", "MatMul", "x", "kernel/read"), *nodes[3:]]
    assert facts(graph(*weights(), *twice), "kernel") == {"activation": "tanh", "gates": ["h"]}


def test_a_loop_variable_that_goes_nowhere() -> None:
    nodes = [
        node("enter", "Enter", "h"),
        node("merge", "Merge", "enter", "next"),
        node("product", "MatMul", "merge", "kernel/read"),
        node("y", "Tanh", "product"),
        node("next", "NextIteration", "chosen"),
    ]
    kept = node("chosen", "Select", "x", "merge", "y")
    assert facts(graph(*weights(), *STATES, *nodes, kept), "kernel") == {"activation": "tanh", "gates": ["h"]}
    lost = node("chosen", "Neg", "y")
    assert facts(graph(*weights(), *STATES, *nodes, lost), "kernel") == {}
    many = [node(f"s{n + 1}", "Select", "x", f"s{n}" if n else "merge", f"s{n}" if n else "x") for n in range(25)]
    assert facts(graph(*weights(), *STATES, *nodes, *many, node("chosen", "Select", "x", "s25", "x")), "kernel") == {}
