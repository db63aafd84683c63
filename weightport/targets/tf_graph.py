"""A finished TensorFlow graph (graph mode, ``tf.compat.v1``) whose variables take pretrained values.

Promise: everything is checked before the first change, and every problem is in one error; a failure later puts the
graph and the session back. An initial value is what the variable's own initializer yields from now on, in every
session that has not yet run the graph, however it is called: an init op made before or after,
``MonitoredTrainingSession``, ``var.initializer``. It yields the same again when run again, and a later
``Saver.restore`` wins. A constant is read wherever the variable was read.
Limits: a session copies the graph when it first runs it. One that has run is to be given as ``session`` (the default
session is, by itself): the variables that are initialised in it are assigned there at once, but its own copy of the
initializers stays what it was, and so do its reads of a variable made constant. What was computed from a variable's
initial value before (``initialized_value()`` of a second variable) keeps the old one. Variables of unknown shape are
not seen. Ops cannot be taken out of a graph: after a failure in the session the new ones are left, unread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weightport.errors import FormatError, PlanError, Problem, RefusedError, closest
from weightport.formats._proto import Memory
from weightport.formats._tf_facts import GraphFacts
from weightport.formats.tf_graph import GraphDef
from weightport.formats.tf_objects import role_of
from weightport.targets import _tf_values as values
from weightport.targets._buffers import produced
from weightport.targets._tf_session import Part, assign
from weightport.targets._tf_surgery import Edits, Surgery
from weightport.tensors import Index, TensorSpec, Value


@dataclass(slots=True)
class _Variable:
    """A variable as a mapping sees it: whole, whatever parts it is stored in."""

    spec: TensorSpec
    parts: list[tuple[Any, Index]] = field(default_factory=list)


class GraphTarget:
    """The variables of a graph.

    Args:
        graph: the ``tf.Graph``.
        session: a session that has already run it, if there is one. None: the default session, if it is of this graph.
        large_constants: constants beyond protobuf's 2 GiB are refused (``"refuse"``) or stay variables that are not
            trainable (``"variable"``).
    """

    kind = "tensorflow-graph"

    def __init__(self, graph: Any, session: Any = None, *, large_constants: str = "refuse") -> None:
        values.check_choice(large_constants)
        self._tf = values.tensorflow()
        if session is not None and session.graph is not graph:
            raise RefusedError("the session was made for another graph")
        self.graph = graph
        self._session = session
        self._large_constants = large_constants
        self._known: tuple[int, GraphFacts] | None = None

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name (without ``:0``) -> spec, in the order of creation; partitioned variables whole."""
        return {name: variable.spec for name, variable in self._variables().items()}

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the graph computes with these variables: forget bias, activations, clipping, the reset mode of a GRU.

        Each only where it is found by following the graph, see :class:`weightport.formats._tf_facts.GraphFacts`.
        """
        variables = self._variables()
        own = {("", part.op.name) for name in names if name in variables for part, _ in variables[name].parts}
        others = {("", part.op.name) for known in variables.values() for part, _ in known.parts} - own
        return self._graph_facts().of(own, others) if own else {}

    def _graph_facts(self) -> GraphFacts:
        """The graph's, made anew when ops were added to it."""
        if self._known is None or self._known[0] != self.graph.version:
            try:
                data = self.graph.as_graph_def().SerializeToString()
                made = GraphDef(Memory(data, "the graph"), 0, len(data))
            except (ValueError, FormatError):  # beyond protobuf's 2 GiB: nothing is known
                made = GraphDef(Memory(b"", "the graph"), 0, 0)
            self._known = self.graph.version, GraphFacts(made)
        return self._known[1]

    def assign(self, new: Sequence[Value]) -> Any:
        """Give the variables their initial values and put the constants in their place. Returns the graph.

        Raises:
            PlanError: names, shapes or dtypes that do not fit, uses of a variable that forbid a constant.
                Nothing was changed.
            RefusedError: constants that do not fit into the graph, or a session in which the values could not hold.
            Error: a value could not be produced. Everything was put back.
        """
        variables = self._variables()
        surgery, frozen = self._check(new, variables)
        constants = [v for v in new if v.constant and v.name not in frozen]
        session = self._live_session()
        edits, ran, parts = Edits(), set[str](), list[Part]()
        with self.graph.as_default(), self._tf.control_dependencies(None), self._tf.compat.v1.name_scope(None):
            # All of them are produced before the graph gets its first op: an op cannot be taken away again.
            arrays = {
                _own_name(part): produced(value, index)
                for value in constants
                for part, index in variables[value.name].parts
            }
            made = {name: values.constant_op(arrays.pop(name), f"{name}/pretrained") for name in list(arrays)}
            try:
                for value in new:
                    for variable, index in variables[value.name].parts:
                        part = Part(value, variable, index, variable.initializer.inputs[1])
                        parts.append(part)
                        tensor = self._initial(part, made.get(part.name), ran if session is not None else None)
                        edits.rewire(variable.initializer, 1, tensor)
                        edits.attribute(variable, "_initial_value", tensor)
                surgery.operate(made, edits)
                self._collections(
                    [p.variable for p in parts if p.name in made],
                    [p.variable for p in parts if p.value.name in frozen],
                    edits,
                )
                if session is not None:
                    assign(session, parts, ran)
            except BaseException:
                edits.undo()
                raise
        store, embedded = values.Store.of(self.graph), {v.name for v in constants}
        for value in new:
            if value.name in embedded:
                store.embedded += values.embedded_size(value)
                if value.name in made:
                    store.constants[value.name] = made[value.name]
            else:
                store.initial[value.name] = value.spec
        return self.graph

    def _live_session(self) -> Any:
        if self._session is not None:
            return self._session
        session = self._tf.compat.v1.get_default_session()
        return session if session is not None and session.graph is self.graph else None

    def _initial(self, part: Part, constant: Any, ran: set[str] | None) -> Any:
        """What the part's initializer takes from now on; ``ran`` is told when it does."""
        name = part.name

        def tell() -> None:
            if ran is not None:
                ran.add(name)

        if constant is None:
            return values.initial_tensor(part.value, part.index, f"{name}/Initializer/pretrained", tell)
        if ran is None:
            return constant
        # An initializer made before still runs for a variable that became a constant; it costs no second read.
        with self._tf.control_dependencies([self._tf.numpy_function(tell, [], [])]):
            return self._tf.identity(constant, f"{name}/Initializer/pretrained")

    def _variables(self) -> dict[str, _Variable]:
        found: dict[str, _Variable] = {}
        trainable = {id(v) for v in self.graph.get_collection("trainable_variables")}
        steps = {id(v) for v in self.graph.get_collection("global_step")}
        seen: set[int] = set()
        learned: set[int] = set()
        for variable in self.graph.get_collection("variables"):
            if id(variable) in seen or not hasattr(variable, "initializer"):
                continue
            seen.add(id(variable))
            info = variable._get_save_slice_info() if hasattr(variable, "_get_save_slice_info") else None
            name = variable.name.rsplit(":", 1)[0] if info is None else info.full_name
            shape = variable.shape if info is None else self._tf.TensorShape(info.full_shape)
            if not shape.is_fully_defined():
                continue
            index = None
            if info is not None and list(info.var_shape) != list(info.full_shape):
                index = values.part_index(info.var_offset, info.var_shape)
            if name not in found:
                role = "counter" if id(variable) in steps else "weight"
                found[name] = _Variable(values.spec_of(variable.dtype, shape.as_list(), role))
            found[name].parts.append((variable, index))
            if id(variable) in trainable:
                learned.add(id(found[name]))
        for name, known in found.items():
            if known.spec.role == "weight" and id(known) not in learned:
                known.spec = replace(known.spec, role=_role(name, known.spec, found))
        return found

    def _check(self, new: Sequence[Value], variables: Mapping[str, _Variable]) -> tuple[Surgery, set[str]]:
        """All that can be known beforehand. Returns the surgery to do, and the constants that stay variables."""
        if self.graph.finalized:
            raise RefusedError(
                "the graph is finalized, nothing can be added to it: transfer before a MonitoredSession or a Scaffold "
                "finalizes it"
            )
        problems: list[Problem] = []
        fitting: dict[str, Value] = {}
        for value in new:
            where = f"variable {value.name!r}"
            known = variables.get(value.name)
            if known is None:
                problems.append(Problem(where, "the graph has no such variable", closest(value.name, variables)))
                continue
            problem = values.mismatch(known.spec, value)
            if problem is not None:
                problems.append(problem)
            elif value.name in fitting:
                problems.append(Problem(where, "it was given a value twice"))
            elif any(part.initializer is None for part, _ in known.parts):
                problems.append(Problem(where, "it has no initializer, so it cannot take a value"))
            else:
                fitting[value.name] = value
        constants = [v for v in fitting.values() if v.constant]
        frozen: set[str] = set()
        if constants:
            room = values.EMBED_LIMIT - values.Store.of(self.graph).embedded
            if sum(map(values.embedded_size, constants)) > room:
                if self._large_constants == "refuse":
                    problems.extend(values.too_large(constants, values.EMBED_LIMIT - room).problems)
                for value in constants:
                    room -= values.embedded_size(value)
                    if room < 0:
                        frozen.add(value.name)
                        room += values.embedded_size(value)
        surgery = Surgery(
            self.graph, [p for v in constants if v.name not in frozen for p, _ in variables[v.name].parts]
        )
        problems.extend(surgery.problems())
        if problems:
            raise PlanError(problems)
        return surgery, frozen

    def _collections(self, constants: Sequence[Any], frozen: Sequence[Any], edits: Edits) -> None:
        """Constants leave every collection of variables; what is frozen outside the graph leaves the trainable ones."""
        gone, untrained = set(map(id, constants)), set(map(id, frozen))
        for key in self.graph.get_all_collection_keys():
            items = self.graph.get_collection_ref(key)
            out = gone | untrained if key == "trainable_variables" else gone
            left = [item for item in items if id(item) not in out]
            if len(left) != len(items):
                edits.set_list(items, left)
        for variable in frozen:
            edits.attribute(variable, "_trainable", False)


def _own_name(variable: Any) -> str:
    return str(variable.name).rsplit(":", 1)[0]


def _role(name: str, spec: TensorSpec, variables: Mapping[str, _Variable]) -> str:
    """What a variable that is not trainable is, told by its name as in a checkpoint."""
    if name.rsplit("/", 1)[-1] == "seed_generator_state":  # Keras 3's, the counter of its random numbers
        return "counter"
    return role_of(name, spec, lambda other: variables[other].spec.shape if other in variables else None)
