"""``weightport diff``: what differs between two models.

Promise: both are read tile by tile, nothing is written. Limit: files only.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from weightport.cli.output import Session, counted, named_sources, reads_models

if TYPE_CHECKING:
    from weightport.differences import Difference


@click.command(short_help="Show what differs between two models.")
@click.argument("a")
@click.argument("b")
@click.option("-m", "--mapping", metavar="FILE", help="What of A becomes what of B; without it, names are compared.")
@named_sources
@click.option("--exit-code", is_flag=True, help="Exit with 1 where anything differs.")
@reads_models
def diff(session: Session, a: str, b: str, mapping: str | None, sources: dict[str, str], exit_code: bool) -> None:
    """Compare the tensors of two models: A's with those of B that have the same name.

    With a mapping, B's tensors are compared with what the mapping makes of A's. Each tensor of either side is equal,
    differs (in shape, in dtype, or by how much its values are apart), or is there in one of the two only.

    \b
    Example:
        weightport diff model.ckpt-1000 model.ckpt-2000
        weightport diff model.ckpt-1000 finetuned.h5 -m mapping.yaml
    """
    from contextlib import ExitStack

    from weightport.api import load_mapping
    from weightport.differences import EQUAL, differences
    from weightport.opening import as_source, reading

    session.document = {"equal": False, "tensors": []}
    with ExitStack() as stack:
        other = stack.enter_context(as_source(b))
        if mapping is None:
            if sources:
                raise click.UsageError("--source: only a mapping names further sources")
            found = list(differences(stack.enter_context(as_source(a)), other))
        else:
            rules = load_mapping(mapping)
            found = list(differences(stack.enter_context(reading(a, rules, sources)), other, rules))
    equal = all(one.status == EQUAL for one in found)
    if session.json:
        session.emit({"equal": equal, "tensors": (one.as_json() for one in found), "problems": []})
    else:
        session.lines(_told(one) for one in found if one.status != EQUAL)
        session.line(_counted(found))
    if exit_code and not equal:
        session.flush()
        raise click.exceptions.Exit(1)


def _told(one: Difference) -> str:
    if one.what:
        return f"{one.name}: {one.what}"
    return f"{one.name}: {one.status}" + (f" by {one.max_abs_diff:.3g}" if one.max_abs_diff is not None else "")


def _counted(found: list[Difference]) -> str:
    count = Counter("differ" if one.status == "differs" else one.status for one in found)
    statuses = ", ".join(f"{number:,} {status}" for status, number in count.items())
    return f"{counted(len(found), 'tensor')}: {statuses}" if found else "no tensors"
