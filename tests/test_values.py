"""Expressions over source tensors: every part is the part of the whole, and reads no more than it needs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightport import values
from weightport.ranges import Ranges, slices_of, whole
from weightport.tensors import TensorSpec
from weightport.values import Expr, Leaf, diagonals

ARRAYS = {
    "m": np.arange(24, dtype=np.float32).reshape(4, 6),
    "n": -np.arange(24, dtype=np.float32).reshape(4, 6) / 7,
    "v": np.arange(6, dtype=np.float32) + 0.25,
    "c": np.arange(60, dtype=np.float32).reshape(3, 4, 5),
    "s": np.float32(3).reshape(()),
    "e": np.zeros((0, 6), np.float32),
}
F32 = np.dtype(np.float32)


def leaf(name: str) -> Leaf:
    return Leaf(name, TensorSpec.of(ARRAYS[name].dtype, ARRAYS[name].shape))


M, N, V, C, S, E = (leaf(n) for n in "mnvcse")
m, n, v, c = (ARRAYS[k] for k in "mnvc")

#: Expressions, and what they are.
TABLE: dict[str, tuple[Expr, np.ndarray]] = {
    "leaf": (M, m),
    "cut": (values.cut(M, (range(1, 4, 2), range(2, 6))), m[1:4:2, 2:6]),
    "cut of a cut": (values.cut(values.cut(M, (range(1, 4), range(0, 6, 2))), (range(2), range(1, 3))), m[1:3, 2:6:2]),
    "permute": (values.permute(C, [2, 0, 1]), c.transpose(2, 0, 1)),
    "permute back": (values.permute(values.permute(C, [2, 0, 1]), [1, 2, 0]), c),
    "reshape rows": (values.reshape(C, (12, 5)), c.reshape(12, 5)),
    "reshape to a vector": (values.reshape(M, (24,)), m.reshape(24)),
    "reshape to other rows": (values.reshape(M, (3, 8)), m.reshape(3, 8)),
    "squeeze": (values.reshape(V, (1, 6, 1)), v.reshape(1, 6, 1)),
    "scalar": (values.reshape(S, (1, 1)), ARRAYS["s"].reshape(1, 1)),
    "to a scalar": (values.reshape(values.cut(V, (range(2, 3),)), ()), v[2:3].reshape(())),
    "empty": (values.reshape(E, (6, 0)), ARRAYS["e"].reshape(6, 0)),
    "concat": (values.concat([M, N], 1), np.concatenate([m, n], 1)),
    "concat rows": (values.concat([M, values.negate(N), M], 0), np.concatenate([m, -n, m], 0)),
    "interleaved": (
        values.assemble((4, 12), F32, [((range(4), range(0, 12, 2)), M), ((range(4), range(1, 12, 2)), N)]),
        np.stack([m, n], -1).reshape(4, 12),
    ),
    "sum": (values.add([M, N], 0.5), (m + n) + np.float32(0.5)),
    "negate": (values.negate(M), -m),
    "negate twice": (values.negate(values.negate(M)), m),
    "scale": (values.Scale(M, 0.3), m * np.float32(0.3)),
    "cast": (values.Cast(M, np.dtype("float16")), m.astype(np.float16)),
    "fill": (values.Fill((2, 3), F32, 7.0), np.full((2, 3), 7, np.float32)),
    "diagonal": (values.Diagonal(V), np.diag(v)),
    "on the diagonal": (values.OnDiagonal(values.cut(M, (range(4), range(1, 5)))), np.diag(m[:, 1:5])),
    "on the diagonal of a diagonal": (values.OnDiagonal(values.Diagonal(V)), v),
    "take": (values.Take(M, 0, (3, 0, 0, 2)), m[[3, 0, 0, 2]]),
    "take columns": (values.Take(M, 1, (5, 1)), m[:, [5, 1]]),
    "take with missing rows": (
        values.Take(M, 0, (3, -1, 1), values.Fill((3, 6), F32, 9.0)),
        np.stack([m[3], np.full(6, 9, np.float32), m[1]]),
    ),
    "mean": (values.Mean(M, 0, 2), np.stack([m.mean(0, dtype=np.float64).astype(np.float32)] * 2)),
    "made": (values.Made((3,), F32, lambda: np.array([1, 2, 3], F32)), np.array([1, 2, 3], F32)),
}


def reading() -> tuple[Callable[[str, Ranges], np.ndarray], list[tuple[str, Ranges]]]:
    """A fetch, and what was asked of it."""
    asked: list[tuple[str, Ranges]] = []

    def fetch(name: str, ranges: Ranges) -> np.ndarray:
        asked.append((name, ranges))
        return ARRAYS[name][slices_of(ranges)]

    return fetch, asked


@pytest.mark.parametrize("name", TABLE)
def test_the_whole(name: str) -> None:
    expr, expected = TABLE[name]
    fetch, _ = reading()
    found = expr.read(fetch, whole(expr.shape))
    assert expr.shape == expected.shape
    assert expr.dtype == found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=400)
@given(st.sampled_from(sorted(TABLE)), st.data())
def test_every_part_is_the_part_of_the_whole(name: str, data: st.DataObject) -> None:
    expr, expected = TABLE[name]
    ranges = []
    for size in expr.shape:
        start = data.draw(st.integers(0, size))
        ranges.append(range(size)[start : data.draw(st.integers(start, size)) : data.draw(st.integers(1, 3))])
    fetch, asked = reading()
    np.testing.assert_array_equal(expr.read(fetch, tuple(ranges)), expected[slices_of(tuple(ranges))])
    if "take" not in name and name != "mean":  # of these it is not told
        told = list(expr.needs(tuple(ranges)))
        assert all(any(held(part, need) for need in told) for part in asked), (asked, told)


def held(part: tuple[str, Ranges], need: tuple[str, Ranges]) -> bool:
    """Whether a part of a tensor is within what was told."""
    return part[0] == need[0] and all(set(p) <= set(n) for p, n in zip(part[1], need[1], strict=True))


@pytest.mark.parametrize(
    ("expr", "ranges", "asked"),
    [
        (values.concat([M, N], 1), (range(4), range(6, 12)), [("n", (range(4), range(6)))]),
        (values.concat([M, N], 0), (range(4, 5), range(6)), [("n", (range(1), range(6)))]),
        (values.permute(M, [1, 0]), (range(2, 3), range(4)), [("m", (range(4), range(2, 3)))]),
        (values.reshape(C, (12, 5)), (range(4, 6), range(5)), [("c", (range(1, 2), range(4), range(5)))]),
        (values.reshape(V, (1, 6)), (range(1), range(2, 4)), [("v", (range(2, 4),))]),
        (values.Take(M, 0, (3, 2, 0)), (range(2), range(6)), [("m", (range(2, 4), range(6)))]),
        (values.Diagonal(V), (range(0, 6, 2), range(2, 6)), [("v", (range(2, 5, 2),))]),
        (values.Diagonal(V), (range(2), range(2, 6)), []),
        (values.OnDiagonal(values.cut(M, (range(4), range(4)))), (range(1, 3),), [("m", (range(1, 3), range(1, 3)))]),
    ],
)
def test_a_part_reads_only_what_it_needs(expr: Expr, ranges: Ranges, asked: list[tuple[str, Ranges]]) -> None:
    fetch, found = reading()
    expr.read(fetch, ranges)
    assert found == asked


def test_a_diagonal_is_read_in_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagonals, "_SQUARE", 3)
    expr = values.OnDiagonal(values.cut(M, (range(4), range(4))))
    fetch, asked = reading()
    np.testing.assert_array_equal(expr.read(fetch, (range(4),)), np.diag(m[:, :4]))
    assert asked == list(expr.needs((range(4),))) == [("m", (r, r)) for r in (range(3), range(3, 4))]


def test_steps_that_change_nothing_are_left_out() -> None:
    assert values.cut(M, whole(M.shape)) is M
    assert values.permute(M, [0, 1]) is M
    assert values.reshape(M, (4, 6)) is M
    assert values.permute(values.permute(M, [1, 0]), [1, 0]) is M
    assert values.add([M]) is M
    halves = [((range(4), range(k, k + 3)), values.cut(M, (range(4), range(k, k + 3)))) for k in (0, 3)]
    assert values.assemble((4, 6), F32, halves) == M
    swapped = [(halves[0][0], halves[1][1]), (halves[1][0], halves[0][1])]
    assert values.assemble((4, 6), F32, swapped) != M
    assert values.concat([M, N], 0).leaves() == {"m", "n"}


def test_negation_keeps_the_payload_of_a_nan() -> None:
    bits = np.array([0x7FC12345, 0xFF812345, 0x80000000], np.uint32)
    made = values.Made((3,), F32, lambda: bits.view(np.float32))
    fetch, _ = reading()
    found = values.negate(values.negate(made)).read(fetch, (range(3),))
    assert found.tobytes() == bits.tobytes()
    flipped = values.negate(made).read(fetch, (range(3),)).view(np.uint32)
    assert flipped.tolist() == [0xFFC12345, 0x7F812345, 0]


@pytest.mark.parametrize("name", TABLE)
def test_what_is_needed_holds_what_is_read(name: str) -> None:
    expr, expected = TABLE[name]
    for ranges in (whole(expr.shape), tuple(range(len(r) // 3, len(r), 2) for r in whole(expr.shape))):
        fetch, asked = reading()
        expr.read(fetch, ranges)
        told = list(expr.needs(ranges))
        if not any(isinstance(e, values.Take | values.Mean) for e in every(expr)):
            assert {n for n, _ in asked} == {n for n, _ in told}
        for tensor, part in told:
            assert any(tensor == n and part == r for n, r in asked)
    assert expected.shape == expr.shape


def every(expr: Expr) -> list[Expr]:
    return [expr, *(inner for operand in values.operands(expr) for inner in every(operand))]


def test_crossed() -> None:
    assert values.crossed(values.permute(M, [1, 0]))
    assert values.crossed(values.concat([values.permute(M, [1, 0])] * 2, 0))
    assert not values.crossed(values.permute(C, [1, 0, 2]))
    assert not values.crossed(values.permute(values.reshape(M, (4, 3, 2)), [2, 1, 0]))
