"""YAML read by the letter: YAML 1.2's core schema, each part with its line, and nothing that is more than plain data.

Promise: ``no``, ``on``, ``y`` and ``0:10`` are text; tags, anchors, aliases, merge keys, duplicate keys and further
documents are problems that name the line; nesting and aliases cost nothing, because events are looked at one by one.
Limit: the grammar itself is libyaml's.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightport.errors import MappingError, Problem
from weightport.mapping.document import (
    ABSENT,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    Document,
    Trail,
    bounded,
    dotted,
)
from weightport.mapping.patterns import shown

_NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NOT_PRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", re.ASCII
)


def read_document(path: str | os.PathLike[str]) -> Document:
    """The document of a YAML file.

    Raises:
        MappingError: the file cannot be read, is too large, or is not YAML in UTF-8.
    """
    name = os.fspath(path)

    def wrong(what: str, hint: str = "") -> MappingError:
        return MappingError(Problem(name, what, hint))

    try:
        mode = Path(name).stat().st_mode
        if stat.S_ISDIR(mode):
            raise wrong("expected a mapping file, found a folder")
        if not stat.S_ISREG(mode):
            raise wrong("expected a mapping file, found something that is no regular file")
        with Path(name).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise wrong("no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise wrong(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > MAX_BYTES:
        raise wrong(f"larger than the {MAX_BYTES:,} bytes that a mapping may have")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise wrong(f"not a text file in UTF-8: byte {raw[error.start]:#04x} at {error.start}") from None
    return parse_document(text, name)


def parse_document(text: str, path: str) -> Document:
    """The document of a YAML text. Problems that leave a document are noted in it.

    Raises:
        MappingError: no document is left.
    """
    import yaml  # only when a file is read

    document = Document(path, str(Path(path).parent))
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise MappingError(Problem(path, f"larger than the {MAX_BYTES:,} bytes that a mapping may have"))
    strange = _NOT_PRINTABLE.search(text)
    if strange is not None:  # libyaml would say so too, but not in which line
        line = text.count("\n", 0, strange.start()) + 1
        raise MappingError(Problem(f"{path}:{line}", f"not valid YAML: the character {strange[0]!r} is not allowed"))
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _Composer(document).compose(yaml.parse(text, Loader=loader))
    except yaml.YAMLError as error:
        mark, context = getattr(error, "problem_mark", None), getattr(error, "context", None)
        line = mark.line + 1 if mark else 1
        context = f" {context}" if context else ""
        hint = ""
        if "flow" in context and "{" in "".join(text.split("\n")[line - 1 : line]):
            hint = "inside [ ] and { } a name with braces stands in quotes: ['a/{n}', 'b/{n}']"
        document.problems.append(
            Problem(f"{path}:{line}", f"not valid YAML: {getattr(error, 'problem', error)}{context}", hint)
        )
        raise document.stop() from None
    return document


@dataclass(slots=True)
class _Open:
    """A list or table that is being read."""

    trail: Trail
    value: list[Any] | dict[str, Any]
    expects_key: bool
    key: str | None = None  # of the value that comes next; None: that value is nobody's


class _Composer:
    """Builds plain data from YAML's events, without recursion and without ever following an alias."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.stack: list[_Open] = []
        self.count = 0

    def compose(self, events: Iterator[Any]) -> None:
        import yaml

        documents = 0
        for event in events:
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents == 2:
                    raise self._fatal(line, "a second document", "a mapping file has one document: remove the '---'")
                if event.tags:
                    self._fail(line, "a %TAG directive", "a mapping is plain data: remove it")
            elif isinstance(event, yaml.NodeEvent):
                self._node(event, line)
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                self.stack.pop()
        if not documents:
            raise self._fatal(1, "the file is empty", "a mapping begins with weightport: 1")

    def _fatal(self, line: int, what: str, hint: str = "") -> MappingError:
        self._fail(line, what, hint)
        return self.document.stop()

    def _fail(self, line: int, what: str, hint: str = "", trail: Trail = ()) -> None:
        where = f"{self.document.path}:{line} {dotted(trail)}".rstrip()
        self.document.problems.append(Problem(where, what, hint))

    def _node(self, event: Any, line: int) -> None:
        import yaml

        self.count += 1
        if self.count > MAX_VALUES:
            raise self._fatal(line, f"more than the {MAX_VALUES:,} values that a mapping may have")
        opened: list[Any] | dict[str, Any] | None = None
        if isinstance(event, yaml.SequenceStartEvent):
            opened = []
        elif isinstance(event, yaml.MappingStartEvent):
            opened = {}
        if opened is not None and len(self.stack) >= MAX_DEPTH:
            raise self._fatal(line, f"nested more than {MAX_DEPTH} levels deep")
        self._refuse_extras(event, line)
        parent = self.stack[-1] if self.stack else None
        if parent is None:
            trail: Trail = ()
        elif isinstance(parent.value, list):
            trail = (*parent.trail, len(parent.value))
        elif parent.expects_key:
            parent.key = self._key(parent, event, line, opened is not None)
            parent.expects_key = False
            if opened is not None:  # what is inside a refused key is nobody's
                self.stack.append(_Open((*parent.trail, "?"), opened, isinstance(opened, dict)))
            return
        else:
            trail = (*parent.trail, "?" if parent.key is None else parent.key)
        self.document.lines.setdefault(trail, line)
        value = opened if opened is not None else self._scalar(event, trail)
        if parent is None:
            self.document.data = value
        elif isinstance(parent.value, list):
            parent.value.append(value)
        else:
            if parent.key is not None:
                parent.value[parent.key] = value
            parent.expects_key = True
        if opened is not None:
            self.stack.append(_Open(trail, opened, isinstance(opened, dict)))

    def _refuse_extras(self, event: Any, line: int) -> None:
        """Note an alias, an anchor, a tag."""
        if not hasattr(event, "tag"):
            self._fail(line, f"an alias *{event.anchor}", "a mapping has no anchors and aliases: write the value out")
            return
        if event.anchor is not None:
            self._fail(line, f"an anchor &{event.anchor}", "a mapping has no anchors and aliases: remove it")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!", 1)
            self._fail(line, f"a tag {shown(tag)}", "a mapping is plain data: remove the tag")

    def _key(self, parent: _Open, event: Any, line: int, container: bool) -> str | None:
        """The key; None and a problem if it is none."""
        value = None if container else _value(event)
        if container:
            self._fail(line, "a key that is a list or a table", "keys are text", parent.trail)
        elif value is ABSENT:  # an alias, which has been noted
            pass
        elif value == "<<" and event.implicit[0]:
            self._fail(line, "a merge key <<", "write the keys out", parent.trail)
        elif not isinstance(value, str):
            hint = f"write {quoted(event.value)}" if event.value else "write the key"
            self._fail(line, f"the key {event.value or 'null'} is not text", hint, parent.trail)
        elif value in parent.value:
            trail = (*parent.trail, value)
            first = self.document.lines[trail]
            what = f"the key {shown(value)} stands twice, first in line {first}"
            self._fail(line, what, "remove one of them", parent.trail)
            return None  # the first one counts: nothing is missing
        else:
            trail = (*parent.trail, value)
            self.document.lines[trail] = line
            return value
        self.document.refused.add(parent.trail)
        return None

    def _scalar(self, event: Any, trail: Trail) -> Any:
        value = _value(event)
        if value is ABSENT:
            self.document.refused.add(trail)
            return value
        if not isinstance(value, str):
            self.document.texts[trail] = event.value
        return bounded(self.document, trail, value, event.value)


def _value(event: Any) -> Any:
    """The value of a scalar; :data:`ABSENT` for an alias."""
    if not hasattr(event, "value"):
        return ABSENT
    return resolve(event.value) if event.implicit[0] and event.tag is None else event.value


def resolve(text: str) -> Any:
    """What a plain scalar is by YAML 1.2's core schema: None, a boolean, a number, or its text."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        # int() refuses thousands of digits, and nobody needs them.
        return int(text, base) if len(text) <= 64 else math.inf
    if _FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan")) if len(text) <= 400 else math.inf
    return text


def quoted(text: str) -> str:
    """The text in YAML's single quotes."""
    return "'" + text.replace("'", "''") + "'"
