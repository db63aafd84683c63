"""Tensors in slices: the keys of the slices, what tiles a tensor, and parts that are put together from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import says
from weightport.errors import BudgetExceeded, FormatError
from weightport.formats import _slices, _strided

Box = tuple[tuple[int, int], ...]


def test_slices_of_protos() -> None:
    # Extents as TensorFlow writes them: start 0 and a length that is not told are left out.
    data = bytes.fromhex("0a00 0a020802 0a021003 0a0408051006".replace(" ", ""))
    assert _slices.slice_of(data, "f") == ((0, -1), (2, -1), (0, 3), (5, 6))
    assert _slices.slice_of(b"", "f") == ()
    negative = b"\x08" + b"\xfe" + b"\xff" * 8 + b"\x01" + b"\x10" + b"\xff" * 9 + b"\x01"
    assert _slices.slice_of(b"\x0a" + bytes([len(negative)]) + negative, "f") == ((-2, -1),)
    # What it does not know it passes over: other fields, and known ones of another type.
    assert _slices.slice_of(bytes.fromhex("0801 1202ffff 0a08 18091200 0a00 1004"), "f") == ((0, 4),)
    with says(FormatError, "f at byte 0: a field of 9 bytes in 2 that are left"):
        _slices.slice_of(b"\x0a\x09\x08\x02", "f")
    with says(FormatError, "f at byte 0: field number 0"):
        _slices.slice_of(b"\x0a\x01\x00", "f")


@pytest.mark.parametrize(
    ("value", "code"),
    [
        # ordered_code.cc: the leading bits tell the length, as in UTF-8; a negative number is the complement.
        (0, "80"),
        (1, "81"),
        (63, "bf"),
        (64, "c040"),
        (-1, "7f"),
        (-64, "40"),
        (-65, "3fbf"),
        (8191, "dfff"),
        (8192, "e02000"),
        (-8192, "2000"),
        (-8193, "1fdfff"),
        ((1 << 20) - 1, "efffff"),
        (1 << 20, "f0100000"),
        ((1 << 27) - 1, "f7ffffff"),
        (1 << 27, "f808000000"),
        ((1 << 34) - 1, "fbffffffff"),
        (1 << 34, "fc0400000000"),
        (1 << 41, "fe020000000000"),
        (1 << 48, "ff01000000000000"),
        ((1 << 55) - 1, "ff7fffffffffffff"),
        (1 << 55, "ff8080000000000000"),
        ((1 << 62) - 1, "ffbfffffffffffffff"),
        (1 << 62, "ffc04000000000000000"),
        (-(1 << 63), "003f8000000000000000"),
    ],
)
def test_ordered_code(value: int, code: str) -> None:
    assert _slices._signed(value).hex() == code


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-(1 << 63), (1 << 63) - 1))
def test_codes_are_in_the_order_of_the_numbers(a: int, b: int) -> None:
    assert (_slices._signed(a) < _slices._signed(b)) == (a < b)


def test_keys() -> None:
    assert _slices.slice_key(b"a", ()) == b"\0a\0\1\0"
    assert _slices.slice_key(b"a\0b\xffc", ((4, 3), (0, -1))) == b"\0a\0\xffb\xff\0c\0\1\1\2\x84\x83\x80\x7f"
    assert _slices.slice_key(b"\0\0", ()) == b"\0\0\xff\0\xff\0\1\0"
    assert _slices.slice_key(b"\xff", ()) == b"\0\xff\0\0\1\0"
    many = ((0, -1),) * 300
    assert _slices.slice_key(b"a", many) == b"\0a\0\1\2\1\x2c" + b"\x80\x7f" * 300


@pytest.mark.parametrize("name", [b"a", b"", b"a\0b\xffc", b"\0\0", b"\xff", b"\0\xff\1"])
def test_names_of_keys(name: bytes) -> None:
    for box in ((), ((4, 3), (0, -1))):
        assert _slices.sliced(_slices.slice_key(name, box)) == name


@pytest.mark.parametrize("key", [b"", b"a", b"a\0\1\0", b"\0a", b"\0a\0\2\0", b"\0a\0b\0\1\0", b"\0a\xffb\0\1\0"])
def test_keys_that_are_no_slices(key: bytes) -> None:
    assert _slices.sliced(key) == key


# What tiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "cuts", "what"),
    [
        ((4,), [((0, 2), (0, 1))], "a slice of 2 axes of the shape [4]"),
        ((4,), [()], "a slice of 0 axes of the shape [4]"),
        ((4,), [((-1, 5),)], "a slice reaches outside the shape [4]"),
        ((4,), [((2, 3),)], "a slice reaches outside the shape [4]"),
        ((4,), [((0, -2),)], "a slice reaches outside the shape [4]"),
        ((4,), [((1, -1),)], "a slice reaches outside the shape [4]"),
        ((2, 4), [((0, 2), (0, 5))], "a slice reaches outside the shape [2, 4]"),
        ((4,), [], "its 0 slices do not tile the shape [4]: they leave gaps"),
        ((4,), [((0, 3),)], "its 1 slices do not tile the shape [4]: they leave gaps"),
        ((4,), [((0, 3),), ((2, 2),)], "its 2 slices do not tile the shape [4]: they overlap"),
        ((0, 4), [((0, 0), (0, 3)), ((0, 0), (0, 4))], ""),
        ((4,), [((0, 2),), ((1, 2),)], "its slices overlap in the shape [4]"),
        ((4,), [((2, 2),), ((2, 2),)], "its slices overlap in the shape [4]"),
        ((6,), [((0, 2),), ((3, 2),), ((4, 2),)], "its slices overlap in the shape [6]"),
        ((2, 2), [((0, 2), (0, 1)), ((0, 1), (0, 2))], "its slices overlap in the shape [2, 2]"),
        ((4,), [((0, 4),), ((2, 0),)], ""),
        ((4,), [((2, 2),), ((0, 2),)], ""),
        ((), [()], ""),
        ((), [(), ()], "its 2 slices do not tile the shape []: they overlap"),
    ],
)
def test_tiling(shape: tuple[int, ...], cuts: list[_slices.Slice], what: str) -> None:
    if what:
        with says(FormatError, f"f: tensor 'v': {what}"):
            _slices.boxes(cuts, shape, "f", "v")
    else:
        assert _slices.boxes(cuts, shape, "f", "v") == [tuple((a, a + n) for a, n in cut) for cut in cuts]


def test_a_whole_axis() -> None:
    assert _slices.boxes([((0, -1), (0, 2)), ((0, 3), (2, 3))], (3, 5), "f", "v") == [
        ((0, 3), (0, 2)),
        ((0, 3), (2, 5)),
    ]


def test_so_many_slices() -> None:
    cuts = [((n, 1),) for n in range(20_001)]
    assert len(_slices.boxes(cuts[:-1], (20_000,), "f", "v")) == 20_000
    with says(BudgetExceeded, "f: tensor 'v': 20,001 slices, at most 20,000 allowed"):
        _slices.boxes(cuts, (20_001,), "f", "v")


def test_so_many_slices_along_two_axes() -> None:
    """Each is compared with each."""
    cuts = [((n, 1), (m, 1)) for n in range(100) for m in range(40)]
    assert len(_slices.boxes(cuts, (100, 40), "f", "v")) == 4000
    with says(FormatError, "f: tensor 'v': its slices overlap in the shape [100, 40]"):
        _slices.boxes([*cuts[1:], cuts[1]], (100, 40), "f", "v")
    cuts = [((n, 1), (m, 1)) for n in range(100) for m in range(41)]
    with says(BudgetExceeded, "f: tensor 'v': 4,100 slices along several axes, at most 4,000 allowed"):
        _slices.boxes(cuts, (100, 41), "f", "v")
    along = [((n, 1), (0, -1)) for n in range(4100)]  # along one of two axes there may be more
    assert len(_slices.boxes(along, (4100, 41), "f", "v")) == 4100


# Parts --------------------------------------------------------------------------------------------------------------


@st.composite
def tilings(draw: Any) -> tuple[tuple[int, ...], list[Box], tuple[tuple[int, int, int], ...]]:
    """A shape, boxes that tile it (cut in two, one of them again, ...), and an index into it."""
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
    found: list[Box] = [tuple((0, dim) for dim in shape)]
    for _ in range(draw(st.integers(0, 5)) if shape else 0):
        box = found.pop(draw(st.integers(0, len(found) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(*box[axis]))
        found += [(*box[:axis], half, *box[axis + 1 :]) for half in ((box[axis][0], at), (at, box[axis][1]))]
    cuts = []
    for dim in shape:
        start = draw(st.integers(0, dim))
        cuts.append((start, draw(st.integers(start, dim)), draw(st.integers(1, 4))))
    return shape, draw(st.permutations(found)), tuple(cuts)


@given(tilings())
@settings(deadline=None)
def test_parts_are_put_together(case: tuple[tuple[int, ...], list[Box], _strided.Bounds]) -> None:
    shape, found, cuts = case
    value = np.arange(int(np.prod(shape, dtype=int)), dtype=np.int16).reshape(shape)
    asked = []

    def read(number: int, index: tuple[slice, ...]) -> np.ndarray:
        part = value[tuple(slice(*edges) for edges in found[number])]
        for cut, dim in zip(index, part.shape, strict=True):
            assert 0 <= cut.start < cut.stop <= dim
        asked.append(part[index].size)
        return part[index]

    out = _slices.stitch(value.dtype, cuts, found, read)
    want = value[_strided.as_slices(cuts)]
    assert (out.shape, out.dtype) == (want.shape, value.dtype)
    assert out.tolist() == want.tolist()
    assert sum(asked) == want.size
    assert all(asked), "no box is read of which nothing is wanted"
