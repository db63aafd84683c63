"""``weightport suggest``: a mapping to start from.

Promise: headers only; a mapping file that is there already is not overwritten. Limit: a proposal, to be reviewed.
"""

from __future__ import annotations

import os

import click

from weightport.cli.output import Session, counted, reads_models


@click.command(short_help="Propose a mapping between two models.")
@click.argument("source")
@click.argument("target")
@click.option("-o", "--out", metavar="MAPPING", help="The file to write; without it, the mapping is printed.")
@click.option("--force", is_flag=True, help="Overwrite a MAPPING that is there already.")
@reads_models
def suggest(session: Session, source: str, target: str, out: str | None, force: bool) -> None:
    """Propose a mapping from SOURCE to TARGET: whole RNN cells, and tensors whose names and shapes agree.

    What it says fits the two models, since it was planned against them. What only a person can know stands in comments:
    names that have little in common, square matrices, cells that there are several of. Tensors without a counterpart
    are listed as comments too: until they are moved, ignored or kept, a transfer by the mapping is refused.

    \b
    Example:
        weightport suggest model.ckpt-1000 new_model.h5 -o mapping.yaml
        weightport transfer model.ckpt-1000 new_model.h5 -m mapping.yaml --dry-run
    """
    from weightport.errors import Problem, RefusedError
    from weightport.formats._temporaries import atomic_file
    from weightport.opening import as_source
    from weightport.suggest import suggest as propose

    session.verdict = "nothing was written"
    if out is not None and os.path.lexists(out) and not force:
        raise RefusedError(Problem(out, "is there already", "--force overwrites it"))
    with as_source(source) as first, as_source(target) as second:
        found = propose(first, second, target_name=second.path)
    text = str(found)
    if out is not None:
        with atomic_file(out) as file:
            file.write(text.encode())
    if session.json:
        left = {"source": found.sources, "target": found.targets}
        session.emit(
            {
                "mapping": found.document,
                "left": left,
                "notes": list(found.notes.values()),
                "problems": [],
                "refused": found.refused,
            }
        )
    elif out is None:
        session.lines(text.splitlines())
    else:
        session.line(f"wrote {out}")
    if not session.json:
        sides = f"{counted(len(found.sources), 'source tensor')} and {counted(len(found.targets), 'target tensor')}"
        rules = counted(len(found.document["rules"]), "rule")
        session.tell(f"{rules}, {len(found.notes)} to look at; {sides} left to you")
