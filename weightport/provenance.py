"""Where a file's values came from, as weightport writes it into the files that it makes.

Promise: names of sources and digests, weightport's version, nothing that tells a machine, a user or a time: the same
transfer says the same, so that its bytes are the same. Formats with room for remarks hold it themselves (the metadata
of safetensors, ONNX and archives, attributes of HDF5); beside the others lies a JSON file. Limit: a remark, no proof;
whoever changes the values can change it, too (a lock file is what pins a transfer).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from weightport.formats import _beside
from weightport.tensors import Source

if TYPE_CHECKING:
    from weightport.mapping.rules import Mapping as Rules

PREFIX = "weightport."
VERSION, SOURCE, MAPPING, LAYOUTS = "version", "source", "mapping_sha256", "layouts_sha256"


def record(source: Source, rules: Rules, version: str, digests: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a destination says.

    Args:
        source: what :func:`weightport.inputs.gathered` gave.
        rules: the mapping.
        version: weightport's.
        digests: of those of the sources whose files were looked at whole, by name; the first one's is ``""``.

    Returns:
        ``weightport.KEY`` -> text. A further source is ``weightport.source.NAME``.
    """
    others: Mapping[str, Source] = getattr(source, "others", {})
    found = {VERSION: version}
    for name, model in (("", source), *others.items()):
        end = f".{name}" if name else ""
        found[SOURCE + end] = os.path.basename(model.path.rstrip("/"))
        if digests and name in digests:
            found[f"{SOURCE}_sha256{end}"] = digests[name]
    found |= {MAPPING: rules.digest, LAYOUTS: tables_digest()}
    return {PREFIX + key: value for key, value in found.items()}


def provenance_of(source: Source) -> dict[str, str]:
    """What weightport said of a model when it wrote it, without the prefix of the keys; empty for any other model.

    Args:
        source: an open model.
    """
    metadata = getattr(source, "metadata", None)
    said = metadata if isinstance(metadata, Mapping) else {}
    if PREFIX + VERSION not in said:
        said = _beside.said_of(getattr(source, "described", source.path))
    return {
        key.removeprefix(PREFIX): value
        for key, value in said.items()
        if isinstance(key, str) and key.startswith(PREFIX) and isinstance(value, str)
    }


@cache
def tables_digest() -> str:
    """One digest of all layout tables, which are those of this process until it ends."""
    import hashlib
    from importlib import resources  # only where something is written

    found = hashlib.sha256()
    folder = resources.files("weightport.layouts") / "tables"
    for table in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if table.name.endswith(".yaml"):
            found.update(f"{hashlib.sha256(table.read_bytes()).hexdigest()}  {table.name}\n".encode())
    return found.hexdigest()
