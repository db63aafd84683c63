"""Cells of the fixtures into live TensorFlow graphs: TensorFlow's own LSTMCell, GRUCell and BasicRNNCell run them.

What Keras' layers cannot hold (peepholes, projections, clipping) is shown here, and both ways into a graph: the custom
getter and the finished graph; as initial values and as constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.oracles.cells import TF1_KINDS, Case, cases, mapping, reference
from tests.oracles.test_keras_layers import CLOSE, states
from tests.support import need

SINGLE = [
    c
    for c in cases()
    if c.layout in TF1_KINDS
    and isinstance(c.doc.get("units"), int)
    and not c.doc.get("num_layers")
    # A GRU that resets after the product is not GRUCell's function; a Bidirectional has a test of its own.
    and c.model.name != "b_cells/cudnn_compatible_gru"
    and "idirectional" not in c.doc["cell"]
]


def ways(case: Case) -> tuple[str, ...]:
    """All ways for one file of a model, one for the others."""
    if case.file == "checkpoint_v2":
        return ("getter", "getter-constant", "graph", "graph-constant")
    return ("getter",)


def live_cell(case: Case) -> Any:
    """TensorFlow's cell of the same kind, told what its options were."""
    rnn = need("tensorflow.python.keras.layers.legacy_rnn.rnn_cell_impl")
    doc = case.doc
    if case.kind == "gru":
        return rnn.GRUCell(doc["units"])
    if case.kind == "rnn":
        return rnn.BasicRNNCell(doc["units"])
    options = {"use_peepholes": bool(doc.get("use_peepholes")), "num_proj": doc.get("num_proj")}
    options |= {key: doc.get(key) for key in ("cell_clip", "proj_clip")}
    activation = {"relu": need("tensorflow").nn.relu}.get(doc.get("activation"))
    return rnn.LSTMCell(doc["units"], activation=activation, **options)


def build(case: Case, arrays: Mapping[str, np.ndarray], prefix: str) -> tuple[Any, Any]:
    """``dynamic_rnn`` in the default graph, in the current variable scope: outputs and final state."""
    tf = need("tensorflow").compat.v1
    cell = live_cell(case)
    kwargs: dict[str, Any] = {"dtype": tf.float32}
    if prefix == "seqlen":
        kwargs["sequence_length"] = arrays["seq_len"]
    if prefix == "init":
        known = states(case, arrays, "init0")
        assert known is not None
        rnn = need("tensorflow.python.keras.layers.legacy_rnn.rnn_cell_impl")
        kwargs["initial_state"] = known[0] if case.kind != "lstm" else rnn.LSTMStateTuple(known[1], known[0])
    return tf.nn.dynamic_rnn(cell, arrays["x"], **kwargs)


def rules(case: Case, **more: Any) -> dict[str, Any]:
    rule = {"from": case.source(), "to": {"layout": f"{case.kind}.tf1", "scope": "new"}, **more}
    return mapping(case, [rule])


def check(case: Case, arrays: Mapping[str, np.ndarray], prefix: str, outputs: Any, final: Any) -> None:
    np.testing.assert_allclose(outputs, arrays[f"{prefix}_outputs"], **CLOSE)
    known = states(case, arrays, f"{prefix}_final")
    if known is not None:
        found = [final.h, final.c] if case.kind == "lstm" else [final]
        for one, want in zip(found, known, strict=True):
            np.testing.assert_allclose(one, want, **CLOSE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("case", "way"), [(c, way) for c in SINGLE for way in ways(c)], ids=str)
def test_a_live_cell(case: Case, way: str) -> None:
    tf = need("tensorflow").compat.v1
    arrays = reference(case)
    constant = way.endswith("constant")
    spec = rules(case, **({"as": "constant"} if constant else {}))
    prefixes = [
        p for p in ("full", "seqlen", "init") if f"{p}_outputs" in arrays and (p != "init" or "init0_h" in arrays)
    ]
    with wp.open(case.path) as source, tf.Graph().as_default() as graph:
        getter = wp.tensorflow.getter(source, spec) if way.startswith("getter") else None
        made = []
        with tf.variable_scope("new", custom_getter=getter, reuse=tf.AUTO_REUSE):
            made = [build(case, arrays, prefix) for prefix in prefixes]
        if getter is None:
            wp.transfer(source, graph, spec)
        else:
            getter.check()
        assert bool(tf.trainable_variables()) != constant
        with tf.Session(graph=graph) as session:
            session.run(tf.global_variables_initializer())
            for prefix, tensors in zip(prefixes, made, strict=True):
                check(case, arrays, prefix, *session.run(tensors))
        assert graph.as_graph_def().ByteSize() < 1_000_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", ["getter", "graph"])
@pytest.mark.parametrize("case", [c for c in cases("b_cells/multi3_basic_lstm") if c.file != "meta_graph"], ids=str)
def test_a_stack_in_one_rule(case: Case, way: str) -> None:
    tf = need("tensorflow").compat.v1
    rnn = need("tensorflow.python.keras.layers.legacy_rnn.rnn_cell_impl")
    arrays = reference(case)
    spec = rules(case)
    with wp.open(case.path) as source, tf.Graph().as_default() as graph:
        getter = wp.tensorflow.getter(source, spec) if way == "getter" else None
        with tf.variable_scope("new", custom_getter=getter):
            stack = rnn.MultiRNNCell([rnn.BasicLSTMCell(n) for n in case.doc["units"]])
            outputs, _ = tf.nn.dynamic_rnn(stack, arrays["x"], dtype=tf.float32)
        if getter is None:
            wp.transfer(source, graph, spec)
        else:
            getter.check()
        with tf.Session(graph=graph) as session:
            session.run(tf.global_variables_initializer())
            np.testing.assert_allclose(session.run(outputs), arrays["full_outputs"], **CLOSE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_bidirectional_network_in_one_rule() -> None:
    tf = need("tensorflow").compat.v1
    rnn = need("tensorflow.python.keras.layers.legacy_rnn.rnn_cell_impl")
    (case,) = [c for c in cases("b_cells/bidirectional_lstm") if c.file == "checkpoint_v2"]
    arrays = reference(case)
    with wp.open(case.path) as source, tf.Graph().as_default() as graph:
        with tf.variable_scope("new", custom_getter=wp.tensorflow.getter(source, rules(case))):
            pair = [rnn.LSTMCell(case.doc["units"][d]) for d in ("fw", "bw")]
            outputs, _ = tf.nn.bidirectional_dynamic_rnn(
                *pair, arrays["x"], sequence_length=arrays["seq_len"], dtype=tf.float32
            )
        with tf.Session(graph=graph) as session:
            session.run(tf.global_variables_initializer())
            for found, direction in zip(session.run(outputs), ("fw", "bw"), strict=True):
                np.testing.assert_allclose(found, arrays[f"seqlen_outputs_{direction}"], **CLOSE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("bias", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("name", ["b_cells/basic_lstm_fb0", "b_cells/basic_lstm_fb1"])
def test_what_a_finished_graph_adds_at_run_time_is_read_in_it(name: str, bias: float) -> None:
    """Whatever forget bias the new cell has, and the mapping does not speak of: the outputs are the original's."""
    tf = need("tensorflow").compat.v1
    rnn = need("tensorflow.python.keras.layers.legacy_rnn.rnn_cell_impl")
    (case,) = [c for c in cases(name) if c.file == "frozen"]
    arrays = reference(case)
    with tf.Graph().as_default() as graph:
        with tf.variable_scope("new"):
            cell = rnn.BasicLSTMCell(case.doc["units"], forget_bias=bias)
            outputs, _ = tf.nn.dynamic_rnn(cell, arrays["x"], dtype=tf.float32)
        result = wp.transfer(case.path, graph, rules(case))
        assert result.plan.outcomes[0].classed == ("bijective" if bias == case.doc["forget_bias"] else "exact")
        with tf.Session(graph=graph) as session:
            session.run(tf.global_variables_initializer())
            np.testing.assert_allclose(session.run(outputs), arrays["full_outputs"], **CLOSE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_finished_graph_of_another_activation_is_refused() -> None:
    tf = need("tensorflow").compat.v1
    rnn = need("tensorflow.python.keras.layers.legacy_rnn.rnn_cell_impl")
    (case,) = [c for c in cases("b_cells/basic_lstm_fb1") if c.file == "frozen"]
    with tf.Graph().as_default() as graph:
        with tf.variable_scope("new"):
            cell = rnn.BasicLSTMCell(case.doc["units"], activation=need("tensorflow").nn.relu)
            tf.nn.dynamic_rnn(cell, reference(case)["x"], dtype=tf.float32)
        with pytest.raises(wp.PlanError, match="the source's activation is tanh, the target's relu"):
            wp.transfer(case.path, graph, rules(case))
