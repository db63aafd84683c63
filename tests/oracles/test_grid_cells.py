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

from tests.layouts._recorded import cell_of
from tests.support import need
from weightport.layouts import find_layout
from weightport.layouts.behaviour import FILE, Behaviour, Said
from weightport.layouts.reference import ReferenceCell
from weightport.layouts.units import match

UNITS, SIZE, FREQUENCIES, BATCH, TIME = 3, 2, 3, 2, 4
Arrays = dict[str, np.ndarray]


def variables(shared: bool, peepholes: bool, coupled: bool, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    gates = 3 if coupled else 4
    found = {}
    for side in "f" if shared else "ft":
        found[f"W_{side}_0_0"] = rng.normal(size=(SIZE + 2 * UNITS, gates * UNITS))
        found[f"B_{side}_0"] = rng.normal(size=gates * UNITS)
        for gate, over in itertools.product("IO" if coupled else "IFO", "ft") if peepholes else ():
            found[f"W_{gate}_diag_{'freq' if side == 'f' else 'time'}{over}_0"] = rng.normal(size=UNITS)
    return found


def compute(tf: Any, v: Arrays, x: Any, state: list[Any], coupled: bool, clip: float | None) -> tuple[Any, list[Any]]:
    """GridLSTMCell._compute, one block: windows ``[batch, frequency, size]``, state c and m of each frequency."""
    sigmoid, tanh, zeros = tf.sigmoid, tf.tanh, tf.zeros([BATCH, UNITS], tf.float64)
    shared, peepholes = "W_t_0_0" not in v, any("diag" in name for name in v)
    m_prev_freq = c_prev_freq = zeros
    outputs: list[Any] = []
    after: list[Any] = []

    def clipped(c: Any) -> Any:
        return tf.clip_by_value(c, -clip, clip) if clip is not None else c

    for at in range(FREQUENCIES):
        c_prev_time, m_prev_time = state[2 * at], state[2 * at + 1]
        cell_inputs = tf.concat([x[:, at], m_prev_time, m_prev_freq], 1)
        splits = {}
        for side in "ft":
            source = "f" if shared else side
            total = tf.matmul(cell_inputs, v[f"W_{source}_0_0"]) + v[f"B_{source}_0"]
            parts = tf.split(total, 3 if coupled else 4, axis=1)
            splits[side] = dict(zip("ijo" if coupled else "ijfo", parts, strict=True))

        def diag(gate: str, side: str, freq: Any, time: Any) -> Any:
            if not peepholes:
                return 0.0
            which = "freq" if side == "f" or shared else "time"
            return v[f"W_{gate}_diag_{which}f_0"] * freq + v[f"W_{gate}_diag_{which}t_0"] * time

        news = {}
        for side, kept in (("f", c_prev_freq), ("t", c_prev_time)):
            i = sigmoid(splits[side]["i"] + diag("I", side, c_prev_freq, c_prev_time))
            forget = () if coupled else (splits[side]["f"], 1.0, diag("F", side, c_prev_freq, c_prev_time))
            f = sigmoid(sum(forget)) if forget else 1.0 - i
            news[side] = clipped(f * kept + i * tanh(splits[side]["j"]))
        m_freq = sigmoid(splits["f"]["o"] + diag("O", "f", news["f"], news["t"])) * tanh(news["f"])
        m_time = sigmoid(splits["t"]["o"] + diag("O", "t", news["f"], news["t"])) * tanh(news["t"])
        m_prev_freq, c_prev_freq = m_freq, news["f"]
        after += [news["t"], m_time]
        outputs += [m_time, m_freq]
    return tf.concat(outputs, 1), after


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize(("shared", "peepholes", "coupled"), list(itertools.product((False, True), repeat=3)))
def test_a_grid_of_any_options(shared: bool, peepholes: bool, coupled: bool, clip: float | None) -> None:
    tf = need("tensorflow")
    v = variables(shared, peepholes, coupled, 1)
    layout = find_layout("grid_lstm.tf1-coupled" if coupled else "grid_lstm.tf1")
    (unit,) = match(layout, layout.forms[0], "", {n: a.shape for n, a in v.items()})
    cell = cell_of(unit, v)
    does = {key: getattr(cell.behaviour, key) for key in Behaviour.__slots__}
    cell = ReferenceCell(cell.kind, cell.parameters, Behaviour(**{**does, "cell_clip": Said(clip, FILE)}), cell.sizes)
    x = np.random.default_rng(2).normal(size=(TIME, BATCH, FREQUENCIES, SIZE))
    state = [tf.zeros([BATCH, UNITS], tf.float64)] * (2 * FREQUENCIES)
    for now, (out, c) in zip(x, cell.run(x), strict=True):
        expected, state = compute(tf, v, tf.constant(now), state, coupled, clip)
        np.testing.assert_allclose(out.reshape(BATCH, -1), expected, atol=1e-12)
        np.testing.assert_allclose(c, np.stack(state[::2], axis=1), atol=1e-12)
