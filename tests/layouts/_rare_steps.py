"""Rarer cells of which TensorFlow 1.15 recorded nothing, by steps in numpy that know no layout tables.

Each is written from the source that its comment names, for the variables as that framework stores them: grids of all
options, grouped cells of any number of groups, Keras' convolutional cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.layouts._framework_steps import sigmoid
from tests.layouts._recorded import cell_of
from weightport.layouts import Layout
from weightport.layouts.units import match

Arrays = dict[str, np.ndarray]
UNITS, SIZE, BATCH, TIME = 3, 2, 2, 4


class Numpy:
    """Numpy under the names of the TensorFlow operations that the sources use."""

    sigmoid, tanh, matmul, split = staticmethod(sigmoid), np.tanh, np.matmul, np.split

    @staticmethod
    def concat(values: Sequence[Any], axis: int) -> Any:
        return np.concatenate(values, axis)

    @staticmethod
    def clip_by_value(value: Any, low: float, high: float) -> Any:
        return np.clip(value, low, high)


# tensorflow/contrib/rnn/python/ops/rnn_cell.py, GridLSTMCell._compute


def grid_variables(shared: bool, peepholes: bool, coupled: bool) -> Arrays:
    rng = np.random.default_rng(1)
    gates = 3 if coupled else 4
    found = {}
    for side in "f" if shared else "ft":
        found[f"W_{side}_0_0"] = rng.normal(size=(SIZE + 2 * UNITS, gates * UNITS))
        found[f"B_{side}_0"] = rng.normal(size=gates * UNITS)
        for gate, over in itertools.product("IO" if coupled else "IFO", "ft") if peepholes else ():
            found[f"W_{gate}_diag_{'freq' if side == 'f' else 'time'}{over}_0"] = rng.normal(size=UNITS)
    return found


def grid(tf: Any, v: Arrays, x: Any, state: Sequence[Any], coupled: bool, clip: float | None) -> tuple[Any, list[Any]]:
    """One step of one block: windows ``[batch, frequency, size]``; output, and c and m of each frequency."""
    sigmoid, tanh = tf.sigmoid, tf.tanh
    shared, peepholes = "W_t_0_0" not in v, any("diag" in name for name in v)
    m_prev_freq = c_prev_freq = 0.0 * state[0]
    outputs: list[Any] = []
    after: list[Any] = []
    for at in range(x.shape[1]):
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
            new = f * kept + i * tanh(splits[side]["j"])
            news[side] = new if clip is None else tf.clip_by_value(new, -clip, clip)
        m_freq = sigmoid(splits["f"]["o"] + diag("O", "f", news["f"], news["t"])) * tanh(news["f"])
        m_time = sigmoid(splits["t"]["o"] + diag("O", "t", news["f"], news["t"])) * tanh(news["t"])
        m_prev_freq, c_prev_freq = m_freq, news["f"]
        after += [news["t"], m_time]
        outputs += [m_time, m_freq]
    return tf.concat(outputs, 1), after


def run_grid(v: Arrays, x: np.ndarray) -> np.ndarray:
    state: list[Any] = [np.zeros((x.shape[1], UNITS))] * (2 * x.shape[2])
    outputs = []
    for now in x:
        out, state = grid(Numpy, v, now, state, v["B_f_0"].size == 3 * UNITS, None)
        outputs.append(out)
    return np.stack(outputs)


# tensorflow/contrib/rnn/python/ops/rnn_cell.py, GLSTMCell.call


def group_variables(groups: int, projected: bool) -> Arrays:
    rng = np.random.default_rng(1)
    outputs = 2 if projected else UNITS
    found = {f"group{k}/kernel": rng.normal(size=(SIZE + outputs, 4 * UNITS)) for k in range(groups)}
    found |= {f"bias_{gate}": rng.normal(size=groups * UNITS) for gate in "ijfo"}
    if projected:
        found["projection/kernel"] = rng.normal(size=(groups * UNITS, groups * outputs))
    return found


def run_groups(v: Arrays, x: np.ndarray) -> np.ndarray:
    groups = sum(name.startswith("group") for name in v)
    c = np.zeros((x.shape[1], groups * UNITS))
    m = np.zeros((x.shape[1], v["projection/kernel"].shape[1])) if "projection/kernel" in v else c
    outputs = []
    for now in x:
        parts: dict[str, list[np.ndarray]] = {gate: [] for gate in "ijfo"}
        for k, (x_k, m_k) in enumerate(zip(np.split(now, groups, 1), np.split(m, groups, 1), strict=True)):
            of_group = np.split(np.concatenate([x_k, m_k], 1) @ v[f"group{k}/kernel"], 4, axis=1)
            for gate, part in zip("ijfo", of_group, strict=True):
                parts[gate].append(part)
        i, j, f, o = (np.concatenate(parts[gate], 1) + v[f"bias_{gate}"] for gate in "ijfo")
        c = sigmoid(f + 1.0) * c + sigmoid(i) * np.tanh(j)
        m = sigmoid(o) * np.tanh(c)
        m = m @ v["projection/kernel"] if "projection/kernel" in v else m
        outputs.append(m)
    return np.stack(outputs)


# keras/src/layers/rnn/conv_lstm.py, ConvLSTMCell.call, with padding="same" and recurrent_activation="sigmoid"


def convolution_variables(dims: int, bias: bool) -> Arrays:
    rng = np.random.default_rng(1)
    kernel = (3, 2, 4)[:dims]
    found = {"kernel": rng.normal(size=(*kernel, SIZE, 4 * UNITS))}
    found["recurrent_kernel"] = rng.normal(size=(*kernel, UNITS, 4 * UNITS))
    if bias:
        found["bias"] = rng.normal(size=4 * UNITS)
    return found


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Point by point: what of the kernel lies on the image."""
    image, size = x.shape[1:-1], kernel.shape[:-2]
    out = np.zeros((*x.shape[:-1], kernel.shape[-1]))
    for point in itertools.product(*map(range, image)):
        for tap in itertools.product(*map(range, size)):
            at = tuple(p + t - (k - 1) // 2 for p, t, k in zip(point, tap, size, strict=True))
            if all(0 <= a < n for a, n in zip(at, image, strict=True)):
                out[(slice(None), *point)] += x[(slice(None), *at)] @ kernel[tap]
    return out


def run_convolution(v: Arrays, x: np.ndarray) -> np.ndarray:
    h = c = np.zeros((*x.shape[1:-1], UNITS))
    outputs = []
    for now in x:
        z = convolved(now, v["kernel"]) + convolved(h, v["recurrent_kernel"]) + v.get("bias", 0)
        i, f, g, o = np.split(z, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


@dataclass(frozen=True)
class RareCase:
    """A cell: its layout and form, its variables, the shape of one input, and how it runs."""

    layout: str
    form: int
    variables: Arrays
    shape: tuple[int, ...]
    run: Callable[[Arrays, np.ndarray], np.ndarray]

    def expected(self) -> np.ndarray:
        """Outputs ``[time, batch, all of the rest]``."""
        found = self.run(self.variables, self.inputs())
        return found.reshape(TIME, BATCH, -1)

    def inputs(self) -> np.ndarray:
        return np.random.default_rng(2).normal(size=(TIME, BATCH, *self.shape))

    def apart(self, layout: Layout) -> float:
        """How far the reference cell of a layout is from the step, on the same variables; infinite if it is none."""
        shapes = {name: a.shape for name, a in self.variables.items()}
        found = match(layout, layout.forms[self.form], "", shapes) if self.form < len(layout.forms) else []
        if len(found) != 1 or set(found[0].names) != set(self.variables):
            return np.inf
        ran = cell_of(found[0], self.variables, {"recurrent_activation": "sigmoid"}).run(self.inputs())
        outputs = np.stack([out.reshape(BATCH, -1) for out, _ in ran])
        wanted = self.expected()
        return float(np.abs(outputs - wanted).max()) if outputs.shape == wanted.shape else np.inf


def _cases() -> Iterator[tuple[str, RareCase]]:
    for shared, peepholes, coupled in itertools.product((False, True), repeat=3):
        said = [n for n, has in (("shared", shared), ("peepholes", peepholes), ("coupled", coupled)) if has]
        layout = "grid_lstm.tf1-coupled" if coupled else "grid_lstm.tf1"
        made = grid_variables(shared, peepholes, coupled)
        yield "-".join(["grid", *said]), RareCase(layout, 0, made, (3, SIZE), run_grid)
    for number, groups in enumerate((2, 3, 4, 5, 6, 8)):
        for projected in (False, True):
            made = group_variables(groups, projected)
            name = f"groups-{groups}{'-projected' if projected else ''}"
            yield name, RareCase("glstm.tf1", number, made, (groups * SIZE,), run_groups)
    for dims, bias in itertools.product((1, 2, 3), (True, False)):
        image = (4, 3, 5)[:dims]
        made = convolution_variables(dims, bias)
        name = f"conv{dims}d{'' if bias else '-none'}"
        yield name, RareCase(f"conv{dims}d_lstm.keras", 0, made, (*image, SIZE), run_convolution)


CASES: Mapping[str, RareCase] = dict(_cases())
