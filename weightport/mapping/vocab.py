"""Vocabulary files: one word a line, or JSON as a list of words or as ``{word: row}``.

Promise: each word has one row and each row one word, or the file is an error that names the line; the file's size and
the number of words are bounded. Limit: UTF-8 only. A line is what stands before a line feed (and a carriage return
before it), spaces included; an empty line is the empty word (the padding of some vocabularies).
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from weightport.errors import MappingError, Problem
from weightport.mapping.patterns import shown

MAX_BYTES = 1 << 28
MAX_WORDS = 10_000_000


def read_vocab(path: str | os.PathLike[str]) -> dict[str, int]:
    """Word -> row, in the order of the file. The file is JSON if its name ends with ``.json``.

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
    return _from_json(name, text) if name.lower().endswith(".json") else _from_lines(name, text)


def _fail(name: str, what: str, hint: str = "") -> NoReturn:
    raise MappingError(Problem(name, what, hint))


def _from_lines(name: str, text: str) -> dict[str, int]:
    lines = text.split("\n")  # splitlines() also breaks at characters that are words of their own
    if not lines[-1]:
        lines.pop()
    if len(lines) > MAX_WORDS:
        _fail(name, f"more than {MAX_WORDS:,} words")
    rows: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        word = line.removesuffix("\r")
        if word in rows:
            _fail(f"{name}:{number}", f"the word {shown(word)} stands twice, first in line {rows[word] + 1}")
        rows[word] = number - 1
    return rows or _fail(name, "no words")


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
