"""From a YAML file, its text or a dict to a :class:`~weightport.mapping.rules.Mapping`.

Promise: a mapping is data; loading one runs nothing and opens no file but itself. Limit: all problems of its text are
reported at once; those that only show against a model are the plan's.
"""

from __future__ import annotations

import collections.abc
import os
from typing import Any

from weightport.errors import MappingError, Problem
from weightport.mapping.rules import Mapping


def load_mapping(source: str | os.PathLike[str] | collections.abc.Mapping[str, Any] | Mapping) -> Mapping:
    """The mapping of a YAML file or of a dict.

    Args:
        source: the file's path, or a dict of plain data (its files are looked for in the current folder); a
            :class:`Mapping` passes through.

    Raises:
        MappingError: the file cannot be read, or the mapping is wrong; has every problem, with lines.
    """
    if isinstance(source, Mapping):
        return source
    # pydantic and yaml take longer to import than all else: only when a mapping is really loaded.
    from weightport.mapping.build import build
    from weightport.mapping.document import plain_document

    if isinstance(source, collections.abc.Mapping):
        return build(plain_document(source))
    if isinstance(source, (str, os.PathLike)):
        from weightport.mapping._yaml import read_document

        return build(read_document(source))
    raise MappingError(Problem("", f"expected a path, a dict or a Mapping, found {type(source).__name__}"))


def parse_mapping(text: str, path: str = "<text>") -> Mapping:
    """The mapping of a YAML text.

    Args:
        text: YAML.
        path: what messages call the text; its folder is the one whose vocabularies the mapping may name.

    Raises:
        MappingError: every problem, with lines.
    """
    from weightport.mapping._yaml import parse_document
    from weightport.mapping.build import build

    return build(parse_document(text, path))


def json_schema() -> dict[str, Any]:
    """The JSON Schema (Draft 2020-12) of a mapping file: what :func:`load_mapping` accepts is valid by it."""
    from weightport.mapping.schema import schema

    return schema()
