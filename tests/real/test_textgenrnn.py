"""textgenrnn 2.0.0: weights that Keras 2.1.5 wrote from CuDNNLSTM layers into a Keras 3 model with plain LSTMs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.real import models
from tests.support import need

pytestmark = pytest.mark.real

START = 464  # "<s>" in the package's ``textgenrnn_vocab.json``; 0 is padding, on the left
#: "<s>Why do people like" and "<s>The best part of being a programmer is" in that vocabulary.
WHY: tuple[int, ...] = (START, 19, 28, 11, 5, 35, 17, 5, 25, 14, 17, 25, 10, 14, 5, 10, 7, 48, 14)
BEST: tuple[int, ...] = (
    START,
    27,
    28,
    14,
    5,
    55,
    14,
    4,
    2,
    5,
    25,
    9,
    15,
    2,
    5,
    17,
    41,
    5,
    55,
    14,
    7,
    8,
    30,
    5,
    9,
    5,
    25,
    15,
    17,
    30,
)
BEST += (15, 9, 31, 31, 14, 15, 5, 7, 4)


def encode(ids: Sequence[int]) -> np.ndarray:
    """``utils.py`` ``textgenrnn_encode_sequence``: the last 40 ids, padded on the left."""
    last = list(ids[-40:])
    return np.array([[0] * (40 - len(last)) + last], np.int32)


def generate(model: Callable[[np.ndarray], Any], ids: Sequence[int], count: int) -> Sequence[int]:
    """Continue greedily (``textgenrnn_sample`` with temperature 0)."""
    for _ in range(count):
        ids = [*ids, int(np.asarray(model(encode(ids)))[0].argmax())]
    return ids


@pytest.fixture(scope="module")
def original(real_model: Callable[[str], Path]) -> Any:
    """The package's model (``model.py``, ``AttentionWeightedAverage.py``) with its weights loaded by Keras 2 itself.

    Keras 2's own loader converts the CuDNNLSTM weights (``legacy/hdf5_format.py`` ``_convert_rnn_weights``).
    """
    path = real_model("textgenrnn")
    keras = need("tf_keras")
    backend, layers = keras.backend, keras.layers

    class AttentionWeightedAverage(layers.Layer):  # type: ignore[misc, name-defined]
        def build(self, shape: Any) -> None:
            self.W = self.add_weight(shape=(shape[2], 1), name=f"{self.name}_W")
            super().build(shape)

        def call(self, x: Any) -> Any:
            logits = backend.squeeze(backend.dot(x, self.W), -1)
            weights = backend.exp(logits - backend.max(logits, axis=-1, keepdims=True))
            weights = weights / (backend.sum(weights, axis=1, keepdims=True) + backend.epsilon())
            return backend.sum(x * backend.expand_dims(weights), axis=1)

    inputs = layers.Input((40,), name="input")
    embedded = layers.Embedding(465, 100, name="embedding")(inputs)
    first = layers.LSTM(128, return_sequences=True, recurrent_activation="sigmoid", name="rnn_1")(embedded)
    second = layers.LSTM(128, return_sequences=True, recurrent_activation="sigmoid", name="rnn_2")(first)
    joined = layers.concatenate([embedded, first, second], name="rnn_concat")
    outputs = layers.Dense(465, name="output", activation="softmax")(AttentionWeightedAverage(name="attention")(joined))
    model = keras.Model(inputs, outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras' own loader is not ours to mend
        model.load_weights(str(path), by_name=True)
    return model


@pytest.fixture(scope="module")
def moved(real_model: Callable[[str], Path], mappings: Path) -> Any:
    """The new model with the moved weights."""
    path = real_model("textgenrnn")
    model = models.char_generator()
    wp.transfer(str(path), model, str(mappings / "textgenrnn.yaml"))
    return model


@pytest.mark.parametrize("ids", [WHY, BEST], ids=["why", "best"])
def test_probabilities_agree(ids: Sequence[int], original: Any, moved: Any) -> None:
    expected = np.asarray(original(encode(ids)))
    np.testing.assert_allclose(np.asarray(moved(encode(ids))), expected, rtol=0, atol=1e-5)
    assert expected.max() > 0.05  # far from the 1/465 of a model that knows nothing


def test_the_same_text_is_generated(original: Any, moved: Any) -> None:
    expected = generate(original, WHY, 40)
    assert generate(moved, WHY, 40) == expected
    assert len(set(expected[len(WHY) :])) > 5
