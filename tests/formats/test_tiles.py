"""Tiles that writers are given: what makes up the tensor that was promised, and what does not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import says
from weightport.errors import Error
from weightport.formats import _tiles
from weightport.tensors import TensorSpec

MATRIX = TensorSpec.of("float32", (3, 2))
SCALAR = TensorSpec.of("float32", ())
TEXTS = TensorSpec.of(object, (3,))


def checked(spec: TensorSpec, *tiles: np.ndarray) -> list[np.ndarray]:
    return list(_tiles.checked("f", "v", spec, lambda _: iter(tiles)))


def test_what_makes_up_the_tensor() -> None:
    value = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert checked(MATRIX, value)[0] is value
    assert [t.tolist() for t in checked(MATRIX, value[:0], value[:1], value[1:])] == [[], [[0, 1]], [[2, 3], [4, 5]]]
    (scalar,) = checked(SCALAR, np.array(5, np.float32))
    assert scalar.shape == ()
    assert checked(TensorSpec.of("float32", (0, 2))) == []


def test_tiles_are_contiguous_and_in_native_byte_order() -> None:
    turned = np.arange(6, dtype=">f4").reshape(2, 3).T
    (tile,) = checked(MATRIX, turned)
    assert tile.flags.c_contiguous
    assert tile.dtype.isnative
    assert tile.tolist() == turned.tolist()
    (tile,) = checked(MATRIX, np.arange(6, dtype=np.float32).reshape(2, 3).T)
    assert tile.flags.c_contiguous


@pytest.mark.parametrize(
    ("spec", "tiles", "what"),
    [
        (MATRIX, [], "0 rows of values for the shape [3, 2]"),
        (MATRIX, [np.zeros((2, 2), np.float32)], "2 rows of values for the shape [3, 2]"),
        (MATRIX, [np.zeros((4, 2), np.float32)], "values of float32[4, 2] for float32[3, 2]"),
        (MATRIX, [np.zeros((3, 1), np.float32)], "values of float32[3, 1] for float32[3, 2]"),
        (MATRIX, [np.zeros(3, np.float32)], "values of float32[3] for float32[3, 2]"),
        (MATRIX, [np.zeros((3, 2), np.int32)], "values of int32[3, 2] for float32[3, 2]"),
        (SCALAR, [], "0 rows of values for the shape []"),
        (SCALAR, [np.zeros(1, np.float32)], "values of float32[1] for float32[]"),
        (SCALAR, [np.float32(1), np.float32(1)], "values of float32[] for float32[]"),
        (TEXTS, [np.zeros(3, np.float32)], "values of float32[3] for object[3]"),
    ],
)
def test_what_does_not(spec: TensorSpec, tiles: list[np.ndarray], what: str) -> None:
    with says(Error, f"f: tensor 'v': {what}"):
        checked(spec, *tiles)


def test_texts_as_bytes() -> None:
    def encoded(*tiles: np.ndarray) -> list[tuple[tuple[int, ...], list[bytes]]]:
        return list(_tiles.encoded("f", "v", TEXTS, lambda _: iter(tiles)))

    assert encoded(np.array([b"a", "é", "\udcff"], object)) == [((3,), [b"a", "é".encode(), b"\xff"])]
    assert encoded(np.array([b"a", b"bc"]), np.array(["d"])) == [((2,), [b"a", b"bc"]), ((1,), [b"d"])]
    with says(Error, "f: tensor 'v': int where a string was expected"):
        encoded(np.array([b"a", 1, b"b"], object))
    with says(Error, "f: tensor 'v': 0 rows of values for the shape [3]"):
        encoded()


def test_the_width_of_texts() -> None:
    def width(*values: object) -> int:
        spec = TensorSpec.of(object, (len(values),))
        return _tiles.width("f", "v", spec, lambda _: iter([np.array(values, object)]))

    assert width() == width("", b"a") == 1
    assert width("abc", "é", b"") == 3
    with says(Error, "f: tensor 'v': a string that ends in a NUL byte cannot be stored here"):
        width("ab", "c\0")
    with says(Error, "f: tensor 'v': int where a string was expected"):
        width(1)
    with says(Error, "f: tensor 'v': 0 rows of values for the shape [3]"):
        _tiles.width("f", "v", TEXTS, lambda _: iter([]))
    matrix = np.array([["a", "bc"], ["", "d"]], object)
    assert _tiles.width("f", "v", TensorSpec.of(object, (2, 2)), lambda _: iter([matrix])) == 2
