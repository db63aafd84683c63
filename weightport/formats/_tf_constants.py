"""The constants of a graph by name, and which of them were variables before the graph was frozen.

Freezing puts a variable's value where the variable was: a ``Const`` of its name, and the nodes that read the variable
stay behind as ``Identity``. So in a graph that may be frozen (``Constants(..., frozen=True)``) a constant is a weight
if

1. an ``Identity`` reads it under the name ``VARIABLE/read``, or one named ``.../ReadVariableOp``, directly, into a loop
   (``Enter``), or as the argument of a function; or it stands itself where such a read was (folded by an optimizer);
2. the graph has no variables, and no constant of it is read that way - an optimizer has removed the reads, or there
   never were any - and it holds more than one number of a type that is not for sizes, indices or text; or it holds
   numbers that nothing uses.

The parts of a partitioned variable, ``VARIABLE/part_N``, are one tensor, if the graph proves the axis: it joins them,
the parts differ in just that dimension, they have but one, or they are what embeddings are looked up in.

Promise: every constant is listed under a name of its own, the rest with the role ``constant``. Limit: rule 2 says too
much rather than too little, since a weight that no mapping accounts for is an error, and a constant is not; after
``convert_variables_to_constants_v2`` a variable has the name of the place that reads it, the only one left in the file.

Sources: tensorflow/python/framework/{graph_util_impl,convert_to_constants}.py, tensorflow/python/ops/
{partitioned_variables,variables,embedding_ops}.py.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from weightport.errors import BudgetExceeded
from weightport.formats import _slices, _strided, tf_objects
from weightport.formats._lazy import LazySpecs
from weightport.formats._tensorproto import SPLAT_BYTES, TensorProtoRef
from weightport.formats.tf_graph import Body, GraphDef, Node, reference
from weightport.tensors import Array, Index, TensorSpec

#: Operations that call the functions their attributes name, with how many inputs are not for the function.
CALLS = {"PartitionedCall": 0, "StatefulPartitionedCall": 0, "While": 0, "StatelessWhile": 0, "If": 1, "StatelessIf": 1}
_READ = re.compile(r"ReadVariableOp(_\d+)?")
_PART = re.compile(r"(.+)/part_(\d+)")
_THROUGH = {"Enter", "RefEnter", "Identity"}
# Types of sizes, indices, truth values and text.
_NOT_WEIGHTS = {"int32", "int64", "bool", "object"}
_MAX_CHAIN = 64
# Calls that are followed, over all functions, before what is left is taken for constants.
_MAX_STEPS = 5_000_000


@dataclass(frozen=True, slots=True)
class Constant:
    """Where a named tensor lies: one constant, or the parts that are joined along an axis."""

    parts: tuple[tuple[Body, Node], ...]
    axis: int
    #: None where the values' type and shape tell it
    role: str | None


class Constants:
    """The constants of one graph.

    Args:
        graph: whose constants.
        frozen: some constants may be weights; otherwise none is.
        variables: there are variables beside, so that what is not read as one (rule 2) is no weight.
    """

    def __init__(self, graph: GraphDef, *, frozen: bool, variables: bool = False) -> None:
        self._graph = graph
        self.named: dict[str, Constant] = {}
        #: the parts of joined tensors, which can be read by name but are not listed
        self.parts: dict[str, Constant] = {}
        reads = _Reads(graph) if frozen else None
        self._unused = set()
        if reads is not None and not reads.found and not variables:
            self._unused = _unused(graph.main)
        for body in graph.bodies():
            for node in body.nodes.values():
                if node.op == "Const":
                    role: str | None = "constant"
                    name = node.name
                    if reads is not None:
                        role = (
                            None
                            if not reads.found and not variables
                            else "weight"
                            if reads.has(body, node)
                            else "constant"
                        )
                        name = _plain(body, node)
                    self._add(body.title(name), Constant(((body, node),), 0, role))
        if frozen:
            self._join()
        graph.budget.check("tensors", len(self.named), graph.path)
        self.specs = LazySpecs(self.named, self.spec)

    def _add(self, name: str, constant: Constant) -> None:
        while name in self.named:  # a node that is named like a function's
            name += "'"
        self.named[name] = constant

    # Partitions ------------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Put the parts of partitioned variables together, in place of the first part."""
        groups: dict[str, dict[int, str]] = {}
        for name, constant in self.named.items():
            match = _PART.fullmatch(name)
            if match and constant.role != "constant" and len(match[2]) < 8:
                groups.setdefault(match[1], {})[int(match[2])] = name
        joined: dict[str, tuple[str, Constant]] = {}
        for whole, numbered in groups.items():
            names = [numbered[n] for n in sorted(numbered)]
            if whole in self.named or sorted(numbered) != list(range(len(numbered))):
                continue
            parts = tuple(self.named[name].parts[0] for name in names)
            axis = self._axis(parts)
            if axis is not None:
                for name in names:
                    self.parts[name] = self.named[name]
                joined[names[0]] = whole, Constant(parts, axis, self.named[names[0]].role)
        if joined:
            listed = {}
            for name, constant in self.named.items():
                if name in joined:
                    listed[joined[name][0]] = joined[name][1]
                elif name not in self.parts:
                    listed[name] = constant
            self.named = listed

    def _axis(self, parts: tuple[tuple[Body, Node], ...]) -> int | None:
        """The axis that those parts are joined along; None where nothing proves it."""
        shapes = [self._ref(body, node).shape for body, node in parts]
        if len({len(shape) for shape in shapes}) > 1 or len({self._ref(b, n).dtype for b, n in parts}) > 1:
            return None
        rank = len(shapes[0])
        differing = [axis for axis in range(rank) if len({shape[axis] for shape in shapes}) > 1]
        if len(differing) == 1 or rank == 1 or len(parts) == 1:
            return differing[0] if differing else 0
        if differing or not rank:
            return None
        return self._joined_by_graph(parts)

    def _joined_by_graph(self, parts: tuple[tuple[Body, Node], ...]) -> int | None:
        """The axis of the node that joins equal parts; 0 where rows are gathered from them."""
        body = parts[0][0]
        wanted = [node.name for _, node in parts]
        gathered = False
        for node in body.nodes.values():
            if node.op in ("ConcatV2", "Concat"):
                inputs = [i for i in node.inputs if not i.startswith("^")]
                tensors, axis = (inputs[:-1], inputs[-1:]) if node.op == "ConcatV2" else (inputs[1:], inputs[:1])
                if len(tensors) == len(wanted) and axis and [_origin(body, i) for i in tensors] == wanted:
                    found = body.nodes.get(reference(axis[0])[0])
                    if found is None or found.op != "Const":
                        return None
                    values = self._ref(body, found).read(self._graph.file)
                    rank = len(self._ref(*parts[0]).shape)
                    number = int(values.item()) if values.dtype.kind in "iu" and values.size == 1 else rank
                    return number % rank if -rank <= number < rank else None
            elif node.op in ("Gather", "GatherV2", "ResourceGather") and node.inputs:
                gathered = gathered or _origin(body, node.inputs[0]) in wanted
        return 0 if gathered else None

    # Reading ---------------------------------------------------------------------------------------------------------

    def _ref(self, body: Body, node: Node) -> TensorProtoRef:
        return self._graph.const(node, body.title(node.name))

    def spec(self, name: str) -> TensorSpec:
        """The header of one of them."""
        constant = self.named[name]
        refs = [self._ref(body, node) for body, node in constant.parts]
        dtype, shape, nbytes = refs[0].dtype, refs[0].shape, sum(ref.nbytes for ref in refs)
        if len(refs) > 1:
            shape = _whole(shape, constant.axis, sum(ref.shape[constant.axis] for ref in refs))
        role = constant.role
        if role is None:
            body, node = constant.parts[0]
            several = prod(shape) > 1
            unused = not body.name and node.name in self._unused and dtype.kind != "O"
            role = "weight" if unused or (several and dtype.name not in _NOT_WEIGHTS) else "constant"
        if role == "weight":
            role = tf_objects.role_of(name, TensorSpec(dtype, shape, nbytes), self._shape)
        return TensorSpec(dtype, shape, nbytes, role)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        constant = self.named.get(name)
        if constant is None or len(constant.parts) > 1:
            return None
        return self._ref(*constant.parts[0]).shape

    def places(self, names: Sequence[str]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        """Function and node of those constants, and of all other weights."""
        own, others, wanted = set(), set(), set(names)
        for name, constant in self.named.items():
            at = {(body.name, node.name) for body, node in constant.parts}
            if name in wanted:
                own |= at
            elif constant.role != "constant" and self.specs[name].role != "constant":
                others |= at
        return own, others

    def read(self, name: str, index: Index = None) -> Array:
        """The values of one of them, which :attr:`named` or :attr:`parts` has, or a part of them."""
        constant = self.named.get(name) or self.parts[name]
        refs = [self._ref(body, node) for body, node in constant.parts]
        file = self._graph.file
        if len(refs) == 1:
            return refs[0].read(file, index)
        shape = _whole(refs[0].shape, constant.axis, sum(ref.shape[constant.axis] for ref in refs))
        _strided.checked(refs[0].dtype, shape, self._graph.budget, file.path, name)
        # Values that the file does not hold (a last value that repeats) are bounded, over all parts together.
        made = sum(ref.nbytes for ref in refs if prod(ref.shape) > ref.end - ref.start)
        if made > SPLAT_BYTES:
            raise BudgetExceeded(
                file.path, f"repeated values of {made:,} bytes, at most {SPLAT_BYTES:,} allowed", tensor=name
            )
        cuts = _strided.bounds(index, shape, f"{file.path}: tensor {name!r}")
        boxes, at = [], 0
        for ref in refs:
            box = [(0, dim) for dim in ref.shape]
            box[constant.axis] = (at, at + ref.shape[constant.axis])
            at += ref.shape[constant.axis]
            boxes.append(tuple(box))
        return _slices.stitch(refs[0].dtype, cuts, boxes, lambda n, inner: refs[n].read(file, inner))


def _whole(shape: tuple[int, ...], axis: int, extent: int) -> tuple[int, ...]:
    return (*shape[:axis], extent, *shape[axis + 1 :])


def _plain(body: Body, node: Node) -> str:
    """The name of a constant: the variable's, where the constant stands in place of the read."""
    plain = node.name.removesuffix("/read")
    return plain if plain and plain not in body.nodes else node.name


def _unused(body: Body) -> set[str]:
    """The nodes that no other node names."""
    used = {reference(name.removeprefix("^"))[0] for node in body.nodes.values() for name in node.inputs}
    return body.nodes.keys() - used


def _origin(body: Body, name: str) -> str | None:
    """The node, or the argument, that an input comes from, seen through what passes values on."""
    at = reference(name)[0]
    for _ in range(_MAX_CHAIN):
        node = body.nodes.get(at)
        if node is None or node.op not in _THROUGH or not node.inputs or node.inputs[0].startswith("^"):
            return at
        at = reference(node.inputs[0])[0]
    return None


class _Reads:
    """The constants that are read as variables."""

    def __init__(self, graph: GraphDef) -> None:
        self._graph = graph
        self._read = {body.name: self._direct(body) for body in graph.bodies()}
        if graph.functions:
            self._through_calls()
        self.found = any(
            node.op == "Const" and self.has(body, node) for body in graph.bodies() for node in body.nodes.values()
        )

    def has(self, body: Body, node: Node) -> bool:
        """Whether a constant of a body is read as a variable, or stands in place of the read."""
        if node.name in self._read[body.name]:
            return True
        return _plain(body, node) != node.name or _READ.fullmatch(node.name.rpartition("/")[2]) is not None

    def _through_calls(self) -> None:
        """What a function's argument is read as, the input of its caller is read as too."""
        calls = {body.name: (body, self._calls(body)) for body in self._graph.bodies()}
        callers: dict[str, set[str]] = {}
        for name, (_, called) in calls.items():
            for callee, _ in called:
                callers.setdefault(callee.name, set()).add(name)
        waiting, steps = deque(calls), 0
        while waiting and steps < _MAX_STEPS:
            body, called = calls[waiting.popleft()]
            read = self._read[body.name]
            before = len(read)
            for callee, inputs in called:
                steps += 1 + len(inputs)
                for argument, name in zip(callee.arguments, inputs, strict=False):
                    if argument in self._read[callee.name]:
                        origin = _origin(body, name)
                        if origin is not None:
                            read.add(origin)
            if len(read) > before:
                waiting.extend(callers.get(body.name, ()))

    def _direct(self, body: Body) -> set[str]:
        found = set()
        for node in body.nodes.values():
            if node.op not in ("Identity", "ReadVariableOp") or not node.inputs:
                continue
            if node.name.endswith("/read"):
                source = body.nodes.get(reference(node.inputs[0])[0])
                if source is not None and node.name == f"{source.name}/read":
                    found.add(source.name)
            elif _READ.fullmatch(node.name.rpartition("/")[2]):
                origin = _origin(body, node.inputs[0])
                if origin is not None:
                    found.add(origin)
        return found

    def _calls(self, body: Body) -> list[tuple[Body, list[str]]]:
        found = []
        functions = self._graph.functions
        for node in body.nodes.values():
            if functions and (node.op in CALLS or node.op in functions):
                inputs = [name for name in node.inputs if not name.startswith("^")][CALLS.get(node.op, 0) :]
                names = {node.op} if node.op in functions else set(self._graph.callees(node).values())
                found += [(functions[name], inputs) for name in names]
        return found
