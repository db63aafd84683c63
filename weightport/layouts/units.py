"""One RNN cell as a file or model stores it: which tensor is which row of which layout, and how large its axes are.

A :class:`Unit` is one layer in one direction. :func:`match` decides by names whether the tensors under a path are a
form of a layout, and only then solves the axes' sizes from the shapes; names that fit with shapes that don't are no
match.

Promise: a layout is never told by shapes alone. Limit: where a layer or direction is an axis of the shape, all of them
must have the same sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from weightport.layouts.layout import Form, Layout, Row
from weightport.layouts.notation import Group, Packing, Term, base

Shapes = Mapping[str, tuple[int, ...]]
FORWARD, BACKWARD = "forward", "backward"
DIRECTIONS = (FORWARD, BACKWARD)
#: What a name template begins with that continues the last part of the cell's scope.
SCOPE = "{scope}"
#: How many layers of a cell that is one vector are tried for a hint.
_LAYERS = 32


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of a form, for one gate where the gate stands in the name: the tensor that holds it."""

    row: Row
    gate: str | None
    name: str


@dataclass(frozen=True, slots=True)
class Unit:
    """One layer, one direction.

    Attributes:
        scope: the path under which its tensors stand.
        layer, direction: as the names under ``scope`` or the axes of its tensors say.
        tensors: what is stored.
        sizes: ``input``, ``hidden``, ``unit``, the layout's own axes, and ``layer``, ``direction`` where they are axes;
            in a vector that holds all layers ``first``, the input of the first.
        index: the position on the axes ``layer`` and ``direction`` of its tensors.
    """

    layout: Layout
    form: Form
    scope: str
    layer: int
    direction: str
    tensors: tuple[Stored, ...]
    sizes: Mapping[str, int]
    index: Mapping[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names."""
        return tuple(s.name for s in self.tensors)

    @property
    def params(self) -> frozenset[str]:
        """The canonical parameters that are stored."""
        return frozenset(t.param for s in self.tensors for t in s.row.packing.terms)


def spelled(layout: Layout, template: str, gate: str | None, layer: int, direction: str) -> str:
    """A tensor's name under its cell's scope; :func:`full_name` puts it there."""
    text = gate if gate is None else layout.gate_names.get(gate, gate)
    if text is not None:
        template = template.replace("{gate}", text).replace("{GATE}", text.upper())
    return template.replace("{layer}", str(layer)).replace("{direction}", layout.directions.get(direction, ""))


def full_name(scope: str, name: str, separator: str = "/") -> str:
    """A tensor's name in the model, from its cell's scope and its name as :func:`spelled` gives it.

    Args:
        separator: what the model has where a table writes a slash.
    """
    if separator != "/":
        name = name.replace("/", separator)
    if name.startswith(SCOPE):
        return scope + name.removeprefix(SCOPE)
    return f"{scope}{separator}{name}" if scope else name


def stored_rows(layout: Layout, form: Form) -> Iterator[tuple[Row, str | None]]:
    """Every row, once for each gate where the gate stands in its name."""
    for row in form.rows:
        if row.per_gate:
            for gate in layout.gate_order(row.packing.terms[0].param, row.packing.terms[0].gates):
                yield row, gate
        else:
            yield row, None


def match(
    layout: Layout,
    form: Form,
    scope: str,
    shapes: Shapes,
    suffix: str = "",
    sizes: Mapping[str, int] | None = None,
) -> list[Unit]:
    """The units of that form whose tensors stand directly under ``scope``: one for each layer and direction found.

    Args:
        shapes: name -> shape of every tensor of the model.
        suffix: what follows every tensor's name (``_1`` where several cells share a scope).
        sizes: ``input``, ``unit``, ``layer``, ``direction`` of a cell that is one vector; without them it is none.
    """
    if form.packed:
        return _in_one_vector(layout, form, scope, shapes, sizes) if sizes is not None and not suffix else []
    units: list[Unit] = []
    for layer, direction in _indices(layout, form, scope, shapes, suffix):
        tensors = []
        for row, gate in stored_rows(layout, form):
            name = full_name(scope, spelled(layout, row.template, gate, layer, direction)) + suffix
            if name in shapes:
                tensors.append(Stored(row, gate, name))
            elif not row.optional:
                break
        else:
            if not _complete(tensors, layout, form) or _fuller(layout, form, scope, layer, direction, shapes, suffix):
                continue
            sizes = solve(layout, tensors, shapes)
            if sizes is not None:
                number = int(suffix[1:]) if suffix else layer
                units.extend(_spread(layout, form, scope, number, direction, tuple(tensors), sizes))
    return units


def anchor_name(layout: Layout, form: Form, layer: int = 0, direction: str = FORWARD) -> str:
    """The name of the first tensor that no cell of that form lacks, as :func:`spelled` gives it."""
    row = form.anchor
    first = row.packing.terms[0]
    gate = layout.gate_order(first.param, first.gates)[0] if row.per_gate else None
    return spelled(layout, row.template, gate, layer, direction)


def _indices(layout: Layout, form: Form, scope: str, shapes: Shapes, suffix: str) -> Iterator[tuple[int, str]]:
    """The layers and directions that names show: from 0 on, up to the first layer that isn't there."""
    directions = DIRECTIONS if "{direction}" in form.anchor.template else (FORWARD,)
    for layer in itertools.count() if "{layer}" in form.anchor.template else range(1):
        found = [d for d in directions if full_name(scope, anchor_name(layout, form, layer, d)) + suffix in shapes]
        if not found:
            return
        yield from ((layer, direction) for direction in found)


def _fuller(layout: Layout, form: Form, scope: str, layer: int, direction: str, shapes: Shapes, suffix: str) -> bool:
    """Whether a tensor is there that only fuller forms have: a bias that doesn't fit is not the lack of one."""
    names = (spelled(layout, text, gate, layer, direction) for text in form.absent for gate in layout.gates)
    return any(full_name(scope, name) + suffix in shapes for name in names)


def _complete(tensors: list[Stored], layout: Layout, form: Form) -> bool:
    """Whether a row that is stored for one gate is stored for all of its gates."""
    return all(
        sum(s.row is row for s in tensors) in (0, sum(r is row for r, _ in stored_rows(layout, form)))
        for row in form.rows
        if row.per_gate
    )


def _spread(
    layout: Layout,
    form: Form,
    scope: str,
    layer: int,
    direction: str,
    tensors: tuple[Stored, ...],
    sizes: Mapping[str, int],
) -> Iterator[Unit]:
    """One unit for each index of the axes ``layer`` and ``direction``, if they are axes."""
    for k in range(sizes.get("layer", 1)):
        for d in range(sizes.get("direction", 1)):
            index = {axis: at for axis, at in (("layer", k), ("direction", d)) if axis in sizes}
            which = DIRECTIONS[d] if "direction" in sizes else direction
            yield Unit(layout, form, scope, layer + k, which, tensors, sizes, index)


# Sizes ---------------------------------------------------------------------------------------------------------------


def gates_of(layout: Layout, term: Term, gate: str | None) -> tuple[str, ...]:
    """The gates that a term holds, in stored order; ``gate`` is the one in the tensor's name."""
    if "gate" in term.names():
        return layout.gate_order(term.param, term.gates)
    if gate is not None:
        return (gate,)
    return term.gates or layout.gates[:1]


def dims_of(term: Term) -> tuple[Group, ...]:
    """The dimensions under which the term is stored."""
    return term.declared or term.axes


def extent(layout: Layout, term: Term, dim: int, sizes: Mapping[str, int]) -> int:
    """The term's extent on a stored dimension."""
    return prod(
        len(layout.gate_order(term.param, term.gates)) if axis == "gate" else sizes[base(axis)]
        for axis in dims_of(term)[dim]
    )


def solve(layout: Layout, tensors: list[Stored], shapes: Shapes) -> dict[str, int] | None:
    """The sizes of the axes, from the shapes; None where the shapes don't fit the packing."""
    projected = any(t.param == "wr" for s in tensors for t in s.row.packing.terms)
    sizes: dict[str, int] = {}
    wanted = {base(axis) for s in tensors for t in s.row.packing.terms for axis in t.names()} - {"gate"}
    if any(len(shapes[s.name]) != s.row.packing.rank for s in tensors):
        return None
    for _ in range(len(wanted) + 1):
        for stored in tensors:
            if not _learn(layout, stored, shapes[stored.name], sizes, projected):
                return None
    if not wanted <= set(sizes):
        return None
    sizes.setdefault("hidden", sizes.get("unit", 0))
    if any(packed_shape(layout, s, sizes) != shapes[s.name] for s in tensors):
        return None
    if min(sizes.values()) < 1 or sizes.get("direction", 1) > len(DIRECTIONS):
        return None
    return sizes


def packed_shape(layout: Layout, stored: Stored, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a stored tensor whose axes have those sizes (-1 where its terms disagree)."""
    packing = stored.row.packing
    if packing.runs:
        return (sum(_lengths(layout, packing, sizes, None)),)
    shape = []
    for dim in range(packing.rank):
        extents = [extent(layout, term, dim, sizes) for term in packing.terms]
        if dim == packing.axis:
            shape.append(sum(extents))
        else:
            shape.append(extents[0] if len(set(extents)) == 1 else -1)
    return tuple(shape)


# One vector for all layers and directions ---------------------------------------------------------------------------


def packed_sizes(inputs: int, units: int, layers: int = 1, directions: int = 1) -> dict[str, int]:
    """The sizes of the first layer of a cell that is one vector."""
    own = {"input": inputs, "unit": units, "hidden": units}
    return {**own, "layer": layers, "direction": directions, "first": inputs}


def of_layer(sizes: Mapping[str, int], layer: int) -> dict[str, int]:
    """The sizes of one layer of such a cell: those after the first take the outputs of all directions."""
    return {**sizes, "input": sizes["direction"] * sizes["hidden"] if layer else sizes["first"]}


def starts(unit: Unit, packing: Packing) -> list[int]:
    """Where the terms of such a vector begin for one layer and direction."""
    found, at = [], 0
    terms = iter(packing.terms)
    whole = _lengths(unit.layout, packing, unit.sizes, None)
    before = _lengths(unit.layout, packing, unit.sizes, (unit.index["layer"], unit.index["direction"]))
    own = of_layer(unit.sizes, unit.index["layer"])
    for count, total, skipped in zip(packing.runs, whole, before, strict=True):
        offset = at + skipped
        for _, term in zip(range(count), terms, strict=False):
            found.append(offset)
            offset += extent(unit.layout, term, 0, own)
        at += total
    return found


def _lengths(layout: Layout, packing: Packing, sizes: Mapping[str, int], place: tuple[int, int] | None) -> list[int]:
    """The length of each list of terms over all layers and directions, or over those before one."""
    found, at = [], 0
    for count in packing.runs:
        terms = packing.terms[at : at + count]
        first, later = (sum(extent(layout, t, 0, of_layer(sizes, layer)) for t in terms) for layer in (0, 1))
        layer, direction = place if place is not None else (sizes["layer"], 0)
        whole = sizes["direction"] * (first + (layer - 1) * later) if layer else 0
        found.append(whole + direction * (later if layer else first))
        at += count
    return found


def fitting(layout: Layout, stored: Stored, shape: tuple[int, ...], sizes: Mapping[str, int]) -> list[str]:
    """The layers and directions, as a mapping states them, with which such a cell of these inputs and units would have
    that shape.
    """
    return [
        f"layers: {layers}, directions: {directions}"
        for directions in (1, 2)
        for layers in range(1, _LAYERS + 1)
        if packed_shape(layout, stored, packed_sizes(sizes["first"], sizes["unit"], layers, directions)) == shape
    ]


def _in_one_vector(layout: Layout, form: Form, scope: str, shapes: Shapes, sizes: Mapping[str, int]) -> list[Unit]:
    row = form.anchor
    stored = Stored(row, None, full_name(scope, row.template))
    if shapes.get(stored.name) != packed_shape(layout, stored, sizes):
        return []  # which bounds the number of layers
    return [
        Unit(layout, form, scope, k, DIRECTIONS[d], (stored,), of_layer(sizes, k), {"layer": k, "direction": d})
        for k in range(sizes["layer"])
        for d in range(sizes["direction"])
    ]


def _learn(layout: Layout, stored: Stored, shape: tuple[int, ...], sizes: dict[str, int], projected: bool) -> bool:
    """Take in what one tensor's shape says; False where it cannot be."""
    packing = stored.row.packing
    for dim, total in enumerate(shape):
        groups = [packing.terms] if dim == packing.axis else [(term,) for term in packing.terms]
        for terms in groups:
            known = 0
            open_terms: list[tuple[int, str]] = []
            for term in terms:
                factor, unknown = 1, list[str]()
                for axis in map(base, dims_of(term)[dim]):
                    if axis == "gate":
                        factor *= len(layout.gate_order(term.param, term.gates))
                    elif axis in sizes:
                        factor *= sizes[axis]
                    else:
                        unknown.append(axis)
                if not unknown:
                    known += factor
                elif len(unknown) == 1:
                    open_terms.append((factor, unknown.pop()))
                else:
                    open_terms.append((0, ""))
            names = {name for _, name in open_terms}
            factor = sum(f for f, _ in open_terms)
            if len(names) != 1 or not factor:
                continue
            rest = total - known
            if rest < 0 or rest % factor:
                return False
            name = names.pop()
            sizes[name] = rest // factor
            if not projected and name in ("unit", "hidden"):
                sizes["unit"] = sizes["hidden"] = rest // factor
    return True
