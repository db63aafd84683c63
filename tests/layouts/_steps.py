"""Reference steps in numpy, each written from its framework's formulas for the arrays as that framework stores them.

They know nothing of layout tables: what a conversion moved is right if both sides' steps give the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.layouts._framework_steps import BIAS, MORE, PEEPHOLES, PROJECTION, Arrays, State, Step, sigmoid
from weightport import values
from weightport.layouts import Form, Layout, find_layout
from weightport.layouts.behaviour import behaviour, conflicts
from weightport.layouts.convert import Conversion
from weightport.layouts.units import Stored, Unit, full_name, match, packed_shape, packed_sizes, spelled, stored_rows
from weightport.ranges import slices_of, whole
from weightport.tensors import TensorSpec

__all__ = ["BIAS", "CASES", "PEEPHOLES", "PROJECTION", "Arrays", "Made", "State", "Step", "hard_sigmoid", "sigmoid"]


def hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(0.2 * x + 0.5, 0, 1)


def lstm_out(i: Any, f: Any, g: Any, o: Any, c: np.ndarray, facts: Mapping[str, Any]) -> State:
    s = facts["s"]
    c = s(f) * c + s(i) * np.tanh(g)
    return c, s(o) * np.tanh(c)


# Hand-written LSTMs: gate = x wx + h wt + bi, nothing added to the forget gate.


def lstm_scoped(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    c, h = state
    zero = np.zeros(1)
    i, f, g, o = (
        x @ t[f"{n}/wx"] + h @ t[f"{n}/wt"] + t.get(f"{n}/bi", zero)
        for n in ("input_gate", "forget_gate", "memory_cell", "output_gate")
    )
    return lstm_out(i, f, g, o, c, facts)


def lstm_ifco(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    c, h = state
    i, f, u, o = np.split(x @ t["ifcox"] + h @ t["ifcom"] + t["ifcob"], 4, axis=1)
    return lstm_out(i, f, u, o, c, facts)


# tensorflow/python/ops/rnn_cell_impl.py, LSTMCell.call (BasicLSTMCell.call is the plain case of it).

TF_NAMES = ("kernel", "bias", "w_i_diag", "w_f_diag", "w_o_diag", "projection/kernel")


def tf_lstm(*names: str) -> Step:
    def step(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
        kernel, bias, w_i, w_f, w_o, projection = (t.get(n) for n in names)
        c_prev, m_prev = state
        i, j, f, o = np.split(np.concatenate([x, m_prev], 1) @ kernel + bias, 4, axis=1)
        f = f + facts["forget_bias"]
        if w_i is not None:
            c = sigmoid(f + w_f * c_prev) * c_prev + sigmoid(i + w_i * c_prev) * np.tanh(j)
            m = sigmoid(o + w_o * c) * np.tanh(c)
        else:
            c = sigmoid(f) * c_prev + sigmoid(i) * np.tanh(j)
            m = sigmoid(o) * np.tanh(c)
        return c, m if projection is None else m @ projection

    return step


# tensorflow/contrib/rnn/python/ops/rnn_cell.py, GLSTMCell.call with number_of_groups=1


def one_group(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    c_prev, m_prev = state
    parts = np.split(np.concatenate([x, m_prev], 1) @ t["group0/kernel"], 4, axis=1)
    i, j, f, o = (part + t[f"bias_{gate}"] for part, gate in zip(parts, "ijfo", strict=True))
    c = sigmoid(f + facts["forget_bias"]) * c_prev + sigmoid(i) * np.tanh(j)
    m = sigmoid(o) * np.tanh(c)
    return c, m @ t["projection/kernel"] if "projection/kernel" in t else m


# tensorflow/contrib/rnn/python/ops/rnn_cell.py, CoupledInputForgetGateLSTMCell.call


def coupled(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    c_prev, m_prev = state
    j, f, o = np.split(np.concatenate([x, m_prev], 1) @ t["W_0"] + t["B"], 3, axis=1)
    f_act = sigmoid(f + facts["forget_bias"] + t.get("W_F_diag", 0) * c_prev)
    c = f_act * c_prev + (1 - f_act) * np.tanh(j)
    m = sigmoid(o + t.get("W_O_diag", 0) * c) * np.tanh(c)
    return c, m @ t["W_P_0"] if "W_P_0" in t else m


# keras/src/layers/rnn/lstm.py, LSTMCell.call; keras/layers/recurrent.py of Keras 1.2.2, LSTM.step


def keras_lstm(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    c, h = state
    z = x @ t["kernel"] + h @ t["recurrent_kernel"] + t.get("bias", 0)
    return lstm_out(*np.split(z, 4, axis=1), c, facts)


def keras1_lstm(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    c, h = state
    if "_W" in t:
        return lstm_out(*np.split(x @ t["_W"] + h @ t["_U"] + t["_b"], 4, axis=1), c, facts)
    i, f, g, o = (x @ t[f"_W_{n}"] + h @ t[f"_U_{n}"] + t[f"_b_{n}"] for n in "ifco")
    return lstm_out(i, f, g, o, c, facts)


# tf_keras/src/saving/legacy/hdf5_format.py, _convert_rnn_weights: what CuDNN's weights are as plain ones.


def from_cudnn(t: Arrays, gates: int) -> tuple[np.ndarray, np.ndarray]:
    kernels = np.hstack([k.T.reshape(k.shape, order="F") for k in np.hsplit(t["kernel"], gates)])
    return kernels, np.hstack([k.T for k in np.hsplit(t["recurrent_kernel"], gates)])


def cudnn_lstm(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    kernel, recurrent = from_cudnn(t, 4)
    bias = np.sum(np.split(t["bias"], 2, axis=0), axis=0)
    return keras_lstm({"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}, x, state, facts)


# GRU: tensorflow/python/ops/rnn_cell_impl.py, GRUCell.call; contrib's CudnnCompatibleGRUCell.call


def gru_scoped(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    (h,) = state
    s = facts["s"]
    r, u = (
        s(x @ t[f"{n}/wx"] + h @ t[f"{n}/wt"] + t.get(f"{n}/bi", np.zeros(1))) for n in ("reset_gate", "update_gate")
    )
    n = "memory_cell"
    c = np.tanh(x @ t[f"{n}/wx"] + (r * h) @ t[f"{n}/wt"] + t.get(f"{n}/bi", np.zeros(1)))
    return (u * h + (1 - u) * c,)


def tf_gru(*names: str) -> Step:
    def step(t: Arrays, x: np.ndarray, state: State, _: Mapping[str, Any]) -> State:
        (h,) = state
        gates, gates_bias, candidate, candidate_bias = (t[n] for n in names)
        r, u = np.split(sigmoid(np.concatenate([x, h], 1) @ gates + gates_bias), 2, axis=1)
        c = np.tanh(np.concatenate([x, r * h], 1) @ candidate + candidate_bias)
        return (u * h + (1 - u) * c,)

    return step


def cudnn_compatible_gru(t: Arrays, x: np.ndarray, state: State, _: Mapping[str, Any]) -> State:
    (h,) = state
    r, u = np.split(sigmoid(np.concatenate([x, h], 1) @ t["gates/kernel"] + t["gates/bias"]), 2, axis=1)
    one, two = "candidate/input_projection", "candidate/hidden_projection"
    c = np.tanh(x @ t[f"{one}/kernel"] + t[f"{one}/bias"] + r * (h @ t[f"{two}/kernel"] + t[f"{two}/bias"]))
    return ((1 - u) * c + u * h,)


def keras_gru(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    (h,) = state
    s, bias = facts["s"], t.get("bias", np.zeros(1))
    input_bias, recurrent_bias = (bias[0], bias[1]) if bias.ndim == 2 else (bias, np.zeros(1))
    x_z, x_r, x_h = np.split(x @ t["kernel"] + input_bias, 3, axis=1)
    u_z, u_r, u_h = np.split(t["recurrent_kernel"], 3, axis=1)
    b_z, b_r, b_h = np.split(recurrent_bias, 3) if bias.ndim == 2 else (0, 0, 0)
    z, r = s(x_z + h @ u_z + b_z), s(x_r + h @ u_r + b_r)
    hh = np.tanh(x_h + (r * (h @ u_h + b_h) if facts["reset"] == "after" else (r * h) @ u_h))
    return (z * h + (1 - z) * hh,)


def keras1_gru(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    (h,) = state
    s = facts["s"]
    if "_W" in t:
        w, u, b = (np.split(t[f"_{k}"], 3, axis=-1) for k in "WUb")
    else:
        w, u, b = ([t[f"_{k}_{n}"] for n in "zrh"] for k in "WUb")
    z, r = (s(x @ w[k] + b[k] + h @ u[k]) for k in (0, 1))
    hh = np.tanh(x @ w[2] + b[2] + (r * h) @ u[2])
    return (z * h + (1 - z) * hh,)


def cudnn_gru(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    kernel, recurrent = from_cudnn(t, 3)
    plain = {"kernel": kernel, "recurrent_kernel": recurrent, "bias": t["bias"].reshape(2, -1)}
    return keras_gru(plain, x, state, {**facts, "reset": "after"})


# Plain RNN


def rnn_of(wx: str, wt: str, bias: str) -> Step:
    def step(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
        (h,) = state
        return (facts["a"](x @ t[wx] + h @ t[wt] + t.get(bias, 0)),)

    return step


def tf_rnn(kernel: str, bias: str) -> Step:
    def step(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
        return (facts["a"](np.concatenate([x, state[0]], 1) @ t[kernel] + t[bias]),)

    return step


# tensorflow/contrib/rnn/python/ops/rnn_cell.py: IndyLSTMCell.call, IndyGRUCell.call, IndRNNCell.call


def indy_lstm(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    c, h = state
    gates = x @ t["kernel_w"] + np.tile(h, [1, 4]) * t["kernel_u"] + t["bias"]
    i, j, f, o = np.split(gates, 4, axis=1)
    return lstm_out(i, f + facts["forget_bias"], j, o, c, facts)


def indy_gru(t: Arrays, x: np.ndarray, state: State, _: Mapping[str, Any]) -> State:
    (h,) = state
    gates = sigmoid(x @ t["gates/kernel_w"] + np.tile(h, [1, 2]) * t["gates/kernel_u"] + t["gates/bias"])
    r, u = np.split(gates, 2, axis=1)
    c = np.tanh(x @ t["candidate/kernel"] + (r * h) * t["candidate/kernel_u"] + t["candidate/bias"])
    return (u * h + (1 - u) * c,)


def ind_rnn(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    return (facts["a"](x @ t["kernel_w"] + state[0] * t["kernel_u"] + t["bias"]),)


_BLOCK = ("W", "b", "wci", "wcf", "wco", "")
_OLD = ("W_0", "B", "W_I_diag", "W_F_diag", "W_O_diag", "W_P_0")


def numbered(step: Step) -> Step:
    """The same step on the numbered variables of Keras 3's ``.weights.h5``, in the order in which build makes them."""

    def renamed(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
        names = ("kernel", "recurrent_kernel", "bias")
        return step({n: t[f"cell/vars/{k}"] for k, n in enumerate(names)}, x, state, facts)

    return renamed


#: Short name -> layout, the form by the name of its first tensor (and where that is not enough the reset mode, or how
#: many dimensions its bias has), the optional tensors that the cell has, and its step.
CASES: dict[str, tuple[str, int, frozenset[str], Step]] = {
    "scoped": ("lstm.scoped-gates", 0, frozenset({BIAS}), lstm_scoped),
    "scoped-flat": ("lstm.scoped-gates", 1, frozenset(), lstm_scoped),
    "scoped-none": ("lstm.scoped-gates", 0, frozenset(), lstm_scoped),
    "ifco": ("lstm.ifco", 0, frozenset(), lstm_ifco),
    "ifco-flat": ("lstm.ifco", 1, frozenset(), lstm_ifco),
    "tf": ("lstm.tf1", 0, frozenset(), tf_lstm(*TF_NAMES)),
    "tf-peep": ("lstm.tf1", 0, frozenset({PEEPHOLES}), tf_lstm(*TF_NAMES)),
    "tf-proj": ("lstm.tf1", 0, frozenset({PROJECTION}), tf_lstm(*TF_NAMES)),
    "tf-all": ("lstm.tf1", 0, frozenset({PEEPHOLES, PROJECTION}), tf_lstm(*TF_NAMES)),
    "tf-cudnn": ("lstm.tf1", 1, frozenset(), tf_lstm(*TF_NAMES)),
    "tf10-proj": (
        "lstm.tf1",
        2,
        frozenset({PEEPHOLES, PROJECTION}),
        tf_lstm("weights", "biases", *TF_NAMES[2:5], "projection/weights"),
    ),
    "tf10-cudnn": ("lstm.tf1", 3, frozenset(), tf_lstm("weights", "biases", *TF_NAMES[2:])),
    "tf012-basic": ("lstm.tf1", 4, frozenset(), tf_lstm("Linear/Matrix", "Linear/Bias", *TF_NAMES[2:])),
    "tf012": ("lstm.tf1", 5, frozenset({PEEPHOLES, PROJECTION}), tf_lstm(*_OLD)),
    "tf012-block": ("lstm.tf1", 6, frozenset({PEEPHOLES}), tf_lstm(*_BLOCK)),
    "tf-group": ("lstm.tf1-group", 0, frozenset(), one_group),
    "tf-group-proj": ("lstm.tf1-group", 0, frozenset({PROJECTION}), one_group),
    "coupled": ("lstm.tf1-coupled", 0, frozenset(), coupled),
    "coupled-all": ("lstm.tf1-coupled", 0, frozenset({PEEPHOLES, PROJECTION}), coupled),
    "keras": ("lstm.keras", 0, frozenset({BIAS}), keras_lstm),
    "keras-none": ("lstm.keras", 0, frozenset(), keras_lstm),
    "keras-vars": ("lstm.keras", 1, frozenset({BIAS}), numbered(keras_lstm)),
    "keras1": ("lstm.keras1", 0, frozenset(), keras1_lstm),
    "keras1-gpu": ("lstm.keras1", 1, frozenset(), keras1_lstm),
    "cudnn": ("lstm.keras-cudnn", 0, frozenset(), cudnn_lstm),
    "indy": ("indy_lstm.tf1", 0, frozenset(), indy_lstm),
    "g-indy": ("indy_gru.tf1", 0, frozenset(), indy_gru),
    "r-indy": ("ind_rnn.tf1", 0, frozenset(), ind_rnn),
    "g-scoped": ("gru.scoped-gates", 0, frozenset({BIAS}), gru_scoped),
    "g-scoped-flat": ("gru.scoped-gates", 1, frozenset(), gru_scoped),
    "g-scoped-none": ("gru.scoped-gates", 0, frozenset(), gru_scoped),
    "g-tf": (
        "gru.tf1",
        0,
        frozenset(),
        tf_gru("gates/kernel", "gates/bias", "candidate/kernel", "candidate/bias"),
    ),
    "g-tf-after": ("gru.tf1", 1, frozenset(), cudnn_compatible_gru),
    "g-tf-block": ("gru.tf1", 2, frozenset(), tf_gru("w_ru", "b_ru", "w_c", "b_c")),
    "g-tf-swapped": ("gru.tf1", 3, frozenset(), tf_gru("w_c", "b_ru", "w_ru", "b_c")),
    "g-tf10": (
        "gru.tf1",
        4,
        frozenset(),
        tf_gru("gates/weights", "gates/biases", "candidate/weights", "candidate/biases"),
    ),
    "g-tf012": (
        "gru.tf1",
        5,
        frozenset(),
        tf_gru("Gates/Linear/Matrix", "Gates/Linear/Bias", "Candidate/Linear/Matrix", "Candidate/Linear/Bias"),
    ),
    "g-keras-after": ("gru.keras", 0, frozenset(), keras_gru),
    "g-keras-before": ("gru.keras", 1, frozenset(), keras_gru),
    "g-keras-none": ("gru.keras", 2, frozenset(), keras_gru),
    "g-keras-vars-after": ("gru.keras", 3, frozenset(), numbered(keras_gru)),
    "g-keras-vars-before": ("gru.keras", 4, frozenset(), numbered(keras_gru)),
    "g-keras1": ("gru.keras1", 0, frozenset(), keras1_gru),
    "g-keras1-gpu": ("gru.keras1", 1, frozenset(), keras1_gru),
    "g-cudnn": ("gru.keras-cudnn", 0, frozenset(), cudnn_gru),
    "r-scoped": ("rnn.scoped-gates", 0, frozenset(), rnn_of("wx", "wt", "bi")),
    "r-scoped-flat": ("rnn.scoped-gates", 1, frozenset(), rnn_of("wx", "wt", "bi")),
    "r-tf": ("rnn.tf1", 0, frozenset(), tf_rnn("kernel", "bias")),
    "r-tf10": ("rnn.tf1", 1, frozenset(), tf_rnn("weights", "biases")),
    "r-tf012": ("rnn.tf1", 2, frozenset(), tf_rnn("Linear/Matrix", "Linear/Bias")),
    "r-keras": ("rnn.keras", 0, frozenset({BIAS}), rnn_of("kernel", "recurrent_kernel", "bias")),
    "r-keras-none": ("rnn.keras", 0, frozenset(), rnn_of("kernel", "recurrent_kernel", "bias")),
    "r-keras-vars": ("rnn.keras", 1, frozenset({BIAS}), numbered(rnn_of("kernel", "recurrent_kernel", "bias"))),
    "r-keras1": ("rnn.keras1", 0, frozenset(), rnn_of("_W", "_U", "_b")),
    **MORE,
}

_OPTION = {"wp": PEEPHOLES, "wr": PROJECTION, "bi": BIAS, "bt": BIAS}


def names_of(layout: Layout, form: Form, scope: str, has: frozenset[str], layer: int = 0) -> Iterator[Stored]:
    """The tensors of a cell of that form that has those optional ones."""
    for row, gate in stored_rows(layout, form):
        if not row.optional or _OPTION[row.packing.terms[0].param] in has:
            yield Stored(row, gate, full_name(scope, spelled(layout, row.template, gate, layer, "forward")))


def sizes_of(case: str, inputs: int, units: int, outputs: int) -> dict[str, int]:
    """The sizes of a cell of that case; ``outputs`` counts only where it has a projection."""
    name, number, has, _ = CASES[case]
    sizes = {"input": inputs, "unit": units, "hidden": outputs if PROJECTION in has else units}
    form = find_layout(name).forms[number]
    if form.packed:
        return packed_sizes(inputs, units)
    return sizes | {axis: 1 for row in form.rows for t in row.packing.terms for axis in t.names() & {"direction"}}


def shapes_of(layout: Layout, form: Form, scope: str, has: frozenset[str], sizes: Mapping[str, int]) -> dict[str, Any]:
    return {s.name: packed_shape(layout, s, sizes) for s in names_of(layout, form, scope, has)}


@dataclass(frozen=True)
class Made:
    """A cell of a case: its unit and how it steps."""

    unit: Unit
    step: Step
    has: frozenset[str]

    def forward(self, arrays: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> list[State]:
        """The states after each step; ``x`` is ``[time, batch, input]``."""
        scope = self.unit.scope
        prefix = scope if self.unit.form.joined else scope + "/"
        local = {n.removeprefix(prefix): a for n, a in arrays.items()}
        states = []
        for at in x:
            state = self.step(local, at, state, facts)
            states.append(state)
        return states


def made(case: str, scope: str, inputs: int = 3, units: int = 4, outputs: int = 2) -> Made:
    """A cell of that case; ``outputs`` counts only where it has a projection."""
    name, number, has, step = CASES[case]
    layout = find_layout(name)
    form = layout.forms[number]
    sizes = sizes_of(case, inputs, units, outputs)
    (unit,) = match(layout, form, scope, shapes_of(layout, form, scope, has, sizes), sizes=sizes)
    return Made(unit, step, has)


def shapes(unit: Unit) -> dict[str, tuple[int, ...]]:
    return {s.name: packed_shape(unit.layout, s, unit.sizes) for s in unit.tensors}


def random_arrays(unit: Unit, seed: int, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(dtype) for n, s in shapes(unit).items()}


def specs(arrays: Arrays) -> dict[str, TensorSpec]:
    return {n: TensorSpec.of(a.dtype, a.shape) for n, a in arrays.items()}


def convert(conversion: Conversion, arrays: Arrays) -> dict[str, np.ndarray]:
    """The target's tensors."""

    def fetch(name: str, ranges: Any) -> np.ndarray:
        return arrays[name][slices_of(ranges)]

    found = {}
    for stored in conversion.target.tensors:
        parts = conversion.parts(stored)
        shape = packed_shape(conversion.target.layout, stored, conversion.target.sizes)
        expr = values.assemble(shape, parts[0][1].dtype, parts)
        found[stored.name] = expr.read(fetch, whole(shape))
    return found


#: What the tests let a mapping say, so that Keras 1's hard_sigmoid does not refuse everything.
SIGMOID = {"recurrent_activation": "sigmoid"}


def conversion(
    source: Unit, target: Unit, arrays: Arrays, stated: Mapping[str, Any] = SIGMOID
) -> tuple[Conversion, list[str], list[str]]:
    """The conversion as a plan makes it, why it is refused, and what is assumed."""
    mine = behaviour(source.layout, source.form, {}, stated)
    its = behaviour(target.layout, target.form, {}, stated)
    problems, assumed = conflicts(mine, its)
    result = Conversion(
        source,
        target,
        specs(arrays),
        (float(mine.forget_bias.value), float(its.forget_bias.value)),
        mine.reset.value or its.reset.value,
    )
    return result, [*problems, *result.problems()], assumed
