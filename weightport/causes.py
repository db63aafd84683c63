"""Why a moved cell is another function than the one it came from: the mistakes that are made, looked for one by one.

Promise: a cause is named only where it explains the weights exactly. Limit: one mistake at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightport.layouts.rare import Parameters
from weightport.layouts.reference import ReferenceCell
from weightport.tensors import Array


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
    keys = [k for k in source.parameters if k[0] == "wt"]
    for other in others:
        if all(_same(source.parameters[k], other.get(k)) for k in keys):
            return "another layer or direction of the target holds these weights: two of them are exchanged"
    return ""


def _gates(cell: ReferenceCell) -> list[str]:
    return [gate for param, gate in cell.parameters if param == "wx" and gate is not None]


def _exchanged_gates(source: ReferenceCell, target: ReferenceCell, _: Sequence[Parameters]) -> str:
    for param in ("wx", "wt"):
        held = {}
        for gate in _gates(source):
            hits = [g for g in _gates(target) if _same(source.parameters[param, gate], target.parameters[param, g])]
            if len(hits) != 1:
                break
            held[gate] = hits[0]
        else:
            moved = [f"{gate} stands where {place} belongs" for gate, place in held.items() if gate != place]
            if moved:
                return f"the gates are in another order: {', '.join(moved)}"
    return ""


def _transposed(source: ReferenceCell, target: ReferenceCell, _: Sequence[Parameters]) -> str:
    for param, name in (("wt", "recurrent"), ("wx", "input")):
        wrong = [
            g
            for g in _gates(source)
            if not _same(source.parameters[param, g], target.parameters[param, g])
            and _same(source.parameters[param, g].T, target.parameters[param, g])
        ]
        if wrong:
            return f"the {name} weights of gate {', '.join(wrong)} are transposed (they are square, so the shapes fit)"
    return ""


def _forget_bias(source: ReferenceCell, target: ReferenceCell, _: Sequence[Parameters]) -> str:
    if source.kind != "lstm":
        return ""
    mine, its = (_bias(cell.parameters, "f") for cell in (source, target))
    if mine is None or its is None:
        return ""
    gap = mine + source.behaviour.forget_bias.value - its - target.behaviour.forget_bias.value
    if np.ptp(gap) < 1e-5 and abs(gap.mean()) > 1e-4:
        verb = "is lost" if gap.mean() > 0 else "was added twice"
        return f"a forget bias of {abs(gap.mean()):.4g} {verb}: the forget gate's bias is off by a constant"
    return ""


def _negated(source: ReferenceCell, target: ReferenceCell, _: Sequence[Parameters]) -> str:
    wrong = [g for g in _gates(source) if _same(-source.parameters["wx", g], target.parameters["wx", g])]
    return (
        f"the weights of gate {', '.join(wrong)} are negated (a gate that keeps instead of replaces?)" if wrong else ""
    )


def _lost(source: ReferenceCell, target: ReferenceCell, _: Sequence[Parameters]) -> str:
    for key, array in source.parameters.items():
        other = target.parameters.get(key)
        if array.any() and other is not None and not other.any():
            return f"{key[0]} of gate {key[1]} is zero in the target"
    for gate in _gates(source):
        if not _same(_bias(source.parameters, gate), _bias(target.parameters, gate)):
            return f"the bias of gate {gate} is another one"
    return ""
