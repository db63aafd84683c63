"""Vocabulary files: one word a line, tab-separated columns, or JSON as a list of words or as ``{word: row}``.

Promise: each word has one row and each row one word, or the file is an error that names the line; the file's size and
the number of words are bounded; where a table of columns can be read in two ways, the mapping has to say which.
Limit: UTF-8 only. A line is what stands before a line feed (and a carriage return before it), spaces included; an empty
line is the empty word (the padding of some vocabularies). Columns are not quoted: a word holds no tab.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from weightport.errors import MappingError, Problem
from weightport.mapping.patterns import shown
from weightport.mapping.rules import Columns

MAX_BYTES = 1 << 28
MAX_WORDS = 10_000_000
_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)


def read_vocab(path: str | os.PathLike[str], columns: Columns | None = None) -> dict[str, int]:
    """Word -> row, in the order of the file.

    Args:
        path: JSON if it ends with ``.json``; columns if it ends with ``.tsv``; else one word a line.
        columns: which columns are what, whatever the name ends with.

    Raises:
        MappingError: the file cannot be read, is too large, is not of that form, or has a word or a row twice.
    """
    name = os.fspath(path)
    try:
        if not stat.S_ISREG(Path(name).stat().st_mode):
            _fail(name, "not a regular file")
        with Path(name).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        _fail(name, f"cannot be read: {error.strerror or error}")
    if len(raw) > MAX_BYTES:
        _fail(name, f"larger than {MAX_BYTES:,} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _fail(name, f"not UTF-8: byte {raw[error.start]:#04x} at {error.start}")
    if columns is not None or name.lower().endswith(".tsv"):
        return _from_columns(name, text, columns)
    return _from_json(name, text) if name.lower().endswith(".json") else _from_lines(name, text)


def _fail(name: str, what: str, hint: str = "") -> NoReturn:
    raise MappingError(Problem(name, what, hint))


def _lines(name: str, text: str) -> list[str]:
    lines = text.split("\n")  # splitlines() also breaks at characters that are words of their own
    if not lines[-1]:
        lines.pop()
    if len(lines) > MAX_WORDS:
        _fail(name, f"more than {MAX_WORDS:,} words")
    return [line.removesuffix("\r") for line in lines]


def _from_lines(name: str, text: str) -> dict[str, int]:
    return _numbered(name, _lines(name, text), 1)


def _numbered(name: str, words: Sequence[str], first: int) -> dict[str, int]:
    """Words in the order of their rows, which stand in the lines from the ``first`` on."""
    rows: dict[str, int] = {}
    for row, word in enumerate(words):
        if word in rows:
            _fail(f"{name}:{row + first}", f"the word {shown(word)} stands twice, first in line {rows[word] + first}")
        rows[word] = row
    return rows or _fail(name, "no words")


def _from_columns(name: str, text: str, columns: Columns | None) -> dict[str, int]:
    given = columns or Columns()
    table = [line.split("\t") for line in _lines(name, text)]
    first = 1
    if given.header or (given.header is None and _is_header(name, table)):
        table, first = table[1:], 2
    for number, cells in enumerate(table, first):
        if len(cells) <= max(given.word, given.row or 0):
            wanted = max(given.word, given.row or 0) + 1
            _fail(f"{name}:{number}", f"{len(cells)} column{'s' if len(cells) > 1 else ''}, expected at least {wanted}")
    if columns is None and (column := _other_order(table)):
        hint = f"say which: {{file: ..., word: 0, row: {column}}}, or {{file: ..., word: 0}} for the order of the lines"
        _fail(name, f"column {column} numbers the rows in another order than that of the lines", hint)
    if given.row is None:
        return _numbered(name, [cells[given.word] for cells in table], first)
    rows: dict[str, Any] = {}
    for number, cells in enumerate(table, first):
        word, row = cells[given.word], cells[given.row]
        if word in rows:
            _fail(f"{name}:{number}", f"the word {shown(word)} stands twice")
        rows[word] = int(row) if _NUMBER.fullmatch(row) else row
    return _checked(name, rows) if rows else _fail(name, "no words")


def _is_header(name: str, table: list[list[str]]) -> bool:
    """False, unless the first line may be one, which only the mapping can tell."""
    if len(table) < 2 or len(table[0]) < 2:
        return False
    for column in range(1, len(table[0])):
        rest = [cells[column] for cells in table[1:] if len(cells) > column]
        if len(rest) == len(table) - 1 and all(map(_is_number, rest)) and not _is_number(table[0][column]):
            what = f"the first line may be a header: {shown(table[0][column])} stands above numbers"
            _fail(f"{name}:1", what, "say so in the mapping: {file: ..., header: true}, or header: false")
    return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _other_order(table: list[list[str]]) -> int:
    """A column that holds the number of each row from 0 on, in another order than the lines; 0 if there is none."""
    for column in range(1, min(map(len, table), default=0)):
        texts = [cells[column] for cells in table]
        if all(map(_NUMBER.fullmatch, texts)):
            numbers = [int(text) for text in texts]
            if numbers != sorted(numbers) and sorted(numbers) == list(range(len(numbers))):
                return column
    return 0


def _from_json(name: str, text: str) -> dict[str, int]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for word, row in pairs:
            if word in table:
                _fail(name, f"the word {shown(word)} stands twice")
            table[word] = row
        return table

    try:
        data = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _fail(name, f"not valid JSON: {error}")
    if not isinstance(data, (list, dict)) or not data:
        _fail(name, "expected a list of words or a table {word: row}")
    if len(data) > MAX_WORDS:
        _fail(name, f"more than {MAX_WORDS:,} words")
    if isinstance(data, dict):
        return _checked(name, data)
    rows: dict[str, int] = {}
    for row, word in enumerate(data):
        if not isinstance(word, str):
            _fail(name, f"entry {row} is not a word: {shown(repr(word))[1:-1]}")
        if word in rows:
            _fail(name, f"the word {shown(word)} stands twice, as entries {rows[word]} and {row}")
        rows[word] = row
    return rows


def _checked(name: str, rows: dict[str, Any]) -> dict[str, int]:
    words: dict[int, str] = {}
    for word, row in rows.items():
        if type(row) is not int or not 0 <= row < 1 << 48:
            _fail(name, f"the word {shown(word)} has no row number: {shown(repr(row))[1:-1]}")
        if row in words:
            _fail(name, f"row {row} has two words, {shown(words[row])} and {shown(word)}")
        words[row] = word
    return rows
