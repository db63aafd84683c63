"""Reference steps in numpy of the rarer cells, by kind; :mod:`weightport.layouts.reference` runs them. Those whose
states have more axes than units are in :mod:`weightport.layouts.spread`.

Promise: each gives what TensorFlow 1.15's cell gives, which the recorded outputs of that TensorFlow confirm
(tests/layouts/test_rare_cells.py). Limit: what no file stores and no option of the mapping states is TensorFlow's
default: a phased LSTM leaks 0.001. Its time is the first column of the input.

Source: tensorflow/contrib/rnn/python/ops/rnn_cell.py (the call of each cell).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from weightport.layouts.activations import ACTIVATIONS, sigmoid
from weightport.layouts.behaviour import Behaviour
from weightport.tensors import Array

#: parameter, gate (None where it has none) -> array, float64
Parameters = Mapping[tuple[str, str | None], Array]
#: (parameters, behaviour, input, output before, state before) -> (output, state)
Step = Callable[[Parameters, Behaviour, Array, Array, Array], tuple[Array, Array]]
Sizes = Mapping[str, int]
Shape = tuple[int, ...]
#: PhasedLSTMCell's default.
LEAK = 0.001


def _plain(sizes: Sizes) -> tuple[Shape, Shape, Shape]:
    return (sizes["input"],), (sizes["hidden"],), (sizes["unit"],)


def _as_it_is(x: Array) -> Array:
    return x


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of cell is run.

    Attributes:
        step: one step.
        forget: where what is added to its forget gates would stand if it were stored: parameter and gate.
        shapes: of one input, output and state, without the batch, for a cell's sizes.
        prepared: makes any numbers ``[time, batch, ...]`` an input that the cell can have.
    """

    step: Step
    forget: tuple[tuple[str, str], ...] = ()
    shapes: Callable[[Sizes], tuple[Shape, Shape, Shape]] = _plain
    prepared: Callable[[Array], Array] = _as_it_is


def _gate(p: Parameters, gate: str, x: Array, h: Array) -> Array:
    """``x wx + h wt + bi`` of one gate, of what it has."""
    total: Array = np.asarray(p.get(("bi", gate), 0.0))
    for param, value in (("wx", x), ("wt", h)):
        if (param, gate) in p:
            total = total + value @ p[param, gate]
    return total


def _act(does: Behaviour) -> Callable[[Array], Array]:
    return ACTIVATIONS[does.activation.value or "tanh"]


def _ugrnn(p: Parameters, does: Behaviour, x: Array, h: Array, _: Array) -> tuple[Array, Array]:
    g = sigmoid(_gate(p, "g", x, h) + does.forget_bias.value)
    h = g * h + (1 - g) * _act(does)(_gate(p, "c", x, h))
    return h, h


def _nas(p: Parameters, _: Behaviour, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    a = [x @ p["wx", f"a{k}"] for k in range(8)]
    b = [h @ p["wt", f"a{k}"] + p.get(("bt", f"a{k}"), 0.0) for k in range(8)]
    first = np.tanh(sigmoid(a[0] + b[0]) * np.maximum(a[1] + b[1], 0))
    second = np.tanh(sigmoid(a[2] + b[2]) + np.maximum(a[3] * b[3], 0))
    third = np.tanh(np.tanh(a[4] + b[4]) * sigmoid(a[5] + b[5]))
    fourth = sigmoid(np.tanh(a[6] + b[6]) + sigmoid(a[7] + b[7]))
    c = np.tanh(first + c) * second
    h = np.tanh(c * np.tanh(third + fourth))
    return (h @ p["wr", None] if ("wr", None) in p else h), c


def _intersection(p: Parameters, does: Behaviour, x: Array, _: Array, state: Array) -> tuple[Array, Array]:
    if ("wi", None) in p:
        x = x @ p["wi", None] + p["bp", None]
    gh, h, gy, y = (
        _gate(p, gate, x, state) + (x @ p["wy", gate] if ("wy", gate) in p else 0.0) for gate in ("gh", "h", "gy", "y")
    )
    keep, carry = sigmoid(gh + does.forget_bias.value), sigmoid(gy + does.forget_bias.value)
    return carry * x + (1 - carry) * _act(does)(y), keep * state + (1 - keep) * np.tanh(h)


def _ind_rnn(p: Parameters, does: Behaviour, x: Array, h: Array, _: Array) -> tuple[Array, Array]:
    h = _act(does)(_gate(p, "h", x, h) + h * p["wd", "h"])
    return h, h


def _indy_gru(p: Parameters, does: Behaviour, x: Array, h: Array, _: Array) -> tuple[Array, Array]:
    r, z = (sigmoid(_gate(p, gate, x, h) + h * p["wd", gate]) for gate in ("r", "z"))
    h = z * h + (1 - z) * _act(does)(_gate(p, "n", x, h) + r * h * p["wd", "n"])
    return h, h


def _indy_lstm(p: Parameters, does: Behaviour, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    i, g, f, o = (_gate(p, gate, x, h) + h * p["wd", gate] for gate in ("i", "g", "f", "o"))
    c = sigmoid(f + does.forget_bias.value) * c + sigmoid(i) * _act(does)(g)
    return _act(does)(c) * sigmoid(o), c


def _sru(p: Parameters, does: Behaviour, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    f, r = sigmoid(_gate(p, "f", x, h)), sigmoid(_gate(p, "r", x, h))
    c = f * c + (1 - f) * _gate(p, "n", x, h)
    return r * _act(does)(c) + (1 - r) * _gate(p, "x", x, h), c


def _minimal(p: Parameters, does: Behaviour, x: Array, h: Array, _: Array) -> tuple[Array, Array]:
    z = _act(does)(_gate(p, "z", x, h))
    u = sigmoid(_gate(p, "u", x, h) + z @ p["wz", "u"])
    h = u * h + (1 - u) * z
    return h, h


def _cfn(p: Parameters, does: Behaviour, x: Array, h: Array, _: Array) -> tuple[Array, Array]:
    theta, eta = sigmoid(_gate(p, "t", x, h)), sigmoid(_gate(p, "e", x, h))
    h = theta * np.tanh(h) + (1 - eta) * _act(does)(_gate(p, "w", x, h))
    return h, h


def lstm_like(
    p: Parameters,
    does: Behaviour,
    gates: Mapping[str, Array],
    c: Array,
    norm: Callable[[Array], Array] = _as_it_is,
    wr: Array | None = None,
) -> tuple[Array, Array]:
    """What follows the gates in cells that differ from an LSTM in how these are computed."""
    act, rec = _act(does), ACTIVATIONS[does.recurrent_activation.value or "sigmoid"]
    i = rec(gates["i"] + p.get(("wp", "i"), 0.0) * c)
    f = rec(gates["f"] + does.forget_bias.value + p.get(("wp", "f"), 0.0) * c)
    c = norm(f * c + i * act(gates["g"]))
    if does.cell_clip.value:
        c = np.clip(c, -does.cell_clip.value, does.cell_clip.value)
    h = rec(gates["o"] + p.get(("wp", "o"), 0.0) * c) * act(c)
    if wr is not None:
        h = h @ wr
        if does.proj_clip.value:
            h = np.clip(h, -does.proj_clip.value, does.proj_clip.value)
    return h, c


def _layer_norm(p: Parameters, does: Behaviour, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    def norm(v: Array, gamma: Array, beta: Array) -> Array:
        wide = np.sqrt(v.var(axis=-1, keepdims=True) + 1e-12)
        result: Array = (v - v.mean(axis=-1, keepdims=True)) / wide * gamma + beta
        return result

    gates = {k: norm(_gate(p, k, x, h), p["gamma", k], p["beta", k]) for k in ("i", "g", "f", "o")}
    return lstm_like(
        p, does, gates, c, lambda v: norm(v, p["state_gamma", None], p["state_beta", None]), p.get(("wr", None))
    )


def _weight_norm(p: Parameters, does: Behaviour, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    def norm(w: Array, g: Array) -> Array:
        result: Array = w / np.sqrt(np.maximum((w * w).sum(axis=0), 1e-12)) * g
        return result

    gates = {
        k: x @ norm(p["wx", k], p["gx", k]) + h @ norm(p["wt", k], p["gt", k]) + p.get(("bi", k), 0.0)
        for k in ("i", "g", "f", "o")
    }
    wr = norm(p["wr", None], p["gr", None]) if ("wr", None) in p else None
    return lstm_like(p, does, gates, c, wr=wr)


def _phased(p: Parameters, _: Behaviour, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    time, x = x[:, :1], x[:, 1:]

    def gate(k: str, state: Array) -> Array:
        return _gate(p, k, x, h) + (state @ p["wc", k] if ("wc", k) in p else 0.0)

    new = sigmoid(gate("f", c)) * c + sigmoid(gate("i", c)) * np.tanh(_gate(p, "g", x, h))
    out = sigmoid(gate("o", new)) * np.tanh(new)
    ratio = np.mod(time - p["phase", None], p["period", None]) / p["period", None]
    up = 2 * ratio / p["ratio_on", None]
    k = np.where(ratio < p["ratio_on", None], 2 - up, LEAK * ratio)
    k = np.where(ratio < 0.5 * p["ratio_on", None], up, k)
    return k * out + (1 - k) * h, k * new + (1 - k) * c


def _time_first(x: Array) -> Array:
    """The first column increasing and positive, as time is."""
    time = np.cumsum(np.abs(x[..., :1]) + 0.2, axis=0)
    return np.concatenate([time, x[..., 1:]], axis=-1)


def _groups(p: Parameters, does: Behaviour, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    count = sum(param[0] == "x" and param[1:].isdigit() and gate == "i" for param, gate in p)
    parts = [np.split(v, count, axis=1) for v in (x, h)]

    def gate(k: str) -> Array:
        of_groups = [parts[0][n] @ p[f"x{n}", k] + parts[1][n] @ p[f"h{n}", k] for n in range(count)]
        total: Array = np.concatenate(of_groups, axis=1) + np.reshape(p.get(("bi", k), 0.0), -1)
        return total

    wr = p.get(("wr", None))  # [group, unit, group', hidden]
    if wr is not None:
        wr = wr.reshape(c.shape[1], -1)
    return lstm_like(p, does, {k: gate(k) for k in "igfo"}, c, wr=wr)


def _of_groups(sizes: Sizes) -> tuple[Shape, Shape, Shape]:
    return (
        (sizes["group"] * sizes["input"],), (sizes["group"] * sizes["hidden"],), (sizes["group"] * sizes["unit"],),
    )  # fmt: skip


F = ("bi", "f")
KINDS: Mapping[str, Kind] = {
    "ugrnn": Kind(_ugrnn, (("bi", "g"),)),
    "nas": Kind(_nas),
    "intersection": Kind(_intersection, (("bi", "gh"), ("bi", "gy"))),
    "ind_rnn": Kind(_ind_rnn),
    "indy_gru": Kind(_indy_gru),
    "indy_lstm": Kind(_indy_lstm, (F,)),
    "sru": Kind(_sru),
    "minimal": Kind(_minimal),
    "cfn": Kind(_cfn),
    "layer_norm_lstm": Kind(_layer_norm, (("beta", "f"),)),
    "weight_norm_lstm": Kind(_weight_norm, (F,)),
    "phased_lstm": Kind(
        _phased, shapes=lambda sizes: ((1 + sizes["input"],), *_plain(sizes)[1:]), prepared=_time_first
    ),
    "glstm": Kind(_groups, (F,), _of_groups),
}
