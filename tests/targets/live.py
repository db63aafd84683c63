"""Hand-made values for live targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from weightport.tensors import Array, Index, TensorSpec, Value


def value(name: str, array: Any, *, constant: bool = False, spec: TensorSpec | None = None) -> Value:
    """A value that delivers a new copy of the array each time."""
    array = np.asarray(array)

    def produce(index: Index) -> Array:
        return array.copy() if index is None else array[index].copy()

    return Value(name, spec or TensorSpec.of(array.dtype, array.shape), constant, produce)


def failing(name: str, spec: TensorSpec, failure: BaseException) -> Value:
    def produce(_index: Index) -> Array:
        raise failure

    return Value(name, spec, False, produce)


def drawn(specs: Any, names: Any, seed: int = 0) -> dict[str, Array]:
    """A random array for each of the names."""
    random = np.random.default_rng(seed)
    return {n: random.normal(0, 0.5, specs[n].shape).astype(specs[n].dtype) for n in names}


def constants(arrays: dict[str, Array], is_constant: Callable[[str], bool] = lambda _: True) -> list[Value]:
    return [value(n, a, constant=is_constant(n)) for n, a in arrays.items()]


def batch(steps: int = 6, width: int = 3, count: int = 64) -> tuple[Array, Array]:
    """Sequences, and a target that a linear head can learn a good part of from almost any encoding of them."""
    random = np.random.default_rng(1)
    x = random.normal(size=(count, steps, width)).astype(np.float32)
    return x, x.sum((1, 2))[:, None].astype(np.float32) / 4
