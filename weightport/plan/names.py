"""The names of a model, indexed so that a pattern looks only at those that could match it.

Promise: the same names in the same order as matching every one of them; many patterns with different literal parts
cost together about what one pass over the names costs. Limit: patterns whose literal text stands everywhere, or only
in the middle of parts of names, look at every name.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from weightport.mapping.patterns import Glob, Pattern, begins
from weightport.scopes import separator_of

# Stand for captures in a pattern's text: captures without ** stay within one part of a name.
_NARROW, _WIDE = "\0", "\1"
_CAPTURE = re.compile(r"\{\{|\}\}|\{[^{}]*\}")
_LAST = "\U0010ffff"
# So many names, or so small a share of them, are looked at without looking for something better.
_FEW, _SHARE = 64, 64


def _stand_in(capture: re.Match[str]) -> str:
    if capture[0] in ("{{", "}}"):
        return capture[0][0]
    return _WIDE if "**" in capture[0] else _NARROW


def _regex(pattern: Pattern, text: str) -> re.Pattern[str] | None:
    """A regular expression for patterns whose parts have one capture at most: there is one way to match at most, and
    nothing to go back to beyond a part.
    """
    found = [part.count(_NARROW) for part in parts(text)]
    if (
        _NARROW in pattern.text
        or _WIDE in text
        or pattern.computed
        or max(found) > 1
        or sum(found) != len(pattern.names)
    ):
        return None
    names = iter(m[0][1:-1] for m in _CAPTURE.finditer(pattern.text) if m[0] not in ("{{", "}}"))
    pieces = (re.escape(piece) for piece in text.split(_NARROW))
    regex = next(pieces)
    for name, piece in zip(names, pieces, strict=True):
        regex += rf"(?P<{name}>[^/.]+){piece}"
    return re.compile(regex, re.DOTALL)


def parts(name: str) -> list[str]:
    """The parts of a name: what stands between slashes and dots, which no ``{x}`` takes."""
    return name.replace(".", "/").split("/")


@dataclass(slots=True)
class Names:
    """Names in their order; the indices are made when they are first needed."""

    names: list[str]
    _by_part: dict[int, dict[str, list[int]]] = field(default_factory=dict)
    _sorted: dict[bool, tuple[list[str], list[int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The index of these names."""
        return cls(list(names))

    def matches(self, pattern: Pattern) -> Iterator[tuple[str, dict[str, str]]]:
        """Every name that the pattern matches, and what it binds.

        Raises:
            MappingError: a name would take too long to match.
        """
        text = _CAPTURE.sub(_stand_in, pattern.text)
        regex = _regex(pattern, text)
        for number in self._candidates(text):
            name = self.names[number]
            if regex is None:
                found = pattern.match(name)
                if found is not None:
                    yield name, found
            elif hit := regex.fullmatch(name):
                yield name, hit.groupdict()

    def _candidates(self, text: str) -> Iterable[int]:
        best: Iterable[int] = range(len(self.names))
        size = len(self.names)
        enough = max(_FEW, size // _SHARE)
        if "/" in _fixed(text) or "." in _fixed(text):  # a part or more, which most often tells all there is to tell
            best, size = self._ends(text, False, best, size, enough)
        for position, part in _literal_parts(text):
            if size <= enough:
                return best
            found = self._at(position).get(part, ())
            if len(found) < size:
                best, size = found, len(found)
        for backwards in (False, True):
            best, size = self._ends(text, backwards, best, size, enough)
        return best

    def _ends(
        self, text: str, backwards: bool, best: Iterable[int], size: int, enough: int
    ) -> tuple[Iterable[int], int]:
        """The names that begin, or end, as the pattern does, if they are fewer than the best so far."""
        fixed = _fixed(text[::-1] if backwards else text)
        if size > enough and fixed:
            names, numbers = self._in_order(backwards)
            low, high = bisect_left(names, fixed), bisect_left(names, fixed + _LAST)
            if high - low < size:
                return sorted(numbers[low:high]), high - low
        return best, size

    def _at(self, position: int) -> dict[str, list[int]]:
        """Part -> the names that have it at that position, from the end if it is negative."""
        index = self._by_part.get(position)
        if index is None:
            index = self._by_part[position] = {}
            for number, name in enumerate(self.names):
                found = parts(name)
                if -len(found) <= position < len(found):
                    index.setdefault(found[position], []).append(number)
        return index

    def _in_order(self, backwards: bool) -> tuple[list[str], list[int]]:
        """The names in alphabetical order, and their numbers."""
        found = self._sorted.get(backwards)
        if found is None:
            pairs = sorted((n[::-1] if backwards else n, k) for k, n in enumerate(self.names))
            found = self._sorted[backwards] = ([n for n, _ in pairs], [k for _, k in pairs])
        return found


def _fixed(text: str) -> str:
    """What a pattern begins with, up to its first capture."""
    return text.partition(_NARROW)[0].partition(_WIDE)[0]


def _literal_parts(text: str) -> Iterator[tuple[int, str]]:
    """The parts without captures whose position is known: from the start, and from the end, up to the first ``**``."""
    found = parts(text)
    wide = any(_WIDE in part for part in found)
    for position, part in enumerate(found):
        if _WIDE in part:
            break
        if _NARROW not in part:
            yield position, part
    for position, part in enumerate(reversed(found) if wide else ()):
        if _WIDE in part:
            break
        if _NARROW not in part:
            yield -1 - position, part


def matching(
    globs: Sequence[Glob], names: Iterable[str], scope: str, also: Mapping[str, str] | None = None
) -> frozenset[str]:
    """The names that a glob matches, in full or below the side's scope; also those that it says by an alias.

    Args:
        also: :func:`aliases` of the side. A pattern matches none: they are not what is listed.
    """
    prefix = begins(scope)
    said = {text for g in globs for text in (g.text, prefix + g.text)}
    found = {of for alias, of in (also or {}).items() if alias in said}
    for name in names:
        below = name[len(prefix) :] if prefix and name.startswith(prefix) else None
        if any(g.matches(name) or (below is not None and g.matches(below)) for g in globs):
            found.add(name)
    return frozenset(found)


def aliases(side: object) -> Mapping[str, str]:
    """A model's own names of tensors that it lists under others -> those; no key is a listed name."""
    found: Mapping[str, str] = getattr(side, "aliases", {})
    return found


def listed(side: object, name: str) -> str:
    """The name that a model lists a tensor under."""
    return aliases(side).get(name, name)


def finds(pattern: Pattern, names: Names, specs: Container[str], side: object) -> bool:
    """Whether a pattern matches any of a side's names, those that lead to another one included."""
    return listed(side, pattern.format({})) in specs if pattern.is_literal else any(names.matches(pattern))


def ended(scope: str, names: Iterable[str]) -> str:
    """A side's scope, with a dot at its end where the model's names have dots between their parts, and no slashes."""
    return f"{scope}." if scope and not scope.endswith(".") and separator_of(names) == "." else scope
