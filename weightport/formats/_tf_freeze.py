"""Variables of a graph become constants: whatever read them reads the constant, without TensorFlow and without running.

Promise: every use of the variables is found before anything changes, in the main graph and in the functions that it
leads to, and those that are no reads are :meth:`Freezer.problems`. Reference variables and resource variables; handles
captured by loops, branches and functions of either control flow. What assigned the variable - its initializer, what a
Saver restores, an optimizer's step - does nothing any more, under the same name, so that all that waits for it works.
A function that now takes a value instead of a handle keeps its name if it is only ever called so; else a copy of it is
made. Limit: a write that is none of those is refused.

The live-graph counterpart is :mod:`weightport.targets._tf_surgery`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from weightport.errors import BudgetExceeded, Problem
from weightport.formats import _tf_uses as uses
from weightport.formats._tf_calls import call_sites, function_attrs, rename_call
from weightport.formats._tf_edit import (
    BodyEdits,
    GraphEdit,
    attr_types,
    const_true,
    shapes_value,
    type_value,
    types_value,
)
from weightport.formats._tf_function_edit import Returned, rewritten
from weightport.formats.tf_graph import VARIABLES, Body, Node, reference

_MAX_CHAIN = 64
# Functions times the ways in which they are called.
_MOST_WALKS = 100_000
_WRITTEN = "make it an initial value, or take a graph without that operation"


@dataclass(frozen=True, slots=True)
class Kind:
    """What comes instead of a reference or a handle: a value of this DataType and shape."""

    number: int
    shape: tuple[int, ...]
    is_ref: bool
    #: the variable, as users know it, and its node
    title: str = field(compare=False)
    node: str = field(compare=False, default="")


#: Argument -> what it is by now; as a tuple, so that it can be a key.
Arguments = tuple[tuple[int, Kind], ...]
#: Node and output.
_Ref = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Call:
    """A use of a function by a node: the attribute that names it (empty: the operation does), and which of several."""

    node: str
    attr: str
    number: int
    function: str
    arguments: Arguments


@dataclass(slots=True)
class _Walk:
    """What becomes of one body: node -> the inputs that are values now; and the operations that do nothing now."""

    body: Body
    inputs: dict[str, dict[int, Kind]] = field(default_factory=dict)
    idle: set[str] = field(default_factory=set)
    calls: dict[tuple[str, str, int], _Call] = field(default_factory=dict)
    returned: dict[int, Kind] = field(default_factory=dict)


class Freezer:
    """Makes constants of variables.

    Args:
        edit: the graph that changes.
        variables: node of a variable in the main graph -> what it becomes.
        initializers: node of a variable -> the operation that initializes it.
        roots: function -> the arguments that are handles of these variables when it is called from outside the graph;
            of the functions that are called from outside without any, too (with none).
    """

    def __init__(
        self,
        edit: GraphEdit,
        variables: Mapping[str, Kind],
        initializers: Mapping[str, str],
        roots: Mapping[str, Mapping[int, Kind]] | None = None,
    ) -> None:
        self.edit, self.graph = edit, edit.graph
        self._variables, self._initializers = variables, set(initializers.values())
        self._roots = roots or {}
        self._walks: dict[tuple[str, Arguments], _Walk] = {}
        self._open: list[str] = []
        self._problems: dict[Problem, None] = {}
        self._users: dict[str, dict[str, list[tuple[Node, int, int]]]] = {}
        self._shared()
        self._main = self._walk(self.graph.main, {(name, 0): kind for name, kind in variables.items()})
        for function, arguments in self._roots.items():
            if arguments and function in self.graph.functions:
                self._enter(function, dict(arguments), None)

    def problems(self) -> list[Problem]:
        """Every use of the variables that stands in the way. Nothing was changed to find them."""
        return list(self._problems)

    def operate(self) -> set[str]:
        """Change the graph. The variables' nodes themselves are left to the caller.

        Returns:
            the nodes of the main graph that do nothing any more.
        """
        names = self._names()
        self._apply(self._main, self.edit.main, names)
        for (function, arguments), walk in self._walks.items():
            edits = self.edit.variant(walk.body)
            renamed = self._apply(walk, edits, names)
            name = names[function, arguments]
            made = rewritten(self.graph, edits, name, dict(arguments), Returned(walk.returned, renamed))
            if name == function:
                self.edit.functions[name] = made
            else:
                self.edit.new_functions.append(made)
        return set(self._main.idle)

    # Following the handles -------------------------------------------------------------------------------------------

    def _shared(self) -> None:
        """A second node that holds the same variable would go on being one."""
        by_name: dict[tuple[str, str], str] = {}
        for name in self._variables:
            by_name.setdefault(self._identity(self.graph.main.nodes[name]), name)
        for body in self.graph.bodies():
            for node in body.nodes.values():
                holder = by_name.get(self._identity(node)) if node.op in VARIABLES else None
                if holder is not None and (body.name or node.name != holder):
                    what = f"{node.op} {body.title(node.name)!r} holds it, too, by its shared name"
                    self._problem(self._variables[holder], what, "make it an initial value")

    def _identity(self, node: Node) -> tuple[str, str]:
        shared = self.graph.attr_text(node, "shared_name") or node.name
        return self.graph.attr_text(node, "container") or "", shared

    def _consumers(self, body: Body) -> dict[str, list[tuple[Node, int, int]]]:
        """Node or argument -> who takes it, as which input, and which output that is."""
        found = self._users.get(body.name)
        if found is None:
            found = self._users[body.name] = {}
            for node in body.nodes.values():
                for position, given in enumerate(node.inputs):
                    if not given.startswith("^"):
                        name, output = reference(given)
                        found.setdefault(name, []).append((node, position, output))
        return found

    def _walk(self, body: Body, handles: dict[_Ref, Kind]) -> _Walk:
        walk = _Walk(body)
        consumers = self._consumers(body)
        todo = deque(handles.items())
        while todo:
            (name, output), kind = todo.popleft()
            for node, position, taken in consumers.get(name, ()):
                if taken == output and position not in walk.inputs.get(node.name, ()):
                    for ref in self._use(walk, node, position, kind):
                        if ref not in handles:
                            handles[ref] = kind
                            todo.append((ref, kind))
        for name, inputs in walk.inputs.items():
            node = body.nodes[name]
            if node.op in self.graph.functions or node.op in uses.CALLERS:
                self._call(walk, node, inputs)  # only now are all of its inputs known
        for number, result in enumerate(body.results):
            ref = reference(result)
            if ref in handles:
                walk.returned[number] = handles[ref]
        return walk

    def _use(self, walk: _Walk, node: Node, position: int, kind: Kind) -> Iterator[_Ref]:
        """Take note of a use. Yields the outputs of the node that are the handle, too."""
        op, name = node.op, node.name
        if kind.is_ref and not uses.takes_reference(op, position):
            return
        first = position == 0
        if first and self._falls_away(walk.body, node, kind):
            walk.idle.add(name)
            if self._is_taken(walk.body, name):
                if op != "Assign":
                    self._no_read(kind, walk.body, node)
                else:  # its output is the variable: an Identity gives that, too
                    walk.idle.discard(name)
                    walk.inputs.setdefault(name, {})[0] = kind
                    yield name, 0
            return
        known = first and (op in uses.ASKS or (op in uses.READS if not kind.is_ref else False) or op in uses.PASSES)
        if known or (kind.is_ref and op in uses.REF_PASSES and (first or op == "RefMerge")):
            if op == "ResourceGather" and self.graph.attr_number(node, "batch_dims"):
                self._problem(kind, f"{self._title(walk.body, node)} has batch dimensions", "make it an initial value")
            walk.inputs.setdefault(name, {})[position] = kind
            if op in uses.PASSES or op in uses.REF_PASSES:
                yield name, 0
                if op.endswith("Switch"):
                    yield name, 1
            return
        if not kind.is_ref and self._is_call(node, position):
            walk.inputs.setdefault(name, {})[position] = kind
            if op in uses.LOOPS:
                yield name, position
            return
        self._no_read(kind, walk.body, node)

    def _falls_away(self, body: Body, node: Node, kind: Kind) -> bool:
        """Whether what the node does has no meaning for a constant."""
        if node.op in uses.NEEDLESS or uses.is_update(node.op):
            return True
        if node.op in uses.ASSIGNS and not body.name and node.name in self._initializers:
            return True
        if node.op in uses.ASSIGNS and len(node.inputs) > 1 and self._restored(body, node.inputs[1]):
            return True
        writes = kind.is_ref or node.op not in uses.READS.keys() | uses.PASSES | uses.ASKS
        return writes and not body.name and uses.in_update_of(node.name, kind.node)

    def _restored(self, body: Body, given: str) -> bool:
        for _ in range(_MAX_CHAIN):
            node = body.nodes.get(reference(given)[0])
            if node is None or node.op in uses.RESTORES:
                return node is not None
            if node.op != "Identity" or not node.inputs:
                return False
            given = node.inputs[0]
        return False

    def _is_taken(self, body: Body, name: str) -> bool:
        return bool(self._consumers(body).get(name)) or any(reference(result)[0] == name for result in body.results)

    def _no_read(self, kind: Kind, body: Body, node: Node) -> None:
        title = self._title(body, node)
        if uses.is_update(node.op) or "Assign" in node.op or "Scatter" in node.op or "CountUpTo" in node.op:
            self._problem(kind, f"{title} writes it", _WRITTEN)
        else:
            self._problem(kind, f"{title} uses it in a way that is no read", "make it an initial value")

    @staticmethod
    def _title(body: Body, node: Node) -> str:
        return f"{node.op} {body.title(node.name)!r}"

    def _problem(self, kind: Kind, what: str, hint: str) -> None:
        self._problems[Problem(f"variable {kind.title!r}", f"cannot become a constant: {what}", hint)] = None

    # Functions -------------------------------------------------------------------------------------------------------

    def _is_call(self, node: Node, position: int) -> bool:
        if node.op in self.graph.functions:
            return True
        return node.op in uses.CALLERS and position >= uses.CALLERS[node.op][1]

    def _call(self, walk: _Walk, node: Node, inputs: Mapping[int, Kind]) -> None:
        if node.op in self.graph.functions:
            attrs: tuple[str, ...] = ("",)
            first = 0
        else:
            _, first, attrs = uses.CALLERS[node.op]
        arguments = {position - first: kind for position, kind in inputs.items()}
        for attr in attrs:
            for number, function in self._called(node, attr):
                title = self._title(walk.body, node)
                entered = self._enter(function, arguments, title)
                if entered is None:
                    continue
                key = tuple(sorted(arguments.items()))
                walk.calls[node.name, attr, number] = _Call(node.name, attr, number, function, key)
                if entered.returned != (arguments if attr == "body" else {}):
                    kind = next(iter(arguments.values()))
                    self._problem(kind, f"{title} returns it", "make it an initial value")

    def _called(self, node: Node, attr: str) -> list[tuple[int, str]]:
        """The functions that an attribute names; the operation itself, where the attribute is empty."""
        if not attr:
            return [(0, node.op)]
        return [(number, name) for key, number, name in function_attrs(self.graph, node) if key == attr]

    def _enter(self, function: str, arguments: Mapping[int, Kind], caller: str | None) -> _Walk | None:
        """The walk through a function that is given values."""
        kind = next(iter(arguments.values()))
        body = self.graph.functions.get(function)
        deep = len(self._open) >= self.graph.budget.depth
        if body is None or function in self._open or deep or max(arguments) >= len(body.arguments):
            why = "calls itself" if function in self._open else "is not in the graph, or takes fewer arguments"
            why = f"is more than {len(self._open)} functions deep" if deep else why
            self._problem(kind, f"{caller or 'what is outside'} hands it to {function!r}, which {why}", "")
            return None
        key = function, tuple(sorted(arguments.items()))
        if key not in self._walks:
            if len(self._walks) >= _MOST_WALKS:
                raise BudgetExceeded(
                    self.graph.path, f"its functions call each other in more than {_MOST_WALKS:,} ways"
                )
            self._open.append(function)
            made = self._walk(body, {(body.arguments[n], 0): kind for n, kind in arguments.items()})
            self._open.pop()
            self._walks[key] = made
        return self._walks[key]

    def _names(self) -> dict[tuple[str, Arguments], str]:
        """What every changed function is called: as before, unless that is called unchanged, too."""
        if not self._walks:
            return {}
        variants: dict[str, list[Arguments]] = {}
        for function, arguments in self._walks:
            variants.setdefault(function, []).append(arguments)
        plain = {function for function, arguments in self._roots.items() if not arguments} & variants.keys()
        sites = [(body.name, site) for body in self.graph.bodies() for site in call_sites(self.graph, body)]
        walks: dict[str, list[_Walk]] = {"": [self._main]}
        for (function, _), walk in self._walks.items():
            walks.setdefault(function, []).append(walk)
        growing = True
        while growing:
            growing = False
            for caller, (node, attr, number, function) in sites:
                if function not in variants or function in plain:
                    continue
                unchanged = caller not in walks or caller in plain
                if unchanged or any((node, attr, number) not in walk.calls for walk in walks[caller]):
                    plain.add(function)
                    growing = True
        names: dict[tuple[str, Arguments], str] = {}
        taken = set(self.graph.functions)
        for function, found in variants.items():
            for count, arguments in enumerate(found):
                name = function
                if function in plain or len(found) > 1:
                    name = f"{function}_pretrained_{count}"
                    while name in taken:
                        name += "_"
                    taken.add(name)
                names[function, arguments] = name
        return names

    # Changing --------------------------------------------------------------------------------------------------------

    def _apply(self, walk: _Walk, edits: BodyEdits, names: Mapping[tuple[str, Arguments], str]) -> dict[str, str]:
        """Change a body's nodes. Returns the outputs that are called otherwise now, inside a function."""
        renamed: dict[str, str] = {}
        for name in walk.idle:
            edit = edits.edit(name)
            edit.becomes("NoOp", [i for i in edit.inputs if i.startswith("^")], bare=True)
        for name, inputs in walk.inputs.items():
            edit = edits.edit(name)
            kind = next(iter(inputs.values()))
            if edit.op in uses.ASKS:
                edit.becomes("Const", [i for i in edit.inputs if i.startswith("^")], const_true(), bare=True)
            elif edit.op in uses.READS:
                op, attr = uses.READS[edit.op]
                if edit.op == "ReadVariableOp" and walk.body.name:
                    renamed[f"{name}:value:0"] = f"{name}:output:0"
                gone = dict.fromkeys(("_class", "dtype", "batch_dims"))
                edit.becomes(op, attrs={**gone, attr: type_value(kind.number)})
            elif edit.op == "Assign":
                kept = [edit.inputs[0], *(i for i in edit.inputs if i.startswith("^"))]
                edit.becomes("Identity", kept, {"T": type_value(kind.number)}, bare=True)
            elif edit.op in uses.REF_PASSES:
                edit.becomes(uses.REF_PASSES[edit.op])
            elif edit.op in uses.PASSES:
                edit.becomes(edit.op, attrs={"_class": None, "_output_shapes": None, "T": type_value(kind.number)})
            else:
                self._retype(edits, name, inputs)
        for call in walk.calls.values():
            rename_call(self.graph, edits, (call.node, call.attr, call.number), names[call.function, call.arguments])
        for name in edits.body.nodes if renamed else ():
            given = edits.inputs(name)
            if any(i in renamed for i in given):
                edits.edit(name).inputs = [renamed.get(i, i) for i in given]
        return renamed

    def _retype(self, edits: BodyEdits, name: str, inputs: Mapping[int, Kind]) -> None:
        """Give a caller the types of its inputs."""
        edit = edits.edit(name)
        edit.becomes(edit.op, attrs=dict.fromkeys(("_class", "_read_only_resource_inputs", "_output_shapes")))
        if edit.op not in uses.CALLERS:
            return
        attr, first, _ = uses.CALLERS[edit.op]
        types = attr_types(self.graph, edit.node, attr)
        for position, kind in inputs.items():
            if position - first < len(types):
                types[position - first] = kind.number
        edit.becomes(edit.op, attrs={attr: types_value(types)})
        if edit.op in uses.LOOPS:
            # What it says of the loop's own shapes would be a handle's: without them they are inferred.
            edit.becomes(edit.op, attrs={"output_shapes": shapes_value([])})
