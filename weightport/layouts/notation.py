"""The layout notation: how the canonical parameters of an RNN cell are packed into one stored tensor.

``wx[input (gate unit)]`` says: the stored tensor has two axes; the first runs over inputs, the second over gates and,
inside each gate, over units. A parenthesis composes axes in row-major order, as in einops. ``{r z}`` after the
parameter restricts and orders the gates; ``as [input unit]`` says that the block's bytes, in C order, are declared with
that other shape (cuDNN weights in Keras files). A list of terms is a concatenation, on the first axis on which the
terms differ, else on the last; ``{concat: AXIS, of: [...]}`` names the axis. ``{runs: [[...], [...]]}`` is one vector
for all layers and directions: each list stands once for each of them, one list after the other.

A table may declare parameters of its own beside the canonical ones, with any axes. An axis with a prime (``unit'``) is
another one of the same size.

Promise: parsing is linear and every mistake is a :class:`LayoutError` that quotes the text. Limit: an axis that is
indexed (gate, layer, direction) stands at the outer or inner end of its parenthesis, so that every block is a slice.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightport.errors import LayoutError, closest

#: The canonical parameters and the axes each of them has beside ``layer`` and ``direction``.
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "wx": ("gate", "input", "unit"),
    "wt": ("gate", "hidden", "unit"),
    "bi": ("gate", "unit"),
    "bt": ("gate", "unit"),
    "wp": ("gate", "unit"),
    "wr": ("unit", "hidden"),
}
Parameters = Mapping[str, tuple[str, ...]]  #: what :data:`PARAMETERS` is, with a table's own parameters
#: Axes that select a canonical block; the others run inside it.
INDEXED = ("layer", "direction", "gate")
AXES = (*INDEXED, "input", "hidden", "unit")

# No two parts that may be empty stand side by side: matching is linear.
_TERM = re.compile(
    r"\s*(?P<param>\w+)\s*(?:\{(?P<gates>[^{}]*)\}\s*)?\[(?P<axes>[^\[\]]*)\]\s*(?:as\s*\[(?P<as>[^\[\]]*)\]\s*)?"
)
_TOKEN = re.compile(r"\s*([()]|\w+'{0,9})")

Group = tuple[str, ...]  #: the axes composed into one dimension, outermost first; ``()`` is a dimension of size 1


@dataclass(frozen=True, slots=True)
class Term:
    """One canonical parameter inside a stored tensor.

    Attributes:
        param: a key of :data:`PARAMETERS`.
        gates: the gates it holds, in order; None means all of the layout's.
        axes: the dimensions, each a group of axes.
        declared: the dimensions of the file where the bytes are declared with another shape (``as``), else None.
    """

    param: str
    gates: tuple[str, ...] | None
    axes: tuple[Group, ...]
    declared: tuple[Group, ...] | None = None

    def names(self) -> set[str]:
        """Every axis that occurs."""
        return {axis for group in self.axes for axis in group}

    def __str__(self) -> str:
        """The term in the notation."""
        gates = f"{{{' '.join(self.gates)}}}" if self.gates is not None else ""
        declared = f" as [{_spelled(self.declared)}]" if self.declared is not None else ""
        return f"{self.param}{gates}[{_spelled(self.axes)}]{declared}"


@dataclass(frozen=True, slots=True)
class Packing:
    """What one stored tensor holds: terms side by side on an axis (one term: the axis does not matter).

    Attributes:
        runs: of a vector that holds all layers and directions: how many terms each of its lists has.
    """

    terms: tuple[Term, ...]
    axis: int
    runs: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """The number of dimensions of the stored tensor."""
        return len(self.terms[0].declared or self.terms[0].axes)

    def as_data(self) -> Any:
        """The packing in the notation, as :func:`parse_packing` takes it."""
        terms = [str(term) for term in self.terms]
        if self.runs:
            ends = list(itertools.accumulate(self.runs))
            return {"runs": [terms[end - count : end] for end, count in zip(ends, self.runs, strict=True)]}
        if len(terms) == 1:
            return terms[0]
        usual = _concat_axis([t.declared or t.axes for t in self.terms])
        return terms if usual == self.axis else {"concat": self.axis, "of": terms}


def base(axis: str) -> str:
    """The axis whose size this one has: the same without primes."""
    return axis.rstrip("'")


def _concat_axis(shapes: Sequence[tuple[Group, ...]]) -> int:
    """The axis on which terms stand side by side if none is named."""
    rank = len(shapes[0])
    return next((d for d in range(rank) if len({s[d] for s in shapes}) > 1), rank - 1)


def parse_packing(value: Any, where: str, parameters: Parameters = PARAMETERS) -> Packing:
    """A packing from its notation: a string, a list of strings, ``{concat: AXIS, of: [...]}`` or ``{runs: [[...]]}``.

    Args:
        parameters: the parameters there are, and their axes.

    Raises:
        LayoutError: with ``where`` and the text that does not parse.
    """
    axis: int | None = None
    if isinstance(value, Mapping) and "runs" in value:
        return _parse_runs(value, where, parameters)
    if isinstance(value, Mapping):
        unknown = [k for k in value if k not in ("concat", "of")]
        if (
            unknown
            or "of" not in value
            or not isinstance(value.get("concat"), int)
            or isinstance(value["concat"], bool)
        ):
            raise LayoutError(f"{where}: expected {{concat: AXIS, of: [TERM, ...]}}, found {dict(value)!r}")
        axis, value = value["concat"], value["of"]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(t, str) for t in texts):
        raise LayoutError(
            f"{where}: expected a term such as 'wx[input (gate unit)]' or a list of terms, found {value!r}"
        )
    terms = tuple(parse_term(text, where, parameters) for text in texts)
    shapes = [t.declared or t.axes for t in terms]
    if len({len(s) for s in shapes}) != 1:
        raise LayoutError(f"{where}: the terms of one tensor have different numbers of dimensions: {texts!r}")
    rank = len(shapes[0])  # every parameter has an axis: it is not 0
    if axis is None:
        axis = _concat_axis(shapes)
    if not -rank <= axis < rank:
        raise LayoutError(f"{where}: concat axis {axis} of a tensor with {rank} dimensions")
    return Packing(terms, axis % rank)


def _parse_runs(value: Mapping[str, Any], where: str, parameters: Parameters) -> Packing:
    runs = value["runs"]
    listed = isinstance(runs, Sequence) and not isinstance(runs, str) and len(value) == 1
    if not (listed and runs and all(isinstance(r, Sequence) and r and not isinstance(r, str) for r in runs)):
        what = f"expected {{runs: [[TERM, ...], ...]}}, found {dict(value)!r}"
        raise LayoutError(f"{where}: {what}")
    terms = []
    for text in (text for run in runs for text in run):
        if not isinstance(text, str):
            raise LayoutError(f"{where}: expected a term such as 'wx[(gate unit input)]', found {text!r}")
        terms.append(parse_term(text, where, parameters))
        odd = terms[-1].declared is not None or len(terms[-1].axes) != 1 or terms[-1].names() & {"layer", "direction"}
        if odd:
            raise LayoutError(
                f"{where}: {text!r} stands in one vector with all layers and directions: it has one axis, such as "
                "wx[(gate unit input)], and no layer or direction"
            )
    return Packing(tuple(terms), 0, tuple(len(run) for run in runs))


def parse_term(text: str, where: str, parameters: Parameters = PARAMETERS) -> Term:
    """One term of the notation."""
    match = _TERM.fullmatch(text)
    if match is None:
        raise LayoutError(f"{where}: {text!r} is not a term; expected PARAMETER[AXES] such as 'wx[input (gate unit)]'")
    param = match["param"]
    if param not in parameters:
        raise LayoutError(f"{where}: no parameter {param!r} in {text!r}; one of {', '.join(parameters)}")
    gates = None
    if match["gates"] is not None:
        gates = tuple(match["gates"].replace(",", " ").split())
        if "gate" not in parameters[param]:
            raise LayoutError(f"{where}: {param} has no gates, but {text!r} names some")
        if not gates or len(set(gates)) != len(gates):
            raise LayoutError(f"{where}: {text!r} must name each gate once")
    axes = _groups(match["axes"], text, where)
    allowed = {"layer", "direction", *parameters[param]}
    flat = [axis for group in axes for axis in group]
    for axis in flat:
        if axis not in allowed:
            hint = closest(axis, allowed) or f"one of {', '.join(sorted(allowed))}"
            raise LayoutError(f"{where}: {param} has no axis {axis!r} in {text!r}; {hint}")
    if len(set(flat)) != len(flat):
        raise LayoutError(f"{where}: an axis stands twice in {text!r}")
    missing = [a for a in parameters[param] if a not in flat and a != "gate"]
    if missing:
        raise LayoutError(f"{where}: {text!r} lacks the axis {missing[0]!r} of {param}")
    for group in axes:
        inside = [axis in INDEXED for axis in group]
        # Outer or inner end: after the indexed ones are taken off either end, none may be left between the others.
        core = [k for k, indexed in enumerate(inside) if not indexed]
        if core and any(inside[core[0] : core[-1] + 1]):
            raise LayoutError(
                f"{where}: in {text!r} gate, layer and direction must stand at an end of their parenthesis"
            )
        if core and inside[0] and inside[-1]:
            raise LayoutError(
                f"{where}: in {text!r} gate, layer and direction must stand at one end of their parenthesis"
            )
    declared = None
    if match["as"] is not None:
        declared = _groups(match["as"], text, where)
        if sorted(a for g in declared for a in g) != sorted(flat) or any(a in INDEXED for a in flat):
            raise LayoutError(
                f"{where}: 'as' in {text!r} must rearrange the same axes, without gate, layer and direction"
            )
    return Term(param, gates, axes, declared)


def _spelled(groups: Sequence[Group]) -> str:
    return " ".join(g[0] if len(g) == 1 else f"({' '.join(g)})" if g else "1" for g in groups)


def _groups(text: str, term: str, where: str) -> tuple[Group, ...]:
    groups: list[Group] = []
    open_group: list[str] | None = None
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise LayoutError(f"{where}: {text[position:].strip()!r} in {term!r} is not an axis")
        token, position = match[1], match.end()
        if token == "(":
            if open_group is not None:
                raise LayoutError(f"{where}: a parenthesis inside a parenthesis in {term!r}")
            open_group = []
        elif token == ")":
            if open_group is None:
                raise LayoutError(f"{where}: a parenthesis is closed that was not opened in {term!r}")
            groups.append(tuple(open_group))
            open_group = None
        elif token == "1":
            if open_group is None:
                groups.append(())
        elif open_group is not None:
            open_group.append(token)
        else:
            groups.append((token,))
    if open_group is not None:
        raise LayoutError(f"{where}: a parenthesis is not closed in {term!r}")
    return tuple(groups)
