"""The variables of a graph as a checkpoint has them: under the names that the graph's own save operations write, with
the parts of partitioned variables under the name of the whole; a graph without one has the names of its variables.

Limit: savers of object-based checkpoints, which write from inside functions, are not looked into.

Sources: tensorflow/core/ops/io_ops.cc, ``ParseShapeAndSlice`` in tensorflow/core/util/saved_tensor_slice_util.cc.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from weightport.errors import FormatError
from weightport.formats import _strided, tf_objects
from weightport.formats._lazy import LazySpecs
from weightport.formats._tensorproto import dtype_of
from weightport.formats.tf_graph import VARIABLES, GraphDef, Node, reference
from weightport.tensors import Array, TensorSpec

#: Save operation -> where its list of tensors begins, and whether it has a list of slices.
SAVES = {"SaveV2": (3, True), "SaveSlices": (3, True), "Save": (2, False)}
_THROUGH = {"Identity", "ReadVariableOp"}
_MAX_CHAIN = 64


@dataclass(slots=True)
class Variable:
    """A variable as a checkpoint has it: the nodes that hold it, and its whole shape where it is saved in slices."""

    nodes: list[str] = field(default_factory=list)
    shape: tuple[int, ...] | None = None
    #: for each node: the slice that it holds, as the save operation says it
    cuts: list[str] = field(default_factory=list)

    def box(self, part: int, path: str, name: str) -> tuple[tuple[int, int], ...] | None:
        """Start and end in each dimension of what a node holds; None for all of it."""
        if not self.cuts[part] or self.shape is None:
            return None
        box = []
        wrong = FormatError(path, f"{self.cuts[part][:80]!r} is no shape and slice", tensor=name)
        texts = self.cuts[part].rpartition(" ")[2].split(":")
        if len(texts) != len(self.shape):
            raise wrong
        for dim, text in zip(self.shape, texts, strict=True):
            start, comma, length = text.partition(",")
            if text == "-":
                box.append((0, dim))
            elif comma and _digits(start) and _digits(length) and int(start) + int(length) <= dim:
                box.append((int(start), int(start) + int(length)))
            else:
                raise wrong
        return tuple(box)


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


class GraphVariables:
    """The variables of the main graph; ``left`` says whether there are any, where that is known."""

    def __init__(self, graph: GraphDef, *, left: bool = True) -> None:
        self._left = left
        self.graph, self.path, self.budget = graph, graph.path, graph.budget
        self._by_node = graph.main.nodes

    @cached_property
    def named(self) -> dict[str, Variable]:
        """Name in a checkpoint -> variable, in the order of the save operations, else of the nodes."""
        found: dict[str, Variable] = {}
        if not self._left:
            return found
        for node in self._by_node.values():
            if node.op in SAVES:
                self._saved(node, found)
        if not found:
            found = {n.name: Variable([n.name], cuts=[""]) for n in self._by_node.values() if n.op in VARIABLES}
        self.budget.check("tensors", len(found), self.path)
        return found

    def _saved(self, save: Node, found: dict[str, Variable]) -> None:
        first, sliced = SAVES[save.op]
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
                    variable.cuts.append(cut)
                if cut:
                    variable.shape = _whole(cut, self.path, name)

    def _texts(self, inputs: list[str], save: Node) -> list[str]:
        """The strings of a constant that a save operation is given."""
        node = self._by_node.get(reference(inputs[0])[0]) if inputs else None
        if node is None or node.op != "Const":
            return []
        values: Array = self.graph.const(node, node.name).read(self.graph.file).reshape(-1)
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
        return LazySpecs(self.named, self._spec)

    def _spec(self, name: str) -> TensorSpec:
        variable = self.named[name]
        node = self._by_node[variable.nodes[0]]
        number = self.graph.attr_number(node, "dtype")
        if number is None:
            number = self.graph.attr_number(node, "T")
        shape = self._shape(name)
        if number is None or shape is None:
            what = "a variable whose type and shape the graph does not say"
            return TensorSpec(np.dtype(object), (), 0, "constant", what)
        dtype = dtype_of(number, self.path, name)
        nbytes = _strided.checked(dtype, shape, self.budget, self.path, name)
        spec = TensorSpec(dtype, shape, 0 if dtype.kind == "O" else nbytes)
        return TensorSpec(dtype, shape, spec.nbytes, tf_objects.role_of(name, spec, self._shape))

    def _shape(self, name: str) -> tuple[int, ...] | None:
        variable = self.named.get(name)
        if variable is None or variable.shape is not None:
            return None if variable is None else variable.shape
        return self.graph.attr_shape(self._by_node[variable.nodes[0]], "shape")


def _whole(text: str, path: str, name: str) -> tuple[int, ...]:
    """The shape in a saved slice's text, ``10 4 0,4:-``: all but the last word."""
    words = text.split(" ")[:-1]
    if not all(map(_digits, words)):
        raise FormatError(path, f"{text[:80]!r} is no shape and slice", tensor=name)
    return tuple(int(word) for word in words)
