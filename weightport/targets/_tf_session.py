"""Values assigned in a TensorFlow session that has run its graph already.

Promise: all of the variables that are initialised there, or none: a failure puts the old values back (they wait in a
temporary file, not in memory).
Limit: values that variables of other sessions hold are not touched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from weightport.errors import Problem, RefusedError
from weightport.targets import _tf_values as values
from weightport.tensors import Array, Index, Value


@dataclass(frozen=True, slots=True)
class Part:
    """A stored part of a variable, the slices of the value that it holds, and what its initializer took before."""

    value: Value
    variable: Any
    index: Index
    initial: Any

    @property
    def name(self) -> str:
        """The part's own name."""
        return str(self.variable.name).rsplit(":", 1)[0]


def assign(session: Any, parts: Sequence[Part], ran: set[str]) -> None:
    """Assign every part that is initialised in the session, by feeding its initializer; all of them or none.

    Args:
        session: the session.
        parts: the parts of all variables that take values. Their initializers have been rewired.
        ran: the rewired initializers add their variable's name to it when they run.

    Raises:
        RefusedError: a variable is not initialised yet, and this session would initialise it as it was before.
    """
    tf = values.tensorflow()
    if not parts:
        return
    ready = session.run([tf.compat.v1.is_variable_initialized(p.variable) for p in parts])
    waiting = [p for p, there in zip(parts, ready, strict=True) if not there]
    if waiting:
        _probe(session, waiting, ran)
    old = _Spool()
    changed: list[Part] = []
    try:
        for part, there in zip(parts, ready, strict=True):
            if there:
                array = values.produced(part.value, part.index)
                old.put(session.run(_read(tf, part.variable)))
                changed.append(part)
                _feed(session, part, array)
    except BaseException:
        for part, array in zip(changed, old.all(), strict=False):
            _feed(session, part, array)
        raise
    finally:
        old.close()


def _feed(session: Any, part: Part, array: Array) -> None:
    # The session's copy of the graph still has the edge from the tensor that the initializer took before.
    session.run(part.variable.initializer.name, {part.initial: array})


def _read(tf: Any, variable: Any) -> Any:
    """The variable's own value, also where its Python object stands for a constant by now."""
    output = variable.op.outputs[0]
    if output.dtype.base_dtype != tf.resource:
        return output
    return tf.raw_ops.ReadVariableOp(resource=output, dtype=variable.dtype.base_dtype)


def _probe(session: Any, waiting: Sequence[Part], ran: set[str]) -> None:
    """Refuse a session that has copied the graph before it was changed, and would initialise the variables as it was.

    A session copies ops in the order of their creation, so the oldest variable tells for all of them.
    """
    order = {op.name: i for i, op in enumerate(session.graph.get_operations())}
    oldest = min(waiting, key=lambda p: order[p.variable.initializer.name])
    ran.discard(oldest.name)
    session.run(oldest.variable.initializer)
    if oldest.name not in ran:
        raise RefusedError(
            Problem(
                f"variable {oldest.name!r}",
                "it is not initialised in the session, and the session has run the graph already: it would initialise "
                "the variable with the model's own value",
                "run the initializer before the transfer, or transfer before the session runs anything",
            )
        )


class _Spool:
    """Arrays kept in a temporary file, in order."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._kept: list[tuple[np.dtype[Any], tuple[int, ...]] | Array] = []

    def put(self, array: Any) -> None:
        array = np.asarray(array)
        if array.dtype.hasobject:
            self._kept.append(array)
            return
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._kept.append((array.dtype, array.shape))

    def all(self) -> Iterator[Array]:
        """Every array, one at a time."""
        self._file.seek(0)
        for kept in self._kept:
            if isinstance(kept, np.ndarray):
                yield kept
                continue
            dtype, shape = kept
            array = np.empty(shape, dtype)
            array.reshape(-1).view(np.uint8)[:] = np.frombuffer(self._file.read(array.nbytes), np.uint8)
            yield array

    def close(self) -> None:
        self._file.close()
