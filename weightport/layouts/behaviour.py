"""What a cell does beside its weights: constants added at run time, activations, reset mode, clipping - and who says
so.

The mapping's word wins over what the file or the live model records, that over what the framework always does, and that
over what it does by default. Only the last is an assumption, and is said to be one.

Promise: two behaviours that are both known and differ are refused; so is a default that differs from what the other
side's framework always does. Limit: what neither side records is taken to agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightport.layouts.layout import Form, Layout

MAPPING, FILE, ALWAYS, ASSUMED = "mapping", "file", "framework", "assumed"


@dataclass(frozen=True, slots=True)
class Said:
    """A property's value and who says so."""

    value: Any
    by: str

    @property
    def known(self) -> bool:
        """Whether it is more than the framework's default."""
        return self.by != ASSUMED and self.value is not None


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One unit's."""

    forget_bias: Said
    activation: Said
    recurrent_activation: Said
    reset: Said
    cell_clip: Said
    proj_clip: Said
    variant: Said


def behaviour(layout: Layout, form: Form, facts: Mapping[str, Any], stated: Mapping[str, Any]) -> Behaviour:
    """What is known of a unit.

    Args:
        facts: what the file or the live model records (:meth:`weightport.tensors.Source.facts`).
        stated: what the mapping says; None is nothing.
    """
    recorded = dict(facts)
    if "reset_after" in recorded:
        recorded["reset"] = "after" if recorded["reset_after"] else "before"
    defaults = {
        "forget_bias": form.forget_bias if layout.forget_gates else 0.0,
        "activation": layout.activation,
        "recurrent_activation": layout.recurrent_activation,
        "reset": form.reset,
        "cell_clip": None,
        "proj_clip": None,
        "variant": None,
    }

    def said(key: str) -> Said:
        if stated.get(key) is not None:
            return Said(stated[key], MAPPING)
        if key in recorded:
            return Said(recorded[key], FILE)
        # A form with a reset mode is stored as no other is; where recurrent matrices are diagonal, either will do.
        always = key in layout.fixed or (key == "reset" and (form.reset is not None or layout.diagonal))
        return Said(defaults[key], ALWAYS if always else ASSUMED)

    return Behaviour(*(said(key) for key in Behaviour.__slots__))


def conflicts(source: Behaviour, target: Behaviour) -> tuple[list[str], list[str]]:
    """Why the two are not the same function, and what was assumed so that they are."""
    problems, notes = [], []
    for key in ("activation", "recurrent_activation", "reset"):
        mine, other = getattr(source, key), getattr(target, key)
        title = key.replace("_", " ") if key != "reset" else "reset gate"
        if mine.value == other.value:
            continue
        if None in (mine.value, other.value):
            either = Said(None, ALWAYS)  # it makes no difference there
            if key == "reset" and either not in (mine, other):
                unknown, value = ("source", other.value) if mine.value is None else ("target", mine.value)
                notes.append(f"the {unknown}'s reset gate is not recorded; taken to be {value}, as on the other side")
            continue
        if mine.known and other.known:
            hint = ": reset before and after the matrix product are different functions" if key == "reset" else ""
            problems.append(f"the source's {title} is {mine.value}, the target's {other.value}{hint}")
        elif not mine.known and not other.known:
            notes.append(
                f"neither side's {title} is recorded; they are taken to be the same, though the frameworks' defaults "
                f"are {mine.value} and {other.value}"
            )
        else:
            unknown, default, known = ("source", mine, other) if not mine.known else ("target", other, mine)
            if known.by == ALWAYS:
                problems.append(
                    f"the {unknown}'s {title} is not recorded: by default it is {default.value}, the other side's is "
                    f"always {known.value} (if it is that here too, the mapping can say so: {key}: {known.value})"
                )
                continue
            notes.append(
                f"the {unknown}'s {title} is not recorded; taken to be {known.value}, as on the other side "
                f"(the framework's default is {default.value})"
            )
    if source.variant.value != target.variant.value:
        for side, said in (("source", source.variant), ("target", target.variant)):
            if said.value is not None:
                problems.append(f"the {side}'s cell {said.value}: another function")
    for key in ("cell_clip", "proj_clip"):
        mine, other = getattr(source, key), getattr(target, key)
        if mine.value == other.value:
            continue
        sides = [
            f"{side} {said.value:g}" if said.value else f"{side} none"
            for side, said in (("source", mine), ("target", other))
        ]
        what = f"clipping ({key}): {', '.join(sides)}"
        (problems if ASSUMED not in (mine.by, other.by) else notes).append(what)
    return problems, notes
