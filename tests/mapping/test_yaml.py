from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightport.errors import MappingError, printable
from weightport.mapping import load_mapping, parse_mapping
from weightport.mapping._yaml import parse_document, resolve
from weightport.mapping.document import MAX_BYTES, MAX_DEPTH, MAX_VALUES, plain_document


def data_of(text: str) -> Any:
    document = parse_document(text, "m.yaml")
    assert document.problems == []
    return document.data


def refused(text: str) -> list[str]:
    with pytest.raises(MappingError) as caught:
        parse_mapping(text, "m.yaml")
    return [str(p) for p in caught.value.problems]


HEAD = "weightport: 1\nrules:\n  - {from: a, to: b}\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[
            (t, t)
            for t in ("no", "No", "NO", "yes", "on", "off", "y", "n", "0:10", "1:30", "1_000", "0b1", "=", "2024-01-01")
        ],
        *[(t, t) for t in ("0x", "1e", "e1", "+", ".", "-", "nulll", "١", "0o8", "1.2.3", "tRue", "- 1"[2:] + "a")],
        *[(t, None) for t in ("", "~", "null", "Null", "NULL")],
        *[(t, True) for t in ("true", "True", "TRUE")],
        *[(t, False) for t in ("false", "False", "FALSE")],
        *[("0", 0), ("-1", -1), ("+7", 7), ("007", 7), ("0o17", 15), ("0x1F", 31)],
        *[("1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("-2.5E-1", -0.25), ("1e-5", 1e-5)],
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert (resolve(text), type(resolve(text))) == (value, type(value))


def test_text_that_other_readers_take_for_booleans_stays_text() -> None:
    assert data_of("no: on\ny: [off, yes, n]\nslice: 0:10\n") == {"no": "on", "y": ["off", "yes", "n"], "slice": "0:10"}
    assert data_of("a: 'true'\nb: \"1\"\nc: |\n  2\n'3': 4\n") == {"a": "true", "b": "1", "c": "2\n", "3": 4}


def test_a_tensor_may_be_called_no() -> None:
    rule = parse_mapping("weightport: 1\nrules: [{from: no, to: y}]\n").rules[0]
    assert [p.text for p in (*rule.sources, *rule.targets)] == ["no", "y"]  # type: ignore[union-attr]


def test_lines_are_those_of_keys_and_items() -> None:
    document = parse_document("# c\na: 1\nb:\n  - x\n  - c: 2\n    d:\n\n      e: [1,\n  2]\n", "m.yaml")
    assert document.lines == {
        (): 2,
        ("a",): 2,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 1): 5,
        ("b", 1, "c"): 5,
        ("b", 1, "d"): 6,
        ("b", 1, "d", "e"): 8,
        ("b", 1, "d", "e", 0): 8,
        ("b", 1, "d", "e", 1): 9,
    }
    assert document.where(("b", 1, "d")) == "m.yaml:6 b[1].d"
    assert document.where(("b", 1, "missing")) == "m.yaml:5 b[1].missing"
    assert document.where(()) == "m.yaml:2"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("a: !!python/object:os.system x", ["m.yaml:4: a tag '!!python/object:os.system'; {plain}"]),
        ("a: !mine [1]", ["m.yaml:4: a tag '!mine'; {plain}"]),
        ("a: ! x", ["m.yaml:4: a tag '!'; {plain}"]),
        ("ignore: &a [x]\nkeep: *a", ["m.yaml:4: an anchor &a; {remove}", "m.yaml:5: an alias *a; {write}"]),
        ("source: {<<: *a}", ["m.yaml:4 source: a merge key <<; write the keys out", "m.yaml:4: an alias *a; {write}"]),
        ("keep: [a]\nkeep: [b]", ["m.yaml:5: the key 'keep' stands twice, first in line 4; remove one of them"]),
        (
            "source:\n  scope: a\n  'scope': b\n  scope: c",
            [f"m.yaml:{n} source: the key 'scope' stands twice, first in line 5; remove one of them" for n in (6, 7)],
        ),
        ("1: a", ["m.yaml:4: the key 1 is not text; write '1'"]),
        ("null: a", ["m.yaml:4: the key null is not text; write 'null'"]),
        ("source: {? : a}", ["m.yaml:4 source: the key null is not text; write the key"]),
        ("? [a, {b: 1}]\n: c\nkeep: [d]", ["m.yaml:4: a key that is a list or a table; keys are text"]),
        ("? {a: 1}\nkeep: [d]", ["m.yaml:4: a key that is a list or a table; keys are text"]),
        ("---\na: 1", ["m.yaml:4: a second document; a mapping file has one document: remove the '---'"]),
        ("a: [1, 2", ["m.yaml:5: not valid YAML: did not find expected ',' or ']' while parsing a flow sequence"]),
        (
            "keep: [a_{n}/b]",
            [
                "m.yaml:4: not valid YAML: did not find expected ',' or ']' while parsing a flow sequence; "
                "inside [ ] and { } a name with braces stands in quotes: ['a/{n}', 'b/{n}']"
            ],
        ),
        ("a: b: c", ["m.yaml:4: not valid YAML: mapping values are not allowed in this context"]),
        ("é: é\n# \ud800", ["m.yaml:5: not valid YAML: the character '\\ud800' is not allowed"]),
        ("a: \x01", ["m.yaml:4: not valid YAML: the character '\\x01' is not allowed"]),
        (
            "\ta: 1",
            ["m.yaml:4: not valid YAML: found character that cannot start any token while scanning for the next token"],
        ),
        ("*a : 1", ["m.yaml:4: an alias *a; a mapping has no anchors and aliases: write the value out"]),
        ("source: {scope: .nan}", ["m.yaml:4 source.scope: expected a finite number, found '.nan'"]),
        ("source: {scope: 1e999}", ["m.yaml:4 source.scope: expected a finite number, found '1e999'"]),
        (
            "source: {scope: 18446744073709551616}",
            ["m.yaml:4 source.scope: expected an integer of at most 64 bits, found '18446744073709551616'"],
        ),
        (
            f"source: {{scope: {'9' * 5000}}}",
            [f"m.yaml:4 source.scope: expected a finite number, found '{'9' * 40}'...'{'9' * 20}'"],
        ),
    ],
)
def test_more_than_plain_data_is_refused_with_its_line(text: str, messages: list[str]) -> None:
    words = {
        "plain": "a mapping is plain data: remove the tag",
        "remove": "a mapping has no anchors and aliases: remove it",
        "write": "a mapping has no anchors and aliases: write the value out",
    }
    expected = [m.format(**words) if m.endswith(("{plain}", "{remove}", "{write}")) else m for m in messages]
    assert [m for m in refused(HEAD + text) if "unknown key" not in m] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.yaml:1: the file is empty; a mapping begins with weightport: 1"),
        ("# only a comment\n", "m.yaml:1: the file is empty; a mapping begins with weightport: 1"),
        ("- a\n", "m.yaml:1: expected a table with weightport and rules, found a list"),
        ("\nhello\n", "m.yaml:2: expected a table with weightport and rules, found 'hello'"),
        ("---\n---\n", "m.yaml:2: a second document; a mapping file has one document: remove the '---'"),
        (
            "weightport: 2\nrulse: []\n",
            "m.yaml:1 weightport: expected version 1, found 2; a newer weightport may read it",
        ),
        ("weightport: 0\n", "m.yaml:1 weightport: expected version 1, found 0"),
    ],
)
def test_one_message_where_nothing_else_can_be_said(text: str, message: str) -> None:
    assert refused(text) == [message]


def test_a_tag_directive() -> None:
    assert refused("%TAG ! tag:x,2000:\n---\n" + HEAD) == [
        "m.yaml:1: a %TAG directive; a mapping is plain data: remove it"
    ]
    assert parse_mapping("%YAML 1.2\n---\n" + HEAD).rules[0].name == "rules[0]"


# --- files ------------------------------------------------------------------------------------------------------------


def file_refused(path: Path | str) -> str:
    with pytest.raises(MappingError) as caught:
        load_mapping(path)
    (problem,) = caught.value.problems
    assert problem.where == printable(str(path))
    return problem.what


def test_files_that_are_none(tmp_path: Path) -> None:
    def file(content: bytes) -> Path:
        path = tmp_path / "m.yaml"
        path.write_bytes(content)
        return path

    assert file_refused(tmp_path / "none.yaml") == "no such file"
    assert file_refused(tmp_path) == "expected a mapping file, found a folder"
    assert file_refused(str(tmp_path / ("x" * 300))) == "cannot be read: File name too long"
    assert file_refused("a\0b") == "cannot be read: embedded null byte"
    assert file_refused(file(b"weightport: 1\nrules: \xff")) == "not a text file in UTF-8: byte 0xff at 21"
    assert file_refused(file(b"\x89HDF\r\n\x1a\n" + bytes(100))) == "not a text file in UTF-8: byte 0x89 at 0"
    assert file_refused(file(b"#" * (MAX_BYTES + 1))) == "larger than the 1,048,576 bytes that a mapping may have"
    os.mkfifo(tmp_path / "fifo")
    assert file_refused(tmp_path / "fifo") == "expected a mapping file, found something that is no regular file"


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
    mapping = load_mapping(path)
    assert (mapping.path, mapping.rules[0].where) == (str(path), f"{path}:3 rules[0]")


# --- hostile texts ----------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 100))


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("[" * 500_000, "m.yaml:1: n"),  # libyaml may be the first to see it
        ("{a: " * 200_000, f"m.yaml:1: nested more than {MAX_DEPTH} levels deep"),
        ("- " * 500_000, f"m.yaml:1: nested more than {MAX_DEPTH} levels deep"),
        ("? " * 500_000, f"m.yaml:1: nested more than {MAX_DEPTH} levels deep"),
        ("".join(" " * k + "a:\n" for k in range(1000)), f"m.yaml:33: nested more than {MAX_DEPTH} levels deep"),
        (LAUGHS, "m.yaml: and more problems after these"),
        ("[" + "1," * 500_000 + "]", f"m.yaml:1: more than the {MAX_VALUES:,} values that a mapping may have"),
        ("a: 1\n" * 49_000, "m.yaml: and more problems after these"),
        ("".join(f"k{k}: 1\n" for k in range(49_000)), "m.yaml: and more problems after these"),
        ("weightport: 1\nrules:\n" + "- 1\n" * 90_000, "m.yaml: and more problems after these"),
        ("weightport: 1\nrules:\n" + "- {from: '{', to: '}'}\n" * 15_000, "m.yaml: and more problems after these"),
        (
            "weightport: 1\nrules:\n" + "- {from: {layout: lstm.krs, scope: ''}, to: x}\n" * 9_000,
            "m.yaml: and more problems after these",
        ),
        (
            "weightport: 1\nrules:\n" + "- {to: x, initialize: {glorot: {}}}\n" * 9_000,
            "m.yaml: and more problems after these",
        ),
        (
            "weightport: 1\nrules:\n" + "- {from: x, to: x, cast: flaot}\n" * 9_000,
            "m.yaml: and more problems after these",
        ),
        ("weightport: 1\n" + "k" * 1_000_000 + ": 1\n", "m.yaml:2: not valid YAML"),
        ("weightport: 1\nrules: [{from: a, to: b}]\n? " + "k" * 1_000_000 + "\n: 1\n", "m.yaml:3: unknown key 'kkk"),
        ("weightport: 1\nrules: [{from: " + "x" * 1_000_000 + ", to: '{'}]", "m.yaml:2 rules[0].to: '{' in '{' is no"),
        ("a: " + "é" * 600_000, "m.yaml: larger than the 1,048,576 bytes that a mapping may have"),
        ("a: '" + "\\\n" * 500_000, "m.yaml:500001: not valid YAML: found unexpected end of stream"),
        ("a: " + "&" * 1_000_000, "m.yaml:1: not valid YAML"),
        ("%" * 1_000_000, "m.yaml:1: not valid YAML"),
        ('"' + "a" * 1_000_000, "m.yaml:1: not valid YAML"),
    ],
    ids=range(22),
)
def test_hostile_texts_are_refused(text: str, last: str) -> None:
    messages = refused(text)
    assert messages[-1].startswith(last)
    assert len(messages) <= 101
    assert all(len(m) < 500 for m in messages)


# --- dicts ------------------------------------------------------------------------------------------------------------


def dict_refused(data: Any) -> list[str]:
    with pytest.raises(MappingError) as caught:
        load_mapping(data)
    return [str(p) for p in caught.value.problems]


def test_dicts_go_the_same_way() -> None:
    rules = [{"from": "a", "to": "b"}]
    mapping = load_mapping({"weightport": 1, "rules": rules})
    rules[0]["from"] = "changed"
    assert mapping.document == {"weightport": 1, "rules": [{"from": "a", "to": "b"}]}
    assert (mapping.path, mapping.rules[0].where, mapping.rules[0].name) == ("", "rules[0]", "rules[0]")
    assert load_mapping(mapping) is mapping
    assert dict_refused({"weightport": 1, "rules": [{"from": "a", 1: "x", "too": "b"}]}) == [
        "rules[0]: the key 1 is not text",
        "rules[0]: unknown key 'too'; closest: 'to'",
    ]
    assert dict_refused({"weightport": 1, "rules": [{"from": b"a", "to": "b"}, {"from": "a", "to": {1}}]}) == [
        "rules[0].from: expected plain data, found a value of type bytes",
        "rules[1].to: expected plain data, found a value of type set",
    ]
    assert dict_refused({}) == [
        "mapping: no key 'weightport'; a mapping begins with weightport: 1",
        "mapping: no key 'rules'",
    ]
    with pytest.raises(MappingError, match=r"^expected a path, a dict or a Mapping, found int$"):
        load_mapping(3)  # type: ignore[arg-type]


def test_dicts_without_an_end() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert dict_refused({"weightport": 1, "rules": loop}) == ["mapping: nested more than 32 levels deep"]
    wide: Any = "x"
    for _ in range(30):
        wide = [wide] * 10
    assert dict_refused({"weightport": 1, "rules": wide}) == [
        f"mapping: more than the {MAX_VALUES:,} values that a mapping may have"
    ]
    long = ["x" * 100_000] * 11
    assert dict_refused({"keep": long}) == [f"mapping: more than the {MAX_BYTES:,} characters that a mapping may have"]
    found = dict_refused({"weightport": 1, "rules": [{"from": 10**5000, "to": float("inf")}]})
    assert found == [
        "rules[0].from: expected an integer of at most 64 bits, found '16610 bits'",
        "rules[0].to: expected a finite number, found 'inf'",
    ]


DEEP = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), DEEP, max_size=4))
def test_plain_data_is_copied_as_it_is(data: dict[str, Any]) -> None:
    document = plain_document(data)
    assert document.data == data
    assert document.problems == []


@given(st.text(max_size=60) | st.text("-?:{}[],&*!|>'\"%@`#ab1 \n\t~<", max_size=60))
def test_no_text_brings_the_loader_down(text: str) -> None:
    with pytest.raises(MappingError):
        parse_mapping(text)
