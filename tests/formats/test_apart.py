from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import says
from weightport.errors import FormatError
from weightport.formats._apart import Places

Place = tuple[int, int, int]


def places(*found: Place, ties: bool = True) -> Places:
    held = Places(lambda file: f"f{file}", ties=ties, named=lambda at: "abcdefgh"[at])
    for number, (start, size, file) in enumerate(found):
        held.add(start, size, number, file)
    return held


@pytest.mark.parametrize(
    "found",
    [
        [],
        [(0, 4, 0)],
        [(4, 4, 0), (0, 4, 0), (12, 1, 0)],
        [(0, 4, 0), (2, 4, 1)],  # in two files
        [(0, 4, 0), (0, 4, 0), (4, 2, 0), (4, 2, 0)],  # ties
        [(0, 8, 0), (2, 0, 0)],  # no bytes
        [(-2, 4, 0), (0, 4, 0)],  # places in no file
        [((1 << 63) - 4, 4, 0), ((1 << 63) - 4, 8, 0)],
        [(0, 4, -1), (2, 4, -1)],
        [(0, 1 << 62, 0), (1 << 62, (1 << 62) - 1, 0)],
        [(1 << 63, 1, 0), (0, 1, 1 << 63), (0, 1 << 63, 0)],  # numbers that no file has
    ],
)
def test_apart(found: list[Place]) -> None:
    places(*found).check()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([(0, 4, 0), (2, 4, 0)], "f0: tensor 'b' at byte 2: corrupt: its 4 bytes overlap the 4 of 'a' at byte 0"),
        ([(2, 4, 3), (0, 4, 3)], "f3: tensor 'a' at byte 2: corrupt: its 4 bytes overlap the 4 of 'b' at byte 0"),
        ([(0, 9, 0), (2, 1, 0)], "f0: tensor 'b' at byte 2: corrupt: its 1 bytes overlap the 9 of 'a' at byte 0"),
        ([(5, 9, 0), (5, 1, 0)], "f0: tensor 'a' at byte 5: corrupt: its 9 bytes overlap the 1 of 'b' at byte 5"),
        (
            [(9, 4, 0), (0, 4, 0), (6, 4, 0)],
            "f0: tensor 'a' at byte 9: corrupt: its 4 bytes overlap the 4 of 'c' at byte 6",
        ),
        ([(0, 9, 0), (0, 9, 0), (8, 2, 0)], "f0: tensor 'c' at byte 8: corrupt: its 2 bytes overlap the 9 of 'a'"),
    ],
)
def test_overlaps(found: list[Place], message: str) -> None:
    with pytest.raises(FormatError) as caught:
        places(*found).check()
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(": tensors share all of their bytes or none")


def test_ties_are_usual() -> None:
    held = Places("f")
    for value in "ab":
        held.add(0, 4, value)
    held.check()
    held.add(1, 4, "c")
    what = "corrupt: its 4 bytes overlap the 4 of 'a' at byte 0: tensors share all of their bytes or none"
    with says(FormatError, f"f: tensor 'c' at byte 1: {what}"):
        held.check()


def test_without_ties() -> None:
    places((0, 4, 0), (4, 4, 0), (0, 4, 1), ties=False).check()
    message = "f0: tensor 'b' at byte 0: corrupt: its 4 bytes overlap the 4 of 'a' at byte 0: tensors share none"
    with says(FormatError, message):
        places((0, 4, 0), (0, 4, 0), ties=False).check()


def test_one_file() -> None:
    held = Places("m.bin")
    held.add(0, 4, "a")
    held.add(3, 4, "b")
    with pytest.raises(FormatError, match=r"^m\.bin: tensor 'b' at byte 3: corrupt: its 4 bytes overlap the 4 of 'a'"):
        held.check()


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 1)), max_size=6),
    st.booleans(),
)
def test_any_two(found: list[Place], ties: bool) -> None:
    """Compared one by one."""
    wrong = any(
        file == other and start < begin + length and begin < start + size and size and length
        and not (ties and (start, size) == (begin, length))
        for at, (start, size, file) in enumerate(found)
        for begin, length, other in found[:at]
    )  # fmt: skip
    try:
        places(*found, ties=ties).check()
    except FormatError:
        assert wrong
    else:
        assert not wrong
