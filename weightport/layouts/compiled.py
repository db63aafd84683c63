"""Layout tables as they come out of the parser, kept beside them as JSON: starting a command takes no parsing of YAML.

Promise: what is kept is used only for a table whose text has not changed since (its size and CRC stand in it); else the
table is parsed. Limit: made by ``python scripts/make_docs.py``; a test says when it is stale.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from weightport.layouts.layout import Form, Layout, Row
from weightport.layouts.notation import PARAMETERS, Packing, Term

#: Counts up whenever the fields of what is kept change.
VERSION = 1


def encode(text: bytes, layouts: Iterable[Layout]) -> str:
    """The layouts of a table as JSON.

    Args:
        text: the table.
        layouts: what the parser makes of it.
    """
    terms: dict[Term, int] = {}
    packings: dict[Packing, int] = {}
    rows: dict[Row, int] = {}
    made: list[Any] = []
    for layout in layouts:
        forms: list[Any] = []
        for form in layout.forms:
            for row in form.rows:
                for term in row.packing.terms:
                    terms.setdefault(term, len(terms))
                packings.setdefault(row.packing, len(packings))
                rows.setdefault(row, len(rows))
            forms.append([[rows[r] for r in form.rows], form.reset, form.forget_bias, form.cells, form.absent])
        fields: dict[str, Any] = {key: getattr(layout, key) for key in Layout.__slots__ if key != "forms"}
        fields["parameters"] = None if fields["parameters"] == PARAMETERS else fields["parameters"]
        sets = {key: sorted(value) for key, value in fields.items() if isinstance(value, frozenset)}
        made.append([{**fields, **sets}, forms])
    document: dict[str, list[Any]] = {
        "of": _mark(text),
        "terms": [[t.param, t.gates, t.axes, t.declared] for t in terms],
        "packings": [[[terms[t] for t in p.terms], p.axis, *([p.runs] if p.runs else [])] for p in packings],
        "rows": [[r.template, packings[r.packing], r.optional] for r in rows],
        "layouts": made,
    }
    # A line for each entry, so that two people's changes can be told apart.
    lines = []
    for key, value in document.items():
        inner = ",\n".join(map(json.dumps, value))
        lines.append(f"{json.dumps(key)}: [\n{inner}\n]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def decode(text: bytes, kept: bytes) -> list[Layout] | None:
    """The layouts of a table as they were kept; None if the table is another by now.

    Args:
        text: the table.
        kept: what :func:`encode` made of it, or of an older one.
    """
    try:
        document = json.loads(kept)
    except ValueError:  # two people's changes, not put together yet
        return None
    if document.get("of") != _mark(text):
        return None
    terms = [
        Term(param, _texts(gates), _groups(axes), declared and _groups(declared))
        for param, gates, axes, declared in document["terms"]
    ]
    packings = [
        Packing(tuple(terms[t] for t in those), axis, *map(tuple, runs)) for those, axis, *runs in document["packings"]
    ]
    rows = [Row(template, packings[packing], optional) for template, packing, optional in document["rows"]]
    return [_layout(fields, tuple(_form(rows, *form) for form in forms)) for fields, forms in document["layouts"]]


def _layout(fields: Mapping[str, Any], forms: tuple[Form, ...]) -> Layout:
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    given |= {key: frozenset(given[key]) for key in ("complemented", "fixed")}
    own = fields["parameters"]
    given["parameters"] = PARAMETERS if own is None else {key: tuple(axes) for key, axes in own.items()}
    return Layout(**given, forms=forms)


def _form(rows: list[Row], numbers: list[int], reset: str | None, bias: float, cells: Any, absent: Any) -> Form:
    return Form(tuple(rows[n] for n in numbers), reset, bias, tuple(cells), tuple(absent))


def _texts(value: list[str] | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(value)


def _groups(value: list[list[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(map(tuple, value))


def _mark(text: bytes) -> list[int]:
    return [VERSION, len(text), zlib.crc32(text)]
