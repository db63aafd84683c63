"""Destinations that are given by URL: written here, and put there when they are complete.

Promise: nothing is there until everything is written and proven; one file takes the place of the old one as the file
system commits it (object stores: at once); of several, the one that refers to the others comes last, and nothing that
is there already is replaced. Limits: the whole model lies in a temporary folder for a while; HTTP and archives are
refused.

Source: fsspec/transaction.py (files opened in a transaction are committed in their order, or discarded).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from weightport.errors import Problem, RefusedError
from weightport.formats import _beside, _fs

if TYPE_CHECKING:
    from weightport.formats._remote import Remote

_OUT = re.compile(r"(?:([A-Za-z][A-Za-z0-9_-]+):(?=[A-Za-z][A-Za-z0-9+.-]+://))?(.+)", re.DOTALL)
# What is read first of several files: it is there last.
_FIRST = re.compile(r".*(\.index|\.index\.json|\.onnx|saved_model\.pb)", re.DOTALL)


@contextmanager
def destination(out: str, *, dry_run: bool = False) -> Iterator[tuple[str, str | None]]:
    """What to write to, ``FORMAT:`` included, and the URL's path where that is another one.

    What is written there in the end is put where the URL says, unless it is a ``dry_run``.

    Raises:
        RefusedError: nothing can be put there; or something of several files is there already.
        FormatError: it cannot be written.
    """
    match = _OUT.fullmatch(out)
    if match is None or not _fs.is_url(match[2]):
        yield out, None
        return
    kind, path = f"{match[1]}:" if match[1] else "", _fs.placed(match[2])
    at = _fs.find(path)
    if at is None:
        yield kind + path, None
        return
    from weightport.formats._remote import Remote

    place, inner = at
    if not isinstance(place, Remote) or not place.writes:
        raise RefusedError(Problem(path, "cannot be written by URL", "write to a local path, and copy it there"))
    with tempfile.TemporaryDirectory(prefix="weightport-") as folder:
        local = os.path.join(folder, os.path.basename(path))
        yield kind + local, path
        if not dry_run:
            _put(folder, local, place, inner)


def _put(folder: str, local: str, place: Remote, inner: str) -> None:
    """Put all files of a folder beside where one of them is to be, or the folder itself there."""
    found = [os.path.join(above, name) for above, _, names in os.walk(folder) for name in names]
    found.sort(key=lambda file: (_FIRST.fullmatch(file) is not None or file == local, file))
    above = os.path.dirname(inner)
    names = {file: os.path.join(above, os.path.relpath(file, folder)) for file in found}
    if len([file for file in found if not file.endswith(_beside.ENDING)]) > 1:
        there = next((n for n in (inner, *names.values()) if place.entry(n, anew=True) is not None), None)
        if there is not None:
            what = "is there, and several files cannot be replaced at once"
            raise RefusedError(Problem(place.shown(there), what, "remove it first, or write to another path"))
    place.put([(file, names[file]) for file in found])
