"""Eager ``tf.Variable`` objects: their specs, values and trainability, for the targets that hold such variables.

Promise: a distributed or autocasting variable is treated as the variables that it wraps: each replica gets the value.
The shards of a ``ShardedVariable`` (parameter servers) are one variable, and each reads its own rows only. Limit: eager
execution only; the variables of a graph are another target's business.

Source: tensorflow/python/distribute/{values,sharded_variable}.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from weightport.errors import Problem, RefusedError
from weightport.targets._buffers import produced
from weightport.targets._variables import Undo, refusal
from weightport.tensors import Array, TensorSpec, Value

# What numpy's DLPack does not know, and TensorFlow takes for it bit by bit.
_SAME_SIZE = {"bfloat16": np.dtype("uint16")}


def scoped_name(variable: Any) -> str:
    """The variable's name without its output number: ``lstm/lstm_cell/kernel:0`` -> ``lstm/lstm_cell/kernel``.

    Of shards, what their names begin with: a strategy calls them ``kernel/part_0`` ..., and gives the whole no name.
    """
    if is_sharded(variable):
        stems = {re.sub(r"/part_\d+$", "", scoped_name(shard)) for shard in variable.variables}
        if len(stems) == 1:
            return stems.pop()
    return re.sub(r":\d+$", "", str(variable.name))


def container_of(variable: Any) -> Any:
    """The ``ShardedVariable`` that a variable is a shard of, else the variable itself."""
    held = getattr(variable, "_sharded_container", None)
    found = held() if held is not None else None
    return variable if found is None else found


def shards_of(variable: Any) -> list[Any]:
    """The shards of a ``ShardedVariable``, in their order along axis 0; of any other, it alone."""
    return list(variable.variables) if is_sharded(variable) else [variable]


def is_sharded(variable: Any) -> bool:
    """Whether this is a ``ShardedVariable``."""
    return any(c.__name__ == "ShardedVariableMixin" for c in type(variable).__mro__)


def write(variable: Any, value: Any, where: str) -> None:
    """Assign an array, or the rows of a :class:`~weightport.tensors.Value` to the shard that they belong to."""
    if not isinstance(value, Value):
        variable.assign(value)
        return
    start = 0
    for shard in shards_of(variable):
        stop = start + int(shard.shape[0])
        rows = owned(produced(value, (slice(start, stop),)))
        with refusal(where, value.name):
            shard.assign(rows)
        start = stop


def owned(array: Array) -> Any:
    """A tensor over the memory of an array that nobody else knows; where TensorFlow cannot have that, the array.

    ``assign`` copies an array twice, the second time into new memory that is the variable's. A tensor's memory is the
    variable's as it is: TensorFlow does not write to it, but copies it at the first update.
    """
    import tensorflow as tf

    dtype = tf.as_dtype(array.dtype)
    plain = array.dtype if array.dtype.kind in "biufc" else _SAME_SIZE.get(dtype.name)
    if plain is None:
        return array
    tensor = tf.experimental.dlpack.from_dlpack(array.view(plain).__dlpack__())
    return tensor if tensor.dtype == dtype else tf.bitcast(tensor, dtype)


def taking(variables: Callable[[str], Any]) -> Callable[[Value], Any]:
    """How values are read: whole, or (of a sharded variable) not before each shard takes its part."""

    def take(value: Value) -> Any:
        return value if is_sharded(variables(value.name)) else owned(produced(value))

    return take


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
    shards = variable.variables if is_sharded(variable) else ()
    for part in (getattr(variable, "_variable", None), *getattr(variable, "_values", ()), *shards):
        if part is not None and hasattr(part, "trainable"):
            freeze(part, undo)
    if "_trainable" in vars(variable):
        undo.append(lambda was=variable._trainable: setattr(variable, "_trainable", was))  # type: ignore[misc]
        variable._trainable = False
