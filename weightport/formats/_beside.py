"""Where a file of a format without room for remarks came from: a small JSON file beside it.

Promise: what is read is of the file that is there: the JSON states its size and CRC-32C, and is ignored when another
program has written the file since. It is written when the file is there, and never a reason to fail: what cannot be
written is not said. Limit: of files beyond 16 MB, the checksum is of their first and last 8 MB.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from weightport.checksums import crc32c
from weightport.errors import Error
from weightport.formats import _fs
from weightport.formats._io import ByteFile
from weightport.formats._temporaries import atomic_file

#: What is added to the name of the file.
ENDING = ".weightport.json"
#: What weightport says of a file (:mod:`weightport.provenance`), but for its further sources.
KEYS = tuple(f"weightport.{key}" for key in ("version", "source", "source_sha256", "mapping_sha256", "layouts_sha256"))
_MOST, _PART = 1 << 16, 8 << 20


def put(path: str, said: Mapping[str, str] | None, *, whole: bool = False) -> None:
    """Say where a file came from that has just been written; or nothing, and what was said before is gone.

    Args:
        path: the file; through a link, the one that it leads to.
        said: keys and values.
        whole: whether the folder is a new one that appears as a whole, whose lock its writer holds.
    """
    beside = os.path.realpath(path) + ENDING
    with contextlib.suppress(OSError, Error):
        if not said:
            os.unlink(beside)
            return
        document = {"of": _identity(path), "provenance": dict(sorted(said.items()))}
        with open(beside, "xb") if whole else atomic_file(beside) as out:
            out.write(json.dumps(document, indent=2).encode() + b"\n")


def said_of(path: str) -> dict[str, str]:
    """What was said of a file; nothing where the file is another one now."""
    beside = _fs.realpath(path) + ENDING
    try:
        if not _fs.isfile(beside):
            return {}
        with ByteFile(beside) as file:
            found = json.loads(file.read(0, file.size)) if file.size <= _MOST else {}
        if not isinstance(found, dict) or found.get("of") != _identity(path):
            return {}
    except (Error, ValueError, RecursionError):
        return {}
    said = found.get("provenance")
    return {k: v for k, v in said.items() if isinstance(v, str)} if isinstance(said, dict) else {}


def _identity(path: str) -> dict[str, Any]:
    with ByteFile(path) as file:
        crc = 0
        ranges = [(0, file.size)] if file.size <= 2 * _PART else [(0, _PART), (file.size - _PART, _PART)]
        for offset, size in ranges:
            for chunk in file.chunks(offset, size):
                crc = crc32c(chunk, crc)
        return {"size": file.size, "crc32c": f"{crc:08x}"}
