"""Gates in a dataflow: activations of what follows linearly from products with given weights, and what is added there.

Promise: bounded walks; a number is told from a constant only where the constant is that number throughout. Limit: the
activations of :data:`ACTIVATIONS`, Keras 2's ``hard_sigmoid``, ``clip(0.2 x + 0.5, 0, 1)``, and Keras 3's, which is
another function, ``relu6(x + 3) / 6``, here ``hard_sigmoid_6``.

Sources: keras/backend.py (``hard_sigmoid``), keras/src/backend/tensorflow/nn.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weightport.formats._tf_dataflow import Flow, Value

PRODUCTS = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "SparseMatMul", "Einsum"}
SUMS = {"Add", "AddV2", "AddN", "BiasAdd", "BiasAddV1"}
# Parts and other arrangements of a value -> which input it is.
PARTS = {
    **dict.fromkeys(("SplitV", "StridedSlice", "Slice", "Reshape", "Squeeze", "ExpandDims", "Unpack", "Transpose"), 0),
    "Cast": 0,
    "Split": 1,
}
DERIVING = frozenset({*PARTS, "ConcatV2", "Concat", "Pack"})
LINEAR = frozenset(
    {*SUMS, *PARTS, "Sub", "Neg", "Mul", "RealDiv", "Div", "ConcatV2", "Concat", "Pack", "Select", "SelectV2"}
    | {"Mean", "Sum", "SquaredDifference", "Square", "Rsqrt", "Sqrt", "FusedBatchNorm", "FusedBatchNormV3"}
    | {"TensorArrayScatterV3", "TensorArrayReadV3", "TensorListFromTensor", "TensorListGetItem"}
)
CLIPS = frozenset({"Minimum", "Maximum", "ClipByValue"})
ACTIVATIONS = {
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Relu": "relu",
    "Elu": "elu",
    "Selu": "selu",
    "Relu6": "relu6",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Exp": "exponential",
}
_MAX_TERMS = 10_000
_MAX_PEELED = 20
# A constant tensor is looked at for being one number throughout, up to this size.
_SMALL = 1 << 16


@dataclass(frozen=True, slots=True)
class Gate:
    """An activated value: the name of the activation, what it is of, and whether one minus it is meant."""

    value: Value
    name: str
    before: Value
    complement: bool = False


@dataclass(slots=True)
class Terms:
    """A sum, taken apart: what is added to one gate alone, what to several, and the products."""

    constant: float | None = None
    shared: bool = False
    products: list[Value] = field(default_factory=list)
    others: list[Value] = field(default_factory=list)
    unknown: bool = False


class Gates:
    """The gates that some weights make.

    Args:
        flow: the graph.
        own: the weights.
        weights: the other weights of the model.
    """

    def __init__(self, flow: Flow, own: set[Value], weights: set[Value]) -> None:
        self.flow, self.own = flow, {flow.resolve(value) for value in own}
        self.weights = self.own | {flow.resolve(value) for value in weights}
        self.derived = flow.closure(self.own, DERIVING)
        self.products = {
            (number, 0) for value in self.derived for number, _ in flow.users(value) if flow.ops[number] in PRODUCTS
        }
        self.linear = flow.closure(self.products, LINEAR)
        self.gates: dict[Value, Gate | None] = {}

    def gate(self, value: Value) -> Gate | None:
        """The gate that a value is, or None."""
        if value not in self.gates:
            self.gates[value] = self._gate(value)
        return self.gates[value]

    def _gate(self, value: Value) -> Gate | None:
        flow, at = self.flow, value
        if flow.op(at) == "Sub":
            left, right = flow.input(at, 0), flow.input(at, 1)
            if left and right and self.number(left) == 1.0:
                inner = self.gate(right) if flow.op(right) != "Sub" else None
                return Gate(inner.value, inner.name, inner.before, True) if inner else None
        for _ in range(_MAX_PEELED):
            found = self.activation(at)
            if found and found[1] in self.linear:
                return Gate(value, *found)
            part = PARTS.get(flow.op(at))
            following = None if part is None else flow.input(at, part)
            if following is None:
                return None
            at = following
        return None

    def activation(self, value: Value) -> tuple[str, Value] | None:
        """The activation that computes a value, and what it is of."""
        flow = self.flow
        op = flow.op(value)
        if op in CLIPS:
            clipped = self.clipped(value)
            if clipped and clipped[:2] == (0.0, 1.0):
                return self._affine(clipped[2], 0.2, 0.5, "hard_sigmoid")
            return None
        if op in ("Mul", "RealDiv"):  # Keras 3: relu6(x + 3) / 6
            for a, b in ((0, 1), (1, 0)) if op == "Mul" else ((0, 1),):
                inner, factor = flow.input(value, a), flow.input(value, b)
                if inner and factor and flow.op(inner) == "Relu6":
                    scale = self.number(factor)
                    shifted = flow.input(inner, 0)
                    if scale and shifted and abs((scale if op == "Mul" else 1 / scale) - 1 / 6) < 1e-3:
                        return self._affine(shifted, 1.0, 3.0, "hard_sigmoid_6")
            return None
        inner = flow.input(value, 0)
        return (ACTIVATIONS[op], inner) if op in ACTIVATIONS and inner else None

    def _affine(self, value: Value, slope: float, shift: float, name: str) -> tuple[str, Value] | None:
        """``slope * x + shift``, as the activation of that name of x."""
        inner = self._with_number(value, ("Add", "AddV2"), shift)
        if inner and slope != 1.0:
            inner = self._with_number(inner, ("Mul",), slope)
        return (name, inner) if inner else None

    def _with_number(self, value: Value, ops: tuple[str, ...], wanted: float) -> Value | None:
        """The other operand of one of those operations with that number."""
        if self.flow.op(value) in ops:
            for a, b in ((0, 1), (1, 0)):
                inner, constant = self.flow.input(value, a), self.flow.input(value, b)
                known = self.number(constant) if constant else None
                if inner and known is not None and abs(known - wanted) < 1e-3:
                    return inner
        return None

    def clipped(self, value: Value) -> tuple[float, float, Value] | None:
        """Low, high, and what is clipped."""
        flow = self.flow
        if flow.op(value) == "ClipByValue":
            inner, low, high = (flow.input(value, at) for at in range(3))
            bounds = (self.number(low) if low else None, self.number(high) if high else None)
            if inner and bounds[0] is not None and bounds[1] is not None:
                return bounds[0], bounds[1], inner
            return None
        found: dict[str, float] = {}
        at = value
        for _ in range(2):
            op = flow.op(at)
            if op not in ("Minimum", "Maximum") or op in found:
                return None
            for a, b in ((0, 1), (1, 0)):
                inner, constant = flow.input(at, a), flow.input(at, b)
                number = self.number(constant) if constant else None
                if inner and number is not None:
                    found[op], at = number, inner
                    break
            else:
                return None
        return found["Maximum"], found["Minimum"], at

    def number(self, value: Value) -> float | None:
        """The number that a constant is, throughout; None for anything else."""
        flow = self.flow
        if flow.op(value) == "Fill":
            inner = flow.input(value, 1)
            return self.number(inner) if inner and flow.op(inner) == "Const" else None
        node = flow.nodes[value[0]]
        if node is None or node.op != "Const" or value in self.weights:
            return None
        ref = flow.graph.const(node, node.name)
        if ref.dtype.kind not in "fiV" or not 0 < ref.nbytes <= _SMALL:
            return None
        values = ref.read(flow.graph.file).reshape(-1)
        wide = values.astype(np.float64)
        return short(values[0]) if (wide == wide[0]).all() else None

    def terms(self, value: Value) -> Terms:
        """A value as a sum."""
        flow, found = self.flow, Terms()
        waiting = [(value, 1.0, False)]
        for _ in range(_MAX_TERMS):
            if not waiting:
                return found
            at, sign, below = waiting.pop()
            op, inputs = flow.op(at), flow.inputs(at[0])
            number = self.number(at)
            if at in self.weights or at in self.derived:
                continue
            if number is not None:
                found.constant = (found.constant or 0.0) + sign * number
                found.shared = found.shared or (below and number != 0)
            elif at in self.products:
                found.products.append(at)
            elif op in SUMS:
                waiting += [(source, sign, below) for source in inputs]
            elif op == "Sub" and len(inputs) == 2:
                waiting += [(inputs[0], sign, below), (inputs[1], -sign, below)]
            elif op in PARTS and len(inputs) > PARTS[op]:
                several = op in ("Split", "SplitV", "StridedSlice", "Slice", "Unpack")
                waiting.append((inputs[PARTS[op]], sign, below or several))
            else:
                found.unknown = found.unknown or op == "Const"
                found.others.append(at)
        found.unknown = True
        return found


def short(value: Any) -> float:
    """The shortest decimal that is the same number in the constant's own precision: 0.7, not 0.699999988079071."""
    return float(str(np.float32(value) if isinstance(value, float) else value))
