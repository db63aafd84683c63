"""Whether a transfer goes on where an earlier one ended: what both have to have in common, and where the journal is.

Promise: what an earlier run has done is used only if everything that decides about the result is the same: weightport,
the mapping, the content of the sources and of the target (told by size and time, or by a digest where one was asked
for), the format with its options, and the plan that follows from all of it. Limit: a local file that was given other
content of the same size, and its old time, passes for what it was, unless it is pinned to a digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightport import __version__
from weightport.errors import Error, Problem, RefusedError
from weightport.execute.journal import Journal
from weightport.formats import _fs
from weightport.formats._temporaries import journal_of
from weightport.inputs import files, paths, vocabularies
from weightport.mapping.rules import Mapping as Rules
from weightport.plan import Plan
from weightport.tensors import Source


def begun(
    plan: Plan,
    source: Source,
    kept: Source | None,
    rules: Rules,
    path: str,
    write: Any,
    *,
    digests: Mapping[str, str],
    metadata: Mapping[str, str],
    told: Any = None,
) -> Journal:
    """The journal of a transfer that can be resumed, or is.

    Args:
        plan: what is to be done.
        source: what :func:`weightport.inputs.gathered` gave.
        kept: the target file, if there is one.
        rules: the mapping.
        path: the destination, a local path.
        write: its format's writer.
        digests: of the sources that were compared with one, by name; the first one's is ``""``.
        metadata: what the destination says of itself.
        told: a function that is told what becomes of an earlier run; anything else is not called.

    Raises:
        RefusedError: a source is no file; another process is at it.
        Error: the journal cannot be written.
    """
    others: Mapping[str, Source] = getattr(source, "others", {})
    names = ["", *others]
    read = {where: _identity(where, digests.get(name)) for name, where in zip(names, paths(source), strict=True)}
    words = {spelt: _sha256(Path(file).read_bytes()) for spelt, file in vocabularies(rules).items()}
    parts = {
        "version of weightport": __version__,
        "mapping": _digest([rules.digest, words]),
        "source": _digest(read),
        "target": _digest(None if kept is None else _identity(kept.path, None)),
        "format": _digest([write.module, {key: value for key, value in write.told.items() if key != "like"}]),
        "plan": _digest([[name, spec.dtype_name, spec.shape] for name, spec in plan.specs.items()]),
        "provenance": _digest(dict(metadata)),
    }
    try:
        return Journal(journal_of(write.final(path)), parts, told if callable(told) else None)
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error.strerror or error}") from None


def refuse(path: str, url: str | None, write: Any) -> None:
    """Refuse a destination for which there is nothing to resume.

    Raises:
        RefusedError: it is written as one stream, or lies elsewhere.
    """
    what = ""
    if url is not None:
        what, hint = "is not here, and what is written first is lost with the process", "write to a local path"
    elif not getattr(write, "ranged", False):
        what, hint = (
            "is written as one stream, which cannot be resumed",
            "write .safetensors, .npz, .pt or a checkpoint",
        )
    if what:
        raise RefusedError(Problem(url or path, what, f"{hint}, or leave out --resume"))


def _identity(path: str, digest: str | None) -> Any:
    """What tells a model's content from another one, on this machine or after it was started anew."""
    if digest is not None:
        return digest
    marks = {file: _fs.mark(file) for file in files(path)}
    if not marks or None in marks.values():
        what = "is no file, of which one could say that it is still the same"
        raise RefusedError(Problem(path, what, "leave out --resume"))
    # Device and inode of a local file may be others when its file system is mounted again.
    return {_fs.realpath(file): repr(mark if _fs.is_remote(file) else mark[2:]) for file, mark in marks.items() if mark}


def _digest(of: Any) -> str:
    return _sha256(json.dumps(of, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
