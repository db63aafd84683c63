"""The scope tree of a model, and the RNN cells that stand in it.

Promise: a cell is found by the names that a layout table gives to its tensors, and then confirmed by their shapes; by
shapes alone nothing is ever called a cell. Limit: a cell whose own scope has a name that its table does not know is
found only where a mapping names that scope, or the scope of the stack that it is a layer or direction of.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weightport.errors import LayoutError, Problem, closest, printable
from weightport.layouts import Form, Layout, builtin
from weightport.layouts.layout import KIND_GATES
from weightport.layouts.stacks import Cell, is_place, stacked
from weightport.layouts.units import (
    FORWARD,
    SCOPE,
    Shapes,
    Stored,
    Unit,
    anchor_name,
    fitting,
    full_name,
    match,
    packed_shape,
    spelled,
    stored_rows,
)
from weightport.tensors import TensorSpec


@dataclass(slots=True)
class Scope:
    """A scope: the scopes in it, and the tensors that stand directly in it (last part of the name -> spec)."""

    name: str
    scopes: dict[str, Scope] = field(default_factory=dict)
    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    separator: str = "/"

    def __str__(self) -> str:
        return "\n".join(map(printable, self.lines()))

    def walk(self, path: str = "") -> Iterator[tuple[str, Scope]]:
        """Every scope with its path, depth first, this one as ``path``."""
        pending = [(path, self)]
        while pending:
            at, scope = pending.pop()
            yield at, scope
            pending += [(f"{at}{self.separator}{n}" if at else n, s) for n, s in reversed(scope.scopes.items())]

    def lines(self, notes: Mapping[str, str] | None = None) -> Iterator[str]:
        """The tree drawn as text. ``notes``: path of a scope -> what to say beside it."""
        pending: list[tuple[str, str, str, Scope | TensorSpec, bool]] = []

        def push(scope: Scope, path: str, indent: str) -> None:
            entries: list[tuple[str, Scope | TensorSpec]] = [*scope.scopes.items(), *scope.tensors.items()]
            for number in range(len(entries) - 1, -1, -1):
                name, entry = entries[number]
                full = f"{path}{self.separator}{name}" if path else name
                pending.append((indent, full, name, entry, number == len(entries) - 1))

        if notes and "" in notes:
            yield f".  {notes['']}"
        push(self, "", "")
        while pending:
            indent, path, name, entry, last = pending.pop()
            branch = indent + ("└─ " if last else "├─ ")
            if isinstance(entry, Scope):
                note = (notes or {}).get(path)
                yield f"{branch}{name}{self.separator}" + (f"  {note}" if note else "")
                push(entry, path, indent + ("   " if last else "│  "))
            else:
                shape = "×".join(map(str, entry.shape)) or "scalar"
                yield f"{branch}{name}  {entry.dtype_name} {shape}" + (
                    "" if entry.role == "weight" else f" ({entry.role})"
                )


def separator_of(names: Iterable[str]) -> str:
    """What separates scopes in a model's names: ``/``, or ``.`` where no name has a slash, as in PyTorch.

    Of names with their specs, those of a graph's constants do not count: an exporter names them otherwise.
    """
    dotted = False
    for name in names:
        if "/" in name:
            if isinstance(names, Mapping) and names[name].role == "constant":
                continue
            return "/"
        dotted = dotted or "." in name
    return "." if dotted else "/"


def tree(specs: Mapping[str, TensorSpec]) -> Scope:
    """The scope tree of named tensors, separated as :func:`separator_of` says; their order is that of the names."""
    separator = separator_of(specs)
    root = Scope("", separator=separator)
    for name, spec in specs.items():
        *above, leaf = name.split(separator)
        scope = root
        for part in above:
            scope = scope.scopes.setdefault(part, Scope(part, separator=separator))
        scope.tensors[leaf] = spec
    return root


# Cells ---------------------------------------------------------------------------------------------------------------

_SUFFIX = re.compile(r"_\d{1,6}\Z")
Facts = Callable[[Sequence[str]], Mapping[str, Any]]
#: What an optimizer keeps is never part of a cell.
_STATE = ("slot", "optimizer")


def find_cells(
    specs: Mapping[str, TensorSpec],
    layouts: Iterable[Layout] | None = None,
    *,
    below: str = "",
    facts: Facts | None = None,
) -> list[Cell]:
    """The cells in a model, in the order of their tensors.

    Args:
        specs: the model's tensors.
        layouts: the layouts to look for; by default those that ship with weightport.
        below: only there.
        facts: what the file records of tensors (:meth:`weightport.tensors.Source.facts`). A cell whose scope has a name
            that its table does not know is found where they tell its gates, in the table's order.
    """
    layouts = tuple(builtin().values() if layouts is None else layouts)
    if separator_of(specs) == ".":
        slashed = {name.replace(".", "/"): spec for name, spec in specs.items() if spec.role != "constant"}
        return [_dotted(cell) for cell in find_cells(slashed, layouts, below=below.replace(".", "/"))]
    prefix = f"{below}/" if below else ""
    shapes = {n: s.shape for n, s in specs.items() if s.role not in _STATE and n.startswith(prefix)}
    order = {name: number for number, name in enumerate(shapes)}
    units = _apart(_found(shapes, layouts))
    if facts is not None:
        units = _apart([*units, *_told(shapes, layouts, {name for unit in units for name in unit.names}, facts)])
    units.sort(key=lambda u: min(order[name] for name in u.names))
    return stacked(units, below)


def vectors(specs: Mapping[str, TensorSpec]) -> dict[str, list[str]]:
    """Tensors that are called as a whole cell in one vector is, and the layouts that call them so.

    Nothing tells which of them it is, and how large: a rule does.
    """
    found: dict[str, list[str]] = {}
    for layout in (la for la in builtin().values() if la.packed):
        leaf = layout.forms[0].anchor.template
        for name, spec in specs.items():
            if len(spec.shape) == 1 and spec.role not in _STATE and re.split("[/.]", name)[-1] == leaf:
                found.setdefault(name, []).append(layout.name)
    return found


def resolve_cell(
    specs: Mapping[str, TensorSpec],
    layout: Layout,
    scope: str,
    *,
    skip: frozenset[str] = frozenset(),
    sizes: Mapping[str, int] | None = None,
) -> Cell:
    """The one cell of that layout at or below ``scope``, whatever its own scope is called.

    Below it, a cell whose scope has a name that its table does not know counts only as part of a stack: under scopes
    of layers or directions.

    Args:
        sizes: of a cell that is one vector, whose length does not tell them (:func:`units.packed_sizes`).

    Raises:
        LayoutError: none, or several, with what was found instead; a vector without sizes, or of another length.
    """
    if separator_of(specs) == ".":
        slashed = {name.replace(".", "/"): spec for name, spec in specs.items() if spec.role != "constant"}
        hidden = frozenset(name.replace(".", "/") for name in skip)
        return _dotted(resolve_cell(slashed, layout, scope.replace(".", "/"), skip=hidden, sizes=sizes))
    prefix = f"{scope}/" if scope else ""
    start = scope if any(form.joined for form in layout.forms) else prefix
    shapes = {
        name: spec.shape
        for name, spec in specs.items()
        if name.startswith(start) and name not in skip and spec.role not in _STATE
    }
    if layout.packed:
        return _in_one_vector(specs, layout, scope, shapes, sizes)
    places = {suffix: _match_at(layout, scope, shapes, suffix) for suffix in _suffixes(layout, scope, shapes)}
    here = [unit for units in places.values() for unit in units]
    if here:
        return _one(stacked(here, scope), layout, scope)

    def below(any_scope: bool) -> list[Unit]:
        found = (u for u in _found(shapes, [layout], any_scope=any_scope) if u.scope.startswith(prefix))
        return _apart(found)

    cells = stacked(below(False), scope)
    if cells:
        return _one(cells, layout, scope)
    unnamed = below(True)
    cells = stacked([u for u in unnamed if any(map(is_place, u.scope[len(prefix) :].split("/")))], scope)
    if cells:
        return _one(cells, layout, scope)
    raise LayoutError(
        _missing(specs, {n: s for n, s in shapes.items() if n.startswith(prefix)}, layout, scope, unnamed)
    )


def _in_one_vector(
    specs: Mapping[str, TensorSpec], layout: Layout, scope: str, shapes: Shapes, sizes: Mapping[str, int] | None
) -> Cell:
    by_leaf: dict[str, list[str]] = {}
    for name in shapes:
        by_leaf.setdefault(name.rpartition("/")[2], []).append(name)
    found = [(form, at) for form in layout.forms for at, _ in _places(layout, form, by_leaf)]
    found = [(form, at) for form, at in found if at == scope] or found
    if not found:
        raise LayoutError(_missing(specs, shapes, layout, scope, ()))
    if len(found) > 1:
        where = ", ".join(repr(at) for _, at in found[:8])
        raise LayoutError(
            f"{len(found)} vectors of layout {layout.name} stand below scope {scope!r}: {where}; name one"
        )
    ((form, at),) = found
    stored = Stored(form.anchor, None, full_name(at, form.anchor.template))
    shape = shapes[stored.name]
    if sizes is None:
        what = f"the {_values(shape)} of {stored.name!r} do not tell how large the {layout.kind} is"
        raise LayoutError(Problem("", what, "state it: sizes: {input: 64, units: 128, layers: 2, directions: 1}"))
    units = match(layout, form, at, shapes, sizes=sizes)
    if not units:
        (needed,) = packed_shape(layout, stored, sizes)
        what = f"{stored.name!r} has {_values(shape)}; a {layout.kind} of {_counted(sizes)} has {needed}"
        fit = " or ".join(fitting(layout, stored, shape, sizes))
        raise LayoutError(Problem("", what, f"what would fit: {fit}" if fit else ""))
    return Cell(at, layout, tuple(units))


def _values(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} values" if len(shape) == 1 else f"shape {list(shape)}"


def _counted(sizes: Mapping[str, int]) -> str:
    names = (("input", "inputs"), ("unit", "units"), ("layer", "layers"), ("direction", "directions"))
    return ", ".join(f"{sizes[axis]} {name.removesuffix('s') if sizes[axis] == 1 else name}" for axis, name in names)


def _dotted(cell: Cell) -> Cell:
    """A cell that was found under names with slashes, under its names with dots. No name has a slash of its own."""

    def dots(unit: Unit) -> Unit:
        tensors = tuple(replace(stored, name=stored.name.replace("/", ".")) for stored in unit.tensors)
        return replace(unit, scope=unit.scope.replace("/", "."), tensors=tensors)

    return replace(cell, scope=cell.scope.replace("/", "."), units=tuple(map(dots, cell.units)))


def _match_at(layout: Layout, scope: str, shapes: Shapes, suffix: str) -> list[Unit]:
    return _best(unit for form in _likeliest(layout, scope) for unit in match(layout, form, scope, shapes, suffix))


def _suffixes(layout: Layout, scope: str, shapes: Shapes) -> list[str]:
    """What may follow the names of the tensors of cells that stand in that one scope: ``""``, ``_1``, ..."""
    found = [""]
    while layout.suffixes and any(
        full_name(scope, anchor_name(layout, form)) + f"_{len(found)}" in shapes for form in layout.forms
    ):
        found.append(f"_{len(found)}")
    return found


def _likeliest(layout: Layout, scope: str) -> list[Form]:
    """The layout's forms, those first whose cells have scopes of that name."""
    return sorted(layout.forms, key=lambda form: not (form.cells and is_cell(scope, form.cells)))


def _one(cells: Sequence[Cell], layout: Layout, scope: str) -> Cell:
    if len(cells) > 1:
        found = ", ".join(repr(c.scope) for c in cells[:8])
        raise LayoutError(
            f"{len(cells)} cells of layout {layout.name} stand below scope {scope!r}: {found}; name one of them"
        )
    return cells[0]


def _missing(
    specs: Mapping[str, TensorSpec], shapes: Shapes, layout: Layout, scope: str, unnamed: Sequence[Unit]
) -> str:
    expected = ", ".join(
        spelled(layout, row.template, (layout.gates[0] if row.per_gate else None), 0, FORWARD).replace(SCOPE, "...")
        for row in layout.forms[0].rows
        if not row.optional
    )
    what = f"no {layout.name} cell at or below scope {scope!r} (expected tensors such as {expected})"
    if unnamed:
        where = ", ".join(repr(u.scope) for u in unnamed[:5])
        return f"{what}; tensors of these names, but in a scope of another name, stand at {where}: name that scope"
    other = find_cells({n: specs[n] for n in shapes}) if shapes else []
    if other:
        return f"{what}; found: " + ", ".join(f"{c.layout.name} at {c.scope!r}" for c in other[:5])
    if shapes:
        return f"{what}; found: " + ", ".join(repr(n) + f" {list(s)}" for n, s in list(shapes.items())[:6])
    scopes = {path for path, _ in tree(specs).walk() if path}
    return f"no scope {scope!r}" + (f"; {near}" if (near := closest(scope, scopes)) else "")


def _found(shapes: Shapes, layouts: Iterable[Layout], *, any_scope: bool = False) -> Iterator[Unit]:
    """Every unit of every form; those of one layout at one place once, the fullest."""
    by_leaf: dict[str, list[str]] = {}
    for name in shapes:
        leaf = name.rpartition("/")[2]
        by_leaf.setdefault(leaf, []).append(name)
        plain = _unnumbered(leaf)
        if plain != leaf:
            by_leaf.setdefault(plain, []).append(name)
    for layout in layouts:
        places: dict[tuple[str, str], list[Unit]] = {}
        for form in layout.forms:
            for scope, suffix in _places(layout, form, by_leaf):
                if form.cells and not any_scope and not is_cell(scope, form.cells):
                    continue
                places.setdefault((scope, suffix), []).extend(match(layout, form, scope, shapes, suffix))
        for units in places.values():
            yield from _best(units)


def _told(shapes: Shapes, layouts: Iterable[Layout], known: set[str], facts: Facts) -> Iterator[Unit]:
    """Units in scopes of any name whose gates the file itself tells."""
    named = [la for la in layouts if la.kind in KIND_GATES and any(form.cells for form in la.forms)]
    for unit in _found(shapes, named, any_scope=True):
        free = bool(unit.form.cells) and known.isdisjoint(unit.names)
        if free and facts(unit.names).get("gates") == list(unit.layout.gates):
            yield unit


def _places(layout: Layout, form: Form, by_leaf: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """The scopes (and suffixes) under which the rarest of the form's required tensors stands."""
    if form.joined:
        end = anchor_name(layout, form).removeprefix(SCOPE)
        for leaf, names in by_leaf.items():
            if leaf.endswith(end):
                yield from ((name.removesuffix(end), "") for name in names if name.endswith(end))
        return
    required = [spelled(layout, r.template, g, 0, FORWARD) for r, g in stored_rows(layout, form) if not r.optional]
    first = min(required, key=lambda text: len(by_leaf.get(text.rpartition("/")[2], ())))
    for name in by_leaf.get(first.rpartition("/")[2], ()):
        suffix = ""
        if name != first and not name.endswith("/" + first):
            if not layout.suffixes:
                continue
            hit = _SUFFIX.search(name)
            suffix = hit[0] if hit else ""
            plain = name[: len(name) - len(suffix)]
            if not suffix or (plain != first and not plain.endswith("/" + first)):
                continue
        yield name[: len(name) - len(first) - len(suffix)].removesuffix("/"), suffix


def is_cell(scope: str, cells: Sequence[str]) -> bool:
    """Whether the last part of a scope is one of these names, numbered or not (``lstm_cell_1``)."""
    return _unnumbered(scope.rpartition("/")[2]) in cells


@functools.lru_cache(maxsize=10_000)
def _unnumbered(name: str) -> str:
    """A scope's or tensor's own name without the number at its end; models have few names, many times."""
    return _SUFFIX.sub("", name)


def _best(units: Iterable[Unit]) -> list[Unit]:
    """Of the units with one layer and direction, the one with the most tensors (the first form, if equal)."""
    best: dict[tuple[int, str], Unit] = {}
    for unit in units:
        key = (unit.layer, unit.direction)
        if key not in best or len(unit.tensors) > len(best[key].tensors):
            best[key] = unit
    return list(best.values())


def _apart(units: Iterable[Unit]) -> list[Unit]:
    """Units that share no tensor (but as layers of one layout do): the fuller one stays; of equal ones that whose table
    says more of the names, and leaves less of them to the scope.
    """
    claimed: dict[str, Unit] = {}
    kept = []
    for unit in sorted(units, key=lambda u: (-len(u.tensors), len(u.scope))):
        others = [claimed[n] for n in unit.names if n in claimed]
        if all(u.layout.name == unit.layout.name and u.tensors == unit.tensors for u in others):
            kept.append(unit)
            claimed.update(dict.fromkeys(unit.names, unit))
    return kept
