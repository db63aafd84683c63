"""Parts of a dense tensor in a file: what numpy cuts out, from the bytes that it needs and few others."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.formats._arrays import same
from tests.support import says
from weightport.errors import BudgetExceeded, Error, FormatError
from weightport.formats import _strided
from weightport.formats._io import CHUNK
from weightport.formats._proto import Memory
from weightport.tensors import Budget


class Watched(Memory):
    """Bytes that tell what was read of them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "f")
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes:
        self.reads.append((offset, count))
        return super().read(offset, count, tensor=tensor)


def part(file: Memory, value: np.ndarray, index: Any, offset: int = 0, **how: Any) -> np.ndarray:
    cuts = _strided.bounds(index, value.shape, "f")
    return _strided.read_part(file, offset, value.dtype, value.shape, cuts, **how)


@given(st.data())
def test_parts_are_those_of_numpy(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 6), max_size=4)))
    value = np.random.default_rng(0).integers(0, 255, shape).astype(np.int32)
    cuts = tuple(
        slice(*data.draw(st.tuples(*[st.none() | st.integers(-7, 7)] * 2, st.none() | st.integers(1, 3))))
        for _ in data.draw(st.lists(st.just(0), max_size=len(shape)))
    )
    assert same(part(Memory(b"xy" + value.tobytes(), "f"), value, cuts, 2), value[cuts].copy())
    bounds = _strided.bounds(cuts, shape, "f")
    assert _strided.counts(bounds) == value[cuts].shape
    assert same(value[_strided.as_slices(bounds)].copy(), value[cuts].copy())
    if value.size and _strided.is_whole(bounds, shape):
        assert value[cuts].shape == shape


ROWS, COLUMNS = 12, 3000  # a row is more than two pages
WIDE = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)
ROW = 4 * COLUMNS


@pytest.mark.parametrize(
    ("index", "reads"),
    [
        (None, [(0, ROWS * ROW)]),
        ((slice(3, 5),), [(3 * ROW, 2 * ROW)]),
        ((slice(5, 5),), []),
        ((slice(3, 4), slice(7, 9)), [(3 * ROW + 28, 8)]),
        # A gap of a page or more is jumped over, a smaller one is read.
        ((slice(3, 5), slice(7, 9)), [(3 * ROW + 28, 8), (4 * ROW + 28, 8)]),
        ((slice(3, 5), slice(0, COLUMNS - 1024)), [(3 * ROW, ROW - 4096), (4 * ROW, ROW - 4096)]),
        ((slice(3, 5), slice(0, COLUMNS - 1023)), [(3 * ROW, 2 * ROW)]),
        ((slice(3, 5), slice(1024, COLUMNS)), [(3 * ROW + 4096, ROW - 4096), (4 * ROW + 4096, ROW - 4096)]),
        ((slice(0, 12, 5),), [(0, ROW), (5 * ROW, ROW), (10 * ROW, ROW)]),
        ((slice(0, 1), slice(0, 10, 3)), [(0, 40)]),
        ((slice(0, 1), slice(0, 3000, 2000)), [(0, ROW)]),
        ((slice(0, 1), slice(0, 3000, 1800)), [(0, 4), (7200, 4)]),
    ],
)
def test_what_is_read(index: Any, reads: list[tuple[int, int]]) -> None:
    file = Watched(WIDE.tobytes())
    assert same(part(file, WIDE, index), WIDE[index or ()].copy())
    assert file.reads == reads


def test_rows_are_read_a_chunk_at_a_time() -> None:
    value = np.arange((3 * CHUNK) // 2, dtype=np.uint16).reshape(-1, 4)
    file = Watched(value.tobytes())
    index = (slice(1, None, 3), slice(0, 3))
    assert same(part(file, value, index), value[index].copy())
    sizes = [count for _, count in file.reads]
    assert len(sizes) > 1
    assert max(sizes) <= CHUNK
    assert sum(sizes) <= value.nbytes


def test_a_row_larger_than_a_chunk_is_never_read_whole() -> None:
    value = np.zeros((2, CHUNK + 8), np.uint8)
    value[:, 5] = 1, 2
    file = Watched(value.tobytes())
    assert part(file, value, (slice(None), slice(5, 6))).tolist() == [[1], [2]]
    assert file.reads == [(5, 1), (CHUNK + 13, 1)]


@pytest.mark.parametrize("index", [None, (slice(0, 1),), (slice(0, 0),)])
def test_values_that_are_not_there(index: Any) -> None:
    """The whole is looked at before anything is allocated, whatever part is wanted."""
    value = np.zeros((3, 4), np.float32)
    with says(FormatError, "f: tensor 't': 48 bytes asked for at 2 of 49"):
        part(Memory(bytes(49), "f"), value, index, 2, tensor="t")


def test_indices_that_are_none() -> None:
    assert _strided.bounds((), (3, 4), "f") == _strided.bounds(None, (3, 4), "f") == ((0, 3, 1), (0, 4, 1))
    assert _strided.bounds([slice(5, 1)], (9, 4), "f") == ((5, 5, 1), (0, 4, 1))  # type: ignore[arg-type]
    with says(Error, "f: an index of 2 axes for a tensor of 1"):
        _strided.bounds((slice(None), slice(None)), (3,), "f")
    for step in (-1, -3):
        with says(Error, f"f: an index may not have the step {step}"):
            _strided.bounds((slice(None, None, step),), (3,), "f")
    for wrong in ((0,), slice(0, 2), 1, (slice(0, 2), ...)):
        with says(Error, f"f: an index is a tuple of slices, such as (slice(0, 10),), not {wrong!r}"):
            _strided.bounds(wrong, (3, 3), "f")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, np.complex128, np.uint8, np.float64, np.int16])
def test_big_endian(dtype: Any) -> None:
    value = np.arange(6).astype(dtype).reshape(2, 3)
    value += value * 1j if value.dtype.kind == "c" else 256 % 255
    file = Memory(value.astype(value.dtype.newbyteorder(">")).tobytes(), "f")
    assert same(part(file, value, None, big_endian=True), value)
    assert same(part(file, value, (slice(1, 2), slice(0, 3, 2)), big_endian=True), value[1:2, ::2].copy())
    assert not same(part(file, value, None), value) or value.itemsize == 1


def test_shapes_that_no_array_has() -> None:
    f4, budget = np.dtype("float32"), Budget(rank=100, tensor_bytes=1 << 80)
    most = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
    assert _strided.checked(f4, (1,) * most, budget, "f") == 4
    assert _strided.checked(f4, (0, (1 << 60) - 1), budget, "f") == 0
    np.empty((0, (1 << 60) - 1), f4)
    for shape in ((1,) * (most + 1), (0, 1 << 60), (1 << 30, 1 << 30, 0)):
        with says(FormatError, f"f: tensor 't': no array can have the shape {list(shape)}"):
            _strided.checked(f4, shape, budget, "f", "t")
    with says(BudgetExceeded, "f: tensor 't': tensor bytes: 40 asked for, at most 39 allowed"):
        _strided.checked(f4, (10,), Budget(tensor_bytes=39), "f", "t")


@pytest.mark.parametrize("dtype", ["float32", "bool", "complex128", ml_dtypes.bfloat16])
def test_the_bytes_of_an_array(dtype: Any) -> None:
    value = np.arange(6).reshape(2, 3).astype(dtype)
    view = _strided.byte_view(value)
    assert bytes(view) == value.tobytes()
    assert len(view) == value.nbytes == math.prod(value.shape) * value.itemsize
    view[:1] = b"\x01"
    assert value.tobytes()[:1] == b"\x01"
    value.flags.writeable = False
    assert _strided.byte_view(value).readonly
