"""Copies between orders of axes: the same as assignment, whatever the strides and blocks, in little memory."""

from __future__ import annotations

import tracemalloc
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightport import strips
from weightport.strips import contiguous, copy
from weightport.tensors import Array

DTYPES = ["int8", "float16", "float32", "float64", "complex128", "S3"]


@st.composite
def arrays(draw: Any, shape: list[int]) -> Array:
    """An array of a shape that lies in memory in some order of axes, with gaps, backwards or repeated."""
    order = draw(st.permutations(range(len(shape))))
    gaps = [draw(st.sampled_from([1, 1, 2])) for _ in shape]
    dtype = np.dtype(draw(st.shared(st.sampled_from(DTYPES), key="dtype")))
    size = [shape[k] * gaps[k] for k in order]
    memory = np.random.default_rng(prod(size)).integers(0, 256, prod(size) * dtype.itemsize, np.uint8).view(dtype)
    found = memory.reshape(size).transpose(np.argsort(order))[tuple(slice(None, None, gap) for gap in gaps)]
    if draw(st.integers(0, 9)) == 9:
        found = np.broadcast_to(found[:1], shape) if draw(st.booleans()) else found[::-1]
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_copy_is_assignment(data: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4), label="shape")
    part, out = data.draw(arrays(shape)), data.draw(arrays(shape)).copy(order="K")
    blocks = {"_BLOCK": 4096, "_READ": 64, "_WRITTEN": 64, "_STRIP": 8, "_NARROW_STRIP": 4, "_SHORT": 17}
    monkeypatch.setattr(strips, "_FROM", 0)
    for name, most in blocks.items():
        monkeypatch.setattr(strips, name, data.draw(st.integers(1, most), label=name))
    copy(out, part)
    assert out.tobytes() == part.tobytes()


@pytest.mark.parametrize("dtype", ["int8", "float32", "complex128"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((700, 900), (1, 0)),
        ((20_000, 3), (1, 0)),
        ((3, 20_000), (1, 0)),
        ((3, 3, 130, 190), (3, 2, 0, 1)),  # HWIO -> OIHW
        ((190, 130, 3, 3), (2, 3, 1, 0)),
        ((70, 40, 60), (2, 0, 1)),
        ((70, 40, 60), (1, 0, 2)),
        ((1, 300, 1, 400), (3, 2, 1, 0)),
    ],
)
def test_copies_of_the_usual_shapes(shape: tuple[int, ...], axes: tuple[int, ...], dtype: str) -> None:
    array = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    turned = array.transpose(axes)
    found = contiguous(turned)
    assert found.flags.c_contiguous
    assert found.tobytes() == turned.tobytes()
    back = np.empty_like(array)
    copy(back.transpose(axes), found)
    assert back.tobytes() == array.tobytes()


def test_another_dtype_is_converted() -> None:
    array = np.arange(90_000.0).reshape(300, 300)
    out = np.empty((300, 300), np.float32)
    copy(out, array.T)
    np.testing.assert_array_equal(out, array.T)


@pytest.mark.parametrize("dtype", ["O", ">f4", "S9"])
def test_dtypes_that_are_not_plain_numbers(dtype: str) -> None:
    turned = np.arange(90_000).reshape(300, 300).astype(dtype).T
    found = contiguous(turned)
    assert (found.dtype, found.tolist()) == (turned.dtype, turned.tolist())


def test_what_is_contiguous_is_not_copied() -> None:
    array = np.zeros((300, 300))
    assert contiguous(array) is array


@pytest.mark.parametrize("shape", [(1500, 2000), (12_000_000 // 16, 4), (4, 12_000_000 // 16)])
def test_a_copy_takes_the_memory_of_a_block(shape: tuple[int, int]) -> None:
    array, out = np.zeros(shape, np.float32), np.zeros(shape[::-1], np.float32)
    tracemalloc.start()
    try:
        copy(out, array.T)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400_000
