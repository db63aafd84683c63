"""The tensors of a graph that stands alone: the variables that are left in it, and its constants.

Promise: every tensor is listed under a name of its own, variables first, under the names that a checkpoint has them by.
Limit: the value of a variable is not in a graph, with one exception: the initial value that weightport gave it, the
constant ``VARIABLE/Initializer/pretrained``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property

from weightport.errors import FormatError, TensorNotFound
from weightport.formats import _slices, _strided
from weightport.formats import _tf_uses as uses
from weightport.formats._lazy import LazySpecs
from weightport.formats._tf_constants import Constant, Constants
from weightport.formats._tf_variables import GraphVariables
from weightport.formats.tf_graph import VARIABLES, GraphDef, Node, reference
from weightport.tensors import Array, Index, TensorSpec

#: The name of a variable's new initial value, below the variable's own.
PRETRAINED = "Initializer/pretrained"
_PRETRAINED = re.compile(re.escape(PRETRAINED) + r"(_\d+)?")


class GraphTensors:
    """The tensors of one graph.

    Args:
        graph: which.
        plain: whether constants that were never variables are listed, too.
        hint: where the values of variables are.
    """

    def __init__(self, graph: GraphDef, *, plain: bool, hint: str) -> None:
        self.graph, self._hint = graph, hint
        left = any(node.op in VARIABLES for node in graph.main.nodes.values())
        self.variables = GraphVariables(graph, left=left)
        self._constants = Constants(graph, frozen=True, variables=left or not plain)
        # Name -> the name among the constants, None for a variable.
        self._names: dict[str, str | None] = dict.fromkeys(self.variables.named)
        for name, constant in self._constants.named.items():
            if plain or constant.role != "constant":
                listed = name
                while listed in self._names:
                    listed += "'"
                self._names[listed] = name
        self._specs = LazySpecs(self._names, self._spec)

    @property
    def constants(self) -> dict[str, Constant]:
        """Name -> constant, of those that are listed."""
        return {listed: self._constants.named[name] for listed, name in self._names.items() if name is not None}

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec."""
        return self._specs

    def _spec(self, name: str) -> TensorSpec:
        constant = self._names[name]
        return self.variables.specs[name] if constant is None else self._constants.specs[constant]

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or a part of it; the parts of a partitioned one can be read by their names, too.

        Raises:
            TensorNotFound: no such name.
            FormatError: a variable, whose value is not here.
        """
        constant = self._names.get(name)
        if constant is None and name not in self._names:
            if name not in self._constants.parts:
                raise TensorNotFound(name, self._names, self.graph.path)
            constant = name
        if constant is not None:
            return self._constants.read(constant, index)
        return self._initial(name, index)

    def places(self, names: Sequence[str]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        """Function and node of those tensors, and of all others that are no plain constants."""
        own, others = self._constants.places([self._names.get(name) or name for name in names])
        for name, variable in self.variables.named.items():
            places = {("", node) for node in variable.nodes}
            if name in names:
                own |= places
            else:
                others |= places
        return own, others

    def _initial(self, name: str, index: Index) -> Array:
        """The initial value that weightport gave a variable."""
        variable, spec = self.variables.named[name], self._specs[name]
        nodes = [self._given[node] for node in variable.nodes if node in self._given]
        if len(nodes) < len(variable.nodes):
            what = "is a variable, whose value is not in a graph"
            raise FormatError(self.graph.path, what, tensor=name, hint=self._hint)
        refs = [self.graph.const(node, node.name) for node in nodes]
        boxes = [variable.box(n, self.graph.path, name) or tuple((0, d) for d in spec.shape) for n in range(len(refs))]
        for ref, box in zip(refs, boxes, strict=True):
            if ref.shape != tuple(end - start for start, end in box) or ref.dtype != spec.dtype:
                what = f"its initial value is {ref.dtype.name}{list(ref.shape)}"
                raise FormatError(self.graph.path, what, tensor=name, offset=ref.start)
        if len(refs) == 1:
            return refs[0].read(self.graph.file, index)
        cuts = _strided.bounds(index, spec.shape, f"{self.graph.path}: tensor {name!r}")
        return _slices.stitch(spec.dtype, cuts, boxes, lambda n, inner: refs[n].read(self.graph.file, inner))

    @cached_property
    def _given(self) -> dict[str, Node]:
        """Node of a variable -> the constant that is its initial value, where weightport put one there."""
        nodes = self.graph.main.nodes
        found: dict[str, Node] = {}
        for node in nodes.values():
            if node.op in uses.ASSIGNS and len(node.inputs) > 1:
                variable, value = (nodes.get(reference(given)[0]) for given in node.inputs[:2])
                if variable is not None and value is not None and variable.op in VARIABLES and value.op == "Const":
                    scope = f"{variable.name}/"
                    if value.name.startswith(scope) and _PRETRAINED.fullmatch(value.name[len(scope) :]):
                        found[variable.name] = value
        return found
