"""What a layout table becomes: a :class:`Layout` is one flavour of one cell kind; its forms are its spellings.

Promise: immutable data, consistent in itself once :func:`weightport.layouts.table.parse_layout` has read it. Limit:
nothing here reads a table or a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weightport.errors import LayoutError
from weightport.layouts.notation import PARAMETERS, Packing, Parameters

#: The gates of each cell kind that the algebra knows by meaning. Other kinds name their own.
#: lstm: input, forget, candidate (TF's j, Keras' c), output. gru: reset, update (1 keeps the old state), candidate.
KIND_GATES: Mapping[str, tuple[str, ...]] = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn": ("h",)}
#: Parameters that exist for some gates only.
PARAM_GATES: Mapping[tuple[str, str], tuple[str, ...]] = {("lstm", "wp"): ("i", "f", "o")}
#: Kinds that are another kind whose recurrent matrices are diagonal, and that kind. Their parameter :data:`DIAGONAL`
#: holds the diagonals of ``wt``. Before a diagonal matrix a reset gate does what it does after it.
#: tensorflow/contrib/rnn/python/ops/rnn_cell.py: IndRNNCell.call, IndyGRUCell.call, IndyLSTMCell.call.
DIAGONAL_KINDS: Mapping[str, str] = {"indy_lstm": "lstm", "indy_gru": "gru", "ind_rnn": "rnn"}
DIAGONAL = "wd"

#: What a name template may hold in braces.
PLACEHOLDERS = ("scope", "gate", "GATE", "layer", "direction")


@dataclass(frozen=True, slots=True)
class Row:
    """One stored tensor of a form: its name template, its packing, and whether a cell may lack it."""

    template: str
    packing: Packing
    optional: bool

    @property
    def per_gate(self) -> bool:
        """True where the gate stands in the name."""
        return "{gate}" in self.template or "{GATE}" in self.template


@dataclass(frozen=True, slots=True)
class Form:
    """One concrete spelling and packing of a layout.

    Attributes:
        rows: what is stored.
        reset: of a GRU: ``before`` or ``after`` the matrix product; None where it is unknown.
        forget_bias: what the framework adds to the forget gate at run time unless it was told otherwise.
        cells: the names that the framework gives to the cell's own scope; empty where the tensors' names tell enough.
        absent: names of tensors that fuller forms have, under the names of this one: where they are, it isn't.
    """

    rows: tuple[Row, ...]
    reset: str | None = None
    forget_bias: float = 0.0
    cells: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def params(self) -> frozenset[str]:
        """The canonical parameters that this form can store."""
        return frozenset(t.param for row in self.rows for t in row.packing.terms)

    @property
    def packed(self) -> bool:
        """Whether one vector holds the whole cell, all layers and directions: its length does not tell the sizes."""
        return any(row.packing.runs for row in self.rows)

    @property
    def anchor(self) -> Row:
        """The first tensor that no cell lacks."""
        return next(row for row in self.rows if not row.optional)

    @property
    def joined(self) -> bool:
        """Whether its tensors' names continue the last part of the cell's scope."""
        return self.anchor.template.startswith("{scope}")


@dataclass(frozen=True, slots=True)
class Layout:
    """A flavour of a cell kind.

    Attributes:
        name: ``KIND.FLAVOUR``.
        gates: the gates in the order in which they run along a gate axis.
        gate_names: canonical gate -> its text in tensor names.
        complemented: gates stored with the opposite meaning: their weights and biases change sign.
        derived: gates that are not stored but follow from another one: ``{"i": "~f"}`` for coupled gates.
        parameters: every parameter, canonical and of the layout's own, and its axes.
        forget_gates: the gates to which a form's ``forget_bias`` is added.
        forms: every spelling and packing, the preferred one first.
        activation, recurrent_activation: what the framework uses by default; a file or a mapping may say otherwise.
        fixed: what the framework always has so: ``activation``, ``recurrent_activation``, ``forget_bias``, or no
            ``cell_clip``, ``proj_clip``.
        inner: a scope that may stand between a layer's scope and its tensors (``lstm/lstm_cell/kernel``).
        separator: what separates scopes in names that a mapping makes: ``/``, or ``.``. Templates have ``/``.
        directions: ``forward`` / ``backward`` -> text in names.
        suffixes: several cells of one scope are told apart by ``_1``, ``_2`` at the end of the tensors' names.
        uniform: where names tell layers, these are one module: all of as many units, each fed by the one before it.
    """

    name: str
    kind: str
    gates: tuple[str, ...]
    forms: tuple[Form, ...]
    gate_names: Mapping[str, str] = field(default_factory=dict)
    complemented: frozenset[str] = frozenset()
    derived: Mapping[str, str] = field(default_factory=dict)
    parameters: Parameters = field(default_factory=lambda: PARAMETERS)
    forget_gates: tuple[str, ...] = ()
    activation: str | None = None
    recurrent_activation: str | None = None
    fixed: frozenset[str] = frozenset()
    inner: str = ""
    separator: str = "/"
    directions: Mapping[str, str] = field(default_factory=dict)
    suffixes: bool = False
    uniform: bool = False
    title: str = ""
    source: tuple[str, ...] = ()

    @property
    def diagonal(self) -> bool:
        """Whether it stores the diagonals of recurrent matrices that are zero elsewhere."""
        return self.kind in DIAGONAL_KINDS and self.parameters.get(DIAGONAL) == ("gate", "unit")

    @property
    def family(self) -> str:
        """The kind that all layouts it converts to and from belong to: its own, or the one that it is a case of."""
        return DIAGONAL_KINDS[self.kind] if self.diagonal else self.kind

    def related(self, other: Layout) -> bool:
        """Whether there may be a conversion between the two."""
        return self.kind == other.kind or self.family == other.family

    @property
    def packed(self) -> bool:
        """Whether its cells are one vector each (:attr:`Form.packed`)."""
        return any(form.packed for form in self.forms)

    def gate_order(self, param: str, gates: Sequence[str] | None) -> tuple[str, ...]:
        """The gates that a term of ``param`` holds, in stored order."""
        if gates is not None:
            return tuple(gates)
        limited = PARAM_GATES.get((self.kind, param))
        return tuple(g for g in self.gates if limited is None or g in limited)

    def with_gates(self, gates: Sequence[str] | Mapping[str, str]) -> Layout:
        """This layout with the gates in another order, or under other names (a rule's override).

        The order holds in every tensor with several gates, also where the layout's own table names them one by one.
        A list keeps the names; gates without ``~`` keep the signs that the layout has.

        Raises:
            LayoutError: not the same gates.
        """
        order, names, complemented = read_gates(gates, f"layout {self.name}: gates")
        if set(order) != set(self.gates):
            raise LayoutError(f"layout {self.name}: gates {list(order)} are not {sorted(self.gates)}")
        changed = replace(
            self,
            gates=order,
            gate_names={**self.gate_names, **names},
            complemented=complemented or self.complemented,
            forms=tuple(replace(f, rows=tuple(_reordered(row, order) for row in f.rows)) for f in self.forms),
        )
        problems = [sign_problem(changed.kind, changed.complemented), name_problem(changed)]
        problems += [what for form in changed.forms for _, what in form_problems(changed, form)]
        for problem in filter(None, problems):
            raise LayoutError(f"layout {self.name}: {problem}")
        return changed


def _reordered(row: Row, order: Sequence[str]) -> Row:
    """The row with the gates that its terms name in that order, parameter by parameter."""
    terms = list(row.packing.terms)
    for param in {t.param for t in terms}:
        named = [g for t in terms if t.param == param for g in t.gates or ()]
        queue = iter(sorted(named, key=order.index))
        for number, term in enumerate(terms):
            if term.param == param and term.gates is not None:
                terms[number] = replace(term, gates=tuple(next(queue) for _ in term.gates))
    return replace(row, packing=replace(row.packing, terms=tuple(terms)))


def read_gates(value: Any, where: str) -> tuple[tuple[str, ...], dict[str, str], frozenset[str]]:
    """The gates of ``gates:`` in order, their texts in names where it gives them, and those with ``~``.

    Raises:
        LayoutError: no list or mapping, or a gate that is no name or stands twice.
    """
    if isinstance(value, Mapping):
        keys, texts = [str(k) for k in value], list(value.values())
        if any(isinstance(text, bool) or not isinstance(text, str | int) for text in texts):
            raise LayoutError(f"{where}: expected gate -> name, found {dict(value)!r}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        keys, texts = [str(k) for k in value], []
    else:
        raise LayoutError(f"{where}: expected a list of gates or a mapping gate -> name, found {value!r}")
    order = tuple(k.removeprefix("~") for k in keys)
    if not order or len(set(order)) != len(order) or not all(g.isidentifier() for g in order):
        raise LayoutError(f"{where}: {list(order)} must name each gate once")
    names = {gate: str(text) for gate, text in zip(order, texts, strict=False)}
    return order, names, frozenset(k[1:] for k in keys if k.startswith("~"))


# Consistency ---------------------------------------------------------------------------------------------------------

#: Gates with an activation that is no sigmoid: 1 - act(x) is not act(-x).
_CANDIDATES = {"lstm": "g", "gru": "n", "rnn": "h"}


def sign_problem(kind: str, complemented: frozenset[str]) -> str:
    """What is wrong with the complemented gates; empty if nothing is."""
    candidate = _CANDIDATES.get(kind)
    if candidate in complemented:
        return f"the candidate {candidate} has no complement: only gates with a sigmoid have one"
    return ""


def name_problem(layout: Layout) -> str:
    """What is wrong with the names of the gates: two that are spelled alike; empty if nothing is."""
    texts = [layout.gate_names.get(g, g) for g in layout.gates]
    twice = next((t for t in texts if texts.count(t) > 1), None)
    return f"two gates are called {twice!r} in names" if twice is not None else ""


def form_problems(layout: Layout, form: Form) -> Iterator[tuple[Row | None, str]]:
    """What is wrong with a form as a whole, and the row to blame if it is one: two tensors of one name, a gate stored
    twice or not at all, a layer that stands in some names only.
    """
    seen: dict[str, Row] = {}
    held: dict[tuple[str, str], int] = {}
    for row in form.rows:
        for text, gates in _spelled_gates(layout, row):
            if text in seen:
                yield row, f"two tensors are called {text!r}"
            seen[text] = row
            for param, gate in gates:
                held[param, gate] = held.get((param, gate), 0) + 1
    for (param, gate), count in held.items():
        if count > 1:
            yield None, f"{param}" + (f" of gate {gate}" if gate else "") + f" is stored {count} times"
    for param in ("wx", "wt") if layout.kind in KIND_GATES else ():
        lacking = [g for g in layout.gates if (param, g) not in held]
        if lacking:
            yield None, f"{param} of gate {lacking[0]} is stored nowhere"
    if form.packed and (len(form.rows) > 1 or form.rows[0].optional or "{" in form.rows[0].template):
        yield None, "a vector that holds all layers and directions is the only tensor of its cell"
    if layout.packed and not form.packed:
        yield None, "one vector holds all layers and directions in every variant, or in none"
    for index in ("layer", "direction"):
        places = {_place(row, n, index) for row in form.rows for n in range(len(row.packing.terms))}
        if len(places) > 1 or "both" in places:
            yield None, f"the {index} must stand in the name of every tensor, or in the shape of every one, or nowhere"


def _place(row: Row, number: int, index: str) -> str:
    named, axis = f"{{{index}}}" in row.template, index in row.packing.terms[number].names()
    return "both" if named and axis else "name" if named else "shape" if axis else ""


def _spelled_gates(layout: Layout, row: Row) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each tensor of a row under a name that stands for all layers and directions, with what it holds."""
    first = row.packing.terms[0]
    gates: tuple[str | None, ...] = layout.gate_order(first.param, first.gates) if row.per_gate else (None,)
    for gate in gates:
        name = gate and layout.gate_names.get(gate, gate)
        text = row.template.replace("{gate}", name or "").replace("{GATE}", (name or "").upper())
        holds = []
        for term in row.packing.terms:
            if "gate" not in layout.parameters[term.param]:
                holds.append((term.param, ""))
            elif gate is not None:
                holds.append((term.param, gate))
            else:
                order = layout.gate_order(term.param, term.gates)
                holds.extend((term.param, g) for g in (order if "gate" in term.names() else order[:1]))
        yield text, holds
