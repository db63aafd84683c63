"""Ranges: intersections and positions against sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weightport.ranges import extent, intersect, picked, position, ranges_of, slices_of, whole

RANGES = st.builds(
    lambda start, count, step: range(start, start + count * step, step),
    st.integers(0, 40),
    st.integers(0, 12),
    st.integers(1, 7),
)


@given(RANGES, RANGES)
def test_intersect_is_the_common_members(a: range, b: range) -> None:
    common = intersect(a, b)
    assert list(common) == sorted(set(a) & set(b))
    if common:
        assert [a[k] for k in position(common, a)] == list(common)
        assert [b[k] for k in position(common, b)] == list(common)


@given(RANGES, st.data())
def test_picked_composes(outer: range, data: st.DataObject) -> None:
    places = range(len(outer))[data.draw(st.integers(0, 12)) :: data.draw(st.integers(1, 4))]
    assert list(picked(outer, places)) == [outer[k] for k in places]


def test_ranges_of_an_index_keep_every_axis() -> None:
    assert whole((2, 3)) == (range(2), range(3))
    assert ranges_of(None, (2, 3)) == (range(2), range(3))
    assert ranges_of((slice(1, None),), (4, 3)) == (range(1, 4), range(3))
    assert ranges_of((slice(None), slice(0, 3, 2)), (4, 3)) == (range(4), range(0, 3, 2))
    assert ranges_of((), ()) == ()
    assert slices_of((range(1, 4), range(0, 3, 2))) == (slice(1, 4, 1), slice(0, 3, 2))
    assert extent((range(1, 4), range(0, 3, 2))) == (3, 2)
