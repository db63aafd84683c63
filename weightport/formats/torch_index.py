"""PyTorch's files, one or several: ``pytorch_model.bin.index.json`` and the shards that it names.

Promise: as for :mod:`~weightport.formats.torch_file` and :mod:`~weightport.formats.safetensors_index`: the index and
the shards' pickles are read at opening, and must agree exactly; no shard lies outside the index' own folder. Limit:
sharded models are read, not written: write them as safetensors.

Source: transformers, docs/source/en/big_models.md ("Sharded checkpoints").
"""

from __future__ import annotations

import re
from typing import Any

from weightport.formats import _fs, safetensors_index, torch_file
from weightport.formats.safetensors_index import ShardedSource
from weightport.tensors import Budget

#: What the name of an index ends in.
ENDING = ".bin.index.json"
_MAPPED = re.compile(rb'"weight_map"\s*:\s*\{.*\.(?:bin|pt|pth)"', re.DOTALL)


class ShardedTorchSource(ShardedSource):
    """An open sharded model of PyTorch's."""

    format = "torch"
    ending = ENDING

    def _opened(self, path: str, budget: Budget) -> Any:
        return torch_file.open_source(path, budget=budget)


def sniff(path: str) -> bool:
    """Whether this is PyTorch's: one file, an index, or a folder that holds one."""
    return is_sharded(path) or (_fs.isfile(path) and torch_file.sniff(path))


def is_sharded(path: str) -> bool:
    """Whether this is an index, or a folder that holds one and nothing of TensorFlow's that says what is in it."""
    return safetensors_index.is_sharded(path, ENDING, _MAPPED)


def files_of(path: str) -> list[str]:
    """The index and its shards, in the order of their names.

    Raises:
        FormatError: no index.
    """
    return safetensors_index.files_of(path, ENDING)


def open_source(path: str, *, budget: Budget | None = None) -> torch_file.TorchSource | ShardedTorchSource:
    """Open a file of PyTorch's, the index of a sharded model, or the folder that holds one.

    Raises:
        FormatError: truncated, corrupt, or no file of PyTorch's; index and shards do not agree.
    """
    if _fs.isdir(path) or is_sharded(path):
        return ShardedTorchSource(path, budget=budget)
    return torch_file.open_source(path, budget=budget)
