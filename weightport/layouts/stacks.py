"""Stacks of cells: which units are the layers and directions of one network, told by the scopes that hold them.

A scope ``cell_K`` (``CellK`` in TensorFlow 0.12) counts layers; ``fw``/``bw`` (``FW``/``BW``) and Keras'
``forward_*``/``backward_*`` are directions. Units whose paths differ in nothing else, and that fill every layer and
direction, are one :class:`Cell`.

Promise: layers are in numeric order. Limit: a grid with holes is not a stack; its units stay cells of their own.

Sources: tensorflow/python/ops/rnn_cell_impl.py (MultiRNNCell.call), tensorflow/python/ops/rnn.py
(bidirectional_dynamic_rnn), tensorflow/contrib/rnn/python/ops/rnn.py (stack_bidirectional_dynamic_rnn),
keras/src/layers/rnn/bidirectional.py, keras/src/layers/rnn/stacked_rnn_cells.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from weightport.layouts.table import Layout
from weightport.layouts.units import BACKWARD, DIRECTIONS, FORWARD, Unit

_LAYER = re.compile(r"cell_(\d{1,6})|Cell(\d{1,6})")
_FORWARD = re.compile(r"fw|FW|forward(_.*)?")
_BACKWARD = re.compile(r"bw|BW|backward(_.*)?")
_NUMBERED = re.compile(r"(.*?)(?:_(\d{1,6}))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell as users see it: one unit, or a stack of layers and directions.

    Attributes:
        scope: the path that holds it all.
        units: by layer, then by direction, forward first; their ``layer`` counts from 0.
    """

    scope: str
    layout: Layout
    units: tuple[Unit, ...]

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len({u.layer for u in self.units})

    @property
    def directions(self) -> tuple[str, ...]:
        """``forward`` and/or ``backward``."""
        return tuple(d for d in DIRECTIONS if any(u.direction == d for u in self.units))

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's name, once."""
        return tuple(dict.fromkeys(name for u in self.units for name in u.names))

    @property
    def input(self) -> int:
        """The size of the first layer's input."""
        return self.units[0].sizes["input"]

    def per_unit(self, axis: str) -> int | list[int]:
        """A size that is the same everywhere, or the list of the layers' (of the directions', in one layer)."""
        values = [u.sizes[axis] for u in self.units]
        if len(set(values)) == 1:
            return values[0]
        by_layer = [{u.sizes[axis] for u in self.units if u.layer == k} for k in range(self.layers)]
        if all(len(sizes) == 1 for sizes in by_layer):
            return [sizes.pop() for sizes in by_layer]
        return values

    @property
    def hidden(self) -> int | list[int]:
        """The size of the output: of the projection where there is one, else the units."""
        return self.per_unit("hidden")


def stacked(units: Iterable[Unit], below: str = "") -> list[Cell]:
    """The cells that the units make up, in the units' order.

    Args:
        units: of any layouts and places.
        below: only scopes below this one count as layers and directions.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[int, str, Unit]]] = {}
    for unit in units:
        key, layer, direction = _key(unit, below)
        groups.setdefault((unit.layout.name, key), []).append((layer, direction, unit))
    cells = []
    for members in groups.values():
        if _fills_a_grid(members):
            ordered = sorted(members, key=lambda m: (m[0], DIRECTIONS.index(m[1])))
            units_ = tuple(replace(u, layer=k, direction=d) for k, d, u in ordered)
            cells.append(
                Cell(_holding([_layer_scope(u, [m[2] for m in members]) for u in units_]), units_[0].layout, units_)
            )
        else:
            cells.extend(_alone(unit) for _, _, unit in members)
    return cells


def _alone(unit: Unit) -> Cell:
    return Cell(_layer_scope(unit, [unit]), unit.layout, (replace(unit, layer=0, direction=FORWARD),))


def is_place(scope: str) -> bool:
    """Whether a scope's own name is that of a layer or a direction of a stack."""
    return any(pattern.fullmatch(scope) for pattern in (_LAYER, _FORWARD, _BACKWARD))


def place_of(scope: str, below: str, layout: Layout) -> tuple[int, str]:
    """The layer and direction of a cell at a scope, told by the scopes below ``below``."""
    return _placed(scope, below, layout, 0, FORWARD)[1:]


def _key(unit: Unit, below: str) -> tuple[tuple[str, ...], int, str]:
    """The path with its layers and directions taken out; layer and direction."""
    return _placed(unit.scope, below, unit.layout, unit.layer, unit.direction)


def _placed(scope: str, below: str, layout: Layout, layer: int, direction: str) -> tuple[tuple[str, ...], int, str]:
    parts = scope.split("/") if scope else []
    skip = len(below.split("/")) if below else 0
    inside = False
    key = []
    for number, part in enumerate(parts):
        if number < skip:
            key.append(part)
            continue
        hit = _LAYER.fullmatch(part)
        if hit:
            layer, inside, part = int(hit[1] or hit[2]), True, "cell_{layer}"
        elif _FORWARD.fullmatch(part) or _BACKWARD.fullmatch(part):
            direction = FORWARD if _FORWARD.fullmatch(part) else BACKWARD
            inside, part = True, "{direction}"
        elif number == len(parts) - 1 and (inside or layout.inner):
            # Keras numbers the cells of a model through, whatever layer and direction they are of.
            match = _NUMBERED.fullmatch(part)
            assert match is not None
            if layout.inner == match[1] and not inside:
                layer = int(match[2] or 0)
            part = match[1]
        key.append(part)
    return tuple(key), layer, direction


def _fills_a_grid(members: Sequence[tuple[int, str, Unit]]) -> bool:
    layers = {m[0] for m in members}
    directions = {m[1] for m in members}
    places = {m[:2] for m in members}
    if len(places) != len(members) or len(places) != len(layers) * len(directions):
        return False
    return layers == set(range(len(layers))) and (len(directions) == 2 or directions == {FORWARD})


def _layer_scope(unit: Unit, among: Sequence[Unit]) -> str:
    """The unit's scope, or the layer's above it where the last scope is the framework's own cell."""
    above, _, last = unit.scope.rpartition("/")
    inner = unit.layout.inner
    if inner and re.fullmatch(rf"{re.escape(inner)}(_\d+)?", last) and above:
        siblings = [u for u in among if u.scope.rpartition("/")[0] == above]
        if len(siblings) == 1:
            return above
    return unit.scope


def _holding(scopes: Sequence[str]) -> str:
    """The deepest scope that holds all of them."""
    split = [s.split("/") if s else [] for s in scopes]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return "/".join(common)


def describe(cell: Cell) -> Mapping[str, object]:
    """The cell as ``inspect --json`` prints it."""
    return {
        "scope": cell.scope,
        "layout": cell.layout.name,
        "input": cell.input,
        "units": cell.per_unit("unit"),
        "layers": cell.layers,
        "directions": list(cell.directions),
    }
