"""Reference cells in numpy: what an LSTM, a GRU and a plain RNN compute from their canonical parameters (the rarer
cells are in :mod:`weightport.layouts.rare` and :mod:`weightport.layouts.spread`).

    lstm:  i = s(xWi + hUi + bi + pi c);  f = s(xWf + hUf + bf + pf c + forget_bias);  g = a(xWg + hUg + bg)
           c' = clip(f c + i g);  o = s(xWo + hUo + bo + po c');  h' = clip(o a(c') P)
    gru:   r = s(xWr + hUr + br);  z = s(xWz + hUz + bz);  h' = z h + (1 - z) n
           reset before: n = a(xWn + (r h) Un + bn);  reset after: n = a(xWn + bn + r (h Un + b'n))
    rnn:   h' = a(xW + hU + b)

Promise: one step at a time, in float64, so that two packings of the same weights differ by the rounding of the weights
only. Limit: slow; for proofs, not for use; and of a mapping's own layouts only those that store what a shipped one
of the kind stores.

Sources: tensorflow/python/ops/rnn_cell_impl.py (LSTMCell.call, GRUCell.call, BasicRNNCell.call),
keras/src/layers/rnn/{lstm,gru,simple_rnn}.py, torch/nn/modules/rnn.py (the formulas in the docstrings).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from weightport.layouts.activations import ACTIVATIONS
from weightport.layouts.behaviour import Behaviour
from weightport.layouts.blocks import blocks
from weightport.layouts.convert import canonical
from weightport.layouts.layout import KIND_GATES, Form, Layout
from weightport.layouts.notation import PARAMETERS
from weightport.layouts.rare import KINDS as RARE
from weightport.layouts.rare import Kind, Parameters, Shape, lstm_like
from weightport.layouts.shipped import builtin
from weightport.layouts.spread import KINDS as SPREAD
from weightport.layouts.units import Unit, gates_of, stored_rows
from weightport.ranges import whole
from weightport.tensors import Array, TensorSpec
from weightport.values import Fetch

#: What a parameter of a gate is known by; None where it has no gates.
Key = tuple[str, str | None]


def _lstm(p: Parameters, does: Behaviour, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    gates = {gate: _sum(p, gate, x, h) for gate in KIND_GATES["lstm"]}
    return lstm_like(p, does, gates, c, wr=p.get(("wr", None)))


def _gru(p: Parameters, does: Behaviour, x: Array, h: Array, _: Array) -> tuple[Array, Array]:
    act, rec = ACTIVATIONS[does.activation.value or "tanh"], ACTIVATIONS[does.recurrent_activation.value or "sigmoid"]
    r, z = rec(_sum(p, "r", x, h)), rec(_sum(p, "z", x, h))
    if does.reset.value == "after":
        recurrent = h @ p["wt", "n"] + p.get(("bt", "n"), 0.0)
        n = act(x @ p["wx", "n"] + p.get(("bi", "n"), 0.0) + r * recurrent)
    else:
        n = act(_sum(p, "n", x, r * h))
    h = z * h + (1 - z) * n
    return h, h


def _rnn(p: Parameters, does: Behaviour, x: Array, h: Array, _: Array) -> tuple[Array, Array]:
    h = ACTIVATIONS[does.activation.value or "tanh"](_sum(p, "h", x, h))
    return h, h


def _sum(p: Parameters, gate: str, x: Array, h: Array) -> Array:
    """``x W + h U + b + b'`` of one gate."""
    total: Array = x @ p["wx", gate] + h @ p["wt", gate]
    return total + p.get(("bi", gate), 0.0) + p.get(("bt", gate), 0.0)


#: The kinds of cells that can be run.
KINDS: Mapping[str, Kind] = {
    "lstm": Kind(_lstm, (("bi", "f"),)),
    "gru": Kind(_gru),
    "rnn": Kind(_rnn),
    **RARE,
    **SPREAD,
}


@dataclass(frozen=True, slots=True)
class ReferenceCell:
    """One layer in one direction.

    Attributes:
        kind: one of :data:`KINDS`.
        parameters: what :func:`parameters` reads; a parameter that is missing is zero (a projection: none).
        behaviour: what it does beside its weights; None where nothing is added, clipped or known.
        sizes: ``input``, ``unit``, ``hidden``, and the kind's own.
    """

    kind: str
    parameters: Parameters
    behaviour: Behaviour
    sizes: Mapping[str, int]

    @property
    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """Of one input, output and state, without the batch."""
        return KINDS[self.kind].shapes(self.sizes)

    @property
    def work(self) -> int:
        """About how many products one step takes for each row of a batch."""
        return prod(self.shapes[2][:-1]) * sum(array.size for array in self.parameters.values())

    def run(self, x: Array, h: Array | None = None, c: Array | None = None) -> Iterator[tuple[Array, Array]]:
        """Output and cell state after each step (the cell state of a GRU or plain RNN is its output).

        Args:
            x: inputs ``[time, batch, input]``; of a cell in :mod:`weightport.layouts.spread` ``[time, batch, ...]``
                as :attr:`shapes` says.
            h: initial output ``[batch, hidden]``; zero by default.
            c: initial cell state ``[batch, unit]`` of an LSTM; zero by default.
        """
        x = np.asarray(x, np.float64)
        # An image may be of any size, a grid of any number of windows: the input says.
        inner, (_, output, state) = x.shape[2:-1], self.shapes
        if inner:
            output, state = (*inner, output[-1]), (*inner, state[-1])
        h = np.zeros((x.shape[1], *output)) if h is None else np.asarray(h, np.float64)
        c = np.zeros((x.shape[1], *state)) if c is None else np.asarray(c, np.float64)
        step = KINDS[self.kind].step
        for now in x:
            h, c = step(self.parameters, self.behaviour, now, h, c)
            yield h, c


def why_not_run(unit: Unit) -> str:
    """Why there is no reference step for a unit; empty if there is.

    A mapping's own layout may be of any kind, and store what the shipped ones of its kind do not.
    """
    kind = unit.layout.kind
    if kind not in KINDS:
        return f"{kind} cells are compared by their values only"
    if kind in KIND_GATES:
        own = sorted(unit.params - set(PARAMETERS))
    else:
        held = {(param, gate) for stored in unit.tensors for param, gate, _ in blocks(unit, stored)}
        held |= {(param, gate) for gate, of in unit.layout.derived.items() for param, g in held if g == of.lstrip("~")}
        stored_by = [needed for needed, possible in _stores(kind) if held <= possible and needed <= held]
        alike = all(
            set(unit.layout.parameters[param]) - {"gate"} == set(_axes(kind).get(param, ())) for param in unit.params
        )
        own = [] if stored_by and alike else [unit.layout.name]
    return f"what a {kind} does with {own[0]} is not known here: values compared only" if own else ""


@functools.cache
def _axes(kind: str) -> Mapping[str, tuple[str, ...]]:
    """The axes of every parameter of a kind, in the order in which its steps have them."""
    layouts = [layout for layout in builtin().values() if layout.kind == kind]
    return {p: tuple(a for a in axes if a != "gate") for la in layouts for p, axes in la.parameters.items()}


@functools.cache
def _stores(kind: str) -> list[tuple[frozenset[Key], frozenset[Key]]]:
    """What each form of a kind's shipped layouts has to store (biases and peepholes apart), and what it can."""
    found = []
    for layout in (la for la in builtin().values() if la.kind == kind):
        for form in layout.forms:
            keys = dict(_keys(layout, form))
            needed = {key for key, optional in keys.items() if not optional and key[0] not in ("bi", "bt", "wp")}
            found.append((frozenset(needed), frozenset(keys)))
    return found


def _keys(layout: Layout, form: Form) -> Iterator[tuple[Key, bool]]:
    """Everything that a form stores, or that follows from it, and whether a cell may lack it."""
    for row, named in stored_rows(layout, form):
        for term in row.packing.terms:
            if "gate" not in layout.parameters[term.param]:
                yield (term.param, None), row.optional
                continue
            for gate in gates_of(layout, term, named):
                yield (term.param, gate), row.optional
                for other, of in layout.derived.items():
                    if of.lstrip("~") == gate:
                        yield (term.param, other), row.optional


def parameters(unit: Unit, specs: Mapping[str, TensorSpec], fetch: Fetch, forget_bias: float = 0.0) -> dict[Key, Array]:
    """A unit's canonical parameters, read from its tensors, in float64.

    Args:
        specs: the model's tensors.
        fetch: delivers a part of one of them.
        forget_bias: what is added at run time, for a gate that follows from the forget gate.
    """
    found = canonical(unit, specs, forget_bias)
    arrays = {key: np.asarray(expr.read(fetch, whole(expr.shape))).astype(np.float64) for key, expr in found.items()}
    if unit.layout.kind in KIND_GATES:
        return arrays
    known = _axes(unit.layout.kind)  # a layout may declare a parameter's axes in another order
    for key, array in arrays.items():
        mine = [a for a in unit.layout.parameters[key[0]] if a != "gate"]
        if set(known.get(key[0], ())) == set(mine):
            arrays[key] = array.transpose([mine.index(a) for a in known[key[0]]])
    return arrays
