"""Name patterns for ``from`` and ``to``, such as ``layer_{n}/{role}/kernel``, and globs for ``ignore`` and ``keep``.

Patterns: ``{n}`` is one or more characters other than ``/`` and ``.``; ``{x**}`` is one or more of any; the same name
is the same text wherever it stands; ``{n+1}`` and ``{n-1}`` are the number next to the one that is bound; ``{{`` and
``}}`` are braces. Where a name can be matched in several ways, the leftmost captures take as little as they can.

Globs: ``**`` is any run of characters, ``*`` any run without ``/``, ``?`` one character other than ``/``; ``**/`` at
the start of a folder also stands for no folder at all; captures are as in patterns.

Promise: matching is linear in the name, however hostile pattern and name are. Limit: where a name repeats or is
computed, a name that would take too long is refused with an error (see :mod:`weightport.mapping._matching`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from weightport.errors import MappingError, Problem
from weightport.mapping._matching import ANY, MAX_DIGITS, MAX_STEPS, Gap, Matcher, TooAmbiguous, spelled

#: Captures and wildcards in one pattern. It bounds the matcher's work for each character of a name.
MAX_GAPS = 32

_TOKEN = re.compile(
    r"(?P<escape>\{\{|\}\})"
    r"|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:(?P<any>\*\*)|(?P<shift>[+-][0-9]{1,9}))?\}"
    r"|(?P<brace>\{[^{}]*\}?|\})",
    re.ASCII,
)
_WILDCARD = re.compile(r"(?P<folders>(?:\A|(?<=/))(?:\*\*+/)+)|(?P<any>\*\*+)|\*|\?")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern for tensor names. Two are equal if their texts are.

    Attributes:
        text: as the mapping spells it.
        where: what messages about it begin with.
        names: the names of its captures.
        is_literal: it has no captures.
        prefix: the literal text before the first capture; the whole name if it is literal.
        computed: the names that stand with arithmetic (``{n+1}``).
        wide: the names of the ``{x**}``.
    """

    text: str
    where: str = field(default="", compare=False)
    names: frozenset[str] = field(init=False, compare=False)
    is_literal: bool = field(init=False, compare=False)
    prefix: str = field(init=False, compare=False)
    computed: frozenset[str] = field(init=False, compare=False)
    wide: frozenset[str] = field(init=False, compare=False)
    _parts: tuple[object, ...] = field(init=False, repr=False, compare=False)
    _matcher: Matcher = field(init=False, repr=False, compare=False)
    _template: str | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Parse the text.

        Raises:
            MappingError: the text is no pattern.
        """
        parts = _parse(self.text, self.where)
        gaps = [p for p in parts if isinstance(p, Gap)]
        matcher = Matcher(parts)
        shifted = any(g.shift is not None for g in gaps)
        spelled_out = (f"{{{p.name}}}" if isinstance(p, Gap) else _escaped(str(p)) for p in parts)
        for name, value in {
            "_template": None if shifted else "".join(spelled_out),
            "names": frozenset(g.name for g in gaps),
            "is_literal": not gaps,
            "prefix": matcher.head,
            "computed": frozenset(g.name for g in gaps if g.shift is not None),
            "wide": frozenset(g.name for g in gaps if not g.stop),
            "_parts": parts,
            "_matcher": matcher,
        }.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return self.text

    def match(self, name: str) -> dict[str, str] | None:
        """What the captures bind if the whole ``name`` matches, else None.

        ``{n+1}`` matches a number without leading zeros and binds ``n`` to the number before it.

        Raises:
            MappingError: a capture repeats or is computed, and this name would take too long.
        """
        return _matched(self._matcher, name, self.text, self.where)

    def format(self, bindings: Mapping[str, str]) -> str:
        """The name that the pattern stands for under ``bindings``.

        Raises:
            MappingError: a capture is not bound, or arithmetic on what is no number or would be below zero.
        """
        if self._template is not None and self.names <= bindings.keys():
            return self._template.format_map(bindings)  # captures are plain names, what they bind is plain text
        out = []
        for part in self._parts:
            if not isinstance(part, Gap):
                out.append(str(part))
                continue
            name = part.name or ""
            if name not in bindings:
                raise MappingError(Problem(self.where, f"{{{name}}} in {shown(self.text)} is not bound"))
            value: str | None = bindings[name]
            if part.shift is not None:
                value = spelled(bindings[name], part.shift)
            if value is None:
                capture = f"{{{name}{part.shift:+d}}}"
                raise MappingError(_arithmetic(self.where, capture, name, bindings[name]))
            out.append(value)
        return "".join(out)

    def joined(self, scope: str) -> Pattern:
        """The pattern under ``scope/`` (under ``scope.`` if it ends so); itself if the scope is ``""``."""
        return Pattern(f"{_escaped(begins(scope))}{self.text}", self.where) if scope else self


@dataclass(frozen=True, slots=True)
class Glob:
    """A glob for tensor names, in ``ignore`` and ``keep``. Two are equal if their texts are.

    Attributes:
        text: as the mapping spells it.
        where: what messages about it begin with.
    """

    text: str
    where: str = field(default="", compare=False)
    _matcher: Matcher = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Parse the text.

        Raises:
            MappingError: the text is no glob.
        """
        object.__setattr__(self, "_matcher", Matcher(_parse(self.text, self.where, wildcards=True)))

    def __str__(self) -> str:
        return self.text

    def matches(self, name: str) -> bool:
        """True if the whole ``name`` matches.

        Raises:
            MappingError: a capture repeats, and this name would take too long.
        """
        return _matched(self._matcher, name, self.text, self.where) is not None

    def joined(self, scope: str) -> Glob:
        """The glob under ``scope/`` (under ``scope.`` if it ends so); itself if the scope is ``""``."""
        return Glob(f"{_escaped(begins(scope))}{self.text}", self.where) if scope else self


def misread(pattern: Pattern, names: Iterable[str]) -> str:
    """What helps a rule's pattern that matches none of the names, where a glob or ``{x**}`` was meant; or nothing."""
    wild = any(c in _TOKEN.sub("", pattern.text) for c in "*?")
    wide = _TOKEN.sub(lambda m: f"{{{m['name']}**}}" if m["name"] and not m["shift"] else m[0], pattern.text)
    with contextlib.suppress(MappingError):
        if wild and any(map(Glob(pattern.text).matches, names)):
            return (
                "* and ? are no wildcards in a rule: write {name}, which stops at / and ., or {name**}, which does not"
            )
        if wide != pattern.text and any(Pattern(wide).match(name) is not None for name in names):
            return f"a capture such as {{name}} stops at / and .; {{name**}} does not: {shown(wide)}"
    return ""


def literal(name: str) -> Pattern:
    """The pattern that matches this name alone."""
    return Pattern(_escaped(name))


def begins(scope: str) -> str:
    """What the names in a scope begin with: the scope and a slash, unless it ends in a dot."""
    return scope if not scope or scope.endswith(".") else f"{scope}/"


def _escaped(scope: str) -> str:
    return scope.replace("{", "{{").replace("}", "}}")


def _matched(matcher: Matcher, name: str, text: str, where: str) -> dict[str, str] | None:
    try:
        return matcher.match(name)
    except TooAmbiguous:
        what = f"{shown(text)} can match {shown(name)} in too many ways: gave up after {MAX_STEPS:,}"
        hint = "put more literal text between its captures, or give each capture a name of its own"
        raise MappingError(Problem(where, what, hint)) from None


def _arithmetic(where: str, capture: str, name: str, text: str) -> Problem:
    if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS:
        return Problem(where, f"{capture} is below zero: {{{name}}} is {shown(text)}")
    return Problem(where, f"{capture} needs a whole number: {{{name}}} is {shown(text)}")


def shown(text: str, limit: int = 80) -> str:
    """The text in quotes, with its middle left out if it is long."""
    return repr(text) if len(text) <= limit else f"{text[: limit // 2]!r}...{text[-limit // 4 :]!r}"


def _parse(text: str, where: str, *, wildcards: bool = False) -> tuple[object, ...]:
    def wrong(what: str, hint: str = "") -> MappingError:
        return MappingError(Problem(where, what, hint))

    if not text:
        raise wrong("an empty name")
    parts: list[object] = []
    kinds: dict[str, str] = {}
    position = 0
    for token in _TOKEN.finditer(text):
        parts += _literal(text, position, token.start(), wildcards)
        position = token.end()
        if token["escape"]:
            parts.append(token["escape"][0])
            continue
        if token["brace"]:
            hint = "expected {name}, {name**}, {name+1} or {name-1}; a brace itself is written twice: {{ or }}"
            raise wrong(f"{shown(token['brace'])} in {shown(text)} is no capture", hint)
        name, wide = token["name"], bool(token["any"])
        if parts and isinstance(parts[-1], Gap) and parts[-1].name is not None:
            previous = parts[-1].name
            raise wrong(f"nothing stands between {{{previous}}} and {{{name}}} in {shown(text)}", "capture both as one")
        kind = "**" if wide else ""
        if kinds.setdefault(name, kind) != kind:
            raise wrong(f"{shown(text)} has both {{{name}}} and {{{name}**}}", "use one of them, or two names")
        shift = int(token["shift"]) if token["shift"] else None
        if wildcards and shift is not None:
            raise wrong(f"arithmetic in {shown(text)}", "ignore and keep take {name} and {name**}")
        parts.append(Gap(stop="" if wide else "/.", name=name, shift=shift))
    parts += _literal(text, position, len(text), wildcards)
    if sum(isinstance(p, Gap) for p in parts) > MAX_GAPS:
        raise wrong(f"more than {MAX_GAPS} captures and wildcards in {shown(text)}")
    return tuple(parts)


def _literal(text: str, start: int, end: int, wildcards: bool) -> list[object]:
    """The text between two captures: literal, or in globs literals and wildcards."""
    if not wildcards:
        return [text[start:end]] if start < end else []
    parts: list[object] = []
    for token in _WILDCARD.finditer(text, start, end):
        if start < token.start():
            parts.append(text[start : token.start()])
        start = token.end()
        if token[0] == "?":
            parts.append(ANY)
        elif token[0] == "*":
            parts.append(Gap(0, "/"))
        else:
            parts.append(Gap(0, folders=bool(token["folders"])))
    if start < end:
        parts.append(text[start:end])
    return parts
