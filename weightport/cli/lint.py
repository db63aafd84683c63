"""``weightport lint``: mappings checked before anything is moved.

Promise: every problem of every mapping in one run; nothing is written. Limit: headers only.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from weightport.cli.output import Session, counted, reads_models, split_named
from weightport.errors import Error, MappingError, Problem

if TYPE_CHECKING:
    from weightport.lint import Findings
    from weightport.mapping import Mapping as Rules
    from weightport.opening import OpenSource


@click.command(short_help="Check mapping files, also against models.")
@click.argument("mapping", nargs=-1, required=True)
@click.option(
    "--source", "sources", multiple=True, metavar="S",
    help="Check the mappings against this source too; NAME=PATH is a further one that they name under sources:.",
)  # fmt: skip
@click.option("--target", metavar="T", help="Check the mappings against this target too.")
@reads_models
@click.pass_context
def lint(
    ctx: click.Context, session: Session, mapping: tuple[str, ...], sources: tuple[str, ...], target: str | None
) -> None:
    """Check MAPPING files: every problem, with its line and the nearest name.

    With a source, a target or both, the mappings are checked against their tensors as well. What is carried out but
    was perhaps not meant is a warning: an assumption about a cell that no file records, a pattern under ignore: or
    keep: that matches nothing. Warnings do not change the exit code.

    \b
    Example:
        weightport lint mappings/*.yaml
        weightport lint mapping.yaml --source model.ckpt-1000 --target new_model.h5
    """
    found: list[tuple[str, Findings]] = []
    problems: list[Problem] = []
    with ExitStack() as stack:

        def opened(path: str | None) -> OpenSource | None:
            from weightport.opening import open as open_model

            try:
                return stack.enter_context(open_model(path)) if path is not None else None
            except Error as error:
                problems.extend(error.problems)
                return None

        named = {name: path for name, path in map(split_named, sources) if name}
        plain = [path for name, path in map(split_named, sources) if not name]
        if len(plain) > 1:
            raise click.UsageError(f"--source: {plain[0]} and {plain[1]}: one of them needs its name, NAME=PATH")
        check = _Check(opened(plain[0] if plain else None), opened(target), named)
        failed = bool(problems)
        found.extend((path, check(path)) for path in mapping)
    problems.extend(p for _, findings in found for p in findings.problems)
    session.problems(problems)
    session.warnings(w for _, findings in found for w in findings.warnings)
    if session.json:
        mappings = ({"path": path, **findings.as_json()} for path, findings in found)
        session.emit({"mappings": mappings, "problems": [p.as_json() for p in problems]})
    else:
        unread = "; not compared with what cannot be read" if failed else ""
        session.lines(f"{path}: {_said(findings)}{unread}" for path, findings in found)
    if problems:
        session.flush()
        ctx.exit(1)


class _Check:
    """Loads and checks one mapping after the other; the source's digest is made once, if it is asked for."""

    def __init__(self, source: OpenSource | None, target: OpenSource | None, named: dict[str, str]) -> None:
        self._source, self._target, self._named = source, target, named
        self._digest: str | None = None

    def __call__(self, path: str) -> Any:
        from weightport.api import load_mapping
        from weightport.lint import Findings

        try:
            rules = load_mapping(path)
        except MappingError as error:
            if error.partial is None or self._source is None:
                return Findings(error.problems)
            return Findings(error.joined(self._against(error.partial).problems))
        return self._against(rules)

    def _against(self, rules: Rules) -> Findings:
        """What a mapping comes to against the models at hand."""
        from weightport.lint import Findings, lint
        from weightport.opening import close, gather

        if self._source is not None and rules.source.sha256 and self._digest is None:
            from weightport.formats.files import digest

            self._digest = digest(self._source.path)
        name = self._target.path if self._target is not None else ""
        if self._source is None:
            return lint(rules, None, self._target, target_name=name)
        known = {source.name for source in rules.sources}
        try:
            source, own = gather(self._source, rules, {n: path for n, path in self._named.items() if n in known})
        except Error as error:
            return Findings(error.problems)
        try:
            return lint(rules, source, self._target, target_name=name, source_sha256=self._digest)
        finally:
            close(own)


def _said(findings: Any) -> str:
    parts = [
        counted(len(found), what)
        for what, found in (("problem", findings.problems), ("warning", findings.warnings))
        if found
    ]
    return ", ".join(parts) or "ok"
