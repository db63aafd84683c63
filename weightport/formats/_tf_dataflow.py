"""A TensorFlow graph as one flat dataflow: functions in place of their calls, loops as variables, reads passed over.

Every node that computes something is a number; a :data:`Value` is one of its outputs. What only passes a value on
(``Identity``, ``Enter``, ``Switch``, a variable's read, a call's argument, a loop variable that never changes) does not
appear: :meth:`Flow.inputs` and :meth:`Flow.users` lead from what computes to what computes. A loop variable that does
change is a node of the operation :data:`LOOP` with the inputs (first, next), the same for ``tf.while_loop`` of either
kind.

Promise: bounded, whatever the graph: at most :data:`MAX_NODES` nodes with :data:`MAX_LINKS` inputs and results after
the functions are put in place, and every walk visits a node once; a graph beyond that, or one that is not well formed,
is a :class:`TooComplex`. Limit: the conditions of loops and the branches of ``Case`` are not looked into; functions
that nothing in the main graph calls do not appear.

Sources: tensorflow/core/kernels/control_flow_ops.cc, tensorflow/core/framework/function.proto, tensorflow/core/ops/
functional_ops.cc.
"""

from __future__ import annotations

from collections.abc import Iterable

from weightport.formats.tf_graph import Body, GraphDef, Node, reference

#: A node's number, and which of its outputs.
Value = tuple[int, int]

#: The operations of nodes that stand for a loop variable, and for the result of a branch.
LOOP, BRANCH = "_Loop", "_Branch"
MAX_NODES = 300_000
#: Inputs of all those nodes, and results of calls.
MAX_LINKS = 600_000
# So many times what the file has, where that is less: functions that call functions twice are few bytes.
_TIMES, _FEW = 32, 10_000
_MAX_DEPTH = 40
_MAX_STEPS = 3_000_000
_PASS = {
    *("Identity", "Snapshot", "StopGradient", "PreventGradient", "CheckNumerics", "ReadVariableOp", "RefIdentity"),
    *("Enter", "RefEnter", "Exit", "RefExit", "NextIteration", "RefNextIteration", "Switch", "RefSwitch", "IdentityN"),
}
_MERGE = ("Merge", "RefMerge")
_LOOPS, _BRANCHES = ("While", "StatelessWhile"), ("If", "StatelessIf")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


class TooComplex(Exception):
    """The graph is beyond the bounds, or malformed: nothing can be said about it. Never leaves the formats."""


class Flow:
    """The dataflow of a graph, from its main body."""

    def __init__(self, graph: GraphDef) -> None:
        self.graph = graph
        self.ops: list[str] = []
        #: None for the nodes that stand for loop variables, branches and unknown arguments
        self.nodes: list[Node | None] = []
        #: (body, node) -> its numbers, one for each place that the function stands in
        self.places: dict[tuple[str, str], list[int]] = {}
        self._raw: list[list[Value]] = []
        self._results: dict[Value, Value] = {}
        self._resolved: dict[Value, Value] = {}
        self._users: dict[Value, list[tuple[int, int]]] | None = None
        self._used: dict[int, list[Value]] = {}
        self._unchanged: dict[int, bool] = {}
        self._callees: dict[int, dict[str, str]] = {}
        self._steps = self._links = 0
        nodes = [node for body in graph.bodies() for node in body.nodes.values()]
        links = sum(len(node.inputs) for node in nodes)
        self._most_nodes = min(MAX_NODES, max(_FEW, _TIMES * len(nodes)))
        self._most_links = min(MAX_LINKS, max(2 * _FEW, _TIMES * (len(nodes) + links)))
        self._put(graph.main, {}, 0)

    # Construction ----------------------------------------------------------------------------------------------------

    def _new(self, op: str, node: Node | None, inputs: list[Value]) -> int:
        if len(self.ops) >= self._most_nodes:
            raise TooComplex
        self.ops.append(op)
        self.nodes.append(node)
        self._raw.append(inputs)
        return len(self.ops) - 1

    def _put(self, body: Body, arguments: dict[str, Value], depth: int) -> dict[str, int]:
        """Put a body's nodes in place; returns their numbers by name."""
        if depth > _MAX_DEPTH:
            raise TooComplex
        numbers = {}
        for node in body.nodes.values():
            numbers[node.name] = self._new(node.op, node, [])
            self.places.setdefault((body.name, node.name), []).append(numbers[node.name])
        for node in body.nodes.values():
            for name in node.inputs:
                if not name.startswith("^"):
                    self._raw[numbers[node.name]].append(self._value(name, numbers, arguments))
        for node in body.nodes.values():
            if node.op in _LOOPS or node.op in _BRANCHES or node.op in _CALLS or node.op in self.graph.functions:
                self._call(node, numbers[node.name], depth + 1)
        return numbers

    def _value(self, name: str, numbers: dict[str, int], arguments: dict[str, Value]) -> Value:
        self._links += 1
        if self._links > self._most_links:
            raise TooComplex
        at, output = reference(name)
        if at in numbers:
            return numbers[at], output
        known = arguments.get(at)
        if known is None:  # an argument without an input, or a node that is not there
            known = arguments[at] = (self._new("_Unknown", None, []), 0)
        return known

    def _inside(self, name: str | None, inputs: list[Value], depth: int) -> list[Value]:
        """A function put in place: its results."""
        body = self.graph.functions.get(name or "")
        if body is None:
            return []
        arguments = dict(zip(body.arguments, inputs, strict=False))
        numbers = self._put(body, arguments, depth)
        return [self._value(result, numbers, arguments) for result in body.results]

    def _call(self, node: Node, number: int, depth: int) -> None:
        inputs = self._raw[number]
        if node.op in self.graph.functions:
            results = self._inside(node.op, inputs, depth)
        else:
            named = self._callees.get(node.start)
            if named is None:
                named = self._callees[node.start] = self.graph.callees(node)
            if node.op in _CALLS:
                results = self._inside(named.get("f"), inputs, depth)
            elif node.op in _LOOPS:
                variables: list[Value] = [(self._new(LOOP, None, [first]), 0) for first in inputs]
                following = self._inside(named.get("body"), variables, depth)
                for (variable, _), value in zip(variables, following, strict=False):
                    self._raw[variable].append(value)
                results = variables
            else:
                branches = [self._inside(named.get(key), inputs[1:], depth) for key in ("then_branch", "else_branch")]
                results = [(self._new(BRANCH, None, list(pair)), 0) for pair in zip(*branches, strict=False)]
        for output, value in enumerate(results):
            self._results[number, output] = value

    # Values ----------------------------------------------------------------------------------------------------------

    def op(self, value: Value) -> str:
        """The operation that computes a value; both kinds of loop variables are :data:`LOOP`."""
        op = self.ops[value[0]]
        return LOOP if op in _MERGE and self._is_loop(value[0]) else op

    def inputs(self, number: int) -> list[Value]:
        """What a node computes from."""
        return [self.resolve(value) for value in self._raw[number]]

    def input(self, value: Value, at: int) -> Value | None:
        """One input of the node that computes a value."""
        raw = self._raw[value[0]]
        return self.resolve(raw[at]) if at < len(raw) else None

    def users(self, value: Value) -> list[tuple[int, int]]:
        """The nodes that compute from a value, and at which input."""
        if self._users is None:
            self._users = {}
            for number, raw in enumerate(self._raw):
                if self._passes((number, 0)) is None:
                    for at, source in enumerate(raw):
                        self._users.setdefault(self.resolve(source), []).append((number, at))
            for number, output in self._users:
                self._used.setdefault(number, []).append((number, output))
        return self._users.get(value, [])

    def closure(self, start: Iterable[Value], ops: frozenset[str]) -> set[Value]:
        """The values, and all that follows from them through those operations alone."""
        found = set(start)
        waiting = list(found)
        while waiting:
            for number, _ in self.users(waiting.pop()):
                if self.ops[number] in ops:
                    for output in self._outputs(number):
                        if output not in found:
                            found.add(output)
                            waiting.append(output)
        return found

    def _outputs(self, number: int) -> list[Value]:
        """The outputs of a node that something uses, and the first."""
        return [*{(number, 0): None, **dict.fromkeys(self._used.get(number, ()))}]

    def resolve(self, value: Value) -> Value:
        """Where a value is computed, seen through everything that only passes it on."""
        trail = []
        seen = set()
        while value not in self._resolved:
            if value in seen:  # a cycle that nothing computes
                break
            seen.add(value)
            trail.append(value)
            self._step()
            following = self._passes(value)
            if following is None:
                break
            value = following
        value = self._resolved.get(value, value)
        for passed in trail:
            self._resolved[passed] = value
        return value

    def _passes(self, value: Value, depth: int = 0) -> Value | None:
        """The value that this one is, if its node only passes it on."""
        if value in self._results:
            return self._results[value]
        number, output = value
        op, raw = self.ops[number], self._raw[number]
        if op in _PASS:
            at = output if op == "IdentityN" else 0
            return raw[at] if at < len(raw) else None
        if (op == LOOP or op in _MERGE) and len(raw) == 2 and self._is_unchanged(number, depth):
            return raw[0]
        return None

    def _is_unchanged(self, number: int, depth: int) -> bool:
        """Whether a loop's next value is the loop variable itself."""
        known = self._unchanged.get(number)
        if known is None:
            self._unchanged[number] = False  # until it is known, for loops that lead into each other
            known = depth < _MAX_DEPTH and self._leads_back(number, depth)
            self._unchanged[number] = known
        return known

    def _leads_back(self, number: int, depth: int) -> bool:
        following: Value | None = self._raw[number][1]
        seen = set()
        while following is not None and following not in seen:
            if following[0] == number:
                return True
            seen.add(following)
            self._step()
            following = self._passes(following, depth + 1)
        return False

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise TooComplex

    def _is_loop(self, number: int) -> bool:
        """Whether a Merge is a loop variable, not the end of a condition."""
        raw = self._raw[number]
        return len(raw) == 2 and self.ops[raw[1][0]] in ("NextIteration", "RefNextIteration")
