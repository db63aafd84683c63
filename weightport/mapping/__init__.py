"""Mapping files: YAML or a dict -> typed rules, each with its line; patterns; the JSON Schema."""

from __future__ import annotations

from weightport.mapping.dump import dump_mapping
from weightport.mapping.load import json_schema, load_mapping, parse_mapping
from weightport.mapping.patterns import Glob, Pattern
from weightport.mapping.rules import (
    CellRef,
    CellRule,
    Initializer,
    InitRule,
    Mapping,
    Ops,
    Pad,
    Rearrange,
    Rule,
    Side,
    Split,
    TensorRule,
    Vocab,
)
from weightport.mapping.vocab import read_vocab

__all__ = [
    "CellRef",
    "CellRule",
    "Glob",
    "InitRule",
    "Initializer",
    "Mapping",
    "Ops",
    "Pad",
    "Pattern",
    "Rearrange",
    "Rule",
    "Side",
    "Split",
    "TensorRule",
    "Vocab",
    "dump_mapping",
    "json_schema",
    "load_mapping",
    "parse_mapping",
    "read_vocab",
]
