"""New values for a graph: its constants get them, its variables become constants or are born with them.

Promise: everything is checked before anything is made, and all that stands in the way is one error. What is neither
given a value nor concerned by it keeps its bytes. An initial value is a constant that the variable's own initializer
takes, in place of the one before. Limit: what else was computed from a variable's old initial value keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from weightport.errors import Error, Problem, RefusedError
from weightport.formats import _strided, _tf_saver_edit, _tiles
from weightport.formats import _tf_uses as uses
from weightport.formats._message import Message, Stream, fields_of
from weightport.formats._proto import BYTES, Memory, Readable
from weightport.formats._tf_collections import Surroundings
from weightport.formats._tf_constants import Constant
from weightport.formats._tf_edit import GraphEdit, tensor_value, type_value
from weightport.formats._tf_freeze import Freezer, Kind
from weightport.formats._tf_tensors import PRETRAINED
from weightport.formats._tf_variables import Variable
from weightport.formats.tf_graph import VARIABLES, GraphDef, Node, reference
from weightport.tensors import TensorSpec, Tiles

#: Node of a frozen variable -> what it is; to function -> arguments.
Roots = Callable[[Mapping[str, Kind]], Mapping[str, Mapping[int, Kind]]]
#: Start and end of a part in each dimension; None for all of a tensor.
Box = tuple[tuple[int, int], ...] | None


@dataclass(frozen=True, slots=True)
class Values:
    """The new tensors, of which parts are put into messages."""

    path: str
    specs: Mapping[str, TensorSpec]
    tiles: Tiles

    @classmethod
    def none(cls, path: str, specs: Mapping[str, TensorSpec]) -> Values:
        """Tensors of these headers whose values nobody asks for (texts are empty)."""
        return cls(path, specs, lambda name: iter([np.full(specs[name].shape, b"", object)]))

    def content(self, name: str, box: Box = None) -> tuple[tuple[int, ...], Message]:
        """Shape, and the fields of a TensorProto that hold the values; numbers stream through when they are written."""
        spec = self.specs[name]
        shape = spec.shape if box is None else tuple(end - start for start, end in box)
        out = Message()
        if spec.dtype.kind in "OSU":
            for _, texts in _tiles.encoded(self.path, name, spec, self.tiles):
                for text in texts:
                    out.bytes_field(8, text)
            return shape, out
        size = TensorSpec.of(spec.dtype, shape).nbytes
        return shape, out.bytes_field(4, Stream(size, lambda: self._chunks(name, spec, box))) if size else out

    def _chunks(self, name: str, spec: TensorSpec, box: Box) -> Iterator[memoryview]:
        row = 0
        for tile in _tiles.checked(self.path, name, spec, self.tiles):
            part = tile
            if box is not None:
                first, last = box[0]
                rows = slice(max(first - row, 0), max(last - row, 0))
                row += len(tile)
                part = tile[(rows, *(slice(start, end) for start, end in box[1:]))]
            if part.size:
                stored = np.ascontiguousarray(part)
                little = stored.dtype.newbyteorder("<")
                yield _strided.byte_view(stored if stored.dtype == little else stored.astype(little))


def refuse_text(file: Readable) -> None:
    """Refuse a graph that was text: of that, only what reading needs was taken, and the rest would be lost."""
    if isinstance(file, Memory):
        what = "is text, of which only a part is read: other values cannot be put into it"
        hint = "write it in binary first (google.protobuf.text_format, or tf.io.write_graph with as_text=False)"
        raise RefusedError(Problem(file.path, what, hint))


class Change:
    """A graph that gets new values.

    Args:
        graph: which.
        values: them.
        constants: name -> the constant that has it.
        variables: name -> the variable that has it.
        initializers: node of a variable -> the operation that initializes it, as far as is said outside the graph.
        roots: functions that are called from outside the graph, see :class:`~weightport.formats._tf_freeze.Freezer`.
        same: node of a variable -> the node that holds the same one, of all those of one variable.

    Attributes:
        frozen: the nodes of variables that are constants now.
        initial: node of a variable -> the node of its new initial value.
    """

    def __init__(
        self,
        graph: GraphDef,
        values: Values,
        *,
        constants: Mapping[str, Constant] | None = None,
        variables: Mapping[str, Variable] | None = None,
        initializers: Mapping[str, str] | None = None,
        roots: Roots = lambda _: {},
        same: Mapping[str, str] | None = None,
    ) -> None:
        self.graph, self.values, self.edit = graph, values, GraphEdit(graph)
        self._constants, self._variables = constants or {}, variables or {}
        self._initializers, self._roots, self._same = initializers or {}, roots, same or {}
        self.frozen: dict[str, Kind] = {}
        self.initial: dict[str, str] = {}
        self._loose: list[str] = []

    def make(self, moved: Collection[str], constants: Collection[str]) -> None:
        """Give the tensors ``moved`` their values; those of ``constants`` that are variables become constants.

        Raises:
            Error: uses of a variable that forbid a constant, variables without an initializer; all of them.
        """
        problems: list[Problem] = []
        frozen: list[tuple[str, str, Box]] = []
        for name in moved:
            variable = self._variables.get(name)
            if variable is None:
                if name in self._constants:
                    self._replace(name)
                else:
                    what = f"is no variable of the graph in {self.graph.path}"
                    problems.append(Problem(f"tensor {name!r}", what, "keep it: list it under keep:"))
                continue
            if variable.shape is None and len(variable.nodes) > 1 and not self._same:
                # A saver of averages saves other variables under the names of these.
                if name not in variable.nodes:
                    what = f"is what several variables are saved as: {', '.join(map(repr, variable.nodes[:3]))}"
                    problems.append(Problem(f"tensor {name!r}", what, "keep it: list it under keep:"))
                    continue
                variable = Variable([name], cuts=[""])
            for part, node in enumerate(variable.nodes):
                where = node, name, variable.box(part, self.graph.path, name)
                if self.graph.main.nodes[node].op not in VARIABLES:
                    what = f"is {self.graph.main.nodes[node].op} {node!r} of {self.graph.path}, no variable"
                    problems.append(Problem(f"tensor {name!r}", what, "keep it: list it under keep:"))
                elif name in constants:
                    frozen.append(where)
                else:
                    problems.extend(self._initialize(*where))
        problems.extend(self._freeze(frozen))
        if problems:
            raise Error(problems)

    def finish(self, surroundings: Surroundings | None) -> None:
        """Take the frozen variables out of the savers, and away what nobody needs any more."""
        pinned = surroundings.names if surroundings is not None else lambda _: False
        _tf_saver_edit.prune(self.edit, self._loose, pinned)
        if self.frozen:
            _tf_saver_edit.prune(self.edit, _tf_saver_edit.forget(self.edit, self.frozen), pinned)

    # Constants -------------------------------------------------------------------------------------------------------

    def _replace(self, name: str) -> None:
        """Put other values into a constant, or into the parts of one."""
        constant = self._constants[name]
        at = 0
        for body, node in constant.parts:
            ref = self.graph.const(node, body.title(node.name))
            box: Box = None
            if len(constant.parts) > 1:
                whole = [(0, dim) for dim in ref.shape]
                whole[constant.axis] = (at, at + ref.shape[constant.axis])
                at += ref.shape[constant.axis]
                box = tuple(whole)
            shape, content = self.values.content(name, box)
            changes = self.edit.body(body).edit(node.name)
            changes.becomes("Const", attrs={"value": tensor_value(ref.number, shape, content)})

    # Variables -------------------------------------------------------------------------------------------------------

    def _kind(self, node: Node, name: str, box: Box) -> Kind:
        spec = self.values.specs[name]
        shape = spec.shape if box is None else tuple(end - start for start, end in box)
        number = self.graph.attr_number(node, "dtype") or 0
        return Kind(number % 100, shape, node.op != "VarHandleOp", name, node.name)

    def _freeze(self, variables: list[tuple[str, str, Box]]) -> list[Problem]:
        nodes = self.graph.main.nodes
        self.frozen = {node: self._kind(nodes[node], name, box) for node, name, box in variables}
        if not self.frozen:
            return []
        starts = {node: self._initializer(node) for node in self.frozen}
        freezer = Freezer(self.edit, self.frozen, {n: op for n, op in starts.items() if op}, self._roots(self.frozen))
        if freezer.problems():
            return freezer.problems()
        for name in freezer.operate():
            self._loose.extend(reference(i)[0] for i in nodes[name].inputs if not i.startswith("^"))
        for node, name, box in variables:
            changes = self.edit.main.edit(node)
            waits = [i for i in changes.inputs if i.startswith("^")]
            first = self._same.get(node, node)
            if first != node:
                changes.becomes("Identity", [first, *waits], {"T": type_value(self.frozen[node].number)}, bare=True)
                continue
            shape, content = self.values.content(name, box)
            number = self.frozen[node].number
            value = {"dtype": type_value(number), "value": tensor_value(number, shape, content)}
            changes.becomes("Const", waits, value, bare=True)
        return []

    def _initializer(self, node: str) -> str:
        """The operation that gives a variable its initial value; empty if there is none."""
        said = self._initializers.get(node, f"{node}/Assign")
        found = self.graph.main.nodes.get(said)
        if found is None or found.op not in uses.ASSIGNS or len(found.inputs) < 2:
            return ""
        return said if reference(found.inputs[0])[0] == node else ""

    def _initialize(self, node: str, name: str, box: Box) -> Iterator[Problem]:
        """Let a variable be born with its value."""
        assign = self._initializer(node)
        if not assign:
            hint = "make it a constant (as: constant), or write a checkpoint, which holds values of variables"
            yield Problem(f"variable {name!r}", f"has no initializer in {self.graph.path} to give a value to", hint)
            return
        kind = self._kind(self.graph.main.nodes[node], name, box)
        shape, content = self.values.content(name, box)
        value = {"dtype": type_value(kind.number), "value": tensor_value(kind.number, shape, content)}
        made = self.edit.fresh(f"{node}/{PRETRAINED}")
        self.edit.add_node(made, "Const", device=self._device(self.graph.main.nodes[node]), attrs=dict(value))
        changes = self.edit.main.edit(assign)
        self._loose.append(reference(changes.inputs[1])[0])
        changes.inputs[1] = made
        self.initial[node] = made

    def _device(self, node: Node) -> str:
        for found in fields_of(self.graph.file, node.start, node.end):
            if found.number == 4 and found.wire == BYTES:
                return found.read().decode("utf-8", "backslashreplace")
        return ""
