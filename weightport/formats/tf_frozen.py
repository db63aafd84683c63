"""TensorFlow graphs, ``.pb`` and ``.pbtxt``: a GraphDef whose variables have become constants, or some of them.

Promise: opening reads the graph's structure, not its constants; a constant, or a part of it, is read where it lies, in
every encoding that TensorFlow writes; nothing is executed. Variables are told from other constants as
:mod:`~weightport.formats._tf_constants` says; a constant inside a function is named ``FUNCTION/NODE``. What the graph
says about a cell (its forget bias, its activations) is traced in its dataflow. Variables that are left are listed with
their types and shapes, under the names that a checkpoint has them by; their values are not in the file. Limit: a
GraphDef has neither checksums
nor a count: one that is cut off between two nodes is noticed only if a node that is left needs one that is not.

Source: tensorflow/core/framework/graph.proto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightport.errors import Error, FormatError
from weightport.formats import _tf_facts, tf_graph
from weightport.formats._io import ByteFile
from weightport.formats._proto import Readable
from weightport.formats._tf_tensors import GraphTensors
from weightport.tensors import Array, Budget, Index, TensorSpec

_HINT = "open the checkpoint that belongs to it"


class FrozenSource:
    """An open frozen graph.

    Args:
        path: the file.
        file: its GraphDef in binary.
        handle: what to close.
        budget: the bounds to keep to.
    """

    format = "tf-frozen"

    def __init__(self, path: str, file: Readable, handle: ByteFile, *, budget: Budget | None = None) -> None:
        self.path, self._handle = path, handle
        self._closed = False
        self.graph = tf_graph.GraphDef(file, 0, file.size, budget=budget)
        self._refuse_gaps()
        for body in self.graph.functions.values():
            for node in body.nodes.values():
                if node.op in tf_graph.VARIABLES:
                    what = f"the values of its variables ({body.title(node.name)!r}, ...) are not in it"
                    raise FormatError(path, f"is a graph that was not frozen: {what}", hint=_HINT)
        self.tensors = GraphTensors(self.graph, plain=True, hint=_HINT)
        self._facts = _tf_facts.GraphFacts(self.graph)

    def _refuse_gaps(self) -> None:
        """A graph says nowhere how many nodes it has: one that is cut off is told by what the others lack."""
        nodes = self.graph.main.nodes
        for node in nodes.values():
            for name in node.inputs:
                if name not in nodes and tf_graph.reference(name.removeprefix("^"))[0] not in nodes:
                    raise FormatError(
                        self.path,
                        f"the input {name!r} of node {node.name!r} is not there: cut off, or edited",
                        offset=node.start,
                    )

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec: variables that are left, then constants in the order of the nodes.

        A constant that was no variable has the role ``constant``.
        """
        return self.tensors.specs()

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or a part of it; the parts of a partitioned variable can be read by their names too.

        Raises:
            FormatError: a variable that is left: its value is not in a graph, unless weightport put it there.
        """
        if self._closed:
            raise Error(f"{self.path}: is closed")
        return self.tensors.read(name, index)

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the graph computes with these tensors, see :class:`~weightport.formats._tf_facts.GraphFacts`."""
        if self._closed:
            raise Error(f"{self.path}: is closed")
        return self._facts.of(*self.tensors.places(names))

    def close(self) -> None:
        """Release the file handle."""
        self._closed = True
        self._handle.close()

    def __enter__(self) -> FrozenSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sniff(path: str) -> bool:
    """Whether a file is a GraphDef, in binary or as text."""
    return tf_graph.sniff_kind(path) == "GraphDef"


def open_source(path: str, *, budget: Budget | None = None) -> FrozenSource:
    """Open a graph.

    Raises:
        FormatError: it is no GraphDef, or is malformed.
    """
    return tf_graph.opened(path, "GraphDef", FrozenSource, budget=budget)
