"""Plain data, where each part of it stands, and what is wrong with it; the same for YAML and for a dict.

Promise: the data is null, booleans, finite numbers and text, in lists and in tables with text keys, whatever came in.
Limit: at most 1 MiB, 32 levels and 100,000 values; integers fit 64 bits.
"""

from __future__ import annotations

import collections.abc
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from weightport.errors import MappingError, Problem
from weightport.mapping.patterns import shown

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 100_000
#: Problems that one error lists.
MAX_PROBLEMS = 100

#: The keys and positions that lead to a value: ``("rules", 3, "from")``.
Trail: TypeAlias = tuple[str | int, ...]

_PLAIN_KEY = re.compile(r"[\w.+-]+")


class _Absent:
    """Stands for a value that was refused, so that no second message is written about it."""


ABSENT = _Absent()


@dataclass(slots=True)
class Document:
    """What was read, and where each part of it stands.

    Attributes:
        path: the file as it was named; ``""`` for a dict.
        folder: the folder whose files the mapping may name.
        data: the plain data; :data:`ABSENT` stands for refused values.
        lines: the line of each key and list item (1-based); empty for a dict.
        texts: how scalars that are not text are spelled in the file.
        refused: where values were refused, and the tables that lost a key.
        problems: what is wrong so far.
    """

    path: str
    folder: str
    data: Any = None
    lines: dict[Trail, int] = field(default_factory=dict)
    texts: dict[Trail, str] = field(default_factory=dict)
    refused: set[Trail] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def where(self, trail: Trail, at: Trail | None = None) -> str:
        """``mappings/asr.yaml:12 rules[3].from``; the line is that of ``at`` if it is given."""
        label = dotted(trail)
        if not self.path:
            return label or "mapping"
        position = trail if at is None else at
        while position and position not in self.lines:
            position = position[:-1]
        line = f"{self.path}:{self.lines.get(position, 1)}"
        return f"{line} {label}" if label else line

    def fail(self, trail: Trail, what: str, hint: str = "", at: Trail | None = None) -> None:
        """Note a problem."""
        self.problems.append(Problem(self.where(trail, at), what, hint))

    def refuse(self, trail: Trail, what: str, hint: str = "") -> None:
        """Note a problem with a value, and that nothing more is to be said about it."""
        self.refused.add(trail)
        self.fail(trail, what, hint)

    @property
    def full(self) -> bool:
        """More problems than will be listed: looking for more, and for what is nearest, would only take time."""
        return len(self.problems) > 2 * MAX_PROBLEMS

    def stop(self) -> MappingError:
        """The error that reports every problem so far, in the order of the file."""
        unique = sorted(dict.fromkeys(self.problems), key=lambda p: self._line(p.where))
        if len(unique) > MAX_PROBLEMS:
            unique = [*unique[:MAX_PROBLEMS], Problem(self.path or "mapping", "and more problems after these")]
        return MappingError(unique)

    def _line(self, where: str) -> int:
        found = re.match(r":([0-9]+)(?: |$)", where[len(self.path) :]) if self.path else None
        return int(found[1]) if found else 0


def dotted(trail: Trail) -> str:
    """``rules[3].from``."""
    label = ""
    for part in trail:
        if isinstance(part, int):
            label += f"[{part}]"
        else:
            key = part if _PLAIN_KEY.fullmatch(part) and len(part) <= 80 else shown(part)
            label += f".{key}" if label else key
    return label


def bounded(document: Document, trail: Trail, value: Any, text: str) -> Any:
    """The value, or :data:`ABSENT` and a problem if it is a number that no mapping needs."""
    if isinstance(value, float) and not math.isfinite(value):
        document.refuse(trail, f"expected a finite number, found {shown(text)}")
        return ABSENT
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        document.refuse(trail, f"expected an integer of at most 64 bits, found {shown(text)}")
        return ABSENT
    return value


def plain_document(data: collections.abc.Mapping[str, Any]) -> Document:
    """The document of a dict: a copy of it, in which every value has been looked at.

    Raises:
        MappingError: it is too deep (perhaps it contains itself) or too large.
    """
    document = Document("", str(Path.cwd()))
    document.data = _Copier(document).copy(data, ())
    return document


class _Copier:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = self.size = 0

    def copy(self, value: Any, trail: Trail) -> Any:
        """A plain copy; the depth bounds the recursion."""
        self.count += 1
        self.size += len(value) if isinstance(value, str) else 0
        if len(trail) >= MAX_DEPTH and isinstance(value, (list, tuple, collections.abc.Mapping)):
            raise self._fatal(f"nested more than {MAX_DEPTH} levels deep")
        if self.count > MAX_VALUES:
            raise self._fatal(f"more than the {MAX_VALUES:,} values that a mapping may have")
        if self.size > MAX_BYTES:
            raise self._fatal(f"more than the {MAX_BYTES:,} characters that a mapping may have")
        if value is None or type(value) in (bool, str):
            return value
        if type(value) in (int, float):
            # Thousands of digits take long to write, and Python refuses to.
            text = str(value) if type(value) is float or value.bit_length() < 100 else f"{value.bit_length()} bits"
            return bounded(self.document, trail, value, text)
        if isinstance(value, (list, tuple)):
            return [self.copy(item, (*trail, k)) for k, item in enumerate(value)]
        if isinstance(value, collections.abc.Mapping):
            return self._table(value, trail)
        self.document.refuse(trail, f"expected plain data, found a value of type {type(value).__name__}")
        return ABSENT

    def _table(self, value: collections.abc.Mapping[Any, Any], trail: Trail) -> dict[str, Any]:
        table = {}
        for key, item in value.items():
            if type(key) is not str:
                self.document.fail(trail, f"the key {shown(repr(key))[1:-1]} is not text")
                self.document.refused.add(trail)
            else:
                self.size += len(key)
                table[key] = self.copy(item, (*trail, key))
        return table

    def _fatal(self, what: str) -> MappingError:
        self.document.fail((), what)
        return self.document.stop()
