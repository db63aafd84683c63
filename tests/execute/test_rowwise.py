"""Rows out of parts of rows: found where that is all there is to do, the same bytes as the expression, no copies."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightport import values
from weightport.execute import rowwise as module
from weightport.execute.holding import SCRATCH, TILE
from weightport.execute.rowwise import Read, Rowwise, rowwise
from weightport.ranges import Ranges, slices_of, whole
from weightport.tensors import Array, TensorSpec
from weightport.values import Expr, Leaf

MB = 1 << 20


def leaf(name: str, *shape: int) -> Leaf:
    return Leaf(name, TensorSpec.of("float32", shape))


W, V = leaf("w", 6, 8), leaf("v", 9, 4)


def part(of: Expr, rows: range, columns: range) -> Expr:
    return values.cut(of, (rows, columns))


def beside(*parts: Expr, axis: int = 1) -> Expr:
    return values.concat(parts, axis)


ALL = range(6)
#: What is made of which parts, or why it is not.
FOUND: dict[str, tuple[Expr, Rowwise | None]] = {
    "gates": (
        beside(*(part(W, ALL, range(at, at + 2)) for at in (0, 4, 2, 6))),
        Rowwise(32, (Read("w", 0, 32),), ((0, 0, 8), (0, 16, 24), (0, 8, 16), (0, 24, 32))),
    ),
    "the lower half": (
        beside(*(part(W, range(3, 6), range(at, at + 4)) for at in (4, 0))),
        Rowwise(32, (Read("w", 3, 32),), ((0, 16, 32), (0, 0, 16))),
    ),
    "two tensors": (
        beside(W, part(V, range(2, 8), range(4)), W),
        Rowwise(80, (Read("w", 0, 32), Read("v", 2, 16)), ((0, 0, 32), (1, 0, 16), (0, 0, 32))),
    ),
    "one below the other": (beside(W, W, axis=0), None),
    "too little of a row": (beside(part(W, ALL, range(4)), part(V, ALL, range(4))), None),
    "every second row": (beside(W, part(leaf("u", 12, 4), range(0, 12, 2), range(4))), None),
    "every second column": (beside(W, part(W, ALL, range(0, 8, 2))), None),
    "turned": (beside(W, values.permute(leaf("u", 4, 6), [1, 0])), None),
    "a fill": (beside(W, values.Fill((6, 2), np.dtype("float32"))), None),
    "in both directions": (
        values.assemble(
            (12, 16),
            W.dtype,
            [((range(y, y + 6), range(x, x + 8)), W) for y in (0, 6) for x in (0, 8)],
        ),
        None,
    ),
    "one tensor": (W, None),
    "from elsewhere": (beside(W, leaf("elsewhere", 6, 8)), None),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_put_together_by_rows(name: str) -> None:
    expr, expected = FOUND[name]
    found = rowwise(expr, {"w", "v", "u"}, MB)
    assert found == expected
    assert found is None or rowwise(expr, {"w", "v", "u"}, found.needed - 1) is None


@st.composite
def assembled(draw: Any) -> tuple[Expr, dict[str, Array]]:
    """A tensor of one to four axes: parts of some tensors, that together use up all of their rows."""
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    axis = draw(st.integers(1, len(shape) - 1))
    arrays, parts = {}, []
    for number in range(draw(st.integers(1, 3))):
        name, first, more = f"t{number}", draw(st.integers(0, 2)), draw(st.integers(0, 2))
        width = draw(st.integers(2, 9))
        whole_shape = [first + shape[0] + more, *shape[1:axis], width, *shape[axis + 1 :]]
        arrays[name] = np.random.default_rng(number).standard_normal(whole_shape, np.float32)
        cuts = [0, *sorted(draw(st.sets(st.integers(1, width - 1), max_size=3))), width]
        for start, stop in pairwise(cuts):
            place = [range(first, first + shape[0]), *whole(whole_shape[1:])]
            place[axis] = range(start, stop)
            parts.append(values.cut(leaf(name, *whole_shape), tuple(place)))
    return values.concat(draw(st.permutations(parts)), axis), arrays


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), made=assembled())
def test_bands_are_the_rows(
    data: st.DataObject, made: tuple[Expr, dict[str, Array]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expr, arrays = made
    how = rowwise(expr, arrays, MB)
    if how is None:  # the parts happened to stand where they had stood
        return
    short = data.draw(st.booleans(), label="short")
    monkeypatch.setattr(module, "_LONG", 1 << 30 if short else 0)
    most = data.draw(st.integers(1, 400), label="most")

    def fill(name: str, start: int, out: Array) -> None:
        assert len(out) <= max(most, how.needed)
        out[:] = arrays[name].reshape(-1).view(np.uint8)[start : start + len(out)]

    def fetch(name: str, ranges: Ranges) -> Array:
        return arrays[name][slices_of(ranges)]

    expected = np.ascontiguousarray(expr.read(fetch, whole(expr.shape))).tobytes()
    count = len(expected) // how.row
    first = data.draw(st.integers(0, count - 1), label="first")
    found = b""
    for parts, size in how.bands(range(first, count), most, fill):
        assert sum(map(len, parts)) == size
        memory = (TILE if short else SCRATCH).memory  # parts are written out of where they were read to, if long
        assert all(np.shares_memory(one, memory) for one in parts)
        found += b"".join(parts)
    assert found == expected[first * how.row :]
