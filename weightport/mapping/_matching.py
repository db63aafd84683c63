"""The one matcher behind patterns and globs: literals with gaps between them.

Promise: exactly what a backtracking regular expression with lazy quantifiers finds, that is the leftmost gaps as short
as possible, in time linear in the text for a given list of gaps. Limit: where a name repeats or is computed (matching
those is NP-hard in general) the search is exact up to :data:`MAX_STEPS` and then gives up with an error.

Why it is linear: a gap that failed from some start fails from every later start in the same run (the text up to the
next character it may not hold), because the later start has only a part of the same candidates. So each gap looks at
each position once. And the first start that a gap is tried from is the earliest that it can have: where one that may
hold every character fails, the whole search has failed. Neither holds where a name repeats or is computed.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Candidates tried for one text by a search that cannot be made linear.
MAX_STEPS = 20_000

#: Digits of a number in a name: enough for a nanosecond clock, and int() stays cheap.
MAX_DIGITS = 18
_NUMBER = re.compile(rf"0|[1-9][0-9]{{0,{MAX_DIGITS - 1}}}", re.ASCII)


class TooAmbiguous(Exception):
    """The search gave up after :data:`MAX_STEPS`."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A part of a pattern that stands for a run of text that is not known.

    Attributes:
        least: how many characters it takes at least.
        stop: the characters that it may not hold.
        name: the text is bound to this name; None binds nothing.
        shift: the text is a number, and the name is bound to that number minus ``shift``; None is plain text.
        folders: ``**/`` at the start of a folder: what it takes is empty or ends with a slash.
    """

    least: int = 1
    stop: str = ""
    name: str | None = None
    shift: int | None = None
    folders: bool = False


#: One character other than ``/``.
ANY = object()


class Literal:
    """Text of a known length: characters, and :data:`ANY`."""

    __slots__ = ("_regex", "_text", "length")

    def __init__(self, items: Sequence[object]) -> None:
        self.length = sum(len(i) if isinstance(i, str) else 1 for i in items)
        self._text = "".join(i for i in items if isinstance(i, str))
        # No quantifier in it: a search never goes back further than its own length.
        pattern = "".join(re.escape(i) if isinstance(i, str) else "[^/]" for i in items)
        self._regex = None if len(self._text) == self.length else re.compile(pattern)

    @property
    def prefix(self) -> str:
        """The text; empty if it is not all known."""
        return "" if self._regex else self._text

    def at(self, text: str, position: int) -> bool:
        """True if it stands at ``position`` of ``text``."""
        if self._regex is None:
            return text.startswith(self._text, position)
        return self._regex.match(text, position) is not None

    def find(self, text: str, low: int, high: int) -> int:
        """The first start from ``low`` to ``high``, or -1."""
        if self._regex is None:
            return text.find(self._text, low, high + self.length)
        found = self._regex.search(text, low, high + self.length)
        return found.start() if found else -1


def number(text: str) -> int | None:
    """The number that ``text`` is, if it is one in plain decimal notation without leading zeros."""
    return int(text) if _NUMBER.fullmatch(text) else None


def spelled(bound: str, shift: int) -> str | None:
    """What a capture with arithmetic stands for: the bound number plus ``shift``; None if that is no number >= 0."""
    base = int(bound) if bound.isascii() and bound.isdigit() and len(bound) <= MAX_DIGITS else None
    return None if base is None or base + shift < 0 else str(base + shift)


class Matcher:
    """A compiled list of literals and gaps."""

    __slots__ = ("_gaps", "_linear", "_literals", "_pending", "_stops")

    def __init__(self, parts: Sequence[object]) -> None:
        """``parts``: texts, :data:`ANY` and gaps."""
        self._gaps: list[Gap] = []
        literals: list[list[object]] = [[]]
        for part in parts:
            if isinstance(part, Gap):
                self._gaps.append(part)
                literals.append([])
            else:
                literals[-1].append(part)
        self._literals = [Literal(items) for items in literals]
        self._stops = {stop: re.compile(f"[{re.escape(stop)}]") for stop in {g.stop for g in self._gaps} if stop}
        named = [g.name for g in self._gaps if g.name is not None]
        repeated = {n for n in named if named.count(n) > 1}
        self._linear = not repeated and all(g.shift is None for g in self._gaps)
        # For each gap: the names whose binding decides what follows.
        self._pending = [
            tuple(sorted(repeated & {g.name for g in self._gaps[k:] if g.name is not None}))
            for k in range(len(self._gaps))
        ]

    @property
    def head(self) -> str:
        """The literal text before the first gap; the whole text if there is none."""
        return self._literals[0].prefix

    def match(self, text: str) -> dict[str, str] | None:
        """What the names bind if the whole text matches, else None.

        Raises:
            TooAmbiguous: only where a name repeats or is computed.
        """
        head, tail = self._literals[0], self._literals[-1]
        rest = len(text) - tail.length
        if rest < 0 or not head.at(text, 0) or not tail.at(text, rest):
            return None
        if not self._gaps:
            return {} if rest == 0 else None
        search = _Search(text, self._gaps, self._literals[1:], self._pending, self._stops, linear=self._linear)
        return search.run(0, head.length, {})


@dataclass(slots=True)
class _Search:
    text: str
    gaps: list[Gap]
    literals: list[Literal]  # each stands after its gap
    pending: list[tuple[str, ...]]
    stops: dict[str, re.Pattern[str]]
    failed: set[tuple[object, ...]] = field(default_factory=set)
    positions: dict[str, list[int]] = field(default_factory=dict)
    linear: bool = True
    hopeless: bool = False
    steps: int = 0

    def run(self, k: int, start: int, known: dict[str, str]) -> dict[str, str] | None:
        """Match from the gap ``k`` on, at ``start``. ``known`` has the texts of names that occur again."""
        if k == len(self.gaps):
            return {} if start == len(self.text) else None
        gap, pending = self.gaps[k], self.pending[k]
        name = gap.name
        if name is not None and name in known:
            return self._again(k, name, start, known)
        high = self._run_end(gap.stop, start)
        key = (k, high if self.linear else start, *(known.get(n) for n in pending))
        if key in self.failed:
            return None
        low = start + gap.least
        while (end := self._end(k, low, high)) is not None:
            low, after, captured, inner = end + 1, end + self.literals[k].length, None, known
            if not self.linear:
                self._count()
                if gap.shift is not None or name in pending:
                    captured = self._captured(gap, self.text[start:end])
                    if captured is None:
                        continue
                    inner = {**known, name: captured} if name is not None and name in pending else known
            found = self.run(k + 1, after, inner)
            if found is not None:
                if name is not None:
                    found[name] = self.text[start:end] if captured is None else captured
                return found
            if self.hopeless:
                return None
            if self.linear and k + 1 < len(self.gaps):  # to the first start from which the next gap could do better
                low = max(low, end + self._run_end(self.gaps[k + 1].stop, after) + 1 - after)
        self.failed.add(key)
        self.hopeless = self.linear and not gap.stop
        return None

    def _end(self, k: int, low: int, high: int) -> int | None:
        """The first place from ``low`` to ``high`` where the gap may end so that its literal follows."""
        gap, literal, text = self.gaps[k], self.literals[k], self.text
        if k + 1 == len(self.gaps):  # what follows is the end of the text, which has been compared already
            low, high = max(low, len(text) - literal.length), min(high, len(text) - literal.length)
        while low <= high:
            low = literal.find(text, low, high)
            if low < 0:
                return None
            # What stands before ``**/`` is the start of the text or a slash: taking nothing is a candidate like others.
            if not gap.folders or low == 0 or text[low - 1] == "/":
                return low
            low += 1
        return None

    def _again(self, k: int, name: str, start: int, known: dict[str, str]) -> dict[str, str] | None:
        """A name that is bound already stands for its own text."""
        self._count()
        shift = self.gaps[k].shift
        expected = known[name] if shift is None else spelled(known[name], shift)
        if expected is None or not self.text.startswith(expected, start):
            return None
        end = start + len(expected)
        if not self.literals[k].at(self.text, end):
            return None
        found = self.run(k + 1, end + self.literals[k].length, known)
        if found is not None:
            found[name] = known[name]
        return found

    def _captured(self, gap: Gap, text: str) -> str | None:
        if gap.shift is None:
            return text
        value = number(text)
        return None if value is None or value < gap.shift else str(value - gap.shift)

    def _count(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TooAmbiguous

    def _run_end(self, stop: str, start: int) -> int:
        """The first position at or after ``start`` that the gap may not hold; the end of the text if there is none."""
        if not stop:
            return len(self.text)
        found = self.positions.get(stop)
        if found is None:
            found = self.positions[stop] = [m.start() for m in self.stops[stop].finditer(self.text)]
        at = bisect_left(found, start)
        return found[at] if at < len(found) else len(self.text)
