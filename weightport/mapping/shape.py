"""What is wrong with the shape of a document, in words for people, each mistake once.

Promise: no message is pydantic's own, and each names the nearest key or value. Limit: the definition is
:mod:`weightport.mapping.schema`; here is only the wording.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

from weightport.errors import closest
from weightport.mapping._yaml import quoted
from weightport.mapping.document import ABSENT, Document, Trail
from weightport.mapping.patterns import shown
from weightport.mapping.schema import SCOPE, SHA256, TAG, schema, shape_errors

#: pydantic's type of error -> what it expected.
_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_PATTERNS = {
    SCOPE: "a scope such as encoder/lstm: no / at either end, no braces",
    SHA256: "64 hexadecimal digits",
}


@dataclass(slots=True)
class Shape:
    """What the shape check found out.

    Attributes:
        wrong: the trails of all problems, and everything that holds them.
        loose: tables that have unknown keys or lost some: what is missing there may only be misspelt.
    """

    wrong: set[Trail] = field(default_factory=set)
    loose: set[Trail] = field(default_factory=set)

    def note(self, trail: Trail) -> None:
        """A problem at ``trail``."""
        self.wrong.update(trail[:k] for k in range(len(trail) + 1))

    def ok(self, *trail: str | int) -> bool:
        """True if nothing is wrong at ``trail`` or inside it."""
        return trail not in self.wrong


def check_shape(document: Document) -> Shape:
    """Note every problem of the document's shape in it."""
    found = Shape()
    for trail in document.refused:
        found.note(trail)
    found.loose |= document.refused
    errors = [(e, tuple(p for p in e["loc"] if not str(p).startswith(TAG))) for e in shape_errors(document.data)]
    definition = schema()
    unknown: dict[Trail, list[str]] = {}
    for error, trail in errors:
        if error["type"] == "extra_forbidden":
            unknown.setdefault(trail[:-1], []).append(str(trail[-1]))
    found.loose |= set(unknown)
    for error, trail in errors:
        if error["type"] != "missing" and (error["input"] is ABSENT or trail in document.refused):
            continue
        parent, key = trail[:-1], str(trail[-1]) if trail else ""
        found.note(trail)
        if document.full:
            continue
        if error["type"] == "extra_forbidden":
            known = _keys(definition, parent)
            hint = (closest(key, known) if len(key) <= 100 else "") or f"known: {', '.join(known)}"
            document.fail(parent, f"unknown key {shown(key)}", hint, at=trail)
        elif error["type"] == "missing":
            misspelt = difflib.get_close_matches(key, [u for u in unknown.get(parent, [])[:100] if len(u) <= 100])
            if not misspelt and parent not in document.refused:
                hint = "a mapping begins with weightport: 1" if trail == ("weightport",) else ""
                document.fail(parent, f"no key {key!r}", hint)
        else:
            what, hint = _words(document, trail, error)
            document.fail(trail, what, hint)
    return found


def _words(document: Document, trail: Trail, error: Any) -> tuple[str, str]:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    found = f"found {described(value)}"
    if kind == "expected":
        named = error["msg"].startswith("a name")
        return f"expected {error['msg']}, {found}", _quote(document, trail, value) if named else ""
    if kind == "string_type":
        return f"expected text, {found}", _quote(document, trail, value)
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, {found}", ""
    if kind == "literal_error":
        allowed = [a.strip("'") for a in context["expected"].replace(" or ", ", ").split(", ")]
        hint = closest(value, allowed) if isinstance(value, str) and len(value) <= 100 else ""
        return f"expected {' or '.join(allowed)}, {found}", hint
    if kind == "string_pattern_mismatch":
        return f"expected {_PATTERNS[context['pattern']]}, {found}", _unslashed(value, context["pattern"])
    if kind == "string_too_short":
        return "expected text, found nothing between the quotes", ""
    if kind == "greater_than_equal":
        return f"expected at least {context['ge']}, {found}", ""
    if kind == "less_than":
        return f"expected less than {context['lt']}, {found}", ""
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length", context.get("max_length"))
        size = len(value)
        entries = f"{bound} {'entry' if bound == 1 else 'entries'}"
        more = "at least " if kind == "too_short" and bound == 1 else ""
        return f"expected {more}{entries}, found {size or 'none'}", ""
    return f"not valid here: {described(value)}", ""  # a shape that this table does not know yet


def _unslashed(value: str, pattern: str) -> str:
    bare = value.strip("/")
    return f"closest: {bare!r}" if pattern == SCOPE and bare and bare != value and len(value) <= 100 else ""


def _quote(document: Document, trail: Trail, value: Any) -> str:
    """How to say that a number, a boolean or null is meant as text."""
    if value is None or isinstance(value, (bool, int, float)):
        text = document.texts.get(trail, "" if value is None else str(value))
        return f"write {quoted(text)} if it is a name" if text.strip("~") else ""
    return ""


def described(value: Any) -> str:
    """The value in a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, dict)):
        return ("a list" if isinstance(value, list) else "a table") if value else f"an empty {_LISTS[type(value)]}"
    return shown(value) if isinstance(value, str) else str(value)


_LISTS = {list: "list", dict: "table"}


def _keys(definition: dict[str, Any], trail: Trail) -> list[str]:
    """The keys of the table at ``trail``, from the JSON Schema."""
    node = definition
    for k, part in enumerate(trail):
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        node = _resolved(definition, node)
        if "oneOf" in node and "properties" not in node:  # a union: the branch of the kind of value that comes next
            wanted = "array" if k + 1 < len(trail) and isinstance(trail[k + 1], int) else "object"
            branches = [_resolved(definition, branch) for branch in node["oneOf"]]
            node = next((branch for branch in branches if branch.get("type") == wanted), {})
    return list(node.get("properties", {}))


def _resolved(definition: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    return {**definition["$defs"][reference.rsplit("/", 1)[-1]], **node} if reference else node
