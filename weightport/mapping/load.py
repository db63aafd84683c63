"""From a YAML file, its text or a dict to a :class:`Mapping`."""

from __future__ import annotations

import collections.abc
import os
from typing import Any

from weightport.mapping.rules import Mapping


def load_mapping(source: str | os.PathLike[str] | collections.abc.Mapping[str, Any] | Mapping) -> Mapping:
    """The mapping of a YAML file (its path) or of a dict of plain data; a :class:`Mapping` passes through."""
    raise NotImplementedError


def parse_mapping(text: str, path: str = "<text>") -> Mapping:
    """The mapping of a YAML text. Messages call it ``path``, whose folder holds its vocabularies."""
    raise NotImplementedError


def json_schema() -> dict[str, Any]:
    """The JSON Schema (Draft 2020-12) of a mapping file."""
    raise NotImplementedError
