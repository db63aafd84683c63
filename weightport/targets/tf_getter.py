"""The custom getter: variables of a TensorFlow graph are born with the pretrained value, or as constants.

Promise: a covered variable never gets the model's own initial value: it is born right or the build stops with an
error that names it. A constant is one ``Const`` per graph and name (no variable, nothing to train), the same tensor
for every reuse, outside every loop. A partitioned variable reads only each part's own slice.
Limits: graph mode. A regularizer of the scope is not applied to a constant; one that a layer applies by itself is, to
no effect on training. The source must stay open until the initializer has run; an error of the source at that time
arrives as TensorFlow's, with weightport's message inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from weightport.errors import PlanError, Problem, RefusedError
from weightport.targets import _tf_values as values
from weightport.targets._buffers import produced
from weightport.tensors import TensorSpec, Value

#: ``lookup(name, spec)``: the value of the variable of that full name, or None to leave it to the model.
Lookup = Callable[[str, TensorSpec], "Value | None"]


class ReuseError(PlanError, ValueError):
    """``reuse`` forbids what the model asks for. A ``ValueError`` too, as ``tf.compat.v1.get_variable`` raises it."""


def make_getter(lookup: Lookup, *, large_constants: str = "refuse") -> Callable[..., Any]:
    """A ``custom_getter`` for ``tf.compat.v1.variable_scope``.

    Args:
        lookup: called with the variable's full name and spec (a partitioned variable's whole shape). It returns the
            value, whose ``constant`` decides between a constant and an initial value, or None: the variable is made as
            the model asked. It is called once per request, also for a reused name.
        large_constants: constants beyond protobuf's 2 GiB are refused (``"refuse"``) or held outside the graph as
            variables that are not trainable (``"variable"``).

    Returns:
        The getter. What it returns for a constant is the ``Const``'s tensor, or a ``PartitionedVariable`` of such
        tensors where the scope has a partitioner.

    Raises:
        PlanError: from the model's ``get_variable``: the shape or dtype is not the value's, or the variable exists
            already with a value of its own. Nothing was created.
        RefusedError: the constants would not fit into the graph.
    """
    values.check_choice(large_constants)

    def getter_with_pretrained_values(
        getter: Callable[..., Any],
        name: str,
        shape: Any = None,
        dtype: Any = None,
        initializer: Any = None,
        regularizer: Any = None,
        reuse: Any = None,
        trainable: Any = None,
        collections: Any = None,
        caching_device: Any = None,
        partitioner: Any = None,
        validate_shape: bool = True,
        use_resource: Any = None,
        constraint: Any = None,
        **more: Any,
    ) -> Any:
        tf = values.tensorflow()
        dtype = tf.as_dtype(tf.float32 if dtype is None else dtype).base_dtype
        store = _store(tf)
        asked = _asked(tf, name, shape, dtype, initializer, store)
        value = lookup(name, asked) if asked is not None else None

        def make(**changed: Any) -> Any:
            request = {
                "shape": shape,
                "dtype": dtype,
                "initializer": initializer,
                "regularizer": regularizer,
                "reuse": reuse,
                "trainable": trainable,
                "collections": collections,
                "caching_device": caching_device,
                "partitioner": partitioner,
                "validate_shape": validate_shape,
                "use_resource": use_resource,
                "constraint": constraint,
            }
            return getter(name, **{**request, **more, **changed})

        if value is None or asked is None:
            return make()
        problem = values.mismatch(asked, value)
        if problem is not None:
            raise PlanError(problem)
        if not value.constant:
            return _initial(value, name, asked, store, reuse, make)
        if name not in store.constants and store.embedded + values.embedded_size(value) > values.EMBED_LIMIT:
            if large_constants == "refuse":
                raise values.too_large([value], store.embedded)
            return _initial(value, name, asked, store, reuse, lambda **changed: make(trainable=False, **changed))
        return _constant(tf, value, name, asked, store, reuse, partitioner)

    return getter_with_pretrained_values


def _store(tf: Any) -> values.Store:
    with tf.init_scope():  # a loop or a function under construction: its variables live in the graph around it
        return values.Store.of(tf.compat.v1.get_default_graph())


def _asked(tf: Any, name: str, shape: Any, dtype: Any, initializer: Any, store: values.Store) -> TensorSpec | None:
    """What the model asks for, from the shape or, where there is none, from the initial value it gives.

    None for the reuse of an existing variable of the model's own, which may be asked for by name alone.
    """
    if shape is None and initializer is None:
        if name in store.constants:
            return values.spec_of(store.constants[name].dtype, store.constants[name].shape)
        if name in store.initial:
            return store.initial[name]
        known = _existing(tf, name)
        if known is None or known.name != name:
            return None
        return values.spec_of(tf.as_dtype(known.get_attr("dtype")), tf.TensorShape(known.get_attr("shape")))
    if shape is not None:
        full = tf.TensorShape(shape)
    elif hasattr(initializer, "shape") and hasattr(initializer, "dtype"):
        full, dtype = tf.TensorShape(initializer.shape), tf.as_dtype(initializer.dtype)
    else:
        with tf.Graph().as_default():  # only to ask it: what this makes is thrown away
            try:
                like = tf.convert_to_tensor(initializer() if callable(initializer) else initializer)
            except Exception as error:
                raise PlanError(
                    Problem(f"variable {name!r}", f"its shape is known to its initializer only, which says: {error}")
                ) from error
        full, dtype = like.shape, like.dtype
    if not full.is_fully_defined():
        raise PlanError(Problem(f"variable {name!r}", f"its shape {full} is not fully defined"))
    return values.spec_of(dtype, full.as_list())


def _existing(tf: Any, name: str) -> Any:
    """The op of a variable that the graph has under that name (or of its first part), or None."""
    with tf.init_scope():
        graph = tf.compat.v1.get_default_graph()
    for op_name in (name, f"{name}/part_0"):
        try:
            op = graph.get_operation_by_name(op_name)
        except KeyError:
            continue
        if op.type in ("VarHandleOp", "VariableV2", "Variable"):
            return op
    return None


def _initial(
    value: Value, name: str, asked: TensorSpec, store: values.Store, reuse: Any, make: Callable[..., Any]
) -> Any:
    """The variable, with an initializer that yields the value; an existing one only if it was made like that."""
    if name in store.constants:
        return _reused(store, name, asked, reuse)
    if name not in store.initial and reuse and _existing(values.tensorflow(), name) is not None:
        raise _made_elsewhere(name)

    def pretrained(shape: Sequence[int], dtype: Any = None, partition_info: Any = None) -> Any:  # noqa: ARG001
        if partition_info is None or list(partition_info.full_shape) == list(shape):
            return values.initial_tensor(value)
        return values.initial_tensor(value, values.part_index(partition_info.var_offset, shape))

    # The shape goes with it although the model may have left it to an initial value of its own.
    tf = values.tensorflow()
    made = make(shape=list(asked.shape), dtype=tf.as_dtype(asked.dtype), initializer=pretrained)
    store.initial[name] = asked
    return made


def _made_elsewhere(name: str) -> PlanError:
    return PlanError(
        Problem(
            f"variable {name!r}",
            "it exists already, with an initial value of its own",
            "enter the scope with this getter when it is first built, or transfer into the finished graph",
        )
    )


def _reused(store: values.Store, name: str, asked: TensorSpec, reuse: Any) -> Any:
    """The constant that stands under that name, if ``reuse`` and the request allow it."""
    known = store.constants[name]
    if reuse is False:
        raise ReuseError(
            Problem(f"variable {name!r}", "it exists already, as a constant", "set reuse=True or reuse=tf.AUTO_REUSE")
        )
    if tuple(known.shape.as_list()) != asked.shape or values.numpy_dtype(known.dtype) != asked.dtype:
        raise ReuseError(
            Problem(
                f"variable {name!r}",
                f"{asked.dtype.name} {list(asked.shape)} is asked for, and it exists as a constant "
                f"{values.numpy_dtype(known.dtype).name} {known.shape.as_list()}",
            )
        )
    return known


def _constant(
    tf: Any, value: Value, name: str, asked: TensorSpec, store: values.Store, reuse: Any, partitioner: Any
) -> Any:
    if name in store.constants:
        return _reused(store, name, asked, reuse)
    if _existing(tf, name) is not None:
        raise _made_elsewhere(name)
    if reuse is True:
        raise ReuseError(Problem(f"variable {name!r}", "it does not exist", "set reuse=tf.AUTO_REUSE or reuse=False"))
    with tf.init_scope():
        if tf.executing_eagerly():
            raise RefusedError(f"variable {name!r}: the getter makes constants in graph mode only")
        if partitioner is None or not asked.shape:
            made = values.constant_op(produced(value), name)
        else:
            made = _constant_parts(tf, value, name, asked, partitioner)
    store.constants[name] = made
    store.embedded += values.embedded_size(value)
    return made


def _constant_parts(tf: Any, value: Value, name: str, asked: TensorSpec, partitioner: Any) -> Any:
    """A ``PartitionedVariable`` whose parts are constants.

    Not the whole tensor: ``embedding_lookup`` with its default strategy (``mod``) gives ids to parts in turn, and so
    finds other rows in a partitioned variable than in a whole one. A constant must find what the variable would.
    """
    dtype = tf.as_dtype(asked.dtype)
    shape = tf.TensorShape(asked.shape)
    partitions = [int(n) for n in partitioner(shape=shape, dtype=dtype)]
    if len(partitions) != len(asked.shape) or min(partitions) < 1 or sum(n > 1 for n in partitions) > 1:
        raise PlanError(
            Problem(f"variable {name!r}", f"its partitioner returned {partitions} for the shape {list(asked.shape)}")
        )
    axis = int(np.argmax(partitions))
    # variable_scope._iter_slices: the first parts take the remainder, one row each.
    size, rest = divmod(asked.shape[axis], partitions[axis])
    parts, start = [], 0
    for i in range(partitions[axis]):
        stop = start + size + (i < rest)
        index = tuple(slice(start, stop) if a == axis else slice(0, n) for a, n in enumerate(asked.shape))
        parts.append(values.constant_op(produced(value, index), f"{name}/part_{i}"))
        start = stop

    # embedding_lookup and the conversion to a tensor know this class, which has no public name.
    from tensorflow.python.ops.variables import PartitionedVariable

    class PartitionedConstant(PartitionedVariable):  # type: ignore[misc]
        """A partitioned variable that is not variable."""

        def __init__(self) -> None:
            # Not the base's: it asks each part for the slice that a Saver stores, and a constant is not stored.
            self._variable_list = parts
            self._name, self._shape, self._dtype = name, shape, dtype
            self._partitions, self._as_tensor = partitions, None

    return PartitionedConstant()
