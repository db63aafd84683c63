"""The new models that the real pretrained weights move into: Keras 3, with names of our own.

Each follows what the original computes, read in its graph or code; the layers' names are not the original's, that is
what the mappings in ``mappings/`` are for.
"""

from __future__ import annotations

from typing import Any

from tests.support import need

#: basic-pitch: bins per octave, octaves computed, bins kept, and the harmonics stacked as channels.
BINS, OCTAVES, KEPT, STACKED = 36, 9, 309, 264
HARMONIC_SHIFTS = (-36, 0, 36, 57, 72, 84, 93, 101)


def word_segmenter() -> Any:
    """One-hot characters ``[batch, time, 80]`` -> label probabilities ``[batch, time, 5]``: pad, B, M, E, S.

    cutkum 2.4, ``ck_model.py`` ``_inference``: three GRUs with the reset gate before the matrix product, a linear layer
    with a *sigmoid*, and a softmax over the sigmoids.
    """
    keras = need("keras")
    layers = keras.layers
    x = inputs = keras.Input((None, 80), name="characters")
    for number, units in enumerate((512, 256, 128), start=1):
        x = layers.GRU(units, return_sequences=True, reset_after=False, name=f"gru_{number}")(x)
    x = layers.Dense(5, activation="sigmoid", name="labels")(x)
    return keras.Model(inputs, layers.Softmax(name="probabilities")(x), name="word_segmenter")


def char_generator() -> Any:
    """Character ids ``[batch, 40]`` -> probabilities of the next character ``[batch, 465]``.

    textgenrnn 2.0.0, ``model.py``: embedding, two LSTMs, and an attention-weighted average over time of all three.
    """
    keras = need("keras")
    layers, ops = keras.layers, keras.ops

    class AttentionPool(layers.Layer):  # type: ignore[misc, name-defined]
        """Softmax over time of ``x @ kernel``, then the weighted sum (``AttentionWeightedAverage.py``)."""

        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(shape=(shape[-1], 1), name="kernel")

        def call(self, x: Any) -> Any:
            weights = ops.softmax(ops.matmul(x, self.kernel), axis=1)
            return ops.sum(x * weights, axis=1)

    inputs = keras.Input((40,), name="characters", dtype="int32")
    embedded = layers.Embedding(465, 100, name="embedding")(inputs)
    first = layers.LSTM(128, return_sequences=True, name="lstm_1")(embedded)
    second = layers.LSTM(128, return_sequences=True, name="lstm_2")(first)
    pooled = AttentionPool(name="attention")(layers.Concatenate(name="skip")([embedded, first, second]))
    return keras.Model(inputs, layers.Dense(465, activation="softmax", name="next")(pooled), name="char_generator")


def pronouncer() -> Any:
    """Graphemes ``[batch, m]`` and the phonemes so far ``[batch, n]`` -> logits of each next one ``[batch, n, 74]``.

    g2p-en 2.1.0, ``g2p.py`` ``predict``: a GRU encoder whose last state starts a GRU decoder, both with the reset gate
    after the matrix product and two biases.
    """
    keras = need("keras")
    layers = keras.layers
    graphemes = keras.Input((None,), name="graphemes", dtype="int32")
    phonemes = keras.Input((None,), name="phonemes", dtype="int32")
    x = layers.Embedding(29, 256, name="grapheme_embedding")(graphemes)
    state = layers.GRU(256, reset_after=True, name="encoder")(x)
    y = layers.Embedding(74, 256, name="phoneme_embedding")(phonemes)
    y = layers.GRU(256, reset_after=True, return_sequences=True, name="decoder")(y, initial_state=state)
    return keras.Model([graphemes, phonemes], layers.Dense(74, name="logits")(y), name="pronouncer")


def transcriber() -> Any:
    """Audio ``[batch, 43844, 1]`` at 22,050 Hz -> probabilities per frame: note and onset ``[batch, 172, 88]``,
    contour ``[batch, 172, 264]``.

    basic-pitch 0.4.0, the graph of ``nmp`` (``models.py`` of the package describes a slightly different one): a
    constant-Q transform with fixed kernels, log and normalisation, harmonics stacked as channels, then convolutions.
    """
    keras = need("keras")
    layers, ops = keras.layers, keras.ops

    class ConstantQ(layers.Layer):  # type: ignore[misc, name-defined]
        """``nnaudio.py`` CQT2010v2, ``signal.py`` NormalizedLog: ``[b, t, 1]`` -> ``[b, frame, bin, 1]``."""

        def build(self, _shape: Any) -> None:
            for name, shape in (("real", (256, 1, BINS)), ("imag", (256, 1, BINS)), ("lowpass", (256, 1, 1))):
                setattr(self, name, self.add_weight(shape=shape, name=name, trainable=False))
            self.lengths = self.add_weight(shape=(KEPT,), name="lengths", trainable=False)

        def call(self, x: Any) -> Any:
            hop = 256
            parts: list[Any] = []
            for octave in range(OCTAVES):
                if octave:
                    hop //= 2
                    x = ops.conv(ops.pad(x, [[0, 0], [127, 127], [0, 0]]), self.lowpass, strides=2)
                padded = ops.pad(x, [[0, 0], [128, 128], [0, 0]], mode="reflect")
                pair = [ops.conv(padded, self.real, strides=hop), -ops.conv(padded, self.imag, strides=hop)]
                parts.insert(0, ops.stack(pair, axis=-1))
            both = ops.concatenate(parts, axis=2)[:, :, -KEPT:] * ops.sqrt(self.lengths)[:, None]
            power = ops.square(ops.sqrt(ops.sum(ops.square(both), axis=-1)))
            decibel = 10 * (ops.log(power + 1e-10) / ops.log(ops.convert_to_tensor(10.0)))
            decibel = decibel - ops.min(decibel, axis=(1, 2), keepdims=True)
            return ops.expand_dims(ops.divide_no_nan(decibel, ops.max(decibel, axis=(1, 2), keepdims=True)), -1)

    class HarmonicStack(layers.Layer):  # type: ignore[misc, name-defined]
        """``nn.py`` HarmonicStacking: the spectrum shifted by each harmonic's interval, as channels."""

        def call(self, x: Any) -> Any:
            shifted = []
            for shift in HARMONIC_SHIFTS:
                low, high = max(-shift, 0), max(shift, 0)
                part = x[:, :, high : KEPT - low]
                shifted.append(ops.pad(part, [[0, 0], [0, 0], [low, high], [0, 0]]))
            return ops.concatenate(shifted, axis=-1)[:, :, :STACKED]

    def conv(filters: int, size: tuple[int, int], name: str, **more: Any) -> Any:
        return layers.Conv2D(filters, size, padding="same", name=name, **more)

    def norm(name: str) -> Any:
        return layers.BatchNormalization(epsilon=1e-3, name=name)

    audio = keras.Input((43844, 1), name="audio")
    x = HarmonicStack(name="harmonics")(norm("cqt_norm")(ConstantQ(name="cqt")(audio)))
    contour = layers.ReLU()(norm("contour_norm")(conv(8, (3, 39), "contour_features")(x)))
    contour = conv(1, (5, 5), "contour_out", activation="sigmoid")(contour)
    notes = conv(32, (7, 7), "note_features", strides=(1, 3), activation="relu")(contour)
    notes = conv(1, (7, 3), "note_out", activation="sigmoid")(notes)
    onset = layers.ReLU()(norm("onset_norm")(conv(32, (5, 5), "onset_features", strides=(1, 3))(x)))
    onset = conv(1, (3, 3), "onset_out", activation="sigmoid")(layers.Concatenate()([notes, onset]))
    outputs = {"contour": contour, "note": notes, "onset": onset}
    outputs = {k: layers.Reshape(v.shape[1:3], name=k)(v) for k, v in outputs.items()}
    return keras.Model(audio, outputs, name="transcriber")
