"""Reference steps of the rarer cells whose inputs and states have more axes than units: frequencies, windows, images.

What a file does not store is chosen here, the same on both sides of a proof, and any choice tells two sets of weights
apart: a grid and a time-frequency cell see :data:`WINDOWS` windows of the frequencies, already cut out of the input
(their size is in the weights; how far apart they start is not); an attention looks back :data:`WINDOWS` steps; the
image of a convolution is two larger than its kernel on each axis, so that its border and its inside are met.

An attention stands around a cell that is a cell of its own. Its step is what the two give each other: the input is
``[input, the cell's output, the cell's state]``, the output is ``[what the cell is given, output]``.

Promise: each gives what TensorFlow 1.15's cell gives, which the recorded outputs of that TensorFlow confirm
(tests/layouts/test_rare_cells.py). Limit: convolutions are padded to SAME and have no strides, as TensorFlow 1's
always are; a Keras layer with others computes another function of the same weights.

Source: tensorflow/contrib/rnn/python/ops/rnn_cell.py (TimeFreqLSTMCell.call, GridLSTMCell._compute,
AttentionCellWrapper.call and ._attention, ConvLSTMCell.call, _conv); tensorflow/core/framework/common_shape_fns.cc
(GetWindowedOutputSizeVerboseV2: how SAME pads).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from weightport.layouts.activations import sigmoid
from weightport.layouts.behaviour import Behaviour
from weightport.layouts.rare import F, Kind, Parameters, Shape, Sizes, lstm_like
from weightport.tensors import Array

WINDOWS = 3
GATES = ("i", "g", "f", "o")
#: The axes of an image, outermost first.
SPACE = ("depth", "height", "width")


# Frequencies: x [batch, frequency, input], state [batch, frequency, unit] --------------------------------------------


def _time_frequency(p: Parameters, does: Behaviour, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    before = np.zeros_like(h[:, 0])
    outputs, states = [], []
    for at in range(x.shape[1]):
        gates = {
            k: x[:, at] @ p["wx", k] + h[:, at] @ p["wt", k] + before @ p["wf", k] + p.get(("bi", k), 0.0)
            for k in GATES
        }
        before, state = lstm_like(p, does, gates, c[:, at])
        outputs.append(before)
        states.append(state)
    return np.stack(outputs, axis=1), np.stack(states, axis=1)


def _frequencies(sizes: Sizes) -> tuple[Shape, Shape, Shape]:
    return (WINDOWS, sizes["input"]), (WINDOWS, sizes["unit"]), (WINDOWS, sizes["unit"])


def _grid(p: Parameters, does: Behaviour, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """The output of each frequency is [that over time, that over frequencies]; the first of them is taken up again."""
    units = c.shape[-1]
    shared = ("tx", "i") not in p
    m_freq, c_freq = np.zeros_like(c[:, 0]), np.zeros_like(c[:, 0])
    outputs, states = [], []
    for at in range(x.shape[1]):
        c_time, m_time = c[:, at], h[:, at, :units]

        def sums(side: str, inputs: tuple[Array, Array, Array]) -> Mapping[str, Array]:
            weights = [{k: p[f"{side}{of}", k] for k in GATES} for of in "xhf"]
            return {
                k: sum((v @ w[k] for v, w in zip(inputs, weights, strict=True)), p.get((f"{side}b", k), np.zeros(1)))
                for k in GATES
            }

        def peephole(side: str, gate: str, over_freq: Array, over_time: Array) -> Array:
            found = (p.get((f"p{side}_{of}", gate), 0.0) for of in "ft")
            total: Array = next(found) * over_freq + next(found) * over_time
            return total

        def state(side: str, gates: Mapping[str, Array], kept: Array, seen: tuple[Array, Array]) -> Array:
            i = sigmoid(gates["i"] + peephole(side, "i", *seen))
            f = sigmoid(gates["f"] + does.forget_bias.value + peephole(side, "f", *seen))
            new: Array = f * kept + i * np.tanh(gates["g"])
            return np.clip(new, -does.cell_clip.value, does.cell_clip.value) if does.cell_clip.value else new

        f_gates = sums("f", (x[:, at], m_time, m_freq))
        t_gates = f_gates if shared else sums("t", (x[:, at], m_time, m_freq))
        t_side = "f" if shared else "t"
        seen = c_freq, c_time
        c_freq, c_time = state("f", f_gates, c_freq, seen), state(t_side, t_gates, c_time, seen)
        m_freq = sigmoid(f_gates["o"] + peephole("f", "o", c_freq, c_time)) * np.tanh(c_freq)
        m_time = sigmoid(t_gates["o"] + peephole(t_side, "o", c_freq, c_time)) * np.tanh(c_time)
        outputs.append(np.concatenate([m_time, m_freq], axis=-1))
        states.append(c_time)
    return np.stack(outputs, axis=1), np.stack(states, axis=1)


def _of_grid(sizes: Sizes) -> tuple[Shape, Shape, Shape]:
    return (WINDOWS, sizes["input"]), (WINDOWS, 2 * sizes["unit"]), (WINDOWS, sizes["unit"])


# Attention: state [batch, 1 + window, size]: the attention, then the outputs of the last steps -----------------------


def _attention(p: Parameters, _: Behaviour, x: Array, __: Array, state: Array) -> tuple[Array, Array]:
    ends = np.cumsum([p["wi", None].shape[0], p["wo", None].shape[0]])
    x, cell_output, cell_state = np.split(x, ends, axis=1)
    attention, window = state[:, 0], state[:, 1:]
    given = x @ p["wi", None] + attention @ p["wa", None] + p["ba", None]
    asked = cell_state @ p["query", None] + p["bq", None]
    scores = (np.tanh(window @ p["keys", None] + asked[:, None]) * p["scores", None]).sum(axis=-1)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    attention = ((weights / weights.sum(axis=1, keepdims=True))[..., None] * window).sum(axis=1)
    output = cell_output @ p["wo", None] + attention @ p["wv", None] + p["bo", None]
    kept = [attention[:, None], window[:, 1:], output[:, None]]
    return np.concatenate([given, output], axis=1), np.concatenate(kept, axis=1)


def _around(sizes: Sizes) -> tuple[Shape, Shape, Shape]:
    x = sizes["input"] + sizes["cell_output"] + sizes["cell_state"]
    return (x,), (sizes["cell_input"] + sizes["unit"],), (1 + WINDOWS, sizes["unit"])


# Convolutions: x [batch, (depth, height,) width, channels] -----------------------------------------------------------


def _convolved(x: Array, w: Array) -> Array:
    """``x`` with the kernel ``[space..., in, out]``: SAME padding, no strides; as in the frameworks a correlation."""
    kernel, image = w.shape[:-2], x.shape[1:-1]
    padded = np.pad(x, [(0, 0), *(((k - 1) // 2, k - 1 - (k - 1) // 2) for k in kernel), (0, 0)])
    total = np.zeros((*x.shape[:-1], w.shape[-1]))
    for at in itertools.product(*map(range, kernel)):
        part = tuple(slice(start, start + size) for start, size in zip(at, image, strict=True))
        total += padded[(slice(None), *part)] @ w[at]
    return total


def _convolutional(p: Parameters, does: Behaviour, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    gates = {k: _convolved(x, p["wx", k]) + _convolved(h, p["wt", k]) + p.get(("bi", k), 0.0) for k in GATES}
    return lstm_like(p, does, gates, c)


def _images(sizes: Sizes) -> tuple[Shape, Shape, Shape]:
    image = tuple(2 + sizes[axis] for axis in SPACE if axis in sizes)
    return (*image, sizes["input"]), (*image, sizes["unit"]), (*image, sizes["unit"])


KINDS: Mapping[str, Kind] = {
    "timefreq_lstm": Kind(_time_frequency, (F,), _frequencies),
    "grid_lstm": Kind(_grid, (("fb", "f"), ("tb", "f")), _of_grid),
    "attention": Kind(_attention, shapes=_around),
    **{f"conv{n}d_lstm": Kind(_convolutional, (F,), _images) for n in (1, 2, 3)},
}
