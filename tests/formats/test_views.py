"""Strided views of a file: the same values as numpy's own views, from few bytes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightport.errors import BudgetExceeded
from weightport.formats import _strided, _views
from weightport.formats._proto import Memory


class Counted(Memory):
    """Remembers how much was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "file")
        self.reads = self.bytes = 0

    def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes:
        self.reads += 1
        self.bytes += count
        return super().read(offset, count, tensor=tensor)


@st.composite
def views(draw: Any) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...], int, tuple[slice, ...]]:
    """Values, a view of them (shape, strides, offset), and an index into the view."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    if draw(st.booleans()):  # a permutation of a dense array
        dense, step = [], 1
        for dim in reversed(shape):
            dense.append(step)
            step *= max(dim, 1)
        order = draw(st.permutations(range(len(shape))))
        stride = tuple(dense[::-1][a] for a in order)
        shape = tuple(shape[a] for a in order)
    else:  # gaps, overlaps, repetitions
        stride = tuple(draw(st.sampled_from([0, 1, 2, 3, 7, 40, 300])) for _ in shape)
    offset = draw(st.integers(0, 3))
    size = offset + sum(max(d - 1, 0) * s for d, s in zip(shape, stride, strict=True)) + 1
    dtype = np.dtype(draw(st.sampled_from(["f4", "u1", "c8", "i2", ml_dtypes.bfloat16])))
    raw = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, size * dtype.itemsize, np.uint8)
    index = []
    for dim in shape[: draw(st.integers(0, len(shape)))]:
        low = draw(st.integers(0, dim))
        index.append(slice(low, draw(st.integers(low, dim)), draw(st.sampled_from([None, 1, 2, 3]))))
    return raw.view(dtype), shape, stride, offset, tuple(index)


@settings(max_examples=300, deadline=None)
@given(views(), st.booleans())
def test_parts_of_views_are_numpy_s(case: Any, small: bool) -> None:
    values, shape, stride, offset, index = case
    size = values.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(values[offset:], shape, [s * size for s in stride])
    cuts = _strided.bounds(index, shape, "x")
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(_views, "BLOCK", 64)
            patch.setattr(_views, "_PAGE", 16)
        found = _views.read_view(Memory(values.tobytes(), "f"), offset * size, values.dtype, shape, stride, cuts)
    assert (found.shape, found.dtype, found.flags.c_contiguous) == (view[index].shape, values.dtype, True)
    assert found.tobytes() == np.ascontiguousarray(view[index]).tobytes()
    assert found.flags.writeable


def test_what_is_far_apart_is_read_piece_by_piece_and_what_is_near_together_at_once() -> None:
    data = np.arange(1 << 20, dtype=np.float32)
    column = Counted(data.tobytes())
    found = _views.read_view(column, 0, data.dtype, (16,), (1 << 16,), ((0, 16, 1),))
    assert found.tolist() == data[:: 1 << 16].tolist()
    assert (column.reads, column.bytes) == (16, 64)
    turned = Counted(data.tobytes())
    found = _views.read_view(turned, 0, data.dtype, (1024, 1024), (1, 1024), ((0, 1024, 1), (0, 1024, 1)))
    assert np.array_equal(found, data.reshape(1024, 1024).T)
    assert (turned.reads, turned.bytes) == (1, data.nbytes)
    part = Counted(data.tobytes())
    found = _views.read_view(part, 0, data.dtype, (1024, 1024), (1, 1024), ((3, 5, 1), (0, 1024, 1)))
    assert np.array_equal(found, data.reshape(1024, 1024).T[3:5])
    assert part.bytes < data.nbytes + 1


def test_repeated_elements_are_bounded() -> None:
    file = Memory(b"\0\0\x80?", "file")
    shape, stride = (1 << 20, 1 << 20), (0, 0)
    cuts = _strided.bounds(None, shape, "x")
    with pytest.raises(BudgetExceeded) as caught:
        _views.read_view(file, 0, np.dtype("f4"), shape, stride, cuts, tensor="w")
    assert str(caught.value) == (
        "file: tensor 'w': elements that are repeated to 4,398,046,511,104 bytes, at most 1,073,741,824 allowed"
    )
    part = _views.read_view(file, 0, np.dtype("f4"), shape, stride, ((5, 9, 1), (0, 3, 1)))
    assert part.tolist() == [[1.0] * 3] * 4


@pytest.mark.parametrize(
    ("shape", "stride", "dense"),
    [
        ((), (), True),
        ((3,), (1,), True),
        ((2, 3), (3, 1), True),
        ((2, 1, 3), (3, 99, 1), True),  # the stride of an axis of one means nothing
        ((0, 3), (7, 7), True),
        ((3, 2), (1, 3), False),
        ((2, 3), (0, 1), False),
        ((2, 3), (4, 1), False),
    ],
)
def test_what_is_dense(shape: tuple[int, ...], stride: tuple[int, ...], dense: bool) -> None:
    assert _views.is_dense(shape, stride) is dense
