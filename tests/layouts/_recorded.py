"""The rarer cells, run by the reference steps on the recorded inputs of TensorFlow 1.15, beside its recorded outputs.

What TensorFlow was told and no file stores (where windows start, how many steps an attention sees) stands here, as the
script that made the fixtures has it (tests/data/fixtures/generate/make_b_rare_cells.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.support import Fixture
from weightport.layouts.behaviour import behaviour
from weightport.layouts.reference import ReferenceCell, parameters
from weightport.layouts.units import Unit
from weightport.ranges import slices_of
from weightport.tensors import TensorSpec

Arrays = dict[str, np.ndarray]
#: Of the grid cells: first and last frequency of each block.
BLOCKS = {"b_cells/grid_lstm": [(0, 4)], "b_cells/grid_lstm_shared_coupled": [(0, 2), (2, 6)]}


def cell_of(unit: Unit, arrays: Arrays, stated: Mapping[str, Any] | None = None) -> ReferenceCell:
    """The reference cell of a unit, its tensors out of arrays."""
    does = behaviour(unit.layout, unit.form, {}, stated or {})
    specs = {n: TensorSpec.of(a.dtype, a.shape) for n, a in arrays.items()}
    bias = float(does.forget_bias.value)
    read = parameters(unit, specs, lambda name, ranges: arrays[name][slices_of(ranges)], bias)
    return ReferenceCell(unit.layout.kind, read, does, unit.sizes)


def apart(model: Fixture, units: Sequence[Unit]) -> float:
    """The largest difference of outputs and final states from what TensorFlow recorded.

    Args:
        units: the cell's: blocks of frequencies of a grid, an attention and the cell in it, else one.
    """
    arrays, expected = model.variables, model.reference
    cells = [cell_of(unit, arrays) for unit in units]
    kind = cells[0].kind
    x = expected["x"].swapaxes(0, 1).astype(np.float64)
    if kind == "grid_lstm":
        return _grid(model, cells, x, expected)
    if kind == "attention":
        return _attention(cells, x, expected)
    if kind == "phased_lstm":
        x = np.concatenate([np.cumsum(np.abs(x[..., :1]) + 0.2, axis=0), x[..., 1:]], axis=-1)
    if kind == "timefreq_lstm":
        x = _windows(model, x, 0, x.shape[-1])
    if kind.startswith("conv"):
        x = x.reshape(*x.shape[:2], *model.doc["input_shape"])
    found = 0.0
    for case in [c for c in ("full", "init") if f"{c}_outputs" in expected]:
        first = {k: expected.get(f"init0_{k}") if case == "init" else None for k in ("c", "h", "state")}
        only = first["state"]  # a cell with one state: its output, or what it keeps beside it
        h, c = (first["h"], first["c"]) if only is None else (only, only)
        ran = list(cells[0].run(x, h, c))
        outputs, final = np.stack([output for output, _ in ran], axis=1), ran[-1][1]
        if kind == "timefreq_lstm":  # c and output of each frequency
            outputs = outputs.reshape(*outputs.shape[:2], -1)
            final = np.concatenate([final, ran[-1][0]], axis=-1).reshape(final.shape[0], -1)
        wanted = expected.get(f"{case}_final_c", expected.get(f"{case}_final_state"))
        found = max(found, _gap(outputs, expected[f"{case}_outputs"]), _gap(final, wanted))
    return found


def _gap(found: np.ndarray, wanted: np.ndarray | None) -> float:
    if wanted is None or found.shape != wanted.shape:
        return float("inf")
    return float(np.nan_to_num(np.abs(found - wanted), nan=np.inf).max())


def _windows(model: Fixture, x: np.ndarray, start: int, end: int) -> np.ndarray:
    """``[time, batch, frequency, feature_size]`` (TimeFreqLSTMCell._make_tf_features and GridLSTMCell's)."""
    size, skip = model.doc["feature_size"], model.doc["frequency_skip"]
    count = (end - start - size) // skip + 1
    return np.stack([x[..., start + k * skip :][..., :size] for k in range(count)], axis=2)


def _grid(model: Fixture, cells: Sequence[ReferenceCell], x: np.ndarray, expected: Arrays) -> float:
    outputs, states = [], []
    blocks = BLOCKS[model.name]
    assert len(blocks) == len(cells)
    for cell, (start, end) in zip(cells, blocks, strict=True):
        ran = list(cell.run(_windows(model, x, start, end)))
        outputs.append(np.stack([out.reshape(out.shape[0], -1) for out, _ in ran], axis=1))
        last, c = ran[-1]
        for at in range(c.shape[1]):
            states += [c[:, at], last[:, at, : c.shape[-1]]]
    found = _gap(np.concatenate(outputs, axis=-1), expected["full_outputs"])
    return max(found, *(_gap(s, expected[f"full_final_l{k}_state"]) for k, s in enumerate(states)))


def _attention(cells: Sequence[ReferenceCell], x: np.ndarray, expected: Arrays) -> float:
    wrapper, inside = cells
    size, batch = wrapper.sizes["unit"], x.shape[1]
    state = np.zeros((batch, 1 + expected["full_final_l2_state"].shape[1] // size, size))
    h, c = (np.zeros((batch, inside.sizes[axis])) for axis in ("hidden", "unit"))
    given, outputs = wrapper.sizes["cell_input"], []
    for now in x:
        blank = np.zeros((batch, wrapper.shapes[0][0] - x.shape[2]))
        ((asked, _),) = wrapper.run(np.concatenate([now, blank], axis=1)[None], c=state)
        ((h, c),) = inside.run(asked[None, :, :given], h, c)
        ((answer, state),) = wrapper.run(np.concatenate([now, h, c, h], axis=1)[None], c=state)
        outputs.append(answer[:, given:])
    pairs = [
        (np.stack(outputs, axis=1), "outputs"),
        (c, "final_l0_c"),
        (h, "final_l0_h"),
        (state[:, 0], "final_l1_state"),
    ]
    pairs.append((state[:, 1:].reshape(batch, -1), "final_l2_state"))
    return max(_gap(array, expected[f"full_{name}"]) for array, name in pairs)
