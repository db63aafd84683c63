"""``weightport layouts`` and ``weightport schema``: what a mapping may say.

Promise: what is printed is what the tables hold, in the notation that a mapping's ``layouts:`` block takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from weightport.cli.output import Session, common

if TYPE_CHECKING:
    from weightport.layouts import Form, Layout

_GATES = {
    "lstm": {"i": "input", "f": "forget", "g": "candidate", "o": "output"},
    "gru": {"r": "reset", "z": "update", "n": "candidate"},
    "rnn": {"h": "the one gate"},
}


@click.group(invoke_without_command=True)
@common
@click.pass_context
def layouts(ctx: click.Context, session: Session) -> None:
    """List the layouts of RNN cells, or show one.

    A layout is a table: how the gates of one cell are packed into tensors, and what these are called. A mapping names
    a layout on each side of a rule that moves a cell.

    \b
    Example:
        weightport layouts
        weightport layouts show lstm.tf1
    """
    if ctx.invoked_subcommand is None:
        _list(session)


@layouts.command("list")
@common
def list_layouts(session: Session) -> None:
    """List the layouts: name, gates in stored order, and what they are.

    \b
    Example:
        weightport layouts list --json | jq -r '.layouts[].name'
    """
    _list(session)


def _list(session: Session) -> None:
    from weightport.layouts import builtin

    session.document = {"layouts": []}
    known = list(builtin().values())
    if session.json:
        session.emit({"layouts": (_summary(layout) for layout in known)})
        return
    names = max(len(layout.name) for layout in known)
    gates = max(len(_order(layout)) for layout in known)
    session.lines(f"{la.name:<{names}}  {_order(la):<{gates}}  {la.title}" for la in known)


@layouts.command()
@click.argument("name")
@common
def show(session: Session, name: str) -> None:
    """Show the layout NAME: its gates, its tensors and their packing, and where that is laid down.

    The packing is in the notation of mappings: wx, wt are the weights of the input and of the previous output, bi and
    bt the biases, wp peepholes, wr the projection; [input (gate unit)] is a matrix whose columns run over the gates
    and, in each gate, over the units. Terms in a list stand one after the other.

    The layouts that it moves to and from are listed by class: bijective, exact, conditional (exact where values of the
    source do nothing, which a transfer checks before it writes), refused.

    \b
    Example:
        weightport layouts show gru.keras
    """
    from weightport.layouts import find_layout

    session.document = {}
    layout = find_layout(name)
    if session.json:
        session.emit(_whole(layout))
        return
    session.line(f"{layout.name}: {layout.title}" if layout.title else layout.name, bold=True)
    session.lines(_text(layout))


def _order(layout: Layout) -> str:
    return " ".join(("~" if gate in layout.complemented else "") + gate for gate in layout.gates)


def _summary(layout: Layout) -> dict[str, Any]:
    return {
        "name": layout.name,
        "title": layout.title,
        "kind": layout.kind,
        "gates": list(layout.gates),
        "sources": list(layout.source),
    }


def _whole(layout: Layout) -> dict[str, Any]:
    return {
        **_summary(layout),
        "gate_names": dict(layout.gate_names),
        "complemented": sorted(layout.complemented),
        "derived": dict(layout.derived),
        "parameters": {name: list(axes) for name, axes in _own(layout).items()},
        "forget_gates": list(layout.forget_gates),
        "activation": layout.activation,
        "recurrent_activation": layout.recurrent_activation,
        "fixed": sorted(layout.fixed),
        "inner": layout.inner,
        "directions": dict(layout.directions),
        "forms": [
            {
                "reset": form.reset,
                "forget_bias": form.forget_bias,
                "cells": list(form.cells),
                "tensors": {
                    row.template: {"packing": row.packing.as_data(), "optional": row.optional} for row in form.rows
                },
            }
            for form in layout.forms
        ],
        "conversions": list(_conversions(layout)),
    }


def _conversions(layout: Layout) -> Iterator[dict[str, Any]]:
    from weightport.plan.pairs import EXTRAS, conversions

    for source, target, extra, pair in conversions(layout):
        yield {
            "from": source.layout.name,
            "to": target.layout.name,
            "reset": [source.reset, target.reset],
            "with": EXTRAS.get(extra, ""),
            "class": pair.classed,
            "condition": f"exact where {pair.condition}" if pair.condition else "",
            "reason": pair.reason,
        }


def _own(layout: Layout) -> dict[str, tuple[str, ...]]:
    """The parameters that the layout declares, and their axes."""
    from weightport.layouts.notation import PARAMETERS

    return {name: axes for name, axes in layout.parameters.items() if PARAMETERS.get(name) != axes}


def _text(layout: Layout) -> Iterator[str]:
    meanings = _GATES.get(layout.kind, {})
    spelled = []
    for gate in layout.gates:
        name, meaning = layout.gate_names.get(gate, gate), meanings.get(gate, "")
        kept = ", complemented" if gate in layout.complemented else ""
        spelled.append(f"{gate} {meaning}{kept}" + (f" ({name!r} in names)" if name != gate else ""))
    yield f"  gates, as stored: {', '.join(s.strip() for s in spelled)}"
    for gate, rule in layout.derived.items():
        yield f"  not stored: {gate} {meanings.get(gate, '')} = {rule.replace('~', '1 - ')}"
    own = [f"{name} [{' '.join(axes)}]" for name, axes in _own(layout).items()]
    if own:
        yield f"  parameters of its own: {', '.join(own)}"
    for key in ("activation", "recurrent_activation"):
        value = getattr(layout, key)
        if value:
            by = "always" if key in layout.fixed else "unless the file or the mapping says otherwise"
            yield f"  {key.replace('_', ' ')}: {value}, {by}"
    if layout.inner:
        yield f"  a scope {layout.inner} may stand between the layer's scope and its tensors"
    if layout.suffixes:
        yield "  several cells in one scope: _1, _2 at the end of the names"
    if layout.uniform:
        yield "  layers that the names tell are one module: of as many units, each fed by the one before it"
    for number, form in enumerate(layout.forms, 1):
        yield (
            f"  form {number} of {len(layout.forms)}{_about(layout, form)}"
            if len(layout.forms) > 1
            else (f"  tensors{_about(layout, form)}")
        )
        width = max(len(row.template) + row.optional for row in form.rows)
        for row in form.rows:
            yield f"    {row.template + '?' * row.optional:<{width}}  {_packing(row.packing.as_data())}"
    if any(row.optional for form in layout.forms for row in form.rows):
        yield "  a cell may lack the tensors with a question mark"
    yield from _moves(layout)
    for source in layout.source:
        yield f"  source: {source}"


def _moves(layout: Layout) -> Iterator[str]:
    """What it moves to and from, by class and condition."""
    from weightport.plan.pairs import CLASSES, EXTRAS, conversions

    found: dict[str, dict[tuple[int, str], list[str]]] = {}
    for source, target, extra, pair in conversions(layout):
        words = pair.classed + (f" with {EXTRAS[extra]}" if extra else "")
        words += f", exact only where {pair.condition}" if pair.condition else ""
        words += f", since {pair.reason}" if pair.reason else ""
        for mine, heading, other in ((source, f"{source} moves to", target), (target, f"to {target} move", source)):
            if mine.layout == layout:
                group = found.setdefault(heading, {}).setdefault((CLASSES.index(pair.classed), words), [])
                group.append(str(other))
    for heading, groups in sorted(found.items()):
        yield f"  {heading}"
        yield from (f"    {words}: {'; '.join(names)}" for (_, words), names in sorted(groups.items()))


def _about(layout: Layout, form: Form) -> str:
    parts = []
    if layout.kind == "gru":
        parts.append(
            f"reset {form.reset} the matrix product" if form.reset else "where the reset gate acts is not told"
        )
    if layout.forget_gates:
        added = f"forget bias {form.forget_bias:g} added at run time"
        to = "" if layout.kind == "lstm" else f" to {' and '.join(layout.forget_gates)}"
        parts.append(added + to if form.forget_bias else "no forget bias added at run time")
    if form.cells:
        parts.append(f"in scopes {', '.join(form.cells)}")
    return f": {'; '.join(parts)}" if parts else ""


def _packing(data: Any) -> str:
    if isinstance(data, dict) and "runs" in data:
        return f"{{runs: [{', '.join(_packing(run) for run in data['runs'])}]}}"
    if isinstance(data, dict):
        return f"{{concat: {data['concat']}, of: {_packing(data['of'])}}}"
    return data if isinstance(data, str) else f"[{', '.join(data)}]"


@click.command()
@common
def schema(session: Session) -> None:
    """Print the JSON Schema of a mapping file.

    Editors check and complete a mapping by it: with the YAML language server, a first line
    "# yaml-language-server: $schema=mapping.schema.json" is enough.

    \b
    Example:
        weightport schema > mapping.schema.json
    """
    from weightport.mapping import json_schema

    # The schema is JSON in any case; without --json it is printed for people.
    document = json_schema()
    if session.json:
        session.emit(document)
    else:
        session.raw(json.dumps(document, indent=2) + "\n")
