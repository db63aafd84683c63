"""Flax' msgpack, one file or several: ``flax_model.msgpack.index.json`` and the shards that it names.

Promise: as for :mod:`~weightport.formats.flax_msgpack` and :mod:`~weightport.formats.safetensors_index`: the index is
read and the shards' trees are walked at opening, and they must agree exactly; no shard lies outside the index' own
folder. Limit: sharded models are read, not written.

Source: transformers 4, src/transformers/modeling_flax_utils.py (``flax_shard_checkpoint``).
"""

from __future__ import annotations

import re
from typing import Any

from weightport.formats import flax_msgpack, safetensors_index
from weightport.formats.safetensors_index import ShardedSource
from weightport.tensors import Budget

#: What the name of an index ends in.
ENDING = ".msgpack.index.json"
_MAPPED = re.compile(rb'"weight_map"\s*:\s*\{.*\.msgpack"', re.DOTALL)


class ShardedFlaxSource(ShardedSource):
    """An open sharded model of Flax'."""

    format = "flax-msgpack"
    ending = ENDING

    def _opened(self, path: str, budget: Budget) -> Any:
        return flax_msgpack.open_source(path, budget=budget)


def sniff(path: str) -> bool:
    """Whether this is Flax': a file, an index, or a folder that holds one, or checkpoints of steps. Never raises."""
    return is_sharded(path) or flax_msgpack.sniff(path)


def is_sharded(path: str) -> bool:
    """Whether this is an index, or a folder that holds one and nothing of TensorFlow's that says what is in it."""
    return safetensors_index.is_sharded(path, ENDING, _MAPPED)


def files_of(path: str) -> list[str]:
    """The index and its shards, in the order of their names.

    Raises:
        FormatError: no index.
    """
    return safetensors_index.files_of(path, ENDING)


def open_source(path: str, *, budget: Budget | None = None) -> flax_msgpack.FlaxSource | ShardedFlaxSource:
    """Open a file of Flax', the index of a sharded model, or a folder that holds one, or checkpoints of steps.

    Raises:
        FormatError: truncated, corrupt, or no msgpack; index and shards do not agree.
    """
    return ShardedFlaxSource(path, budget=budget) if is_sharded(path) else flax_msgpack.open_source(path, budget=budget)
