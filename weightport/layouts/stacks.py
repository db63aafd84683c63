"""Stacks of cells: which units are the layers and directions of one network, told by the scopes that hold them.

A scope ``cell_K`` (``CellK`` in TensorFlow 0.12) counts layers; ``fw``/``bw`` (``FW``/``BW``) and Keras'
``forward_*``/``backward_*`` are directions. Units whose paths differ in nothing else, and that fill every layer and
direction, are one :class:`Cell`. Keras numbers the cells of a whole model through (``lstm_cell_3``, ``lstm_cell_4``):
there the layers of one scope must follow each other in their sizes too.

Promise: layers are in numeric order. Limit: a grid with holes is not a stack; its units stay cells of their own.

Sources: tensorflow/python/ops/rnn_cell_impl.py (MultiRNNCell.call), tensorflow/python/ops/rnn.py
(bidirectional_dynamic_rnn), tensorflow/contrib/rnn/python/ops/rnn.py (stack_bidirectional_dynamic_rnn),
keras/src/layers/rnn/bidirectional.py, keras/src/layers/rnn/stacked_rnn_cells.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weightport.layouts.layout import Layout
from weightport.layouts.units import BACKWARD, DIRECTIONS, FORWARD, Unit

_LAYER = re.compile(r"cell_(\d{1,6})|Cell(\d{1,6})")
_FORWARD = re.compile(r"fw|FW|forward(_.*)?", re.DOTALL)
_BACKWARD = re.compile(r"bw|BW|backward(_.*)?", re.DOTALL)
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
        return _total(self.units[0], "input")

    def per_unit(self, axis: str) -> int | list[int]:
        """A size that is the same everywhere, or the list of the layers' (of the directions', in one layer)."""
        values = [_total(u, axis) for u in self.units]
        if len(set(values)) == 1:
            return values[0]
        by_layer = [{_total(u, axis) for u in self.units if u.layer == k} for k in range(self.layers)]
        if all(len(sizes) == 1 for sizes in by_layer):
            return [sizes.pop() for sizes in by_layer]
        return values

    @property
    def summary(self) -> str:
        """Layout, scope and sizes, for a message."""
        units = self.per_unit("unit")
        parts = [f"input {self.input}", f"units {'/'.join(map(str, units)) if isinstance(units, list) else units}"]
        parts += [f"{self.layers} layers"] if self.layers > 1 else []
        parts += [" and ".join(self.directions)] if self.directions != (FORWARD,) else []
        return f"{self.layout.name} {self.scope!r} ({', '.join(parts)})"

    @property
    def hidden(self) -> int | list[int]:
        """The size of the output: of the projection where there is one, else the units."""
        return self.per_unit("hidden")


def _total(unit: Unit, axis: str) -> int:
    """A size of all groups together, where a cell's inputs and outputs are divided among groups."""
    return unit.sizes[axis] * unit.sizes.get("group", 1)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a unit stands in a stack.

    Attributes:
        key: the path with layer and direction taken out.
        layer: its number.
        counted: whether the number is only Keras' count of the cells of a model, and not the layer's own.
        text: what follows ``forward`` or ``backward`` in the direction's scope.
    """

    key: tuple[str, ...]
    layer: int
    direction: str
    counted: bool = False
    text: str = ""


_Member = tuple[_Place, Unit]


def stacked(units: Iterable[Unit], below: str = "") -> list[Cell]:
    """The cells that the units make up, in the units' order.

    Args:
        units: of any layouts and places.
        below: only scopes below this one count as layers and directions.
    """
    units = list(units)
    groups: dict[tuple[str, tuple[str, ...]], list[_Member]] = {}
    owners: dict[str, list[Unit]] = {}
    for unit in units:
        place = _placed(unit.scope, below, unit.layout, unit.layer, unit.direction)
        groups.setdefault((unit.layout.name, place.key), []).append((place, unit))
        owners.setdefault(_above(unit), []).append(unit)
    cells = []
    for members in groups.values():
        if _ordered(members, owners):
            parts = [members]
        else:
            # Two pairs of directions in one scope: forward_lstm and backward_lstm, forward_lstm_1 and backward_lstm_1.
            texts = dict.fromkeys(place.text for place, _ in members)
            parts = [[m for m in members if m[0].text == text] for text in texts]
        for part in parts:
            ordered = _ordered(part, owners)
            for made in [ordered] if ordered else _alone([u for _, u in part]):
                cells.append(Cell(_holding([_layer_scope(u, owners) for u in made]), made[0].layout, tuple(made)))
    return cells


def _alone(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    """Units that are no stack: each by itself, but for the directions that are an axis of the same tensors."""
    groups: dict[tuple[str, ...], list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.names, []).append(unit)
    for group in groups.values():
        if {u.index.get("direction") for u in group} == {0, 1} and len(group) == len(DIRECTIONS):
            yield [replace(u, layer=0) for u in sorted(group, key=lambda u: DIRECTIONS.index(u.direction))]
        else:
            yield from ([replace(u, layer=0, direction=FORWARD)] for u in group)


def is_place(scope: str) -> bool:
    """Whether a scope's own name is that of a layer or a direction of a stack."""
    return any(pattern.fullmatch(scope) for pattern in (_LAYER, _FORWARD, _BACKWARD))


def place_of(scope: str, below: str, layout: Layout) -> tuple[int, str]:
    """The layer and direction of a cell at a scope, told by the scopes below ``below``."""
    place = _placed(scope, below, layout, 0, FORWARD)
    return place.layer, place.direction


def _placed(scope: str, below: str, layout: Layout, layer: int, direction: str) -> _Place:
    """Where a unit stands, by the deepest scopes that tell; ``layer`` and ``direction`` are what its names tell."""
    parts = scope.split("/") if scope else []
    skip = len(below.split("/")) if below else 0
    counted, told, text = layout.suffixes, [], ""
    for number in range(len(parts) - 1, skip - 1, -1):
        part = parts[number]
        hit = _LAYER.fullmatch(part)
        if hit and "layer" not in told:
            layer, counted, parts[number] = int(hit[1] or hit[2]), False, "cell_{layer}"
            told.append("layer")
        for which, pattern in ((FORWARD, _FORWARD), (BACKWARD, _BACKWARD)):
            hit = pattern.fullmatch(part)
            if hit and "direction" not in told:
                direction, text, parts[number] = which, hit[1] or "", "{direction}"
                told.append("direction")
    if parts and len(parts) > skip and "{" not in parts[-1]:
        match = _NUMBERED.fullmatch(parts[-1])
        assert match is not None
        own = layout.inner != "" and match[1] == layout.inner
        if told or own:
            parts[-1] = match[1]
        if counted and own:
            layer = int(match[2] or 0)
    return _Place(tuple(parts), layer, direction, counted, text)


def _ordered(members: Sequence[_Member], owners: Mapping[str, Sequence[Unit]]) -> list[Unit]:
    """The units by layer and direction if they fill every one, once; else none."""
    counted = all(place.counted for place, _ in members)
    found: list[tuple[int, str, Unit]] = []
    for direction in DIRECTIONS:
        here = sorted((m for m in members if m[0].direction == direction), key=lambda m: m[0].layer)
        numbers = [place.layer for place, _ in here]
        first = numbers[0] if counted and numbers else 0
        if numbers != list(range(first, first + len(numbers))):
            return []
        if counted and not _chained([u for _, u in here], owners):
            return []
        found.extend((number - first, direction, unit) for number, (_, unit) in zip(numbers, here, strict=True))
    forward, backward = (sum(direction == d for _, d, _ in found) for direction in DIRECTIONS)
    if not forward or backward not in (0, forward):
        return []
    found.sort(key=lambda m: (m[0], DIRECTIONS.index(m[1])))
    return [replace(unit, layer=layer, direction=direction) for layer, direction, unit in found]


def _chained(units: Sequence[Unit], owners: Mapping[str, Sequence[Unit]]) -> bool:
    """Whether each cell takes what the one before it gives, and no cell of another layout stands between them."""
    if len(units) == 1:
        return True
    if any(other.layout.name != unit.layout.name for unit in units for other in owners[_above(unit)]):
        return False
    return all(after.sizes["input"] == _given(before) for before, after in itertools.pairwise(units))


def _given(unit: Unit) -> int:
    """The size of what a layer hands on: both directions' outputs, where they are an axis of one cell's tensors."""
    return unit.sizes["hidden"] * unit.sizes.get("direction", 1)


def _above(unit: Unit) -> str:
    """The scope that holds the unit's cells: its own where their names are told apart by a number at the end."""
    above, _, last = unit.scope.rpartition("/")
    inner = unit.layout.inner
    return above if inner and re.fullmatch(rf"{re.escape(inner)}(_\d+)?", last) else unit.scope


def _layer_scope(unit: Unit, owners: Mapping[str, Sequence[Unit]]) -> str:
    """The unit's scope, or the layer's above it where the last scope is but the layer's own cell or its name again."""
    above = _above(unit)
    if above != unit.scope and above and len({u.names for u in owners[above]}) == 1:
        return above
    held, _, last = unit.scope.rpartition("/")
    if unit.form.joined and held.rpartition("/")[2] == last:
        return held
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
