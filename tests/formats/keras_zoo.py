"""Models of Keras 3 that differ in how their variables come to their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

ZOO: dict[str, Callable[[Any], Any]] = {}


def _model(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    ZOO[make.__name__] = make
    return make


def functional(keras: Any, shape: tuple[int | None, ...], *layers: Any, **kwargs: Any) -> Any:
    """A Functional model of layers in a row."""
    x = inputs = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, **kwargs)


def randomized(model: Any) -> Any:
    """The model with weights of random numbers."""
    rng = np.random.default_rng(3)
    for weight in model.weights:
        value = rng.integers(0, 100, tuple(weight.shape))
        weight.assign(value.astype(str(weight.dtype)) if "int" in str(weight.dtype) else value / 64)
    return model


@_model
def cells_in_a_row(keras: Any) -> Any:
    at = keras.layers
    return functional(
        keras, (None, 3),
        at.LSTM(4, return_sequences=True, name="encoder"), at.Dropout(0.5),
        at.GRU(5, return_sequences=True, reset_after=False, activation="relu"),
        at.SimpleRNN(2, use_bias=False), at.Dense(2, use_bias=False), at.Dense(3, name="head"),
    )  # fmt: skip


@_model
def sequential(keras: Any) -> Any:
    return keras.Sequential([keras.Input((None, 3)), keras.layers.LSTM(4), keras.layers.Dense(2)])


@_model
def sequential_built_later(keras: Any) -> Any:
    model = keras.Sequential([keras.layers.LSTM(4), keras.layers.Dense(2)], name="later")
    model.build((None, 5, 3))
    return model


@_model
def nested(keras: Any) -> Any:
    """Layers of equal names in two models inside, one of each kind."""
    at = keras.layers
    first = functional(keras, (None, 3), at.LSTM(4, return_sequences=True, name="rnn"), name="first")
    second = functional(keras, (None, 4), at.LSTM(4, return_sequences=True, name="rnn"), name="second")
    third = keras.Sequential([keras.Input((None, 4)), at.LSTM(2, name="rnn"), at.Dense(2, name="out")], name="third")
    return functional(keras, (None, 3), first, second, third, at.Dense(1, name="out"))


@_model
def bidirectional(keras: Any) -> Any:
    at = keras.layers
    back = at.GRU(4, go_backwards=True, name="other", return_sequences=True, recurrent_activation="tanh")
    return functional(
        keras, (None, 3),
        at.Bidirectional(at.LSTM(4, return_sequences=True)),
        at.Bidirectional(at.GRU(4, return_sequences=True, name="mine"), backward_layer=back, name="both"),
        at.Bidirectional(at.RNN(at.LSTMCell(2))),
    )  # fmt: skip


@_model
def cells(keras: Any) -> Any:
    at = keras.layers
    return functional(
        keras, (None, 3),
        at.RNN([at.LSTMCell(4), at.LSTMCell(5), at.GRUCell(2)], return_sequences=True, go_backwards=True),
        at.RNN(at.SimpleRNNCell(3, name="mine"), return_sequences=True),
        at.TimeDistributed(at.Dense(2)),
    )  # fmt: skip


@_model
def attention(keras: Any) -> Any:
    at = keras.layers
    x = keras.Input((5, 8))
    y = at.MultiHeadAttention(2, 4)(x, x)
    y = at.MultiHeadAttention(2, 4, use_bias=False, name="bare")(y, x)
    y = at.GroupQueryAttention(2, 4, 2)(y, y)
    y = at.Attention(use_scale=True)([y, x])
    y = at.AdditiveAttention()([y, x])
    return keras.Model(x, at.LayerNormalization(center=False)(y))


@_model
def norms_and_tables(keras: Any) -> Any:
    at = keras.layers
    return functional(
        keras, (4,),
        at.Embedding(10, 8), at.EinsumDense("abc,cd->abd", (None, 6), bias_axes="d"),
        at.BatchNormalization(), at.BatchNormalization(scale=False), at.LayerNormalization(), at.GroupNormalization(2),
        at.RMSNormalization(), at.UnitNormalization(), at.EinsumDense("abc,cd->abd", (None, 6)),
        at.PReLU(shared_axes=[1]), at.Dense(3), at.Normalization(),
    )  # fmt: skip


@_model
def convolutions(keras: Any) -> Any:
    at = keras.layers
    return functional(
        keras, (3, 16, 16, 2),
        at.ConvLSTM2D(4, 3, return_sequences=True), at.ConvLSTM2D(3, 3, use_bias=False), at.Conv2D(4, 3),
        at.DepthwiseConv2D(3), at.Conv2DTranspose(2, 3, use_bias=False), at.SeparableConv2D(4, 3),
    )  # fmt: skip


@_model
def shared(keras: Any) -> Any:
    """A layer that two others share, and operations that are no layers."""
    at = keras.layers
    x = keras.Input((4,))
    dense = at.Dense(4)
    y = dense(dense(x)) + x
    return keras.Model(x, at.Dense(4)(at.Add()([y, keras.ops.relu(y)])))


def custom_block(keras: Any) -> Any:
    """The class of a layer with layers of its own, and a variable."""

    @keras.saving.register_keras_serializable("tests")
    class Block(keras.layers.Layer):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self, units: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.units = units
            self.project, self.rnn = keras.layers.Dense(units, name="project"), keras.layers.LSTM(units)
            self.many = [keras.layers.Dense(units), [keras.layers.LayerNormalization()]]

        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(name="scale", shape=(self.units,))
            self.project.build(shape)
            self.rnn.build((None, None, self.units))
            self.many[0].build((None, self.units))
            self.many[1][0].build((None, self.units))

        def call(self, x: Any) -> Any:
            return self.many[1][0](self.many[0](self.rnn(self.project(x)) * self.scale))

        def get_config(self) -> Any:
            return {**super().get_config(), "units": self.units}

    return Block


def custom_model(keras: Any) -> Any:
    """A subclassed model."""

    @keras.saving.register_keras_serializable("tests")
    class Tagger(keras.Model):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.lstm, self.drop, self.out = keras.layers.LSTM(4), keras.layers.Dropout(0.5), keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.out(self.drop(self.lstm(x)))

    model = Tagger(name="tagger")
    model(np.zeros((1, 5, 3), "float32"))
    return model
