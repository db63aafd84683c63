"""MetaGraphDefs, which ``.meta`` files and SavedModels hold: tags, graph, and the variables that a checkpoint has of
it.

Promise: a variable's name is the one that the graph's own save operation writes, with the parts of partitioned
variables under the name of the whole; a graph without one has the names of its variables. Limit: savers of object-based
checkpoints, which write from inside functions, are not looked into.

Sources: tensorflow/core/protobuf/meta_graph.proto, tensorflow/core/ops/io_ops.cc, ``ParseShapeAndSlice`` in
tensorflow/core/util/saved_tensor_slice_util.cc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from weightport.errors import FormatError
from weightport.formats import _strided, _tf_facts, tf_objects
from weightport.formats._lazy import LazySpecs
from weightport.formats._proto import BYTES, Readable, spans
from weightport.formats._tensorproto import dtype_of
from weightport.formats.tf_graph import VARIABLES, GraphDef, Node, reference, text
from weightport.tensors import Array, Budget, TensorSpec

# Save operation -> where its list of tensors begins, and whether it has a list of slices.
_SAVES = {"SaveV2": (3, True), "SaveSlices": (3, True), "Save": (2, False)}
_THROUGH = {"Identity", "ReadVariableOp"}
_MAX_CHAIN = 64


@dataclass(slots=True)
class Variable:
    """A variable as a checkpoint has it: the nodes that hold it, and its whole shape where it is saved in slices."""

    nodes: list[str] = field(default_factory=list)
    shape: tuple[int, ...] | None = None


class MetaGraph:
    """The MetaGraphDef that lies at ``start:end`` of a file."""

    def __init__(self, file: Readable, start: int, end: int, *, budget: Budget | None = None) -> None:
        self.file, self.path = file, file.path
        self.budget = Budget() if budget is None else budget
        self.tags: list[str] = []
        self._place: tuple[int, int] | None = None
        for number, wire, value, size in spans(file, start, end):
            if number == 1 and wire == BYTES:
                for inner, kind, at, length in spans(file, value, value + size):
                    if inner == 4 and kind == BYTES:
                        self.tags.append(text(file, at, length))
            elif number == 2 and wire == BYTES:
                if self._place is not None:
                    raise FormatError(file.path, "two graphs in one MetaGraphDef", offset=value)
                self._place = value, value + size

    @cached_property
    def graph(self) -> GraphDef:
        """Its graph."""
        start, end = self._place or (0, 0)
        return GraphDef(self.file, start, end, budget=self.budget)

    @cached_property
    def graph_facts(self) -> _tf_facts.GraphFacts:
        """What its graph computes."""
        return _tf_facts.GraphFacts(self.graph)

    def facts(self, names: Sequence[str], keys: Mapping[str, Sequence[str]] | None = None) -> dict[str, object]:
        """What the graph computes with these variables, see :class:`~weightport.formats._tf_facts.GraphFacts`.

        ``keys`` says under which keys an object-based checkpoint has them.
        """
        own = {("", node) for name in names for node in self._nodes(name)}
        if keys is not None:
            saved = self.graph_facts.saved()
            own |= {place for name in names for key in keys.get(name, ()) for place in saved.get(key, ())}
        others = {("", name) for name, node in self._by_node.items() if node.op in VARIABLES} - own
        return self.graph_facts.of(own, others)

    def _nodes(self, name: str) -> Sequence[str]:
        saved = self.variables.get(name)
        if saved is not None:
            return saved.nodes
        return [name] if name in self._by_node else self._shared.get(name, [])

    @cached_property
    def _by_node(self) -> dict[str, Node]:
        return self.graph.main.nodes

    @cached_property
    def _shared(self) -> Mapping[str, list[str]]:
        """The nodes of variables by the name that they share, where it is not the node's own."""
        found: dict[str, list[str]] = {}
        for node in self._by_node.values():
            if node.op in VARIABLES:
                shared = self.graph.attr_text(node, "shared_name")
                if shared and shared != node.name:
                    found.setdefault(shared, []).append(node.name)
        return found

    # Variables -------------------------------------------------------------------------------------------------------

    @cached_property
    def variables(self) -> dict[str, Variable]:
        """Name in a checkpoint -> variable, in the order of the save operations, else of the nodes."""
        found: dict[str, Variable] = {}
        for node in self._by_node.values():
            if node.op in _SAVES:
                self._saved(node, found)
        if not found:
            found = {n.name: Variable([n.name]) for n in self._by_node.values() if n.op in VARIABLES}
        self.budget.check("tensors", len(found), self.path)
        return found

    def _saved(self, save: Node, found: dict[str, Variable]) -> None:
        first, sliced = _SAVES[save.op]
        inputs = [name for name in save.inputs if not name.startswith("^")]
        names = self._texts(inputs[1:2], save)
        slices = self._texts(inputs[2:3], save) if sliced else [""] * len(names)
        tensors = inputs[first:]
        if not len(names) == len(slices) == len(tensors):
            raise FormatError(
                self.path,
                f"the save operation {save.name!r} has {len(names)} names and {len(slices)} slices "
                f"for {len(tensors)} tensors",
                offset=save.start,
            )
        for name, cut, tensor in zip(names, slices, tensors, strict=True):
            at = self._origin(tensor)
            if at is not None:
                variable = found.setdefault(name, Variable())
                if at not in variable.nodes:
                    variable.nodes.append(at)
                if cut:
                    variable.shape = _whole(cut, self.path, name)

    def _texts(self, inputs: list[str], save: Node) -> list[str]:
        """The strings of a constant that a save operation is given."""
        node = self._by_node.get(reference(inputs[0])[0]) if inputs else None
        if node is None or node.op != "Const":
            return []
        values: Array = self.graph.const(node, node.name).read(self.file).reshape(-1)
        if values.dtype.kind != "O":
            raise FormatError(self.path, f"the save operation {save.name!r} has no names", offset=save.start)
        return [value.decode("utf-8", "backslashreplace") for value in values]

    def _origin(self, name: str) -> str | None:
        """The variable that a saved tensor is read from, or the node that computes it."""
        at = reference(name)[0]
        for _ in range(_MAX_CHAIN):
            node = self._by_node.get(at)
            if node is None:
                return None
            if node.op not in _THROUGH or not node.inputs:
                return at
            at = reference(node.inputs[0])[0]
        return None

    @cached_property
    def specs(self) -> LazySpecs:
        """Name in a checkpoint -> spec, as the graph describes it."""
        return LazySpecs(self.variables, self._spec)

    def _spec(self, name: str) -> TensorSpec:
        variable = self.variables[name]
        node = self._by_node[variable.nodes[0]]
        number = self.graph.attr_number(node, "dtype")
        if number is None:
            number = self.graph.attr_number(node, "T")
        shape = self._shape(name)
        if number is None or shape is None:
            raise FormatError(self.path, "the graph does not say its type and shape", tensor=name, offset=node.start)
        dtype = dtype_of(number, self.path, name)
        nbytes = _strided.checked(dtype, shape, self.budget, self.path, name)
        spec = TensorSpec(dtype, shape, 0 if dtype.kind == "O" else nbytes)
        return TensorSpec(dtype, shape, spec.nbytes, tf_objects.role_of(name, spec, self._shape))

    def _shape(self, name: str) -> tuple[int, ...] | None:
        variable = self.variables.get(name)
        if variable is None or variable.shape is not None:
            return None if variable is None else variable.shape
        return self.graph.attr_shape(self._by_node[variable.nodes[0]], "shape")


def _whole(text: str, path: str, name: str) -> tuple[int, ...]:
    """The shape in a saved slice's text, ``10 4 0,4:-``: all but the last word."""
    words = text.split(" ")[:-1]
    if not all(word.isascii() and word.isdigit() and len(word) < 20 for word in words):
        raise FormatError(path, f"{text[:80]!r} is no shape and slice", tensor=name)
    return tuple(int(word) for word in words)
