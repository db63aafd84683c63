"""``weightport inspect``: what is in a model file.

Promise: only headers are read, but for ``--stats``; linear in the number of tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from weightport.cli.output import Progress, Session, counted, reads_models
from weightport.collecting import no_gc
from weightport.errors import Error, Problem, closest
from weightport.integrity import checksum_of
from weightport.sizes import size
from weightport.tensors import Source, TensorSpec

_ROLES = {"weight": "weight", "slot": "optimizer slot", "optimizer": "optimizer value", "counter": "counter"}
# What a file may record about a cell's own computation; JSON has whatever else it records.
_FACTS = (
    "forget_bias", "activation", "recurrent_activation", "reset_after", "cell_clip", "proj_clip", "variant",
)  # fmt: skip


@click.command(short_help="Show the tensors and the RNN cells of a model file.")
@click.argument("model")
@click.option("--scope", metavar="S", help="Show only what is in this scope, such as encoder/lstm.")
@click.option("--stats", is_flag=True, help="Read the values too: minimum, maximum, mean, deviation, number of NaNs.")
@click.option(
    "--digest", is_flag=True, help="Read all of MODEL's files for their SHA-256, as --expect-sha256 takes it."
)
@click.option("--full", is_flag=True, help="Draw a line for every tensor, also where many are alike.")
@reads_models
def inspect(session: Session, model: str, scope: str | None, stats: bool, digest: bool, full: bool) -> None:
    """Show what is in MODEL: its tensors as a scope tree, and the RNN cells in it.

    MODEL is a checkpoint prefix, its .index, a folder with a checkpoint or a SavedModel, or a .pb, .pbtxt, .meta, .h5,
    .keras, .npz, .npy, .safetensors, .pt, .pt2, .onnx, .msgpack, .tflite or .gguf file, or the folder of a sharded
    model or an Orbax checkpoint; by its path, or by a URL (s3://, gs://, https://, zip://IN::URL), of which the headers
    are fetched. Its format is told by its content; FORMAT:PATH forces one.

    Cells are found by the names of their tensors, as the layout tables (weightport layouts) give them. Scopes that
    are alike but for a number are drawn once.

    \b
    Example:
        weightport inspect model.ckpt-1000
        weightport inspect frozen.pb --scope encoder --stats
        weightport inspect model.h5 --json | jq '.cells'
    """
    from weightport.layouts.stacks import describe
    from weightport.opening import open as open_model
    from weightport.scopes import find_cells, vectors

    session.document = {"format": "", "tensors": [], "cells": []}
    with no_gc(), open_model(model) as source:
        session.document["format"] = source.format
        specs = source.specs()
        below = (scope or "").strip("/")
        if below:
            specs = _below(specs, below, source.path)
        tensors = {n: s for n, s in specs.items() if s.role != "constant"}
        constants = {n: s for n, s in specs.items() if s.role == "constant"}
        known = find_cells(specs, below=below, facts=source.facts)
        cells = [(cell, recorded(source, [u.names for u in cell.units])) for cell in known]
        found = _stats(source, tensors) if stats else {}
        sha256 = _digest(model) if digest else ""
        made = source.provenance()
        if session.json:
            session.emit({
                "format": source.format,
                "tensors": ({**_tensor(source, n, s), **_stats_of(found, n)} for n, s in tensors.items()),
                "constants": (_tensor(source, n, s) for n, s in constants.items()),
                "cells": [{**describe(cell), **facts} for cell, facts in cells],
                **({"sha256": sha256} if digest else {}),
                **({"provenance": made} if made else {}),
            })  # fmt: skip
            return
        session.line(f"{model}: {_header(source.format, tensors, len(constants))}", bold=True)
        session.lines(["  sha256 " + sha256] if digest else [])
        session.lines([_made(made)] if made else [])
        session.lines(f"  {_cell(describe(cell), facts)}" for cell, facts in cells)
        session.lines(
            f"  vector {name}: a cell in one piece ({' or '.join(layouts)}), if a rule states its sizes"
            for name, layouts in vectors(tensors).items()
        )
        _draw(session, tensors, below, [describe(cell) for cell, _ in cells], found, full)


def _below(specs: Mapping[str, TensorSpec], scope: str, path: str) -> dict[str, TensorSpec]:
    from weightport.scopes import separator_of

    separator = separator_of(specs)
    found = {n: s for n, s in specs.items() if n == scope or n.startswith(f"{scope}{separator}")}
    if not found:
        scopes = {n[:at] for n in specs for at, c in enumerate(n) if c == separator}
        raise Error(Problem(path, f"no scope {scope!r}", closest(scope, sorted(scopes))))
    return found


def _digest(model: str) -> str:
    from weightport.formats.files import digest

    return digest(model)


def _tensor(source: Source, name: str, spec: TensorSpec) -> dict[str, Any]:
    checksum = "" if spec.unread else checksum_of(source, name)
    return {
        "name": name,
        "dtype": spec.dtype_name,
        "shape": list(spec.shape),
        "nbytes": spec.nbytes,
        "role": spec.role,
        **({"checksum": checksum} if checksum else {}),
        **({"unread": spec.unread} if spec.unread else {}),
        **({"quantized": spec.quantized.title.removeprefix("quantized: ")} if spec.quantized is not None else {}),
    }


def recorded(source: Source, units: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What the file records about a cell: one value where its units agree, else a list of the units' values."""
    facts = [dict(source.facts(names)) for names in units]
    keys = dict.fromkeys(key for unit in facts for key in unit)
    values = {key: [unit.get(key) for unit in facts] for key in keys}
    return {key: each[0] if all(v == each[0] for v in each) else each for key, each in values.items()}


# Statistics ----------------------------------------------------------------------------------------------------------


def _stats(source: Source, specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    from weightport.cli.stats import stats

    specs = {name: spec for name, spec in specs.items() if not spec.unread}
    with Progress("reading", sum(s.nbytes for s in specs.values())) as progress:
        return {name: stats(source, name, spec, progress) for name, spec in specs.items()}


def _stats_of(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"stats": found[name].as_json()} if name in found else {}


# Text ----------------------------------------------------------------------------------------------------------------


def _header(format: str, tensors: Mapping[str, TensorSpec], constants: int) -> str:
    text = f"{format}, {counted(len(tensors), 'tensor')}, {size(sum(s.nbytes for s in tensors.values()))}"
    roles = Counter(s.role for s in tensors.values())
    if set(roles) - {"weight"}:
        text += f" ({', '.join(counted(n, _ROLES[role]) for role, n in roles.items())})"
    return text + (f"; {counted(constants, 'constant')} of the graph" if constants else "")


def _made(said: Mapping[str, str]) -> str:
    """Where a file says that it came from."""
    others = [said[key] for key in said if key.startswith("source.")]
    text = f"  written by weightport {said.get('version', '')} from {', '.join([said.get('source', '?'), *others])}"
    return text + f" (mapping {said['mapping_sha256'][:12]})" if "mapping_sha256" in said else text


def _cell(cell: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    parts = [f"input {cell['input']}", f"units {_numbers(cell['units'])}"]
    if cell["layers"] != 1:
        parts.append(f"{cell['layers']} layers")
    if cell["directions"] != ["forward"]:
        parts.append(" and ".join(cell["directions"]))
    text = f"cell {cell['scope'] or '.'}: {cell['layout']}, {', '.join(parts)}"
    said = [f"{key.replace('_', ' ')} {_numbers(facts[key])}" for key in facts if key in _FACTS]
    if facts.get("go_backwards") is True:
        said.append("go backwards")
    return text + (f"; recorded: {', '.join(said)}" if said else "")


def _numbers(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "/".join(_numbers(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _draw(
    session: Session,
    tensors: Mapping[str, TensorSpec],
    below: str,
    cells: Sequence[Mapping[str, Any]],
    stats: Mapping[str, Any],
    full: bool,
) -> None:
    from weightport.cli.tree import Drawing, described
    from weightport.scopes import separator_of, tree

    separator = separator_of(tensors)
    notes: dict[str, str] = {}
    for cell in cells:
        scope = f"{cell['scope']}{separator}" if cell["scope"] else ""
        notes[scope] = f"{notes[scope]}, {cell['layout']}" if scope in notes else f"← {cell['layout']}"
    notes.update({name: str(found) for name, found in stats.items()})
    if below in tensors:  # a tensor, perhaps with slots below
        session.line(f"{below}  {described(tensors[below])}  {notes.get(below, '')}".rstrip())
    prefix = f"{below}{separator}" if below else ""
    inside = tree({n[len(prefix) :]: s for n, s in tensors.items() if n.startswith(prefix)})
    root = notes.get(prefix, "")
    if root or (prefix and (inside.scopes or inside.tensors)):
        session.line(f"{prefix or '.'}  {root}".rstrip())
    session.lines(Drawing(notes, full=full or bool(stats)).lines(inside, below))
