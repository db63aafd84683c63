"""Reference cells in numpy: what an LSTM, a GRU and a plain RNN compute from their canonical parameters (the rarer
cells are in :mod:`weightport.layouts.rare`).

    lstm:  i = s(xWi + hUi + bi + pi c);  f = s(xWf + hUf + bf + pf c + forget_bias);  g = a(xWg + hUg + bg)
           c' = clip(f c + i g);  o = s(xWo + hUo + bo + po c');  h' = clip(o a(c') P)
    gru:   r = s(xWr + hUr + br);  z = s(xWz + hUz + bz);  h' = z h + (1 - z) n
           reset before: n = a(xWn + (r h) Un + bn);  reset after: n = a(xWn + bn + r (h Un + b'n))
    rnn:   h' = a(xW + hU + b)

Promise: one step at a time, in float64, so that two packings of the same weights differ by the rounding of the weights
only. Limit: slow; for proofs, not for use.

Sources: tensorflow/python/ops/rnn_cell_impl.py (LSTMCell.call, GRUCell.call, BasicRNNCell.call),
keras/src/layers/rnn/{lstm,gru,simple_rnn}.py, torch/nn/modules/rnn.py (the formulas in the docstrings).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from weightport.layouts.activations import ACTIVATIONS
from weightport.layouts.behaviour import Behaviour
from weightport.layouts.convert import canonical
from weightport.layouts.rare import STEPS, Parameters
from weightport.layouts.units import Unit
from weightport.ranges import whole
from weightport.tensors import Array, TensorSpec
from weightport.values import Fetch

#: The kinds of cells that can be run.
KINDS = ("lstm", "gru", "rnn", *STEPS)


@dataclass(frozen=True, slots=True)
class ReferenceCell:
    """One layer in one direction.

    Attributes:
        kind: one of :data:`KINDS`.
        parameters: what :func:`parameters` reads; a parameter that is missing is zero (a projection: none).
        behaviour: what it does beside its weights; None where nothing is added, clipped or known.
        sizes: ``input``, ``unit`` and ``hidden``.
    """

    kind: str
    parameters: Parameters
    behaviour: Behaviour
    sizes: Mapping[str, int]

    def run(self, x: Array, h: Array | None = None, c: Array | None = None) -> Iterator[tuple[Array, Array]]:
        """Output and cell state after each step (the cell state of a GRU or plain RNN is its output).

        Args:
            x: inputs ``[time, batch, input]``.
            h: initial output ``[batch, hidden]``; zero by default.
            c: initial cell state ``[batch, unit]`` of an LSTM; zero by default.
        """
        x = np.asarray(x, np.float64)
        h = np.zeros((x.shape[1], self.sizes["hidden"])) if h is None else np.asarray(h, np.float64)
        c = np.zeros((x.shape[1], self.sizes["unit"])) if c is None else np.asarray(c, np.float64)
        step = self._step()
        for now in x:
            h, c = step(now, h, c)
            yield h, c

    def _step(self) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
        own = {"lstm": self._lstm, "gru": self._gru, "rnn": self._rnn}.get(self.kind)
        return own or (lambda x, h, c: STEPS[self.kind](self.parameters, self.behaviour, x, h, c))

    def _get(self, param: str, gate: str | None) -> Array | float:
        return self.parameters.get((param, gate), 0.0)

    def _sum(self, gate: str, x: Array, h: Array) -> Array:
        """``x W + h U + b + b'`` of one gate."""
        total: Array = x @ self.parameters["wx", gate] + h @ self.parameters["wt", gate]
        return total + self._get("bi", gate) + self._get("bt", gate)

    def _lstm(self, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        act, rec = self._activations()
        does = self.behaviour
        i = rec(self._sum("i", x, h) + self._get("wp", "i") * c)
        f = rec(self._sum("f", x, h) + self._get("wp", "f") * c + float(does.forget_bias.value))
        c = f * c + i * act(self._sum("g", x, h))
        if does.cell_clip.value:
            c = np.clip(c, -does.cell_clip.value, does.cell_clip.value)
        h = rec(self._sum("o", x, h) + self._get("wp", "o") * c) * act(c)
        if ("wr", None) in self.parameters:
            h = h @ self.parameters["wr", None]
            if does.proj_clip.value:
                h = np.clip(h, -does.proj_clip.value, does.proj_clip.value)
        return h, c

    def _gru(self, x: Array, h: Array, _: Array) -> tuple[Array, Array]:
        act, rec = self._activations()
        r, z = rec(self._sum("r", x, h)), rec(self._sum("z", x, h))
        if self.behaviour.reset.value == "after":
            recurrent = h @ self.parameters["wt", "n"] + self._get("bt", "n")
            n = act(x @ self.parameters["wx", "n"] + self._get("bi", "n") + r * recurrent)
        else:
            n = act(self._sum("n", x, r * h))
        h = z * h + (1 - z) * n
        return h, h

    def _rnn(self, x: Array, h: Array, _: Array) -> tuple[Array, Array]:
        act, _rec = self._activations()
        h = act(self._sum("h", x, h))
        return h, h

    def _activations(self) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        does = self.behaviour
        return ACTIVATIONS[does.activation.value or "tanh"], ACTIVATIONS[does.recurrent_activation.value or "sigmoid"]


def parameters(
    unit: Unit, specs: Mapping[str, TensorSpec], fetch: Fetch, forget_bias: float = 0.0
) -> dict[tuple[str, str | None], Array]:
    """A unit's canonical parameters, read from its tensors, in float64.

    Args:
        specs: the model's tensors.
        fetch: delivers a part of one of them.
        forget_bias: what is added at run time, for a gate that follows from the forget gate.
    """
    found = canonical(unit, specs, forget_bias)
    return {key: np.asarray(expr.read(fetch, whole(expr.shape))).astype(np.float64) for key, expr in found.items()}
