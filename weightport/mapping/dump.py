"""From a mapping to tidy YAML."""

from __future__ import annotations

import collections.abc
from typing import Any

from weightport.mapping.rules import Mapping


def dump_mapping(mapping: Mapping | collections.abc.Mapping[str, Any]) -> str:
    """The mapping, or its plain data, as YAML."""
    raise NotImplementedError
