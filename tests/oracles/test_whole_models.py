"""Whole fixture models with more than one cell, into new models with names of their own: the same outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.support import fixture, need

CLOSE = {"rtol": 0, "atol": 1e-5}
FILES = ["keras_h5", "keras_weights_h5", "checkpoint_object_based"]
#: What weights files do not record, and TensorFlow 1's Keras did.
HARD = {"recurrent_activation": "hard_sigmoid"}


def cell(layout: str, scope: str, to: str, target: str | None = None, **stated: Any) -> dict[str, Any]:
    return {"from": {"layout": layout, "scope": scope, **stated}, "to": {"layout": target or layout, "scope": to}}


@pytest.mark.parametrize("file", FILES)
def test_a_text_classifier_with_masking(file: str) -> None:
    model, keras = fixture("c_keras/masked_text_classifier"), need("tf_keras")
    arrays = model.reference
    layers = keras.layers
    new = keras.Sequential(
        [
            layers.Embedding(12, 5, mask_zero=True, name="words"),
            layers.LSTM(7, recurrent_activation="hard_sigmoid", return_sequences=True, name="first"),
            layers.LSTM(6, recurrent_activation="hard_sigmoid", name="second"),
            layers.Dense(3, activation="softmax", name="classes"),
        ]
    )
    new.build((None, 8))
    rules = [
        {"from": "embedding/embeddings", "to": "words/embeddings"},
        cell("lstm.keras", "lstm_1", "first", **HARD),
        cell("lstm.keras", "lstm_2", "second", **HARD),
        {"from": "classifier/{w}", "to": "classes/{w}"},
    ]
    ignore = ["optimizer_weights/**", "**/.OPTIMIZER_SLOT/**", "optimizer/*", "training/**", "save_counter"]
    result = wp.transfer(model.path(file), new, {"weightport": 1, "rules": rules, "ignore": ignore})
    assert set(result.plan.target.values()) == {"moved"}
    np.testing.assert_allclose(np.asarray(new(arrays["x"])), arrays["full_outputs"], **CLOSE)


@pytest.mark.parametrize("file", FILES)
def test_a_model_inside_a_model(file: str) -> None:
    model, keras = fixture("c_keras/nested_model"), need("tf_keras")
    arrays = model.reference
    inside = keras.Input((6, 4))
    inner = keras.Model(
        inside, keras.layers.LSTM(5, recurrent_activation="hard_sigmoid", return_sequences=True, name="reader")(inside)
    )
    inputs = keras.Input((6, 4))
    new = keras.Model(inputs, keras.layers.SimpleRNN(4, activation="relu", name="sum")(inner(inputs)))
    rules = [
        cell("lstm.keras", "inner_lstm", "reader", **HARD),
        cell("rnn.keras", "top_rnn", "sum", activation="relu"),
    ]
    result = wp.transfer(model.path(file), new, {"weightport": 1, "rules": rules})
    assert set(result.plan.target.values()) == {"moved"}
    np.testing.assert_allclose(np.asarray(new(arrays["x"])), arrays["full_outputs"], **CLOSE)


@pytest.mark.parametrize("file", FILES)
def test_stacked_cells_that_share_a_scope(file: str) -> None:
    """Two cells of one layer, told apart by ``kernel`` and ``kernel_1`` only, into two layers."""
    model, keras = fixture("c_keras/stacked_cells"), need("tf_keras")
    arrays = model.reference
    inputs = keras.Input((6, 5))
    first = keras.layers.LSTM(
        6, recurrent_activation="hard_sigmoid", return_sequences=True, return_state=True, name="first"
    )
    second = keras.layers.GRU(
        4,
        recurrent_activation="hard_sigmoid",
        reset_after=False,
        return_sequences=True,
        return_state=True,
        name="second",
    )
    x, h, c = first(inputs)
    y, last = second(x)
    new = keras.Model(inputs, [y, h, c, last])
    rules = [
        cell("lstm.keras", "rnn", "first", **HARD),
        cell("gru.keras", "rnn", "second", **HARD),
    ]
    result = wp.transfer(model.path(file), new, {"weightport": 1, "rules": rules})
    assert set(result.plan.target.values()) == {"moved"}
    names = ["full_outputs", "full_final_l0_h", "full_final_l0_c", "full_final_l1_h"]
    for found, name in zip(new(arrays["x"]), names, strict=True):
        np.testing.assert_allclose(np.asarray(found), arrays[name], **CLOSE)


def test_a_translator_with_attention() -> None:
    """Encoder, decoder cell, attention and projection of a seq2seq checkpoint, into layers that are run by hand."""
    model, keras = fixture("b_seq2seq/seq2seq_bahdanau"), need("keras")
    arrays = model.reference
    layers = keras.layers
    units, scores, size, vocab = 8, 6, 7, 11
    steps = {
        "encoder": layers.LSTM(units, return_sequences=True, return_state=True, name="encoder"),
        "decoder": layers.LSTMCell(units, name="decoder"),
        "words": layers.Embedding(vocab, 4, name="words"),
        "keys": layers.Dense(scores, use_bias=False, name="keys"),
        "query": layers.Dense(scores, use_bias=False, name="query"),
        "score": layers.Dense(1, use_bias=False, name="score"),
        "mix": layers.Dense(size, use_bias=False, name="mix"),
        "logits": layers.Dense(vocab, name="logits"),
    }
    widths = {"encoder": (None, None, 5), "decoder": (None, 4 + size), "keys": (None, units), "query": (None, units)}
    widths |= {"score": (None, scores), "mix": (None, 2 * units), "logits": (None, size), "words": (None,)}

    class Translator(keras.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(name="translator")
            for name, layer in steps.items():
                setattr(self, name, layer)

        def build(self, _shape: Any = None) -> None:
            for name, layer in steps.items():
                layer.build(widths[name])
            self.built = True

    new = Translator()
    new.build()
    wrapper = "decoder/decoder/attention_wrapper"
    rules = [
        cell("lstm.tf1", "encoder/rnn/lstm_cell", "encoder", "lstm.keras"),
        cell("lstm.tf1", f"{wrapper}/lstm_cell", "decoder", "lstm.keras"),
        {"from": "decoder/embedding", "to": "words/embeddings"},
        {"from": "decoder/memory_layer/kernel", "to": "keys/kernel"},
        {"from": f"{wrapper}/bahdanau_attention/query_layer/kernel", "to": "query/kernel"},
        {"from": f"{wrapper}/bahdanau_attention/attention_v", "to": "score/kernel", "reshape": [6, 1]},
        {"from": f"{wrapper}/attention_layer/kernel", "to": "mix/kernel"},
        {"from": "decoder/decoder/output_projection/{w}", "to": "logits/{w}"},
    ]
    result = wp.transfer(model.path("checkpoint_v2"), new, {"weightport": 1, "rules": rules})
    assert set(result.plan.target.values()) == {"moved"}
    assert set(result.plan.source.values()) == {"moved"}

    ops = keras.ops
    memory, h, c = steps["encoder"](arrays["x"])
    np.testing.assert_allclose(np.asarray(memory), arrays["full_encoder_outputs"], **CLOSE)
    keys, attention = steps["keys"](memory), ops.zeros((3, size))
    logits = []
    for ids in np.array(model.doc["decoder_ids"]).T:
        x = ops.concatenate([steps["words"](ids), attention], axis=-1)
        h, (_, c) = steps["decoder"](x, [h, c])
        score = steps["score"](ops.tanh(keys + steps["query"](h)[:, None]))[..., 0]
        context = ops.sum(ops.softmax(score)[..., None] * memory, axis=1)
        attention = steps["mix"](ops.concatenate([h, context], axis=-1))
        logits.append(np.asarray(steps["logits"](attention)))
    np.testing.assert_allclose(np.stack(logits, axis=1), arrays["full_outputs"], **CLOSE)


@pytest.mark.parametrize("file", ["checkpoint_v2", "frozen"])
def test_convolutions_and_a_gru(file: str) -> None:
    """A convolution before a GRU, frozen and as a checkpoint: the cell and what follows it."""
    model, keras = fixture("d_checkpoints/mixed_network"), need("keras")
    layer = keras.layers.GRU(5, reset_after=False, name="reader")
    inputs = keras.Input((None, 24))
    new = keras.Model(inputs, keras.layers.Dense(3, name="classes")(layer(inputs)))
    rules = [
        cell("gru.tf1", "net/rnn/gru_cell", "reader", "gru.keras"),
        {"from": "net/logits/{w}", "to": "classes/{w}"},
    ]
    spec = {"weightport": 1, "rules": rules, "ignore": ["net/bn1/*", "net/conv1/*"]}
    result = wp.transfer(model.path(file), new, spec)
    assert set(result.plan.target.values()) == {"moved"}
    variables = model.variables
    np.testing.assert_array_equal(np.asarray(new.layers[-1].kernel), variables["net/logits/kernel"])
    x = np.random.default_rng(0).normal(size=(2, 5, 24)).astype(np.float32)
    h = np.zeros((2, 5))
    for step in range(5):
        gates = np.concatenate([x[:, step], h], 1) @ variables["net/rnn/gru_cell/gates/kernel"]
        r, u = np.split(1 / (1 + np.exp(-(gates + variables["net/rnn/gru_cell/gates/bias"]))), 2, 1)
        n = np.tanh(
            np.concatenate([x[:, step], r * h], 1) @ variables["net/rnn/gru_cell/candidate/kernel"]
            + variables["net/rnn/gru_cell/candidate/bias"]
        )
        h = u * h + (1 - u) * n
    np.testing.assert_allclose(np.asarray(layer(x)), h, **CLOSE)
