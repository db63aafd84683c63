"""``weightport report``: what a mapping does, as a page to review and to keep.

Promise: the page is written whether the plan has problems or not, since both are worth reading; nothing else is.
Limit: files only.
"""

from __future__ import annotations

import os
from contextlib import nullcontext

import click

from weightport.cli.output import Session, counted, named_sources, reads_models


@click.command(short_help="Write what a mapping does as an HTML page.")
@click.argument("source")
@click.argument("target", required=False)
@click.option("-m", "--mapping", required=True, metavar="FILE", help="The mapping: which weights go where.")
@click.option("-o", "--out", required=True, metavar="REPORT.html", help="The page to write.")
@named_sources
@reads_models
def report(session: Session, source: str, target: str | None, mapping: str, out: str, sources: dict[str, str]) -> None:
    """Write down what the mapping does to SOURCE and TARGET: one self-contained HTML page.

    It lists every rule with its class and notes, every tensor of either side with what becomes of it, all problems, and
    the digests of the files that it was made from.

    \b
    Example:
        weightport report model.ckpt-1000 new_model.h5 -m mapping.yaml -o report.html
    """
    from weightport import __version__
    from weightport.api import load_mapping
    from weightport.errors import Problem, RefusedError
    from weightport.formats._temporaries import atomic_file
    from weightport.formats.files import digest, files_of
    from weightport.inputs import named_paths
    from weightport.integrity import integrity
    from weightport.opening import as_source, reading
    from weightport.plan import plan
    from weightport.report.html import html

    rules = load_mapping(mapping)
    with reading(source, rules, sources) as opened, as_source(target) if target else nullcontext() as kept:
        made = plan(opened, kept, rules, target_name=kept.path if kept is not None else "")
        found = integrity(made.moved, opened, done=False)
    given = {"source": source, **{f"source {n}": str(p) for n, p in named_paths(rules, sources).items()}}
    if target is not None:
        given["target"] = target
    session.verdict = "nothing was written"
    for path in (*(file for model in given.values() for file in files_of(model)), mapping):
        if os.path.exists(out) and os.path.samefile(out, path):
            raise RefusedError(Problem(out, "is read itself", "write to another path"))
    names = {f"{what} ({os.path.basename(path.rstrip('/'))})": digest(path) for what, path in given.items()}
    names[f"mapping ({os.path.basename(mapping)})"] = rules.digest
    page = html(made, files=names, version=__version__, integrity=found)
    with atomic_file(out) as file:
        file.write(page.encode("utf-8", "backslashreplace"))
    if session.json:
        session.emit({"path": out, "problems": [p.as_json() for p in made.problems]})
    else:
        state = counted(len(made.problems), "problem") if made.problems else "everything is accounted for"
        session.line(f"wrote {out}: {state}")
