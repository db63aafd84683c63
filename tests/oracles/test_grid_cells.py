"""Grid LSTMs of which TensorFlow 1.15 recorded nothing: peepholes with shared weights or coupled gates, and clipping.

There is no TensorFlow 1.15 here: its formula (tensorflow/contrib/rnn/python/ops/rnn_cell.py, GridLSTMCell._compute) is
followed with TensorFlow 2's operations, for the variables as that cell names and stores them. The recorded cells
(tests/layouts/test_rare_cells.py) show that the formula is that TensorFlow's; here it is what is compared with.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.layouts._rare_steps import BATCH, SIZE, TIME, UNITS, grid, grid_variables
from tests.layouts._recorded import cell_of
from tests.support import need
from weightport.layouts import find_layout
from weightport.layouts.behaviour import FILE, Behaviour, Said
from weightport.layouts.reference import ReferenceCell
from weightport.layouts.units import match

FREQUENCIES = 3


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize(("shared", "peepholes", "coupled"), list(itertools.product((False, True), repeat=3)))
def test_a_grid_of_any_options(shared: bool, peepholes: bool, coupled: bool, clip: float | None) -> None:
    tf = need("tensorflow")
    v = grid_variables(shared, peepholes, coupled)
    layout = find_layout("grid_lstm.tf1-coupled" if coupled else "grid_lstm.tf1")
    (unit,) = match(layout, layout.forms[0], "", {n: a.shape for n, a in v.items()})
    cell = cell_of(unit, v)
    does = {key: getattr(cell.behaviour, key) for key in Behaviour.__slots__}
    cell = ReferenceCell(cell.kind, cell.parameters, Behaviour(**{**does, "cell_clip": Said(clip, FILE)}), cell.sizes)
    x = np.random.default_rng(2).normal(size=(TIME, BATCH, FREQUENCIES, SIZE))
    state: list[Any] = [tf.zeros([BATCH, UNITS], tf.float64)] * (2 * FREQUENCIES)
    for now, (out, c) in zip(x, cell.run(x), strict=True):
        expected, state = grid(tf, v, tf.constant(now), state, coupled, clip)
        np.testing.assert_allclose(out.reshape(BATCH, -1), expected, atol=1e-12)
        np.testing.assert_allclose(c, np.stack(state[::2], axis=1), atol=1e-12)
