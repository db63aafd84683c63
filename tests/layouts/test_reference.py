"""Each table, read into canonical parameters and run by the reference cells, against steps that know no tables.

``scripts/mutate_tables.py`` holds the same comparison against tables with one entry changed: all of them are caught.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

import weightport as wp
from scripts import mutate_tables
from tests.layouts._rare_steps import CASES as RARE_CASES
from tests.layouts._recorded import apart as recorded_apart
from tests.layouts._steps import CASES, Made, made, random_arrays, shapes, sigmoid, specs
from tests.support import Fixture, fixtures
from weightport.layouts import Layout, builtin, find_layout
from weightport.layouts.behaviour import behaviour
from weightport.layouts.layout import KIND_GATES
from weightport.layouts.reference import ReferenceCell, parameters
from weightport.layouts.stacks import Cell
from weightport.layouts.units import Unit, match
from weightport.ranges import slices_of


def apart(case: str, unit: Unit) -> float:
    """How far the reference cell of a unit is from the independent steps of a case, on the same tensors.

    A GRU whose tensors do not say where the reset gate acts is run both ways.
    """
    cell = made(case, unit.scope)
    unknown = cell.unit.layout.kind == "gru" and cell.unit.form.reset is None
    return max(_apart(cell, unit, reset) for reset in (("before", "after") if unknown else (cell.unit.form.reset,)))


def _apart(cell: Made, unit: Unit, reset: str | None) -> float:
    arrays = random_arrays(cell.unit, 7)
    rng = np.random.default_rng(3)
    layout, sizes = cell.unit.layout, cell.unit.sizes
    x = rng.normal(size=(4, 2, sizes["input"]))
    h, c = rng.normal(size=(2, sizes["hidden"])), rng.normal(size=(2, sizes["unit"]))
    act = np.tanh if layout.activation == "tanh" else lambda v: np.maximum(v, 0)
    said = {"forget_bias": cell.unit.form.forget_bias, "reset": reset, "s": sigmoid, "a": act}
    states = cell.forward(arrays, x, (c, h) if layout.kind == "lstm" else (h,), said)
    stated = {"reset": None if unit.form.reset else reset, "recurrent_activation": "sigmoid"}
    does = behaviour(unit.layout, unit.form, {}, stated)
    read = parameters(unit, specs(arrays), lambda n, r: arrays[n][slices_of(r)], float(does.forget_bias.value))
    steps = list(ReferenceCell(layout.kind, read, does, sizes).run(x, h, c))
    return max(float(np.abs(mine[0] - state[-1]).max()) for mine, state in zip(steps, states, strict=True))


def caught(layout: Layout) -> bool:
    """Whether a layout with the name of a shipped one is found out by some case of that one, or by what TensorFlow
    recorded of a rarer one.
    """
    if layout.kind not in KIND_GATES:
        return any(case.apart(layout) > 1e-9 for case in RARE_CASES.values() if case.layout == layout.name) or any(
            recorded(model, cells, layout) > 2e-6 for model, cells in RECORDED if layout.name in cells
        )
    for case, (name, number, _, _) in CASES.items():
        if name != layout.name:
            continue
        unit = made(case, "s").unit
        form = layout.forms[number] if number < len(layout.forms) else None
        found = match(layout, form, "s", shapes(unit), sizes=unit.sizes) if form is not None else []
        if len(found) != 1 or found[0].sizes != unit.sizes or not apart(case, found[0]) < 1e-9:
            return True
    return False


def recorded(model: Fixture, cells: Mapping[str, Cell], layout: Layout) -> float:
    """How far a model's cells are from what TensorFlow recorded, one of them read by another layout of its name."""
    units = []
    for name, cell in cells.items():
        if name != layout.name:
            units += cell.units
            continue
        number = cell.layout.forms.index(cell.units[0].form)
        shapes = {n: a.shape for n, a in model.variables.items()}
        found = match(layout, layout.forms[number], cell.scope, shapes) if number < len(layout.forms) else []
        if [(u.names, u.sizes) for u in found] != [(u.names, u.sizes) for u in cell.units]:
            return np.inf
        units += found
    return recorded_apart(model, units)


def recordings() -> list[tuple[Fixture, dict[str, Cell]]]:
    """The models with rarer cells, each with its cells by the names of their layouts."""
    found = []
    for model in fixtures("checkpoint_v2"):
        with wp.open(model.path("checkpoint_v2")) as source:
            cells = {cell.layout.name: cell for cell in source.cells()}
        if any(cell.layout.kind not in KIND_GATES for cell in cells.values()) and not model.doc.get("num_layers"):
            found.append((model, cells))
    return found


RECORDED = recordings()


@pytest.mark.parametrize("case", RARE_CASES)
def test_a_rarer_cell_is_what_the_source_says(case: str) -> None:
    assert RARE_CASES[case].apart(find_layout(RARE_CASES[case].layout)) < 1e-9


COMMON = [case for case, (name, *_) in CASES.items() if name.split(".")[0] in ("lstm", "gru", "rnn")]


@pytest.mark.parametrize("case", COMMON)
def test_the_reference_cell_is_what_the_framework_computes(case: str) -> None:
    assert apart(case, made(case, "s").unit) < 1e-9


def test_every_changed_entry_of_every_table_is_caught() -> None:
    mutants = list(mutate_tables.mutants())
    assert len(mutants) > 600
    survivors = [str(m) for m in mutants if m.layout is not None and not caught(m.layout)]
    assert survivors == []
    assert not any(caught(layout) for name, layout in builtin().items() if "." in name)
