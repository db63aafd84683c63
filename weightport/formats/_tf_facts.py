"""What a TensorFlow graph computes with the weights of an RNN cell: forget bias, activations, clipping, reset mode.

Traced in the dataflow from the products with the cell's own weights, not read off the names of nodes:

- a *gate* is an activation of what follows linearly (sums, splits, layer normalisation) from such a product;
- the new state of an LSTM is ``gate * state + gate * gate``, its output ``gate * activation(clip(state))``; that of a
  GRU, UGRNN or coupled LSTM is ``u * state + (1 - u) * candidate``; a plain RNN's gate goes back into its own product;
- the forget bias is the sum of the constants that are added to the forget gate alone, between the product and the
  activation. It is 0 if that sum is made of products, weights and nothing else; otherwise it is not told;
- the order of an LSTM's gates is that of the parts of the one split that the four come from, a plain RNN has the one
  gate ``h``: where it is told, the weights are those of such a cell, whatever they are called;
- a GRU's reset gate acts before the product (``reset_after`` false) or on what comes out of it (true);
- the fused operations say it themselves (``LSTMBlockCell``, ``BlockLSTM``, ``BlockLSTMV2``, ``GRUBlockCell``, cuDNN's).

Promise: bounded on any graph, never an exception for a strange one; a fact that is not established is left out, and so
is one on which two uses of the same weights do not agree. Limit: cells written in other ways are not recognised.

Sources: tensorflow/python/ops/rnn_cell_impl.py, tensorflow/contrib/rnn, keras' recurrent layers, and
tensorflow/core/ops/ {rnn,cudnn_rnn}_ops.cc for the attributes' defaults, which writers leave out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from weightport.errors import FormatError
from weightport.formats._tf_dataflow import BRANCH, LOOP, Flow, TooComplex, Value
from weightport.formats._tf_gates import ACTIVATIONS, CLIPS, LINEAR, PARTS, SUMS, Gate, Gates, short
from weightport.formats.tf_graph import VARIABLES, GraphDef

_BLOCKS = {"LSTMBlockCell", "BlockLSTM", "BlockLSTMV2", "GRUBlockCell"}
_MAX_PEELED = 20

Place = tuple[str, str]


class GraphFacts:
    """Facts about the cells of one graph; its dataflow is made when the first is asked for."""

    def __init__(self, graph: GraphDef) -> None:
        self._graph = graph
        self._made: Flow | None = None
        self._too_complex = False
        self._keys: dict[str, set[Place]] | None = None

    def _flow(self) -> Flow:
        if self._made is None:
            if self._too_complex:
                raise TooComplex
            self._too_complex = True  # until it is made
            self._made = Flow(self._graph)
        return self._made

    def of(self, own: Iterable[Place], weights: Iterable[Place]) -> dict[str, Any]:
        """The facts of one cell, keys as in :meth:`weightport.tensors.Source.facts`.

        Args:
            own: function (empty for the main graph) and node of the cell's tensors.
            weights: the same for the other weights of the model.
        """
        try:
            flow = self._flow()
            mine = {(n, 0) for place in own for n in flow.places.get(place, ())}
            others = {(n, 0) for place in weights for n in flow.places.get(place, ())}
            return _agreed(_Cell(flow, mine, others).found()) if mine else {}
        except (TooComplex, FormatError):  # the latter in an attribute or constant that a fact would need
            return {}

    def saved(self) -> dict[str, set[Place]]:
        """Key in a checkpoint -> the variables that the graph's save operations, in functions too, store under it."""
        if self._keys is None:
            try:
                self._keys = _saved(self._flow())
            except (TooComplex, FormatError):
                self._keys = {}
        return self._keys


def _saved(flow: Flow) -> dict[str, set[Place]]:
    variables = {n: place for place, numbers in flow.places.items() for n in numbers if flow.ops[n] in VARIABLES}
    found: dict[str, set[Place]] = {}
    for number, op in enumerate(flow.ops):
        inputs = flow.inputs(number) if op == "SaveV2" else []
        node = flow.nodes[inputs[1][0]] if len(inputs) > 3 else None
        if node is not None and node.op == "Const":
            keys = flow.graph.const(node, node.name).read(flow.graph.file).reshape(-1)
            for key, (source, _) in zip(keys, inputs[3:], strict=False):
                if source in variables and isinstance(key, bytes):
                    found.setdefault(key.decode("utf-8", "backslashreplace"), set()).add(variables[source])
    return found


def _agreed(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts that no two uses of the cell contradict."""
    values: dict[str, list[Any]] = {}
    for facts in found:
        for key, value in facts.items():
            values.setdefault(key, []).append(value)
    return {key: said[0] for key, said in values.items() if all(other == said[0] for other in said)}


class _Cell(Gates):
    """A use of the weights, as a whole cell."""

    _output_gates: list[Value]

    def found(self) -> Iterator[Mapping[str, Any]]:
        """The facts of every use of the cell."""
        yield from self._fused()
        recurrent = False
        for total, one, two in self._updates():
            facts = self._lstm(total, one, two)
            if facts is not None:
                recurrent = True
                yield facts
        if not recurrent:
            yield from self._plain()

    # Fused operations ------------------------------------------------------------------------------------------------

    def _fused(self) -> Iterator[Mapping[str, Any]]:
        flow, graph = self.flow, self.flow.graph
        for number in {n for value in self.derived for n, _ in flow.users(value)}:
            node, op = flow.nodes[number], flow.ops[number]
            if node is None:
                continue
            facts: dict[str, Any] = {"activation": "tanh", "recurrent_activation": "sigmoid"}
            if op == "GRUBlockCell":
                yield {**facts, "reset_after": False}
            elif op in _BLOCKS:
                v2 = op == "BlockLSTMV2"
                bias = None if v2 else graph.attr_float(node, "forget_bias")
                facts["forget_bias"] = short(bias) if bias is not None else 0.0 if v2 else 1.0
                facts["gates"] = ["i", "f", "g", "o"] if v2 else ["i", "g", "f", "o"]
                clip = graph.attr_float(node, "cell_clip")
                clip = clip if clip is not None else 0.0 if v2 else 3.0
                yield {**facts, "cell_clip": short(clip)} if clip > 0 else facts
            elif op in ("CudnnRNN", "CudnnRNNV2", "CudnnRNNV3"):
                mode = graph.attr_text(node, "rnn_mode") or "lstm"
                buffer: dict[str, Any] = {}
                if flow.input((number, 0), 3) in self.own:  # not the weights that Keras makes one of
                    both = graph.attr_text(node, "direction") == "bidirectional"
                    buffer["cudnn"] = [mode.partition("_")[0], 2 if both else 1]
                if mode == "lstm":
                    yield {**facts, "forget_bias": 0.0, **buffer}
                elif mode == "gru":
                    yield {**facts, "reset_after": True, **buffer}
                elif mode in ("rnn_tanh", "rnn_relu"):
                    yield {"activation": mode.removeprefix("rnn_"), **buffer}

    # Cells of single operations --------------------------------------------------------------------------------------

    def _updates(self) -> Iterator[tuple[Value, Value, Value]]:
        """The sums of two products that gates take part in, with the two."""
        flow = self.flow
        scaled = {
            (number, 0) for value in self._activated() for number, _ in flow.users(value) if flow.ops[number] == "Mul"
        }
        sums = {number for value in scaled for number, _ in flow.users(value) if flow.ops[number] in SUMS}
        for number in sorted(sums):
            inputs = flow.inputs(number)
            if len(inputs) == 2 and all(flow.ops[value[0]] == "Mul" for value in inputs):
                yield (number, 0), inputs[0], inputs[1]

    def _activated(self) -> set[Value]:
        """The values of gates, their parts, and one minus them."""
        flow = self.flow
        start = [
            (number, 0)
            for value in self.linear
            for number, _ in flow.users(value)
            if flow.ops[number] in ACTIVATIONS or flow.ops[number] in CLIPS
        ]
        # A hard sigmoid is several operations: what follows from clipping by further ones is looked at too.
        more = flow.closure(start, frozenset({*PARTS, *CLIPS, "Sub", "RealDiv"}))
        scaled = {(n, 0) for v in more for n, _ in flow.users(v) if flow.ops[n] == "Mul" and self.gate((n, 0))}
        return more | flow.closure(scaled, frozenset({*PARTS, "Sub"}))

    def _forget_bias(self, gate: Gate, *, told: bool) -> dict[str, float]:
        """The constant that is added to the forget gate; ``told``: also where it is the absence of one."""
        terms = self.terms(gate.before)
        if terms.unknown or terms.shared:
            return {}
        if terms.constant is not None:
            return {"forget_bias": terms.constant}
        peepholes = all(self._is_peephole(value) for value in terms.others)
        return {"forget_bias": 0.0} if told and terms.products and peepholes else {}

    def _is_peephole(self, value: Value) -> bool:
        return self.flow.op(value) == "Mul" and any(v in self.derived for v in self.flow.inputs(value[0]))

    def _lstm(self, total: Value, one: Value, two: Value) -> Mapping[str, Any] | None:
        """The facts of a state update, or None if it is none."""
        for both, single in ((one, two), (two, one)):
            pair = [self.gate(v) for v in self.flow.inputs(both[0])]
            kept = [(v, self.gate(v)) for v in self.flow.inputs(single[0])]
            gates = [g for _, g in kept if g]
            if len(pair) != 2 or len(gates) != 1 or len(kept) != 2:
                continue
            forget = gates[0]
            # The candidate of a cell without activation is the sum itself.
            known = [g or self._bare(v) for g, v in zip(pair, self.flow.inputs(both[0]), strict=True)]
            if known[0] is None or known[1] is None:
                continue
            for gate, candidate in ((known[0], known[1]), (known[1], known[0])):
                if gate.value == forget.value and gate.complement != forget.complement:
                    return self._coupled(total, forget, candidate)
            if any(g.complement for g in (forget, *known) if g):
                continue
            candidates = [g for g in known if g and g.name != forget.name]
            if len(candidates) < 2:
                candidate = candidates[0] if candidates else known[1]
                other = known[1] if candidate is known[0] else known[0]
                return self._full(total, forget, candidate, other if candidates else None)
        return None

    def _bare(self, value: Value) -> Gate | None:
        return Gate(value, "linear", value) if value in self.linear else None

    def _full(self, total: Value, forget: Gate, candidate: Gate, added: Gate | None) -> Mapping[str, Any]:
        """``added``: the input gate, where it is told from the candidate."""
        facts: dict[str, Any] = {"recurrent_activation": forget.name, **self._forget_bias(forget, told=True)}
        facts |= self._outputs(total, forget, candidate, bare=candidate.name == "linear")[0]
        outputs = set(self._output_gates)
        if added is not None and len(outputs) == 1:
            gates = {"i": added.before, "f": forget.before, "g": candidate.before, "o": outputs.pop()}
            parts = {gate: self._part(before) for gate, before in gates.items()}
            splits = {part[0] for part in parts.values() if part}
            order = sorted(gates, key=lambda gate: (parts[gate] or (0, -1))[1])
            if len(splits) == 1 and [(parts[gate] or (0, -1))[1] for gate in order] == [0, 1, 2, 3]:
                facts["gates"] = order
        return facts

    def _part(self, value: Value) -> Value | None:
        """The part of a split that a sum is made of, beside what is no product with the weights."""
        for _ in range(_MAX_PEELED):
            op = self.flow.op(value)
            if op in ("Split", "SplitV"):
                return value
            linear = [source for source in self.flow.inputs(value[0]) if source in self.linear]
            if op not in SUMS or len(linear) != 1:
                return None
            value = linear[0]
        return None

    def _outputs(self, total: Value, forget: Gate, candidate: Gate, *, bare: bool) -> tuple[dict[str, Any], set[Value]]:
        """What the output of an LSTM tells, and the outputs."""
        flow = self.flow
        self._output_gates = []
        states = flow.closure([total], LINEAR | CLIPS)
        names, clips, outputs = set(), set(), set()
        for state in states:
            users = [(number, 0) for number, _ in flow.users(state)]
            activated = [(v, ACTIVATIONS[flow.op(v)]) for v in users if flow.op(v) in ACTIVATIONS]
            for value, name in [*activated, *([(state, "linear")] if bare else [])]:
                for number, _ in flow.users(value):
                    if flow.ops[number] != "Mul":
                        continue
                    gates = [self.gate(v) for v in flow.inputs(number) if v != value]
                    if len(gates) == 1 and gates[0] and gates[0].name == forget.name and not gates[0].complement:
                        names.add(name)
                        self._output_gates.append(gates[0].before)
                        clips.add(self._bound(state))
                        outputs.add((number, 0))
        facts: dict[str, Any] = {"activation": candidate.name} if names == {candidate.name} else {}
        for key, bounds in (("cell_clip", clips), ("proj_clip", self._projected(outputs))):
            if len(bounds) == 1 and None not in bounds:
                facts[key] = bounds.pop()
        return facts, outputs

    def _bound(self, value: Value) -> float | None:
        """The bound of a value that is clipped on both sides alike."""
        clipped = self.clipped(value) if self.flow.op(value) in CLIPS else None
        return clipped[1] if clipped and -clipped[0] == clipped[1] > 0 else None

    def _projected(self, outputs: set[Value]) -> set[float | None]:
        """How the products of outputs with the cell's own weights are clipped."""
        flow, bounds = self.flow, set()
        for value in outputs:
            for number, _ in flow.users(value):
                product = (number, 0)
                if product in self.products:
                    once = [(n, 0) for n, _ in flow.users(product) if flow.ops[n] in CLIPS]
                    twice = [(n, 0) for v in once for n, _ in flow.users(v) if flow.ops[n] in CLIPS]
                    for end in (*once, *twice):
                        clipped = self.clipped(end)
                        if clipped and clipped[2] == product:
                            bounds.add(self._bound(end))
        return bounds

    def _coupled(self, total: Value, forget: Gate, candidate: Gate) -> Mapping[str, Any]:
        """A GRU, a UGRNN, or an LSTM whose input gate is one minus its forget gate."""
        facts: dict[str, Any] = {"recurrent_activation": forget.name, **self._forget_bias(forget, told=False)}
        told, outputs = self._outputs(total, forget, candidate, bare=False)
        if outputs:
            return {**facts, **told}
        facts["activation"] = candidate.name
        terms = self.terms(candidate.before)
        after = any(self._is_reset(value, forget, linear=True) for value in terms.others)
        before = any(self._is_reset(v, forget, linear=False) for p in terms.products for v in self._operands(p))
        if after != before:
            facts["reset_after"] = after
        return facts

    def _is_reset(self, value: Value, update: Gate, *, linear: bool) -> bool:
        """Whether a value is a gate other than the update gate times what is, or is not, a product with weights."""
        inputs = self.flow.inputs(value[0])
        if self.flow.op(value) != "Mul" or len(inputs) != 2:
            return False
        for gate, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
            found = self.gate(gate)
            if found and found.value != update.value and self.gate(other) is None:
                return (other in self.linear) == linear
        return False

    def _operands(self, product: Value) -> Iterator[Value]:
        """What a product multiplies its weights with, and what that is put together from."""
        for value in self.flow.inputs(product[0]):
            if value not in self.derived:
                yield value
                if self.flow.op(value) in ("ConcatV2", "Concat"):
                    yield from self.flow.inputs(value[0])

    def _plain(self) -> Iterator[Mapping[str, Any]]:
        """A cell that is one activation, which its own product takes up again."""
        flow = self.flow
        for value in self.linear:
            for number, _ in flow.users(value):
                found = self.activation((number, 0))
                if found and found[1] == value and self._is_recurrent((number, 0), value):
                    yield {"activation": found[0], "gates": ["h"]}

    def _is_recurrent(self, gate: Value, before: Value) -> bool:
        """Whether an activation, or in an unrolled graph the one of the step before, is what its products multiply."""
        products = self.terms(before).products
        used = {v for product in products for v in self.flow.inputs(product[0]) if v in self.derived}
        for operand in (v for product in products for v in self._operands(product)):
            if self._follows(operand, gate):
                return True
            earlier = self.activation(operand)
            if earlier and earlier[1] in self.linear:
                others = self.terms(earlier[1]).products
                if used & {v for product in others for v in self.flow.inputs(product[0])}:
                    return True
        return False

    def _follows(self, value: Value, wanted: Value) -> bool:
        """Whether a value is a loop variable that takes the value of another next."""
        following = self.flow.input(value, 1) if self.flow.op(value) == LOOP else None
        waiting = [following] if following else []
        for _ in range(_MAX_PEELED):
            if not waiting:
                return False
            at = waiting.pop()
            if at == wanted:
                return True
            # Past the end of a sequence, the loop keeps the value.
            if self.flow.op(at) in ("Select", "SelectV2", "Merge", BRANCH):
                waiting += self.flow.inputs(at[0])
        return False
