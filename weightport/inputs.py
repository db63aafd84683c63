"""What a mapping reads: its source, the sources that it names beside it, moving averages in the place of variables.

Promise: one source with one set of names: a further source's tensors stand below its name, and a variable that has a
moving average is read from that where the mapping prefers it. Nothing is copied; headers only until something is read.
Limit: two tensors that would have one name are an error, since the rules could not tell them apart.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weightport.errors import Error, FormatError, PlanError, Problem, RefusedError, closest
from weightport.formats import _fs
from weightport.integrity import checksum_of, is_digest
from weightport.mapping.rules import Mapping as Rules
from weightport.mapping.rules import NamedSource, TensorRule
from weightport.tensors import Array, Extent, Index, Source, TensorSpec, extent_of

#: The arguments of a transfer that only a graph takes.
_GRAPHS = ("session", "large_constants")


def named_paths(rules: Rules, given: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> path or open source, of every source that the mapping names.

    Args:
        given: what the caller says; it wins over the paths that the mapping states.

    Raises:
        PlanError: one has no path, or a name that the mapping does not know is given.
    """
    known = {named.name: named for named in rules.sources}
    problems = []
    for name in given:
        if name not in known:
            hint = closest(name, known) or (f"it names {', '.join(known)}" if known else "it has no sources:")
            problems.append(Problem(rules.path or "mapping", f"no source is named {name!r}", hint))
    found = {}
    for name, named in known.items():
        found[name] = given.get(name, named.path)
        if found[name] is None:
            what = "it is not said where this source is"
            problems.append(Problem(named.where, what, f"--source {name}=PATH, or sources={{{name!r}: PATH}}"))
    if problems:
        raise PlanError(problems)
    return found


def gathered(main: Source, rules: Rules, named: Mapping[str, Source]) -> Source:
    """What the rules read: the sources as one, with averages where they are preferred.

    Args:
        main: the source.
        named: the mapping's further sources, by name, all of them.

    Raises:
        PlanError: averages are preferred of a source that has none; two tensors would have one name.
    """
    problems: list[Problem] = []
    first = _preferring(main, rules.source.average, f"{rules.path or 'mapping'} source.prefer", problems)
    others = {n.name: _preferring(named[n.name], n.average, f"{n.where}.prefer", problems) for n in rules.sources}
    for named_source in rules.sources:
        problems.extend(_clash(first, named_source))
    if problems:
        raise PlanError(problems)
    return Gathered(first, others) if others else first


def _preferring(source: Source, average: str, where: str, problems: list[Problem]) -> Source:
    if not average:
        return source
    averaged = Averaged(source, average)
    if not averaged.averages:
        problems.append(Problem(where, f"{source.path} has no moving average NAME/{average}"))
    return averaged


def _clash(main: Source, named: NamedSource) -> list[Problem]:
    below = next((n for n in main.specs() if n == named.name or n.startswith(f"{named.name}/")), None)
    if below is None:
        return []
    what = f"{main.path} has tensors under that name itself, such as {below!r}"
    return [Problem(named.where, what, "give this source another name")]


def paths(source: Source) -> list[str]:
    """Where a source, or what :func:`gathered` made of several, lies."""
    others: Mapping[str, Source] = getattr(source, "others", {})
    return [source.path, *(other.path for other in others.values())]


def files(source: Source | str) -> list[str]:
    """The files of an open source, or of the model at a path; none of one that lies in no file."""
    from weightport.formats.files import files_of

    found = []
    for path in [source] if isinstance(source, str) else paths(source):
        with contextlib.suppress(Error):  # whoever opens it says so
            found += files_of(path)
    return found


def given_files(given: Sequence[Any], rules: Rules, sources: Mapping[str, Any] | None) -> list[str]:
    """The files of the models that are given by their paths, and of the mapping's further sources.

    Args:
        given: paths; what is none, such as an open source, has none.
        sources: as they are given to :func:`named_paths`, whose errors are left to it.
    """
    named = {n.name: n.path for n in rules.sources} | dict(sources or {})
    found: list[str] = []
    for path in (*given, *named.values()):
        if isinstance(path, str | os.PathLike):
            found += files(os.fspath(path))
    return found


def refuse_arguments(options: Iterable[str], known: Iterable[str], threads: int | None) -> None:
    """Refuse arguments of a transfer that there are not, and no threads at all.

    Args:
        options: those that are not ``known``: what only a graph takes, or what is misspelt.
    """
    for name in options:
        if name not in _GRAPHS:
            raise Error(Problem("transfer", f"has no argument {name!r}", closest(name, (*known, *_GRAPHS))))
    if threads is not None and threads < 1:
        raise Error(f"threads: {threads}, at least 1 is needed")


def expected(source: Source, expect_sha256: str | None, rules: Rules) -> dict[str, str]:
    """Refuse a source that is not the file the mapping, or the caller, is pinned to.

    Args:
        source: what :func:`gathered` gave.
        expect_sha256: the caller's word on the first source.

    Returns:
        The digests of those that were pinned, by the source's name; the first one's is ``""``.

    Raises:
        FormatError: a source is another one.
        Error: the caller's word is no digest.
    """
    if expect_sha256 is not None and not is_digest(expect_sha256):
        # An empty text, too: a variable that was never set must not let every file pass.
        raise Error(f"expect_sha256: {expect_sha256!r} is no digest: 64 hexadecimal digits, as sha256sum prints them")
    found: dict[str, str] = {}
    wanted = [("", source, expect_sha256, "asked for"), ("", source, rules.source.sha256, "the mapping is for")]
    others: Mapping[str, Source] = getattr(source, "others", {})
    wanted += [(n.name, others[n.name], n.sha256, "the mapping is for") for n in rules.sources]
    for name, model, want, who in wanted:
        if not want:
            continue
        from weightport.formats.files import digest

        found[name] = found.get(name) or digest(model.path)
        if found[name] != want.lower():
            raise FormatError(
                model.path,
                f"its SHA-256 is {found[name]}; {who} {want.lower()}",
                hint="this is another file, or a damaged one",
            )
    return found


def vocabularies(rules: Rules) -> dict[str, str]:
    """The files of words that the rules read: as the mapping spells them -> absolute path."""
    found = {}
    for rule in rules.rules:
        vocab = rule.ops.vocab if isinstance(rule, TensorRule) else None
        if vocab is not None:
            found.update({vocab.source_text: vocab.source, vocab.target_text: vocab.target})
    return found


def refuse_inputs(path: str, source: Source, kept: Source | None, rules: Rules) -> None:
    """Refuse a destination that is one of the files that are read, or lies in a folder that is not there.

    Args:
        path: the destination.
        source: what :func:`gathered` gave.
        kept: the target file, if there is one.
    """
    from weightport.formats.files import replaced

    read = [*paths(source), kept.path if kept is not None else "", rules.path, *vocabularies(rules).values()]
    if (problem := _fs.no_folder(path)) is not None:
        raise RefusedError(problem)
    written = replaced(path)
    for given in filter(None, read):
        for file in files(given):
            if any(_fs.exists(w) and _fs.samefile(w, file) for w in written):
                raise RefusedError(Problem(path, f"is {given} itself, which is only read", "write to another path"))


class Averaged:
    """A source in which variables are read from their moving averages.

    A checkpoint of ``tf.train.ExponentialMovingAverage`` holds ``NAME/ExponentialMovingAverage`` beside ``NAME``, or
    alone. Source: tensorflow/python/training/moving_averages.py (``ExponentialMovingAverage.average_name``).

    Attributes:
        averages: variable -> the average that is read in its place.
        raw: those of the variables that the file holds too.
    """

    def __init__(self, inner: Source, average: str) -> None:
        self.inner = inner
        self.format, self.path = inner.format, inner.path
        self.root: str = getattr(inner, "root", "")
        end = f"/{average}"
        specs = inner.specs()
        self.averages: dict[str, str] = {}
        self.raw: set[str] = set()
        self._specs: dict[str, TensorSpec] = {}
        for name, spec in specs.items():
            of = name.removesuffix(end)
            if of == name or not of or spec.role == "constant":
                self._specs.setdefault(name, spec)
                continue
            raw = specs.get(of)
            if raw is not None and (raw.dtype, raw.shape) != (spec.dtype, spec.shape):
                self._specs[name] = spec  # whatever it is, it is no average of that variable
                continue
            self.averages[of] = name
            self._specs[of] = raw or spec
            if raw is not None:
                self.raw.add(of)

    def specs(self) -> Mapping[str, TensorSpec]:
        """The variables, each once."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The variable's average, or the variable where it has none."""
        return self.inner.read(self.averages.get(name, name), index)

    def extent(self, name: str) -> Extent | None:
        """Where that lies."""
        return extent_of(self.inner, self.averages.get(name, name))

    def checksum(self, name: str) -> str:
        """What its file has over that."""
        return checksum_of(self.inner, self.averages.get(name, name))

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What is recorded of the cell: a graph knows its variables, not their averages."""
        return self.inner.facts(names)

    def close(self) -> None:
        """Release the files."""
        self.inner.close()


class Gathered:
    """Several sources as one: the first under the root, each other under its name.

    Attributes:
        others: name -> source.
        averages, raw: of all of them; see :class:`Averaged`.
        aliases: of all of them; see :class:`weightport.tensors.Source`.
    """

    format = "several"

    def __init__(self, main: Source, others: Mapping[str, Source]) -> None:
        self.main, self.others = main, dict(others)
        self.path = main.path
        self.root: str = getattr(main, "root", "")
        self.averages: dict[str, str] = dict(getattr(main, "averages", {}))
        self.raw: set[str] = set(getattr(main, "raw", ()))
        self.aliases: dict[str, str] = dict(getattr(main, "aliases", {}))
        self._specs = dict(main.specs())
        for name, source in self.others.items():
            self._specs.update((f"{name}/{tensor}", spec) for tensor, spec in source.specs().items())
            aliases: Mapping[str, str] = getattr(source, "aliases", {})
            self.aliases.update((f"{name}/{alias}", f"{name}/{tensor}") for alias, tensor in aliases.items())
            own: Mapping[str, str] = getattr(source, "averages", {})
            self.averages.update((f"{name}/{raw}", f"{name}/{average}") for raw, average in own.items())
            self.raw.update(f"{name}/{raw}" for raw in getattr(source, "raw", ()))

    @property
    def title(self) -> str:
        """What a plan calls them."""
        return ", ".join([self.path, *(f"{name}: {source.path}" for name, source in self.others.items())])

    def specs(self) -> Mapping[str, TensorSpec]:
        """Of all of them."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor, from the source that has it."""
        source, own = self._home(name)
        return source.read(own, index)

    def extent(self, name: str) -> Extent | None:
        """Where the tensor lies."""
        return extent_of(*self._home(name))

    def checksum(self, name: str) -> str:
        """What the tensor's file has over it."""
        return checksum_of(*self._home(name))

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the source of these tensors records of their cell."""
        homes = [self._home(name) for name in names]
        if not homes or any(source is not homes[0][0] for source, _ in homes):
            return {}
        return homes[0][0].facts([own for _, own in homes])

    def _home(self, name: str) -> tuple[Source, str]:
        first, _, rest = name.partition("/")
        return (self.others[first], rest) if first in self.others else (self.main, name)

    def close(self) -> None:
        """Release the files."""
        for source in (self.main, *self.others.values()):
            source.close()
