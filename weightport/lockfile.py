"""The lock file: what a transfer was reviewed with, to be checked in beside the mapping.

It holds the SHA-256 of every file that decides about the result - sources, target, vocabularies, the mapping's own
content, weightport's layout tables - and weightport's version. Promise: a transfer under the lock reads exactly these,
or ends with every difference before anything is written; so a flipped bit anywhere is noticed, whatever the format.
Limit: plain names of files, for people; where they lie is said at each transfer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightport.errors import FormatError, Problem, RefusedError
from weightport.formats._temporaries import atomic_file
from weightport.formats.files import digest
from weightport.inputs import vocabularies
from weightport.mapping.rules import Mapping as Rules
from weightport.provenance import tables_digest
from weightport.tensors import Source

VERSION = 1
MAX_BYTES = 1 << 20
_KEYS = {"weightport_lock", "weightport", "layouts", "mapping", "sources", "target", "vocabularies"}


def default_path(mapping: str) -> str:
    """The lock beside a mapping file: ``asr.yaml`` has ``asr.lock``."""
    return os.path.splitext(mapping)[0] + ".lock"


def described(source: Source, target: Source | None, rules: Rules, version: str) -> dict[str, Any]:
    """The content of a lock.

    Args:
        source: what :func:`weightport.inputs.gathered` gave.
        target: the file that describes the new model, or None.
        version: weightport's.

    Raises:
        FormatError: a file cannot be read.
        Error: a source that lies in no file.
    """
    others: Mapping[str, Source] = getattr(source, "others", {})
    models = {"": source, **others}
    return {
        "weightport_lock": VERSION,
        "weightport": version,
        "layouts": tables_digest(),
        "mapping": {"name": os.path.basename(rules.path), "sha256": rules.digest},
        "sources": {name: _model(model) for name, model in models.items()},
        "target": _model(target) if target is not None else None,
        "vocabularies": {text: digest(path) for text, path in sorted(vocabularies(rules).items())},
    }


def _model(source: Source) -> dict[str, str]:
    return {"name": os.path.basename(source.path.rstrip("/")), "sha256": digest(source.path)}


def write(path: str, content: Mapping[str, Any]) -> None:
    """Write a lock file, atomically."""
    with atomic_file(path) as out:
        out.write((json.dumps(content, indent=2) + "\n").encode())


def read(path: str) -> dict[str, Any]:
    """The content of a lock file.

    Raises:
        FormatError: there is none, or it is not what :func:`write` writes.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        hint = "weightport lock makes one" if isinstance(error, FileNotFoundError) else ""
        raise FormatError(path, f"cannot be read: {error.strerror or error}", hint=hint) from None
    if len(raw) > MAX_BYTES:
        raise FormatError(path, f"larger than the {MAX_BYTES:,} bytes that a lock file may have")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, f"is no lock file: {error}") from None
    if not isinstance(found, dict) or set(found) != _KEYS or found["weightport_lock"] != VERSION:
        raise FormatError(path, f"is no lock file of version {VERSION}", hint="weightport lock makes one")
    return found


def enforce(path: str, source: Source, target: Source | None, rules: Rules, version: str) -> dict[str, str]:
    """Refuse what is not as it was locked. Returns the sources' digests, by their names; the first one's is ``""``.

    Raises:
        RefusedError: every difference.
        FormatError: the lock file itself cannot be read.
    """
    try:
        locked = _flat(read(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(path, f"is damaged: {error}") from None
    content = described(source, target, rules, version)
    now = _flat(content)
    problems = []
    for key in dict.fromkeys((*locked, *now)):
        if locked.get(key) == now.get(key):
            continue
        if key not in now:
            problems.append(Problem(path, f"{key} is locked, and not used now"))
        elif key not in locked:
            problems.append(Problem(path, f"{key} is used now, and not locked"))
        else:
            problems.append(Problem(path, f"{key} is {now[key]}, locked is {locked[key]}"))
    if problems:
        last = problems[-1]
        hint = "if the change is meant, look at the result and run weightport lock again"
        raise RefusedError([*problems[:-1], Problem(last.where, last.what, hint)])
    return {name: str(model["sha256"]) for name, model in content["sources"].items()}


def _flat(content: Mapping[str, Any]) -> dict[str, str]:
    """What is compared, with the words for it; names of files are for people only."""
    found = {
        "weightport": str(content["weightport"]),
        "the SHA-256 of the layout tables": str(content["layouts"]),
        "the SHA-256 of the mapping": str(content["mapping"]["sha256"]),
    }
    for name, model in content["sources"].items():
        found[f"the SHA-256 of the source{f' {name}' if name else ''}"] = str(model["sha256"])
    if content["target"] is not None:
        found["the SHA-256 of the target"] = str(content["target"]["sha256"])
    for name, value in content["vocabularies"].items():
        found[f"the SHA-256 of the vocabulary {name}"] = str(value)
    return found
