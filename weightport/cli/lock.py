"""``weightport lock``: what a transfer was reviewed with, as a file to check in beside the mapping.

Promise: what cannot be carried out is not locked. Limit: files only.
"""

from __future__ import annotations

import click

from weightport.cli.output import Session, named_sources, reads_models


@click.command(short_help="Write the lock file of a transfer.")
@click.argument("source")
@click.argument("target", required=False)
@click.option("-m", "--mapping", required=True, metavar="FILE", help="The mapping: which weights go where.")
@click.option("-o", "--out", metavar="LOCK", help="The lock file; by default the mapping's name with .lock.")
@named_sources
@reads_models
def lock(
    session: Session, source: str, target: str | None, mapping: str, out: str | None, sources: dict[str, str]
) -> None:
    """Write down the digests of everything that decides about a transfer's result.

    That is SOURCE, TARGET, the mapping, its vocabularies, and weightport's own version and layout tables. Checked in
    beside the mapping, the file lets `weightport transfer --locked` refuse anything else, a flipped bit included.

    \b
    Example:
        weightport lock model.ckpt-1000 new_model.h5 -m mapping.yaml
        weightport transfer model.ckpt-1000 new_model.h5 -m mapping.yaml --locked -o pretrained.h5
    """
    from weightport.api import lock as write
    from weightport.lockfile import read

    path = write(source, mapping, target=target, sources=sources, path=out)
    if session.json:
        session.emit({"path": path, "lock": read(path)})
    else:
        session.line(f"wrote {path}")
