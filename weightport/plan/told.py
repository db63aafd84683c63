"""What is told of a cell beside its tensors: its sizes by a rule, the order of its gates by a graph, how its
convolution lies on its image by a layer.

A cell that is one vector for all layers and directions (cuDNN's parameter buffer) needs its sizes told: its length fits
many. Where a rule is silent, they are those of the cell on the rule's other side. Any other cell is checked against
them. A graph that splits an LSTM's gates in another order than the layout's table has shows that the layout is wrong.

Promise: what contradicts the tensors or the graph is an error. Limit: nothing is guessed from a length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightport.errors import LayoutError, Problem
from weightport.layouts.stacks import Cell
from weightport.layouts.units import Unit, fitting, packed_shape, packed_sizes
from weightport.mapping.rules import CellRef

Sizes = Mapping[str, int]
Facts = Mapping[str, Any]


def sizes_of(sizes: Sizes | None, like: Cell | None) -> Sizes | None:
    """The sizes of a cell that is one vector: as its rule says, else as the cell on the other side has them.

    Args:
        like: the other cell, if it is known.
    """
    found = sizes if sizes is not None else {} if like is None else of(like)
    known = {key: value for key, value in found.items() if isinstance(value, int)}
    if not known or len(known) < len(found):
        return None  # layers of different sizes do not fit into one vector
    return packed_sizes(known["input"], known["units"], known["layers"], known["directions"])


def of(cell: Cell) -> Mapping[str, object]:
    """The sizes of a cell as a rule states them; those of layers that differ are a list."""
    units, directions = cell.per_unit("unit"), len(cell.directions)
    return {"input": cell.input, "units": units, "layers": cell.layers, "directions": directions}


def check_sizes(cell: Cell, sizes: Sizes | None) -> None:
    """That a cell has the sizes that a rule states.

    Raises:
        LayoutError: it has others.
    """
    pairs = [(key, value, (sizes or {}).get(key, value)) for key, value in of(cell).items()]
    wrong = [f"{key}: {own}, not {said}" for key, own, said in pairs if own != said]
    if wrong:
        raise LayoutError(Problem("", f"the sizes of the cell at {cell.scope or '.'!r} are {', '.join(wrong)}"))


def alike(cell: Cell) -> list[str]:
    """What is to be said of a cell that is one vector as long as one with other numbers of layers and directions is."""
    if not cell.layout.packed:
        return []
    unit = cell.units[0]
    (stored,) = unit.tensors
    shape = packed_shape(cell.layout, stored, unit.sizes)
    mine = f"layers: {unit.sizes['layer']}, directions: {unit.sizes['direction']}"
    others = [other for other in fitting(cell.layout, stored, shape, unit.sizes) if other != mine]
    return [
        f"{stored.name!r} would be as long with {other}: that it is {mine} is the mapping's word" for other in others
    ]


def order(*unsized: bool) -> tuple[int, int]:
    """Which side's cell is looked for first: a side whose sizes only the other one tells comes last.

    Args:
        unsized: of the source and of the target, whether its sizes are told by neither its tensors nor its rule.
    """
    return (1, 0) if unsized == (True, False) else (0, 1)


def check_windows(units: tuple[Unit, Unit], facts: tuple[Facts, Facts], where: str) -> list[Problem]:
    """What makes two convolutions with the same weights different functions: how they lie on their images.

    Args:
        units: the source's and the target's.
        facts: what is recorded of each.
    """
    mine, its = (
        said.get("window", "" if "window" in unit.layout.fixed else None)
        for unit, said in zip(units, facts, strict=True)
    )
    if mine is None or its is None or mine == its:
        return []  # what nothing records is taken to be as on the other side
    usual = "padding same, no strides"
    what = f"the source's convolution has {mine or usual}, the target's {its or usual}: another function"
    return [Problem(where, what)]


def check_uniform(pairs: Sequence[tuple[Unit, Unit]], ref: CellRef, where: str) -> list[Problem]:
    """What does not fit into the one module that a layout makes of all layers and directions.

    Args:
        pairs: the source's units and the ones that they would become.
        ref: the target. Where it picks directions, another rule may bring the other one, which feeds every layer, too.
    """
    layout = pairs[0][1].layout
    if not layout.uniform or not all("{layer}" in other.form.rows[0].template for _, other in pairs):
        return []
    units, problems = [unit for unit, _ in pairs], []
    hint = "a module for each of them: a rule for each layer (layers: [0]), each into a scope of its own"
    for axis, name in (("unit", "units"), ("hidden", "outputs")):
        sizes = [str(unit.sizes[axis]) for unit in units]
        if len(set(sizes)) > 1:
            what = f"{layout.name} is one module of layers that have as many {name} each; these have {', '.join(sizes)}"
            return [Problem(where, what, hint)]
    given = units[0].sizes["hidden"] * len({unit.direction for unit in units})
    layers = {other.layer for _, other in pairs} if ref.directions is None else set()
    for unit, other in pairs:
        if other.layer - 1 in layers and unit.sizes["input"] != given:
            what = (
                f"{layout.name} is one module in which each layer takes what the one before it gives, here {given} "
                f"values; layer {other.layer} takes {unit.sizes['input']}"
            )
            problems.append(Problem(where, what, hint))
    return problems


def check_buffer(unit: Unit, facts: Facts, ref: CellRef) -> list[Problem]:
    """What a graph says against the kind and the directions of a cell that is one vector.

    Args:
        facts: what the file records of the unit (:meth:`weightport.tensors.Source.facts`).
    """
    if not unit.layout.packed or "cudnn" not in facts:
        return []
    mine, its = _counted(unit.layout.kind, unit.sizes["direction"]), _counted(*facts["cudnn"])
    what = f"the graph gives {unit.names[0]!r} to cuDNN as {its}, the rule takes it as {mine}"
    return [Problem(ref.where, what)] if mine != its else []


def _counted(kind: str, directions: int) -> str:
    return f"a {kind} of {directions} direction" + ("s" if directions > 1 else "")


def check_gates(unit: Unit, facts: Facts, ref: CellRef) -> list[Problem]:
    """What a graph says against the order of the gates in a unit's tensors; the mapping's word is not doubted.

    Args:
        facts: what the file records of the unit (:meth:`weightport.tensors.Source.facts`).
    """
    order, layout = facts.get("gates"), unit.layout
    terms = [t for s in unit.tensors for t in s.row.packing.terms if t.param in ("wx", "wt")]
    in_names = layout.kind != "lstm" or any("gate" not in term.names() for term in terms)
    if order is None or in_names or ref.gates is not None or list(order) == list(layout.gates):
        return []
    what = (
        f"the graph has the gates of {unit.scope or '.'!r} in the order {', '.join(order)}, "
        f"{layout.name} has {', '.join(layout.gates)}"
    )
    return [Problem(ref.where, what, f"if it is that layout all the same: gates: [{', '.join(order)}]")]
