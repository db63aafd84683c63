"""Layout tables: gate packing as data, read into :class:`~weightport.layouts.layout.Layout`.

A table (YAML, or a mapping's ``layouts:`` block) gives, for each stored tensor of a cell, its name under the cell's
scope and its packing in the notation of :mod:`weightport.layouts.notation`. In names, ``{gate}`` (``{GATE}`` in
capitals), ``{layer}`` and ``{direction}`` stand for an index that lives in the name; a ``?`` at the end marks a tensor
that a cell may lack. A name that begins with ``{scope}`` is not under the cell's scope but continues its last part:
``{scope}_W`` is ``lstm_1/lstm_1_W`` in the scope ``lstm_1/lstm_1``. ``~z`` in ``gates`` is a gate whose meaning is
complemented (it keeps where the canonical one replaces).

``variants`` are packings that the table's ``tensors`` are completed with, ``spellings`` other names for them; each
spelling of each variant is a form. A spelling with ``cells`` of its own is one of the first variant only.

Promise: a table is validated whole, all its problems at once. Limit: pure data; nothing here reads a model.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weightport.errors import LayoutError, Problem, closest
from weightport.layouts.layout import (
    KIND_GATES,
    PARAM_GATES,
    PLACEHOLDERS,
    Form,
    Layout,
    Row,
    form_problems,
    name_problem,
    read_gates,
    sign_problem,
)
from weightport.layouts.notation import PARAMETERS, Parameters, Term, parse_packing

__all__ = ["KIND_GATES", "PARAM_GATES", "RESETS", "Form", "Layout", "Row", "parse_layout"]

_FLAGS = ("suffixes", "uniform")
_TEXTS = ("title", "activation", "recurrent_activation", "inner", "separator")
_LISTS = ("source", "fixed", "complement", "cells", "forget_gates")
_MAPPINGS = ("gate_names", "derived", "directions")
_KEYS = {
    *_TEXTS, *_LISTS, *_MAPPINGS, "gates", "forget_bias", "reset", "tensors", "variants", "spellings", *_FLAGS,
    "parameters",
}  # fmt: skip
_VARIANT_KEYS = {"title", "reset", "forget_bias", "tensors", "cells"}
_FIXED = ("activation", "recurrent_activation", "forget_bias", "cell_clip", "proj_clip", "window")
#: Where a GRU's reset gate acts; ``unknown`` where a file cannot say.
RESETS = ("before", "after", "unknown")
_BRACES = re.compile(r"\{([^{}]*)\}|[{}]")
_PARAMETER = re.compile(r"[A-Za-z]\w*")
_AXIS = re.compile(r"[A-Za-z]\w*'{0,9}")


@dataclass(slots=True)
class _Reader:
    """One table, and its problems so far, each with the place in the table."""

    table: Mapping[str, Any]
    where: str
    problems: list[Problem] = field(default_factory=list)

    def fail(self, key: str, what: str, hint: str = "") -> None:
        problem = Problem(f"{self.where}.{key}" if key else self.where, what, hint)
        if problem not in self.problems:
            self.problems.append(problem)

    def keys(self, at: str, table: Mapping[str, Any], known: set[str]) -> None:
        for key in table:
            if key not in known:
                self.fail(at, f"unknown key {key!r}", closest(str(key), known))

    def text(self, key: str, table: Mapping[str, Any]) -> str | None:
        value = table.get(key)
        if value is not None and not isinstance(value, str):
            self.fail(key, f"expected text, found {value!r}")
            return None
        return value

    def texts(self, key: str, table: Mapping[str, Any], at: str = "") -> tuple[str, ...]:
        """A list of texts; one text is a list of one."""
        value = table.get(key)
        if value is None:
            return ()
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, Sequence) or not all(isinstance(v, str) for v in listed):
            self.fail(at + key, f"expected a list of texts, found {value!r}")
            return ()
        return tuple(listed)

    def mapping(self, key: str) -> dict[str, str]:
        value = self.table.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or any(
            isinstance(v, bool) or not isinstance(v, str | int) for v in value.values()
        ):
            self.fail(key, f"expected a mapping from text to text, found {value!r}")
            return {}
        return {str(k): str(v) for k, v in value.items()}

    def entries(self, key: str) -> list[Mapping[str, Any]]:
        """A list of mappings."""
        value = self.table.get(key)
        if value is None:
            return []
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, Mapping) for v in value):
            self.fail(key, f"expected a list of mappings, found {value!r}")
            return []
        return list(value)


def parse_layout(name: str, table: Any, where: str) -> Layout:
    """A layout from its table.

    Args:
        name: ``KIND.FLAVOUR``.
        table: the mapping of the table.
        where: what messages begin with, e.g. ``mapping.yaml:7 layouts.lstm.mine``.

    Raises:
        LayoutError: every problem of the table.
    """
    reader = _Reader(table if isinstance(table, Mapping) else {}, where)
    kind, dot, flavour = name.partition(".")
    if not dot or not kind or not flavour:
        reader.fail("", f"the name {name!r} is not KIND.FLAVOUR", "for example lstm.mine")
    if not isinstance(table, Mapping):
        reader.fail("", f"expected a table with gates and tensors, found {table!r}")
        raise LayoutError(reader.problems)
    reader.keys("", table, _KEYS)
    layout = _frame(reader, name, kind)
    # With wrong gates every term would be wrong; their syntax is looked at all the same.
    known = len(layout.gates) > 0
    forms = _with_absent(list(_forms(reader, layout, known)))
    layout = replace(layout, forms=tuple(forms))
    if known and not reader.problems:
        for form in forms:
            for row, what in form_problems(layout, form):
                reader.fail(f"tensors.{row.template}" if row else "tensors", what)
    if not forms and not reader.problems:
        reader.fail("", "the table has no tensors")
    if not reader.problems:
        used = {t.param for form in forms for row in form.rows for t in row.packing.terms}
        for unused in [p for p in table.get("parameters") or () if p not in used]:
            reader.fail("parameters", f"no tensor holds {unused!r}")
    if reader.problems:
        raise LayoutError(reader.problems)
    return layout


def _frame(reader: _Reader, name: str, kind: str) -> Layout:
    """Everything but the forms. Wrong gates come out as none."""
    table, where = reader.table, reader.where
    text = {key: reader.text(key, table) for key in _TEXTS}
    lists = {key: reader.texts(key, table) for key in _LISTS}
    maps = {key: reader.mapping(key) for key in _MAPPINGS}
    order: tuple[str, ...] = ()
    names: dict[str, str] = {}
    complemented: frozenset[str] = frozenset()
    known = KIND_GATES.get(kind)
    try:
        order, names, complemented = read_gates(table.get("gates", list(known or ("h",))), f"{where}.gates")
    except LayoutError as error:
        reader.problems.extend(error.problems)
    derived = maps["derived"]
    for gate, of in derived.items():
        if order and (gate in order or of.removeprefix("~") not in order):
            reader.fail("derived", f"{gate}: {of}: expected a gate that is not stored: one that is, or ~ and one")
    if known and order and set(order) | set(derived) != set(known):
        reader.fail("gates", f"{list(order)} are not the gates of a {kind}: {', '.join(known)}")
        order = ()
    if lists["forget_gates"] and known:
        reader.fail("forget_gates", f"a {kind} has a meaning of its own: the gate f of an lstm, none of others")
    for key, gates in (
        *((key, lists[key]) for key in ("complement", "forget_gates")), ("gate_names", tuple(maps["gate_names"])),
    ):  # fmt: skip
        for gate in gates if order else ():
            if gate not in order:
                reader.fail(key, f"no gate {gate!r}; the gates are {', '.join(order)}")
    for key in lists["fixed"]:
        if key not in _FIXED:
            reader.fail("fixed", f"cannot fix {key!r}", closest(key, _FIXED) or f"one of {', '.join(_FIXED)}")
    if set(maps["directions"]) - {"forward", "backward"} or len(set(maps["directions"].values())) < len(
        maps["directions"]
    ):
        reader.fail("directions", f"expected {{forward: TEXT, backward: TEXT}}, found {table['directions']!r}")
    if text["separator"] not in (None, "/", "."):
        reader.fail("separator", f"expected '/' or '.', found {text['separator']!r}")
    flags = {key: table.get(key, False) for key in _FLAGS}
    for key, value in flags.items():
        if not isinstance(value, bool):
            reader.fail(key, f"expected true or false, found {value!r}")
    layout = Layout(
        name=name,
        kind=kind,
        gates=order,
        forms=(),
        gate_names={**names, **maps["gate_names"]},
        complemented=complemented | frozenset(lists["complement"]),
        derived=derived,
        parameters=_parameters(reader, kind),
        forget_gates=lists["forget_gates"] or (("f",) if kind == "lstm" else ()),
        activation=text["activation"],
        recurrent_activation=text["recurrent_activation"],
        fixed=frozenset(lists["fixed"]),
        inner=text["inner"] or "",
        separator=text["separator"] or "/",
        directions=maps["directions"],
        suffixes=flags["suffixes"] is True,
        uniform=flags["uniform"] is True,
        title=text["title"] or "",
        source=lists["source"],
    )
    for key, problem in (("complement", sign_problem(kind, layout.complemented)), ("gates", name_problem(layout))):
        if problem:
            reader.fail(key, problem)
    return layout


def _parameters(reader: _Reader, kind: str) -> Parameters:
    """The canonical parameters, and those that the table declares."""
    declared = reader.table.get("parameters")
    if declared is None:
        return PARAMETERS
    found = dict(PARAMETERS)
    if not isinstance(declared, Mapping) or not all(isinstance(name, str) for name in declared):
        reader.fail("parameters", f"expected parameter -> axes, found {declared!r}")
        return found
    for name in declared:
        at = f"parameters.{name}"
        axes = reader.texts(name, declared, "parameters.")
        if not _PARAMETER.fullmatch(name):
            reader.fail(at, "a parameter has a name of letters, digits and _")
        elif name in PARAMETERS and kind in KIND_GATES:
            reader.fail(at, f"the axes of a {kind}'s {name} are {' '.join(PARAMETERS[name])}")
        elif not axes:
            reader.fail(at, "expected the names of its axes, such as [gate, unit]")
        elif len(set(axes)) != len(axes):
            reader.fail(at, "an axis stands twice; a second one of the same size has a prime: unit'")
        elif wrong := [a for a in axes if not _AXIS.fullmatch(a) or a in ("layer", "direction")]:
            reader.fail(at, f"{wrong[0]!r} is no axis; every parameter has layers and directions besides")
        found[name] = axes
    return found


def _forms(reader: _Reader, layout: Layout, known: bool) -> Iterator[Form]:
    """Every variant in every spelling, the plain ones first."""
    table = reader.table
    variants, spellings = reader.entries("variants"), reader.entries("spellings")
    seen: set[tuple[Row, ...]] = set()
    spelled: set[str] = set()
    for spelling, (number, variant) in itertools.product([{}, *spellings], enumerate(variants or [{}])):
        at = f"variants[{number}]" if variants else ""
        dotted = f"{at}." if at else ""
        reader.keys(at, variant, _VARIANT_KEYS)
        reset = variant.get("reset", table.get("reset"))
        if reset is not None and reset not in RESETS:
            reader.fail(f"{dotted}reset", f"expected {', '.join(RESETS)}, found {reset!r}")
        bias = variant.get("forget_bias", table.get("forget_bias", 0.0))
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias):
            reader.fail(f"{dotted}forget_bias", f"expected a number, found {bias!r}")
            bias = 0.0
        if bias and not layout.forget_gates:
            reader.fail(f"{dotted}forget_bias", f"a {layout.kind} has no gate to add it to", "forget_gates: [GATE]")
        tensors: dict[str, Any] = {}
        for place, part in (("tensors", table.get("tensors")), (f"{dotted}tensors", variant.get("tensors"))):
            if part is not None and not isinstance(part, Mapping):
                reader.fail(place, f"expected a mapping from tensor name to packing, found {part!r}")
            tensors.update(part if isinstance(part, Mapping) else {})
        here = {str(t).removesuffix("?") for t in tensors}
        wanted = {str(k) for k in spelling if k != "cells"}
        spelled |= here & wanted
        if not wanted <= here or (spelling.get("cells") and number):
            continue  # it spells the tensors of another variant
        rows = _rows(reader, tensors, spelling, f"{dotted}tensors", layout, known)
        if rows and all(row.optional for row in rows):
            reader.fail(at, "every tensor is optional: a cell could not be recognised")
            continue
        cells = reader.texts("cells", spelling, "spellings.") or reader.texts("cells", variant, dotted)
        cells = cells or reader.texts("cells", table)
        if rows and (rows not in seen or cells):
            yield Form(rows, None if reset == "unknown" else reset, float(bias), cells)
        seen.add(rows)
    for spelling in spellings:
        for key in spelling:
            if key != "cells" and str(key) not in spelled:
                reader.fail("spellings", f"no tensor {key!r} to spell", closest(str(key), spelled))


def _rows(
    reader: _Reader, tensors: Mapping[str, Any], spelling: Mapping[str, Any], at: str, layout: Layout, known: bool
) -> tuple[Row, ...]:
    rows: list[Row] = []
    for template, packing in tensors.items():
        plain = str(template).removesuffix("?")
        where = f"{reader.where}.{at}.{plain}"
        try:
            row = Row(
                str(spelling.get(plain, plain)),
                parse_packing(packing, where, layout.parameters),
                str(template).endswith("?"),
            )
            _check_template(row, where, layout)
            if known:
                _check_row(row, where, layout)
            rows.append(row)
        except LayoutError as error:
            reader.problems.extend(p for p in error.problems if p not in reader.problems)
    return tuple(rows)


def _check_template(row: Row, where: str, layout: Layout) -> None:
    if not row.template:
        raise LayoutError(f"{where}: a tensor without a name")
    for found in _BRACES.finditer(row.template):
        name = found[1]
        if name not in PLACEHOLDERS:
            hint = closest(name or "", PLACEHOLDERS) or f"one of {', '.join(f'{{{p}}}' for p in PLACEHOLDERS)}"
            raise LayoutError(f"{where}: the name {row.template!r} has {found[0]!r}; {hint}")
        if name == "scope" and (found.start() or found.end() == len(row.template)):
            raise LayoutError(f"{where}: {{scope}} must stand at the beginning of {row.template!r}, before other text")
    if "{direction}" in row.template and len(layout.directions) < 2:
        raise LayoutError(f"{where}: the name {row.template!r} needs directions: {{forward: TEXT, backward: TEXT}}")


def _check_row(row: Row, where: str, layout: Layout) -> None:
    first = row.packing.terms[0]
    for term in row.packing.terms:
        if layout.kind in ("gru", "rnn") and term.param in ("wp", "wr"):
            raise LayoutError(f"{where}: a {layout.kind} has no peepholes and no projection")
        known = PARAM_GATES.get((layout.kind, term.param), layout.gates)
        for gate in term.gates or ():
            if gate not in layout.gates or gate not in known:
                gates = [g for g in layout.gates if g in known]
                raise LayoutError(f"{where}: {term.param} has no gate {gate!r}; its gates are {', '.join(gates)}")
        _check_gate(row, term, where, layout)
        if row.per_gate and _stored(layout, term) != _stored(layout, first):
            raise LayoutError(f"{where}: the gate stands in the name, so every term must hold the same gates")


def _stored(layout: Layout, term: Term) -> tuple[str, ...]:
    return layout.gate_order(term.param, term.gates)


def _check_gate(row: Row, term: Term, where: str, layout: Layout) -> None:
    """Where the gate is: in the name, in the shape, or there is but one."""
    if "gate" not in layout.parameters[term.param]:
        if row.per_gate:
            raise LayoutError(f"{where}: the gate stands in the name, but {term.param} has no gates")
    elif "gate" in term.names():
        if row.per_gate:
            raise LayoutError(f"{where}: the gate stands in the name and in the shape")
    elif not row.per_gate and len(_stored(layout, term)) != 1:
        raise LayoutError(f"{where}: where is the gate: in the name ({{gate}}), in the shape, or one only ({{i}})?")


def _with_absent(forms: Sequence[Form]) -> list[Form]:
    """The forms, each with the names that tell it from fuller ones."""
    names = [{row.template for row in form.rows} for form in forms]
    return [
        replace(form, absent=tuple(sorted(set().union(*(other - mine for other in names if other > mine)))))
        for form, mine in zip(forms, names, strict=True)
    ]
