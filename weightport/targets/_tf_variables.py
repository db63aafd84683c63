"""Eager ``tf.Variable`` objects: their specs, values and trainability, for the targets that hold such variables.

Promise: a distributed or autocasting variable is treated as the variables that it wraps. Limit: eager execution only;
the variables of a graph are another target's business.
"""

from __future__ import annotations

import re
from typing import Any

from weightport.errors import Problem, RefusedError
from weightport.targets._variables import Undo
from weightport.tensors import TensorSpec


def scoped_name(variable: Any) -> str:
    """The variable's name without its output number: ``lstm/lstm_cell/kernel:0`` -> ``lstm/lstm_cell/kernel``."""
    return re.sub(r":\d+$", "", str(variable.name))


def spec_of(variable: Any) -> TensorSpec:
    """Dtype and shape of the stored value (under mixed precision that of the variable, not of the computation)."""
    return TensorSpec.of(str(variable.dtype.base_dtype.name), tuple(int(d) for d in variable.shape))


def require_eager(where: str) -> None:
    """Refuse to assign outside eager execution, where an assignment would only add an operation to a graph."""
    import tensorflow as tf

    if not tf.executing_eagerly():
        raise RefusedError(
            Problem(where, "TensorFlow is not executing eagerly", "in graph mode transfer into the graph itself")
        )


def snapshot(variable: Any) -> Any:
    """The current value. TensorFlow copies on write: no byte is copied, the old buffer just lives on."""
    import tensorflow as tf

    return tf.convert_to_tensor(variable)


def freeze(variable: Any, undo: list[Undo]) -> None:
    """Make one variable non-trainable: ``tf.GradientTape``, ``tf.Module`` and Keras' data structures go by this flag.

    The public property is read-only; every variable class of TensorFlow 2 keeps it in ``_trainable``
    (``tensorflow/python/ops/resource_variable_ops.py``). A mixed precision variable of Keras wraps another one
    (``_variable``), a distributed one has a variable per replica (``_values``).
    """
    for part in (getattr(variable, "_variable", None), *getattr(variable, "_values", ())):
        if part is not None and hasattr(part, "trainable"):
            freeze(part, undo)
    if "_trainable" in vars(variable):
        undo.append(lambda was=variable._trainable: setattr(variable, "_trainable", was))  # type: ignore[misc]
        variable._trainable = False
