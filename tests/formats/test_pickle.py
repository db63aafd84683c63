"""Pickles are taken apart: nothing of them is called, and whatever they say ends in a value or an error."""

from __future__ import annotations

import collections
import contextlib
import pickle
import pickletools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightport.errors import BudgetExceeded, FormatError
from weightport.formats import _pickle
from weightport.formats._pickle import Global, Pairs, Short, Thing


def parsed(data: bytes, **options: Any) -> Any:
    options.setdefault("call", lambda *_: NotImplemented)
    options.setdefault("persistent", lambda key: ("persistent", key))
    found, end = _pickle.parse(data, 0, "file", **options)
    assert end == len(data)
    return found


def plain(found: Any) -> Any:
    """What the pickled object would have been, of the kinds that need no calls."""
    if type(found) is Pairs:
        return {plain(k): plain(v) for k, v in found}
    if type(found) is Thing and found.named("builtins.set"):
        return set(map(plain, found.items or (found.args[0] if found.args else ())))
    if isinstance(found, (list, tuple)):
        return type(found)(map(plain, found))
    return found


KEYS = st.none() | st.booleans() | st.integers() | st.text()
VALUES = st.recursive(
    KEYS | st.floats(allow_nan=False) | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner, inner, inner) | st.dictionaries(KEYS, inner) | st.sets(KEYS)
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.sampled_from([3, 4, 5]))
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    assert plain(parsed(pickle.dumps(value, protocol))) == value


def test_protocols_of_python_2() -> None:
    value = {"a": [1, 2.5, -3, 2**40, -(2**70), None, True, False, "é☃"], "t": (1,), "n": {}}
    for protocol in (0, 1, 2):
        assert plain(parsed(pickle.dumps(value, protocol))) == value
    assert parsed(b"S'abc'\n.") == "abc"
    assert parsed(b"U\x02\xc3\xa9.") == "é"
    assert parsed(b"T\x01\0\0\0\xe9.") == "é"  # no UTF-8: Latin-1, as all bytes are
    assert parsed(b"I01\n.") is True
    assert parsed(b"(i__main__\nX\np0\n.").named("__main__.X")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"I00\n.", False),
        (b"I 7 \n.", 7),
        (b"L-70L\n.", -70),
        (b"L 70 \n.", 70),
        (b"F2.5\n.", 2.5),
        (b"J\xfe\xff\xff\xff.", -2),
        (b"M\1\2.", 513),
        (b"\x8a\2\xfe\xff.", -2),
        (b"\x8b\2\0\0\0\0\1.", 256),
        (b"\x8a\0.", 0),
        (b"P12\n.", ("persistent", "12")),
        (b"S 'ab' \n.".replace(b" ", b""), "ab"),
        (b'S"a\xe9"\n.', "a\xe9"),
        (b"V\\u00e9\n.", "é"),
        (b"X\3\0\0\0\xed\xa0\x80.", "\ud800"),
        (b"\x8c\1a.", "a"),
        (b"\x8d\1\0\0\0\0\0\0\0a.", "a"),
        (b"C\2ab.", b"ab"),
        (b"B\2\0\0\0ab.", b"ab"),
        (b"\x8e\2\0\0\0\0\0\0\0ab.", b"ab"),
        (b"\x96\2\0\0\0\0\0\0\0ab.", b"ab"),
        (b"K\1K\2\x86.", (1, 2)),
        (b"NK\1K\2K\3\x87.", (1, 2, 3)),
        (b"K\1K\2\x85.", (2,)),
        (b"K\x012\x86.", (1, 1)),
        (b"K\1(K\0020K\3t.", (3,)),
        (b"K\1(0.", 1),
        (b"K\1(K\2K\0031.", 1),
        (b"(K\1K\2l.", [1, 2]),
        (b"](K\1K\2e(K\3e.", [1, 2, 3]),
        (b"]K\1a(e.", [1]),
        (b"N(e.", None),
        (b"N(u.", None),
        (b"(K\1K\2d.", [(1, 2)]),
        (b"}K\1K\2s(K\3K\4K\5K\6u.", [(1, 2), (3, 4), (5, 6)]),
        (b"K\1Nb.", 1),
        (b"K\7p5\n0Ng5\n.", 7),
        (b"K\7q\5K\x08\x940h\5.", 7),
        (b"K\7\x94K\x08\x940h\1\x86.", (7, 8)),
        (b"K\7r\0\1\0\0j\0\1\0\0\x86.", (7, 7)),
        (b"\x80\4\x95\2\0\0\0\0\0\0\0K\1.", 1),
    ],
)
def test_what_each_instruction_does(data: bytes, expected: Any) -> None:
    found = parsed(data)
    assert found == expected
    assert type(found) is type(expected) or type(found) is Pairs


def record(thing: Any) -> tuple[Any, ...]:
    assert type(thing) is Thing
    of = str(thing.of) if type(thing.of) is Global else thing.of
    return of, thing.args, thing.state, list(thing.items), list(thing.pairs)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"cm\nn\n(K\1tR.", ("m.n", (1,), None, [], [])),
        (b"K\1(K\2tR.", (1, (2,), None, [], [])),
        (b"cm\nn\n(K\1t\x81.", ("m.n", (1,), None, [], [])),
        (b"cm\nn\n(K\1t}K\2K\3s\x92.", ("m.n", (1,), None, [], [(2, 3)])),
        (b"cm\nn\n(K\1tN\x92.", ("m.n", (1,), None, [], [])),
        (b"(K\1K\2im\nn\n.", ("m.n", (1, 2), None, [], [])),
        (b"(cm\nn\nK\1K\2o.", ("m.n", (1, 2), None, [], [])),
        (b"(o.", (None, (), None, [], [])),
        (b"X\1\0\0\0mX\1\0\0\0n\x93(tR.", ("m.n", (), None, [], [])),
        (b"\x8f(K\1K\2\x90(K\3\x90.", ("builtins.set", (), None, [1, 2, 3], [])),
        (b"(K\1K\2\x91.", ("builtins.set", (), None, [1, 2], [])),
        (b"cm\nn\n)RK\1aK\2aK\3K\4sK\5K\6sK\7b.", ("m.n", (), 7, [1, 2], [(3, 4), (5, 6)])),
    ],
)
def test_what_would_be_made_by_each_instruction(data: bytes, expected: tuple[Any, ...]) -> None:
    assert record(parsed(data)) == expected


def test_a_call_that_is_known_gives_its_value() -> None:
    for made in (None, False, (), []):
        assert parsed(b"cm\nn\n)R.", call=lambda *_, made=made: made) is made


def test_a_pickle_among_other_bytes() -> None:
    found = _pickle.parse(b"xxK\7.yy", 2, "file", call=lambda *_: None, persistent=lambda key: key)
    assert found == (7, 5)
    with pytest.raises(FormatError) as caught:
        _pickle.parse(b"xxK\7\xff", 2, "file", base=10, call=lambda *_: None, persistent=lambda key: key)
    assert str(caught.value) == "file at byte 14: no valid pickle: the instruction 0xff does not exist"


def test_what_would_be_called_is_a_record() -> None:
    found = parsed(pickle.dumps(collections.OrderedDict(a=1)))
    assert found.named("collections.OrderedDict")
    assert (found.args, list(found.pairs)) == ((), [("a", 1)])
    found = parsed(pickle.dumps(slice(1, 2)))
    assert (str(found.of), found.args) == ("builtins.slice", (1, 2, None))
    found = parsed(pickle.dumps(1 + 2j))
    assert (str(found.of), found.args) == ("builtins.complex", (1.0, 2.0))
    assert parsed(pickle.dumps(test_protocols_of_python_2)).name == "test_protocols_of_python_2"


def test_known_calls_and_persistent_ids_are_asked_for() -> None:
    asked: list[str] = []

    def call(of: Global, args: Any) -> Any:
        asked.append(str(of))
        return len(args) if of.name == "known" else NotImplemented

    found = parsed(b"(cm\nknown\n(K\1K\2tRcm\nother\n)RPkey\nK\x07Qt.", call=call)
    assert (found[0], found[1].named("m.other"), found[2:]) == (2, True, (("persistent", "key"), ("persistent", 7)))
    assert asked == ["m.known", "m.other"]


@pytest.mark.parametrize(
    ("data", "at", "what"),
    [
        (b"\xff.", 0, "the instruction 0xff does not exist"),
        (b"N\x82\1.", 1, "the extension registry is not supported"),
        (b"\x97.", 0, "an out-of-band buffer is not supported"),
        (b"N\x84\1.", 1, "the extension registry is not supported"),
        (b"K\1K\2\x87.", 4, "it takes what is not there"),
        (b"t.", 0, "it takes what is not there"),
        (b"X\1\0\0\0mK\1\x93.", 8, "a global whose name is no text"),
        (b"K\1X\1\0\0\0m\x93.", 8, "a global whose name is no text"),
        (b"\x8a\xff" + bytes(255) + b"\x8b\1\4\0\0", 257, "a number of 1,025 bytes"),
        (b"I" + b"1" * 100 + b"\n.", 0, "a line of more than 100 bytes"),
        (b"F" + b"1" * 100 + b"\n.", 0, "a line of more than 100 bytes"),
        (b"g" + b"1" * 100 + b"\n.", 0, "a line of more than 100 bytes"),
        (b"p" + b"1" * 100 + b"\n.", 0, "a line of more than 100 bytes"),
        (b"S" + b"1" * (1 << 20) + b"\n.", 0, "a line of more than 1,048,576 bytes"),
        (b"c\xff\nn\n.", 0, "no text, or no number"),
        (b"cm\n\xff\n.", 0, "no text, or no number"),
        (b"(i\xff\nn\n.", 1, "no text, or no number"),
        (b"(im\n\xff\n.", 1, "no text, or no number"),
        (b"N0R.", 2, "it takes what is not there"),
        (b"(N.", 3, None),
        (b"\x8b\0\4\0\0" + bytes(1024) + b"0N.", 0, None),
        (b"I" + b"1" * 99 + b"\n0N.", 0, None),
        (b"h\7.", 0, "it refers to what is not there"),
        (b"Ixyz\n.", 0, "no text, or no number"),
        (b"X\1\0\0\0\xff.", 0, "no text, or no number"),
        (b"\x8b\0\0\1\0.", 0, "a number of 65,536 bytes"),
        (b"(K\1u.", 3, "a key without a value"),
        (b"N(K\1K\1u.", 6, "keys are set in what has none"),
        (b"NNa.", 2, "items are put into what holds none"),
        (b"K\1K\2\x93.", 4, "a global whose name is no text"),
        (b"L" + b"1" * 200 + b"\n.", 0, "a line of more than 100 bytes"),
    ],
)
def test_malformed(data: bytes, at: int, what: str | None) -> None:
    if what is None:
        assert parsed(data) is None  # CPython takes a pickle that ends with a mark left
        return
    with pytest.raises(FormatError) as caught:
        parsed(data, base=1000)
    assert str(caught.value) == f"file at byte {1000 + at}: no valid pickle: {what}"


def test_every_end_that_comes_too_soon_is_told_from_damage() -> None:
    whole = pickle.dumps({"a": [1, (2.5, "é" * 300, 2**70)], "b": b"x"}, 4)
    for size in range(len(whole)):
        with pytest.raises(Short):
            parsed(whole[:size])


def test_the_number_of_instructions_is_bounded() -> None:
    assert parsed(b"N" * 9 + b".", steps=10) is None
    with pytest.raises(BudgetExceeded) as caught:
        parsed(b"(" * 10 + b".", steps=10, base=100)
    assert str(caught.value) == "file at byte 109: a pickle of more than 10 instructions"
    with pytest.raises(BudgetExceeded, match="a pickle of more than 2,000 instructions"):
        parsed(b"N" * 2000 + b".", steps=2000)


@pytest.mark.parametrize(
    "data",
    [
        b"]" * 300_000 + b"a" * 299_999 + b".",  # lists in lists
        b")" + b"\x85" * 300_000 + b".",  # tuples in tuples
        b"N" + b"\x85q\0cos\nsystem\nh\0R" * 100_000 + b".",  # calls of calls
        b"]q\0" + b"(" + b"h\0" * 30_000 + b"e.",  # a list that holds itself
        b"]q\0" + b"0](h\0h\0eq\0" * 5_000 + b".",  # two of two of two ...
        b"}("
        + b"".join(b"\x8a\x0a" + (k * ((1 << 61) - 1)).to_bytes(10, "little") + b"N" for k in range(20_000))
        + b"u.",
    ],
    ids=["lists", "tuples", "calls", "itself", "sharing", "hashes"],
)
def test_bombs_take_no_longer_than_their_bytes(data: bytes) -> None:
    parsed(data)  # and let go of again


def test_an_index_of_the_memo_allocates_nothing() -> None:
    assert parsed(b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.") is None


def test_every_instruction_of_the_library_is_known() -> None:
    known = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
    assert set(_pickle._OPCODES) == set(known) - {ord(".")}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_end_in_a_value_or_an_error(data: bytes) -> None:
    with contextlib.suppress(Short, FormatError):
        parsed(data + b".")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_ends_in_a_value_or_an_error(draw: st.DataObject) -> None:
    data = bytearray(pickle.dumps({"a": [1, (2.5, {"b", "c"}), collections.OrderedDict(x=slice(3))]}, 2))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with contextlib.suppress(Short, FormatError):
        _pickle.parse(bytes(data), 0, "f", call=lambda *_: NotImplemented, persistent=lambda key: key)
