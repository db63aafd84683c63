"""Why a moved cell is another function than the one it came from: the mistakes that are made, looked for one by one.

Promise: a cause is named only where it explains the weights exactly. Limit: one mistake at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from weightport.layouts.rare import Parameters
from weightport.layouts.reference import KINDS, Key, ReferenceCell
from weightport.tensors import Array

_NAMES = {"wx": "input weights", "wt": "recurrent weights"}


def likely_cause(source: ReferenceCell, target: ReferenceCell, others: Sequence[Parameters]) -> str:
    """What would explain that the target is another function than the source; empty if nothing simple does.

    Args:
        others: the other units of the target, in case layers or directions were exchanged.
    """
    for check in (_exchanged_units, _exchanged_gates, _transposed, _forget_bias, _negated, _lost):
        cause = check(source, target, others)
        if cause:
            return cause
    return ""


def _same(a: Array | None, b: Array | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-6)


def _bias(parameters: Parameters, gate: str | None) -> Array | None:
    parts = [p for p in (parameters.get(("bi", gate)), parameters.get(("bt", gate))) if p is not None]
    return sum(parts[1:], parts[0]) if parts else None


def _exchanged_units(source: ReferenceCell, _: ReferenceCell, others: Sequence[Parameters]) -> str:
    keys = [k for k in source.parameters if k[0] == "wt"] or _matrices(source)
    for other in others:
        if keys and all(_same(source.parameters[k], other.get(k)) for k in keys):
            return "another layer or direction of the target holds these weights: two of them are exchanged"
    return ""


def _matrices(cell: ReferenceCell) -> list[Key]:
    return [key for key, array in cell.parameters.items() if array.ndim > 1]


def _by_param(cell: ReferenceCell) -> Iterator[tuple[str, dict[str, Array]]]:
    """The matrices of each parameter by gate, but for gates that follow from another one."""
    for param in dict.fromkeys(param for param, gate in _matrices(cell) if gate is not None):
        free: dict[str, Array] = {}
        for (name, gate), array in cell.parameters.items():
            if name == param and gate is not None and not any(np.array_equal(array, -a) for a in free.values()):
                free[gate] = array
        yield param, free


def _of(what: str, gates: Sequence[str | None]) -> str:
    named = [gate for gate in gates if gate is not None]
    return f"the {what} of gate {', '.join(named)}" if named else f"the {what}"


def _exchanged_gates(source: ReferenceCell, target: ReferenceCell, _: Sequence[Parameters]) -> str:
    theirs = dict(_by_param(target))
    for param, mine in _by_param(source):
        held = {}
        for gate, array in mine.items():
            hits = [g for g, other in theirs.get(param, {}).items() if _same(array, other)]
            if len(hits) != 1:
                break
            held[gate] = hits[0]
        else:
            moved = [f"{gate} stands where {place} belongs" for gate, place in held.items() if gate != place]
            if moved:
                return f"the gates are in another order: {', '.join(moved)}"
    return ""


def _transposed(source: ReferenceCell, target: ReferenceCell, _: Sequence[Parameters]) -> str:
    free = {(param, gate) for param, gates in _by_param(source) for gate in gates}
    wrong: dict[str, list[str | None]] = {}
    for key in (k for k in _matrices(source) if k[1] is None or k in free):
        mine, its = source.parameters[key], target.parameters.get(key)
        if not _same(mine, its) and _same(mine.swapaxes(-1, -2), its):
            wrong.setdefault(key[0], []).append(key[1])
    for param in ("wt", "wx", *wrong):
        if param in wrong:
            what = _of(_NAMES.get(param, f"weights {param}"), wrong[param])
            return f"{what} are transposed (they are square, so the shapes fit)"
    return ""


def _forget_bias(source: ReferenceCell, target: ReferenceCell, _: Sequence[Parameters]) -> str:
    for param, gate in KINDS[source.kind].forget:
        mine, its = (
            _bias(cell.parameters, gate) if param == "bi" else cell.parameters.get((param, gate))
            for cell in (source, target)
        )
        if mine is None or its is None or mine.shape != its.shape:
            continue
        gap = mine + source.behaviour.forget_bias.value - its - target.behaviour.forget_bias.value
        if np.ptp(gap) < 1e-5 and abs(gap.mean()) > 1e-4:
            verb = "is lost" if gap.mean() > 0 else "was added twice"
            whose = "the forget gate's bias" if gate == "f" else f"the bias of gate {gate}"
            return f"a forget bias of {abs(gap.mean()):.4g} {verb}: {whose} is off by a constant"
    return ""


def _negated(source: ReferenceCell, target: ReferenceCell, _: Sequence[Parameters]) -> str:
    for param, mine in _by_param(source):
        wrong = [g for g, array in mine.items() if _same(-array, target.parameters.get((param, g)))]
        if wrong:
            what = "weights" if param in _NAMES else f"weights {param}"
            return f"{_of(what, wrong)} are negated (a gate that keeps instead of replaces?)"
    return ""


def _lost(source: ReferenceCell, target: ReferenceCell, _: Sequence[Parameters]) -> str:
    for (param, gate), array in source.parameters.items():
        other = target.parameters.get((param, gate))
        if array.any() and other is not None and not other.any():
            return f"{param} of gate {gate} is zero in the target" if gate else f"{param} is zero in the target"
    for gate in dict.fromkeys(gate for param, gate in source.parameters if param in ("bi", "bt")):
        if gate is not None and not _same(_bias(source.parameters, gate), _bias(target.parameters, gate)):
            return f"the bias of gate {gate} is another one"
    return ""
