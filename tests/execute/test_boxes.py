"""How tensors are cut: boxes tile, hold no more than they may, and lie in long runs on both sides."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightport import values
from weightport.execute.boxes import Cut, Sizes, count_runs, cut, hulls, runs
from weightport.ranges import Ranges, extent
from weightport.tensors import TensorSpec
from weightport.values import Expr, Leaf

MB = 1 << 20


def leaf(*shape: int) -> Leaf:
    return Leaf("w", TensorSpec.of("float32", shape))


def turned(*shape: int) -> Expr:
    return values.permute(leaf(*shape), list(range(len(shape)))[::-1])


def gates(*order: int, units: int = 4096) -> Expr:
    """The gates of a large LSTM's kernel in another order."""
    of = leaf(2 * units, 4 * units)
    return values.concat([values.cut(of, (range(units), range(g * units, g * units + units))) for g in order], 1)


#: The expression, what may be held, and at least how many bytes a run has on the source's and on the target's side.
CUTS: dict[str, tuple[Expr, int, int, int]] = {
    "small": (turned(256, 128), 32 * MB, 1 << 17, 1 << 17),
    "fits": (turned(1024, 4096), 32 * MB, 16 * MB, 16 * MB),
    "larger": (turned(16384, 16384), 32 * MB, 8192, 8192),
    "much larger": (turned(1 << 17, 1 << 17), 32 * MB, 8192, 8192),
    "wide": (turned(1000, 1_000_000), 32 * MB, 32_000, MB),
    "tall": (turned(1_000_000, 1000), 32 * MB, MB, 32_000),
    "of one row": (turned(100_000_000, 1), 32 * MB, MB, MB),
    "gates": (gates(0, 2, 1, 3), 32 * MB, MB, MB),
    "gates turned": (values.permute(gates(0, 2, 1, 3), [1, 0]), 32 * MB, 4096, 4096),
    # Boxes do not end where gates do.
    "odd gates turned": (values.permute(gates(0, 2, 1, 3, units=3953), [1, 0]), 24 * MB, 4096, 4096),
}


@pytest.mark.parametrize("name", CUTS)
def test_runs_are_long_and_memory_is_bounded(name: str) -> None:
    expr, hold, source, target = CUTS[name]
    specs = {"w": next(e for e in _every(expr) if isinstance(e, Leaf)).spec}
    spec = TensorSpec.of(expr.dtype, expr.shape)
    found = cut(expr, spec, specs, Sizes(hold=hold))
    assert found.held
    for number, box in enumerate(found.boxes(expr.shape)):
        parts = hulls(expr, box, specs, 0)["w"]
        assert sum(prod(extent(part)) for part in parts) * 4 <= hold
        if number == 0:
            assert min(count_runs(part, specs["w"].shape)[1] for part in parts) * 4 >= source
            assert count_runs(box, expr.shape)[1] * 4 >= target
        if number > 300:
            break


def _every(expr: Expr) -> list[Expr]:
    return [expr, *(inner for operand in values.operands(expr) for inner in _every(operand))]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.data())
def test_boxes_tile(shape: list[int], data: st.DataObject) -> None:
    steps = tuple(data.draw(st.integers(1, n)) for n in shape)
    seen = np.zeros(shape, int)
    for box in Cut(steps).boxes(tuple(shape)):
        seen[np.ix_(*box)] += 1
    assert (seen == 1).all()


@st.composite
def parts(draw: Any) -> tuple[tuple[int, ...], Ranges]:
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    ranges = []
    for axis, n in enumerate(shape):
        low = draw(st.integers(0, n - 1))
        step = draw(st.integers(1, 3)) if axis < len(shape) - 1 else 1
        ranges.append(range(low, draw(st.integers(low + 1, n)), step))
    return shape, tuple(ranges)


@given(parts())
def test_runs_are_the_part(part: tuple[tuple[int, ...], Ranges]) -> None:
    shape, ranges = part
    flat = np.arange(prod(shape))
    starts, length = runs(ranges, shape)
    assert (len(starts), length) == count_runs(ranges, shape)
    found = np.concatenate([flat[s : s + length] for s in starts])
    want = flat.reshape(shape)[np.ix_(*ranges)] if shape else flat
    np.testing.assert_array_equal(found, want.reshape(-1))


def test_short_gaps_are_read_over_and_long_ones_are_not() -> None:
    def hull(shape: tuple[int, ...], *ranges: range) -> Ranges:
        of = leaf(*shape)
        expr = values.cut(of, ranges)
        return hulls(expr, tuple(map(range, expr.shape)), {"w": of.spec}, 0)["w"][0]

    assert hull(()) == ()
    assert hull((100, 300), range(100), range(200)) == (range(100), range(300))
    assert hull((100, 30_000), range(100), range(200)) == (range(100), range(200))
    assert hull((100, 30), range(0, 100, 2), range(30)) == (range(99), range(30))
    assert hull((100, 30_000), range(0, 100, 2), range(30_000)) == (range(0, 100, 2), range(30_000))


def test_what_no_cut_can_bound_is_not_held() -> None:
    # One row of the target needs the whole source.
    of = leaf(1 << 20, 64)
    expr = values.reshape(values.permute(of, [1, 0]), (1 << 26,))
    found = cut(expr, TensorSpec.of("float32", expr.shape), {"w": of.spec}, Sizes(hold=1 << 16, tile=1 << 14))
    assert not found.held


def test_parts_that_lie_far_from_each_other_are_held_apart() -> None:
    of = leaf(10_000, 1000)
    far = values.concat([values.cut(of, (range(10), range(1000))), values.cut(of, (range(9000, 9010), range(1000)))], 0)
    near = values.concat([values.cut(of, (range(9), range(1000))), values.cut(of, (range(10, 19), range(1000)))], 0)
    both = {name: hulls(expr, (range(expr.shape[0]), range(1000)), {"w": of.spec}, 0)["w"]
            for name, expr in (("far", far), ("near", near))}  # fmt: skip
    assert both["far"] == [(range(10), range(1000)), (range(9000, 9010), range(1000))]
    assert both["near"] == [(range(19), range(1000))]
    rows = [range(9000, 9010), range(9), range(10, 19)]
    three = values.concat([values.cut(of, (r, range(1000))) for r in rows], 0)
    assert hulls(three, (range(three.shape[0]), range(1000)), {"w": of.spec}, 0)["w"] == [
        (range(19), range(1000)),
        (range(9000, 9010), range(1000)),
    ]


@pytest.mark.parametrize(
    ("ranges", "found"),
    [
        ((range(2), range(0, 4, 2), range(4)), (4, 4)),
        ((range(2), range(1, 4, 2), range(1, 3)), (4, 2)),
        ((range(2), range(4), range(4)), (1, 32)),
        ((range(0, 4, 3), range(4), range(4)), (2, 16)),
        ((range(0, 4, 4), range(4), range(4)), (1, 16)),
        ((range(4), range(4), range(3)), (16, 3)),
        ((range(4), range(4), range(0, 4, 3)), (32, 1)),
    ],
)
def test_how_many_runs(ranges: Ranges, found: tuple[int, int]) -> None:
    starts, length = runs(ranges, (4, 4, 4))
    assert count_runs(ranges, (4, 4, 4)) == (len(starts), length) == found
    elements = np.arange(64).reshape(4, 4, 4)[np.ix_(*map(list, ranges))].reshape(-1)
    assert (starts[:, None] + np.arange(length)).reshape(-1).tolist() == elements.tolist()
