"""More reference steps: PyTorch, ONNX, Flax, Haiku, Equinox, MXNet, PaddlePaddle, Core ML.

Each is written from the source that its comment names, for the arrays as that framework stores them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
State = tuple[np.ndarray, ...]
Step = Callable[[Arrays, np.ndarray, State, Mapping[str, Any]], State]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# torch/nn/modules/rnn.py: the formulas of LSTM, GRU and RNN, with x W^T; proj_size: h = W_hr h.
# gluon/rnn/rnn_cell.py (hybrid_forward) and paddle/nn/layer/rnn.py (forward) have the same ones under other names.


def rows_lstm(ih: str, hh: str, b_ih: str, b_hh: str, hr: str = "", ho: str = "") -> Step:
    def step(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
        c, h = state
        gates = x @ t[ih].T + t.get(b_ih, 0) + (h @ t[hh].T + t.get(b_hh, 0))
        i, f, g, o = np.split(gates, 4, axis=1)
        s = facts["s"]
        c = s(f) * c + s(i) * np.tanh(g)
        h = s(o) * np.tanh(c)
        if hr in t:  # PyTorch, MXNet: [projection, units]
            h = h @ t[hr].T
        elif ho in t:  # PaddlePaddle: [units, projection]
            h = h @ t[ho]
        return c, h

    return step


def rows_gru(ih: str, hh: str, b_ih: str, b_hh: str) -> Step:
    def step(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
        (h,) = state
        s = facts["s"]
        x_r, x_z, x_n = np.split(x @ t[ih].T + t.get(b_ih, 0), 3, axis=1)
        h_r, h_z, h_n = np.split(h @ t[hh].T + t.get(b_hh, 0), 3, axis=1)
        r, z = s(x_r + h_r), s(x_z + h_z)
        n = np.tanh(x_n + r * h_n)
        return ((1 - z) * n + z * h,)

    return step


def rows_rnn(ih: str, hh: str, b_ih: str, b_hh: str) -> Step:
    def step(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
        return (facts["a"](x @ t[ih].T + t.get(b_ih, 0) + state[0] @ t[hh].T + t.get(b_hh, 0)),)

    return step


# https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html ("Equations"), one direction


def onnx_lstm(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    c_prev, h_prev = state
    s, units = facts["s"], t["R"].shape[2]
    w = dict(zip("iofc", np.split(t["W"][0], 4), strict=True))
    r = dict(zip("iofc", np.split(t["R"][0], 4), strict=True))
    biases = np.split(t["B"][0] if "B" in t else np.zeros(8 * units), 8)
    wb, rb = dict(zip("iofc", biases[:4], strict=True)), dict(zip("iofc", biases[4:], strict=True))
    p = dict(zip("iof", np.split(t["P"][0] if "P" in t else np.zeros(3 * units), 3), strict=True))
    pre = {k: x @ w[k].T + h_prev @ r[k].T + wb[k] + rb[k] for k in "iofc"}
    i, f = s(pre["i"] + p["i"] * c_prev), s(pre["f"] + p["f"] * c_prev)
    c = f * c_prev + i * np.tanh(pre["c"])
    return c, s(pre["o"] + p["o"] * c) * np.tanh(c)


def onnx_gru(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    (h,) = state
    s, units = facts["s"], t["R"].shape[2]
    w_z, w_r, w_h = np.split(t["W"][0], 3)
    r_z, r_r, r_h = np.split(t["R"][0], 3)
    wb_z, wb_r, wb_h, rb_z, rb_r, rb_h = np.split(t["B"][0] if "B" in t else np.zeros(6 * units), 6)
    z = s(x @ w_z.T + h @ r_z.T + wb_z + rb_z)
    r = s(x @ w_r.T + h @ r_r.T + wb_r + rb_r)
    if facts["reset"] == "after":  # linear_before_reset != 0
        new = np.tanh(x @ w_h.T + r * (h @ r_h.T + rb_h) + wb_h)
    else:
        new = np.tanh(x @ w_h.T + (r * h) @ r_h.T + rb_h + wb_h)
    return ((1 - z) * new + z * h,)


def onnx_rnn(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    wb, rb = np.split(t["B"][0], 2) if "B" in t else (0, 0)
    return (facts["a"](x @ t["W"][0].T + state[0] @ t["R"][0].T + wb + rb),)


# flax/linen/recurrent.py and flax/nnx/nn/recurrent.py, __call__


def flax_lstm(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    c, h = state
    if "dense_i/kernel" in t:
        i, f, g, o = np.split(x @ t["dense_i/kernel"] + h @ t["dense_h/kernel"] + t["dense_h/bias"], 4, axis=1)
    else:
        name = {"f": "if_" if "if_/kernel" in t else "if"}
        i, f, g, o = (x @ t[f"{name.get(k, 'i' + k)}/kernel"] + h @ t[f"h{k}/kernel"] + t[f"h{k}/bias"] for k in "ifgo")
    s = facts["s"]
    c = s(f) * c + s(i) * np.tanh(g)
    return c, s(o) * np.tanh(c)


def flax_gru(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    (h,) = state
    s = facts["s"]
    if "dense_i/kernel" in t:
        i_r, i_z, i_n = np.split(x @ t["dense_i/kernel"] + t["dense_i/bias"], 3, axis=1)
        h_r, h_z, h_n = np.split(h @ t["dense_h/kernel"], 3, axis=1)
    else:
        i_r, i_z, i_n = (x @ t[f"i{k}/kernel"] + t[f"i{k}/bias"] for k in "rzn")
        h_r, h_z, h_n = (h @ t[f"h{k}/kernel"] for k in "rzn")
        h_n = h_n + t["hn/bias"]
    r, z = s(i_r + h_r), s(i_z + h_z)
    return ((1 - z) * np.tanh(i_n + r * h_n) + z * h,)


def flax_rnn(i: str, h: str) -> Step:
    def step(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
        return (facts["a"](x @ t[f"{i}/kernel"] + t[f"{i}/bias"] + state[0] @ t[f"{h}/kernel"]),)

    return step


# haiku/_src/recurrent.py, LSTM, GRU, VanillaRNN


def haiku_lstm(t: Arrays, x: np.ndarray, state: State, _: Mapping[str, Any]) -> State:
    c, h = state
    i, g, f, o = np.split(np.concatenate([x, h], 1) @ t["linear/w"] + t["linear/b"], 4, axis=1)
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def haiku_gru(t: Arrays, x: np.ndarray, state: State, _: Mapping[str, Any]) -> State:
    (h,) = state
    units = h.shape[1]
    gates_x, b = x @ t["w_i"], t["b"]
    zr = gates_x[:, : 2 * units] + h @ t["w_h"][:, : 2 * units] + b[: 2 * units]
    z, r = np.split(sigmoid(zr), 2, axis=1)
    a = np.tanh(gates_x[:, 2 * units :] + (r * h) @ t["w_h"][:, 2 * units :] + b[2 * units :])
    return ((1 - z) * h + z * a,)


def haiku_rnn(t: Arrays, x: np.ndarray, state: State, _: Mapping[str, Any]) -> State:
    out = x @ t["linear/w"] + t["linear/b"] + state[0] @ t["linear_1/w"] + t.get("linear_1/b", 0)
    return (np.maximum(out, 0),)


# equinox/nn/_rnn.py, LSTMCell.__call__, GRUCell.__call__


def equinox_lstm(t: Arrays, x: np.ndarray, state: State, _: Mapping[str, Any]) -> State:
    c, h = state
    i, f, g, o = np.split(x @ t["weight_ih"].T + h @ t["weight_hh"].T + t.get("bias", 0), 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def equinox_gru(t: Arrays, x: np.ndarray, state: State, _: Mapping[str, Any]) -> State:
    (h,) = state
    i_r, i_z, i_n = np.split(x @ t["weight_ih"].T + t.get("bias", 0), 3, axis=1)
    h_r, h_z, h_n = np.split(h @ t["weight_hh"].T, 3, axis=1)
    reset, inp = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
    new = np.tanh(i_n + reset * (h_n + t.get("bias_n", 0)))
    return (new + inp * (h - new),)


# coremltools, mlmodel/format/NeuralNetwork.proto: the equations beside the messages


def coreml_matrix(t: Arrays, name: str, units: int) -> np.ndarray:
    return t[name].reshape(units, -1)


def coreml_lstm(prefix: str) -> Step:
    def step(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
        c_prev, y_prev = state
        s = facts["s"]

        def pre(gate: str, c: Any = 0) -> np.ndarray:
            name, units = prefix + gate, c_prev.shape[1]
            w, r = (coreml_matrix(t, f"{name}{which}Matrix", units) for which in ("Weight", "Recursion"))
            total = x @ w.T + y_prev @ r.T + t.get(f"{name}PeepholeVector", 0) * c + t.get(f"{name}BiasVector", 0)
            result: np.ndarray = np.clip(total, -50, 50)
            return result

        f, i = s(pre("forgetGate", c_prev)), s(pre("inputGate", c_prev))
        c = c_prev * f + i * np.tanh(pre("blockInput"))
        return c, np.tanh(c) * s(pre("outputGate", c))

    return step


def coreml_gru(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    (y,) = state
    s = facts["s"]

    def pre(gate: str, recurrent: np.ndarray) -> np.ndarray:
        w, r = (coreml_matrix(t, f"{gate}{which}Matrix", y.shape[1]) for which in ("Weight", "Recursion"))
        return x @ w.T + recurrent @ r.T + t.get(f"{gate}BiasVector", 0)

    z, r = s(pre("updateGate", y)), s(pre("resetGate", y))
    o = np.tanh(pre("outputGate", y * r))
    return ((1 - z) * o + z * y,)


def coreml_rnn(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
    w, r = (coreml_matrix(t, name, state[0].shape[1]) for name in ("weightMatrix", "recursionMatrix"))
    return (facts["a"](x @ w.T + state[0] @ r.T + t.get("biasVector", 0)),)


# jax/experimental/rnn.py, unpack_lstm_weights; mxnet/rnn/rnn_cell.py, FusedRNNCell._slice_weights: cuDNN's one vector,
# here of one layer in one direction.


def one_vector(kind: str, gates: int) -> Step:
    inner = {"lstm": rows_lstm, "gru": rows_gru, "rnn": rows_rnn}[kind]("w_ih", "w_hh", "b_ih", "b_hh")

    def step(t: Arrays, x: np.ndarray, state: State, facts: Mapping[str, Any]) -> State:
        inputs, units, weights = x.shape[1], state[-1].shape[1], t["opaque_kernel"]
        shapes = {"w_ih": (gates * units, inputs), "w_hh": (gates * units, units)}
        shapes |= dict.fromkeys(("b_ih", "b_hh"), (gates * units,))
        found, offset = {}, 0
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            found[name] = weights[offset : offset + size].reshape(shape)
            offset += size
        assert offset == weights.size
        return inner(found, x, state, facts)

    return step


PEEPHOLES, PROJECTION, BIAS = "peepholes", "projection", "bias"
NONE, B, BP, BW = frozenset[str](), frozenset({BIAS}), frozenset({BIAS, PROJECTION}), frozenset({BIAS, PEEPHOLES})
P = frozenset({PROJECTION})

_TORCH = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_GLUON = ("i2h_weight", "h2h_weight", "i2h_bias", "h2h_bias")
_MADE = {"lstm": rows_lstm, "gru": rows_gru, "rnn": rows_rnn}
_LETTER = {"lstm": "", "gru": "g-", "rnn": "r-"}

Case = tuple[str, int, frozenset[str], Step]


def _torch(kind: str) -> dict[str, Case]:
    make, a = _MADE[kind], _LETTER[kind]
    layer = tuple(f"{n}_l0" for n in _TORCH)
    found: dict[str, Case] = {
        f"{a}torch": (f"{kind}.torch", 0, B, make(*layer)),
        f"{a}torch-none": (f"{kind}.torch", 0, NONE, make(*layer)),
        f"{a}torch-cell": (f"{kind}.torch", 1, B, make(*_TORCH)),
        f"{a}paddle": (f"{kind}.paddle", 0, B, make(*layer)),
        f"{a}paddle-cell": (f"{kind}.paddle", 1, B, make(*_TORCH)),
        f"{a}paddle-layers": (f"{kind}.paddle-layers", 0, B, make(*(f"0/cell/{n}" for n in _TORCH))),
        f"{a}paddle-both": (f"{kind}.paddle-layers", 1, B, make(*(f"0/cell_fw/{n}" for n in _TORCH))),
    }
    if kind == "lstm":
        found["torch-proj"] = ("lstm.torch", 0, BP, rows_lstm(*layer, "weight_hr_l0"))
        found["torch-none-proj"] = ("lstm.torch", 0, P, rows_lstm(*layer, "weight_hr_l0"))
        found["paddle-cell-proj"] = ("lstm.paddle", 1, BP, rows_lstm(*_TORCH, ho="weight_ho"))
        for number, (case, scope) in enumerate({"paddle-layers-proj": "cell", "paddle-both-proj": "cell_fw"}.items()):
            names = (f"0/{scope}/{n}" for n in (*_TORCH, "", "weight_ho"))
            found[case] = ("lstm.paddle-layers", number, BP, rows_lstm(*names))
    return found


def _mxnet(kind: str) -> dict[str, Case]:
    make, a = _MADE[kind], _LETTER[kind]
    prefixes = {"mx": "_l0_", "mx-saved": "l0_", "mx-unfused": "_unfused/0/", "mx-both": "_unfused/0/l_cell/"}
    found: dict[str, Case] = {
        f"{a}{name}": (f"{kind}.mxnet", number, NONE, make(*(prefix + n for n in _GLUON)))
        for number, (name, prefix) in enumerate(prefixes.items())
    }
    cell, start = ("rnn.mxnet-cell", 0) if kind == "rnn" else (f"{kind}.mxnet", 4)
    found[f"{a}mx-cell"] = (cell, start, NONE, make(*(f"_{n}" for n in _GLUON)))
    found[f"{a}mx-cell-saved"] = (cell, start + 1, NONE, make(*_GLUON))
    if kind == "lstm":
        for number, (name, prefix) in enumerate(prefixes.items()):
            step = rows_lstm(*(prefix + n for n in (*_GLUON, "h2r_weight")))
            found[f"{name}-proj"] = ("lstm.mxnet", number, P, step)
    return found


MORE: dict[str, Case] = {
    **_torch("lstm"),
    "opaque": ("lstm.cudnn-opaque", 0, NONE, one_vector("lstm", 4)),
    "g-opaque": ("gru.cudnn-opaque", 0, NONE, one_vector("gru", 3)),
    "r-opaque": ("rnn.cudnn-opaque", 0, NONE, one_vector("rnn", 1)),
    "onnx": ("lstm.onnx", 0, B, onnx_lstm),
    "onnx-none": ("lstm.onnx", 0, NONE, onnx_lstm),
    "onnx-peep": ("lstm.onnx", 0, BW, onnx_lstm),
    "flax": ("lstm.flax", 0, NONE, flax_lstm),
    "nnx": ("lstm.flax", 1, NONE, flax_lstm),
    "nnx-opt": ("lstm.flax", 2, NONE, flax_lstm),
    "haiku": ("lstm.haiku", 0, NONE, haiku_lstm),
    "eqx": ("lstm.equinox", 0, B, equinox_lstm),
    "eqx-none": ("lstm.equinox", 0, NONE, equinox_lstm),
    **_mxnet("lstm"),
    "coreml": ("lstm.coreml", 0, B, coreml_lstm("weightParams/")),
    "coreml-none": ("lstm.coreml", 0, NONE, coreml_lstm("weightParams/")),
    "coreml-both": ("lstm.coreml", 1, B, coreml_lstm("weightParams/0/")),
    "coreml-peep": ("lstm.coreml", 0, BW, coreml_lstm("weightParams/")),
    "coreml-flat": ("lstm.coreml", 2, NONE, coreml_lstm("weightParams/")),
    "coreml-flat-both": ("lstm.coreml", 3, NONE, coreml_lstm("weightParams/0/")),
    **_torch("gru"),
    "g-onnx": ("gru.onnx", 0, B, onnx_gru),
    "g-onnx-none": ("gru.onnx", 0, NONE, onnx_gru),
    "g-flax": ("gru.flax", 0, NONE, flax_gru),
    "g-nnx": ("gru.flax", 1, NONE, flax_gru),
    "g-haiku": ("gru.haiku", 0, NONE, haiku_gru),
    "g-eqx": ("gru.equinox", 0, NONE, equinox_gru),
    "g-eqx-none": ("gru.equinox", 1, NONE, equinox_gru),
    **_mxnet("gru"),
    "g-coreml": ("gru.coreml", 0, B, coreml_gru),
    "g-coreml-none": ("gru.coreml", 0, NONE, coreml_gru),
    "g-coreml-flat": ("gru.coreml", 1, NONE, coreml_gru),
    **_torch("rnn"),
    "r-onnx": ("rnn.onnx", 0, B, onnx_rnn),
    "r-onnx-none": ("rnn.onnx", 0, NONE, onnx_rnn),
    "r-flax": ("rnn.flax", 0, NONE, flax_rnn("i", "h")),
    "r-nnx": ("rnn.flax", 1, NONE, flax_rnn("dense_i", "dense_h")),
    "r-haiku": ("rnn.haiku", 0, B, haiku_rnn),
    "r-haiku-one": ("rnn.haiku", 0, NONE, haiku_rnn),
    **_mxnet("rnn"),
    "r-coreml": ("rnn.coreml", 0, B, coreml_rnn),
    "r-coreml-none": ("rnn.coreml", 0, NONE, coreml_rnn),
    "r-coreml-flat": ("rnn.coreml", 1, NONE, coreml_rnn),
}
