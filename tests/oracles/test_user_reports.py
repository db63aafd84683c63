"""What users of the frameworks asked for, a test for each report: their scenario, real frameworks on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.oracles.cells import Case, cases, mapping, reference
from tests.oracles.torch_modules import load, module, moved, run, save, state
from tests.support import need

CLOSE = {"rtol": 0, "atol": 1e-5}


def case(name: str, file: str = "checkpoint_v2") -> Case:
    (found,) = [c for c in cases(name) if c.file == file]
    return found


@pytest.mark.parametrize("file", ["keras_h5", "keras_weights_h5"])
def test_a_cudnngru_of_keras_into_pytorch(file: str, tmp_path: Path) -> None:
    """keras-team/keras#8720: weights of CuDNNGRU in an ``.h5`` file into ``torch.nn.GRU``."""
    model = case("c_keras/cudnngru_5_h5", file)
    arrays = reference(model)
    gru = module("GRU", model.doc["input_size"], model.doc["units"], batch_first=True)
    rules = [{"from": model.source(), "to": {"layout": "gru.torch", "scope": ""}}]
    load(gru, moved(tmp_path, model.path, state(gru), mapping(model, rules)))
    outputs, final = run(gru, arrays["x"])
    np.testing.assert_allclose(outputs, arrays["full_outputs"], **CLOSE)
    np.testing.assert_allclose(final[0][0], arrays["full_final_h"], **CLOSE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layers", [1, 2])
def test_a_bidirectional_lstm_of_pytorch_into_tensorflows_scopes(layers: int, tmp_path: Path) -> None:
    """tensorflow/tensorflow#20435: ``bidirectional_dynamic_rnn`` with the weights of a PyTorch model."""
    tf = need("tensorflow").compat.v1
    rnn = need("tensorflow.python.keras.layers.legacy_rnn.rnn_cell_impl")
    lstm = module("LSTM", 3, 5, num_layers=layers, bidirectional=True, batch_first=True, seed=9)
    source = save(tmp_path / "torch.npz", state(lstm, "encoder."))
    x = np.random.default_rng(2).normal(size=(2, 7, 3)).astype(np.float32)
    rules = [
        {
            "from": {"layout": "lstm.torch", "scope": "encoder", "layers": k},
            "to": {"layout": "lstm.tf1", "scope": f"new/layer_{k}", "forget_bias": 1.0},
        }
        for k in range(layers)
    ]
    getter = wp.tensorflow.getter(source, {"weightport": 1, "rules": rules})
    with tf.Graph().as_default() as graph:
        with tf.variable_scope("new", custom_getter=getter):
            out = tf.constant(x)
            for k in range(layers):
                cells = [rnn.LSTMCell(5) for _ in range(2)]
                sides, _ = tf.nn.bidirectional_dynamic_rnn(*cells, out, dtype=tf.float32, scope=f"layer_{k}")
                out = tf.concat(sides, -1)
        getter.check()
        with tf.Session(graph=graph) as session:
            session.run(tf.global_variables_initializer())
            np.testing.assert_allclose(session.run(out), run(lstm, x)[0], **CLOSE)


@pytest.mark.parametrize(("framework", "scope"), [("keras", ""), ("keras", "layer_{}"), ("tf_keras", "layer_{}")])
def test_a_stack_of_tensorflows_cells_into_keras_stacked_cells(framework: str, scope: str) -> None:
    """tensorflow/tensorflow#29622: MultiRNNCell's layers into ``RNN(StackedRNNCells([...]))``."""
    keras, model = need(framework), case("b_cells/multi3_basic_lstm")
    arrays, layers = reference(model), keras.layers
    names = [{"name": scope.format(k)} if scope else {} for k in range(3)]
    cells = [layers.LSTMCell(units, **name) for units, name in zip(model.doc["units"], names, strict=True)]
    stack = layers.StackedRNNCells(cells, name="stack")
    inputs = keras.Input((None, model.doc["input_size"]))
    network = keras.Model(inputs, layers.RNN(stack, return_sequences=True, name="rnn")(inputs))
    if scope:  # cells with names of their own: a rule for each
        targets = [(model.source(layers=k), f"rnn/stack/{scope.format(k)}") for k in range(3)]
    else:
        targets = [(model.source(), "rnn")]
    rules = [{"from": source, "to": {"layout": "lstm.keras", "scope": to}} for source, to in targets]
    result = wp.transfer(model.path, network, mapping(model, rules))
    assert len(result.plan.target) == len(network.weights) == 9
    np.testing.assert_allclose(np.asarray(network(arrays["x"])), arrays["full_outputs"], **CLOSE)


def test_a_bidirectional_network_of_tensorflow_into_keras() -> None:
    """keras-team/keras#10179: ``bidirectional_dynamic_rnn`` into ``Bidirectional``."""
    keras, model = need("keras"), case("e_old_naming/tf_1_0_1/bidirectional_lstm")
    arrays = reference(model)
    layer = keras.layers.Bidirectional(keras.layers.LSTM(model.doc["units"], return_sequences=True), name="both")
    layer.build(arrays["x"].shape)
    wp.transfer(
        model.path, layer, mapping(model, [{"from": model.source(), "to": {"layout": "lstm.keras", "scope": ""}}])
    )
    expected = np.concatenate([arrays[f"full_outputs_{d}"] for d in ("fw", "bw")], -1)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(arrays["x"])), expected, **CLOSE)


def test_a_basic_lstm_into_the_order_of_cudnn(tmp_path: Path) -> None:
    """tensorflow/tensorflow#29308: BasicLSTMCell's weights as CuDNNLSTM's; Keras itself makes LSTM's of those."""
    keras, model = need("tf_keras"), case("b_cells/basic_lstm_fb1")
    convert = need("tf_keras.src.saving.legacy.hdf5_format").preprocess_weights_for_loading
    arrays, out = reference(model), tmp_path / "cudnn.npz"
    rules = [{"from": model.source(), "to": {"layout": "lstm.keras-cudnn", "scope": "lstm"}}]
    wp.transfer(model.path, None, mapping(model, rules), out=str(out))
    with np.load(out) as archive:
        weights = [archive[f"lstm/{n}"] for n in ("kernel", "recurrent_kernel", "bias")]
    assert [w.shape for w in weights] == [(7, 48), (12, 48), (96,)]
    layer = keras.layers.LSTM(12, return_sequences=True)
    layer.build(arrays["x"].shape)
    layer.set_weights(convert(layer, weights, original_keras_version="2"))
    np.testing.assert_allclose(np.asarray(layer(arrays["x"])), arrays["full_outputs"], **CLOSE)


@pytest.mark.parametrize(
    ("name", "after"), [("b_cells/gru", False), ("b_cells/gru_block_v2", False), ("b_cells/cudnn_compatible_gru", True)]
)
def test_a_gru_fits_the_variant_that_it_is(name: str, after: bool, tmp_path: Path) -> None:
    """tensorflow/tensorflow#44948 and keras-team/keras#15915: GRUs that give other outputs with the same weights."""
    keras, model = need("keras"), case(name)
    arrays, units = reference(model), model.doc["units"]
    for reset_after in (False, True):
        layer = keras.layers.GRU(units, reset_after=reset_after, return_sequences=True, name="gru")
        layer.build(arrays["x"].shape)
        spec = mapping(model, [{"from": model.source(), "to": {"layout": "gru.keras", "scope": ""}}])
        if reset_after == after:
            wp.transfer(model.path, layer, spec)
            found = keras.ops.convert_to_numpy(layer(arrays["x"]))
            np.testing.assert_allclose(found, arrays["full_outputs"], **CLOSE)
        else:
            with pytest.raises(wp.PlanError, match="reset before and after the matrix product are different functions"):
                wp.transfer(model.path, layer, spec)
    gru = module("GRU", arrays["x"].shape[-1], units, batch_first=True)
    spec = mapping(model, [{"from": model.source(), "to": {"layout": "gru.torch", "scope": ""}}])
    if after:
        load(gru, moved(tmp_path, model.path, state(gru), spec))
        np.testing.assert_allclose(run(gru, arrays["x"])[0], arrays["full_outputs"], **CLOSE)
    else:
        with pytest.raises(wp.PlanError, match="different functions"):
            moved(tmp_path, model.path, state(gru), spec)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["basic_lstm", "lstm", "gru", "basic_rnn"])
def test_names_of_tensorflow_1_0(name: str) -> None:
    """tensorflow/tensorflow#11964: a checkpoint with ``weights`` and ``biases`` for a program that says ``kernel``."""
    tf = need("tensorflow").compat.v1
    rnn = need("tensorflow.python.keras.layers.legacy_rnn.rnn_cell_impl")
    model = case(f"e_old_naming/tf_1_0_1/{name}")
    arrays = reference(model)
    with wp.open(model.path) as source:
        assert {n.rpartition("/")[2] for n in source.cells()[0].names} == {"weights", "biases"}
    makers = {"lstm": rnn.LSTMCell, "gru": rnn.GRUCell, "rnn": rnn.BasicRNNCell}
    rules = [{"from": model.source(), "to": {"layout": f"{model.kind}.tf1", "scope": "rnn"}}]
    getter = wp.tensorflow.getter(model.path, mapping(model, rules))
    with tf.Graph().as_default() as graph:
        with tf.variable_scope("", custom_getter=getter):
            cell: Any = makers[model.kind](model.doc["units"])
            out, _ = tf.nn.dynamic_rnn(cell, arrays["x"], dtype=tf.float32)
        getter.check()
        assert {v.op.name.rpartition("/")[2] for v in tf.global_variables()} == {"kernel", "bias"}
        with tf.Session(graph=graph) as session:
            session.run(tf.global_variables_initializer())
            np.testing.assert_allclose(session.run(out), arrays["full_outputs"], **CLOSE)
