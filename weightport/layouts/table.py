"""Layout tables: gate packing as data. A :class:`Layout` is one flavour of one cell kind; its forms are its spellings.

A table (YAML, or a mapping's ``layouts:`` block) gives, for each stored tensor of a cell, its name under the cell's
scope and its packing in the notation of :mod:`weightport.layouts.notation`. In names, ``{gate}`` (``{GATE}`` in
capitals), ``{layer}`` and ``{direction}`` stand for an index that lives in the name; a ``?`` at the end marks a tensor
that a cell may lack. ``~z`` in ``gates`` is a gate whose meaning is complemented (it keeps where the canonical one
replaces).

Promise: a table is validated whole, all its problems at once. Limit: pure data; nothing here reads a model.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from weightport.errors import LayoutError, Problem, closest
from weightport.layouts.notation import PARAMETERS, Packing, parse_packing

#: The gates of each cell kind that the algebra knows by meaning. Other kinds name their own.
#: lstm: input, forget, candidate (TF's j, Keras' c), output. gru: reset, update (1 keeps the old state), candidate.
KIND_GATES: Mapping[str, tuple[str, ...]] = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn": ("h",)}
#: Parameters that exist for some gates only.
PARAM_GATES: Mapping[tuple[str, str], tuple[str, ...]] = {("lstm", "wp"): ("i", "f", "o")}

_KEYS = {
    "title", "source", "gates", "gate_names", "complement", "derived", "forget_bias", "activation",
    "recurrent_activation", "reset", "cells", "fixed", "inner", "directions", "tensors", "variants",
    "spellings", "suffixes",
}  # fmt: skip
_VARIANT_KEYS = {"title", "reset", "forget_bias", "tensors", "cells"}
#: Where a GRU's reset gate acts; ``unknown`` where a file cannot say.
RESETS = ("before", "after", "unknown")


@dataclass(frozen=True, slots=True)
class Row:
    """One stored tensor of a form: its name template, its packing, and whether a cell may lack it."""

    template: str
    packing: Packing
    optional: bool

    @property
    def per_gate(self) -> bool:
        """True where the gate stands in the name."""
        return "{gate}" in self.template or "{GATE}" in self.template


@dataclass(frozen=True, slots=True)
class Form:
    """One concrete spelling and packing of a layout.

    Attributes:
        rows: what is stored.
        reset: of a GRU: ``before`` or ``after`` the matrix product; None where it is unknown.
        forget_bias: what the framework adds to the forget gate at run time unless it was told otherwise.
        cells: the names that the framework gives to the cell's own scope; empty where the tensors' names tell enough.
    """

    rows: tuple[Row, ...]
    reset: str | None = None
    forget_bias: float = 0.0
    cells: tuple[str, ...] = ()

    @property
    def params(self) -> frozenset[str]:
        """The canonical parameters that this form can store."""
        return frozenset(t.param for row in self.rows for t in row.packing.terms)


@dataclass(frozen=True, slots=True)
class Layout:
    """A flavour of a cell kind.

    Attributes:
        name: ``KIND.FLAVOUR``.
        gates: the gates in the order in which they run along a gate axis.
        gate_names: canonical gate -> its text in tensor names.
        complemented: gates stored with the opposite meaning: their weights and biases change sign.
        derived: gates that are not stored but follow from another one: ``{"i": "~f"}`` for coupled gates.
        forms: every spelling and packing, the preferred one first.
        activation, recurrent_activation: what the framework uses by default; a file or a mapping may say otherwise.
        fixed: what the framework always has so: ``activation``, ``recurrent_activation``, ``forget_bias``, or no
            ``cell_clip``, ``proj_clip``.
        inner: a scope that may stand between a layer's scope and its tensors (``lstm/lstm_cell/kernel``).
        directions: ``forward`` / ``backward`` -> text in names.
        suffixes: several cells of one scope are told apart by ``_1``, ``_2`` at the end of the tensors' names.
    """

    name: str
    kind: str
    gates: tuple[str, ...]
    forms: tuple[Form, ...]
    gate_names: Mapping[str, str] = field(default_factory=dict)
    complemented: frozenset[str] = frozenset()
    derived: Mapping[str, str] = field(default_factory=dict)
    activation: str | None = None
    recurrent_activation: str | None = None
    fixed: frozenset[str] = frozenset()
    inner: str = ""
    directions: Mapping[str, str] = field(default_factory=dict)
    suffixes: bool = False
    title: str = ""
    source: tuple[str, ...] = ()

    def gate_order(self, param: str, gates: Sequence[str] | None) -> tuple[str, ...]:
        """The gates that a term of ``param`` holds, in stored order."""
        if gates is not None:
            return tuple(gates)
        limited = PARAM_GATES.get((self.kind, param))
        return tuple(g for g in self.gates if limited is None or g in limited)

    def with_gates(self, gates: Sequence[str] | Mapping[str, str]) -> Layout:
        """This layout with the gates in another order, or under other names (a rule's override).

        Raises:
            LayoutError: not the same gates.
        """
        order, names, complemented = _gates(gates, f"layout {self.name}: gates")
        if set(order) != set(self.gates):
            raise LayoutError(f"layout {self.name}: gates {list(order)} are not {sorted(self.gates)}")
        return replace(self, gates=order, gate_names={**self.gate_names, **names}, complemented=complemented)


def _gates(value: Any, where: str) -> tuple[tuple[str, ...], dict[str, str], frozenset[str]]:
    if isinstance(value, Mapping):
        items = [(str(k), str(v)) for k, v in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        items = [(str(k), str(k).lstrip("~")) for k in value]
    else:
        raise LayoutError(f"{where}: expected a list of gates or a mapping gate -> name, found {value!r}")
    order = tuple(k.lstrip("~") for k, _ in items)
    if not order or len(set(order)) != len(order) or not all(g.isidentifier() for g in order):
        raise LayoutError(f"{where}: {list(order)} must name each gate once")
    return order, {k.lstrip("~"): v for k, v in items}, frozenset(k[1:] for k, _ in items if k.startswith("~"))


def parse_layout(name: str, table: Any, where: str) -> Layout:
    """A layout from its table.

    Args:
        name: ``KIND.FLAVOUR``.
        table: the mapping of the table.
        where: what messages begin with, e.g. ``mapping.yaml:7 layouts.lstm.mine``.

    Raises:
        LayoutError: every problem of the table.
    """
    problems: list[Problem] = []

    def collect(error: LayoutError) -> None:
        problems.extend(error.problems)

    kind, dot, flavour = name.partition(".")
    if not dot or not kind or not flavour:
        problems.append(Problem(where, f"the name {name!r} is not KIND.FLAVOUR", "for example lstm.mine"))
    if not isinstance(table, Mapping):
        raise LayoutError([*problems, Problem(where, f"expected a table with gates and tensors, found {table!r}")])
    for key in table:
        if key not in _KEYS:
            problems.append(Problem(where, f"unknown key {key!r}", closest(str(key), _KEYS)))
    order: tuple[str, ...] = ()
    names: dict[str, str] = {}
    complemented: frozenset[str] = frozenset()
    try:
        order, names, complemented = _gates(table.get("gates", list(KIND_GATES.get(kind, ("h",)))), f"{where}.gates")
    except LayoutError as error:
        collect(error)
    derived = {str(k): str(v) for k, v in (table.get("derived") or {}).items()}
    known = KIND_GATES.get(kind)
    if known and order and set(order) | set(derived) != set(known):
        problems.append(Problem(f"{where}.gates", f"{list(order)} are not the gates of a {kind}: {', '.join(known)}"))
    complemented |= frozenset(str(g) for g in table.get("complement") or ())
    names.update({str(k): str(v) for k, v in (table.get("gate_names") or {}).items()})
    for extra in complemented - set(order):
        problems.append(Problem(f"{where}.complement", f"no gate {extra!r}; the gates are {', '.join(order)}"))
    if not isinstance(table.get("tensors", {}), Mapping):
        problems.append(Problem(f"{where}.tensors", "expected a mapping from tensor name to packing"))
        raise LayoutError(problems)
    forms = []
    try:
        forms = list(_forms(table, where, order, kind))
    except LayoutError as error:
        collect(error)
    if not forms and not problems:
        problems.append(Problem(where, "the table has no tensors"))
    directions = table.get("directions") or {}
    if not isinstance(directions, Mapping) or set(directions) - {"forward", "backward"}:
        problems.append(
            Problem(f"{where}.directions", f"expected {{forward: TEXT, backward: TEXT}}, found {directions!r}")
        )
        directions = {}
    if problems:
        raise LayoutError(problems)
    source = table.get("source") or ()
    return Layout(
        name=name,
        kind=kind,
        gates=order,
        forms=tuple(forms),
        gate_names=names,
        complemented=complemented,
        derived=derived,
        activation=table.get("activation"),
        recurrent_activation=table.get("recurrent_activation"),
        fixed=frozenset(table.get("fixed") or ()),
        inner=str(table.get("inner", "")),
        directions={str(k): str(v) for k, v in directions.items()},
        suffixes=bool(table.get("suffixes", False)),
        title=str(table.get("title", "")),
        source=(source,) if isinstance(source, str) else tuple(str(s) for s in source),
    )


def _forms(table: Mapping[str, Any], where: str, gates: tuple[str, ...], kind: str) -> Iterator[Form]:
    """Every variant in every spelling, the plain ones first."""
    problems: list[Problem] = []
    variants = table.get("variants") or [{}]
    spellings = [{}, *(table.get("spellings") or [])]
    for key, entries in (("variants", variants), ("spellings", spellings)):
        if not all(isinstance(entry, Mapping) for entry in entries):
            raise LayoutError(f"{where}.{key}: expected a list of mappings")
    seen: set[tuple[Row, ...]] = set()
    for spelling, (number, variant) in itertools.product(spellings, enumerate(variants)):
        at = f"{where}.variants[{number}]" if table.get("variants") else where
        if spelling.get("cells") and number:
            continue  # a spelling of certain cells has one variant
        for key in variant:
            if key not in _VARIANT_KEYS:
                problems.append(Problem(at, f"unknown key {key!r}", closest(str(key), _VARIANT_KEYS)))
        reset = variant.get("reset", table.get("reset"))
        if reset is not None and reset not in RESETS:
            problems.append(Problem(f"{at}.reset", f"expected {', '.join(RESETS)}, found {reset!r}"))
        forget_bias = variant.get("forget_bias", table.get("forget_bias", 0.0))
        if isinstance(forget_bias, bool) or not isinstance(forget_bias, int | float):
            problems.append(Problem(f"{at}.forget_bias", f"expected a number, found {forget_bias!r}"))
            forget_bias = 0.0
        tensors = {**(table.get("tensors") or {}), **(variant.get("tensors") or {})}
        if not {k for k in spelling if k != "cells"} <= {str(t).removesuffix("?") for t in tensors}:
            continue  # it spells tensors of another variant
        rows = _rows(tensors, spelling, at, gates, kind)
        problems.extend(p for p in rows if isinstance(p, Problem) and p not in problems)
        good = tuple(row for row in rows if isinstance(row, Row))
        if good and not any(not row.optional for row in good):
            problems.append(Problem(at, "every tensor is optional: a cell could not be recognised"))
        cells = tuple(spelling.get("cells") or variant.get("cells", table.get("cells")) or ())
        if good and (not spelling or good not in seen or cells):
            yield Form(good, None if reset == "unknown" else reset, float(forget_bias), cells)
        seen.add(good)
    problems = list(dict.fromkeys(problems))
    if problems:
        raise LayoutError(problems)


def _rows(
    tensors: Mapping[str, Any], spelling: Mapping[str, Any], at: str, gates: tuple[str, ...], kind: str
) -> list[Row | Problem]:
    rows: list[Row | Problem] = []
    for template, packing in tensors.items():
        optional = str(template).endswith("?")
        plain = str(template).removesuffix("?")
        try:
            row = Row(str(spelling.get(plain, plain)), parse_packing(packing, f"{at}.tensors.{plain}"), optional)
            _check_row(row, f"{at}.tensors.{plain}", gates, kind)
            rows.append(row)
        except LayoutError as error:
            rows.extend(error.problems)
    return rows


def _check_row(row: Row, where: str, gates: tuple[str, ...], kind: str) -> None:
    for term in row.packing.terms:
        for gate in term.gates or ():
            if gate not in gates and term.param in ("wx", "wt", "bi", "bt", "wp"):
                raise LayoutError(f"{where}: no gate {gate!r}; the gates are {', '.join(gates)}")
        if "gate" not in PARAMETERS[term.param]:
            continue
        single = len(term.gates or ()) == 1 or len(gates) == 1
        if "gate" in term.names():
            if row.per_gate:
                raise LayoutError(f"{where}: the gate stands in the name and in the shape")
        elif not row.per_gate and not single:
            raise LayoutError(f"{where}: where is the gate: in the name ({{gate}}), in the shape, or one only ({{i}})?")
    if kind == "rnn" and any(t.param in ("wp", "wr") for t in row.packing.terms):
        raise LayoutError(f"{where}: a plain RNN has no peepholes and no projection")


@functools.cache
def builtin() -> Mapping[str, Layout]:
    """The layouts that ship with weightport, by name, in the order of the tables.

    Raises:
        LayoutError: a shipped table is wrong (a bug).
    """
    import yaml  # read once and only where a layout is asked for

    found: dict[str, Layout] = {}
    folder = resources.files("weightport.layouts") / "tables"
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if not entry.name.endswith(".yaml"):
            continue
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        for name, table in yaml.load(entry.read_text(encoding="utf-8"), Loader=loader).items():
            found[name] = parse_layout(name, table, f"{entry.name} {name}")
    return found


def find_layout(name: str, own: Mapping[str, Layout] | None = None) -> Layout:
    """The layout of that name, a mapping's own ones first.

    Raises:
        LayoutError: no such layout, with the closest names.
    """
    layouts = {**builtin(), **(own or {})}
    if name not in layouts:
        raise LayoutError(f"no layout {name!r}; {closest(name, layouts) or 'weightport layouts lists them'}")
    return layouts[name]
