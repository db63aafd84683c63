"""How values reach a TensorFlow graph: produced when an initializer runs, or embedded as a constant.

Promise: an initial value costs the GraphDef one small ``PyFunc`` node whatever its size, the variable owns its memory
(it shares none with what ``produce`` returned), and a constant holds the value's very bytes, signalling NaNs
included.
Limits: TensorFlow runs initializers in several threads, so ``produce`` may be called by several at once. A ``PyFunc``
runs in the process that built the graph. A MetaGraph or SavedModel exported from the graph and loaded in another
process restores its variables from their checkpoint as ever, but cannot run these initializers there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from weightport.errors import MissingPackage, Problem, RefusedError
from weightport.targets._buffers import produced
from weightport.tensors import Array, Index, TensorSpec, Value

#: Protobuf refuses a message of 2 GiB. The rest of the graph (nodes, functions) gets 64 MiB of it.
EMBED_LIMIT = (1 << 31) - (1 << 26)
#: What to do with constants that do not fit into the GraphDef.
LARGE_CONSTANTS = ("refuse", "variable")

_STORE = ("__weightport",)  # a tuple, as TensorFlow's own variable store: not exported with the MetaGraph


def tensorflow() -> Any:
    """The ``tensorflow`` module.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        if error.name != "tensorflow":
            raise
        raise MissingPackage("injecting into a TensorFlow graph", "tensorflow", "tensorflow") from None
    return tf


class Store:
    """What weightport made in one graph: constants that stand for variables, and initial values."""

    def __init__(self) -> None:
        self.constants: dict[str, Any] = {}
        self.initial: dict[str, TensorSpec] = {}
        self.embedded = 0

    @classmethod
    def of(cls, graph: Any) -> Store:
        """The graph's store; made on first use."""
        kept = graph.get_collection_ref(_STORE)
        if not kept:
            kept.append(cls())
        store: Store = kept[0]
        return store


def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """numpy's dtype of a TensorFlow dtype; strings are ``object``."""
    found: np.dtype[Any] = np.dtype(dtype.base_dtype.as_numpy_dtype)
    return found


def spec_of(dtype: Any, shape: Sequence[int], role: str = "weight") -> TensorSpec:
    """The spec of a TensorFlow dtype and a fully defined shape."""
    return TensorSpec.of(numpy_dtype(dtype), [int(d) for d in shape], role)


def mismatch(asked: TensorSpec, value: Value) -> Problem | None:
    """The problem if the value's spec is not what the model asked for, naming both sides."""
    faults = []
    if asked.shape != value.spec.shape:
        faults.append(f"shape {list(asked.shape)} in the model, {list(value.spec.shape)} in the pretrained value")
    if asked.dtype != value.spec.dtype:
        faults.append(f"dtype {asked.dtype.name} in the model, {value.spec.dtype.name} in the pretrained value")
    if not faults:
        return None
    hint = "'cast' converts the dtype" if asked.shape == value.spec.shape else ""
    return Problem(f"variable {value.name!r}", "; ".join(faults), hint)


def part_index(offset: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """The slices of a partition that starts at ``offset`` in the whole tensor."""
    return tuple(slice(int(o), int(o) + int(n)) for o, n in zip(offset, shape, strict=True))


def initial_tensor(
    value: Value, index: Index = None, name: str = "pretrained", ran: Callable[[], None] | None = None
) -> Any:
    """A tensor of the default graph that yields the value whenever it is run. The graph holds no bytes of it.

    Args:
        value: the value.
        index: the part of it that is wanted.
        name: the op's name, in the current name scope.
        ran: called each time it is run.
    """
    tf = tensorflow()
    shape = value.spec.shape if index is None else tuple(s.stop - s.start for s in index)

    def pretrained() -> Array:
        if ran is not None:
            ran()
        return produced(value, index)

    # The function lives in this process: whatever device the variable is placed on, its value comes by this CPU.
    with tf.compat.v1.device("/cpu:0"):
        tensor = tf.numpy_function(pretrained, [], tf.as_dtype(value.spec.dtype), name=name)
    tensor.set_shape(shape)
    return tensor


def constant_op(array: Array, name: str) -> Any:
    """The tensor of a ``Const`` of that name in the default graph, with the array's bytes in it.

    Raises:
        RefusedError: strings that do not fit into a GraphDef.
    """
    tf = tensorflow()
    dtype = tf.as_dtype(array.dtype)
    # Not tf.constant: it takes a lone number apart, and a signalling NaN does not survive that.
    proto = tf.compat.v1.AttrValue()
    proto.tensor.dtype = dtype.as_datatype_enum
    proto.tensor.tensor_shape.CopyFrom(tf.TensorShape(array.shape).as_proto())
    if dtype == tf.string:
        size = sum(len(item) for item in array.reshape(-1))  # known only now: a spec does not tell it
        if size > EMBED_LIMIT:
            what = f"its strings come to {size:,} bytes, a GraphDef can hold {EMBED_LIMIT:,}"
            raise RefusedError(Problem(f"constant {name!r}", what, "make it an initial value"))
        proto.tensor.string_val.extend(bytes(item) for item in array.reshape(-1))
    else:
        proto.tensor.tensor_content = array.tobytes()
    kind = tf.compat.v1.AttrValue(type=dtype.as_datatype_enum)
    graph = tf.compat.v1.get_default_graph()
    with tf.compat.v1.name_scope(None):
        op = graph.create_op("Const", [], [dtype], attrs={"value": proto, "dtype": kind}, name=name)
    return op.outputs[0]


def embedded_size(value: Value) -> int:
    """Bytes that the value takes inside the GraphDef (strings: as far as their spec tells)."""
    return value.spec.nbytes


def too_large(values: Sequence[Value], embedded: int) -> RefusedError:
    """The refusal of constants that do not fit into a GraphDef, with the choice that is left."""
    total = embedded + sum(embedded_size(v) for v in values)
    return RefusedError(
        Problem(
            f"constant {values[-1].name!r}",
            f"the constants of this graph come to {total:,} bytes, a GraphDef can hold {EMBED_LIMIT:,}",
            "large_constants='variable' holds them outside the graph as variables that are not trainable, "
            "or give some of them as: initial",
        )
    )


def check_choice(large_constants: str) -> None:
    """Refuse a ``large_constants`` that is none of :data:`LARGE_CONSTANTS`."""
    if large_constants not in LARGE_CONSTANTS:
        raise RefusedError(f"large_constants is {large_constants!r}: it can be 'refuse' or 'variable'")
