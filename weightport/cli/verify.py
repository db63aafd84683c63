"""``weightport verify``: is what was written what the mapping says, and do the moved cells compute the same?

Promise: both files are read anew; exit code 1 where anything differs. Limit: files only.
"""

from __future__ import annotations

import click

from weightport.cli.output import Session, expected_digest, named_sources, reads_models

FAILED = 1


@click.command()
@click.argument("source")
@click.argument("out")
@click.option("-m", "--mapping", required=True, metavar="FILE", help="The mapping that OUT was made with.")
@named_sources
@click.option("--reverse", is_flag=True, help="OUT was made by the mapping backwards.")
@expected_digest
@click.option("--live", is_flag=True, help="Run the frameworks' own cells, too, where they are installed.")
@reads_models
def verify(
    session: Session,
    source: str,
    out: str,
    mapping: str,
    sources: dict[str, str],
    reverse: bool,
    expect_sha256: str | None,
    live: bool,
) -> None:
    """Prove that OUT holds what the mapping makes of SOURCE.

    Every moved tensor is computed once more from SOURCE and compared. Every moved RNN cell runs beside the one it came
    from, each from its own file by its own layout, on random, saturating, tiny, zero and long inputs; the largest
    difference is reported, and where outputs differ, the step at which it begins and the likely cause.

    \b
    Example:
        weightport transfer model.ckpt-1000 -m mapping.yaml -o pretrained.h5
        weightport verify model.ckpt-1000 pretrained.h5 -m mapping.yaml
    """
    from weightport.api import load_mapping
    from weightport.api import verify as prove

    session.document = {"equal": False, "tensors": [], "cells": []}
    rules = load_mapping(mapping)
    mapped = rules.reversed() if reverse else rules
    proof = prove(source, out, mapped, live=live, sources=sources, expect_sha256=expect_sha256)
    if session.json:
        session.emit(proof.as_json())
    else:
        session.lines(str(proof).splitlines())
        session.problems(proof.problems())
    if not proof.equal:
        session.flush()
        raise click.exceptions.Exit(FAILED)
