"""MetaGraphDefs, which ``.meta`` files and SavedModels hold: tags, graph, and the variables that a checkpoint has of
it.

Source: tensorflow/core/protobuf/meta_graph.proto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from weightport.errors import FormatError
from weightport.formats import _tf_facts
from weightport.formats._proto import BYTES, Readable, spans
from weightport.formats._tf_variables import GraphVariables
from weightport.formats.tf_graph import VARIABLES, GraphDef, Node, text
from weightport.tensors import Budget


class MetaGraph:
    """The MetaGraphDef that lies at ``start:end`` of a file."""

    def __init__(self, file: Readable, start: int, end: int, *, budget: Budget | None = None) -> None:
        self.file, self.path, self.start, self.end = file, file.path, start, end
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
        return GraphDef(self.file, *self.place, budget=self.budget)

    @property
    def place(self) -> tuple[int, int]:
        """Where its graph lies."""
        return self._place or (self.start, self.start)

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
        saved = self.variables.named.get(name)
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

    @cached_property
    def variables(self) -> GraphVariables:
        """Its variables, as a checkpoint has them."""
        return GraphVariables(self.graph)
