"""RNN cells of an ONNX model: which constants its LSTM, GRU and RNN nodes take as weights, and what the nodes say.

The weights of a node are named after it: ``encoder/LSTM/W``, ``.../R``, ``.../B`` and ``.../P`` for what the node
``/encoder/LSTM`` takes as its inputs of these names; exporters give them names that say nothing (``onnx::LSTM_123``).
Those that are called W, R and so on in a scope of their own keep their names. A node without a name is called ``LSTM``,
``LSTM_1``, ... Weights that the graph computes first (an exporter that does not fold constants cuts and joins
PyTorch's, gate by gate) are none of the node's own: they keep their names, and the node still says what it says of the
cell they belong to.

Promise: a fact is only what a node states, or the operator's default where it states nothing. Limit: a weight that is
handed to a function as an argument is not followed.

Sources: onnx/defs/rnn/defs.cc (inputs, attributes and their defaults),
onnxruntime/core/providers/cpu/rnn/rnn_helpers.cc (which activations take alpha and beta).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from weightport.formats._onnx_graph import Body, Constant, Model, Node, integer, pieces, text, texts
from weightport.formats._onnx_tensor import floats

#: operator -> the position of each weight among its inputs
ROLES: Mapping[str, Mapping[str, int]] = {
    "LSTM": {"W": 1, "R": 2, "B": 3, "P": 7},
    "GRU": {"W": 1, "R": 2, "B": 3},
    "RNN": {"W": 1, "R": 2, "B": 3},
}
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
# Activations with numbers: the defaults of alpha and beta, None where there is none.
_NUMBERS: Mapping[str, tuple[float | None, ...]] = {
    "affine": (None, None),
    "leakyrelu": (0.01,),
    "thresholdedrelu": (1.0,),
    "scaledtanh": (None, None),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.0,),
}
_SPELLED = {
    ("hardsigmoid", 0.2, 0.5): "hard_sigmoid",
    ("hardsigmoid", 0.166667, 0.5): "hard_sigmoid_6",
    ("elu", 1.0): "elu",
    ("affine", 1.0, 0.0): "linear",
}
_MAX_STEPS = 4096

Place = tuple[int, str]  # of a constant: its body's identity and its name there


class Cells:
    """The RNN nodes of a model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._nodes = [(body, node) for body in model.bodies for node in body.cells]
        self._producers: dict[int, dict[str, Node]] = {}
        self._reached: dict[Place, list[Node]] | None = None

    def names(self) -> dict[Place, str]:
        """The constants that are named after the node that takes them."""
        own = {c.body.title(v): (id(c.body), v) for body in self._model.bodies for v, c in body.constants.items()}
        named: dict[Place, str] = {}
        taken: set[str] = set()
        for body, node in self._nodes:
            found = {}
            for role, place in ROLES[node.op].items():
                value = node.inputs[place] if place < len(node.inputs) else ""
                constant = self._constant(body, value) if value else None
                if constant is not None:
                    found[role] = constant
                elif value:
                    break  # computed
            else:
                if "R" not in found or "W" not in found:
                    continue
                places = {role: (id(c.body), c.value) for role, c in found.items()}
                if any(place in named for place in places.values()):
                    continue  # the weights of an earlier node
                scope = self._scope(body, node, found, taken)
                wished = {place: f"{scope}/{role}" if scope else role for role, place in places.items()}
                if len(wished) == len(places) and all(own.get(n, p) == p for p, n in wished.items()):
                    named.update(wished)
        return named

    def _scope(self, body: Body, node: Node, found: Mapping[str, Constant], taken: set[str]) -> str:
        titles = {role: f"/{c.body.title(c.value)}" for role, c in found.items()}
        scopes = {t.removesuffix(f"/{role}") if t.endswith(f"/{role}") else None for role, t in titles.items()}
        own = scopes.pop() if len(scopes) == 1 else None
        if own or (own == "" and not node.name):
            return own.removeprefix("/")
        label = body.title(node.name or body.label(node))
        scope, number = label, 0
        while scope in taken:
            number += 1
            scope = f"{label}_{number}"
        taken.add(scope)
        return scope

    def _constant(self, body: Body, value: str) -> Constant | None:
        """The constant that a value is, itself or by another name."""
        for _ in range(64):
            found = body.constants.get(value)
            if found is not None:
                return found
            node = self._producer(body, value)
            if node is not None and node.op == "Identity" and node.inputs:
                value = node.inputs[0]
            elif node is None and body.outer is not None and value not in body.arguments:
                body = body.outer
            else:
                return None
        return None

    def _producer(self, body: Body, value: str) -> Node | None:
        made = self._producers.get(id(body))
        if made is None:
            nodes = (self._model.node(*span) for span in body.movers)
            made = self._producers[id(body)] = {out: node for node in nodes for out in node.outputs if out}
        return made.get(value)

    # Facts -----------------------------------------------------------------------------------------------------------

    def facts(self, places: Sequence[Place]) -> dict[str, Any]:
        """What the nodes that compute with all of these constants say, where they agree."""
        if self._reached is None:
            self._reached = {}
            for body, node in self._nodes:
                values = [node.inputs[p] for p in ROLES[node.op].values() if p < len(node.inputs)]
                for place in set(self._behind(body, values)):
                    self._reached.setdefault(place, []).append(node)
        nodes = Counter(id(node) for place in set(places) for node in self._reached.get(place, ()))
        common = [node for _, node in self._nodes if nodes[id(node)] == len(set(places))] if places else []
        said = [facts_of(self._model, node) for node in common]
        return {k: v for k, v in said[0].items() if all(other.get(k) == v for other in said)} if said else {}

    def _behind(self, body: Body, values: Iterable[str]) -> Iterator[Place]:
        """The constants that values are made of."""
        waiting = [(body, v) for v in values if v]
        seen: set[Place] = set()
        while waiting and len(seen) < _MAX_STEPS:
            at, value = waiting.pop()
            if (id(at), value) in seen:
                continue
            seen.add((id(at), value))
            if value in at.constants:
                yield id(at), value
                continue
            node = self._producer(at, value)
            if node is None and at.outer is not None and value not in at.arguments:
                waiting.append((at.outer, value))
            elif node is not None:
                waiting += [(at, v) for v in (node.inputs if node.op == "Concat" else node.inputs[:1]) if v]


def facts_of(model: Model, node: Node) -> dict[str, Any]:
    """What one node says, keys as in :meth:`weightport.tensors.Source.facts`.

    A cell that is no plain one is another function: ``variant`` says in what.
    """
    file = model.file
    direction = text(file, node, "direction", "forward").lower()
    count = 2 if direction == "bidirectional" else 1
    kinds = len(_ACTIVATIONS[node.op])
    given = texts(file, node, "activations") or _ACTIVATIONS[node.op] * count
    numbers = []
    for name in ("activation_alpha", "activation_beta"):
        numbers.append(floats(file, pieces(file, node, name, 7), 4, node.name).tolist())
    names = _activations(given, *numbers)
    facts: dict[str, Any] = {}
    variants = []
    per = [names[d * kinds : (d + 1) * kinds] for d in range(count)]
    if len(names) != kinds * count:
        variants.append(f"has {len(names)} activations")
    elif any(each != per[0] for each in per):
        variants.append(f"has other activations in each direction ({', '.join(names)})")
    else:
        if node.op != "RNN":
            facts["recurrent_activation"] = per[0][0]
        facts["activation"] = per[0][-1]
        if node.op == "LSTM" and per[0][1] != per[0][2]:
            variants.append(f"has the activation {per[0][1]} for its candidate and {per[0][2]} for its output")
    if node.op == "GRU":
        facts["reset_after"] = integer(file, node, "linear_before_reset", 0) != 0
    if node.op == "LSTM" and integer(file, node, "input_forget", 0):
        variants.append("has coupled input and forget gates (input_forget)")
    clip = [v for w, v, _ in pieces(file, node, "clip", 2) if w == 5]
    bound = floats(file, [(5, clip[-1], 0)], 4, node.name).item() if clip else 0.0
    if bound:
        variants.append(f"clips what its activations take to {bound:g}")
    if direction == "reverse":
        facts["go_backwards"] = True
    return {**facts, "variant": " and ".join(variants)} if variants else facts


def _activations(given: Sequence[str], alphas: Sequence[float], betas: Sequence[float]) -> list[str]:
    """The names that weightport has for them; with numbers in parentheses where they are not the usual ones."""
    rest = [iter(alphas), iter(betas)]
    found = []
    for name in (n.lower() for n in given):
        defaults = _NUMBERS.get(name, ())
        values = [next(more, default) for more, default in zip(rest, defaults, strict=False)]
        if any(v is None for v in values):
            found.append(name)
            continue
        numbers = tuple(round(float(v), 6) for v in values if v is not None)
        plain = f"{name}({', '.join(f'{n:g}' for n in numbers)})" if numbers else name
        found.append(_SPELLED.get((name, *numbers), plain))
    return found
