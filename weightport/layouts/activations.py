"""The activations that frameworks have by name, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from weightport.tensors import Array

_SCALE, _ALPHA = 1.0507009873554805, 1.6732632423543772


def sigmoid(x: Array) -> Array:
    """The logistic function, of numbers of any size."""
    result: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return result


def _softplus(x: Array) -> Array:
    result: Array = np.logaddexp(x, 0)
    return result


#: By the frameworks' names. ``hard_sigmoid`` is Keras 1's and 2's, ``hard_sigmoid_6`` Keras 3's and torch's.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "hard_sigmoid_6": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": lambda x: _SCALE * np.where(x > 0, x, _ALPHA * np.expm1(np.minimum(x, 0))),
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "exponential": np.exp,
    "swish": lambda x: x * sigmoid(x),
    "silu": lambda x: x * sigmoid(x),
}
