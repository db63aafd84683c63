from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightport.errors import Error, FormatError, Problem, closest, printable


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("a\x9bb\x00\x7f", r"a\x9bb\x00\x7f"),  # CSI in one byte
        ("\u202egnp.exe", r"\u202egnp.exe"),  # right-to-left override
        ("\u2066a\u2069\u200f\u061c", r"\u2066a\u2069\u200f\u061c"),  # isolates and marks
        ("a\u200bb\u200dc\ufeff\u00ad", r"a\u200bb\u200dc\ufeff\xad"),  # no width
        ("a\u3164b\u2800\ufe0f\U000e0100\u034f", r"a\u3164b\u2800\ufe0f\U000e0100\u034f"),  # drawn as nothing
        ("\u2028\u2029\x85", r"\u2028\u2029\x85"),  # further ends of lines
        ("\U000e0041", r"\U000e0041"),  # a tag character
        ("\ud800", r"\ud800"),
        ("a b é 漢 │ ×", "a b é 漢 │ ×"),
        ("", ""),
    ],
)
def test_what_is_spelled_out(text: str, spelled: str) -> None:
    assert printable(text).lower() == spelled.lower()
    assert printable(printable(text)) == printable(text)


@given(st.text())
def test_nothing_that_acts_is_left(text: str) -> None:
    found = printable(text)
    assert not {unicodedata.category(c) for c in found} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert len(found.splitlines()) <= 1


def test_what_is_kept() -> None:
    assert printable("a\n\tb", keep="\n") == "a\n\\tb"


def test_errors_are_spelled() -> None:
    error = FormatError("m\x1b.h5", "has \u202e", tensor="a\nb", offset=4, hint="x\x07y")
    assert str(error) == "m\\x1b.h5: tensor 'a\\nb' at byte 4: has \\u202e; x\\x07y"
    assert error.problems[0].as_json() == {
        "where": "m\\x1b.h5: tensor 'a\\nb' at byte 4", "what": "has \\u202e", "hint": "x\\x07y",
    }  # fmt: skip
    assert (error.path, error.tensor) == ("m\x1b.h5", "a\nb")  # for programs, as they are
    assert str(Error("one\ntwo")) == "one\\ntwo"
    assert str(Error([Problem("", "one"), Problem("", "two")])) == "one\ntwo"  # a line each


def test_capitals_are_no_distance() -> None:
    assert closest("W", ["w", "b"]) == "closest: 'w'"
    assert closest("lstm_cell", ["softmax", "LSTMcell"]) == "closest: 'LSTMcell'"
