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
#: A few characters of that vocabulary.
IDS = dict(
    zip(
        " TWabdefghiklmnoprsty",
        (5, 27, 19, 9, 55, 35, 14, 41, 30, 28, 7, 48, 10, 31, 8, 17, 25, 15, 4, 2, 11),
        strict=True,
    )
)
TITLES = ("Why do people like", "The best part of being a programmer is")


def started(title: str) -> list[int]:
    """The ids of a title's beginning."""
    return [START, *(IDS[c] for c in title)]


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


@pytest.mark.parametrize("title", TITLES)
def test_probabilities_agree(title: str, original: Any, moved: Any) -> None:
    ids = started(title)
    expected = np.asarray(original(encode(ids)))
    np.testing.assert_allclose(np.asarray(moved(encode(ids))), expected, rtol=0, atol=1e-5)
    assert expected.max() > 0.05  # far from the 1/465 of a model that knows nothing


def test_the_same_text_is_generated(original: Any, moved: Any) -> None:
    beginning = started(TITLES[0])
    expected = generate(original, beginning, 20)
    assert generate(moved, beginning, 20) == expected
    assert len(set(expected[len(beginning) :])) > 5
