"""Small graphs and hand-made values that the tests of the TensorFlow targets share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from tests.support import need
from weightport.tensors import Index, TensorSpec, Value


def legacy(kind: str) -> ModuleType:
    """TF1's ``rnn_cell`` or ``layers``: by their names in ``tf.compat.v1`` they want TF_USE_LEGACY_KERAS=1."""
    need("tf_keras")
    return need(f"tf_keras.api._v1.keras.__internal__.legacy.{kind}")


def value(name: str, array: np.ndarray, constant: bool = False, asked: list[Index] | None = None) -> Value:
    """A value that yields ``array`` or a part of it; ``asked`` collects the indices that were produced."""

    def produce(index: Index) -> np.ndarray:
        if asked is not None:
            asked.append(index)
        return array if index is None else array[index]

    return Value(name, TensorSpec.of(array.dtype, array.shape), constant, produce)


def numbers(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def lookup(arrays: Mapping[str, np.ndarray], constant: bool = False) -> Callable[[str, TensorSpec], Value | None]:
    def found(name: str, spec: TensorSpec) -> Value | None:
        assert isinstance(spec, TensorSpec)
        return value(name, arrays[name], constant) if name in arrays else None

    return found


def initialised(tf: Any, graph: Any) -> Any:
    """A session in which the global variables are initialised."""
    with graph.as_default():
        session = tf.compat.v1.Session(graph=graph)
        session.run(tf.compat.v1.global_variables_initializer())
    return session
