"""Arrays of every dtype, and what the tests of the file formats do with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from weightport.tensors import TensorSpec, Tiles

NUMPY = ["bool", "uint8", "int8", "int16", "uint16", "float16", "int32", "uint32", "float32", "complex64", "float64"]
NUMPY += ["int64", "uint64"]
EXTRA = ["bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz"]


def of_every_dtype(names: list[str]) -> dict[str, np.ndarray]:
    """Small arrays, with every bit pattern that 24 random bytes have (bool: 0 and 1)."""
    rng = np.random.default_rng(7)
    found = {}
    for name in names:
        dtype = np.dtype(getattr(ml_dtypes, name)) if name in EXTRA else np.dtype(name)
        raw = rng.integers(0, 2 if name == "bool" else 256, 6 * dtype.itemsize, np.uint8)
        found[f"scope/{name}"] = raw.view(dtype).reshape(2, 3)
    found["scalar"] = np.array(1.5, np.float32)
    found["empty"] = np.zeros((0, 4), np.float32)
    found["déjà/vu"] = np.arange(7, dtype=np.int32)
    return found


def specs_of(arrays: Mapping[str, np.ndarray]) -> dict[str, TensorSpec]:
    return {
        k: TensorSpec(v.dtype, v.shape, v.nbytes if v.dtype != object else sum(map(len, v.reshape(-1))))
        for k, v in arrays.items()
    }


def tiles_of(arrays: Mapping[str, np.ndarray], rows: int = 2) -> Tiles:
    def tiles(name: str) -> Iterator[np.ndarray]:
        array = arrays[name]
        if array.ndim == 0 or not array.size:
            yield array
            return
        for at in range(0, len(array), rows):
            yield array[at : at + rows]

    return tiles


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in dtype, shape and every bit."""
    if a.dtype == object or b.dtype == object:
        return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() and a.flags.c_contiguous


@st.composite
def indexed(draw: Any) -> tuple[np.ndarray, tuple[slice, ...]]:
    """An array and an index into it."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    dtype = draw(st.sampled_from(["<f4", "<f8", "<i2", "<u1", "<c8", "?"]))
    array = draw(hnp.arrays(np.dtype(dtype), shape))
    index = []
    for dim in shape[: draw(st.integers(0, len(shape)))]:
        low = draw(st.integers(0, dim))
        index.append(slice(low, draw(st.integers(low, dim)), draw(st.sampled_from([None, 1, 2, 3]))))
    return array, tuple(index)
