from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightport.errors import MappingError
from weightport.mapping import read_vocab, vocab
from weightport.mapping.rules import Columns


def read(tmp_path: Path, content: bytes | str, name: str = "v.txt", columns: Columns | None = None) -> dict[str, int]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_vocab(path, columns)


def refused(tmp_path: Path, content: bytes | str, name: str = "v.txt", columns: Columns | None = None) -> str:
    with pytest.raises(MappingError) as caught:
        read(tmp_path, content, name, columns)
    return str(caught.value).removeprefix(str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\nb", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("\n[UNK]\nthe\n", ["", "[UNK]", "the"]),
        (" a\na \n", [" a", "a "]),
        ("a\u2028b\n\x0b\n\x85\n", ["a\u2028b", "\x0b", "\x85"]),
        ("\ufeffé\n", ["é"]),
    ],
)
def test_one_word_a_line(tmp_path: Path, content: str, words: list[str]) -> None:
    assert read(tmp_path, content) == {w: k for k, w in enumerate(words)}


def test_json(tmp_path: Path) -> None:
    assert read(tmp_path, '["a", "", "é"]', "v.json") == {"a": 0, "": 1, "é": 2}
    assert read(tmp_path, '{"b": 1, "a": 0, "z": 7}', "v.JSON") == {"b": 1, "a": 0, "z": 7}


def test_columns(tmp_path: Path) -> None:
    pieces = "<unk>\t0\n\u2581the\t-3.2\n\u2581\t-4\n"  # as sentencepiece writes its vocabulary
    assert read(tmp_path, pieces, "v.tsv") == {"<unk>": 0, "\u2581the": 1, "\u2581": 2}
    assert read(tmp_path, "a\nb\r\n", "v.TSV") == {"a": 0, "b": 1}
    assert read(tmp_path, "a\t0\nb\t1\n", "v.tsv") == {"a": 0, "b": 1}
    table = "word\tid\nb\t1\na\t0\n"
    assert read(tmp_path, table, "v.tsv", Columns(row=1, header=True)) == {"b": 1, "a": 0}
    assert read(tmp_path, table, "v.tsv", Columns(header=True)) == {"b": 0, "a": 1}
    assert read(tmp_path, table, "v.tsv", Columns(header=False)) == {"word": 0, "b": 1, "a": 2}
    assert read(tmp_path, "7\tx\t9\n", "v.txt", Columns(word=1, row=0)) == {"x": 7}


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        (
            "b\t1\na\t0\n",
            None,
            ": column 1 numbers the rows in another order than that of the lines; "
            "say which: {file: ..., word: 0, row: 1}, or {file: ..., word: 0} for the order of the lines",
        ),
        (
            "word\tcount\nthe\t17\n",
            None,
            ":1: the first line may be a header: 'count' stands above numbers; "
            "say so in the mapping: {file: ..., header: true}, or header: false",
        ),
        ("a\t1\nb\n", Columns(row=1), ":2: 1 column, expected at least 2"),
        ("a\t1\nb\tx\n", Columns(row=1, header=False), ": the word 'b' has no row number: 'x'"),
        ("a\t1\nb\t1\n", Columns(row=1), ": row 1 has two words, 'a' and 'b'"),
        ("a\t1\na\t2\n", Columns(row=1), ":2: the word 'a' stands twice"),
        ("w\na\na\n", Columns(header=True), ":3: the word 'a' stands twice, first in line 2"),
        ("w\n", Columns(header=True), ": no words"),
        ("w\tr\n", Columns(row=1, header=True), ": no words"),
    ],
)
def test_columns_that_are_wrong(tmp_path: Path, content: str, columns: Columns | None, message: str) -> None:
    assert refused(tmp_path, content, "v.tsv", columns) == message


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("a\nb\na\n", "v.txt", ":3: the word 'a' stands twice, first in line 1"),
        ("", "v.txt", ": no words"),
        (b"a\n\xff\n", "v.txt", ": not UTF-8: byte 0xff at 2"),
        ('["a", "b", "a"]', "v.json", ": the word 'a' stands twice, as entries 0 and 2"),
        ('["a", 1]', "v.json", ": entry 1 is not a word: 1"),
        ('{"a": 0, "a": 1}', "v.json", ": the word 'a' stands twice"),
        ('{"a": 0, "b": 0}', "v.json", ": row 0 has two words, 'a' and 'b'"),
        ('{"a": "0"}', "v.json", ": the word 'a' has no row number: '0'"),
        ('{"a": -1}', "v.json", ": the word 'a' has no row number: -1"),
        ('{"a": true}', "v.json", ": the word 'a' has no row number: True"),
        ("3", "v.json", ": expected a list of words or a table {word: row}"),
        ("[]", "v.json", ": expected a list of words or a table {word: row}"),
        ("[", "v.json", ": not valid JSON: Expecting value: line 1 column 2 (char 1)"),
        ("[" * 200_000, "v.json", ": not valid JSON: "),
        ('{"a": ' + "9" * 5000 + "}", "v.json", ": not valid JSON: "),
    ],
)
def test_what_is_no_vocabulary(tmp_path: Path, content: bytes | str, name: str, message: str) -> None:
    found = refused(tmp_path, content, name)
    assert found.startswith(message) if message.endswith(": ") else found == message


def test_files_that_are_none(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "not a regular file"),
        (tmp_path / "x", "cannot be read: No such file or directory"),
    ):
        with pytest.raises(MappingError) as caught:
            read_vocab(path)
        assert str(caught.value) == f"{path}: {message}"


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocab, "MAX_WORDS", 2)
    assert refused(tmp_path, "a\nb\nc\n") == ": more than 2 words"
    assert refused(tmp_path, '["a", "b", "c"]', "v.json") == ": more than 2 words"
    monkeypatch.setattr(vocab, "MAX_BYTES", 5)
    assert refused(tmp_path, "a\nb\nc\n") == ": larger than 5 bytes"


@given(
    words=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r")), min_size=1, unique=True
    )
)
def test_all_forms_say_the_same(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    folder = tmp_path_factory.mktemp("v")
    expected = {w: k for k, w in enumerate(words)}
    text = "".join(w + "\n" for w in words)
    if not text.startswith("\ufeff"):
        assert read(folder, text) == expected
    assert read(folder, json.dumps(words), "a.json") == expected
    assert read(folder, json.dumps(expected), "b.json") == expected
