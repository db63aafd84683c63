"""Values assigned in a TensorFlow session that has run its graph already.

Promise: all of the variables that are initialised there, or none: a failure puts the old values back. Variables are
assigned in batches: each run that feeds other tensors costs the session a look at the whole graph. Limit: values that
variables of other sessions hold are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from weightport.errors import Problem, RefusedError
from weightport.targets import _tf_values as values
from weightport.targets._buffers import produced
from weightport.targets._rollback import Kept
from weightport.tensors import Array, Index, Value

#: Bytes that are assigned in one run.
BATCH = 64 << 20


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
    there = [p for p, initialised in zip(parts, ready, strict=True) if initialised]
    reads = {id(p): _read(tf, p.variable) for p in there}  # all at once: a session takes over what is new in one go
    changed: list[tuple[Part, Callable[[], Any]]] = []
    with Kept() as kept:
        try:
            for batch in _batches(there):
                arrays = [produced(p.value, p.index) for p in batch]
                olds = session.run([reads[id(p)] for p in batch])
                while olds:  # what is kept in a file is not held here
                    part = batch[len(olds) - 1]
                    changed.append((part, kept.put(olds.pop())))
                _feed(session, batch, arrays)
        except BaseException:
            for part, old in changed:
                _feed(session, [part], [old()])
            raise


def _batches(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Parts in order, so many bytes at a time; no two that are fed by the same tensor."""
    batch: list[Part] = []
    size, fed = 0, set[str]()
    for part in parts:
        nbytes = part.value.spec.nbytes
        if batch and (size + nbytes > BATCH or part.initial.name in fed):
            yield batch
            batch, size, fed = [], 0, set()
        batch.append(part)
        size += nbytes
        fed.add(part.initial.name)
    if batch:
        yield batch


def _feed(session: Any, parts: Sequence[Part], arrays: Sequence[Array]) -> None:
    # The session's copy of the graph still has the edge from the tensor that the initializer took before.
    names = [part.variable.initializer.name for part in parts]
    session.run(names, {part.initial: array for part, array in zip(parts, arrays, strict=True)})


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
