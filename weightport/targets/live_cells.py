"""Real cells, run by their own frameworks: the other half of a proof, where a framework is installed.

Each runner makes one cell of its framework, gives it the tensors under the framework's own names, as they are stored,
and runs it. Nothing of the layout tables is used: a table that is wrong shows as a difference.

Promise: importing this module imports no framework. Limit: one layer in one direction; float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from weightport.tensors import Array

#: The tensors of one cell, by the names in the layout's table.
Tensors = Mapping[str, Array]
#: What the cell does beside its weights: ``activation``, ``recurrent_activation``, ``forget_bias``, ``reset``, clips.
Does = Mapping[str, Any]
#: tensors, does, inputs ``[time, batch, input]``, initial output and cell state -> outputs ``[time, batch, hidden]``.
Runner = Callable[[Tensors, Does, Array, Array, Array], Array]


def runner(layout: str) -> tuple[Runner, str] | None:
    """What runs a cell of that layout, and the package that it needs; None if nothing here does, or it is not there."""
    kind, _, flavour = layout.partition(".")
    known = _RUNNERS.get(flavour)
    if known is None or kind not in ("lstm", "gru", "rnn"):
        return None
    run, package = known
    if importlib.util.find_spec(package) is None:
        return None
    return (lambda tensors, does, x, h, c: run(kind, tensors, does, x, h, c)), package


def _f32(array: Array) -> Array:
    return np.ascontiguousarray(array, np.float32)


def _keras(kind: str, tensors: Tensors, does: Does, x: Array, h: Array, c: Array) -> Array:
    """``keras.layers.LSTM``, ``GRU`` or ``SimpleRNN``."""
    import keras

    def activation(name: str | None, default: str) -> Any:
        if name == "hard_sigmoid":  # Keras 2's, which Keras 3 does not have
            return lambda v: keras.ops.clip(0.2 * v + 0.5, 0.0, 1.0)
        return {"hard_sigmoid_6": "hard_sigmoid"}.get(name or default, name or default)

    options: dict[str, Any] = {"use_bias": "bias" in tensors, "return_sequences": True}
    options["activation"] = activation(does.get("activation"), "tanh")
    if kind != "rnn":
        options["recurrent_activation"] = activation(does.get("recurrent_activation"), "sigmoid")
    if kind == "gru":
        options["reset_after"] = does.get("reset") == "after"
    layer = getattr(keras.layers, {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}[kind])(h.shape[1], **options)
    layer.build((None, None, x.shape[2]))
    layer.set_weights([_f32(tensors[n]) for n in ("kernel", "recurrent_kernel", "bias") if n in tensors])
    state = [_f32(h), _f32(c)] if kind == "lstm" else [_f32(h)]
    found = layer(_f32(x.swapaxes(0, 1)), initial_state=state)
    return np.asarray(keras.ops.convert_to_numpy(found)).swapaxes(0, 1)


def _torch(kind: str, tensors: Tensors, does: Does, x: Array, h: Array, c: Array) -> Array:
    """``torch.nn.LSTM``, ``GRU`` or ``RNN``."""
    import torch

    options: dict[str, Any] = {"bias": any(n.startswith("bias") for n in tensors)}
    if any(n.startswith("weight_hr") for n in tensors):
        options["proj_size"] = h.shape[1]
    if kind == "rnn":
        options["nonlinearity"] = does.get("activation") or "tanh"
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[kind](x.shape[2], c.shape[1], **options)
    with torch.no_grad():
        for name, array in tensors.items():
            own = "_".join(name.split("_")[:2]) + "_l0"
            getattr(module, own).copy_(torch.from_numpy(_f32(array)))
        first = torch.from_numpy(_f32(h))[None]
        state = (first, torch.from_numpy(_f32(c))[None]) if kind == "lstm" else first
        found: Array = module(torch.from_numpy(_f32(x)), state)[0].numpy()
    return found


def _tf1(kind: str, tensors: Tensors, does: Does, x: Array, h: Array, c: Array) -> Array:
    """``tf.compat.v1.nn.dynamic_rnn`` over LSTMCell, GRUCell or BasicRNNCell."""
    import tensorflow as tf
    from tensorflow.python.keras.layers.legacy_rnn import rnn_cell_impl

    tf1 = tf.compat.v1
    act = None if (does.get("activation") or "tanh") == "tanh" else getattr(tf.nn, str(does["activation"]))
    with tf.Graph().as_default() as graph:
        if kind == "lstm":
            options = {key: does.get(key) for key in ("cell_clip", "proj_clip")}
            options["num_proj"] = h.shape[1] if "projection/kernel" in tensors else None
            options["use_peepholes"] = any(n.endswith("_diag") for n in tensors)
            options["forget_bias"] = float(does.get("forget_bias") or 0.0)
            cell = rnn_cell_impl.LSTMCell(c.shape[1], activation=act, **options)
            state: Any = rnn_cell_impl.LSTMStateTuple(tf.constant(_f32(c)), tf.constant(_f32(h)))
        else:
            make = {"gru": rnn_cell_impl.GRUCell, "rnn": rnn_cell_impl.BasicRNNCell}[kind]
            cell, state = make(h.shape[1], activation=act), tf.constant(_f32(h))
        inputs = tf.constant(_f32(x))
        outputs, _ = tf1.nn.dynamic_rnn(cell, inputs, initial_state=state, time_major=True, scope="cell")
        feed = {}
        for variable in tf1.global_variables():
            name = variable.name.split(":")[0].split("/", 2)[2]
            feed[variable.initializer.inputs[1]] = _f32(tensors[name])
        with tf1.Session(graph=graph) as session:
            session.run(tf1.global_variables_initializer(), feed)
            found: Array = session.run(outputs)
    return found


def _onnx(kind: str, tensors: Tensors, does: Does, x: Array, h: Array, c: Array) -> Array:
    """The operator LSTM, GRU or RNN, in onnxruntime."""
    import onnx
    import onnxruntime

    names = {None: None, "tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu"}
    act, rec = names[does.get("activation") or "tanh"], names[does.get("recurrent_activation") or "sigmoid"]
    weights = {n: _f32(a) for n, a in tensors.items()}
    given = {"X": _f32(x), "initial_h": _f32(h)[None]}
    inputs = ["X", "W", "R", "B" if "B" in weights else "", "", "initial_h"]
    attributes: dict[str, Any] = {"hidden_size": h.shape[1], "activations": [act]}
    if kind == "lstm":
        given["initial_c"] = _f32(c)[None]
        inputs += ["initial_c", "P" if "P" in weights else ""]
        attributes["activations"] = [rec, act, act]
    elif kind == "gru":
        attributes |= {"activations": [rec, act], "linear_before_reset": int(does.get("reset") == "after")}
    node = onnx.helper.make_node(kind.upper(), inputs, ["Y"], **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "cell",
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in given.items()],
        [onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Array = session.run(["Y"], given)[0][:, 0]
    return found


def _flax(kind: str, tensors: Tensors, does: Does, x: Array, h: Array, c: Array) -> Array:
    """``flax.linen.LSTMCell``, ``GRUCell`` or ``SimpleCell``."""
    import flax.linen as nn
    import jax.numpy as jnp

    functions = {"tanh": jnp.tanh, "sigmoid": nn.sigmoid, "relu": nn.relu}
    options: dict[str, Any] = {"activation_fn": functions[does.get("activation") or "tanh"]}
    if kind != "rnn":
        options["gate_fn"] = functions[does.get("recurrent_activation") or "sigmoid"]
    cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}[kind](c.shape[1], **options)
    params: dict[str, dict[str, Array]] = {}
    for name, array in tensors.items():
        scope, _, leaf = name.partition("/")
        params.setdefault(scope, {})[leaf] = _f32(array)
    carry: Any = (jnp.asarray(_f32(c)), jnp.asarray(_f32(h))) if kind == "lstm" else jnp.asarray(_f32(h))
    outputs = []
    for step in _f32(x):
        carry, out = cell.apply({"params": params}, carry, step)
        outputs.append(np.asarray(out))
    return np.stack(outputs)


_Run = Callable[[str, Tensors, Does, Array, Array, Array], Array]
#: flavour of a layout -> what runs it, and the package it needs
_RUNNERS: Mapping[str, tuple[_Run, str]] = {
    "keras": (_keras, "keras"),
    "torch": (_torch, "torch"),
    "tf1": (_tf1, "tensorflow"),
    "onnx": (_onnx, "onnxruntime"),
    "flax": (_flax, "flax"),
}
